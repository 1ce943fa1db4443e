/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where a bio goes (cache.h says what the claims are for).
 *
 * A read that finds its block in the cache claims it and looks again.  One that does not goes to the origin without a
 * claim: at the moment it looked, the origin had everything that was answered before.  A write claims first.
 *
 * When the metadata cannot be written any more, clean blocks are written through and nothing goes into or out of the
 * cache, so that the metadata on the disk stays true.
 */
#include "cache.h"

/* --- counting --------------------------------------------------------------------------------- */

/* The slot of this thread. */
static unsigned own_slot(void)
{
	static _Thread_local unsigned slot;
	static atomic_uint threads;

	if (!slot)
		slot = atomic_fetch_add(&threads, 1) % CACHE_COUNT_SLOTS + 1;
	return slot - 1;
}

static void count(struct cache *c, enum cache_count which)
{
	atomic_fetch_add_explicit(&c->slots[own_slot()].n[which], 1, memory_order_relaxed);
	cache_note_activity(c);
}

uint64_t cache_sum(struct cache *c, enum cache_count which)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < CACHE_COUNT_SLOTS; i++)
		sum += atomic_load_explicit(&c->slots[i].n[which], memory_order_relaxed);
	return sum;
}

/* With the policy's lock and the slot. */
static void tell_hits(struct cache *c, struct cache_hits *h)
{
	for (unsigned i = 0; i < h->nr; i++)
		c->type->hit(c->policy, h->cblock[i], h->write[i]);
	c->touched += h->nr;
	h->nr = 0;
}

void cache_tell_hits(struct cache *c)
{
	for (unsigned i = 0; i < CACHE_COUNT_SLOTS; i++) {
		struct cache_hits *h = &c->hits[i];

		if (atomic_exchange_explicit(&h->taken, true, memory_order_acquire))
			continue; /* its thread goes on with it */
		tell_hits(c, h);
		atomic_store_explicit(&h->taken, false, memory_order_release);
	}
}

/*
 * Once a block and tick, or until half of all have been hit: who is hit more often could not be told from the others
 * else.  The policy hears of a handful at a time, when what it will look at for them has come from memory; and while
 * somebody else talks to it, of none.
 */
static void hit(struct cache *c, uint32_t cblock, bool write)
{
	struct cache_hits *h = &c->hits[own_slot()];
	bool enough = false;

	count(c, write ? WRITE_HITS : READ_HITS);
	if (!resident_touch(c->resident, cblock) || atomic_exchange_explicit(&h->taken, true, memory_order_acquire))
		return;
	if (h->nr == CACHE_HANDFUL && !pthread_mutex_trylock(&c->policy_lock)) {
		tell_hits(c, h);
		enough = c->touched > c->cblocks / 2;
		if (enough)
			c->touched = 0;
		pthread_mutex_unlock(&c->policy_lock);
	}
	if (h->nr < CACHE_HANDFUL) {
		if (c->type->ahead)
			c->type->ahead(c->policy, cblock);
		h->cblock[h->nr] = cblock;
		h->write[h->nr++] = write;
	}
	atomic_store_explicit(&h->taken, false, memory_order_release);
	if (enough)
		resident_forget_touched(c->resident);
}

static void miss(struct cache *c, uint64_t oblock, bool write)
{
	bool work;

	count(c, write ? WRITE_MISSES : READ_MISSES);
	if (c->io_mode == CACHE_PASSTHROUGH || oblock >= c->oblocks || !cache_is_rw(c) ||
	    pthread_mutex_trylock(&c->policy_lock))
		return;
	work = c->type->miss(c->policy, oblock, write);
	pthread_mutex_unlock(&c->policy_lock);
	if (work)
		cache_wake(c);
}

/* --- where to --------------------------------------------------------------------------------- */

static void unclaim(struct cache *c, struct cache_bio *cb)
{
	if (!cb->claimed)
		return;
	cb->claimed = false;
	dm_block_unlock(c->locks, &cb->claim, NULL);
}

static uint64_t offset_of(const struct cache *c, const struct cache_bio *cb)
{
	return cb->oblock * c->block_sectors + cb->within;
}

static void point_at_origin(struct cache *c, struct dm_bio *bio)
{
	bio->dev = c->origin;
	bio->sector = offset_of(c, bio->private);
}

static void point_at_cache(struct cache *c, struct dm_bio *bio, uint32_t cblock)
{
	struct cache_bio *cb = bio->private;

	cb->cblock = cblock;
	bio->dev = c->fast;
	bio->sector = (uint64_t)cblock * c->block_sectors + cb->within;
}

void cache_to_origin(struct cache *c, struct dm_bio *bio)
{
	point_at_origin(c, bio);
	dm_submit(bio);
}

/* --- claims ---------------------------------------------------------------------------------------- */

static void granted(struct dm_block_claim *claim);

/* It was granted to somebody who has gone. */
static void interrupted(struct cache_bio *cb)
{
	unclaim(cb->c, cb);
	dm_bio_end(cb->bio, -EINTR);
}

/* Who asked for the bio has gone; granted() may run at the same time. */
static void cancel_waiting(struct dm_held *held)
{
	struct cache_bio *cb = held->keeper;
	struct cache *c = cb->c;

	pthread_mutex_lock(&c->hold_lock); /* by now the claim has been made */
	pthread_mutex_unlock(&c->hold_lock);
	if (dm_block_cancel(c->locks, &cb->claim, NULL)) {
		cb->claimed = false;
		dm_bio_end(cb->bio, -EINTR);
	} else if (atomic_fetch_add(&cb->arrived, 1)) {
		interrupted(cb);
	}
}

static bool still_wanted(struct cache_bio *cb)
{
	struct cache *c = cb->c;
	bool wanted;

	pthread_mutex_lock(&c->hold_lock);
	wanted = dm_held_end(&cb->held);
	pthread_mutex_unlock(&c->hold_lock);
	if (!wanted && atomic_fetch_add(&cb->arrived, 1))
		interrupted(cb);
	return wanted;
}

/* Claims number nr of the locks.  False: the bio is not the caller's any more, and goes on when it is granted. */
static bool claim_block(struct cache *c, struct dm_bio *bio, uint64_t nr, enum dm_block_mode mode)
{
	struct cache_bio *cb = bio->private;
	bool now = false;
	int error;

	cb->claimed = true;
	if (dm_block_trylock(c->locks, &cb->claim, nr, nr, mode, NULL))
		return true;
	cb->held.keeper = cb;
	atomic_init(&cb->arrived, 0);
	pthread_mutex_lock(&c->hold_lock);
	error = dm_held_begin(&cb->held, bio, cancel_waiting);
	if (!error)
		now = dm_block_lock(c->locks, &cb->claim, nr, nr, mode, granted);
	pthread_mutex_unlock(&c->hold_lock);
	if (error) {
		cb->claimed = false;
		dm_bio_end(bio, error);
	} else if (now) {
		granted(&cb->claim);
	}
	return false;
}

/* --- reads --------------------------------------------------------------------------------------- */

static void route_read(struct cache *c, struct dm_bio *bio)
{
	struct cache_bio *cb = bio->private;
	uint32_t cblock;

	if (resident_find(c->resident, cb->oblock, &cblock)) {
		hit(c, cblock, false);
		point_at_cache(c, bio, cblock);
		return;
	}
	unclaim(c, cb);
	miss(c, cb->oblock, false);
	point_at_origin(c, bio);
}

static enum dm_mapio map_read(struct cache *c, struct dm_bio *bio)
{
	struct cache_bio *cb = bio->private;
	uint32_t cblock;

	if (cb->oblock >= c->oblocks || c->io_mode == CACHE_PASSTHROUGH ||
	    !resident_find(c->resident, cb->oblock, &cblock)) {
		miss(c, cb->oblock, false);
		point_at_origin(c, bio);
		return DM_MAPIO_REMAPPED;
	}
	resident_ahead(c->resident, cblock); /* for hit() */
	if (!claim_block(c, bio, 2 * cb->oblock + 1, DM_BLOCK_SHARED))
		return DM_MAPIO_SUBMITTED;
	route_read(c, bio);
	return DM_MAPIO_REMAPPED;
}

/* --- writes --------------------------------------------------------------------------------------- */

/* Both at once; the whole ends with the last. */
struct through {
	struct dm_parts parts;
	struct dm_bio origin, fast;
};

static void part_ended(struct dm_bio *part)
{
	dm_parts_end(part->private, part->error);
}

static void write_through(struct cache *c, struct dm_bio *bio, uint32_t cblock)
{
	struct through *t = g_new0(struct through, 1);
	struct cache_bio *cb = bio->private;

	cb->through = true;
	dm_parts_init(&t->parts, bio, 2);
	point_at_cache(c, bio, cblock);
	t->fast = *bio;
	t->fast.end = part_ended;
	t->fast.private = &t->parts;
	t->fast.next = NULL;
	t->fast.origin = NULL; /* half of it would be worse than none */
	t->origin = t->fast;
	t->origin.dev = c->origin;
	t->origin.sector = offset_of(c, cb);
	dm_submit(&t->origin);
	dm_submit(&t->fast);
}

static void make_dirty(struct cache *c, uint32_t cblock)
{
	if (!resident_set_dirty(c->resident, cblock, true))
		return;
	pthread_mutex_lock(&c->policy_lock);
	c->type->dirty(c->policy, cblock, true);
	pthread_mutex_unlock(&c->policy_lock);
}

static enum dm_mapio write_hit(struct cache *c, struct dm_bio *bio, uint32_t cblock)
{
	struct cache_bio *cb = bio->private;

	hit(c, cblock, true);
	if (c->io_mode == CACHE_PASSTHROUGH) {
		unclaim(c, cb);
		if (cache_is_rw(c))
			cache_invalidate(c, cb->oblock, bio);
		else
			dm_bio_end(bio, -EIO); /* that the block is not valid any more could not be remembered */
		return DM_MAPIO_SUBMITTED;
	}
	if (c->io_mode == CACHE_WRITETHROUGH || (!cache_is_rw(c) && !resident_dirty(c->resident, cblock))) {
		write_through(c, bio, cblock);
		return DM_MAPIO_SUBMITTED;
	}
	make_dirty(c, cblock);
	point_at_cache(c, bio, cblock);
	return DM_MAPIO_REMAPPED;
}

static enum dm_mapio route_write(struct cache *c, struct dm_bio *bio)
{
	struct cache_bio *cb = bio->private;
	uint32_t cblock;

	if (resident_find(c->resident, cb->oblock, &cblock))
		return write_hit(c, bio, cblock);
	if (cb->claim.mode == DM_BLOCK_EXCLUSIVE && cache_fill(c, bio))
		return DM_MAPIO_SUBMITTED;
	cache_undiscard(c, cb->oblock);
	miss(c, cb->oblock, true);
	point_at_origin(c, bio);
	return DM_MAPIO_REMAPPED;
}

/* A write that makes a copy needless: of the whole block, or of one whose content nobody needs. */
static bool could_fill(struct cache *c, const struct dm_bio *bio)
{
	const struct cache_bio *cb = bio->private;
	uint32_t cblock;

	return c->io_mode == CACHE_WRITEBACK_MODE && cache_is_rw(c) &&
	       (bio->sectors == c->block_sectors || cache_discarded(c, cb->oblock)) &&
	       !resident_find(c->resident, cb->oblock, &cblock);
}

static enum dm_mapio map_write(struct cache *c, struct dm_bio *bio)
{
	struct cache_bio *cb = bio->private;

	if (cb->oblock >= c->oblocks) {
		miss(c, cb->oblock, true);
		point_at_origin(c, bio);
		return DM_MAPIO_REMAPPED;
	}
	if (!claim_block(c, bio, 2 * cb->oblock, could_fill(c, bio) ? DM_BLOCK_EXCLUSIVE : DM_BLOCK_SHARED))
		return DM_MAPIO_SUBMITTED;
	return route_write(c, bio);
}

static void granted(struct dm_block_claim *claim)
{
	struct cache_bio *cb = container_of(claim, struct cache_bio, claim);
	enum dm_mapio to = DM_MAPIO_REMAPPED;

	if (!still_wanted(cb))
		return;
	if (cb->bio->op == DM_READ)
		route_read(cb->c, cb->bio);
	else
		to = route_write(cb->c, cb->bio);
	if (to == DM_MAPIO_REMAPPED)
		dm_submit(cb->bio);
}

/* --- the target's functions ------------------------------------------------------------------------ */

static void committed(struct dm_commit_wait *wait, int error)
{
	dm_bio_end(container_of(wait, struct cache_bio, commit)->bio, error);
}

static void end_after_commit(struct cache *c, struct dm_bio *bio)
{
	struct cache_bio *cb = bio->private;

	cb->commit.done = committed;
	dm_group_commit(c->commits, &cb->commit);
}

enum dm_mapio cache_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct cache *c = ti->private;
	struct cache_bio *cb = bio->private;
	uint64_t offset = dm_target_offset(ti, bio->sector);

	cb->c = c;
	cb->bio = bio;
	cb->fill = NULL;
	cb->claimed = cb->through = false;
	if (atomic_load_explicit(&c->mode, memory_order_relaxed) == CACHE_FAIL)
		return DM_MAPIO_KILL;
	if (bio->op == DM_FLUSH) {
		end_after_commit(c, bio);
		return DM_MAPIO_SUBMITTED;
	}
	if (bio->op == DM_DISCARD)
		return cache_map_discard(c, bio, offset);
	cb->oblock = offset / c->block_sectors;
	cb->within = (uint32_t)(offset % c->block_sectors);
	return bio->op == DM_READ ? map_read(c, bio) : map_write(c, bio);
}

enum dm_endio cache_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct cache *c = ti->private;
	struct cache_bio *cb = bio->private;

	if (bio->op == DM_FLUSH)
		return DM_ENDIO_DONE;
	if (bio->op == DM_DISCARD) {
		if (!bio->error)
			cache_set_discarded(c, cb->discard_sector, cb->discard_sectors);
		return DM_ENDIO_DONE;
	}
	if (cb->fill) {
		struct migration *mg = cb->fill;

		cb->fill = NULL;
		cache_fill_written(mg, bio->error);
		return DM_ENDIO_INCOMPLETE;
	}
	if (cb->through && bio->error && cb->claimed && cache_is_rw(c) && !resident_dirty(c->resident, cb->cblock))
		cache_invalidate(c, cb->oblock, NULL); /* the two are not the same any more; the origin is right */
	cb->through = false;
	if (bio->error && bio->error != -EINTR && bio->op != DM_READ)
		atomic_fetch_add(&c->origin_failures, 1);
	unclaim(c, cb);
	/* What the write stands on is durable before it is answered. */
	if (!bio->error && bio->op == DM_WRITE && (bio->flags & DM_FUA) && cache_meta_changed(c->meta)) {
		bio->flags &= ~(unsigned)DM_FUA;
		end_after_commit(c, bio);
		return DM_ENDIO_INCOMPLETE;
	}
	return DM_ENDIO_DONE;
}
