/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The dirty logs there are, and the part all local ones share: bitmaps in memory.  "core" is nothing but that:
 *
 *   core <#params> <region size> [sync | nosync]
 *
 * "userspace" hands the log over to a server (dirty_log_userspace.c) if the mount was told of one.  Without it
 * the logs that such servers have are here, for one node: core and disk by other names,
 *
 *   userspace <#params> <UUID> [integrated_flush] clustered-core [<#params>] <region size> [sync | nosync]
 *   userspace <#params> <UUID> [integrated_flush] clustered-disk [<#params>] <log device> <region size> [sync | nosync]
 *
 * A bitmap is allocated only if memory for it can be had: with the smallest regions a large mirror's is hundreds of
 * megabytes.
 */
#include <inttypes.h>

#include "dirty_log.h"
#include "userspace_args.h"

#include <dmfs/options.h>
#include <dmfs/rounding.h>

/* --- the local part ------------------------------------------------------------- */

static int parse_sync(const char *who, const char *word, enum log_sync *sync, GError **err)
{
	if (!strcmp(word, "sync"))
		*sync = LOG_FORCE_SYNC;
	else if (!strcmp(word, "nosync"))
		*sync = LOG_NOSYNC;
	else
		return dm_fail(err, EINVAL, "%s: unrecognised sync argument to dirty region log: '%s', sync or nosync "
					    "would be right", who, word);
	return 0;
}

static int parse_region_size(struct dm_dirty_log *log, const char *who, const char *word, GError **err)
{
	uint64_t len = log->ti->len;
	unsigned size;

	if (!dm_parse_uint(word, &size) || size < 2 || size > len || !dm_is_pow2(size))
		return dm_fail(err, EINVAL,
			       "%s: invalid region size '%s': a power of two of sectors from 2 up to the target's "
			       "length %" PRIu64 " would be right", who, word, len);
	log->region_sectors = size;
	log->regions = len / size + (len % size != 0);
	if (log->regions > UINT32_MAX)
		return dm_fail(err, EINVAL, "%s: region count %" PRIu64 " exceeds the limit of %u: regions of %u sectors "
					    "are too small for %" PRIu64, who, log->regions, UINT32_MAX, size, len);
	return 0;
}

int dm_log_local_init(struct dm_dirty_log *log, struct local_log *l, const char *who, int argc, char **argv,
		      GError **err)
{
	size_t bytes;
	int error;

	if (argc < 1 || argc > 2)
		return dm_fail(err, EINVAL, "%s: wrong number of arguments to the %s dirty region log: its region size "
					    "and sync or nosync would be right", who, log->type->name);
	l->sync = LOG_DEFAULT_SYNC;
	error = argc > 1 ? parse_sync(who, argv[1], &l->sync, err) : 0;
	if (!error)
		error = parse_region_size(log, who, argv[0], err);
	if (error)
		return error;
	bytes = dm_log_bitmap_bytes(log->regions);
	l->sync_bits = l->sync == LOG_NOSYNC ? g_try_malloc(bytes) : g_try_malloc0(bytes);
	if (!l->sync_bits)
		return dm_fail(err, ENOMEM, "%s: no memory for a bitmap of %" PRIu64 " regions", who, log->regions);
	if (l->sync == LOG_NOSYNC)
		memset(l->sync_bits, 0xff, bytes);
	atomic_init(&l->sync_count, l->sync == LOG_NOSYNC ? log->regions : 0);
	l->search = 0;
	log->context = l;
	return 0;
}

int dm_log_in_sync(struct dm_dirty_log *log, uint64_t region, bool may_wait)
{
	struct local_log *l = log->context;

	return dm_region_bit_test(l->sync_bits, region);
}

/* Whole words of ones are stepped over. */
bool dm_log_get_resync_work(struct dm_dirty_log *log, uint64_t *region)
{
	struct local_log *l = log->context;
	uint64_t r = l->search;

	while (r < log->regions) {
		uint64_t word;

		if (r % 64 == 0) {
			memcpy(&word, l->sync_bits + r / 8, sizeof word);
			if (word == UINT64_MAX) {
				r += 64;
				continue;
			}
		}
		if (!dm_region_bit_test(l->sync_bits, r))
			break;
		r++;
	}
	if (r >= log->regions) {
		l->search = log->regions;
		return false;
	}
	l->search = r + 1;
	*region = r;
	return true;
}

void dm_log_set_region_sync(struct dm_dirty_log *log, uint64_t region, bool in_sync)
{
	struct local_log *l = log->context;

	if (dm_region_bit_test(l->sync_bits, region) == in_sync)
		return;
	if (in_sync) {
		dm_region_bit_set(l->sync_bits, region);
		atomic_fetch_add(&l->sync_count, 1);
	} else {
		dm_region_bit_clear(l->sync_bits, region);
		atomic_fetch_sub(&l->sync_count, 1);
	}
}

uint64_t dm_log_sync_count(struct dm_dirty_log *log)
{
	struct local_log *l = log->context;

	return atomic_load(&l->sync_count);
}

void dm_log_print_type(struct dm_dirty_log *log, unsigned params, GString *out)
{
	if (!log->prefix)
		g_string_append_printf(out, "%s %u", log->type->name, params);
	else
		g_string_append_printf(out, "userspace %u %s %s", params + 2 + (strchr(log->prefix, ' ') != NULL), log->prefix,
				       log->type->name);
}

void dm_log_print_sync(struct local_log *l, GString *out)
{
	if (l->sync != LOG_DEFAULT_SYNC)
		g_string_append(out, l->sync == LOG_NOSYNC ? " nosync" : " sync");
}

/* --- core ------------------------------------------------------------------------- */

struct core_log {
	struct local_log local; /* first */
	uint8_t *dirty_bits;
};

static void core_dtr(struct dm_dirty_log *log)
{
	struct core_log *c = log->context;

	g_free(c->local.sync_bits);
	g_free(c->dirty_bits);
	g_free(c);
}

static int core_ctr(struct dm_dirty_log *log, int argc, char **argv, GError **err)
{
	struct core_log *c = g_new0(struct core_log, 1);
	int error = dm_log_local_init(log, &c->local, log->ti->type->name, argc, argv, err);

	log->context = c;
	if (!error) {
		c->dirty_bits = g_try_malloc0(dm_log_bitmap_bytes(log->regions));
		if (!c->dirty_bits)
			error = dm_fail(err, ENOMEM, "%s: no memory for a bitmap of %" PRIu64 " regions",
					log->ti->type->name, log->regions);
	}
	if (error)
		core_dtr(log);
	return error;
}

static int core_resume(struct dm_dirty_log *log)
{
	struct core_log *c = log->context;

	c->local.search = 0;
	return 0;
}

static bool core_is_clean(struct dm_dirty_log *log, uint64_t region)
{
	struct core_log *c = log->context;

	return !dm_region_bit_test(c->dirty_bits, region);
}

static int core_flush(struct dm_dirty_log *log)
{
	return 0;
}

static void core_mark_region(struct dm_dirty_log *log, uint64_t region)
{
	struct core_log *c = log->context;

	dm_region_bit_set(c->dirty_bits, region);
}

static void core_clear_region(struct dm_dirty_log *log, uint64_t region)
{
	struct core_log *c = log->context;

	dm_region_bit_clear(c->dirty_bits, region);
}

static void core_status(struct dm_dirty_log *log, enum dm_status_type type, GString *out)
{
	struct core_log *c = log->context;

	if (type == DM_STATUS_INFO) {
		g_string_append_printf(out, "1 %s", log->type->name);
		return;
	}
	dm_log_print_type(log, c->local.sync == LOG_DEFAULT_SYNC ? 1 : 2, out);
	g_string_append_printf(out, " %" PRIu32, log->region_sectors);
	dm_log_print_sync(&c->local, out);
}

#define CORE_LOG(its_name)                                                                                            \
	{                                                                                                             \
		.name = its_name, .in_memory = true, .ctr = core_ctr, .dtr = core_dtr, .resume = core_resume,         \
		.is_clean = core_is_clean, .in_sync = dm_log_in_sync, .flush = core_flush,                            \
		.mark_region = core_mark_region, .clear_region = core_clear_region,                                   \
		.get_resync_work = dm_log_get_resync_work, .set_region_sync = dm_log_set_region_sync,                 \
		.sync_count = dm_log_sync_count, .status = core_status,                                               \
	}

static const struct dm_dirty_log_type core_log_type = CORE_LOG("core");
static const struct dm_dirty_log_type clustered_core_log_type = CORE_LOG("clustered-core");

/* --- all of them ------------------------------------------------------------------- */

static const struct dm_dirty_log_type *const types[] = {&core_log_type, &dm_disk_log_type};
static const struct dm_dirty_log_type *const clustered_types[] = {&clustered_core_log_type, &dm_clustered_disk_log_type};

static const struct dm_dirty_log_type *find_type(const struct dm_dirty_log_type *const *list, size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++)
		if (!strcmp(list[i]->name, name))
			return list[i];
	return NULL;
}

/* A userspace log's own type, and what of its arguments is that one's. */
static int choose_userspace(struct dm_dirty_log *log, const char *who, int *argc, char ***argv, GError **err)
{
	struct dm_userspace_args args;
	int error = dm_userspace_args(who, *argc, *argv, &args, err);

	if (error)
		return error;
	log->prefix = args.prefix;
	if (dm_options.log_server) {
		log->type = &dm_userspace_log_type;
		return 0;
	}
	log->type = find_type(clustered_types, G_N_ELEMENTS(clustered_types), args.type);
	if (!log->type)
		return dm_fail(err, EINVAL, "%s: unknown userspace log type '%.32s', clustered-core or clustered-disk would be "
					    "right, or -o log_server with a server that knows it", who, args.type);
	*argc = args.argc;
	*argv = args.argv;
	return 0;
}

static int choose(struct dm_dirty_log *log, const char *who, const char *name, int *argc, char ***argv, GError **err)
{
	if (!strcmp(name, "userspace"))
		return choose_userspace(log, who, argc, argv, err);
	log->type = find_type(types, G_N_ELEMENTS(types), name);
	return log->type ? 0 : dm_fail(err, EINVAL, "%s: unknown log type '%.32s', core, disk or userspace would be right",
				       who, name);
}

int dm_dirty_log_new(struct dm_target *ti, const char *who, const char *type_name, int argc, char **argv,
		     struct dm_dirty_log **out, GError **err)
{
	struct dm_dirty_log *log = g_new0(struct dm_dirty_log, 1);
	int error;

	log->ti = ti;
	error = choose(log, who, type_name, &argc, &argv, err);
	if (!error)
		error = log->type->ctr(log, argc, argv, err);
	if (error) {
		g_free(log->prefix);
		g_free(log);
		return error;
	}
	*out = log;
	return 0;
}

void dm_dirty_log_free(struct dm_dirty_log *log)
{
	if (!log)
		return;
	log->type->dtr(log);
	g_free(log->prefix);
	g_free(log);
}
