/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Migrations: what the policy wants done, and what bios need (cache.h says in which order things get to the disk).
 *
 *   promotion   claims the writes; copies, or zeroes what was discarded; the block is in the cache.
 *   fill        a promotion with a write for data, in place of the copy.  The claim is the write's.
 *   write-back  claims the writes; copies; flushes the origin; the block is clean.
 *   demotion    as a write-back, if the block is dirty; claims the reads; the block is out of the cache; and when that
 * has been committed the cache block is free. dropping    claims both; the block is out of the cache as it is; the rest
 * as a demotion.
 *
 * Steps that touch the metadata run in the queue c->wq, one at a time.  The sectors being migrated are bounded by
 * migration_threshold, though one migration is always possible.  After a failure the policy is not asked for a second.
 */
#include <inttypes.h>

#include "cache.h"

#define TICK_NS UINT64_C(100000000)
#define IDLE_NS UINT64_C(1000000000)
#define FAILED_NS UINT64_C(1000000000)
#define BUSY_PERCENT 60u /* of the time, for copies while there is other I/O */

enum kind { PROMOTION, FILL, WRITE_BACK, DEMOTION, DROPPING };

struct migration {
	struct cache *c;
	enum kind kind;
	uint64_t oblock;
	uint32_t cblock;
	struct dm_block_claim writes, reads;
	bool has_writes, has_reads;
	struct dm_bio *bio; /* a fill's, or one that waits for a dropping */
	struct dm_commit_wait commit;
	struct dm_work step;
	int error;
	unsigned failures; /* of the origin, when the copy began */
};

static void begin_step(struct dm_work *work);

static struct migration *migration_new(struct cache *c, enum kind kind, uint64_t oblock, uint32_t cblock)
{
	struct migration *mg = g_new0(struct migration, 1);

	mg->c = c;
	mg->kind = kind;
	mg->oblock = oblock;
	mg->cblock = cblock;
	mg->step.fn = begin_step;
	pthread_mutex_lock(&c->wait_lock);
	c->under_way++;
	pthread_mutex_unlock(&c->wait_lock);
	if (kind != FILL && kind != DROPPING)
		atomic_fetch_add(&c->copying, 1);
	return mg;
}

static void release(struct migration *mg)
{
	struct cache *c = mg->c;

	if (mg->has_reads)
		dm_block_unlock(c->locks, &mg->reads, NULL);
	if (mg->has_writes)
		dm_block_unlock(c->locks, &mg->writes, NULL);
	mg->has_reads = mg->has_writes = false;
}

static void tell_policy(struct migration *mg, bool success)
{
	static const enum cache_work_op ops[] = {
	    [PROMOTION] = CACHE_PROMOTE,
	    [FILL] = CACHE_PROMOTE,
	    [WRITE_BACK] = CACHE_WRITEBACK,
	    [DEMOTION] = CACHE_DEMOTE,
	};
	struct cache_work work = {.cblock = mg->cblock, .oblock = mg->oblock};
	struct cache *c = mg->c;

	pthread_mutex_lock(&c->policy_lock);
	if (mg->kind == DROPPING) {
		if (success)
			c->type->removed(c->policy, mg->cblock);
	} else {
		work.op = ops[mg->kind];
		c->type->done(c->policy, &work, success);
		if (success && mg->kind == FILL)
			c->type->dirty(c->policy, mg->cblock, true);
	}
	pthread_mutex_unlock(&c->policy_lock);
}

/* The end of it; nothing of the cache is touched after that. */
static void finish(struct migration *mg, int error)
{
	struct cache *c = mg->c;

	release(mg);
	if (error && !(error == -ECANCELED && mg->kind == PROMOTION)) {
		atomic_store(&c->failed_ns, dm_now_ns());
		cache_note_activity(c);
	}
	if (mg->kind != FILL && mg->kind != DROPPING)
		atomic_fetch_sub(&c->copying, 1);
	cache_wake(c);
	pthread_mutex_lock(&c->wait_lock);
	c->under_way--;
	pthread_cond_broadcast(&c->none_under_way);
	pthread_mutex_unlock(&c->wait_lock);
	g_free(mg);
}

/* It has come to nothing.  -ECANCELED: it was not needed any more. */
static void give_up(struct migration *mg, int error)
{
	tell_policy(mg, false);
	finish(mg, error);
}

void cache_wait_migrations(struct cache *c, unsigned most)
{
	dm_block_begin();
	pthread_mutex_lock(&c->wait_lock);
	while (c->under_way > most)
		pthread_cond_wait(&c->none_under_way, &c->wait_lock);
	pthread_mutex_unlock(&c->wait_lock);
	dm_block_end();
}

/* --- into the cache ------------------------------------------------------------------------------ */

/* In the queue: the data is in the cache block. */
static int enter(struct migration *mg)
{
	struct cache *c = mg->c;
	int r;

	pthread_mutex_lock(&c->meta_lock);
	r = cache_is_rw(c) ? cache_meta_result(c, cache_meta_insert(c->meta, mg->cblock, mg->oblock)) : -EROFS;
	if (!r)
		resident_insert(c->resident, mg->oblock, mg->cblock);
	pthread_mutex_unlock(&c->meta_lock);
	if (r)
		return r;
	atomic_fetch_add(&c->promotions, 1);
	cache_commit_soon(c);
	return 0;
}

static void promotion_step(struct migration *mg)
{
	int r = enter(mg);

	if (r) {
		give_up(mg, r);
		return;
	}
	tell_policy(mg, true);
	finish(mg, 0);
}

static void fill_step(struct migration *mg)
{
	struct cache *c = mg->c;
	struct cache_bio *cb = mg->bio->private;
	struct dm_bio *bio = mg->bio;
	int r = mg->error ? mg->error : enter(mg);

	if (!r) {
		resident_set_dirty(c->resident, mg->cblock, true);
		cache_undiscard(c, mg->oblock);
	}
	tell_policy(mg, !r);
	cb->claimed = false;
	dm_block_unlock(c->locks, &cb->claim, NULL);
	dm_bio_end(bio, r);
	finish(mg, 0);
}

/* --- out of it --------------------------------------------------------------------------------------- */

static void given_up(struct dm_commit_wait *wait, int error)
{
	struct migration *mg = container_of(wait, struct migration, commit);

	/* An error of the origin's flush is not about the metadata; any other ends the writing of it. */
	tell_policy(mg, cache_is_rw(mg->c));
	finish(mg, 0);
}

/* In the queue, with the claims. */
static void leave_step(struct migration *mg)
{
	struct cache *c = mg->c;
	struct dm_bio *bio = mg->bio;
	uint32_t cblock = mg->cblock;
	bool there;
	int r = 0;

	pthread_mutex_lock(&c->meta_lock);
	there = resident_find(c->resident, mg->oblock, &cblock);
	if (there)
		r = cache_is_rw(c) ? cache_meta_result(c, cache_meta_remove(c->meta, cblock)) : -EROFS;
	if (there && !r)
		resident_remove(c->resident, cblock);
	pthread_mutex_unlock(&c->meta_lock);
	mg->cblock = cblock;
	release(mg);
	if (bio && r)
		dm_bio_end(bio, r);
	else if (bio)
		cache_to_origin(c, bio);
	if (!there || r) {
		if (mg->kind == DEMOTION)
			give_up(mg, r ? r : -ECANCELED);
		else
			finish(mg, 0);
		return;
	}
	atomic_fetch_add(&c->demotions, 1);
	mg->commit.done = given_up;
	dm_group_commit(c->commits, &mg->commit);
}

static void reads_granted(struct dm_block_claim *claim)
{
	struct migration *mg = container_of(claim, struct migration, reads);

	dm_wq_queue(mg->c->wq, &mg->step);
}

static void leave(struct migration *mg)
{
	uint64_t reads = 2 * mg->oblock + 1;

	mg->has_reads = true;
	if (dm_block_lock(mg->c->locks, &mg->reads, reads, reads, DM_BLOCK_EXCLUSIVE, reads_granted))
		reads_granted(&mg->reads);
}

static void written_back(struct dm_commit_wait *wait, int error)
{
	struct migration *mg = container_of(wait, struct migration, commit);
	struct cache *c = mg->c;

	if (error || mg->failures != atomic_load(&c->origin_failures)) {
		give_up(mg, error ? error : -EIO);
		return;
	}
	if (resident_set_dirty(c->resident, mg->cblock, false)) {
		pthread_mutex_lock(&c->policy_lock);
		c->type->dirty(c->policy, mg->cblock, false);
		pthread_mutex_unlock(&c->policy_lock);
		if (!resident_nr_dirty(c->resident))
			dm_target_event(c->ti, NULL, NULL);
	}
	if (mg->kind == DEMOTION) {
		leave(mg);
		return;
	}
	tell_policy(mg, true);
	finish(mg, 0);
}

/* --- copies -------------------------------------------------------------------------------------------- */

static void begin_step(struct dm_work *work)
{
	struct migration *mg = container_of(work, struct migration, step);

	if (mg->kind == PROMOTION)
		promotion_step(mg);
	else if (mg->kind == FILL)
		fill_step(mg);
	else
		leave_step(mg);
}

static void copied(int read_error, unsigned long write_errors, void *context)
{
	struct migration *mg = context;
	struct cache *c = mg->c;

	if (read_error || write_errors) {
		dm_log_err_limit("cache: %s of origin block %" PRIu64 " failed: %s",
				 mg->kind == PROMOTION ? "the promotion" : "the write-back", mg->oblock,
				 read_error ? g_strerror(-read_error) : "writing");
		give_up(mg, read_error ? read_error : -EIO);
	} else if (mg->kind == PROMOTION) {
		dm_wq_queue(c->wq, &mg->step);
	} else {
		mg->commit.done = written_back;
		dm_group_commit(c->origin_flushes, &mg->commit);
	}
}

static struct dm_region in_cache(struct migration *mg)
{
	struct cache *c = mg->c;

	return (struct dm_region){c->fast, (uint64_t)mg->cblock * c->block_sectors, c->block_sectors};
}

static void copy(struct migration *mg)
{
	struct cache *c = mg->c;
	struct dm_region fast = in_cache(mg), origin = {c->origin, mg->oblock * c->block_sectors, c->block_sectors};

	mg->failures = atomic_load(&c->origin_failures);
	if (mg->kind != PROMOTION)
		dm_kcopyd_copy(c->kcopyd, &fast, 1, &origin, 0, copied, mg);
	else if (cache_discarded(c, mg->oblock))
		dm_kcopyd_zero(c->kcopyd, 1, &fast, 0, copied, mg);
	else
		dm_kcopyd_copy(c->kcopyd, &origin, 1, &fast, 0, copied, mg);
}

/* The writes are claimed.  Nothing here waits. */
static void writes_granted(struct dm_block_claim *claim)
{
	struct migration *mg = container_of(claim, struct migration, writes);
	struct cache *c = mg->c;
	uint32_t cblock = 0;
	bool there = resident_find(c->resident, mg->oblock, &cblock);

	if (mg->kind == DROPPING) {
		dm_wq_queue(c->wq, &mg->step);
		return;
	}
	if (!cache_is_rw(c) || there != (mg->kind != PROMOTION) || (there && cblock != mg->cblock)) {
		give_up(mg, -ECANCELED);
	} else if (mg->kind == PROMOTION || resident_dirty(c->resident, cblock)) {
		copy(mg);
	} else if (mg->kind == DEMOTION) {
		leave(mg);
	} else {
		tell_policy(mg, true);
		finish(mg, 0);
	}
}

static void claim_writes(struct migration *mg, uint64_t last)
{
	mg->has_writes = true;
	if (dm_block_lock(mg->c->locks, &mg->writes, 2 * mg->oblock, last, DM_BLOCK_EXCLUSIVE, writes_granted))
		writes_granted(&mg->writes);
}

/* --- for bios --------------------------------------------------------------------------------------------- */

static void zeroed(int read_error, unsigned long write_errors, void *context)
{
	struct migration *mg = context;

	if (write_errors) {
		mg->error = -EIO;
		dm_wq_queue(mg->c->wq, &mg->step);
		return;
	}
	dm_submit(mg->bio);
}

bool cache_fill(struct cache *c, struct dm_bio *bio)
{
	struct cache_bio *cb = bio->private;
	struct migration *mg;
	struct dm_region fast;
	uint32_t cblock;
	bool taken;

	pthread_mutex_lock(&c->policy_lock);
	taken = cache_is_rw(c) && c->type->take_free(c->policy, &cblock);
	pthread_mutex_unlock(&c->policy_lock);
	if (!taken)
		return false;
	cache_note_activity(c);
	mg = migration_new(c, FILL, cb->oblock, cblock);
	mg->bio = bio;
	cb->fill = mg;
	fast = in_cache(mg);
	bio->dev = c->fast;
	bio->sector = fast.sector + cb->within;
	if (bio->sectors == c->block_sectors)
		dm_submit(bio);
	else /* what the block held before must not be seen */
		dm_kcopyd_zero(c->kcopyd, 1, &fast, 0, zeroed, mg);
	return true;
}

void cache_fill_written(struct migration *mg, int error)
{
	mg->error = error;
	dm_wq_queue(mg->c->wq, &mg->step);
}

void cache_invalidate(struct cache *c, uint64_t oblock, struct dm_bio *bio)
{
	struct migration *mg = migration_new(c, DROPPING, oblock, 0);

	mg->bio = bio;
	claim_writes(mg, 2 * oblock + 1);
}

/* --- for the policy ------------------------------------------------------------------------------------------ */

static bool may_migrate(struct cache *c)
{
	return cache_is_rw(c) && !atomic_load(&c->suspended) && !atomic_load(&c->failed_ns) &&
	       c->io_mode != CACHE_PASSTHROUGH;
}

static bool next_work(struct cache *c, struct cache_work *work)
{
	uint64_t threshold = atomic_load(&c->migration_threshold);
	unsigned copying = atomic_load(&c->copying);
	enum cache_room room = CACHE_ROOM_NONE;
	bool any;

	if (copying && (copying + UINT64_C(1)) * c->block_sectors > threshold)
		return false;
	if (threshold)
		room = atomic_load(&c->idle) ? CACHE_ROOM_IDLE : CACHE_ROOM_BUSY;
	pthread_mutex_lock(&c->policy_lock);
	any = c->type->work(c->policy, room, work);
	pthread_mutex_unlock(&c->policy_lock);
	return any;
}

static void begin(struct cache *c, const struct cache_work *work)
{
	static const enum kind kinds[] = {
	    [CACHE_PROMOTE] = PROMOTION, [CACHE_WRITEBACK] = WRITE_BACK, [CACHE_DEMOTE] = DEMOTION};
	uint64_t oblock = work->op == CACHE_PROMOTE ? work->oblock : resident_oblock(c->resident, work->cblock);
	struct migration *mg = migration_new(c, kinds[work->op], oblock, work->cblock);

	if (oblock == RESIDENT_NONE)
		give_up(mg, -ECANCELED);
	else
		claim_writes(mg, 2 * oblock);
}

static void migrate(struct dm_work *work)
{
	struct cache *c = container_of(work, struct cache, migrate_work);
	struct cache_work what;

	while (may_migrate(c) && next_work(c, &what))
		begin(c, &what);
}

void cache_wake(struct cache *c)
{
	if (may_migrate(c))
		dm_wq_queue(c->wq, &c->migrate_work);
}

/* --- time ------------------------------------------------------------------------------------------------------ */

static uint64_t all_io(struct cache *c)
{
	return cache_sum(c, READ_HITS) + cache_sum(c, READ_MISSES) + cache_sum(c, WRITE_HITS) +
	       cache_sum(c, WRITE_MISSES) + atomic_load(&c->promotions);
}

void cache_note_activity(struct cache *c)
{
	if (!atomic_load_explicit(&c->ticking, memory_order_relaxed) && !atomic_load(&c->suspended) &&
	    !atomic_exchange(&c->ticking, true))
		dm_timer_arm(&c->timer, dm_now_ns() + TICK_NS);
}

static void look_for_io(struct cache *c, uint64_t now)
{
	uint64_t sum = all_io(c);

	if (sum != c->last_sum)
		c->quiet_since_ns = now;
	c->last_sum = sum;
	atomic_store(&c->idle, now - c->quiet_since_ns >= IDLE_NS);
	atomic_store(&c->throttle.percent, atomic_load(&c->idle) ? 100 : BUSY_PERCENT);
}

static void tick(struct dm_work *work)
{
	struct cache *c = container_of(work, struct cache, tick_work);
	uint64_t now = dm_now_ns(), failed = atomic_load(&c->failed_ns);

	if (failed && now - failed >= FAILED_NS)
		atomic_compare_exchange_strong(&c->failed_ns, &failed, 0);
	pthread_mutex_lock(&c->policy_lock);
	cache_tell_hits(c);
	c->type->tick(c->policy);
	c->touched = 0;
	pthread_mutex_unlock(&c->policy_lock);
	resident_forget_touched(c->resident);
	look_for_io(c, now);
	cache_wake(c);
	if (!atomic_load(&c->suspended) && (!atomic_load(&c->idle) || atomic_load(&c->failed_ns))) {
		dm_timer_arm(&c->timer, now + TICK_NS);
		return;
	}
	atomic_store(&c->ticking, false);
	if (all_io(c) != c->last_sum)
		cache_note_activity(c);
}

static void tick_due(struct dm_timer *timer)
{
	struct cache *c = container_of(timer, struct cache, timer);

	dm_wq_queue(c->wq, &c->tick_work);
}

void cache_migrate_init(struct cache *c)
{
	c->migrate_work.fn = migrate;
	c->tick_work.fn = tick;
	c->timer.fn = tick_due;
	atomic_store(&c->throttle.percent, 100);
	atomic_store(&c->idle, true);
}
