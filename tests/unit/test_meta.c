/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Persistent data against a model.  A small client keeps, in its superblock, a
 * two-level btree, an array, a bitset and a disk space map whose blocks are the btree's values; the model is
 * plain hash tables.  Random operations and commits, then: reopen, or a crash
 * after each single write of the device, and everything must be what the last
 * commit on the disk says, with every reference count accounted for.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>

#include <dmfs/bitset.h>
#include <dmfs/crc32c.h>

#include <dmfs/le.h>
#include "memdev.h"

#define DATA_BLOCKS 40000u
#define META_BLOCKS 3000u

static uint64_t seed = 88172645463325252ull;

static uint64_t rnd(uint64_t n)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % n;
}

/* --- the client --- */

struct client {
	struct memdev *m;
	struct dm_bm *bm;
	struct dm_tm *tm;
	struct dm_sm *data;
	struct dm_btree_info info, top;
	struct dm_array_info array;
	struct dm_bitset_info bits;
	dm_block_t root, array_root, bits_root;
	uint64_t transaction;
	uint32_t array_size, bits_size;
};

static void sb_prepare(dm_block_t where, void *data, size_t size)
{
	put_le64(data + 8, where);
	put_le32(data, dm_bm_checksum(data + 4, size - 4, 160774));
}

static int sb_check(dm_block_t where, const void *data, size_t size)
{
	return get_le64(data + 8) == where && get_le32(data) == dm_bm_checksum(data + 4, size - 4, 160774) ? 0 : -EILSEQ;
}

static const struct dm_validator sb_validator = {"superblock", sb_prepare, sb_check};

static int data_inc(void *sm, const void *values, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		uint64_t b = get_le64(values + 8 * i);
		int r = dm_sm_inc(sm, b, b + 1);

		if (r)
			return r;
	}
	return 0;
}

static int data_dec(void *sm, const void *values, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		uint64_t b = get_le64(values + 8 * i);
		int r = dm_sm_dec(sm, b, b + 1);

		if (r)
			return r;
	}
	return 0;
}

static int tree_inc(void *info, const void *values, unsigned n)
{
	return dm_tm_inc_many(((struct dm_btree_info *)info)->tm, values, n);
}

static int tree_dec(void *info, const void *values, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		struct dm_btree_info bottom = *(struct dm_btree_info *)info;
		int r;

		bottom.levels = 1;
		r = dm_btree_del(&bottom, get_le64(values + 8 * i));
		if (r)
			return r;
	}
	return 0;
}

static void set_up_infos(struct client *c)
{
	c->info = (struct dm_btree_info){.tm = c->tm, .levels = 2, .vt = {c->data, 8, data_inc, data_dec, NULL}};
	c->top = (struct dm_btree_info){.tm = c->tm, .levels = 1, .vt = {&c->info, 8, tree_inc, tree_dec, NULL}};
	dm_array_info_init(&c->array, c->tm, &(struct dm_btree_value_type){.size = 12});
	dm_bitset_info_init(&c->bits, c->tm);
}

static int client_commit(struct client *c)
{
	struct dm_block *sb;
	uint8_t *p;
	int r = dm_bitset_flush(&c->bits, &c->bits_root);

	if (!r)
		r = dm_tm_pre_commit(c->tm);
	if (!r)
		r = dm_bm_write_lock_zero(c->bm, 0, &sb_validator, &sb);
	if (r)
		return r;
	p = dm_block_data(sb);
	put_le64(p + 16, ++c->transaction);
	put_le64(p + 24, c->root);
	put_le64(p + 32, c->array_root);
	put_le64(p + 40, c->bits_root);
	put_le32(p + 48, c->array_size);
	put_le32(p + 52, c->bits_size);
	dm_sm_copy_root(dm_tm_sm(c->tm), p + 64);
	dm_sm_copy_root(c->data, p + 128);
	return dm_tm_commit(c->tm, sb);
}

static void client_close(struct client *c)
{
	dm_sm_free(c->data);
	dm_tm_free(c->tm);
	dm_bm_free(c->bm);
	g_free(c);
}

static struct client *client_new(struct memdev *m, size_t cache)
{
	struct client *c = g_new0(struct client, 1);
	int r;

	c->m = m;
	c->bm = dm_bm_new(&m->dev, DM_META_BLOCK_SIZE, cache);
	assert_int_equal(dm_tm_create(c->bm, 0, dm_bm_nr_blocks(c->bm), &c->tm), 0);
	c->data = dm_sm_disk_create(c->tm, DATA_BLOCKS, &r);
	assert_int_equal(r, 0);
	set_up_infos(c);
	assert_int_equal(dm_btree_empty(&c->info, &c->root), 0);
	assert_int_equal(dm_array_empty(&c->array, &c->array_root), 0);
	assert_int_equal(dm_bitset_empty(&c->bits, &c->bits_root), 0);
	assert_int_equal(client_commit(c), 0);
	return c;
}

static int client_open(struct memdev *m, size_t cache, struct client **out)
{
	struct client *c = g_new0(struct client, 1);
	struct dm_block *sb;
	uint8_t *p;
	int r;

	c->m = m;
	c->bm = dm_bm_new(&m->dev, DM_META_BLOCK_SIZE, cache);
	r = dm_bm_read_lock(c->bm, 0, &sb_validator, &sb);
	if (!r) {
		p = dm_block_data(sb);
		c->transaction = get_le64(p + 16);
		c->root = get_le64(p + 24);
		c->array_root = get_le64(p + 32);
		c->bits_root = get_le64(p + 40);
		c->array_size = get_le32(p + 48);
		c->bits_size = get_le32(p + 52);
		r = dm_tm_open(c->bm, 0, p + 64, 32, &c->tm);
		if (!r)
			c->data = dm_sm_disk_open(c->tm, p + 128, 32, &r);
		dm_bm_unlock(sb);
	}
	if (!r)
		set_up_infos(c);
	*out = c;
	return r;
}

/* --- the model --- */

struct model {
	GHashTable *trees; /* id -> (key -> block) */
	GArray *array, *bits;
};

static struct model *model_new(void)
{
	struct model *m = g_new0(struct model, 1);

	m->trees = g_hash_table_new_full(NULL, NULL, NULL, (GDestroyNotify)g_hash_table_unref);
	m->array = g_array_new(FALSE, TRUE, 12);
	m->bits = g_array_new(FALSE, TRUE, 1);
	return m;
}

static void model_free(struct model *m)
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

static struct model *model_copy(struct model *m)
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

/* --- counting every reference --- */

struct audit {
	struct client *c;
	uint32_t *meta, *data;
};

static const uint8_t *raw(struct client *c, dm_block_t b)
{
	assert_true(b < META_BLOCKS);
	return c->m->data + b * DM_META_BLOCK_SIZE;
}

/* Counts a node and, when met first, what it points to; checks the form that thin_check demands too. */
static void audit_tree(struct audit *a, dm_block_t b, unsigned levels, bool root, uint64_t low, uint64_t high,
		       void (*leaf)(struct audit *, uint64_t key, const uint8_t *value))
{
	const uint8_t *p = raw(a->c, b);
	uint32_t nr = get_le32(p + 16), max = get_le32(p + 20), size = get_le32(p + 24);

	if (a->meta[b]++)
		return;
	assert_int_equal(get_le64(p + 8), b);
	assert_int_equal(get_le32(p), dm_bm_checksum(p + 4, 4092, 121107));
	assert_int_equal(max % 3, 0);
	assert_true(nr <= max);
	if (!root)
		assert_true(nr >= max / 3);
	for (uint32_t i = 0; i < nr; i++) {
		uint64_t key = get_le64(p + 32 + 8 * i), next = i + 1 < nr ? get_le64(p + 40 + 8 * i) - 1 : high;
		const uint8_t *value = p + 32 + 8 * max + (size_t)size * i;

		assert_true(key >= low && key <= high && next >= key);
		if (get_le32(p + 4) == 1)
			audit_tree(a, get_le64(value), levels, false, key, next, leaf);
		else if (levels > 1)
			audit_tree(a, get_le64(value), levels - 1, true, 0, UINT64_MAX, leaf);
		else
			leaf(a, key, value);
	}
}

static void count_data(struct audit *a, uint64_t key, const uint8_t *value)
{
	a->data[get_le64(value)]++;
}

static void count_block(struct audit *a, uint64_t key, const uint8_t *value)
{
	a->meta[get_le64(value)]++;
}

static void count_nothing(struct audit *a, uint64_t key, const uint8_t *value)
{
}

static void audit(struct client *c)
{
	struct audit a = {c, g_new0(uint32_t, META_BLOCKS), g_new0(uint32_t, DATA_BLOCKS)};
	const uint8_t *sb = raw(c, 0), *index = raw(c, get_le64(sb + 64 + 16));
	uint64_t allocated = 0;

	a.meta[0]++;
	audit_tree(&a, c->root, 2, true, 0, UINT64_MAX, count_data);
	audit_tree(&a, c->array_root, 1, true, 0, UINT64_MAX, count_block);
	audit_tree(&a, c->bits_root, 1, true, 0, UINT64_MAX, count_block);
	a.meta[get_le64(sb + 64 + 16)]++;
	a.meta[get_le64(index + 16)]++; /* META_BLOCKS fit one bitmap */
	audit_tree(&a, get_le64(sb + 64 + 24), 1, true, 0, UINT64_MAX, count_nothing);
	audit_tree(&a, get_le64(sb + 128 + 16), 1, true, 0, UINT64_MAX, count_block);
	audit_tree(&a, get_le64(sb + 128 + 24), 1, true, 0, UINT64_MAX, count_nothing);
	for (unsigned i = 0; i < META_BLOCKS; i++) {
		uint32_t count;

		assert_int_equal(dm_sm_count(dm_tm_sm(c->tm), i, &count), 0);
		if (count != a.meta[i])
			fail_msg("metadata block %u has %u references, %u are counted", i, a.meta[i], count);
		allocated += count > 0;
	}
	assert_int_equal(allocated, META_BLOCKS - dm_sm_nr_free(dm_tm_sm(c->tm)));
	for (unsigned i = 0; i < DATA_BLOCKS; i++) {
		uint32_t count;

		assert_int_equal(dm_sm_count(c->data, i, &count), 0);
		assert_int_equal(count, a.data[i]);
	}
	g_free(a.meta);
	g_free(a.data);
}

static int find_different(void *context, uint32_t i, const void *value)
{
	GArray *array = context;

	assert_true(i < array->len);
	assert_memory_equal(value, array->data + 12 * i, 12);
	return 0;
}

static void compare(struct client *c, struct model *m)
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

#define IDS 6u
#define KEYS 3000u

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
	uint64_t keys[2] = {rnd(IDS), rnd(KEYS)}, end = keys[1] + rnd(600), removed, most = rnd(2) ? UINT64_MAX : rnd(200);
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

static int operate(struct client *c, struct model *m, unsigned n)
{
	int r = 0;

	while (n-- && !r)
		r = ops[rnd(G_N_ELEMENTS(ops))](c, m);
	return r;
}

/* --- tests --- */

static void crc_is_castagnoli(void **state)
{
	uint8_t buf[100];

	assert_int_equal(dm_crc32c(~0u, "123456789", 9), ~0xe3069283u);
	for (int i = 0; i < 100; i++)
		buf[i] = rnd(256);
	for (int i = 0; i < 100; i++)
		for (int j = i; j < 100; j++)
			assert_int_equal(dm_crc32c(i, buf + i, j - i), dm_crc32c_table(i, buf + i, j - i));
}

static void random_operations(void **state)
{
	struct memdev *m = memdev_new(META_BLOCKS * 8);
	struct client *c = client_new(m, 1 << 20);
	struct model *model = model_new();

	for (int round = 0; round < 60; round++) {
		assert_int_equal(operate(c, model, 100), 0);
		assert_int_equal(client_commit(c), 0);
		if (round % 4)
			continue;
		audit(c);
		client_close(c);
		assert_int_equal(client_open(m, round % 8 ? 1 << 18 : 1 << 20, &c), 0);
		compare(c, model);
		assert_true(dm_bm_memory(c->bm) <= (1 << 20) + (1 << 19));
	}
	client_close(c);
	model_free(model);
	memdev_put(m);
}

/* Every prefix of the writes of three transactions, the last ones lost or not, opens as one of the committed states. */
static void crash_at_every_write(void **state)
{
	struct memdev *m = memdev_new(META_BLOCKS * 8);
	struct client *c = client_new(m, 1 << 18);
	struct model *model = model_new(), *states[4] = {0};
	g_autofree uint8_t *image = NULL;
	uint64_t first;

	assert_int_equal(operate(c, model, 400), 0);
	assert_int_equal(client_commit(c), 0);
	first = c->transaction;
	image = g_memdup2(m->data, m->sectors * 512);
	memdev_record(m, true);
	states[0] = model_copy(model);
	for (int i = 1; i < 4; i++) {
		assert_int_equal(operate(c, model, 60), 0);
		assert_int_equal(client_commit(c), 0);
		states[i] = model_copy(model);
	}
	client_close(c);
	assert_true(m->log->len > 50);
	for (unsigned n = 0; n <= m->log->len; n++) {
		struct memdev *crashed = memdev_replay(m, image, n, n % 2 ? rnd(UINT64_MAX) : 0);

		assert_int_equal(client_open(crashed, 1 << 20, &c), 0);
		assert_in_range(c->transaction, first, first + 3);
		compare(c, states[c->transaction - first]);
		if (n % 8 == 0 || n == m->log->len) {
			audit(c);
			assert_int_equal(client_commit(c), 0);
		}
		if (n == m->log->len)
			assert_int_equal(c->transaction, first + 4);
		client_close(c);
		memdev_put(crashed);
	}
	for (int i = 0; i < 4; i++)
		model_free(states[i]);
	model_free(model);
	memdev_put(m);
}

/* An I/O error anywhere is reported, and what was committed is there after it. */
static void error_at_every_io(void **state)
{
	for (unsigned at = 1; at < 400; at += 1 + at / 16) {
		struct memdev *m = memdev_new(META_BLOCKS * 8);
		struct client *c = client_new(m, 1 << 18);
		struct model *model = model_new(), *before, *scratch;
		uint64_t committed;
		int r;

		assert_int_equal(operate(c, model, 200), 0);
		assert_int_equal(client_commit(c), 0);
		before = model_copy(model);
		scratch = model_copy(model);
		committed = c->transaction;
		m->fail_at = at;
		r = operate(c, scratch, 60);
		if (!r)
			r = client_commit(c);
		m->fail_at = 0;
		client_close(c);
		assert_true(r == 0 || r == -EIO);
		assert_int_equal(client_open(m, 1 << 20, &c), 0);
		compare(c, c->transaction == committed ? before : scratch);
		audit(c);
		client_close(c);
		model_free(before);
		model_free(scratch);
		model_free(model);
		memdev_put(m);
	}
}

static void runs_out_of_space_and_goes_on(void **state)
{
	struct memdev *m = memdev_new(META_BLOCKS * 8);
	struct client *c = client_new(m, 1 << 20);
	struct model *model = model_new();
	uint64_t keys[2] = {0}, le = 0;
	dm_block_t b;
	int r = 0;

	m->sectors = 40 * 8;
	client_close(c);
	c = client_new(m, 1 << 20);
	assert_int_equal(client_commit(c), 0);
	while (!r) {
		r = dm_sm_new_block(c->data, &b);
		put_le64(&le, b);
		if (!r)
			r = dm_btree_insert(&c->info, c->root, keys, &le, &c->root, NULL);
		keys[1]++;
	}
	assert_int_equal(r, -ENOSPC);
	client_close(c);
	m->sectors = META_BLOCKS * 8;
	assert_int_equal(client_open(m, 1 << 20, &c), 0);
	compare(c, model);
	assert_int_equal(dm_sm_extend(dm_tm_sm(c->tm), META_BLOCKS - 40), 0);
	assert_int_equal(dm_sm_nr_blocks(dm_tm_sm(c->tm)), META_BLOCKS);
	assert_int_equal(operate(c, model, 300), 0);
	assert_int_equal(client_commit(c), 0);
	compare(c, model);
	audit(c);
	client_close(c);
	model_free(model);
	memdev_put(m);
}

static void freed_blocks_wait_for_the_commit(void **state)
{
	struct memdev *m = memdev_new(META_BLOCKS * 8);
	struct client *c = client_new(m, 1 << 20);
	dm_block_t b, first;
	int r;

	assert_int_equal(dm_sm_new_block(c->data, &first), 0);
	assert_int_equal(client_commit(c), 0);
	assert_false(dm_sm_has_freed(c->data));
	assert_int_equal(dm_sm_dec(c->data, first, first + 1), 0);
	assert_true(dm_sm_has_freed(c->data));
	while (!(r = dm_sm_new_block(c->data, &b)))
		assert_int_not_equal(b, first);
	assert_int_equal(r, -ENOSPC);
	assert_int_equal(dm_sm_nr_free(c->data), 1);
	assert_int_equal(client_commit(c), 0);
	assert_int_equal(dm_sm_new_block(c->data, &b), 0);
	assert_int_equal(b, first);
	assert_int_equal(dm_sm_dec(c->data, first, first + 1), 0);
	assert_int_equal(dm_sm_dec(c->data, first, first + 1), -EILSEQ);
	client_close(c);
	memdev_put(m);
}

/* Damage with good checksums: errors, and an end. */
static void survives_damage(void **state)
{
	struct memdev *m = memdev_new(META_BLOCKS * 8);
	struct client *c = client_new(m, 1 << 20);
	struct model *model = model_new();
	g_autofree uint8_t *image = NULL;

	assert_int_equal(operate(c, model, 400), 0);
	assert_int_equal(client_commit(c), 0);
	client_close(c);
	image = g_memdup2(m->data, m->sectors * 512);
	for (int round = 0; round < 3000; round++) {
		int r;

		memcpy(m->data, image, m->sectors * 512);
		for (int hits = 1 + rnd(3); hits--;) {
			dm_block_t b = rnd(2) ? rnd(300) : 0;
			uint8_t *p = m->data + 4096 * b;
			unsigned at = 4 + rnd(rnd(2) ? 4092 : 156);

			if (rnd(2))
				p[at] ^= 1 << rnd(8);
			else
				put_le64(p + MIN(at & ~7u, 4088), rnd(2) ? rnd(400) : rnd(UINT64_MAX));
			put_le32(p, dm_bm_checksum(p + 4, 4092, !b ? 160774 : get_le32(p + 16) < 400 && get_le32(p + 24) < 20 ? 121107 : rnd(2) ? 240779 : 160478));
		}
		model_free(model);
		model = model_new();
		r = client_open(m, 1 << 20, &c);
		for (int i = 0; i < 30 && !r; i++) {
			uint64_t keys[2] = {rnd(IDS), rnd(KEYS)}, value = 0, removed;

			put_le64(&value, rnd(DATA_BLOCKS));
			switch (rnd(5)) {
			case 0:
				r = dm_btree_insert(&c->info, c->root, keys, &value, &c->root, NULL);
				break;
			case 1:
				r = dm_btree_remove_range(&c->info, c->root, keys, keys[1] + 300, 1000, &c->root, &removed);
				break;
			case 2:
				r = dm_btree_remove(&c->top, c->root, keys, &c->root);
				break;
			case 3:
				r = dm_btree_lookup(&c->info, c->root, keys, &value);
				break;
			case 4:
				r = client_commit(c);
			}
			r = r == -ENODATA ? 0 : r;
		}
		client_close(c);
	}
	model_free(model);
	memdev_put(m);
}

struct reader {
	struct client *c;
	unsigned errors;
};

static void *read_all(void *arg)
{
	struct reader *rd = arg;

	for (uint64_t i = 0; i < 20000; i++) {
		uint64_t keys[2] = {0, i * 7919 % 20000}, le;

		if (dm_btree_lookup(&rd->c->info, rd->c->root, keys, &le) || get_le64(&le) != keys[1])
			rd->errors++;
	}
	return NULL;
}

static void readers_share_a_small_cache(void **state)
{
	struct memdev *m = memdev_new(META_BLOCKS * 8);
	struct client *c = client_new(m, 1 << 18);
	struct reader readers[4];
	pthread_t threads[4];

	for (uint64_t i = 0; i < 20000; i++) {
		uint64_t le;
		dm_block_t b;

		assert_int_equal(dm_sm_new_block(c->data, &b), 0);
		put_le64(&le, i);
		assert_int_equal(dm_btree_insert(&c->info, c->root, (uint64_t[]){0, i}, &le, &c->root, NULL), 0);
	}
	for (int i = 0; i < 4; i++) {
		readers[i] = (struct reader){c, 0};
		pthread_create(&threads[i], NULL, read_all, &readers[i]);
	}
	for (int i = 0; i < 4; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(readers[i].errors, 0);
	}
	assert_true(dm_bm_memory(c->bm) <= (1 << 18) + (1 << 17));
	client_close(c);
	memdev_put(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(crc_is_castagnoli),
		cmocka_unit_test(random_operations),
		cmocka_unit_test(crash_at_every_write),
		cmocka_unit_test(error_at_every_io),
		cmocka_unit_test(runs_out_of_space_and_goes_on),
		cmocka_unit_test(freed_blocks_wait_for_the_commit),
		cmocka_unit_test(survives_damage),
		cmocka_unit_test(readers_share_a_small_cache),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
