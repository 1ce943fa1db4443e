/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * writecache's writeback: the oldest committed blocks, with their neighbours where those follow in the cache, too, are
 * copied to the origin; when copies have ended the origin is flushed once for all of them, and the next commit frees
 * the blocks.
 *
 * It begins when few blocks are free (high_watermark), ends when enough are (low_watermark), and takes what has grown
 * old (max_age), or all (cleaner, flush).
 */
#include "writecache.h"

#include <dmfs/container_of.h>

#define STEP 64u     /* copies that are begun before others have their turn */
#define LOOK 16u     /* entries of a shard that are looked at for one that can go */
#define CHUNK 65536u /* blocks that are sorted at a time */
#define AGE_STEPS 16u

/* Blocks on their way. */
struct wc_job {
	struct wc_job *next;
	struct writecache *wc;
	uint64_t block;
	uint32_t first, n;
	int error;
	struct iovec iov; /* type p: what is written */
};

void wc_changed(struct writecache *wc)
{
	pthread_mutex_lock(&wc->lock);
	wc->changes++;
	pthread_cond_broadcast(&wc->changed);
	pthread_mutex_unlock(&wc->lock);
}

void wc_unstuck(struct writecache *wc)
{
	wc_changed(wc);
	if (atomic_load(&wc->draining) || atomic_load(&wc->cleaner))
		dm_wq_queue(wc->wb_wq, &wc->wb_work);
}

static uint64_t not_in_use(struct writecache *wc)
{
	return wc_n_free(wc->ix) + atomic_load(&wc->n_writeback);
}

static uint64_t mark(struct writecache *wc, uint64_t free)
{
	return atomic_load(&wc->cleaner) ? wc->n_blocks : free;
}

void wc_check_free(struct writecache *wc)
{
	if (!atomic_load_explicit(&wc->draining, memory_order_relaxed) && not_in_use(wc) <= mark(wc, wc->high_free) &&
	    !atomic_exchange(&wc->draining, true))
		dm_wq_queue(wc->wb_wq, &wc->wb_work);
}

static unsigned most_blocks(struct writecache *wc)
{
	return wc->opt.jobs ? wc->opt.jobs : UINT_MAX;
}

/* --- what goes next --------------------------------------------------------------------------- */

/* Whether it can go now; its shard is locked. */
static bool can_go(struct writecache *wc, uint32_t e)
{
	const struct wc_entry *x = &wc->ix->entries[e];

	return x->state == WC_COMMITTED && !x->writers && wc_older(wc->ix, e) == WC_NONE;
}

static void take(struct writecache *wc, struct wc_shard *s, uint32_t e)
{
	wc_unqueue(wc->ix, s, e);
	wc->ix->entries[e].state = WC_WRITEBACK;
	wc->ix->entries[e].flags |= WC_WRITTEN;
	atomic_fetch_add(&wc->n_writeback, 1);
}

/* A job of an entry that was taken, and of those that follow it here and there. */
static struct wc_job *job_from(struct writecache *wc, uint32_t e, uint64_t block)
{
	struct wc_job *job = g_new0(struct wc_job, 1);

	*job = (struct wc_job){.wc = wc, .block = block, .first = e, .n = 1};
	while (job->n < WC_MAX_RUN && e + job->n < wc->n_blocks && atomic_load(&wc->n_writeback) < most_blocks(wc)) {
		struct wc_shard *s = wc_shard_of(wc->ix, block + job->n);
		bool taken;

		pthread_mutex_lock(&s->lock);
		taken = wc_find(wc->ix, s, block + job->n) == e + job->n && can_go(wc, e + job->n);
		if (taken)
			take(wc, s, e + job->n);
		pthread_mutex_unlock(&s->lock);
		if (!taken)
			break;
		job->n++;
	}
	return job;
}

struct found {
	bool any, uncommitted;
	uint32_t entry, age_ms;
};

/* The oldest of a shard that can go, or could if it were committed, and is so old; the shard is locked. */
static struct found oldest_of(struct writecache *wc, struct wc_shard *s, uint32_t now, uint32_t min_age_ms)
{
	struct found f = {0};
	unsigned looked = 0;

	for (uint32_t e = s->oldest; e != WC_NONE && looked < LOOK; e = wc->ix->entries[e].next, looked++) {
		f.age_ms = now - wc->ix->entries[e].age_ms;
		if (f.age_ms < min_age_ms)
			break;
		if (wc->ix->entries[e].state != WC_COMMITTED) {
			f.uncommitted = true;
			break;
		}
		if (!can_go(wc, e)) {
			atomic_store(&wc->stuck, true);
			continue;
		}
		f.any = true;
		f.entry = e;
		break;
	}
	return f;
}

/* The oldest of all that is at least so old; NULL: there is none.  *uncommitted: a commit would help. */
static struct wc_job *next_job(struct writecache *wc, uint32_t min_age_ms, bool *uncommitted)
{
	uint32_t now = wc_now_ms(), best_age = 0;
	struct wc_shard *best = NULL;
	struct found f = {0};
	uint64_t block = 0;

	for (unsigned i = 0; i < WC_SHARDS; i++) {
		struct wc_shard *s = &wc->ix->shards[i];

		if (!atomic_load(&s->count))
			continue;
		pthread_mutex_lock(&s->lock);
		f = oldest_of(wc, s, now, min_age_ms);
		pthread_mutex_unlock(&s->lock);
		*uncommitted |= f.uncommitted;
		if (f.any && (!best || f.age_ms > best_age)) {
			best = s;
			best_age = f.age_ms;
		}
	}
	if (!best)
		return NULL;
	pthread_mutex_lock(&best->lock);
	f = oldest_of(wc, best, now, min_age_ms);
	if (f.any) {
		block = wc->ix->entries[f.entry].block;
		take(wc, best, f.entry);
	}
	pthread_mutex_unlock(&best->lock);
	return f.any ? job_from(wc, f.entry, block) : NULL;
}

/* --- copies --------------------------------------------------------------------------------------- */

static void job_done(struct wc_job *job, int error)
{
	struct writecache *wc = job->wc;

	job->error = error;
	pthread_mutex_lock(&wc->lock);
	job->next = wc->done;
	wc->done = job;
	dm_wq_queue(wc->done_wq, &wc->done_work);
	pthread_mutex_unlock(&wc->lock);
}

static void copied(int read_error, unsigned long write_errors, void *context)
{
	job_done(context, read_error ? read_error : write_errors ? -EIO : 0);
}

static void mem_written(int error, const int *errors, void *context)
{
	job_done(context, error);
}

static void start(struct writecache *wc, struct wc_job *job)
{
	uint64_t sector = job->block << wc->block_shift, end = dm_dev_sectors(wc->origin);
	uint64_t sectors = (uint64_t)job->n << wc->block_shift;
	struct dm_region to = {wc->origin, sector, sectors};
	struct dm_region from = {wc->cache, wc->data_sector + ((uint64_t)job->first << wc->block_shift), sectors};
	int error;

	atomic_fetch_add(&wc->copies, 1);
	if (sector >= end) { /* the origin was longer once; there is nowhere to write this */
		dm_log_warn("writecache: sector %" G_GUINT64_FORMAT
			    " is behind the origin's end, what was written to it is dropped",
			    sector);
		job_done(job, 0);
		return;
	}
	from.sectors = to.sectors = MIN(sectors, end - sector);
	if (!wc->mem) {
		dm_kcopyd_copy(wc->kcopyd, &from, 1, &to, 0, copied, job);
		return;
	}
	job->iov = (struct iovec){g_malloc(to.sectors << DM_SECTOR_SHIFT), to.sectors << DM_SECTOR_SHIFT};
	error = wc_mem_read(wc->mem, from.sector << DM_SECTOR_SHIFT, &job->iov, 1);
	if (error)
		job_done(job, error);
	else
		dm_io_async(DM_WRITE, wc->opt.fua ? DM_FUA : 0, 1, &to, &job->iov, 1, mem_written, job);
}

/* Its blocks are to be freed, or, if nothing can be written any more, stay. */
static void end_job(struct writecache *wc, struct wc_job *job, bool ok)
{
	for (uint32_t i = 0; i < job->n; i++) {
		struct wc_shard *s = wc_shard_of(wc->ix, job->block + i);
		struct wc_entry *x = &wc->ix->entries[job->first + i];

		pthread_mutex_lock(&s->lock);
		if (ok) {
			wc_to_free(wc->ix, s, job->first + i);
		} else {
			x->state = WC_COMMITTED;
			x->flags = 0;
			wc_requeue(wc->ix, s, job->first + i);
			atomic_fetch_sub(&wc->n_writeback, 1);
		}
		pthread_mutex_unlock(&s->lock);
	}
	g_free(job->iov.iov_base);
	g_free(job);
}

void wc_writeback_done(struct dm_work *work)
{
	struct writecache *wc = container_of(work, struct writecache, done_work);
	struct wc_job *jobs, *job;
	unsigned ended = 0;
	int error = 0;

	pthread_mutex_lock(&wc->lock);
	jobs = wc->done;
	wc->done = NULL;
	pthread_mutex_unlock(&wc->lock);
	if (!jobs)
		return;
	for (job = jobs; job; job = job->next)
		if (job->error)
			wc_fail(wc, job->error, "copy error");
	if (!wc->opt.fua && !wc_failed(wc)) {
		error = dm_flush_sync(wc->origin);
		if (error)
			wc_fail(wc, error, "error flushing the origin");
	}
	while ((job = jobs)) {
		jobs = job->next;
		end_job(wc, job, !wc_failed(wc));
		ended++;
	}
	wc_kick(wc);
	atomic_fetch_sub(&wc->copies, ended);
	wc_changed(wc);
}

/* --- the background ---------------------------------------------------------------------------------- */

/* How long writeback is to wait because of writes that went around the cache; nanoseconds. */
static uint64_t pause_left(struct writecache *wc)
{
	uint64_t pause = wc->opt.pause_ms * UINT64_C(1000000), now = dm_now_ns(), last = atomic_load(&wc->around_ns);

	if (!pause || atomic_load(&wc->cleaner) || atomic_load(&wc->all) || atomic_load(&wc->any_blocked) ||
	    dm_target_suspending(wc->ti))
		return 0;
	if (atomic_load(&wc->around))
		return pause;
	return last && now - last < pause ? pause - (now - last) : 0;
}

/* Whether blocks are to go that are younger than max_age. */
static bool is_draining(struct writecache *wc)
{
	uint64_t n = not_in_use(wc);

	if (n <= mark(wc, wc->high_free))
		atomic_store(&wc->draining, true);
	else if (n > mark(wc, wc->low_free))
		atomic_store(&wc->draining, false);
	return atomic_load(&wc->draining) || atomic_load(&wc->any_blocked);
}

static uint32_t ripe_ms(struct writecache *wc)
{
	return wc->opt.max_age_ms - wc->opt.max_age_ms / AGE_STEPS;
}

void wc_writeback(struct dm_work *work)
{
	struct writecache *wc = container_of(work, struct writecache, wb_work);
	bool uncommitted = false, draining;
	uint64_t pause;
	unsigned n = 0;

	if (!atomic_load(&wc->loaded) || wc_failed(wc) || atomic_load(&wc->stopping))
		return;
	draining = is_draining(wc);
	if (!draining && wc->opt.max_age_ms == UINT_MAX)
		return;
	pause = pause_left(wc);
	if (pause) {
		dm_timer_arm(&wc->wb_timer, dm_now_ns() + pause);
		return;
	}
	atomic_store(&wc->stuck, false);
	while (n < STEP && atomic_load(&wc->n_writeback) < most_blocks(wc)) {
		struct wc_job *job = next_job(wc, draining ? 0 : ripe_ms(wc), &uncommitted);

		if (!job)
			break;
		start(wc, job);
		n++;
		draining = is_draining(wc);
		if (!draining && wc->opt.max_age_ms == UINT_MAX)
			return;
	}
	if (n == STEP)
		dm_wq_queue(wc->wb_wq, &wc->wb_work);
	else if (!n && uncommitted)
		wc_kick(wc);
}

void wc_wake_timer(struct dm_timer *t)
{
	struct writecache *wc = container_of(t, struct writecache, wb_timer);

	dm_wq_queue(wc->wb_wq, &wc->wb_work);
}

void wc_age_timer(struct dm_timer *t)
{
	struct writecache *wc = container_of(t, struct writecache, age_timer);

	if (atomic_load(&wc->stopping) || wc_failed(wc))
		return;
	dm_wq_queue(wc->wb_wq, &wc->wb_work);
	dm_timer_arm(t, dm_now_ns() + MAX(wc->opt.max_age_ms / AGE_STEPS, 1) * UINT64_C(1000000));
}

/* --- all of it ------------------------------------------------------------------------------------------ */

struct place {
	uint64_t block;
	uint32_t entry;
};

static gint by_block(gconstpointer a, gconstpointer b)
{
	uint64_t x = ((const struct place *)a)->block, y = ((const struct place *)b)->block;

	return x < y ? -1 : x > y;
}

/* What is there, and not younger than that, up to a number, in the origin's order; *uncommitted: some is not committed.
 */
static void list_all(struct writecache *wc, uint32_t begin, GArray *out, bool *uncommitted)
{
	g_array_set_size(out, 0);
	*uncommitted = false;
	for (unsigned i = 0; i < WC_SHARDS; i++) {
		struct wc_shard *s = &wc->ix->shards[i];
		unsigned n = 0;

		pthread_mutex_lock(&s->lock);
		for (uint32_t e = s->oldest; e != WC_NONE && n < CHUNK / WC_SHARDS; e = wc->ix->entries[e].next) {
			const struct wc_entry *x = &wc->ix->entries[e];

			if ((int32_t)(x->age_ms - begin) > 0)
				break;
			if (x->state != WC_COMMITTED) {
				*uncommitted = true;
				break;
			}
			n++;
			g_array_append_val(out, ((struct place){x->block, e}));
		}
		pthread_mutex_unlock(&s->lock);
	}
	g_array_sort(out, by_block);
}

static void wait_for_slots(struct writecache *wc)
{
	pthread_mutex_lock(&wc->lock);
	while (atomic_load(&wc->n_writeback) >= most_blocks(wc) && !wc_failed(wc))
		pthread_cond_wait(&wc->changed, &wc->lock);
	pthread_mutex_unlock(&wc->lock);
}

/* False: it cannot go now. */
static bool send(struct writecache *wc, const struct place *p)
{
	struct wc_shard *s = wc_shard_of(wc->ix, p->block);
	bool ok;

	pthread_mutex_lock(&s->lock);
	ok = wc->ix->entries[p->entry].block == p->block && can_go(wc, p->entry);
	if (ok)
		take(wc, s, p->entry);
	pthread_mutex_unlock(&s->lock);
	if (ok)
		start(wc, job_from(wc, p->entry, p->block));
	return ok;
}

/* One round; false: nothing is left.  What cannot go now is waited for, once. */
static bool send_all(struct writecache *wc, uint32_t begin, GArray *list)
{
	bool uncommitted, any = false;
	uint64_t seen;

	pthread_mutex_lock(&wc->lock);
	seen = wc->changes;
	pthread_mutex_unlock(&wc->lock);
	atomic_store(&wc->stuck, true);
	list_all(wc, begin, list, &uncommitted);
	for (guint i = 0; i < list->len && !wc_failed(wc); i++) {
		wait_for_slots(wc);
		any |= send(wc, &g_array_index(list, struct place, i));
	}
	if (uncommitted)
		dm_group_commit_sync(wc->commits);
	if (!any && !uncommitted && list->len) {
		pthread_mutex_lock(&wc->lock);
		while (seen == wc->changes && !wc_failed(wc))
			pthread_cond_wait(&wc->changed, &wc->lock);
		pthread_mutex_unlock(&wc->lock);
	}
	return uncommitted || list->len;
}

void wc_wait_writeback(struct writecache *wc)
{
	dm_block_begin();
	pthread_mutex_lock(&wc->lock);
	while (atomic_load(&wc->copies) || (atomic_load(&wc->n_writeback) && !wc_failed(wc)))
		pthread_cond_wait(&wc->changed, &wc->lock);
	pthread_mutex_unlock(&wc->lock);
	dm_block_end();
}

int wc_writeback_all(struct writecache *wc)
{
	g_autoptr(GArray) list = g_array_new(FALSE, FALSE, sizeof(struct place));
	uint32_t begin = wc_now_ms();

	atomic_store(&wc->all, true);
	dm_group_commit_sync(wc->commits);
	dm_block_begin();
	while (!wc_failed(wc) && send_all(wc, begin, list))
		;
	dm_block_end();
	wc_wait_writeback(wc);
	atomic_store(&wc->all, false);
	return wc_failed(wc) ? -EIO : 0;
}
