/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Work queues and timers alone: order, how many at once, what waits for what, and works and timers that begin anew. */
#include "unit.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <dmfs/work.h>

/* --- a place to meet ------------------------------------------------------------------------- */

struct event {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned count;
};

static void event_init(struct event *e)
{
	pthread_mutex_init(&e->lock, NULL);
	pthread_cond_init(&e->cond, NULL);
	e->count = 0;
}

static void event_raise(struct event *e)
{
	pthread_mutex_lock(&e->lock);
	e->count++;
	pthread_cond_broadcast(&e->cond);
	pthread_mutex_unlock(&e->lock);
}

static void event_wait(struct event *e, unsigned count)
{
	pthread_mutex_lock(&e->lock);
	while (e->count < count)
		pthread_cond_wait(&e->cond, &e->lock);
	pthread_mutex_unlock(&e->lock);
}

/* --- work -------------------------------------------------------------------------------------- */

#define MANY 2000u

struct numbered {
	struct dm_work work; /* first */
	unsigned nr;
};

static unsigned order[MANY], done;

static void note_number(struct dm_work *work)
{
	order[done++] = ((struct numbered *)work)->nr; /* no lock: one at a time is what is promised */
}

static void one_at_a_time_in_order(void **state)
{
	static struct numbered works[MANY];
	struct dm_wq *wq = dm_wq_new("test", 1);

	done = 0;
	for (unsigned i = 0; i < MANY; i++) {
		works[i] = (struct numbered){{.fn = note_number}, i};
		assert_true(dm_wq_queue(wq, &works[i].work));
	}
	dm_wq_flush(wq);
	assert_int_equal(done, MANY);
	for (unsigned i = 0; i < MANY; i++)
		assert_int_equal(order[i], i);
	dm_wq_free(wq);
}

static struct event began, may_end;
static atomic_uint inside, most;

static void wait_inside(struct dm_work *work)
{
	unsigned now = atomic_fetch_add(&inside, 1) + 1, old = atomic_load(&most);

	while (old < now && !atomic_compare_exchange_weak(&most, &old, now))
		;
	event_raise(&began);
	event_wait(&may_end, 1);
	atomic_fetch_sub(&inside, 1);
}

static void as_many_at_once_as_may_be(void **state)
{
	struct dm_work works[9];
	struct dm_wq *wq = dm_wq_new("test", 3);

	event_init(&began);
	event_init(&may_end);
	atomic_store(&most, 0);
	for (unsigned i = 0; i < 9; i++) {
		works[i] = (struct dm_work){.fn = wait_inside};
		dm_wq_queue(wq, &works[i]);
	}
	event_wait(&began, 3);
	assert_int_equal(atomic_load(&inside), 3);
	event_raise(&may_end);
	dm_wq_flush(wq);
	assert_int_equal(began.count, 9);
	assert_in_range(atomic_load(&most), 3, 3);
	dm_wq_free(wq);
}

/* A queue that is full of work that waits does not hold up another one. */
static void queues_do_not_wait_for_each_other(void **state)
{
	struct dm_work stuck[4];
	struct dm_wq *full = dm_wq_new("full", 4), *free_one = dm_wq_new("free", 1);
	struct numbered n = {{.fn = note_number}, 7};

	event_init(&began);
	event_init(&may_end);
	for (unsigned i = 0; i < 4; i++) {
		stuck[i] = (struct dm_work){.fn = wait_inside};
		dm_wq_queue(full, &stuck[i]);
	}
	event_wait(&began, 4);
	done = 0;
	dm_wq_queue(free_one, &n.work);
	dm_wq_flush_work(free_one, &n.work);
	assert_int_equal(done, 1);
	event_raise(&may_end);
	dm_wq_free(full);
	dm_wq_free(free_one);
}

struct again {
	struct dm_work work; /* first */
	struct dm_wq *wq;
	unsigned left;
};

static void run_again(struct dm_work *work)
{
	struct again *a = (struct again *)work;

	if (!--a->left)
		return;
	assert_true(dm_wq_queue(a->wq, work));
	assert_false(dm_wq_queue(a->wq, work)); /* it is queued already */
}

static void a_work_queues_itself_and_a_flush_waits_for_that(void **state)
{
	struct dm_wq *wq = dm_wq_new("test", 1); /* with more, it may run again before it has ended */
	struct again a = {{.fn = run_again}, wq, 500};

	assert_true(dm_wq_queue(wq, &a.work));
	dm_wq_flush(wq);
	assert_int_equal(a.left, 0);
	a.left = 300;
	dm_wq_queue(wq, &a.work);
	dm_wq_flush_work(wq, &a.work);
	assert_int_equal(a.left, 0);
	dm_wq_free(wq);
}

static atomic_uint freed;

static void free_itself(struct dm_work *work)
{
	memset(work, 0xdd, sizeof *work);
	g_free(work);
	atomic_fetch_add(&freed, 1);
}

static void a_work_may_free_itself(void **state)
{
	struct dm_wq *wq = dm_wq_new("test", 2);

	atomic_store(&freed, 0);
	for (unsigned i = 0; i < MANY; i++) {
		struct dm_work *work = g_new0(struct dm_work, 1);

		work->fn = free_itself;
		dm_wq_queue(wq, work);
	}
	dm_wq_free(wq); /* waits for all */
	assert_int_equal(atomic_load(&freed), MANY);
}

static void count_run(struct dm_work *work)
{
	atomic_fetch_add(&freed, 1);
}

static void *queue_often(void *data)
{
	struct again *a = data;
	unsigned taken = 0;

	for (unsigned i = 0; i < MANY; i++)
		taken += dm_wq_queue(a->wq, &a->work);
	return GUINT_TO_POINTER(taken);
}

/* Each true means one run, however the threads meet. */
static void queued_once_runs_once(void **state)
{
	struct dm_wq *wq = dm_wq_new("test", 2);
	struct again a = {{.fn = count_run}, wq, 0};
	GThread *threads[4];
	unsigned taken = 0;

	atomic_store(&freed, 0);
	for (unsigned i = 0; i < 4; i++)
		threads[i] = g_thread_new("queue", queue_often, &a);
	for (unsigned i = 0; i < 4; i++)
		taken += GPOINTER_TO_UINT(g_thread_join(threads[i]));
	dm_wq_flush(wq);
	assert_int_equal(atomic_load(&freed), taken);
	dm_wq_free(wq);
}

/* --- what must not be ------------------------------------------------------------------------------ */

static struct dm_wq *own;

static void flush_own(struct dm_work *work)
{
	dm_wq_flush(own);
}

/* Whether it ends by an assertion, in a process of its own. */
static bool aborts(void (*fn)(void))
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
		signal(SIGABRT, SIG_DFL);
		if (!freopen("/dev/null", "w", stderr))
			_exit(1);
		alarm(300);
		fn();
		_exit(0);
	}
	assert_true(pid > 0 && waitpid(pid, &status, 0) == pid);
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void flush_from_inside(void)
{
	struct dm_work work = {.fn = flush_own};

	own = dm_wq_new("own", 2);
	dm_wq_queue(own, &work);
	dm_wq_flush(own);
}

static void cancel_itself(struct dm_timer *t)
{
	dm_timer_cancel_sync(t);
}

static void cancel_from_inside(void)
{
	struct dm_timer t = {.fn = cancel_itself};

	dm_timer_arm(&t, 0);
	pause();
}

static void who_would_wait_for_himself_is_told(void **state)
{
	assert_true(aborts(flush_from_inside));
	assert_true(aborts(cancel_from_inside));
}

/* --- timers ------------------------------------------------------------------------------------------ */

#define TIMERS 1000u
#define MS UINT64_C(1000000)

struct alarm {
	struct dm_timer timer; /* first */
	unsigned nr;
};

static struct event rang;
static unsigned ring_order[TIMERS];
static uint64_t too_early;

static void ring(struct dm_timer *t)
{
	uint64_t now = dm_now_ns();

	if (now < t->due_ns)
		too_early++;
	ring_order[rang.count] = ((struct alarm *)t)->nr; /* the timer thread alone raises it */
	event_raise(&rang);
}

static int by_due(const void *a, const void *b)
{
	const struct alarm *x = *(struct alarm *const *)a, *y = *(struct alarm *const *)b;

	return x->timer.due_ns < y->timer.due_ns ? -1 : x->timer.due_ns > y->timer.due_ns ? 1 : x->nr < y->nr ? -1 : 1;
}

/* Armed in any order, some moved, some taken back; those due at the same time in the order they were armed. */
static void timers_fire_in_order(void **state)
{
	static struct alarm alarms[TIMERS];
	static struct alarm *want[TIMERS];
	uint64_t begin, wait_ms = 50;
	unsigned n = 0;

	srandom(1);
	event_init(&rang);
	too_early = 0;
	for (unsigned i = 0; i < TIMERS; i++)
		alarms[i] = (struct alarm){{.fn = ring}, i};
	do { /* all are armed, and some taken back, before the first is due */
		wait_ms *= 2;
		begin = dm_now_ns() + wait_ms * MS;
		for (unsigned i = 0; i < TIMERS; i++)
			dm_timer_cancel_sync(&alarms[i].timer);
		rang.count = 0;
		for (unsigned i = 0; i < TIMERS; i += 3)
			dm_timer_arm(&alarms[i].timer, begin + 1000 * wait_ms * MS);
		for (unsigned i = 0; i < TIMERS; i++)
			dm_timer_arm(&alarms[i].timer, begin + (uint64_t)(random() % 50) * MS / 10);
		for (unsigned i = 1; i < TIMERS; i += 7)
			dm_timer_cancel(&alarms[i].timer);
	} while (dm_now_ns() >= begin);
	for (unsigned i = 0; i < TIMERS; i++)
		if (i % 7 != 1)
			want[n++] = &alarms[i];
	qsort(want, n, sizeof want[0], by_due);
	event_wait(&rang, n);
	assert_int_equal(rang.count, n);
	assert_int_equal(too_early, 0);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(ring_order[i], want[i]->nr);
	for (unsigned i = 0; i < TIMERS; i++)
		assert_false(dm_timer_cancel(&alarms[i].timer));
}

struct repeater {
	struct dm_timer timer; /* first */
	unsigned left;
	struct event over;
};

static void repeat(struct dm_timer *t)
{
	struct repeater *r = (struct repeater *)t;

	if (--r->left)
		dm_timer_arm(t, dm_now_ns());
	else
		event_raise(&r->over);
}

static void a_timer_arms_itself(void **state)
{
	struct repeater r = {{.fn = repeat}, 100, {.count = 0}};

	event_init(&r.over);
	dm_timer_arm(&r.timer, 0); /* long past */
	event_wait(&r.over, 1);
	assert_int_equal(r.left, 0);
	dm_timer_cancel_sync(&r.timer);
}

static atomic_bool running_long;

static void run_long(struct dm_timer *t)
{
	event_raise(&began);
	event_wait(&may_end, 1);
	dm_timer_arm(t, dm_now_ns() + 1000000 * MS); /* the cancel takes that back, too */
	atomic_store(&running_long, false);
}

static void *let_end(void *unused)
{
	event_raise(&may_end);
	return unused;
}

static void a_cancel_waits_for_what_runs(void **state)
{
	struct dm_timer t = {.fn = run_long};
	GThread *thread;

	event_init(&began);
	event_init(&may_end);
	atomic_store(&running_long, true);
	dm_timer_arm(&t, 0);
	event_wait(&began, 1);
	assert_false(dm_timer_cancel(&t)); /* it runs: not armed */
	assert_true(atomic_load(&running_long));
	thread = g_thread_new("let end", let_end, NULL);
	dm_timer_cancel_sync(&t);
	assert_false(atomic_load(&running_long));
	assert_false(dm_timer_cancel(&t));
	g_thread_join(thread);
}

static void a_cancelled_timer_never_fires(void **state)
{
	event_init(&rang);
	for (unsigned i = 0; i < TIMERS; i++) {
		struct alarm a = {{.fn = ring}, i};
		unsigned before = rang.count;

		dm_timer_arm(&a.timer, dm_now_ns() + (i % 3) * 10000); /* about to fire, or just has */
		if (dm_timer_cancel(&a.timer)) {
			dm_timer_cancel_sync(&a.timer);
			assert_int_equal(rang.count, before);
		} else {
			dm_timer_cancel_sync(&a.timer);
			assert_int_equal(rang.count, before + 1);
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_would_wait_for_himself_is_told), /* first: it forks, before there are threads */
		cmocka_unit_test(one_at_a_time_in_order),
		cmocka_unit_test(as_many_at_once_as_may_be),
		cmocka_unit_test(queues_do_not_wait_for_each_other),
		cmocka_unit_test(a_work_queues_itself_and_a_flush_waits_for_that),
		cmocka_unit_test(a_work_may_free_itself),
		cmocka_unit_test(queued_once_runs_once),
		cmocka_unit_test(timers_fire_in_order),
		cmocka_unit_test(a_timer_arms_itself),
		cmocka_unit_test(a_cancel_waits_for_what_runs),
		cmocka_unit_test(a_cancelled_timer_never_fires),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
