/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reads, writes and flushes of a mirror.
 *
 * A read of a region in sync goes to any leg, by megabytes in turn; if that fails, to the next.  A write claims its
 * sectors, takes the lock of its region's shard for a moment and goes to the legs from the thread it came in.  Two
 * writes to the same sector are not under way at the same time: the legs might take them in different orders and would
 * then differ for good.
 */
#include "mirror.h"

#include <dmfs/container_of.h>

#define BALANCE_SHIFT 11 /* sectors a leg is read for before it is another's turn: 1 MiB */

/* --- reads ------------------------------------------------------------------------ */

/*
 * The next leg to try, or -1: first those without an error, then those that had nothing but read errors.
 */
static int next_leg(struct mirror_bio *b)
{
	struct mirror *ms = b->ms;
	uint64_t region = mirror_region(ms, b->offset);
	unsigned n = ms->nr_legs;

	if (!(ms->shared ? b->in_sync : region_in_sync(ms, region) || dm_region_bit_test(ms->degraded, region))) {
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

bool mirror_point_at_leg(struct mirror_bio *b)
{
	int leg = next_leg(b);

	if (leg < 0)
		return false;
	b->leg = (unsigned)leg;
	b->bio->dev = b->ms->legs[leg].dev;
	b->bio->sector = b->ms->legs[leg].offset + b->offset;
	return true;
}

static enum dm_mapio map_read(struct mirror_bio *b)
{
	b->first = (unsigned)((b->offset >> BALANCE_SHIFT) % b->ms->nr_legs);
	b->step = 0;
	b->requeue = b->unsent = false;
	if (b->ms->shared) {
		shared_ask(b);
		return DM_MAPIO_SUBMITTED;
	}
	return mirror_point_at_leg(b) ? DM_MAPIO_REMAPPED : DM_MAPIO_KILL;
}

static enum dm_endio read_end(struct mirror_bio *b)
{
	if (b->requeue)
		return DM_ENDIO_REQUEUE;
	if (!b->bio->error || b->bio->error == -EINTR || b->unsent)
		return DM_ENDIO_DONE;
	mirror_fail_leg(b->ms, b->leg, LEG_READ_ERROR);
	if (!mirror_point_at_leg(b))
		return DM_ENDIO_DONE;
	dm_submit(b->bio);
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
	if (b->bio->op == DM_FLUSH && !failed)
		mirror_flushed(b->ms, b->flush);
	if (failed && b->nr > 1 && !(b->bio->op == DM_DISCARD && refused == b->nr))
		mirror_failed(b);
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
	struct dm_bio *bio = b->bio;

	l->whole = bio;
	l->leg = leg;
	l->bio = (struct dm_bio){
		.op = bio->op,
		.flags = bio->flags & (DM_FUA | DM_META | DM_NOUNMAP | DM_BACKGROUND),
		.dev = b->ms->legs[leg].dev,
		.sector = bio->op == DM_FLUSH ? 0 : b->ms->legs[leg].offset + b->offset,
		.sectors = bio->sectors,
		.iov = bio->iov,
		.iovcnt = bio->iovcnt,
		.end = leg_end,
	};
}

/* What waits for a disk goes to all legs at once, what does not one after the other from this thread. */
static void send_to_legs(struct mirror_bio *b)
{
	bool at_once = b->bio->op == DM_FLUSH || (b->bio->flags & DM_FUA);
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

static void send_flush(struct mirror_bio *b)
{
	b->flush = atomic_fetch_add(&b->ms->flushes, 1) + 1;
	for (unsigned i = 0; i < b->ms->nr_legs; i++)
		add_leg(b, i);
	send_to_legs(b);
}

/* --- writes -------------------------------------------------------------------------------- */

static void enter_region(struct region *reg, struct mirror_bio *b)
{
	b->region = reg;
	reg->pending++;
	reg->touched = true;
}

static void choose_legs(struct mirror_bio *b, enum region_state state)
{
	struct mirror *ms = b->ms;
	bool degraded = state == REGION_NOSYNC && dm_region_bit_test(ms->degraded, b->region->nr);

	if (state == REGION_NOSYNC && !degraded) {
		add_leg(b, atomic_load(&ms->primary));
		return;
	}
	for (unsigned i = 0; i < ms->nr_legs; i++)
		if (!degraded || !leg_is_stale(&ms->legs[i]))
			add_leg(b, i);
}

/* Whether a write must wait for the log, and if so has it waiting; else it is in its region.  The shard's lock held. */
static bool wait_or_enter(struct mirror_bio *b, struct region *reg, bool is_new)
{
	if (reg->state != REGION_MARKING) {
		enter_region(reg, b);
		return false;
	}
	if (is_new)
		region_begin_dirty(b->ms, reg);
	dm_bio_list_add(&reg->marking, b->bio);
	return true;
}

/* The sectors are claimed. */
static void mirror_write(struct mirror_bio *b)
{
	struct mirror *ms = b->ms;
	uint64_t nr = mirror_region(ms, b->offset);
	struct shard *shard = mirror_shard(ms, nr);
	struct region *reg;
	bool is_new, waits;
	enum region_state state;

	b->nr = 0;
	pthread_mutex_lock(&shard->lock);
	reg = region_get(ms, nr, false);
	is_new = !reg;
	if (ms->shared && (is_new || reg->state == REGION_LOST || !shared_in_touch(ms))) {
		pthread_mutex_unlock(&shard->lock);
		shared_ask(b);
		return;
	}
	if (is_new)
		reg = region_get(ms, nr, true);
	waits = wait_or_enter(b, reg, is_new);
	/* If it is about to be copied, that waits for us. */
	state = reg->state == REGION_RECOVERING ? REGION_NOSYNC : reg->state;
	if (!waits)
		choose_legs(b, state);
	pthread_mutex_unlock(&shard->lock);
	if (waits)
		return;
	if (state == REGION_NOSYNC && ms->handle_errors && !ms->keep_log && atomic_load(&ms->leg_failure)) {
		b->blocked = true;
		mirror_failed(b);
	} else if (!b->nr) {
		mirror_write_end(b, -EIO);
	} else {
		send_to_legs(b);
	}
}

static void write_again(struct dm_work *work)
{
	mirror_write(container_of(work, struct mirror_bio, work));
}

/* In a thread of its own: a write may wait for the disks. */
static void write_later(struct mirror_bio *b)
{
	b->work = (struct dm_work){.fn = write_again};
	dm_wq_queue(b->ms->io_wq, &b->work);
}

void mirror_redispatch(struct dm_bio_list *list)
{
	struct dm_bio *bio;

	while ((bio = dm_bio_list_pop(list)))
		write_later(bio->private);
}

/* Others wait for these sectors no more. */
static void claim_granted(struct dm_block_claim *claim)
{
	write_later(container_of(claim, struct mirror_bio, claim));
}

static void begin_write(struct mirror_bio *b)
{
	b->claimed = true;
	if (dm_block_lock(b->ms->sectors, &b->claim, b->offset, b->offset + b->bio->sectors - 1, DM_BLOCK_EXCLUSIVE,
			  claim_granted))
		mirror_write(b);
}

static void leave_region(struct mirror_bio *b)
{
	struct region *reg = b->region;
	struct shard *shard = mirror_shard(b->ms, reg->nr);

	pthread_mutex_lock(&shard->lock);
	reg->pending--;
	if (reg->state == (b->ms->shared ? REGION_LOST : REGION_NOSYNC) && !reg->pending)
		region_drop(b->ms, reg); /* the log knows as much */
	pthread_mutex_unlock(&shard->lock);
	b->region = NULL;
}

void mirror_write_end(struct mirror_bio *b, int error)
{
	if (b->region)
		leave_region(b);
	if (b->claimed)
		dm_block_unlock(b->ms->sectors, &b->claim, NULL);
	dm_bio_end(b->bio, error);
}

/* --- the target's functions ---------------------------------------------------------------- */

enum dm_mapio mirror_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct mirror *ms = ti->private;
	struct mirror_bio *b = bio->private;

	b->ms = ms;
	b->bio = bio;
	b->offset = dm_target_offset(ti, bio->sector);
	if (bio->op == DM_READ)
		return map_read(b);
	b->region = NULL;
	b->requeue = b->log_failed = b->blocked = b->claimed = false;
	b->nr = 0;
	if (bio->op == DM_FLUSH)
		send_flush(b);
	else
		begin_write(b);
	return DM_MAPIO_SUBMITTED;
}

enum dm_endio mirror_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct mirror_bio *b = bio->private;

	if (bio->op == DM_READ)
		return read_end(b);
	return b->requeue ? DM_ENDIO_REQUEUE : DM_ENDIO_DONE;
}
