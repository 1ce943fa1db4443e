/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Group commit (dmfs/group_commit.h): a list of those who wait, taken as a whole by the work that commits. */
#include <assert.h>
#include <glib.h>
#include <pthread.h>

#include <dmfs/completion.h>
#include <dmfs/container_of.h>
#include <dmfs/group_commit.h>
#include <dmfs/io.h>

struct dm_group_commit {
	int (*commit)(void *context);
	void *context;
	struct dm_wq *wq;
	struct dm_work work;
	struct dm_timer timer;
	pthread_mutex_t lock; /* for what follows */
	struct dm_commit_wait *head, **tail;
	unsigned queuing; /* callers who have not queued the work yet, though another may have done theirs */
	pthread_cond_t queued;
	bool armed; /* the timer */
	bool due;   /* it has fired */
};

static void run(struct dm_work *work)
{
	struct dm_group_commit *gc = container_of(work, struct dm_group_commit, work);
	struct dm_commit_wait *wait;
	bool wanted;
	int error;

	pthread_mutex_lock(&gc->lock);
	wait = gc->head;
	gc->head = NULL;
	gc->tail = &gc->head;
	wanted = wait || gc->due;
	gc->due = false;
	if (wanted && gc->armed && dm_timer_cancel(&gc->timer)) /* what it would do is done now */
		gc->armed = false;
	pthread_mutex_unlock(&gc->lock);
	if (!wanted)
		return;
	error = gc->commit(gc->context);
	while (wait) {
		struct dm_commit_wait *next = wait->next;

		wait->done(wait, error);
		wait = next;
	}
}

static void fire(struct dm_timer *timer)
{
	struct dm_group_commit *gc = container_of(timer, struct dm_group_commit, timer);

	pthread_mutex_lock(&gc->lock);
	gc->armed = false;
	gc->due = true;
	pthread_mutex_unlock(&gc->lock);
	dm_wq_queue(gc->wq, &gc->work);
}

void dm_group_commit(struct dm_group_commit *gc, struct dm_commit_wait *wait)
{
	pthread_mutex_lock(&gc->lock);
	wait->next = NULL;
	*gc->tail = wait;
	gc->tail = &wait->next;
	gc->queuing++; /* once the wait has been told, its owner may take all of this away */
	pthread_mutex_unlock(&gc->lock);
	dm_wq_queue(gc->wq, &gc->work); /* without the lock, which is the first thing that who wakes up asks for */
	pthread_mutex_lock(&gc->lock);
	if (!--gc->queuing)
		pthread_cond_broadcast(&gc->queued);
	pthread_mutex_unlock(&gc->lock);
}

void dm_group_commit_soon(struct dm_group_commit *gc, uint64_t within_ns)
{
	pthread_mutex_lock(&gc->lock);
	if (!gc->armed && !gc->due) {
		gc->armed = true;
		dm_timer_arm(&gc->timer, dm_now_ns() + within_ns);
	}
	pthread_mutex_unlock(&gc->lock);
}

/* --- who waits himself --- */

struct waiter {
	struct dm_commit_wait wait;
	struct dm_completion done;
	int error;
};

static void wake(struct dm_commit_wait *wait, int error)
{
	struct waiter *w = container_of(wait, struct waiter, wait);

	w->error = error;
	dm_complete(&w->done);
}

int dm_group_commit_sync(struct dm_group_commit *gc)
{
	struct waiter w = {.wait.done = wake, .done = DM_COMPLETION_INIT};

	dm_group_commit(gc, &w.wait);
	dm_completion_wait(&w.done);
	return w.error;
}

void dm_group_commit_settle(struct dm_group_commit *gc)
{
	dm_timer_cancel_sync(&gc->timer);
	pthread_mutex_lock(&gc->lock);
	gc->armed = false;
	pthread_mutex_unlock(&gc->lock);
	dm_block_begin();
	dm_wq_flush_work(gc->wq, &gc->work);
	dm_block_end();
}

/* --- life --- */

struct dm_group_commit *dm_group_commit_new(struct dm_wq *wq, int (*commit)(void *context), void *context)
{
	struct dm_group_commit *gc = g_new0(struct dm_group_commit, 1);

	gc->wq = wq;
	gc->commit = commit;
	gc->context = context;
	gc->work.fn = run;
	gc->timer.fn = fire;
	gc->tail = &gc->head;
	pthread_mutex_init(&gc->lock, NULL);
	pthread_cond_init(&gc->queued, NULL);
	return gc;
}

void dm_group_commit_free(struct dm_group_commit *gc)
{
	if (!gc)
		return;
	pthread_mutex_lock(&gc->lock);
	while (gc->queuing) /* of those who asked last */
		pthread_cond_wait(&gc->queued, &gc->lock);
	pthread_mutex_unlock(&gc->lock);
	dm_group_commit_settle(gc);
	assert(!gc->head);
	pthread_cond_destroy(&gc->queued);
	pthread_mutex_destroy(&gc->lock);
	g_free(gc);
}
