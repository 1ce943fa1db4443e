/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Persistent data against a model (meta_model.h).  Random operations and commits, then: reopen, or a crash
 * after each single write of the device, and everything must be what the last
 * commit on the disk says, with every reference count accounted for.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>

#include <dmfs/crc32c.h>
#include <dmfs/le.h>

#include "meta_model.h"

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
		assert_int_equal(model_operate(c, model, 100), 0);
		assert_int_equal(client_commit(c), 0);
		if (round % 4)
			continue;
		client_audit(c);
		client_close(c);
		assert_int_equal(client_open(m, round % 8 ? 1 << 18 : 1 << 20, &c), 0);
		model_compare(c, model);
		assert_true(dm_bm_memory(c->bm) <= (1 << 20) + (1 << 19));
	}
	client_close(c);
	model_free(model);
	memdev_put(m);
}

#define LARGE 30000u

static GHashTable *numbered_tree(void)
{
	GHashTable *tree = g_hash_table_new(NULL, NULL);

	for (uint64_t i = 0; i < LARGE; i++)
		g_hash_table_insert(tree, GSIZE_TO_POINTER(i), GSIZE_TO_POINTER(i));
	return tree;
}

/* A tree of three levels, 0, and 1 that shares all of it. */
static void make_large_tree(struct client *c, struct model *model)
{
	uint64_t keys[2] = {0, 0}, one = 1, le;

	for (; keys[1] < LARGE; keys[1]++) {
		put_le64(&le, keys[1]);
		assert_int_equal(dm_sm_inc(c->data, keys[1], keys[1] + 1), 0);
		assert_int_equal(dm_btree_insert(&c->info, c->root, keys, &le, &c->root, NULL), 0);
	}
	assert_int_equal(dm_btree_lookup(&c->top, c->root, keys, &le), 0);
	assert_int_equal(dm_tm_inc(c->tm, get_le64(&le)), 0);
	assert_int_equal(dm_btree_insert(&c->top, c->root, &one, &le, &c->root, NULL), 0);
	g_hash_table_insert(model->trees, GSIZE_TO_POINTER(0), numbered_tree());
	g_hash_table_insert(model->trees, GSIZE_TO_POINTER(1), numbered_tree());
}

static void remove_some(struct client *c, struct model *model, uint64_t id)
{
	GHashTable *tree = g_hash_table_lookup(model->trees, GSIZE_TO_POINTER(id));
	uint64_t keys[2] = {id, 0}, max = 1 + rnd(3000), removed, n = 0;

	if (!rnd(3) && g_hash_table_size(tree) > LARGE / 2)
		keys[1] = rnd(LARGE);
	assert_int_equal(dm_btree_remove_range(&c->info, c->root, keys, UINT64_MAX, max, &c->root, &removed), 0);
	for (uint64_t k = keys[1]; k < LARGE && n < max; k++)
		n += g_hash_table_remove(tree, GSIZE_TO_POINTER(k));
	assert_int_equal(n, removed);
}

/* It is emptied in batches, from any place on, first the shared tree and then what is nobody else's any more. */
static void large_ranges_go_leaf_by_leaf(void **state)
{
	struct memdev *m = memdev_new(META_BLOCKS * 8);
	struct client *c = client_new(m, 1 << 20);
	struct model *model = model_new();

	make_large_tree(c, model);
	for (uint64_t id = 0; id < 2; id++) {
		while (g_hash_table_size(g_hash_table_lookup(model->trees, GSIZE_TO_POINTER(id)))) {
			remove_some(c, model, id);
			if (rnd(3))
				continue;
			assert_int_equal(client_commit(c), 0);
			client_audit(c);
		}
		model_compare(c, model);
	}
	for (uint32_t b = 0, count; b < LARGE; b++) {
		assert_int_equal(dm_sm_count(c->data, b, &count), 0);
		assert_int_equal(count, 0);
	}
	client_close(c);
	model_free(model);
	memdev_put(m);
}

static void crash_while_a_large_tree_goes(void **state)
{
	struct memdev *m = memdev_new(META_BLOCKS * 8);
	struct client *c = client_new(m, 1 << 18);
	struct model *model = model_new(), *states[9] = {0};
	g_autofree uint8_t *image = NULL;
	uint64_t first;

	make_large_tree(c, model);
	assert_int_equal(client_commit(c), 0);
	first = c->transaction;
	image = g_memdup2(m->data, m->sectors * 512);
	memdev_record(m, true);
	states[0] = model_copy(model);
	for (int i = 1; i < 9; i++) {
		for (int j = 0; j < 4; j++)
			remove_some(c, model, i > 4);
		assert_int_equal(client_commit(c), 0);
		states[i] = model_copy(model);
	}
	client_close(c);
	for (unsigned n = 0; n < m->log->len; n += 1 + rnd(m->log->len / 20)) {
		struct memdev *crashed = memdev_replay(m, image, n, n % 2 ? rnd(UINT64_MAX) : 0);

		assert_int_equal(client_open(crashed, 1 << 20, &c), 0);
		assert_in_range(c->transaction, first, first + 8);
		model_compare(c, states[c->transaction - first]);
		client_audit(c);
		client_close(c);
		memdev_put(crashed);
	}
	for (int i = 0; i < 9; i++)
		model_free(states[i]);
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

	assert_int_equal(model_operate(c, model, 400), 0);
	assert_int_equal(client_commit(c), 0);
	first = c->transaction;
	image = g_memdup2(m->data, m->sectors * 512);
	memdev_record(m, true);
	states[0] = model_copy(model);
	for (int i = 1; i < 4; i++) {
		assert_int_equal(model_operate(c, model, 60), 0);
		assert_int_equal(client_commit(c), 0);
		states[i] = model_copy(model);
	}
	client_close(c);
	assert_true(m->log->len > 50);
	for (unsigned n = 0; n <= m->log->len; n++) {
		struct memdev *crashed = memdev_replay(m, image, n, n % 2 ? rnd(UINT64_MAX) : 0);

		assert_int_equal(client_open(crashed, 1 << 20, &c), 0);
		assert_in_range(c->transaction, first, first + 3);
		model_compare(c, states[c->transaction - first]);
		if (n % 8 == 0 || n == m->log->len) {
			client_audit(c);
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

		assert_int_equal(model_operate(c, model, 200), 0);
		assert_int_equal(client_commit(c), 0);
		before = model_copy(model);
		scratch = model_copy(model);
		committed = c->transaction;
		m->fail_at = at;
		r = model_operate(c, scratch, 60);
		if (!r)
			r = client_commit(c);
		m->fail_at = 0;
		client_close(c);
		assert_true(r == 0 || r == -EIO);
		assert_int_equal(client_open(m, 1 << 20, &c), 0);
		model_compare(c, c->transaction == committed ? before : scratch);
		client_audit(c);
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
	model_compare(c, model);
	assert_int_equal(dm_sm_extend(dm_tm_sm(c->tm), META_BLOCKS - 40), 0);
	assert_int_equal(dm_sm_nr_blocks(dm_tm_sm(c->tm)), META_BLOCKS);
	assert_int_equal(model_operate(c, model, 300), 0);
	assert_int_equal(client_commit(c), 0);
	model_compare(c, model);
	client_audit(c);
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

	assert_int_equal(model_operate(c, model, 400), 0);
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
		cmocka_unit_test(large_ranges_go_leaf_by_leaf),
		cmocka_unit_test(crash_while_a_large_tree_goes),
		cmocka_unit_test(crash_at_every_write),
		cmocka_unit_test(error_at_every_io),
		cmocka_unit_test(runs_out_of_space_and_goes_on),
		cmocka_unit_test(freed_blocks_wait_for_the_commit),
		cmocka_unit_test(survives_damage),
		cmocka_unit_test(readers_share_a_small_cache),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
