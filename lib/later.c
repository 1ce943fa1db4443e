/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bios that are submitted later (dmfs/later.h).
 *
 * A bio that waits has a timer; timers fire in the order of their times.  What is due goes to one list of ready bios
 * for all: they are taken off in order by one runner, a work that submits bios until there are none.
 * Should a submission wait for a disk, the runner first gives the bios it has not come to back, and another one
 * goes on; so a slow disk holds up neither other bios nor the timers.
 *
 * The owner of a dm_later may end with his last bio.  So nothing of it is touched after a bio has gone to the ready
 * list or has ended; and a bio whose timer runs already is left to it, for it is about to take the lock.
 *
 * Locks, the outer first: a dm_later's; an origin's, the timers'.
 */
#include <assert.h>
#include <errno.h>
#include <glib.h>
#include <pthread.h>

#include <dmfs/container_of.h>
#include <dmfs/hold.h>
#include <dmfs/io.h>
#include <dmfs/later.h>
#include <dmfs/work.h>

#define MAX_RUNNERS 64 /* that wait for disks at a time */

/* --- the ready bios ---------------------------------------------------------------- */

static struct {
	pthread_mutex_t lock;
	struct dm_bio_list list;
	bool running; /* a runner is there that will come back to the list */
	struct dm_wq *wq;
} ready = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* What a runner has taken off the list. */
struct runner {
	struct dm_bio_list bios;
	bool leads; /* no other has been started in its place */
};

static void run(struct dm_work *work);

static void make_queue(void)
{
	dm_bio_list_init(&ready.list);
	ready.wq = dm_wq_new("later", MAX_RUNNERS);
}

static void start_runner(void)
{
	struct dm_work *work = g_new0(struct dm_work, 1);

	work->fn = run;
	dm_wq_queue(ready.wq, work);
}

/* The runner's thread is about to wait: what it has not come to is for another. */
static void hand_over(void *context)
{
	struct runner *r = context;
	bool start;

	if (!r->leads)
		return;
	r->leads = false;
	pthread_mutex_lock(&ready.lock);
	dm_bio_list_take(&ready.list, &r->bios);
	dm_bio_list_take(&r->bios, &ready.list);
	start = ready.running = !dm_bio_list_empty(&ready.list);
	pthread_mutex_unlock(&ready.lock);
	if (start)
		start_runner();
}

static void run(struct dm_work *work)
{
	struct runner r = {.leads = true};
	struct dm_bio *bio;

	g_free(work);
	dm_bio_list_init(&r.bios);
	dm_block_set_hooks(hand_over, NULL, &r);
	while (r.leads) {
		pthread_mutex_lock(&ready.lock);
		dm_bio_list_take(&ready.list, &r.bios);
		r.leads = ready.running = !dm_bio_list_empty(&r.bios);
		pthread_mutex_unlock(&ready.lock);
		while ((bio = dm_bio_list_pop(&r.bios)))
			dm_submit(bio);
	}
	dm_block_set_hooks(NULL, NULL, NULL);
}

void dm_submit_async(struct dm_bio_list *bios)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	bool start;

	if (dm_bio_list_empty(bios))
		return;
	pthread_once(&once, make_queue);
	pthread_mutex_lock(&ready.lock);
	dm_bio_list_take(bios, &ready.list);
	start = !ready.running;
	ready.running = true;
	pthread_mutex_unlock(&ready.lock);
	if (start)
		start_runner();
}

/* --- those that are not due yet ---------------------------------------------------------- */

struct waiting {
	struct dm_held held; /* first; in the order they came */
	struct dm_timer timer;
	bool too_late; /* the origin was cancelled while the timer ran already: it goes on */
};

struct dm_later {
	pthread_mutex_t lock;
	struct dm_held *head, *tail;
	unsigned count;
	bool gone; /* nothing is kept */
};

static void put_in(struct dm_later *l, struct dm_held *held)
{
	held->kept = true;
	held->next = NULL;
	held->prev = l->tail;
	*(l->tail ? &l->tail->next : &l->head) = held;
	l->tail = held;
	l->count++;
}

static void take_out(struct dm_later *l, struct dm_held *held)
{
	*(held->prev ? &held->prev->next : &l->head) = held->next;
	*(held->next ? &held->next->prev : &l->tail) = held->prev;
	held->kept = false;
	l->count--;
}

static void due(struct dm_timer *timer)
{
	struct waiting *w = container_of(timer, struct waiting, timer);
	struct dm_later *l = w->held.keeper;
	struct dm_bio *bio = w->held.bio;
	struct dm_bio_list out;
	bool ours;

	pthread_mutex_lock(&l->lock);
	take_out(l, &w->held);
	ours = w->too_late || dm_held_end(&w->held);
	pthread_mutex_unlock(&l->lock);
	if (!ours)
		return;
	g_free(w);
	dm_bio_list_init(&out);
	dm_bio_list_add(&out, bio);
	dm_submit_async(&out);
}

static void cancel(struct dm_held *held)
{
	struct waiting *w = container_of(held, struct waiting, held);
	struct dm_later *l = held->keeper;
	struct dm_bio *bio = held->bio;

	pthread_mutex_lock(&l->lock);
	if (held->kept && !dm_timer_cancel(&w->timer)) {
		w->too_late = true;
		pthread_mutex_unlock(&l->lock);
		return;
	}
	if (held->kept)
		take_out(l, held);
	pthread_mutex_unlock(&l->lock);
	g_free(w);
	dm_bio_end(bio, -EINTR);
}

int dm_later_submit(struct dm_later *l, struct dm_bio *bio, uint64_t due_ns)
{
	struct waiting *w = g_new0(struct waiting, 1);
	int error;

	w->timer.fn = due;
	w->held.keeper = l;
	pthread_mutex_lock(&l->lock);
	error = l->gone || dm_ending() ? -EAGAIN : dm_held_begin(&w->held, bio, cancel);
	if (!error) {
		put_in(l, &w->held);
		dm_timer_arm(&w->timer, due_ns);
	}
	pthread_mutex_unlock(&l->lock);
	if (error)
		g_free(w);
	return error;
}

void dm_later_go(struct dm_later *l)
{
	struct dm_held *held, *next;
	struct dm_bio_list out;

	dm_bio_list_init(&out);
	pthread_mutex_lock(&l->lock);
	l->gone = true;
	for (held = l->head; held; held = next) {
		struct waiting *w = container_of(held, struct waiting, held);

		next = held->next;
		if (!dm_timer_cancel(&w->timer))
			continue;
		take_out(l, held);
		if (!dm_held_end(held))
			continue;
		dm_bio_list_add(&out, held->bio);
		g_free(w);
	}
	pthread_mutex_unlock(&l->lock);
	dm_submit_async(&out);
}

void dm_later_keep(struct dm_later *l)
{
	pthread_mutex_lock(&l->lock);
	l->gone = false;
	pthread_mutex_unlock(&l->lock);
}

unsigned dm_later_count(struct dm_later *l)
{
	unsigned count;

	pthread_mutex_lock(&l->lock);
	count = l->count;
	pthread_mutex_unlock(&l->lock);
	return count;
}

struct dm_later *dm_later_new(void)
{
	struct dm_later *l = g_new0(struct dm_later, 1);

	pthread_mutex_init(&l->lock, NULL);
	return l;
}

void dm_later_free(struct dm_later *l)
{
	if (!l)
		return;
	/* Who took the last bio out may not have unlocked yet. */
	pthread_mutex_lock(&l->lock);
	assert(!l->head);
	pthread_mutex_unlock(&l->lock);
	pthread_mutex_destroy(&l->lock);
	g_free(l);
}
