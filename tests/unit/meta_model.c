/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The model, and random operations on both (meta_model.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>

#include "meta_model.h"

struct model *model_new(void)
{
	struct model *m = g_new0(struct model, 1);

	m->trees = g_hash_table_new_full(NULL, NULL, NULL, (GDestroyNotify)g_hash_table_unref);
	m->array = g_array_new(FALSE, TRUE, 12);
	m->bits = g_array_new(FALSE, TRUE, 1);
	return m;
}

void model_free(struct model *m)
{
	g_hash_table_unref(m->trees);
	g_array_free(m->array, TRUE);
	g_array_free(m->bits, TRUE);
	g_free(m);
}

static GHashTable *copy_tree(GHashTable *t)
{
	GHashTable *copy = g_hash_table_new(NULL, NULL);
	GHashTableIter it;
	gpointer k, v;

	g_hash_table_iter_init(&it, t);
	while (g_hash_table_iter_next(&it, &k, &v))
		g_hash_table_insert(copy, k, v);
	return copy;
}

struct model *model_copy(struct model *m)
{
	struct model *n = model_new();
	GHashTableIter it;
	gpointer k, v;

	g_hash_table_iter_init(&it, m->trees);
	while (g_hash_table_iter_next(&it, &k, &v))
		g_hash_table_insert(n->trees, k, copy_tree(v));
	g_array_append_vals(n->array, m->array->data, m->array->len);
	g_array_append_vals(n->bits, m->bits->data, m->bits->len);
	return n;
}
static int find_different(void *context, uint32_t i, const void *value)
{
	GArray *array = context;

	assert_true(i < array->len);
	assert_memory_equal(value, array->data + 12 * i, 12);
	return 0;
}

void model_compare(struct client *c, struct model *m)
{
	struct dm_btree_info bottom = c->info;
	struct dm_btree_cursor *cursor = g_new(struct dm_btree_cursor, 1);
	GHashTableIter it;
	gpointer id, tree;
	unsigned trees = 0;
	int r;

	bottom.levels = 1;
	g_hash_table_iter_init(&it, m->trees);
	while (g_hash_table_iter_next(&it, &id, &tree)) {
		uint64_t k = GPOINTER_TO_SIZE(id), last = 0;
		unsigned n = 0;
		uint8_t le[8];

		assert_int_equal(dm_btree_lookup(&c->top, c->root, &k, le), 0);
		for (r = dm_btree_cursor_begin(&bottom, get_le64(le), 0, cursor); !r; r = dm_btree_cursor_next(cursor)) {
			const void *value;
			uint64_t key = dm_btree_cursor_get(cursor, &value);
			gpointer want;

			assert_true(!n++ || key > last);
			last = key;
			assert_true(g_hash_table_lookup_extended(tree, GSIZE_TO_POINTER(key), NULL, &want));
			assert_int_equal(get_le64(value), GPOINTER_TO_SIZE(want));
		}
		assert_int_equal(r, -ENODATA);
		assert_int_equal(n, g_hash_table_size(tree));
		trees++;
	}
	for (uint64_t k = 0, found; !dm_btree_lookup_next(&c->top, c->root, &k, &found, &(uint64_t){0}); k = found + 1)
		trees--;
	assert_int_equal(trees, 0);

	assert_int_equal(c->array_size, m->array->len);
	assert_int_equal(dm_array_walk(&c->array, c->array_root, find_different, m->array), 0);
	assert_int_equal(dm_array_get(&c->array, c->array_root, c->array_size, &(char[12]){0}), -ENODATA);
	assert_int_equal(c->bits_size, m->bits->len);
	for (unsigned i = 0; i < c->bits_size; i += 1 + rnd(8)) {
		bool bit;

		assert_int_equal(dm_bitset_test(&c->bits, &c->bits_root, i, &bit), 0);
		assert_int_equal(bit, m->bits->data[i]);
	}
	g_free(cursor);
}

/* --- random operations on both --- */

/* Operations return what the library says; the model follows only successes. */
static int op_insert(struct client *c, struct model *m)
{
	uint64_t keys[2] = {rnd(IDS), rnd(4) ? rnd(KEYS) : UINT64_MAX - rnd(50)}, le;
	GHashTable *tree = g_hash_table_lookup(m->trees, GSIZE_TO_POINTER(keys[0]));
	unsigned n = rnd(3) ? 1 : 60;
	int r = 0;

	for (; n-- && !r; keys[1] += keys[1] < KEYS) {
		bool inserted;
		dm_block_t b;

		r = dm_sm_new_block(c->data, &b);
		put_le64(&le, b);
		if (!r)
			r = dm_btree_insert(&c->info, c->root, keys, &le, &c->root, &inserted);
		if (r)
			break;
		if (!tree) {
			tree = g_hash_table_new(NULL, NULL);
			g_hash_table_insert(m->trees, GSIZE_TO_POINTER(keys[0]), tree);
		}
		assert_int_equal(inserted, !g_hash_table_contains(tree, GSIZE_TO_POINTER(keys[1])));
		g_hash_table_insert(tree, GSIZE_TO_POINTER(keys[1]), GSIZE_TO_POINTER(b));
	}
	return r;
}

static int op_remove(struct client *c, struct model *m)
{
	uint64_t keys[2] = {rnd(IDS), rnd(4) ? rnd(KEYS) : UINT64_MAX - rnd(50)};
	GHashTable *tree = g_hash_table_lookup(m->trees, GSIZE_TO_POINTER(keys[0]));
	bool there = tree && g_hash_table_contains(tree, GSIZE_TO_POINTER(keys[1]));
	int r = dm_btree_remove(&c->info, c->root, keys, &c->root);

	if (r == -ENODATA) {
		assert_false(there);
		return 0;
	}
	if (!r) {
		assert_true(there);
		g_hash_table_remove(tree, GSIZE_TO_POINTER(keys[1]));
	}
	return r;
}

static int op_remove_range(struct client *c, struct model *m)
{
	uint64_t keys[2] = {rnd(IDS), rnd(KEYS)}, end = keys[1] + rnd(rnd(4) ? 600 : KEYS), removed;
	uint64_t most = rnd(2) ? UINT64_MAX : rnd(200);
	GHashTable *tree = g_hash_table_lookup(m->trees, GSIZE_TO_POINTER(keys[0]));
	int r = dm_btree_remove_range(&c->info, c->root, keys, end, most, &c->root, &removed);
	uint64_t n = 0;

	if (r)
		return r;
	for (uint64_t k = keys[1]; tree && k < end && n < most; k++)
		n += g_hash_table_remove(tree, GSIZE_TO_POINTER(k));
	assert_int_equal(n, removed);
	return 0;
}

static int op_snap(struct client *c, struct model *m)
{
	uint64_t from = rnd(IDS), to = rnd(IDS);
	GHashTable *tree = g_hash_table_lookup(m->trees, GSIZE_TO_POINTER(from));
	uint8_t le[8];
	int r;

	if (!tree || from == to)
		return 0;
	assert_int_equal(dm_btree_lookup(&c->top, c->root, &from, le), 0);
	r = dm_tm_inc(c->tm, get_le64(le));
	if (!r)
		r = dm_btree_insert(&c->top, c->root, &to, le, &c->root, NULL);
	if (!r)
		g_hash_table_insert(m->trees, GSIZE_TO_POINTER(to), copy_tree(tree));
	return r;
}

static int op_delete(struct client *c, struct model *m)
{
	uint64_t id = rnd(IDS);
	int r;

	if (rnd(4))
		return 0;
	r = dm_btree_remove(&c->top, c->root, &id, &c->root);
	if (r == -ENODATA) {
		assert_false(g_hash_table_contains(m->trees, GSIZE_TO_POINTER(id)));
		return 0;
	}
	if (!r)
		assert_true(g_hash_table_remove(m->trees, GSIZE_TO_POINTER(id)));
	return r;
}

static int op_array(struct client *c, struct model *m)
{
	uint8_t value[12];
	uint32_t i;
	int r;

	for (i = 0; i < 12; i++)
		value[i] = rnd(256);
	if (!rnd(5)) {
		uint32_t size = rnd(2000), old = m->array->len;

		r = dm_array_resize(&c->array, c->array_root, c->array_size, size, value, &c->array_root);
		if (r)
			return r;
		c->array_size = size;
		g_array_set_size(m->array, size);
		for (i = old; i < size; i++)
			memcpy(m->array->data + 12 * i, value, 12);
		return 0;
	}
	if (c->array_size && !rnd(3)) {
		uint32_t n = 1 + rnd(c->array_size);
		g_autofree uint8_t *values = g_malloc(12 * n);

		for (i = 0; i < 12 * n; i++)
			values[i] = rnd(256);
		i = rnd(c->array_size - n + 1);
		r = dm_array_set_run(&c->array, c->array_root, i, n, values, &c->array_root);
		if (!r)
			memcpy(m->array->data + 12 * i, values, 12 * n);
		return r;
	}
	i = rnd(2000);
	r = dm_array_set(&c->array, c->array_root, i, value, &c->array_root);
	if (i >= c->array_size) {
		assert_int_equal(r, -ENODATA);
		return 0;
	}
	if (!r)
		memcpy(m->array->data + 12 * i, value, 12);
	return r;
}

static int op_bits(struct client *c, struct model *m)
{
	bool bit = rnd(2);
	uint32_t i;
	int r;

	if (!rnd(5)) {
		uint32_t size = rnd(70000), old = m->bits->len;

		r = dm_bitset_resize(&c->bits, c->bits_root, c->bits_size, size, bit, &c->bits_root);
		if (r)
			return r;
		c->bits_size = size;
		g_array_set_size(m->bits, size);
		if (size > old)
			memset(m->bits->data + old, bit, size - old);
		return 0;
	}
	if (!c->bits_size)
		return 0;
	i = rnd(c->bits_size);
	r = dm_bitset_set(&c->bits, &c->bits_root, i, bit);
	if (!r)
		m->bits->data[i] = bit;
	return r;
}

static int (*const ops[])(struct client *, struct model *) = {
	op_insert, op_insert, op_insert, op_remove, op_remove, op_remove_range, op_snap, op_delete, op_array, op_bits,
};

int model_operate(struct client *c, struct model *m, unsigned n)
{
	int r = 0;

	while (n-- && !r)
		r = ops[rnd(G_N_ELEMENTS(ops))](c, m);
	return r;
}
