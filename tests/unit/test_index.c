/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An index of numbers, against a model; and how much of it they take. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <glib.h>

#include <dmfs/index.h>

static void agrees_with_a_model(void **state)
{
	struct dm_index ix = {0};
	g_autoptr(GHashTable) model = g_hash_table_new(NULL, NULL);
	g_autoptr(GRand) rand = g_rand_new_with_seed(1);
	GHashTableIter it;
	gpointer k, v;

	for (unsigned i = 0; i < 300000; i++) {
		uint64_t number = (uint64_t)g_rand_int_range(rand, 1, i & 64 ? 500 : 50000);
		gpointer key = GSIZE_TO_POINTER(number);

		if (g_rand_int_range(rand, 0, 100) < (i / 50000 & 1 ? 30 : 60))
			assert_int_equal(dm_index_add(&ix, number, i), g_hash_table_insert(model, key, GSIZE_TO_POINTER(i)) ||
									     (dm_index_find(&ix, number)->value = i, 0));
		else
			assert_int_equal(dm_index_remove(&ix, number), g_hash_table_remove(model, key));
		assert_int_equal(ix.used, g_hash_table_size(model));
	}
	g_hash_table_iter_init(&it, model);
	while (g_hash_table_iter_next(&it, &k, &v)) {
		struct dm_index_entry *e = dm_index_find(&ix, GPOINTER_TO_SIZE(k));

		assert_non_null(e);
		assert_int_equal(e->value, GPOINTER_TO_SIZE(v));
		assert_false(e->flag);
	}
	for (uint64_t key = 1; key < 50000; key++)
		assert_int_equal(dm_index_find(&ix, key) != NULL,
				 g_hash_table_contains(model, GSIZE_TO_POINTER(key)));
	dm_index_clear(&ix);
}

static void an_entry_takes_less_than_32_bytes(void **state)
{
	struct dm_index ix = {0};

	for (uint64_t key = 0; key < 1000000; key++) {
		assert_true(dm_index_add(&ix, key * 977, key + 2));
		if (key > 1000)
			assert_true(ix.size * sizeof *ix.slots <= 32 * ix.used);
	}
	dm_index_clear(&ix);
}

static void next_is_the_least_at_or_after(void **state)
{
	struct dm_index ix = {0};

	assert_true(dm_index_next(&ix, 0) == UINT64_MAX);
	dm_index_add(&ix, 10, 1);
	dm_index_add(&ix, (1ull << 54) - 1, 1);
	dm_index_add(&ix, 20, 1);
	assert_int_equal(dm_index_next(&ix, 0), 10);
	assert_int_equal(dm_index_next(&ix, 10), 10);
	assert_int_equal(dm_index_next(&ix, 11), 20);
	assert_int_equal(dm_index_next(&ix, 21), (1ull << 54) - 1);
	dm_index_clear(&ix);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(agrees_with_a_model),
		cmocka_unit_test(an_entry_takes_less_than_32_bytes),
		cmocka_unit_test(next_is_the_least_at_or_after),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
