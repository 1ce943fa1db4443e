/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A log and its clients' requests (log.h). */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <dmfs/rounding.h>

#include "core/table.h"
#include "lib/userspace_args.h"
#include "log.h"

struct log {
	struct log_shape shape;
	struct log_state *state;
	struct log_store *store; /* NULL: clustered-core */
	bool begun; /* the disk's is ours: somebody has resumed */
};

/* --- what CTR asks for ------------------------------------------------------------------ */

static int parse_size(const char *word, struct log_shape *s, GError **err)
{
	unsigned size;

	if (!dm_parse_uint(word, &size) || size < 2 || !dm_is_pow2(size))
		return dm_fail(err, EINVAL, "invalid region size '%.32s': a power of two of sectors would be right", word);
	s->region_sectors = size;
	s->regions = s->sectors / size + (s->sectors % size != 0);
	if (s->regions > UINT32_MAX)
		return dm_fail(err, EINVAL, "region count %" PRIu64 " exceeds the limit of %u", s->regions, UINT32_MAX);
	return 0;
}

static int parse_sync(const char *word, struct log_shape *s, GError **err)
{
	if (strcmp(word, "sync") && strcmp(word, "nosync"))
		return dm_fail(err, EINVAL, "unrecognised sync argument '%.32s': sync or nosync would be right", word);
	s->sync = *word == 's' ? SHAPE_SYNC : SHAPE_NOSYNC;
	return 0;
}

static int parse_words(int argc, char **argv, struct log_shape *s, GError **err)
{
	bool disk;
	int error;

	if (argc < 3)
		return dm_fail(err, EINVAL, "too few arguments: <sectors> clustered-core|clustered-disk <params> are the least");
	if (!dm_parse_u64(argv[0], &s->sectors) || !s->sectors)
		return dm_fail(err, EINVAL, "the length '%.32s' is no number of sectors", argv[0]);
	disk = !strcmp(argv[1], "clustered-disk") || !strcmp(argv[1], "clustered_disk");
	if (!disk && strcmp(argv[1], "clustered-core") && strcmp(argv[1], "clustered_core"))
		return dm_fail(err, EINVAL, "unknown log type '%.32s': clustered-core or clustered-disk would be right", argv[1]);
	argc -= 2;
	argv += 2;
	dm_userspace_skip_count(&argc, &argv);
	if (argc < 1 + disk || argc > 2 + disk)
		return dm_fail(err, EINVAL, "wrong number of arguments: %sits region size and sync or nosync would be right",
			       disk ? "its device, " : "");
	error = parse_size(argv[disk], s, err);
	if (!error && argc == 2 + disk)
		error = parse_sync(argv[1 + disk], s, err);
	if (!error && disk)
		s->device = g_strdup(argv[0]);
	return error;
}

int log_shape_parse(const uint8_t *data, size_t size, struct log_shape *out, GError **err)
{
	g_autofree char *line = g_strndup((const char *)data, size);
	g_autoptr(GPtrArray) words = dm_split_words(line);

	*out = (struct log_shape){.sync = SHAPE_KNOWN};
	return parse_words((int)words->len - 1, (char **)words->pdata, out, err);
}

/* --- life ---------------------------------------------------------------------------------- */

static void changed(void *context, uint64_t region, bool clean)
{
	struct log *log = context;

	if (log->store)
		log_store_set_clean(log->store, region, clean);
}

static void learn(struct log *log, bool trust_table)
{
	bool nosync = log->shape.sync == SHAPE_NOSYNC && trust_table;

	if (nosync || !log->store || !log_store_is_log(log->store) || (log->shape.sync == SHAPE_SYNC && trust_table))
		return;
	for (uint64_t r = 0; r < log->shape.regions; r++)
		if (log_store_is_clean(log->store, r))
			log_set_known(log->state, r, true);
}

struct log *log_new(struct log_shape *shape, bool after_crash, GError **err)
{
	struct log *log = g_new0(struct log, 1);
	bool anew = shape->sync != SHAPE_KNOWN;

	log->shape = *shape;
	shape->device = NULL;
	if (log->shape.device)
		log->store = log_store_open(log->shape.device, log->shape.regions, anew, err);
	if (log->store || !log->shape.device)
		log->state = log_state_new(log->shape.regions, log->shape.sync == SHAPE_NOSYNC && !after_crash);
	if (!log->state) {
		dm_fail(err, ENOMEM, "no memory for %" PRIu64 " regions", log->shape.regions);
		log_free(log);
		return NULL;
	}
	log->state->grace = after_crash;
	log->state->changed = changed;
	log->state->context = log;
	learn(log, !after_crash);
	return log;
}

void log_free(struct log *log)
{
	if (!log)
		return;
	if (log->store && log->begun)
		log_store_commit(log->store);
	log_state_free(log->state);
	log_store_free(log->store);
	g_free(log->shape.device);
	g_free(log);
}

int log_same_shape(const struct log *log, const struct log_shape *shape, GError **err)
{
	const struct log_shape *s = &log->shape;

	if (g_strcmp0(s->device, shape->device))
		return dm_fail(err, EINVAL, "this UUID is in use already, with %s, not %s",
			       s->device ? s->device : "clustered-core", shape->device ? shape->device : "clustered-core");
	if (s->sectors != shape->sectors || s->region_sectors != shape->region_sectors)
		return dm_fail(err, EINVAL, "this UUID is in use already, for %" PRIu64 " sectors in regions of %u, not %" PRIu64
					    " in regions of %u", s->sectors, s->region_sectors, shape->sectors,
			       shape->region_sectors);
	return 0;
}

struct log_state *log_state_of(struct log *log)
{
	return log->state;
}

void log_end_grace(struct log *log)
{
	log->state->grace = false;
}

/* The first resume makes the disk's log what is known. */
static void begin(struct log *log)
{
	if (log->begun || !log->store)
		return;
	log->begun = true;
	for (uint64_t r = 0; r < log->shape.regions; r++)
		log_store_set_clean(log->store, r, log_is_clean(log->state, r));
	log_store_set_all(log->store);
}

/* Before somebody has resumed the disk is not ours to write to. */
int log_commit(struct log *log)
{
	return log->store && log->begun ? log_store_commit(log->store) : 0;
}

/* --- requests ---------------------------------------------------------------------------------- */

static void put(struct ulog *out, uint8_t *data, const void *value, size_t size)
{
	memcpy(data, value, size);
	out->data = data;
	out->size = size;
}

static void put_u64(struct ulog *out, uint8_t *data, uint64_t value)
{
	put(out, data, &value, sizeof value);
}

static void put_text(struct ulog *out, uint8_t *data, const GString *text)
{
	put(out, data, text->str, MIN(text->len, ULOG_MAX_DATA - 1) + 1);
}

void log_answer_ctr(struct log *log, struct ulog *out, uint8_t data[ULOG_MAX_DATA])
{
	g_autoptr(GString) name = g_string_new(log->shape.device);

	if (log->shape.device)
		put_text(out, data, name);
}

static void put_status(struct log *log, bool table, struct ulog *out, uint8_t *data)
{
	static const char *const sync[] = {"", " sync", " nosync"};
	g_autoptr(GString) text = g_string_new(NULL);
	unsigned params = log->shape.sync != SHAPE_KNOWN;

	if (table && log->store)
		g_string_printf(text, "clustered-disk %u %s %u%s", params + 2, log->shape.device, log->shape.region_sectors,
				sync[log->shape.sync]);
	else if (table)
		g_string_printf(text, "clustered-core %u %u%s", params + 1, log->shape.region_sectors, sync[log->shape.sync]);
	else if (log->store)
		g_string_printf(text, "3 clustered-disk %s %c", log->shape.device, log_store_letter(log->store));
	else
		g_string_printf(text, "1 clustered-core");
	put_text(out, data, text);
}

/* A request's list of regions; all are below the log's. */
static int each_region(struct log *log, struct log_client *c, const struct ulog *in,
		       void (*fn)(struct log_client *, uint64_t))
{
	uint64_t r;

	if (in->size % sizeof r)
		return -EINVAL;
	for (size_t at = 0; at < in->size; at += sizeof r) {
		memcpy(&r, in->data + at, sizeof r);
		if (r >= log->shape.regions)
			return -EINVAL;
	}
	for (size_t at = 0; at < in->size; at += sizeof r) {
		memcpy(&r, in->data + at, sizeof r);
		fn(c, r);
	}
	return 0;
}

static int take_sync(struct log *log, struct log_client *c, const struct ulog *in)
{
	struct ulog_sync s;

	if (in->size != sizeof s)
		return -EINVAL;
	memcpy(&s, in->data, sizeof s);
	if (s.region >= log->shape.regions || (s.in_sync != 0 && s.in_sync != 1))
		return -EINVAL;
	return log_set_sync(c, s.region, s.in_sync) ? 0 : -EPERM;
}

static int about_region(struct log *log, struct log_client *c, const struct ulog *in, struct ulog *out, uint8_t *data)
{
	uint64_t r;

	if (!ulog_u64(in, &r) || r >= log->shape.regions)
		return -EINVAL;
	if (in->type == DM_ULOG_IS_REMOTE_RECOVERING) {
		struct ulog_remote remote = {log_is_remote(c, r), log_hint(log->state)};

		put(out, data, &remote, sizeof remote);
	} else {
		put_u64(out, data, in->type == DM_ULOG_IN_SYNC ? log_in_sync(log->state, r) : log_is_clean(log->state, r));
	}
	return 0;
}

static void give_work(struct log_client *c, struct ulog *out, uint8_t *data)
{
	struct ulog_work work = {0, 0};

	work.any = log_work(c, &work.region);
	put(out, data, &work, sizeof work);
}

static int answer(struct log *log, struct log_client *c, const struct ulog *in, struct ulog *out, uint8_t *data)
{
	switch (in->type) {
	case DM_ULOG_RESUME:
		log_resume(c);
		begin(log);
		return 0;
	case DM_ULOG_PRESUSPEND:
		return 0;
	case DM_ULOG_POSTSUSPEND:
		log_postsuspend(c);
		return 0;
	case DM_ULOG_GET_REGION_SIZE:
		put_u64(out, data, log->shape.region_sectors);
		return 0;
	case DM_ULOG_GET_SYNC_COUNT:
		put_u64(out, data, log->state->in_sync);
		return 0;
	case DM_ULOG_STATUS_INFO:
	case DM_ULOG_STATUS_TABLE:
		put_status(log, in->type == DM_ULOG_STATUS_TABLE, out, data);
		return 0;
	case DM_ULOG_IS_CLEAN:
	case DM_ULOG_IN_SYNC:
		return about_region(log, c, in, out, data);
	default:
		break;
	}
	/* What follows is for those only whom the others know to be there. */
	if (!c->resumed)
		return -EINVAL;
	switch (in->type) {
	case DM_ULOG_FLUSH:
	case DM_ULOG_MARK_REGION:
		return each_region(log, c, in, log_mark);
	case DM_ULOG_CLEAR_REGION:
		return each_region(log, c, in, log_clear);
	case DM_ULOG_SET_REGION_SYNC:
		return take_sync(log, c, in);
	case DM_ULOG_GET_RESYNC_WORK:
		give_work(c, out, data);
		return 0;
	case DM_ULOG_IS_REMOTE_RECOVERING:
		return about_region(log, c, in, out, data);
	default:
		return -EINVAL;
	}
}

bool log_request(struct log *log, struct log_client *c, const struct ulog *in, struct ulog *out,
		 uint8_t data[ULOG_MAX_DATA])
{
	out->size = 0;
	out->error = answer(log, c, in, out, data);
	if (out->error)
		out->size = 0;
	return !out->error && (in->type == DM_ULOG_FLUSH || in->type == DM_ULOG_RESUME || in->type == DM_ULOG_POSTSUSPEND);
}
