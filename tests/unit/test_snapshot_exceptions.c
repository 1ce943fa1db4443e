/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Exceptions in memory, against a model; and how much of it they take. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <glib.h>

#include "../../targets/snapshot/exceptions.h"

static void agrees_with_a_model(void **state)
{
	struct exception_set set = {0};
	g_autoptr(GHashTable) model = g_hash_table_new(NULL, NULL);
	g_autoptr(GRand) rand = g_rand_new_with_seed(1);
	GHashTableIter it;
	gpointer k, v;

	for (unsigned i = 0; i < 300000; i++) {
		uint64_t chunk = (uint64_t)g_rand_int_range(rand, 1, i & 64 ? 500 : 50000);
		gpointer key = GSIZE_TO_POINTER(chunk);

		if (g_rand_int_range(rand, 0, 100) < (i / 50000 & 1 ? 30 : 60))
			assert_int_equal(exceptions_add(&set, chunk, i), g_hash_table_insert(model, key, GSIZE_TO_POINTER(i)) ||
									     (exceptions_find(&set, chunk)->new_chunk = i, 0));
		else
			assert_int_equal(exceptions_remove(&set, chunk), g_hash_table_remove(model, key));
		assert_int_equal(set.used, g_hash_table_size(model));
	}
	g_hash_table_iter_init(&it, model);
	while (g_hash_table_iter_next(&it, &k, &v)) {
		struct exception *e = exceptions_find(&set, GPOINTER_TO_SIZE(k));

		assert_non_null(e);
		assert_int_equal(e->new_chunk, GPOINTER_TO_SIZE(v));
		assert_false(e->draining);
	}
	for (uint64_t chunk = 1; chunk < 50000; chunk++)
		assert_int_equal(exceptions_find(&set, chunk) != NULL,
				 g_hash_table_contains(model, GSIZE_TO_POINTER(chunk)));
	exceptions_clear(&set);
}

static void an_exception_takes_less_than_32_bytes(void **state)
{
	struct exception_set set = {0};

	for (uint64_t chunk = 0; chunk < 1000000; chunk++) {
		assert_true(exceptions_add(&set, chunk * 977, chunk + 2));
		if (chunk > 1000)
			assert_true(set.size * sizeof *set.slots <= 32 * set.used);
	}
	exceptions_clear(&set);
}

static void next_is_the_least_at_or_after(void **state)
{
	struct exception_set set = {0};

	assert_true(exceptions_next(&set, 0) == UINT64_MAX);
	exceptions_add(&set, 10, 1);
	exceptions_add(&set, (1ull << 54) - 1, 1);
	exceptions_add(&set, 20, 1);
	assert_int_equal(exceptions_next(&set, 0), 10);
	assert_int_equal(exceptions_next(&set, 10), 10);
	assert_int_equal(exceptions_next(&set, 11), 20);
	assert_int_equal(exceptions_next(&set, 21), (1ull << 54) - 1);
	exceptions_clear(&set);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(agrees_with_a_model),
		cmocka_unit_test(an_exception_takes_less_than_32_bytes),
		cmocka_unit_test(next_is_the_least_at_or_after),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
