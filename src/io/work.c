/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Work queues on a shared pool of threads.
 *
 * A queue has its own lock and list.  When it gets work and fewer than
 * max_active of its runners are under way, one more runner is handed to the
 * pool; a runner takes works off the list until it is empty.  So the pool's
 * lock is taken when a queue wakes up, not for every work.
 *
 * Pool threads are made when there is a runner and no idle thread, and end
 * after IDLE_SECONDS without one.
 */
#include <assert.h>
#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <time.h>

#include <dmfs/log.h>
#include <dmfs/work.h>

#define IDLE_SECONDS 5
#define STACK_BYTES (512 * 1024)

/* What a runner is doing, on its stack. */
struct running {
	struct dm_work *work;
	pthread_t thread;
	struct running *next;
};

struct dm_wq {
	pthread_mutex_t lock;
	pthread_cond_t idle;
	struct dm_work *head, **tail;
	struct running *running;
	unsigned active, max_active, flushing;
	unsigned waiting_runners; /* guarded by pool.lock */
	struct dm_wq *next;       /* in the pool's list, when waiting_runners > 0 */
	char name[16];
};

static struct {
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct dm_wq *head, **tail;
	unsigned idle, waiting;
} pool = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, NULL, &pool.head, 0, 0};

static _Thread_local struct dm_wq *working_for; /* the queue whose work this thread is in */

static void unlink_running(struct dm_wq *wq, struct running *me)
{
	struct running **p = &wq->running;

	while (*p != me)
		p = &(*p)->next;
	*p = me->next;
	if (wq->flushing)
		pthread_cond_broadcast(&wq->idle);
}

static void run_queue(struct dm_wq *wq)
{
	struct running me;

	pthread_mutex_lock(&wq->lock);
	for (;;) {
		struct dm_work *work = wq->head;

		if (!work)
			break;
		if (!(wq->head = work->next))
			wq->tail = &wq->head;
		__atomic_store_n(&work->pending, 0, __ATOMIC_RELEASE);
		me = (struct running){work, pthread_self(), wq->running};
		wq->running = &me;
		pthread_mutex_unlock(&wq->lock);
		working_for = wq;
		work->fn(work);
		working_for = NULL;
		pthread_mutex_lock(&wq->lock);
		unlink_running(wq, &me);
	}
	wq->active--;
	pthread_cond_broadcast(&wq->idle);
	pthread_mutex_unlock(&wq->lock);
}

static struct dm_wq *next_runner(void)
{
	struct dm_wq *wq = pool.head;

	if (!wq)
		return NULL;
	pool.waiting--;
	if (--wq->waiting_runners == 0 && !(pool.head = wq->next))
		pool.tail = &pool.head;
	return wq;
}

static void *pool_thread(void *unused)
{
	pthread_mutex_lock(&pool.lock);
	for (;;) {
		struct dm_wq *wq = next_runner();
		struct timespec until;

		if (wq) {
			pthread_mutex_unlock(&pool.lock);
			run_queue(wq);
			pthread_mutex_lock(&pool.lock);
			continue;
		}
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += IDLE_SECONDS;
		pool.idle++;
		if (pthread_cond_timedwait(&pool.wake, &pool.lock, &until) == ETIMEDOUT && !pool.head) {
			pool.idle--;
			break;
		}
		pool.idle--;
	}
	pthread_mutex_unlock(&pool.lock);
	return unused;
}

static void start_thread(void)
{
	pthread_attr_t attr;
	pthread_t thread;
	int error;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	error = pthread_create(&thread, &attr, pool_thread, NULL);
	pthread_attr_destroy(&attr);
	if (error) /* the threads there are will come to it */
		dm_log_err_limit("no thread for a work queue: %s", g_strerror(error));
}

/* One more runner for wq; wq->active counts it already. */
static void start_runner(struct dm_wq *wq)
{
	bool more;

	pthread_mutex_lock(&pool.lock);
	if (wq->waiting_runners++ == 0) {
		wq->next = NULL;
		*pool.tail = wq;
		pool.tail = &wq->next;
	}
	pool.waiting++;
	more = pool.waiting > pool.idle;
	pthread_mutex_unlock(&pool.lock);
	pthread_cond_signal(&pool.wake); /* without the lock, for which who wakes up would have to wait */
	if (more)
		start_thread();
}

struct dm_wq *dm_wq_new(const char *name, unsigned max_active)
{
	struct dm_wq *wq = g_new0(struct dm_wq, 1);

	assert(max_active > 0);
	pthread_mutex_init(&wq->lock, NULL);
	pthread_cond_init(&wq->idle, NULL);
	wq->tail = &wq->head;
	wq->max_active = max_active;
	g_strlcpy(wq->name, name, sizeof wq->name);
	return wq;
}

bool dm_wq_queue(struct dm_wq *wq, struct dm_work *work)
{
	bool start = false;

	pthread_mutex_lock(&wq->lock);
	if (__atomic_load_n(&work->pending, __ATOMIC_ACQUIRE)) {
		pthread_mutex_unlock(&wq->lock);
		return false;
	}
	__atomic_store_n(&work->pending, 1, __ATOMIC_RELAXED);
	work->next = NULL;
	*wq->tail = work;
	wq->tail = &work->next;
	if (wq->active < wq->max_active) {
		wq->active++;
		start = true;
	}
	pthread_mutex_unlock(&wq->lock);
	if (start)
		start_runner(wq);
	return true;
}

void dm_wq_assert_outside(struct dm_wq *wq)
{
	assert(working_for != wq);
}

void dm_wq_flush(struct dm_wq *wq)
{
	dm_wq_assert_outside(wq);
	pthread_mutex_lock(&wq->lock);
	while (wq->active || wq->head)
		pthread_cond_wait(&wq->idle, &wq->lock);
	pthread_mutex_unlock(&wq->lock);
}

static bool is_running(struct dm_wq *wq, struct dm_work *work)
{
	for (struct running *r = wq->running; r; r = r->next)
		if (r->work == work)
			return true;
	return false;
}

void dm_wq_flush_work(struct dm_wq *wq, struct dm_work *work)
{
	pthread_mutex_lock(&wq->lock);
	for (struct running *r = wq->running; r; r = r->next)
		assert(r->work != work || !pthread_equal(r->thread, pthread_self()));
	wq->flushing++;
	while (work->pending || is_running(wq, work))
		pthread_cond_wait(&wq->idle, &wq->lock);
	wq->flushing--;
	pthread_mutex_unlock(&wq->lock);
}

void dm_wq_free(struct dm_wq *wq)
{
	if (!wq)
		return;
	dm_wq_flush(wq);
	pthread_mutex_destroy(&wq->lock);
	pthread_cond_destroy(&wq->idle);
	g_free(wq);
}

uint64_t dm_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}
