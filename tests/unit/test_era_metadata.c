/* SPDX-License-Identifier: GPL-2.0-or-later */
/* era's metadata against a model: marks, eras, digestion, snapshots, growth, and an error at every I/O. */
#include "unit.h"

#include <dmfs/array.h>
#include <dmfs/le.h>

#include "memdev.h"

#include "targets/era/metadata.h"

#define SECTORS 2048u
#define BLOCKS 700u
#define ERAS_AT 208 /* of the superblock: root of the era array */

static unsigned rnd(unsigned n)
{
	static uint64_t seed = 88172645463325252;

	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (unsigned)(seed % n);
}

static struct era_meta *open_md(struct memdev *m)
{
	struct era_meta *md;

	assert_int_equal(era_meta_open(&m->dev, 8, &md, NULL), 0);
	return md;
}

static struct era_meta *start(struct memdev *m, uint32_t blocks)
{
	struct era_meta *md = open_md(m);

	assert_int_equal(era_meta_archive(md), 0);
	assert_int_equal(era_meta_resize(md, blocks, NULL), 0);
	assert_int_equal(era_meta_new_era(md), 0);
	return md;
}

static uint32_t era_of(struct era_meta *md)
{
	struct era_usage u;

	era_meta_usage(md, &u);
	return u.era;
}

static void digest_all(struct era_meta *md)
{
	bool more = true;

	while (more)
		assert_int_equal(era_meta_digest(md, &more), 0);
}

/* The era array as it is on the disk. */
static void read_eras(struct memdev *m, uint32_t *eras, uint32_t n)
{
	static const struct dm_btree_value_type type = {.size = 4};
	struct dm_bm *bm = dm_bm_new(&m->dev, DM_META_BLOCK_SIZE, 1 << 20);
	struct dm_array_info info;
	struct dm_tm *tm;

	assert_int_equal(dm_tm_open(bm, 0, m->data + 44, DM_SM_ROOT_SIZE, &tm), 0);
	dm_array_info_init(&info, tm, &type);
	for (uint32_t i = 0; i < n; i++) {
		uint8_t value[4];

		assert_int_equal(dm_array_get(&info, get_le64(m->data + ERAS_AT), i, value), 0);
		eras[i] = get_le32(value);
	}
	dm_tm_free(tm);
	dm_bm_free(bm);
}

static void test_first_era(void **state)
{
	struct memdev *m = memdev_new(SECTORS);
	struct era_meta *md = open_md(m);

	assert_int_equal(era_meta_blocks(md), 0);
	assert_int_equal(era_of(md), 0);
	assert_int_not_equal(era_meta_mark(md, 0, 0), 0); /* no era is current */
	era_meta_close(md);
	md = start(m, BLOCKS);
	assert_int_equal(era_of(md), 1);
	assert_false(era_meta_marked(md, 0, 0));
	era_meta_close(md);
	memdev_put(m);
}

static void test_marks_count_when_they_are_durable(void **state)
{
	struct memdev *m = memdev_new(SECTORS);
	struct era_meta *md = start(m, BLOCKS);

	assert_int_equal(era_meta_mark(md, 30, 100), 0);
	assert_false(era_meta_marked(md, 30, 100));
	assert_int_equal(era_meta_commit(md), 0);
	assert_true(era_meta_marked(md, 30, 100));
	assert_true(era_meta_marked(md, 31, 63));
	assert_false(era_meta_marked(md, 29, 100));
	assert_false(era_meta_marked(md, 30, 101));
	assert_int_equal(era_meta_new_era(md), 0);
	assert_false(era_meta_marked(md, 30, 30));
	assert_int_equal(era_meta_mark(md, 30, 30), 0);
	assert_int_equal(era_meta_commit(md), 0);
	assert_true(era_meta_marked(md, 30, 30));
	assert_false(era_meta_marked(md, 31, 31)); /* of the same word, and marked in the last era */
	era_meta_close(md);
	memdev_put(m);
}

/* Random marks over many eras, with digestion and reopening now and then: the array says each block's last era. */
static void test_eras_of_blocks(void **state)
{
	struct memdev *m = memdev_new(SECTORS);
	struct era_meta *md = start(m, BLOCKS);
	uint32_t expected[BLOCKS] = {0}, got[BLOCKS];
	bool more;

	for (unsigned i = 0; i < 400; i++) {
		uint32_t first = rnd(BLOCKS), last = first + rnd(4) * rnd(40);

		last = MIN(last, BLOCKS - 1);

		switch (rnd(12)) {
		case 0:
			assert_int_equal(era_meta_new_era(md), 0);
			break;
		case 1:
			assert_int_equal(era_meta_digest(md, &more), 0);
			break;
		case 2: /* a crash */
			era_meta_close(md);
			md = start(m, BLOCKS);
			break;
		default:
			assert_int_equal(era_meta_mark(md, first, last), 0);
			assert_int_equal(era_meta_commit(md), 0);
			for (uint32_t b = first; b <= last; b++)
				expected[b] = era_of(md);
		}
	}
	assert_int_equal(era_meta_archive(md), 0);
	digest_all(md);
	assert_int_equal(era_meta_commit(md), 0);
	era_meta_close(md);
	read_eras(m, got, BLOCKS);
	assert_memory_equal(got, expected, sizeof got);
	memdev_put(m);
}

static void test_growing_and_shrinking(void **state)
{
	struct memdev *m = memdev_new(SECTORS);
	struct era_meta *md = start(m, 10);
	uint32_t eras[70];

	assert_int_equal(era_meta_mark(md, 9, 9), 0);
	assert_int_equal(era_meta_commit(md), 0);
	era_meta_close(md);
	md = start(m, 70);
	assert_int_equal(era_meta_mark(md, 69, 69), 0);
	assert_int_equal(era_meta_new_era(md), 0);
	digest_all(md);
	era_meta_close(md);
	read_eras(m, eras, 70);
	assert_int_equal(eras[9], 1);
	assert_int_equal(eras[10], 0);
	assert_int_equal(eras[69], 2);
	md = start(m, 70);
	assert_int_equal(era_meta_mark(md, 5, 60), 0);
	assert_int_equal(era_meta_commit(md), 0);
	era_meta_close(md);
	md = start(m, 8); /* an archived writeset is of more blocks than there are now */
	digest_all(md);
	era_meta_close(md);
	read_eras(m, eras, 8);
	assert_int_equal(eras[7], 4);
	memdev_put(m);
}

static void test_snapshot(void **state)
{
	struct memdev *m = memdev_new(SECTORS);
	struct era_meta *md = start(m, BLOCKS);
	struct era_usage before, u;

	digest_all(md);
	era_meta_usage(md, &before);
	assert_int_equal(era_meta_drop_snap(md, NULL), -EINVAL);
	assert_int_equal(era_meta_take_snap(md, NULL), 0);
	era_meta_usage(md, &u);
	assert_int_equal(u.era, before.era + 1);
	assert_int_not_equal(u.snap, 0);
	assert_int_equal(era_meta_take_snap(md, NULL), -EINVAL);
	assert_int_equal(era_meta_mark(md, 1, 600), 0);
	assert_int_equal(era_meta_new_era(md), 0);
	digest_all(md);
	era_meta_close(md); /* it outlives the target */
	md = start(m, BLOCKS);
	digest_all(md);
	assert_int_equal(era_meta_drop_snap(md, NULL), 0);
	assert_int_equal(era_meta_commit(md), 0); /* what was freed in the last transaction is free after it */
	era_meta_usage(md, &u);
	assert_int_equal(u.snap, 0);
	assert_int_equal(u.used, before.used);
	era_meta_close(md);
	memdev_put(m);
}

/* Each I/O in turn fails, and all after it: nothing is said to be recorded that is not on the disk. */
static void test_failing_device(void **state)
{
	for (uint64_t n = 1; n < 80; n++) {
		struct memdev *m = memdev_new(SECTORS);
		struct era_meta *md = start(m, BLOCKS);
		uint32_t durable[BLOCKS] = {0}, got[BLOCKS];
		bool more;

		m->fail_error = -EIO;
		m->fail_at = n;
		for (unsigned i = 0; i < 12; i++) {
			if (!era_meta_mark(md, i * 50, i * 50 + 3) && !era_meta_commit(md)) {
				assert_true(era_meta_marked(md, i * 50, i * 50 + 3));
				for (unsigned b = 0; b < 4; b++)
					durable[i * 50 + b] = 1;
			}
			era_meta_digest(md, &more);
			if (i % 4 == 3)
				era_meta_new_era(md);
		}
		era_meta_close(md);
		m->fail_at = 0;
		md = start(m, BLOCKS);
		digest_all(md);
		era_meta_close(md);
		read_eras(m, got, BLOCKS);
		for (unsigned b = 0; b < BLOCKS; b++)
			assert_true(!durable[b] || got[b]);
		memdev_put(m);
	}
}

static void test_refuses(void **state)
{
	struct memdev *m = memdev_new(SECTORS);
	struct era_meta *md = start(m, BLOCKS);

	era_meta_close(md);
	assert_int_equal(era_meta_open(&m->dev, 16, &md, NULL), -EINVAL);
	m->data[200] ^= 1;
	assert_int_equal(era_meta_open(&m->dev, 8, &md, NULL), -EILSEQ);
	memset(m->data, 'x', 4096);
	assert_int_not_equal(era_meta_open(&m->dev, 8, &md, NULL), 0);
	memdev_put(m);
	m = memdev_new(8); /* no room for metadata */
	assert_int_not_equal(era_meta_open(&m->dev, 8, &md, NULL), 0);
	memdev_put(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_first_era),
		cmocka_unit_test(test_marks_count_when_they_are_durable),
		cmocka_unit_test(test_eras_of_blocks),
		cmocka_unit_test(test_growing_and_shrinking),
		cmocka_unit_test(test_snapshot),
		cmocka_unit_test(test_failing_device),
		cmocka_unit_test(test_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
