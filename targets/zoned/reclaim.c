/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * zoned's reclaim: zones for random writes are few, and chunks that lie in one, or have one as a buffer, are moved out
 * of them.  It begins when at most 30 percent are free, and goes on until 50 are; when no bio has come for 10 seconds,
 * or somebody says `reclaim`, until there is nothing to move; and whenever a write waits for a zone.
 *
 * One thread; it takes a chunk as a write does, if nobody has it, and commits after each.
 */
#include <dmfs/container_of.h>

#include "zoned.h"

#define LOW_PERCENT 30u
#define HIGH_PERCENT 50u

static bool is_idle(struct zoned *z)
{
	return dm_now_ns() - atomic_load(&z->last_io_ns) >= ZONED_IDLE_NS;
}

/* While it moves a chunk: whether to leave it half done. */
static bool should_stop(void *context)
{
	struct zoned *z = context;

	return atomic_load(&z->stopped) && !dm_hold_count(&z->starving);
}

static bool wanted(struct zoned *z, bool running)
{
	if (dm_hold_count(&z->starving))
		return true;
	if (atomic_load(&z->stopped))
		return false;
	if (atomic_load(&z->forced) || is_idle(z))
		return true;
	return zoned_meta_free_percent(z->meta) <= (running ? HIGH_PERCENT - 1 : LOW_PERCENT);
}

/* --- taking a chunk ---------------------------------------------------------------------------- */

/* A chunk to move, with its lock; ZONED_UNMAPPED: there is none. */
static uint32_t take_victim(struct zoned *z, struct dm_block_sync_claim *c)
{
	uint32_t chunk;

	for (unsigned nth = 0; (chunk = zoned_meta_victim(z->meta, nth)) != ZONED_UNMAPPED; nth++)
		if (dm_block_trylock(z->lock, &c->claim, chunk, chunk, DM_BLOCK_EXCLUSIVE, NULL))
			return chunk;
	chunk = zoned_meta_victim(z->meta, 0);
	if (chunk != ZONED_UNMAPPED) /* who has it waits for nothing but I/O */
		dm_block_lock_sync(z->lock, c, chunk, chunk, DM_BLOCK_EXCLUSIVE);
	return chunk;
}

/* --- moving --------------------------------------------------------------------------------------- */

/* One chunk.  -ENOENT: there is none; else 0 or why it was not moved. */
static int move_one(struct zoned *z)
{
	struct dm_block_sync_claim claim;
	uint32_t chunk = take_victim(z, &claim);
	struct zoned_chunk c;
	int error;

	if (chunk == ZONED_UNMAPPED)
		return -ENOENT;
	error = zoned_chunk_get(z->meta, chunk, true, &c);
	if (!error) {
		error = zoned_meta_move(z->meta, &c, should_stop, z);
		zoned_chunk_put(z->meta, &c);
	}
	dm_block_unlock(z->lock, &claim.claim, NULL);
	return error;
}

/*
 * Moves a chunk, or at least gets a zone free.  A chunk that cannot be moved is passed over; where none can be, what
 * others have freed since this began, or what waits for a commit, may be enough.  Else the error.
 */
static int make_progress(struct zoned *z)
{
	uint64_t freed = zoned_meta_freed(z->meta);
	int error = move_one(z), failed;

	if (error == -EINTR)
		return error;
	failed = dm_group_commit_sync(z->commits);
	if (failed)
		return failed;
	zoned_feed(z);
	if (error == -ENOENT || error == -ENOSPC)
		return zoned_meta_freed(z->meta) != freed ? 0 : error;
	return 0;
}

/*
 * There was no progress.  Whether writes that wait can hope all the same: they came after it was tried, a zone is free,
 * or there is something to move again, for others took what was free.
 */
static bool may_hope(struct zoned *z, bool starving, int error)
{
	if ((error != -ENOENT && error != -ENOSPC) || !dm_hold_count(&z->starving))
		return false;
	return !starving || zoned_meta_has_random(z->meta) ||
	       (error == -ENOENT && zoned_meta_victim(z->meta, 0) != ZONED_UNMAPPED);
}

static void reclaim(struct dm_work *work)
{
	struct zoned *z = container_of(work, struct zoned, reclaim);
	bool starving = false;
	int error = 0;

	for (bool running = false; !error && wanted(z, running); running = true) {
		starving = dm_hold_count(&z->starving) > 0;
		if (starving && zoned_meta_has_random(z->meta)) {
			zoned_feed(z); /* somebody has freed one meanwhile */
			continue;
		}
		error = make_progress(z);
		if (may_hope(z, starving, error))
			error = 0;
	}
	if (error && starving) { /* who came later has asked for another round */
		dm_log_err_limit("zoned: no zone can be freed for a write: %s", g_strerror(-error));
		dm_hold_fail(&z->starving, error == -ENOENT ? -ENOSPC : error);
	}
	atomic_store(&z->forced, false);
}

void zoned_reclaim_now(struct zoned *z)
{
	dm_wq_queue(z->reclaim_wq, &z->reclaim);
}

/* --- when -------------------------------------------------------------------------------------------- */

static void look_idle(struct dm_timer *timer)
{
	struct zoned *z = container_of(timer, struct zoned, idle);

	if (atomic_load(&z->stopped))
		return;
	if (is_idle(z))
		zoned_reclaim_now(z);
	else
		dm_timer_arm(timer, atomic_load(&z->last_io_ns) + ZONED_IDLE_NS);
}

void zoned_reclaim_init(struct zoned *z)
{
	z->reclaim.fn = reclaim;
	z->idle.fn = look_idle;
}

void zoned_reclaim_check(struct zoned *z)
{
	if (atomic_load(&z->stopped))
		return;
	if (zoned_meta_free_percent(z->meta) <= LOW_PERCENT)
		zoned_reclaim_now(z);
	dm_timer_arm(&z->idle, dm_now_ns() + ZONED_IDLE_NS);
}

void zoned_reclaim_stop(struct zoned *z)
{
	dm_timer_cancel_sync(&z->idle);
	dm_wq_flush_work(z->reclaim_wq, &z->reclaim);
}
