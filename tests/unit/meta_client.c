/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The client (meta_model.h). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>

#include "meta_model.h"

uint64_t rnd(uint64_t n)
{
	static uint64_t seed = 88172645463325252ull;

	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % n;
}

static void sb_prepare(void *context, dm_block_t where, void *data, size_t size)
{
	put_le64(data + 8, where);
	put_le32(data, dm_bm_checksum(data + 4, size - 4, 160774));
}

static int sb_check(void *context, dm_block_t where, const void *data, size_t size)
{
	return get_le64(data + 8) == where && get_le32(data) == dm_bm_checksum(data + 4, size - 4, 160774) ? 0 : -EILSEQ;
}

static const struct dm_validator sb_validator = {"superblock", sb_prepare, sb_check, NULL};

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

int client_commit(struct client *c)
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

void client_close(struct client *c)
{
	dm_sm_free(c->data);
	dm_tm_free(c->tm);
	dm_bm_free(c->bm);
	g_free(c);
}

struct client *client_new(struct memdev *m, size_t cache)
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

int client_open(struct memdev *m, size_t cache, struct client **out)
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

void client_audit(struct client *c)
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
