/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reads, writes and flushes of a mirror.
 *
 * A read of a region in sync goes to any leg, by megabytes in turn; if that fails, to the next.  A write whose region is
 * dirty already goes to the legs from the thread it came in.
 */
#include "mirror.h"

#define BALANCE_SHIFT 11 /* sectors a leg is read for before it is another's turn: 1 MiB */

/* --- reads ------------------------------------------------------------------------ */

/*
 * The next leg to try, or -1: first those without an error, then those that had nothing but read errors.
 */
static int next_leg(struct mirror_bio *b)
{
	struct mirror *ms = b->ms;
	unsigned n = ms->nr_legs;

	if (ms->shared ? !b->io.in_sync : dm_regions_where(ms->regions, b->io.offset) == DM_REGION_FIRST) {
		unsigned primary = atomic_load(&ms->primary);

		return b->step++ || leg_is_stale(&ms->legs[primary]) ? -1 : (int)primary;
	}
	while (b->step < 2 * n) {
		unsigned step = b->step++, leg = (b->first + step) % n;
		unsigned errors = atomic_load_explicit(&ms->legs[leg].errors, memory_order_acquire);

		if (step < n ? !errors : errors == 1u << LEG_READ_ERROR)
			return (int)leg;
	}
	return -1;
}

/* Points a read at the next leg to try; false: there is none. */
static bool point_at_leg(struct mirror_bio *b)
{
	int leg = next_leg(b);

	if (leg < 0)
		return false;
	b->leg = (unsigned)leg;
	b->io.bio->dev = b->ms->legs[leg].dev;
	b->io.bio->sector = b->ms->legs[leg].offset + b->io.offset;
	return true;
}

bool mirror_read(struct dm_region_io *io)
{
	struct mirror_bio *b = (struct mirror_bio *)io;

	if (point_at_leg(b))
		return true;
	b->unsent = true;
	dm_bio_end(io->bio, -EIO);
	return false;
}

static enum dm_mapio map_read(struct mirror_bio *b)
{
	b->first = (unsigned)((b->io.offset >> BALANCE_SHIFT) % b->ms->nr_legs);
	b->step = 0;
	if (!b->ms->shared)
		return point_at_leg(b) ? DM_MAPIO_REMAPPED : DM_MAPIO_KILL;
	dm_regions_read(b->ms->regions, &b->io);
	return DM_MAPIO_SUBMITTED;
}

static enum dm_endio read_end(struct mirror_bio *b, struct dm_bio *bio)
{
	if (!bio->error || bio->error == -EINTR || b->unsent)
		return DM_ENDIO_DONE;
	mirror_fail_leg(b->ms, b->leg, LEG_READ_ERROR);
	if (!point_at_leg(b))
		return DM_ENDIO_DONE;
	dm_submit(bio);
	return DM_ENDIO_INCOMPLETE;
}

/* --- the legs' part of a write --------------------------------------------------------- */

static void all_legs_done(struct mirror_bio *b)
{
	unsigned failed = 0, refused = 0;
	int error = 0;

	for (unsigned i = 0; i < b->nr; i++) {
		if (!b->legs[i].bio.error)
			continue;
		failed++;
		error = b->legs[i].bio.error;
		refused += error == -EOPNOTSUPP;
	}
	if (b->io.bio->op == DM_FLUSH && !failed)
		dm_regions_flushed(b->ms->regions, b->flush);
	if (failed && b->nr > 1 && !(b->io.bio->op == DM_DISCARD && refused == b->nr))
		dm_regions_failed(b->ms->regions, &b->io);
	else
		mirror_write_end(b, error);
}

static void leg_end(struct dm_bio *bio)
{
	struct leg_bio *l = (struct leg_bio *)bio;
	struct mirror_bio *b = l->whole->private;

	if (atomic_fetch_sub(&b->pending, 1) == 1)
		all_legs_done(b);
}

static void leg_async_end(int error, const int *errors, void *context)
{
	struct leg_bio *l = context;

	l->bio.error = error;
	leg_end(&l->bio);
}

static void add_leg(struct mirror_bio *b, unsigned leg)
{
	struct leg_bio *l = &b->legs[b->nr++];
	struct dm_bio *bio = b->io.bio;

	l->whole = bio;
	l->leg = leg;
	l->bio = (struct dm_bio){
		.op = bio->op,
		.flags = bio->flags & (DM_FUA | DM_META | DM_NOUNMAP | DM_BACKGROUND),
		.dev = b->ms->legs[leg].dev,
		.sector = bio->op == DM_FLUSH ? 0 : b->ms->legs[leg].offset + b->io.offset,
		.sectors = bio->sectors,
		.iov = bio->iov,
		.iovcnt = bio->iovcnt,
		.end = leg_end,
	};
}

/* What waits for a disk goes to all legs at once, what does not one after the other from this thread. */
static void send_to_legs(struct mirror_bio *b)
{
	bool at_once = b->io.bio->op == DM_FLUSH || (b->io.bio->flags & DM_FUA);
	unsigned n = b->nr;

	atomic_store_explicit(&b->pending, n, memory_order_relaxed);
	for (unsigned i = 1; at_once && i < n; i++) {
		struct dm_bio *bio = &b->legs[i].bio;
		struct dm_region where = {bio->dev, bio->sector, bio->sectors};

		dm_io_async(bio->op, bio->flags, 1, &where, bio->iov, bio->iovcnt, leg_async_end, &b->legs[i]);
	}
	if (at_once)
		n = 1;
	/* The last of them to end may free b. */
	for (unsigned i = 0; i < n; i++)
		dm_submit(&b->legs[i].bio);
}

/* To these legs. */
static void add_legs(struct mirror_bio *b, enum dm_region_where where)
{
	struct mirror *ms = b->ms;

	b->nr = 0;
	if (where == DM_REGION_FIRST)
		add_leg(b, atomic_load(&ms->primary));
	for (unsigned i = 0; i < ms->nr_legs && where != DM_REGION_FIRST; i++)
		if (where == DM_REGION_ALL || !leg_is_stale(&ms->legs[i]))
			add_leg(b, i);
}

void mirror_write(struct dm_region_io *io, enum dm_region_where where)
{
	struct mirror_bio *b = (struct mirror_bio *)io;
	struct mirror *ms = b->ms;

	add_legs(b, where);
	if (where != DM_REGION_ALL && ms->handle_errors && !ms->keep_log && atomic_load(&ms->leg_failure))
		mirror_not_sent(b);
	else if (!b->nr)
		mirror_write_end(b, -EIO);
	else
		send_to_legs(b);
}

void mirror_write_end(struct mirror_bio *b, int error)
{
	dm_regions_write_end(b->ms->regions, &b->io);
	dm_bio_end(b->io.bio, error);
}

/* --- the target's functions ---------------------------------------------------------------- */

enum dm_mapio mirror_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct mirror *ms = ti->private;
	struct mirror_bio *b = bio->private;

	dm_region_io_init(ms->regions, &b->io, bio);
	b->ms = ms;
	b->requeue = b->unsent = b->log_failed = false;
	if (bio->op == DM_READ)
		return map_read(b);
	if (bio->op == DM_FLUSH) {
		b->flush = dm_regions_flush_begins(ms->regions);
		add_legs(b, DM_REGION_ALL);
		send_to_legs(b);
	} else {
		dm_regions_write(ms->regions, &b->io);
	}
	return DM_MAPIO_SUBMITTED;
}

enum dm_endio mirror_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct mirror_bio *b = bio->private;

	if (b->requeue)
		return DM_ENDIO_REQUEUE;
	return bio->op == DM_READ ? read_end(b, bio) : DM_ENDIO_DONE;
}
