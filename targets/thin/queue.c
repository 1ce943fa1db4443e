/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bios that wait: for the mapper, the pool to resume, space, a commit; and the mapper.
 *
 * The mapper alone leaves bios in the holds.  So when it has passed a mark, who takes bios out of them after
 * that has all that came before the mark.
 */
#include "pool.h"

#include <stdlib.h>

#include <dmfs/container_of.h>
#include <dmfs/later.h>

#define COMMIT_PERIOD_NS 1000000000ull
#define NO_SPACE_TIMEOUT_S 60

/* --- for the mapper --- */

void pool_kick(struct thin_pool *pool)
{
	dm_wq_queue(pool->wq, &pool->work);
}

void pool_defer_all(struct thin_pool *pool, struct dm_bio_list *bios)
{
	if (dm_bio_list_empty(bios))
		return;
	pthread_mutex_lock(&pool->lock);
	dm_bio_list_take(bios, &pool->deferred);
	dm_wq_queue(pool->wq, &pool->work); /* with the lock: with the last of the bios the pool may go */
	pthread_mutex_unlock(&pool->lock);
}

void pool_defer(struct thin_pool *pool, struct dm_bio *bio)
{
	struct dm_bio_list list;

	dm_bio_list_init(&list);
	dm_bio_list_add(&list, bio);
	pool_defer_all(pool, &list);
}

void pool_filled(struct thin_pool *pool, struct fill *f)
{
	pthread_mutex_lock(&pool->lock);
	f->next = NULL;
	*pool->filled_tail = f;
	pool->filled_tail = &f->next;
	dm_wq_queue(pool->wq, &pool->work);
	pthread_mutex_unlock(&pool->lock);
}

/* --- holds --- */

void pool_keep(struct thin_pool *pool, struct dm_hold *hold, struct dm_bio *bio)
{
	int error = dm_hold_add(hold, bio);

	if (error == -EAGAIN) /* it has just been opened */
		pool_defer(pool, bio);
	else if (error)
		dm_bio_end(bio, error);
}

void pool_retry_all(struct thin_pool *pool)
{
	struct dm_bio_list list;

	dm_bio_list_init(&list);
	dm_hold_take(&pool->retry, &list);
	pool_defer_all(pool, &list);
}

void pool_fail_parked(struct thin_pool *pool)
{
	if (!atomic_load(&pool->ending) || !atomic_load(&pool->stopping))
		return;
	dm_hold_fail(&pool->to_fill, -EIO);
	dm_hold_fail(&pool->discards, -EIO);
	dm_hold_fail(&pool->retry, -EIO);
}

void pool_unserviceable(struct thin_pool *pool, struct dm_bio *bio)
{
	enum pool_mode mode = pool_mode(pool);

	if (mode != PM_OUT_OF_DATA_SPACE || atomic_load(&pool->error_if_no_space)) {
		dm_bio_end(bio, mode == PM_OUT_OF_DATA_SPACE ? -ENOSPC : -EIO);
		return;
	}
	pool_keep(pool, &pool->retry, bio);
	mode = pool_mode(pool);
	if (mode == PM_WRITE) /* space came, or the end, while we put it there */
		pool_retry_all(pool);
	else if (mode >= PM_OUT_OF_METADATA_SPACE)
		dm_hold_fail(&pool->retry, -EIO);
	else if (atomic_load(&pool->error_if_no_space))
		dm_hold_fail(&pool->retry, -ENOSPC);
}

/* --- a thin device that is suspended without flushing --- */

struct requeue {
	struct dm_work work;
	struct thin *thin;
};

static bool is_of(struct dm_bio *bio, void *thin)
{
	return thin_io(bio)->thin == thin;
}

static void requeue(struct dm_work *work)
{
	struct thin *t = container_of(work, struct requeue, work)->thin;
	struct dm_hold *holds[] = {&t->pool->parked, &t->pool->to_fill, &t->pool->retry, &t->pool->discards};
	struct dm_bio_list list;
	struct dm_bio *bio;

	dm_bio_list_init(&list);
	for (unsigned i = 0; i < G_N_ELEMENTS(holds); i++)
		dm_hold_take_if(holds[i], is_of, t, &list);
	while ((bio = dm_bio_list_pop(&list)))
		dm_bio_requeue(bio);
}

/* After the mapper, which gives back by itself what it finds of the device from now on. */
void pool_requeue_thin(struct thin *t)
{
	struct requeue r = {.work.fn = requeue, .thin = t};

	dm_block_begin();
	dm_wq_queue(t->pool->wq, &r.work);
	dm_wq_flush_work(t->pool->wq, &r.work);
	dm_block_end();
}

/* --- the mapper --- */

/* A bio's place in the order in which blocks are to be allocated. */
struct place {
	uint64_t device, sector;
	unsigned nr; /* as they came */
	struct dm_bio *bio;
};

static int compare(const void *a, const void *b)
{
	const struct place *x = a, *y = b;

	if (x->device != y->device)
		return x->device < y->device ? -1 : 1;
	if (x->sector != y->sector)
		return x->sector < y->sector ? -1 : 1;
	return x->nr < y->nr ? -1 : 1;
}

/* Bios come from many threads; a volume whose blocks are allocated in the order they came in would be in pieces. */
static void sort(struct dm_bio_list *bios)
{
	g_autoptr(GArray) places = NULL;
	struct dm_bio *bio;

	if (!bios->head || !bios->head->next)
		return;
	places = g_array_new(FALSE, FALSE, sizeof(struct place));
	while ((bio = dm_bio_list_pop(bios))) {
		struct place p = {thin_io(bio)->thin->td->id, bio->sector, places->len, bio};

		g_array_append_val(places, p);
	}
	qsort(places->data, places->len, sizeof(struct place), compare);
	for (unsigned i = 0; i < places->len; i++)
		dm_bio_list_add(bios, g_array_index(places, struct place, i).bio);
}

/* First writes whose turn has come, now that others are through. */
static void take_turns(struct thin_pool *pool, struct dm_bio_list *bios)
{
	struct dm_bio *bio;

	if (atomic_load(&pool->stopping)) /* the resume kicks */
		return;
	for (unsigned n = pool->fills; n < POOL_MAX_FILLS && (bio = dm_hold_take_first(&pool->to_fill)); n++) {
		thin_io(bio)->turn = true;
		dm_bio_list_add(bios, bio);
	}
}

static void run(struct dm_work *work)
{
	struct thin_pool *pool = container_of(work, struct thin_pool, work);
	struct dm_bio_list deferred, out;
	struct fill *filled, *next;
	struct dm_bio *bio;

	dm_bio_list_init(&deferred);
	dm_bio_list_init(&out);
	pthread_mutex_lock(&pool->lock);
	dm_bio_list_take(&pool->deferred, &deferred);
	filled = pool->filled;
	pool->filled = NULL;
	pool->filled_tail = &pool->filled;
	pthread_mutex_unlock(&pool->lock);
	for (; filled; filled = next) {
		next = filled->next;
		thin_map_filled(filled);
	}
	take_turns(pool, &deferred);
	sort(&deferred);
	while ((bio = dm_bio_list_pop(&deferred)))
		thin_dispatch(bio, &out);
	if (pool->mapped_some)
		pool_check_marks(pool);
	pool->mapped_some = false;
	dm_submit_async(&out);
	if (pool->fills < POOL_MAX_FILLS && dm_hold_count(&pool->to_fill) && !atomic_load(&pool->stopping))
		pool_kick(pool);
}

/* --- commits --- */

static int commit(void *context)
{
	struct thin_pool *pool = context;

	if (pool_mode(pool) >= PM_OUT_OF_METADATA_SPACE)
		return -EINVAL;
	return pool_commit(pool, &pool->committed_now);
}

/* Whether what a bio waits for is lost, or cannot be committed any more. */
static bool is_lost(struct thin_dev *td, bool committed)
{
	return atomic_load(&td->aborted) || (!committed && atomic_load(&td->changed));
}

/* What it waited for was the metadata; a FLUSH may have the data device's left. */
static void committed(struct dm_commit_wait *wait, int error)
{
	struct thin_io *io = container_of(wait, struct thin_io, wait);
	struct thin_pool *pool = io->thin->pool;

	if (is_lost(io->thin->td, !error))
		dm_bio_end(io->bio, -EIO);
	else if (io->written || (!error && pool->committed_now))
		dm_bio_end(io->bio, 0);
	else
		pool_defer(pool, io->bio);
}

void pool_wait_for_commit(struct thin_pool *pool, struct dm_bio *bio)
{
	thin_io(bio)->wait.done = committed;
	dm_group_commit(pool->commits, &thin_io(bio)->wait);
}

void pool_commit_soon(struct thin_pool *pool)
{
	dm_group_commit_soon(pool->commits, COMMIT_PERIOD_NS);
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
		dm_hold_fail(&pool->retry, -ENOSPC);
	}
	pthread_mutex_unlock(&pool->mode_lock);
}

static void no_space_timer(struct dm_timer *timer)
{
	struct thin_pool *pool = container_of(timer, struct thin_pool, no_space_timer);

	dm_wq_queue(pool->commit_wq, &pool->no_space_work);
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
	struct dm_hold *always[] = {&pool->to_fill, &pool->retry, &pool->discards};

	dm_bio_list_init(&pool->deferred);
	pool->filled_tail = &pool->filled;
	dm_hold_init(&pool->parked, NULL, 0);
	dm_hold_init(&pool->to_fill, NULL, DM_HOLD_GOES_ON);
	dm_hold_init(&pool->retry, NULL, -ENOSPC);
	dm_hold_init(&pool->discards, NULL, DM_HOLD_GOES_ON);
	for (unsigned i = 0; i < G_N_ELEMENTS(always); i++)
		dm_hold_close(always[i]);
	dm_hold_close(&pool->parked); /* until the first resume */
	pool->blocks = dm_block_lock_new(0);
	pool->kcopyd = dm_kcopyd_client_new(NULL, 0);
	pool->work.fn = run;
	pool->discard_work.fn = pool_discard_work;
	pool->no_space_work.fn = no_space_work;
	pool->no_space_timer.fn = no_space_timer;
	pool->wq = dm_wq_new("thin-pool", 1);
	pool->commit_wq = dm_wq_new("thin-commit", 1);
	pool->discard_wq = dm_wq_new("thin-discard", 1);
	pool->commits = dm_group_commit_new(pool->commit_wq, commit, pool);
}

void pool_queue_flush(struct thin_pool *pool)
{
	dm_timer_cancel_sync(&pool->no_space_timer);
	dm_wq_flush(pool->discard_wq);
	dm_group_commit_settle(pool->commits);
	dm_wq_flush(pool->wq);
}

void pool_queue_destroy(struct thin_pool *pool)
{
	dm_timer_cancel_sync(&pool->no_space_timer);
	dm_group_commit_free(pool->commits);
	dm_wq_free(pool->discard_wq);
	dm_wq_free(pool->commit_wq);
	dm_wq_free(pool->wq);
	dm_kcopyd_client_free(pool->kcopyd);
	dm_block_lock_free(pool->blocks);
	dm_hold_destroy(&pool->parked);
	dm_hold_destroy(&pool->to_fill);
	dm_hold_destroy(&pool->retry);
	dm_hold_destroy(&pool->discards);
}
