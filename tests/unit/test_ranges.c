/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Sets of numbers as ranges, against an array of booleans. */
#include <stdbool.h>

#include "unit.h"

#include <dmfs/ranges.h>

#define N 300u

static void compare(const struct dm_ranges *rs, const bool *in)
{
	unsigned count = 0, runs = 0;

	for (unsigned i = 0; i < N; i++) {
		assert_int_equal(dm_ranges_has(rs, i), in[i]);
		count += in[i];
		runs += in[i] && (!i || !in[i - 1]);
	}
	assert_int_equal(rs->count, count);
	assert_int_equal(dm_ranges_n(rs), runs); /* those that touch are one */
	for (unsigned i = 1; i < runs; i++)
		assert_true(dm_ranges_at(rs, i - 1)->end < dm_ranges_at(rs, i)->begin);
}

static void as_a_model_says(void **state)
{
	g_autoptr(GRand) rnd = g_rand_new_with_seed(4);
	struct dm_ranges rs = {0};
	bool in[N] = {false};

	compare(&rs, in);
	for (unsigned round = 0; round < 3000; round++) {
		unsigned begin = (unsigned)g_rand_int_range(rnd, 0, N), end = begin, max;

		max = begin + (unsigned)g_rand_int_range(rnd, 0, 20);
		max = MIN(max, N);
		if (g_rand_boolean(rnd)) {
			dm_ranges_add(&rs, begin, max); /* perhaps of none, or of some that are there */
			for (end = begin; end < max; end++)
				in[end] = true;
		} else {
			while (end < max && in[end])
				in[end++] = false;
			dm_ranges_remove(&rs, begin, end);
		}
		compare(&rs, in);
	}
	dm_ranges_clear(&rs);
	compare(&rs, (bool[N]){false});
	dm_ranges_clear(&rs);
}

static void large_numbers(void **state)
{
	struct dm_ranges rs = {0};

	dm_ranges_add(&rs, UINT64_MAX - 10, UINT64_MAX);
	dm_ranges_add(&rs, 0, 1);
	assert_true(dm_ranges_has(&rs, UINT64_MAX - 1));
	assert_false(dm_ranges_has(&rs, UINT64_MAX - 11));
	dm_ranges_remove(&rs, UINT64_MAX - 5, UINT64_MAX - 4);
	assert_int_equal(rs.count, 10);
	assert_int_equal(dm_ranges_n(&rs), 3);
	dm_ranges_clear(&rs);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(as_a_model_says),
		cmocka_unit_test(large_numbers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
