/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Timers: a binary heap ordered by due time (then by the order they were
 * armed in), and one thread, made with the first timer, that sleeps until the
 * head is due.  An armed timer costs no thread and no wake-up of its own.  One that is cancelled does not wake the thread,
 * which sleeps on to that time: who arms and cancels all the time, always for about as long, costs a wake-up each so long.
 */
#include <assert.h>
#include <glib.h>
#include <pthread.h>
#include <time.h>

#include <dmfs/io.h>
#include <dmfs/work.h>

static struct {
	pthread_mutex_t lock;
	pthread_cond_t wake, ran;
	GPtrArray *heap; /* of struct dm_timer; index 0 is unused */
	struct dm_timer *running;
	uint64_t seq;
	uint64_t asleep_until; /* the thread; 0: it is awake, and looks at the heap before it sleeps */
	bool started;
	pthread_t thread;
} timers = {.lock = PTHREAD_MUTEX_INITIALIZER, .ran = PTHREAD_COND_INITIALIZER};

#define AT(i) ((struct dm_timer *)g_ptr_array_index(timers.heap, i))

static bool earlier(const struct dm_timer *a, const struct dm_timer *b)
{
	return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->seq < b->seq;
}

static void place(struct dm_timer *t, unsigned i)
{
	timers.heap->pdata[i] = t;
	t->heap_index = i;
}

static void sift(struct dm_timer *t, unsigned i)
{
	unsigned n = timers.heap->len - 1;

	for (; i > 1 && earlier(t, AT(i / 2)); i /= 2)
		place(AT(i / 2), i);
	for (;;) {
		unsigned child = 2 * i;

		if (child > n)
			break;
		if (child < n && earlier(AT(child + 1), AT(child)))
			child++;
		if (!earlier(AT(child), t))
			break;
		place(AT(child), i);
		i = child;
	}
	place(t, i);
}

static void heap_remove(struct dm_timer *t)
{
	unsigned i = t->heap_index;
	struct dm_timer *last = AT(timers.heap->len - 1);

	g_ptr_array_set_size(timers.heap, (int)timers.heap->len - 1);
	t->heap_index = 0;
	if (last != t)
		sift(last, i);
}

static void *timer_thread(void *unused)
{
	pthread_mutex_lock(&timers.lock);
	for (;;) {
		struct dm_timer *t;
		uint64_t now;

		timers.asleep_until = 0;
		if (timers.heap->len == 1) {
			timers.asleep_until = UINT64_MAX;
			pthread_cond_wait(&timers.wake, &timers.lock);
			continue;
		}
		t = AT(1);
		now = dm_now_ns();
		if (t->due_ns > now) {
			struct timespec until = {(time_t)(t->due_ns / 1000000000), (long)(t->due_ns % 1000000000)};

			timers.asleep_until = t->due_ns;
			pthread_cond_timedwait(&timers.wake, &timers.lock, &until);
			continue;
		}
		heap_remove(t);
		timers.running = t;
		pthread_mutex_unlock(&timers.lock);
		t->fn(t);
		pthread_mutex_lock(&timers.lock);
		timers.running = NULL;
		pthread_cond_broadcast(&timers.ran);
	}
	return unused;
}

static void start(void)
{
	pthread_condattr_t attr;
	pthread_attr_t thread_attr;
	int error;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&timers.wake, &attr);
	pthread_condattr_destroy(&attr);
	timers.heap = g_ptr_array_new();
	g_ptr_array_add(timers.heap, NULL);
	timers.started = true;
	pthread_attr_init(&thread_attr);
	pthread_attr_setdetachstate(&thread_attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&thread_attr, 512 * 1024);
	error = pthread_create(&timers.thread, &thread_attr, timer_thread, NULL);
	pthread_attr_destroy(&thread_attr);
	if (error)
		g_error("no thread for timers: %s", g_strerror(error));
}

void dm_timer_arm(struct dm_timer *t, uint64_t due_ns)
{
	assert(t->fn);
	pthread_mutex_lock(&timers.lock);
	if (!timers.started)
		start();
	if (t->heap_index)
		heap_remove(t);
	t->due_ns = due_ns;
	t->seq = timers.seq++;
	g_ptr_array_add(timers.heap, t);
	sift(t, timers.heap->len - 1);
	if (due_ns < timers.asleep_until)
		pthread_cond_signal(&timers.wake);
	pthread_mutex_unlock(&timers.lock);
}

bool dm_timer_cancel(struct dm_timer *t)
{
	bool armed;

	pthread_mutex_lock(&timers.lock);
	armed = t->heap_index;
	if (armed)
		heap_remove(t);
	pthread_mutex_unlock(&timers.lock);
	return armed;
}

void dm_timer_cancel_sync(struct dm_timer *t)
{
	pthread_mutex_lock(&timers.lock);
	if (t->heap_index)
		heap_remove(t);
	if (timers.running == t) {
		assert(!pthread_equal(timers.thread, pthread_self()));
		pthread_mutex_unlock(&timers.lock); /* who hears of the waiting may arm a timer */
		dm_block_begin();
		pthread_mutex_lock(&timers.lock);
		while (timers.running == t)
			pthread_cond_wait(&timers.ran, &timers.lock);
		if (t->heap_index) /* it armed itself again */
			heap_remove(t);
		pthread_mutex_unlock(&timers.lock);
		dm_block_end();
		return;
	}
	pthread_mutex_unlock(&timers.lock);
}
