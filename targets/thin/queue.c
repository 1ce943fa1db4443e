/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Bios that wait: for a commit, for the pool to resume, for space; and the worker that sees to them. */
#include "pool.h"

#include <stdlib.h>

#include <dmfs/container_of.h>

#define COMMIT_PERIOD_NS 1000000000ull
#define NO_SPACE_TIMEOUT_S 60

/* --- holding --- */

bool pool_hold(struct thin_pool *pool)
{
	bool ok;

	pthread_mutex_lock(&pool->lock);
	ok = !atomic_load(&pool->stopping);
	pool->holders += ok;
	pthread_mutex_unlock(&pool->lock);
	return ok;
}

void pool_release(struct thin_pool *pool)
{
	pthread_mutex_lock(&pool->lock);
	if (!--pool->holders && atomic_load(&pool->stopping))
		pthread_cond_broadcast(&pool->idle);
	pthread_mutex_unlock(&pool->lock);
}

/* --- lists --- */

static void add(struct thin_pool *pool, struct dm_bio_list *list, struct dm_bio *bio)
{
	pthread_mutex_lock(&pool->lock);
	dm_bio_list_add(list, bio);
	pthread_mutex_unlock(&pool->lock);
}

static void take(struct dm_bio_list *from, struct dm_bio_list *to)
{
	struct dm_bio *bio;

	while ((bio = dm_bio_list_pop(from)))
		dm_bio_list_add(to, bio);
}

void pool_kick(struct thin_pool *pool)
{
	dm_wq_queue(pool->wq, &pool->work);
}

void pool_defer(struct thin_pool *pool, struct dm_bio *bio)
{
	add(pool, &pool->deferred, bio);
	if (!atomic_load(&pool->stopping)) /* else pool_resume() will */
		pool_kick(pool);
	else
		pool_fail_parked(pool);
}

void pool_wait_for_commit(struct thin_pool *pool, struct dm_bio *bio)
{
	add(pool, &pool->commits, bio);
	pool_kick(pool);
}

void pool_retry_all(struct thin_pool *pool)
{
	pthread_mutex_lock(&pool->lock);
	take(&pool->retry, &pool->deferred);
	pthread_mutex_unlock(&pool->lock);
	pool_kick(pool);
}

static void end_all(struct dm_bio_list *list, int error)
{
	struct dm_bio *bio;

	while ((bio = dm_bio_list_pop(list)))
		dm_bio_end(bio, error);
}

/* Fails what waits for the pool's resume if there will be none. */
void pool_fail_parked(struct thin_pool *pool)
{
	struct dm_bio_list list;

	if (!atomic_load(&pool->ending))
		return;
	dm_bio_list_init(&list);
	pthread_mutex_lock(&pool->lock);
	if (atomic_load(&pool->stopping)) {
		take(&pool->deferred, &list);
		take(&pool->discards, &list);
		take(&pool->retry, &list);
	}
	pthread_mutex_unlock(&pool->lock);
	end_all(&list, -EIO);
}

void pool_fail_retries(struct thin_pool *pool, int error)
{
	struct dm_bio_list list;

	dm_bio_list_init(&list);
	pthread_mutex_lock(&pool->lock);
	take(&pool->retry, &list);
	pthread_mutex_unlock(&pool->lock);
	end_all(&list, error);
}

void pool_unserviceable(struct thin_pool *pool, struct dm_bio *bio)
{
	enum pool_mode mode = pool_mode(pool);

	if (mode == PM_OUT_OF_DATA_SPACE && !atomic_load(&pool->error_if_no_space)) {
		add(pool, &pool->retry, bio);
		mode = pool_mode(pool);
		if (mode == PM_WRITE) /* space came, or the end, while we put it there */
			pool_retry_all(pool);
		else if (mode >= PM_OUT_OF_METADATA_SPACE)
			pool_fail_retries(pool, -EIO);
		else if (atomic_load(&pool->error_if_no_space))
			pool_fail_retries(pool, -ENOSPC);
		return;
	}
	dm_bio_end(bio, mode == PM_OUT_OF_DATA_SPACE ? -ENOSPC : -EIO);
}

/* Moves one thin device's bios out of a list. */
static void take_of(struct thin *t, struct dm_bio_list *from, struct dm_bio_list *to)
{
	struct dm_bio_list rest;
	struct dm_bio *bio;

	dm_bio_list_init(&rest);
	while ((bio = dm_bio_list_pop(from)))
		dm_bio_list_add(thin_io(bio)->thin == t ? to : &rest, bio);
	take(&rest, from);
}

void pool_requeue_thin(struct thin *t)
{
	struct thin_pool *pool = t->pool;
	struct dm_bio_list list;
	struct dm_bio *bio;

	dm_bio_list_init(&list);
	pthread_mutex_lock(&pool->lock);
	take_of(t, &pool->retry, &list);
	take_of(t, &pool->deferred, &list);
	take_of(t, &pool->discards, &list);
	pthread_mutex_unlock(&pool->lock);
	while ((bio = dm_bio_list_pop(&list))) {
		thin_io(bio)->state = IO_REQUEUE;
		dm_bio_end(bio, 0);
	}
}

/* --- the worker --- */

/* After the commit: what it waited for was the metadata; a FLUSH may have the data device's left. */
static void finish_commit(struct thin_pool *pool, struct dm_bio *bio, int error, bool flushed)
{
	if (error)
		dm_bio_end(bio, error);
	else if (thin_io(bio)->state == IO_WRITTEN || (bio->op == DM_FLUSH && flushed))
		dm_bio_end(bio, 0);
	else
		thin_dispatch(bio);
}

/* Whether what a bio waits for is lost, or cannot be committed any more. */
static bool is_lost(struct dm_bio *bio, bool committed)
{
	struct thin_dev *td = thin_io(bio)->thin->td;

	return atomic_load(&td->aborted) || (!committed && atomic_load(&td->changed));
}

static void commit_for(struct thin_pool *pool, struct dm_bio_list *list)
{
	bool did = false, committed;
	struct dm_bio *bio;

	if (dm_bio_list_empty(list) && !atomic_exchange(&pool->commit_due, false))
		return;
	atomic_store(&pool->commit_due, false);
	committed = pool_mode(pool) < PM_OUT_OF_METADATA_SPACE && !pool_commit(pool, &did);
	while ((bio = dm_bio_list_pop(list)))
		finish_commit(pool, bio, is_lost(bio, committed) ? -EIO : 0, did);
}

static void run(struct dm_work *work)
{
	struct thin_pool *pool = container_of(work, struct thin_pool, work);
	struct dm_bio_list commits, deferred;
	struct dm_bio *bio;

	dm_bio_list_init(&commits);
	dm_bio_list_init(&deferred);
	pthread_mutex_lock(&pool->lock);
	take(&pool->commits, &commits);
	if (!atomic_load(&pool->stopping))
		take(&pool->deferred, &deferred);
	pthread_mutex_unlock(&pool->lock);
	while ((bio = dm_bio_list_pop(&deferred)))
		thin_dispatch(bio);
	commit_for(pool, &commits);
}

static void commit_timer(struct dm_timer *timer)
{
	struct thin_pool *pool = container_of(timer, struct thin_pool, commit_timer);

	atomic_store(&pool->commit_due, true);
	pool_kick(pool);
}

void pool_commit_soon(struct thin_pool *pool)
{
	dm_timer_arm(&pool->commit_timer, dm_now_ns() + COMMIT_PERIOD_NS);
}

/* --- the end of patience without space --- */

/* Seconds; 0: for ever.  The kernel's module parameter no_space_timeout. */
static uint64_t no_space_timeout_s(void)
{
	const char *text = getenv("DMFS_THIN_NO_SPACE_TIMEOUT");
	unsigned seconds;

	return text && dm_parse_uint(text, &seconds) ? seconds : NO_SPACE_TIMEOUT_S;
}

static void no_space_work(struct dm_work *work)
{
	struct thin_pool *pool = container_of(work, struct thin_pool, no_space_work);

	pthread_mutex_lock(&pool->mode_lock);
	if (pool_mode(pool) == PM_OUT_OF_DATA_SPACE && !atomic_exchange(&pool->error_if_no_space, true)) {
		g_autoptr(GString) name = g_string_new(NULL);

		dm_log_info("thin: %s: switching pool to out-of-data-space (error IO) mode", pool_name(pool, name));
		pool_event(pool);
		pool_fail_retries(pool, -ENOSPC);
	}
	pthread_mutex_unlock(&pool->mode_lock);
}

static void no_space_timer(struct dm_timer *timer)
{
	struct thin_pool *pool = container_of(timer, struct thin_pool, no_space_timer);

	dm_wq_queue(pool->wq, &pool->no_space_work);
}

void pool_arm_no_space(struct thin_pool *pool, bool on)
{
	uint64_t seconds = no_space_timeout_s();

	if (on && seconds)
		dm_timer_arm(&pool->no_space_timer, dm_now_ns() + seconds * 1000000000ull);
	else
		dm_timer_cancel(&pool->no_space_timer);
}

/* --- life --- */

void pool_queue_init(struct thin_pool *pool)
{
	dm_bio_list_init(&pool->commits);
	dm_bio_list_init(&pool->deferred);
	dm_bio_list_init(&pool->retry);
	dm_bio_list_init(&pool->discards);
	pool->work.fn = run;
	pool->discard_work.fn = pool_discard_work;
	pool->no_space_work.fn = no_space_work;
	pool->commit_timer.fn = commit_timer;
	pool->no_space_timer.fn = no_space_timer;
	pool->wq = dm_wq_new("thin-pool", 1);
	pool->discard_wq = dm_wq_new("thin-discard", 1);
}

void pool_queue_flush(struct thin_pool *pool)
{
	dm_timer_cancel_sync(&pool->commit_timer);
	dm_timer_cancel_sync(&pool->no_space_timer);
	dm_wq_flush(pool->discard_wq);
	dm_wq_flush(pool->wq);
}

void pool_queue_destroy(struct thin_pool *pool)
{
	dm_timer_cancel_sync(&pool->commit_timer);
	dm_timer_cancel_sync(&pool->no_space_timer);
	dm_wq_free(pool->discard_wq);
	dm_wq_free(pool->wq);
}
