/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Runs that are spread over cores: each piece is worked on once, whoever does it, and the last one may free the
 * context. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include <dmfs/spread.h>

#define THREADS 4
#define RUNS 300

struct waiter {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool done;
};

struct context {
	struct waiter *waiter;
	unsigned pieces;
	atomic_uint left;
	atomic_uint seen[];
};

static void piece(void *data, unsigned nr)
{
	struct context *c = data;
	struct waiter *w = c->waiter;

	if (nr >= c->pieces || atomic_fetch_add(&c->seen[nr], 1))
		abort();
	if (atomic_fetch_sub(&c->left, 1) > 1)
		return;
	g_free(c);
	pthread_mutex_lock(&w->lock);
	w->done = true;
	pthread_cond_signal(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

static void run(unsigned pieces, bool help)
{
	struct waiter w = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
	struct context *c = g_malloc0(sizeof(*c) + pieces * sizeof(c->seen[0]));

	c->waiter = &w;
	c->pieces = pieces;
	atomic_init(&c->left, pieces);
	dm_spread_start(&(struct dm_spread_run){piece, c, pieces}, help);
	pthread_mutex_lock(&w.lock);
	while (!w.done)
		pthread_cond_wait(&w.cond, &w.lock);
	pthread_mutex_unlock(&w.lock);
}

static void *runs(void *unused)
{
	for (unsigned i = 0; i < RUNS; i++)
		run(1 + i % 40, dm_spread_pays(1000000));
	return unused;
}

static void test_many_runs(void **state)
{
	pthread_t threads[THREADS];

	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, runs, NULL), 0);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
}

static void test_alone(void **state)
{
	run(1, false);
	run(17, false);
	if (dm_spread_pays(1000000))
		run(1, true);
}

/* Small runs are not worth it; large ones are, if there is more than one CPU. */
static void test_what_pays(void **state)
{
	assert_false(dm_spread_pays(1000));
	assert_int_equal(dm_spread_pays(10000000), g_get_num_processors() > 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_what_pays),
	    cmocka_unit_test(test_alone),
	    cmocka_unit_test(test_many_runs),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
