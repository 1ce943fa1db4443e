/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A counter that each CPU adds to at a place of its own: the sum is exact once all are done, and never below 0. */
#include "unit.h"

#include <dmfs/counter.h>

#define THREADS 4
#define ROUNDS 20000

static void test_one_thread(void **state)
{
	struct dm_counter c = {0};

	assert_int_equal(dm_counter_sum(&c), 0);
	dm_counter_add(&c, 3);
	dm_counter_add(&c, INT64_MAX - 3);
	assert_true(dm_counter_sum(&c) == INT64_MAX);
	dm_counter_add(&c, -INT64_MAX);
	assert_int_equal(dm_counter_sum(&c), 0);
	dm_counter_add(&c, -1);
	assert_int_equal(dm_counter_sum(&c), 0);
}

/* Half of them add, the others take away, wherever they run; what is looked at meanwhile is in range. */
static void *add(void *data)
{
	struct dm_counter *c = data;

	for (unsigned i = 0; i < ROUNDS; i++) {
		dm_counter_add(c, 5);
		if (dm_counter_sum(c) > 5 * THREADS * ROUNDS)
			abort();
	}
	return NULL;
}

static void *take(void *data)
{
	for (unsigned i = 0; i < ROUNDS; i++)
		dm_counter_add(data, -4);
	return NULL;
}

static void test_many_threads(void **state)
{
	struct dm_counter c = {0};
	pthread_t threads[THREADS];

	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, i % 2 ? take : add, &c), 0);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(dm_counter_sum(&c), (5 - 4) * THREADS / 2 * ROUNDS);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_one_thread),
		cmocka_unit_test(test_many_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
