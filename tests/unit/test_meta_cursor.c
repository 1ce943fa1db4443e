/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Cursors over arrays and bitsets, and blocks that are read ahead. */
#include "unit.h"

#include <pthread.h>

#include "meta_model.h"

#define VALUE 12u /* bytes */
#define PER_BLOCK ((4096u - 24u) / VALUE)

static struct memdev *m;
static struct client *c;
static struct dm_array_info array;

static int setup(void **state)
{
	static const struct dm_btree_value_type vt = {.size = VALUE};

	m = memdev_new(META_BLOCKS * 8);
	c = client_new(m, 4 << 20);
	dm_array_info_init(&array, c->tm, &vt);
	return 0;
}

static int teardown(void **state)
{
	client_close(c);
	memdev_put(m);
	return 0;
}

/* Commits, and begins again with nothing cached. */
static void start_cold(size_t cache)
{
	static const struct dm_btree_value_type vt = {.size = VALUE};

	assert_int_equal(client_commit(c), 0);
	client_close(c);
	assert_int_equal(client_open(m, cache, &c), 0);
	dm_array_info_init(&array, c->tm, &vt);
	m->reads = 0;
}

static int numbered(void *context, uint32_t index, void *value)
{
	memset(value, 0, VALUE);
	put_le64(value, index * 3ull + 1);
	return 0;
}

static void assert_value(const struct dm_array_cursor *a, uint32_t index)
{
	assert_int_equal(a->index, index);
	assert_int_equal(get_le64(dm_array_cursor_get(a)), index * 3ull + 1);
}

/* --- arrays -------------------------------------------------------------------------------- */

static void an_array_from_end_to_end(void **state)
{
	static const uint32_t sizes[] = {0, 1, 2, PER_BLOCK - 1, PER_BLOCK, PER_BLOCK + 1, 2 * PER_BLOCK, 10000,
					 300 * PER_BLOCK + 5};
	g_autofree struct dm_array_cursor *a = g_new(struct dm_array_cursor, 1);

	for (unsigned s = 0; s < G_N_ELEMENTS(sizes); s++) {
		dm_block_t root;
		int r;

		assert_int_equal(dm_array_new(&array, &root, sizes[s], numbered, NULL), 0);
		r = dm_array_cursor_begin(&array, root, sizes[s], a);
		for (uint32_t i = 0; i < sizes[s]; i++) {
			assert_int_equal(r, 0);
			assert_value(a, i);
			r = dm_array_cursor_next(a);
		}
		assert_int_equal(r, -ENODATA);
		assert_int_equal(dm_array_cursor_next(a), -ENODATA);
		assert_int_equal(dm_array_del(&array, root), 0);
	}
}

static void an_array_in_leaps(void **state)
{
	const uint32_t size = 300 * PER_BLOCK + 5;
	g_autofree struct dm_array_cursor *a = g_new(struct dm_array_cursor, 1);
	dm_block_t root;

	assert_int_equal(dm_array_new(&array, &root, size, numbered, NULL), 0);
	for (unsigned round = 0; round < 50; round++) {
		uint32_t at = 0, longest = 1u << rnd(17);

		assert_int_equal(dm_array_cursor_begin(&array, root, size, a), 0);
		for (;;) {
			uint32_t n = rnd(longest);
			int r = dm_array_cursor_skip(a, n);

			if (n >= size - at) {
				assert_int_equal(r, -ENODATA);
				break;
			}
			assert_int_equal(r, 0);
			at += n;
			assert_value(a, at);
			if (longest == 1)
				break;
		}
	}
}

static void a_size_that_is_not_the_arrays(void **state)
{
	g_autofree struct dm_array_cursor *a = g_new(struct dm_array_cursor, 1);
	dm_block_t root;

	assert_int_equal(dm_array_new(&array, &root, 10, numbered, NULL), 0);
	assert_int_equal(dm_array_cursor_begin(&array, root, 11, a), -EILSEQ);
	assert_int_equal(dm_array_cursor_begin(&array, root, 5, a), 0);
	assert_int_equal(dm_array_cursor_skip(a, 5), -ENODATA);
	assert_int_equal(dm_array_empty(&array, &root), 0);
	assert_int_equal(dm_array_cursor_begin(&array, root, 1, a), -EILSEQ);
	assert_int_equal(dm_array_new(&array, &root, 2 * PER_BLOCK, numbered, NULL), 0);
	assert_int_equal(dm_array_cursor_begin(&array, root, 2 * PER_BLOCK + 1, a), 0);
	assert_int_equal(dm_array_cursor_skip(a, 2 * PER_BLOCK), -EILSEQ);
}

/* --- bitsets ------------------------------------------------------------------------------- */

static bool bit_of(uint32_t i)
{
	return i * 2654435761u >> 28 & 1;
}

static int give_bit(void *context, uint32_t index, bool *value)
{
	*value = bit_of(index);
	return 0;
}

static void a_bitset(void **state)
{
	static const uint32_t sizes[] = {0, 1, 63, 64, 65, 509 * 64, 509 * 64 + 1, 1000003};
	struct dm_bitset_info bits;
	g_autofree struct dm_bitset_cursor *b = g_new(struct dm_bitset_cursor, 1);

	dm_bitset_info_init(&bits, c->tm);
	for (unsigned s = 0; s < G_N_ELEMENTS(sizes); s++) {
		uint32_t at = 0;
		dm_block_t root;
		int r;

		assert_int_equal(dm_bitset_new(&bits, &root, sizes[s], give_bit, NULL), 0);
		r = dm_bitset_cursor_begin(&bits, root, sizes[s], b);
		for (uint32_t i = 0; i < sizes[s]; i++) {
			assert_int_equal(r, 0);
			assert_int_equal(dm_bitset_cursor_get(b), bit_of(i));
			r = dm_bitset_cursor_next(b);
		}
		assert_int_equal(r, -ENODATA);
		r = dm_bitset_cursor_begin(&bits, root, sizes[s], b);
		while (!r) {
			uint32_t n = 1 + rnd(300);

			assert_int_equal(b->index, at);
			assert_int_equal(dm_bitset_cursor_get(b), bit_of(at));
			r = dm_bitset_cursor_skip(b, n);
			at += n;
		}
		assert_int_equal(r, -ENODATA);
		assert_true(at >= sizes[s]);
	}
}

static void a_bitset_after_changes(void **state)
{
	struct dm_bitset_info bits;
	g_autofree struct dm_bitset_cursor *b = g_new(struct dm_bitset_cursor, 1);
	dm_block_t root;

	dm_bitset_info_init(&bits, c->tm);
	assert_int_equal(dm_bitset_new(&bits, &root, 1000, give_bit, NULL), 0);
	assert_int_equal(dm_bitset_set(&bits, &root, 700, !bit_of(700)), 0);
	assert_int_equal(dm_bitset_flush(&bits, &root), 0);
	assert_int_equal(dm_bitset_cursor_begin(&bits, root, 1000, b), 0);
	for (uint32_t i = 0; i < 1000; i++, dm_bitset_cursor_next(b))
		assert_int_equal(dm_bitset_cursor_get(b), i == 700 ? !bit_of(i) : bit_of(i));
}

/* --- reading ahead ---------------------------------------------------------------------------- */

static void neighbours_are_read_together(void **state)
{
	const uint32_t size = 1000 * PER_BLOCK;
	g_autofree struct dm_array_cursor *a = g_new(struct dm_array_cursor, 1);
	dm_block_t root;

	assert_int_equal(dm_array_new(&array, &root, size, numbered, NULL), 0);
	start_cold(4 << 20);
	assert_int_equal(dm_array_cursor_begin(&array, root, size, a), 0);
	for (uint32_t i = 0; i < size; i++, dm_array_cursor_next(a))
		assert_value(a, i);
	assert_in_range(m->reads, 1, 200); /* of 1000 blocks and their index */
}

static int count_value(void *context, uint32_t index, const void *value)
{
	assert_int_equal(get_le64(value), index * 3ull + 1);
	++*(uint32_t *)context;
	return 0;
}

static void a_walk_reads_ahead_too(void **state)
{
	const uint32_t size = 1000 * PER_BLOCK;
	dm_block_t root;
	uint32_t n = 0;

	assert_int_equal(dm_array_new(&array, &root, size, numbered, NULL), 0);
	start_cold(4 << 20);
	assert_int_equal(dm_array_walk(&array, root, count_value, &n), 0);
	assert_int_equal(n, size);
	assert_in_range(m->reads, 1, 200);
}

static void a_small_cache_is_enough(void **state)
{
	const uint32_t size = 500 * PER_BLOCK;
	g_autofree struct dm_array_cursor *a = g_new(struct dm_array_cursor, 1);
	dm_block_t root;

	assert_int_equal(dm_array_new(&array, &root, size, numbered, NULL), 0);
	start_cold(1);
	assert_int_equal(dm_array_cursor_begin(&array, root, size, a), 0);
	for (uint32_t i = 0; i < size; i++, dm_array_cursor_next(a))
		assert_value(a, i);
}

static void an_error_comes_from_who_needs_the_block(void **state)
{
	const uint32_t size = 100 * PER_BLOCK;
	g_autofree struct dm_array_cursor *a = g_new(struct dm_array_cursor, 1);
	dm_block_t root;
	int r;

	assert_int_equal(dm_array_new(&array, &root, size, numbered, NULL), 0);
	for (unsigned at = 1; at < 8; at++) {
		start_cold(4 << 20);
		m->fail_at = at;
		r = dm_array_cursor_begin(&array, root, size, a);
		while (!r)
			r = dm_array_cursor_next(a);
		assert_true(r == -EIO || (r == -ENODATA && a->index == size));
		m->fail_at = 0;
		/* and nothing is left of it */
		assert_int_equal(dm_array_cursor_begin(&array, root, size, a), 0);
		for (uint32_t i = 0; i < size; i++, dm_array_cursor_next(a))
			assert_value(a, i);
	}
}

/* --- a device whose reads wait until they are let go ------------------------------------------- */

static struct {
	struct dm_dev dev;
	pthread_mutex_t lock;
	pthread_cond_t came;
	bool holding;
	struct dm_bio_list held;
	unsigned n;
} slow = {.lock = PTHREAD_MUTEX_INITIALIZER, .came = PTHREAD_COND_INITIALIZER};

static void slow_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	bool hold;

	pthread_mutex_lock(&slow.lock);
	hold = slow.holding;
	if (hold) {
		dm_bio_list_add(&slow.held, bio);
		slow.n++;
		pthread_cond_signal(&slow.came);
	}
	pthread_mutex_unlock(&slow.lock);
	if (!hold)
		m->dev.ops->submit(&m->dev, bio);
}

static uint64_t slow_sectors(struct dm_dev *dev)
{
	return m->sectors;
}

static const struct dm_dev_ops slow_ops = {.submit = slow_submit, .sectors = slow_sectors};

static void let_go(unsigned n)
{
	struct dm_bio_list list;
	struct dm_bio *bio;

	dm_bio_list_init(&list);
	pthread_mutex_lock(&slow.lock);
	while (slow.n < n)
		pthread_cond_wait(&slow.came, &slow.lock);
	slow.holding = false;
	dm_bio_list_take(&slow.held, &list);
	pthread_mutex_unlock(&slow.lock);
	while ((bio = dm_bio_list_pop(&list)))
		m->dev.ops->submit(&m->dev, bio);
}

static void *lock_block_5(void *bm)
{
	struct dm_block *b;
	int r = dm_bm_read_lock(bm, 5, NULL, &b);

	assert_int_equal(r, 0);
	assert_int_equal(*(uint8_t *)dm_block_data(b), 5);
	dm_bm_unlock(b);
	return NULL;
}

static void nobody_waits_for_what_is_read_ahead(void **state)
{
	struct dm_bm *bm;
	struct dm_block *b;
	pthread_t thread;

	slow.dev = (struct dm_dev){.ops = &slow_ops, .mode = DM_MODE_RW};
	dm_bio_list_init(&slow.held);
	slow.holding = true;
	slow.n = 0;
	for (unsigned i = 0; i < 64; i++)
		memset(m->data + i * 4096, (int)i, 4096);
	bm = dm_bm_new(&slow.dev, 4096, 1 << 20);
	dm_bm_prefetch(bm, 4, 6);
	dm_bm_prefetch(bm, 5, 2);                     /* under way already */
	dm_bm_prefetch(bm, META_BLOCKS - 1, 100);     /* one is there */
	dm_bm_prefetch(bm, META_BLOCKS + 100, 5);     /* none */
	pthread_create(&thread, NULL, lock_block_5, bm);
	let_go(2);
	pthread_join(thread, NULL);
	m->reads = 0;
	for (dm_block_t i = 4; i < 10; i++) {
		assert_int_equal(dm_bm_read_lock(bm, i, NULL, &b), 0);
		assert_int_equal(*(uint8_t *)dm_block_data(b), i);
		dm_bm_unlock(b);
	}
	assert_int_equal(m->reads, 0);
	/* the end waits for what is under way */
	slow.holding = true;
	slow.n = 0;
	dm_bm_prefetch(bm, 20, 8);
	let_go(1);
	dm_bm_free(bm);
}

static void a_locked_or_written_block_stays_as_it_is(void **state)
{
	struct dm_bm *bm = dm_bm_new(&m->dev, 4096, 1 << 20);
	struct dm_block *b, *other;

	assert_int_equal(dm_bm_write_lock_zero(bm, 7, NULL, &b), 0);
	memset(dm_block_data(b), 77, 4096);
	dm_bm_prefetch(bm, 6, 3);
	dm_bm_unlock(b);
	dm_bm_prefetch(bm, 6, 3);
	assert_int_equal(dm_bm_read_lock(bm, 7, NULL, &b), 0);
	assert_int_equal(*(uint8_t *)dm_block_data(b), 77);
	assert_int_equal(dm_bm_read_lock(bm, 8, NULL, &other), 0);
	dm_bm_unlock(other);
	dm_bm_unlock(b);
	assert_int_equal(dm_bm_write_lock_zero(bm, 6, NULL, &b), 0); /* perhaps while it is being read */
	assert_int_equal(*(uint8_t *)dm_block_data(b), 0);
	dm_bm_unlock(b);
	dm_bm_free(bm);
}

/* --- validators -------------------------------------------------------------------------------- */

static void salted_prepare(void *salt, dm_block_t where, void *data, size_t size)
{
	*(uint8_t *)data = *(const uint8_t *)salt + (uint8_t)where;
}

static int salted_check(void *salt, dm_block_t where, const void *data, size_t size)
{
	return *(const uint8_t *)data == (uint8_t)(*(const uint8_t *)salt + where) ? 0 : -EILSEQ;
}

static void a_validator_knows_its_context(void **state)
{
	uint8_t salt = 40, another = 41;
	struct dm_validator v = {"salted", salted_prepare, salted_check, &salt};
	struct dm_validator w = {"salted otherwise", salted_prepare, salted_check, &another};
	struct dm_bm *bm = dm_bm_new(&m->dev, 4096, 1 << 20);
	struct dm_block *b;

	assert_int_equal(dm_bm_write_lock_zero(bm, 9, &v, &b), 0);
	dm_bm_unlock(b);
	assert_int_equal(dm_bm_flush(bm), 0);
	dm_bm_free(bm);
	assert_int_equal(m->data[9 * 4096], 49);
	bm = dm_bm_new(&m->dev, 4096, 1 << 20);
	dm_bm_prefetch(bm, 9, 1);
	assert_int_equal(dm_bm_read_lock(bm, 9, &w, &b), -EILSEQ);
	assert_int_equal(dm_bm_read_lock(bm, 9, &v, &b), 0);
	dm_bm_unlock(b);
	dm_bm_free(bm);
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(an_array_from_end_to_end),
		TEST(an_array_in_leaps),
		TEST(a_size_that_is_not_the_arrays),
		TEST(a_bitset),
		TEST(a_bitset_after_changes),
		TEST(neighbours_are_read_together),
		TEST(a_walk_reads_ahead_too),
		TEST(a_small_cache_is_enough),
		TEST(an_error_comes_from_who_needs_the_block),
		TEST(nobody_waits_for_what_is_read_ahead),
		TEST(a_locked_or_written_block_stays_as_it_is),
		TEST(a_validator_knows_its_context),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
