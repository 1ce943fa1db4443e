/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Regions of work: those somebody works on, the ways of bios through them, the worker, suspend and resume.
 *
 * Clean to dirty costs a write and a flush of the log, so marks are collected: while the worker is at it, the regions
 * that come meanwhile are the next turn's.
 *
 * Two writes to the same sector are not under way at the same time: the copies might take them in different orders and
 * would then differ for good.
 */
#include <inttypes.h>

#include "regions.h"

#include <dmfs/container_of.h>
#include <dmfs/rounding.h>

#define SECTORS_SHIFT 11 /* most writes are not longer than 1 MiB */

/* --- the hash ---------------------------------------------------------------------- */

static struct regions_shard *shard_of(struct dm_regions *rs, uint64_t nr)
{
	return &rs->shards[(nr ^ nr >> 6) & (REGIONS_SHARDS - 1)];
}

struct dm_region_work *regions_lock(struct dm_regions *rs, uint64_t nr)
{
	struct regions_shard *shard = shard_of(rs, nr);

	pthread_mutex_lock(&shard->lock);
	return g_hash_table_lookup(shard->regions, &nr);
}

void regions_unlock(struct dm_regions *rs, uint64_t nr)
{
	pthread_mutex_unlock(&shard_of(rs, nr)->lock);
}

struct dm_region_work *regions_make_as(struct dm_regions *rs, uint64_t nr, enum region_state state)
{
	struct dm_region_work *reg = g_new0(struct dm_region_work, 1);

	reg->nr = nr;
	reg->state = state;
	dm_bio_list_init(&reg->marking);
	g_hash_table_add(shard_of(rs, nr)->regions, reg);
	if (state == REGION_DIRTY)
		regions_arm_cleaner(rs);
	return reg;
}

struct dm_region_work *regions_make(struct dm_regions *rs, uint64_t nr)
{
	enum region_state state = rs->log->type->in_memory ? REGION_DIRTY : REGION_MARKING;

	return regions_make_as(rs, nr, region_in_sync(rs, nr) ? state : REGION_NOSYNC);
}

void regions_drop(struct dm_regions *rs, struct dm_region_work *reg)
{
	g_hash_table_remove(shard_of(rs, reg->nr)->regions, reg);
}

void regions_each(struct dm_regions *rs, region_fn fn, void *data)
{
	for (unsigned i = 0; i < REGIONS_SHARDS; i++) {
		GHashTableIter iter;
		gpointer reg;

		pthread_mutex_lock(&rs->shards[i].lock);
		g_hash_table_iter_init(&iter, rs->shards[i].regions);
		while (g_hash_table_iter_next(&iter, &reg, NULL))
			if (fn(rs, reg, data))
				g_hash_table_iter_remove(&iter);
		pthread_mutex_unlock(&rs->shards[i].lock);
	}
}

/* --- bios ------------------------------------------------------------------------------ */

void dm_region_io_init(struct dm_regions *rs, struct dm_region_io *io, struct dm_bio *bio)
{
	io->bio = bio;
	io->offset = dm_target_offset(rs->ti, bio->sector);
	io->rs = rs;
	io->region = NULL;
	io->claimed = false;
}

enum dm_region_where dm_regions_where(struct dm_regions *rs, uint64_t sector)
{
	uint64_t region = sector >> rs->shift;

	if (region_in_sync(rs, region))
		return DM_REGION_ALL;
	return dm_region_bit_test(rs->degraded, region) ? DM_REGION_SOUND : DM_REGION_FIRST;
}

void dm_regions_read(struct dm_regions *rs, struct dm_region_io *io)
{
	shared_ask(io);
}

/* The worker will have it marked. */
static void mark_soon(struct dm_regions *rs, struct dm_region_work *reg)
{
	pthread_mutex_lock(&rs->lock);
	reg->next_mark = rs->to_mark;
	rs->to_mark = reg;
	pthread_mutex_unlock(&rs->lock);
	regions_wake(rs);
}

static enum dm_region_where enter(struct dm_region_io *io, struct dm_region_work *reg)
{
	io->region = reg;
	reg->pending++;
	reg->touched = true;
	if (reg->state == REGION_DIRTY)
		return DM_REGION_ALL;
	/* If it is about to be copied, that waits for us. */
	return dm_region_bit_test(io->rs->degraded, reg->nr) ? DM_REGION_SOUND : DM_REGION_FIRST;
}

/* The sectors are claimed. */
static void write_claimed(struct dm_region_io *io)
{
	struct dm_regions *rs = io->rs;
	uint64_t nr = regions_nr(io);
	struct dm_region_work *reg = regions_lock(rs, nr);
	bool ask = rs->shared && (!reg || reg->state == REGION_LOST || !shared_in_touch(rs)), waits = false;
	enum dm_region_where where = DM_REGION_ALL;

	if (!ask && !reg) {
		reg = regions_make(rs, nr);
		if (reg->state == REGION_MARKING)
			mark_soon(rs, reg);
	}
	if (!ask) {
		waits = reg->state == REGION_MARKING;
		if (waits)
			dm_bio_list_add(&reg->marking, io->bio);
		else
			where = enter(io, reg);
	}
	regions_unlock(rs, nr);
	if (ask)
		shared_ask(io);
	else if (!waits)
		rs->ops->write(io, where);
}

static void write_again(struct dm_work *work)
{
	write_claimed(container_of(work, struct dm_region_io, work));
}

static void write_later(struct dm_region_io *io)
{
	io->work = (struct dm_work){.fn = write_again};
	dm_wq_queue(io->rs->io_wq, &io->work);
}

void regions_go_on(struct dm_bio_list *list)
{
	struct dm_bio *bio;

	while ((bio = dm_bio_list_pop(list)))
		write_later(bio->private);
}

/* Others wait for these sectors no more. */
static void claim_granted(struct dm_block_claim *claim)
{
	write_later(container_of(claim, struct dm_region_io, claim));
}

void dm_regions_write(struct dm_regions *rs, struct dm_region_io *io)
{
	io->claimed = true;
	if (dm_block_lock(rs->sectors, &io->claim, io->offset, io->offset + io->bio->sectors - 1, DM_BLOCK_EXCLUSIVE,
			  claim_granted))
		write_claimed(io);
}

static void leave(struct dm_regions *rs, struct dm_region_work *reg)
{
	uint64_t nr = reg->nr;

	regions_lock(rs, nr);
	reg->pending--;
	if (reg->state == (rs->shared ? REGION_LOST : REGION_NOSYNC) && !reg->pending)
		regions_drop(rs, reg); /* the log knows as much */
	regions_unlock(rs, nr);
}

void dm_regions_write_end(struct dm_regions *rs, struct dm_region_io *io)
{
	if (io->region)
		leave(rs, io->region);
	io->region = NULL;
	if (io->claimed)
		dm_block_unlock(rs->sectors, &io->claim, NULL);
}

uint64_t dm_regions_flush_begins(struct dm_regions *rs)
{
	return atomic_fetch_add(&rs->flushes, 1) + 1;
}

void dm_regions_flushed(struct dm_regions *rs, uint64_t flush)
{
	uint64_t last = atomic_load(&rs->flushed);

	while (last < flush && !atomic_compare_exchange_weak(&rs->flushed, &last, flush))
		;
	if (rs->log->type->in_memory)
		regions_arm_cleaner(rs);
}

/* --- the worker: clean to dirty ------------------------------------------------------- */

/* The log could not be written: the region is as it was, its writes have failed. */
static void fail_marking(struct dm_regions *rs, struct dm_bio_list *list)
{
	struct dm_bio *bio;

	while ((bio = dm_bio_list_pop(list)))
		rs->ops->log_failed(bio->private);
}

static void marked(struct dm_regions *rs, struct dm_region_work *reg, bool ok)
{
	uint64_t nr = reg->nr;
	struct dm_bio_list go;

	dm_bio_list_init(&go);
	regions_lock(rs, nr);
	dm_bio_list_take(&reg->marking, &go);
	if (ok) {
		reg->state = REGION_DIRTY;
		reg->touched = true;
	} else {
		regions_drop(rs, reg);
	}
	regions_unlock(rs, nr);
	if (ok)
		regions_go_on(&go);
	else
		fail_marking(rs, &go);
}

/* A strict log that failed once is not asked again: somebody has to look at it first. */
static bool log_marks(struct dm_regions *rs, struct dm_region_work *list)
{
	if (rs->strict && atomic_load(&rs->log_failure))
		return false;
	for (struct dm_region_work *reg = list; reg; reg = reg->next_mark)
		rs->log->type->mark_region(rs->log, reg->nr);
	if (!rs->log->type->flush(rs->log))
		return true;
	atomic_store(&rs->log_failure, true);
	if (!rs->strict)
		return true;
	for (struct dm_region_work *reg = list; reg; reg = reg->next_mark)
		rs->log->type->clear_region(rs->log, reg->nr);
	return false;
}

static void mark(struct dm_regions *rs, struct dm_region_work *list)
{
	bool ok;

	if (!list)
		return;
	ok = log_marks(rs, list);
	while (list) {
		struct dm_region_work *reg = list;

		list = reg->next_mark;
		marked(rs, reg, ok);
	}
	regions_arm_cleaner(rs);
}

/* --- the worker ------------------------------------------------------------------------- */

void regions_wake(struct dm_regions *rs)
{
	dm_wq_queue(rs->wq, &rs->worker);
}

void dm_regions_failed(struct dm_regions *rs, struct dm_region_io *io)
{
	pthread_mutex_lock(&rs->lock);
	dm_bio_list_add(&rs->failures, io->bio);
	regions_wake(rs); /* the worker may end the bio as soon as the lock is free, and with it all may go */
	pthread_mutex_unlock(&rs->lock);
}

void dm_regions_event(struct dm_regions *rs)
{
	atomic_store(&rs->event_due, true);
	regions_wake(rs);
}

static void raise_event(struct dm_regions *rs)
{
	if (atomic_exchange(&rs->event_due, false))
		dm_target_event(rs->ti, NULL, NULL);
}

bool dm_regions_all_in_sync(struct dm_regions *rs)
{
	return atomic_load(&rs->in_sync);
}

static bool log_is_full(struct dm_regions *rs)
{
	return rs->log->type->sync_count(rs->log) == rs->log->regions;
}

/* The cleaner has flushed the copies: now it may be said that all is in sync. */
static void announce(struct dm_regions *rs, bool flushed)
{
	if (flushed && log_is_full(rs)) {
		rs->ops->all_in_sync(rs->context);
		atomic_store(&rs->in_sync, true);
		regions_arm_cleaner(rs);
		dm_target_event(rs->ti, NULL, NULL);
	}
	/* If the copies could not be flushed it is not tried again before the next resume. */
	rs->announcing = !flushed;
}

static void check_in_sync(struct dm_regions *rs)
{
	if (atomic_load(&rs->in_sync) || atomic_load(&rs->stopped) || rs->announcing || !log_is_full(rs))
		return;
	rs->announcing = true;
	pthread_mutex_lock(&rs->lock);
	rs->announce = true;
	pthread_mutex_unlock(&rs->lock);
	dm_wq_queue(rs->io_wq, &rs->cleaner);
}

struct jobs {
	struct dm_region_work *to_mark;
	struct dm_bio_list failures;
	struct run *runs;
	GArray *to_clean;
	bool flush_failed, announced;
};

static void take_jobs(struct dm_regions *rs, struct jobs *jobs)
{
	pthread_mutex_lock(&rs->lock);
	*jobs = (struct jobs){.to_mark = rs->to_mark, .runs = rs->done_runs, .to_clean = rs->to_clean,
			      .flush_failed = rs->flush_failed, .announced = rs->announced};
	dm_bio_list_init(&jobs->failures);
	dm_bio_list_take(&rs->failures, &jobs->failures);
	rs->to_mark = NULL;
	rs->done_runs = NULL;
	rs->to_clean = regions_list();
	rs->flush_failed = rs->announced = false;
	pthread_mutex_unlock(&rs->lock);
}

static void work(struct dm_work *w)
{
	struct dm_regions *rs = container_of(w, struct dm_regions, worker);
	struct dm_bio *bio;
	struct jobs jobs;

	take_jobs(rs, &jobs);
	if (rs->shared)
		shared_work(rs);
	mark(rs, jobs.to_mark);
	if (jobs.flush_failed)
		regions_flush_failed(rs);
	while ((bio = dm_bio_list_pop(&jobs.failures)))
		rs->ops->failed(bio->private);
	regions_runs_finish(rs, jobs.runs);
	regions_clean(rs, jobs.to_clean);
	if (jobs.announced)
		announce(rs, !jobs.flush_failed);
	raise_event(rs);
	regions_recover(rs);
	check_in_sync(rs);
	if (rs->shared)
		shared_arm(rs);
	g_array_free(jobs.to_clean, TRUE);
}

/* --- suspend and resume ----------------------------------------------------------------- */

void dm_regions_presuspend(struct dm_regions *rs)
{
	if (rs->shared)
		shared_suspending(rs);
	atomic_store(&rs->recovering, false);
	dm_under_way_wait(&rs->runs);
}

static void begin(struct dm_regions *rs)
{
	atomic_store(&rs->stopped, false);
	atomic_store(&rs->recovering, dm_target_mode(rs->ti) & DM_MODE_WRITE);
	regions_wake(rs);
}

void dm_regions_presuspend_undo(struct dm_regions *rs)
{
	if (rs->shared)
		shared_resuming(rs);
	begin(rs);
}

/*
 * The timer, the cleaner and the worker wake each other, but not once stopped is set: the first two flushes end those
 * that have not seen it.
 */
static void quiet(struct dm_regions *rs)
{
	atomic_store(&rs->stopped, true);
	dm_wq_flush(rs->wq);
	dm_wq_flush(rs->io_wq);
	dm_timer_cancel_sync(&rs->timer);
	dm_timer_cancel_sync(&rs->ask_timer);
	dm_wq_flush(rs->io_wq);
	dm_wq_flush(rs->wq);
	atomic_store(&rs->timer_armed, false);
}

/* Has the log do something at a suspend or resume. */
static void tell_log(struct dm_regions *rs, int (*fn)(struct dm_dirty_log *), const char *what)
{
	if (fn && fn(rs->log))
		dm_log_warn("%s: log %s failed", rs->ti->type->name, what);
}

void dm_regions_postsuspend(struct dm_regions *rs)
{
	dm_block_begin();
	dm_dirty_log_end_waiting(rs->log); /* nobody's I/O waits for it any more */
	quiet(rs);
	/* Not before: the worker has the log to itself. */
	tell_log(rs, rs->log->type->presuspend, "presuspend");
	regions_settle(rs);
	raise_event(rs);
	tell_log(rs, rs->log->type->postsuspend, "postsuspend");
	dm_block_end();
}

int dm_regions_preresume(struct dm_regions *rs, GError **err)
{
	return rs->log->type->preresume ? rs->log->type->preresume(rs->log, err) : 0;
}

void dm_regions_resume(struct dm_regions *rs)
{
	if (rs->shared)
		shared_resuming(rs);
	tell_log(rs, rs->log->type->resume, "resume");
	g_array_set_size(rs->again, 0);
	rs->announcing = false;
	if (!log_is_full(rs))
		atomic_store(&rs->in_sync, false);
	begin(rs);
}

void dm_regions_end_waiting(struct dm_regions *rs)
{
	dm_dirty_log_end_waiting(rs->log);
}

/* --- life --------------------------------------------------------------------------------- */

int dm_regions_new(struct dm_target *ti, struct dm_dirty_log *log, bool strict, const struct dm_regions_ops *ops,
		   void *context, struct dm_regions **out, GError **err)
{
	uint8_t *degraded = g_try_malloc0(log->regions / 8 + 1);
	struct dm_regions *rs;

	if (!degraded)
		return dm_fail(err, ENOMEM, "%s: no memory for a bitmap of %" PRIu64 " regions", ti->type->name,
			       log->regions);
	rs = g_aligned_alloc0(1, sizeof *rs, 64);
	rs->ti = ti;
	rs->log = log;
	rs->ops = ops;
	rs->context = context;
	rs->shift = dm_log2(log->region_sectors);
	rs->strict = strict;
	rs->shared = dm_dirty_log_is_shared(log);
	rs->degraded = degraded;
	pthread_mutex_init(&rs->lock, NULL);
	for (unsigned i = 0; i < REGIONS_SHARDS; i++) {
		pthread_mutex_init(&rs->shards[i].lock, NULL);
		rs->shards[i].regions = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
	}
	rs->sectors = dm_block_lock_new(SECTORS_SHIFT);
	rs->wq = dm_wq_new("regions", 1);
	rs->io_wq = dm_wq_new("regions-io", 16);
	rs->worker.fn = work;
	rs->cleaner.fn = regions_clean_work;
	rs->timer.fn = regions_clean_timer;
	rs->stopped = true;
	rs->in_sync = log_is_full(rs);
	dm_under_way_init(&rs->runs);
	dm_bio_list_init(&rs->failures);
	rs->to_clean = regions_list();
	rs->again = regions_list();
	shared_init(rs);
	*out = rs;
	return 0;
}

void dm_regions_free(struct dm_regions *rs)
{
	quiet(rs);
	dm_wq_free(rs->io_wq);
	dm_wq_free(rs->wq);
	dm_block_lock_free(rs->sectors);
	shared_destroy(rs);
	for (unsigned i = 0; i < REGIONS_SHARDS; i++) {
		g_hash_table_destroy(rs->shards[i].regions);
		pthread_mutex_destroy(&rs->shards[i].lock);
	}
	dm_under_way_destroy(&rs->runs);
	pthread_mutex_destroy(&rs->lock);
	g_array_free(rs->to_clean, TRUE);
	g_array_free(rs->again, TRUE);
	dm_dirty_log_free(rs->log);
	g_free(rs->degraded);
	g_aligned_free(rs);
}
