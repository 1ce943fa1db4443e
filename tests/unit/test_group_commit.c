/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Group commit: each gets a commit that began after he asked, and those who come while one runs share the next. */
#include "unit.h"

#include <dmfs/container_of.h>
#include <dmfs/group_commit.h>
#include <pthread.h>
#include <stdlib.h>

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct dm_wq *wq;
	struct dm_group_commit *gc;
	unsigned commits;  /* begun */
	unsigned told;
	bool hold; /* commits do not end */
	int error;
} t = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

struct one {
	struct dm_commit_wait wait;
	unsigned asked_at, told_at;
	int error;
};

static int commit(void *context)
{
	int error;

	assert_ptr_equal(context, &t);
	pthread_mutex_lock(&t.lock);
	t.commits++;
	pthread_cond_broadcast(&t.changed);
	while (t.hold)
		pthread_cond_wait(&t.changed, &t.lock);
	error = t.error;
	pthread_mutex_unlock(&t.lock);
	return error;
}

static void told(struct dm_commit_wait *wait, int error)
{
	struct one *o = container_of(wait, struct one, wait);

	pthread_mutex_lock(&t.lock);
	o->told_at = t.commits;
	o->error = error;
	t.told++;
	pthread_cond_broadcast(&t.changed);
	pthread_mutex_unlock(&t.lock);
}

static void wait_until(unsigned *what, unsigned n)
{
	pthread_mutex_lock(&t.lock);
	while (*what < n)
		pthread_cond_wait(&t.changed, &t.lock);
	pthread_mutex_unlock(&t.lock);
}

static void set_hold(bool hold)
{
	pthread_mutex_lock(&t.lock);
	t.hold = hold;
	pthread_cond_broadcast(&t.changed);
	pthread_mutex_unlock(&t.lock);
}

static void ask(struct one *o)
{
	o->wait.done = told;
	pthread_mutex_lock(&t.lock);
	o->asked_at = t.commits;
	pthread_mutex_unlock(&t.lock);
	dm_group_commit(t.gc, &o->wait);
}

static int begin(void **state)
{
	t.commits = t.told = 0;
	t.error = 0;
	t.wq = dm_wq_new("commit", 1);
	t.gc = dm_group_commit_new(t.wq, commit, &t);
	return 0;
}

static int end(void **state)
{
	dm_group_commit_free(t.gc);
	dm_wq_free(t.wq);
	return 0;
}

static void who_comes_meanwhile_shares_the_next(void **state)
{
	struct one o[100] = {0};

	(void)state;
	set_hold(true);
	ask(&o[0]);
	wait_until(&t.commits, 1);
	for (unsigned i = 1; i < 100; i++)
		ask(&o[i]);
	set_hold(false);
	wait_until(&t.told, 100);
	assert_int_equal(t.commits, 2);
	assert_int_equal(o[0].told_at, 1);
	for (unsigned i = 1; i < 100; i++)
		assert_int_equal(o[i].told_at, 2);
}

static void all_hear_of_an_error(void **state)
{
	struct one o[3] = {0};

	(void)state;
	set_hold(true);
	ask(&o[0]);
	wait_until(&t.commits, 1);
	ask(&o[1]);
	ask(&o[2]);
	t.error = -ENOSPC;
	set_hold(false);
	wait_until(&t.told, 3);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(o[i].error, -ENOSPC);
	assert_int_equal(dm_group_commit_sync(t.gc), -ENOSPC);
	t.error = 0;
	assert_int_equal(dm_group_commit_sync(t.gc), 0);
}

static void one_commit_for_many_soons(void **state)
{
	(void)state;
	dm_group_commit_soon(t.gc, 30000000);
	for (unsigned i = 0; i < 1000; i++)
		dm_group_commit_soon(t.gc, 3600000000000);
	assert_int_equal(t.commits, 0);
	wait_until(&t.commits, 1); /* the first one's time counts: others do not put it off */
	dm_group_commit_settle(t.gc);
	/* who asks for one at once makes it for those who wanted one soon */
	dm_group_commit_soon(t.gc, 3600000000000);
	assert_int_equal(dm_group_commit_sync(t.gc), 0);
	assert_int_equal(t.commits, 2);
	dm_group_commit_soon(t.gc, 1000000);
	wait_until(&t.commits, 3);
	dm_group_commit_soon(t.gc, 3600000000000); /* goes with the end */
}

#define THREADS 4
#define ROUNDS 2000

static void *ask_often(void *data)
{
	for (unsigned i = 0; i < ROUNDS; i++) {
		unsigned before;

		pthread_mutex_lock(&t.lock);
		before = t.commits;
		pthread_mutex_unlock(&t.lock);
		if (i % 3 == 0)
			dm_group_commit_soon(t.gc, 1000);
		if (dm_group_commit_sync(t.gc))
			abort();
		pthread_mutex_lock(&t.lock);
		if (t.commits == before) /* it must have begun after we asked */
			abort();
		pthread_mutex_unlock(&t.lock);
	}
	return data;
}

static void from_many_threads(void **state)
{
	pthread_t threads[THREADS];

	(void)state;
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, ask_often, NULL), 0);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	assert_true(t.commits <= THREADS * ROUNDS * 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(who_comes_meanwhile_shares_the_next, begin, end),
		cmocka_unit_test_setup_teardown(all_hear_of_an_error, begin, end),
		cmocka_unit_test_setup_teardown(one_commit_for_many_soons, begin, end),
		cmocka_unit_test_setup_teardown(from_many_threads, begin, end),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
