/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Waiting for what is under way. */
#include "unit.h"

#include <dmfs/under_way.h>

#include <stdatomic.h>

#define MANY 1000u

static struct dm_under_way under_way;
static atomic_uint ended;

static void *end_them(void *unused)
{
	for (unsigned i = 0; i < MANY; i++) {
		atomic_fetch_add(&ended, 1);
		dm_under_way_end(&under_way);
	}
	return NULL;
}

static void a_wait_is_over_when_all_have_ended(void **state)
{
	pthread_t threads[2];

	dm_under_way_init(&under_way);
	dm_under_way_wait(&under_way); /* there are none */
	for (unsigned round = 1; round <= 20; round++) {
		dm_under_way_add(&under_way, 2 * MANY);
		for (unsigned i = 0; i < 2; i++)
			assert_int_equal(pthread_create(&threads[i], NULL, end_them, NULL), 0);
		dm_under_way_wait(&under_way);
		assert_int_equal(atomic_load(&ended), round * 2 * MANY);
		for (unsigned i = 0; i < 2; i++)
			pthread_join(threads[i], NULL);
	}
	dm_under_way_destroy(&under_way);
}

static void there_may_be_a_limit(void **state)
{
	dm_under_way_init(&under_way);
	assert_true(dm_under_way_try(&under_way, 2));
	assert_true(dm_under_way_try(&under_way, 2));
	assert_false(dm_under_way_try(&under_way, 2));
	dm_under_way_end(&under_way);
	assert_true(dm_under_way_try(&under_way, 2));
	dm_under_way_add(&under_way, 3); /* what must be is counted all the same */
	assert_false(dm_under_way_try(&under_way, 5));
	for (unsigned i = 0; i < 5; i++)
		dm_under_way_end(&under_way);
	dm_under_way_wait(&under_way);
	dm_under_way_destroy(&under_way);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_wait_is_over_when_all_have_ended),
		cmocka_unit_test(there_may_be_a_limit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
