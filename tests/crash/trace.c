/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Traces, and disks as a power loss leaves them.
 *
 * At a point of a trace a disk surely holds what was answered before the last
 * flush was sent that has been answered, and FUA writes that were answered.  All other
 * writes sent by then (the tail) it may hold in any combination, and parts of each.
 */
#include <endian.h>

#include "../../targets/log_writes_format.h"
#include "internal.h"

static void io_clear(gpointer io)
{
	g_free(((struct trace_io *)io)->data);
}

struct trace *trace_new(void)
{
	struct trace *t = g_new0(struct trace, 1);

	t->ios = g_array_new(FALSE, FALSE, sizeof(struct trace_io));
	g_array_set_clear_func(t->ios, io_clear);
	return t;
}

void trace_free(struct trace *t)
{
	if (!t)
		return;
	g_array_free(t->ios, TRUE);
	g_free(t);
}

unsigned trace_add(struct trace *t, const struct trace_io *io)
{
	g_array_append_vals(t->ios, io, 1);
	return t->ios->len - 1;
}

/* --- a log of log-writes --------------------------------------------------------------- */

static int parse_entry(struct trace *t, const uint8_t *log, uint64_t sectors, uint64_t *at, GError **err)
{
	struct log_writes_entry e;
	struct trace_io io = {.kind = TRACE_WRITE};
	uint64_t flags, len;

	if (*at >= sectors)
		return dm_fail(err, EINVAL, "the log ends in entry %u", t->ios->len);
	memcpy(&e, log + *at * DM_SECTOR_SIZE, sizeof e);
	flags = le64toh(e.flags);
	len = le64toh(e.data_len);
	io.sector = le64toh(e.sector);
	io.sectors = le64toh(e.sectors);
	io.fua = flags & LOG_WRITES_FUA;
	io.done = t->ios->len + 1;
	if (flags & LOG_WRITES_MARK) {
		g_autofree char *text = len > DM_SECTOR_SIZE - sizeof e ? NULL :
			g_strndup((const char *)log + *at * DM_SECTOR_SIZE + sizeof e, len);

		if (!text)
			return dm_fail(err, EINVAL, "entry %u is a mark of %" PRIu64 " bytes", t->ios->len, len);
		io.kind = TRACE_MARK;
		if (!dm_parse_u64(text, &io.mark) && strcmp(text, LOG_WRITES_END_MARK))
			return dm_fail(err, EINVAL, "entry %u is a mark '%s'", t->ios->len, text);
	} else if (flags & LOG_WRITES_FLUSH) {
		io.kind = TRACE_FLUSH;
		io.start = t->ios->len;
	} else if (!(flags & LOG_WRITES_DISCARD)) {
		if (io.sectors > sectors - *at - 1)
			return dm_fail(err, EINVAL, "entry %u of %" PRIu64 " sectors goes beyond the log",
				       t->ios->len, io.sectors);
		io.data = g_memdup2(log + (*at + 1) * DM_SECTOR_SIZE, io.sectors * DM_SECTOR_SIZE);
		*at += io.sectors;
	}
	*at += 1;
	trace_add(t, &io);
	return 0;
}

struct trace *trace_parse(const uint8_t *log, uint64_t sectors, GError **err)
{
	struct trace *t = trace_new();
	struct log_writes_super super;
	uint64_t at = 1;
	int error = 0;

	t->log = true;
	memcpy(&super, log, sizeof super);
	if (le64toh(super.magic) != LOG_WRITES_MAGIC || le32toh(super.block_size) != DM_SECTOR_SIZE)
		error = dm_fail(err, EINVAL, "this is no log");
	for (uint64_t i = 0; !error && i < le64toh(super.entries); i++)
		error = parse_entry(t, log, sectors, &at, err);
	if (!error)
		return t;
	trace_free(t);
	return NULL;
}

/* --- replay ------------------------------------------------------------------------------ */

struct replay *replay_new(const struct trace *t, const uint8_t *image, uint64_t sectors)
{
	struct replay *r = g_new0(struct replay, 1);

	r->trace = t;
	r->disk = disk_new(sectors, 0);
	r->durable = g_memdup2(image, sectors * DM_SECTOR_SIZE);
	memcpy(r->disk->data, image, sectors * DM_SECTOR_SIZE);
	r->tail = g_array_new(FALSE, FALSE, sizeof(unsigned));
	return r;
}

void replay_free(struct replay *r)
{
	disk_free(r->disk);
	g_free(r->durable);
	g_array_free(r->tail, TRUE);
	g_free(r);
}

static void apply(uint8_t *image, const struct trace_io *io, uint64_t from, uint64_t sectors)
{
	uint8_t *at = image + (io->sector + from) * DM_SECTOR_SIZE;

	if (io->data)
		memcpy(at, io->data + from * DM_SECTOR_SIZE, sectors * DM_SECTOR_SIZE);
	else
		memset(at, 0, sectors * DM_SECTOR_SIZE);
}

/* A flush: what it covers goes from the tail to what is durable. */
static void settle(struct replay *r, const struct trace_io *flush)
{
	unsigned kept = 0;

	for (unsigned i = 0; i < r->tail->len; i++) {
		unsigned n = g_array_index(r->tail, unsigned, i);
		const struct trace_io *io = trace_at(r->trace, n);

		if (io->done <= flush->start) {
			apply(r->durable, io, 0, io->sectors);
			disk_touch(r->disk, io->sector, io->sectors);
		} else {
			g_array_index(r->tail, unsigned, kept++) = n;
		}
	}
	g_array_set_size(r->tail, kept);
}

void replay_advance(struct replay *r, unsigned pos)
{
	for (; r->pos < pos; r->pos++) {
		const struct trace_io *io = trace_at(r->trace, r->pos);

		if (io->kind == TRACE_FLUSH)
			settle(r, io);
		else if (io->kind == TRACE_MARK)
			r->time = MAX(r->time, io->mark);
		else
			g_array_append_val(r->tail, r->pos);
	}
}

/* Whether a write of the tail must be there: not so FUA if it is the very last thing, as it may have been under way. */
static bool is_sure(struct replay *r, unsigned n)
{
	const struct trace_io *io = trace_at(r->trace, n);

	return io->fua && io->done <= r->pos && n + 1 < r->pos;
}

unsigned replay_optional(struct replay *r)
{
	unsigned n = 0;

	for (unsigned i = 0; i < r->tail->len; i++)
		n += !is_sure(r, g_array_index(r->tail, unsigned, i));
	return n;
}

static void set_unsure(struct replay *r, unsigned i, uint8_t *sectors)
{
	const struct trace_io *io = trace_at(r->trace, i);

	if (io->kind == TRACE_WRITE)
		memset(sectors + io->sector, 1, io->sectors);
}

void replay_unsure(struct replay *r, uint8_t *sectors)
{
	for (unsigned i = 0; i < r->tail->len; i++) {
		unsigned n = g_array_index(r->tail, unsigned, i);

		if (!is_sure(r, n))
			set_unsure(r, n, sectors);
	}
	/* what belongs to a request that was not answered may not have been sent in full */
	for (unsigned i = r->pos; i-- && trace_at(r->trace, i)->kind != TRACE_MARK;)
		set_unsure(r, i, sectors);
	/* what a log has from here to the next flush may have been sent, and its request answered, before this */
	for (unsigned i = r->pos; r->trace->log && i < r->trace->ios->len; i++) {
		if (trace_at(r->trace, i)->kind == TRACE_FLUSH)
			break;
		set_unsure(r, i, sectors);
	}
}

static void apply_torn(struct replay *r, const struct trace_io *io, GRand *rand)
{
	bool any = g_rand_boolean(rand); /* any of its sectors, else its begin */
	uint64_t cut = io->sectors > 1 ? 1 + g_rand_int(rand) % (io->sectors - 1) : 0;

	for (uint64_t s = 0; s < io->sectors; s++)
		if (any ? g_rand_boolean(rand) : s < cut)
			apply(r->disk->data, io, s, 1);
	disk_touch(r->disk, io->sector, io->sectors);
}

void replay_build(struct replay *r, enum keep keep, GRand *rand)
{
	unsigned optional = replay_optional(r), nth = 0;
	unsigned chosen = optional ? g_rand_int(rand) % optional : 0;

	disk_put_back(r->disk, r->durable);
	for (unsigned i = 0; i < r->tail->len; i++) {
		unsigned n = g_array_index(r->tail, unsigned, i);
		const struct trace_io *io = trace_at(r->trace, n);
		bool whole = true, torn = false;

		if (!is_sure(r, n)) {
			bool is_chosen = nth++ == chosen;

			switch (keep) {
			case KEEP_SOME: {
				unsigned chance = g_rand_int(rand) % 5;

				whole = chance < 2;
				torn = chance == 2;
				break;
			}
			case KEEP_ONE:
				whole = is_chosen;
				break;
			case LOSE_ONE:
				whole = !is_chosen;
				torn = is_chosen && g_rand_boolean(rand);
				break;
			case KEEP_NONE:
				whole = false;
				break;
			default:
				break;
			}
		}
		if (whole) {
			apply(r->disk->data, io, 0, io->sectors);
			disk_touch(r->disk, io->sector, io->sectors);
		} else if (torn) {
			apply_torn(r, io, rand);
		}
	}
}
