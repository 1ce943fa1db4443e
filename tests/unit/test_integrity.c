/* SPDX-License-Identifier: GPL-2.0-or-later */
/* integrity: the layout's arithmetic against what a kernel formats, superblocks, and tags that come from above. */
#include "device.h"
#include "memdev.h"

#include <dmfs/le.h>
#include <dmfs/rounding.h>

#include "targets/integrity/layout.h"
#include "targets/integrity/super.h"
#include "targets/list.h"

#define DEVICE 16384u

/* --- the layout ---------------------------------------------------------------------------------------------- */

static struct integrity_layout layout_of(unsigned tag, unsigned log2_spb, bool mac, bool fix_padding)
{
	return (struct integrity_layout){.data_sectors = DEVICE, .meta_sectors = DEVICE, .tag_size = tag, .log2_spb = log2_spb,
					 .journal_mac = mac, .fix_padding = fix_padding, .log2_buffer = 7};
}

/* 8 MiB: sectors provided and of the journal. */
static void formats_as_the_kernel_does(void **state)
{
	static const struct {
		unsigned tag, log2_spb;
		bool mac, fix_padding;
		unsigned provided, journal;
	} cases[] = {
		{4, 0, false, false, 15944, 176}, {16, 0, false, false, 15224, 128}, {32, 0, false, false, 14240, 88},
		{128, 0, false, false, 8056, 128}, {129, 0, false, false, 7800, 128},
	};

	for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
		struct integrity_layout l = layout_of(cases[i].tag, cases[i].log2_spb, cases[i].mac, cases[i].fix_padding);

		assert_int_equal(integrity_layout_format(&l, 0, 0, NULL), 0);
		assert_int_equal(l.provided, cases[i].provided);
		assert_int_equal(l.initial, SB_SECTORS + cases[i].journal);
	}
}

/* No tag lies on data, no two tags on one another, nothing beyond the device, whatever the numbers are. */
static void nothing_lies_on_anything_else(void **state)
{
	for (unsigned seed = 0; seed < 24; seed++) {
		g_autoptr(GRand) rand = g_rand_new_with_seed(seed);
		struct integrity_layout l = layout_of((unsigned)g_rand_int_range(rand, 1, 256),
						      (unsigned)g_rand_int_range(rand, 0, 4), seed & 1, seed & 2);
		g_autofree uint8_t *used = g_malloc0(DEVICE * DM_SECTOR_SIZE);
		unsigned block;

		l.start = (uint64_t)g_rand_int_range(rand, 0, 64);
		l.log2_buffer = (unsigned)g_rand_int_range(rand, 0, 12);
		if (integrity_layout_format(&l, (unsigned)g_rand_int_range(rand, 0, 4000),
					    (unsigned)g_rand_int_range(rand, 1, 1 << 15), NULL))
			continue;
		block = DM_SECTOR_SIZE << l.log2_spb;
		assert_int_equal(l.provided % 8, 0);
		memset(used, 1, (l.start + l.initial) * DM_SECTOR_SIZE);
		for (uint64_t b = 0; b < l.provided >> l.log2_spb; b++) {
			uint64_t data = integrity_data_sector(&l, b << l.log2_spb) * DM_SECTOR_SIZE;
			uint64_t tag = (l.start + l.initial) * DM_SECTOR_SIZE + integrity_tag_at(&l, b);
			uint64_t buffer = (uint64_t)DM_SECTOR_SIZE << l.log2_buffer, in = integrity_tag_at(&l, b) / buffer * buffer;

			assert_true(data + block <= DEVICE * DM_SECTOR_SIZE);
			for (unsigned i = 0; i < block; i++)
				assert_int_equal(used[data + i]++, 0);
			for (unsigned i = 0; i < l.tag_size; i++)
				assert_int_equal(used[tag + i]++, 0);
			/* the buffer with the tag's first byte lies in the run's tags */
			assert_true(integrity_run_left(&l, b) >= 1);
			assert_true((l.start + l.initial) * DM_SECTOR_SIZE + in + buffer <=
				    integrity_data_sector(&l, dm_round_down(b << l.log2_spb, 1u << l.log2_interleave)) * DM_SECTOR_SIZE);
		}
	}
}

static void hostile_numbers_are_refused_or_fit(void **state)
{
	for (unsigned seed = 0; seed < 20000; seed++) {
		g_autoptr(GRand) rand = g_rand_new_with_seed(seed);
		struct integrity_layout l = layout_of((unsigned)g_rand_int_range(rand, 1, 256),
						      (unsigned)g_rand_int_range(rand, 0, 4), seed & 1, seed & 2);

		l.separate = seed & 4;
		l.sections = g_rand_int(rand) >> g_rand_int_range(rand, 0, 31);
		l.log2_interleave = l.separate ? 0 : (unsigned)g_rand_int_range(rand, 3, 32);
		l.start = (uint64_t)g_rand_int(rand) << g_rand_int_range(rand, 0, 32) >> g_rand_int_range(rand, 0, 64);
		l.data_sectors = l.meta_sectors = (uint64_t)g_rand_int(rand) << 31 >> g_rand_int_range(rand, 0, 62);
		if (integrity_layout_open(&l, NULL))
			continue;
		assert_true(l.provided > 0 && l.provided <= l.data_sectors);
		if (!l.separate)
			assert_true(integrity_data_sector(&l, l.provided - 1) < l.data_sectors);
		integrity_layout_bitmap(&l, (unsigned)g_rand_int_range(rand, 0, 64));
		assert_true(l.bits <= UINT32_MAX && (uint64_t)integrity_layout_bitmap_blocks(&l) * 8 <= dm_round_up(l.initial, 8));
	}
}

static void superblocks_come_back(void **state)
{
	struct integrity_super sb = {.log2_interleave = 15, .tag_size = 32, .log2_spb = 3, .log2_blocks_per_bit = 9,
				     .sections = 77, .flags = SB_RECALCULATING, .provided = 123456, .recalc = 999};
	uint8_t bytes[SB_BYTES];
	struct integrity_super got;

	integrity_super_print(&sb, NULL, false, false, bytes);
	assert_int_equal(sb.version, 2);
	assert_int_equal(integrity_super_parse(bytes, &got), SUPER_FOUND);
	assert_memory_equal(&got, &sb, sizeof got);
	integrity_super_print(&sb, NULL, true, false, bytes);
	assert_int_equal(bytes[8], 3);
	sb.flags = SB_FIXED_PADDING;
	integrity_super_print(&sb, NULL, true, false, bytes);
	assert_int_equal(bytes[8], 4);
	memset(bytes, 0, sizeof bytes);
	assert_int_equal(integrity_super_parse(bytes, &got), SUPER_ZEROES);
	bytes[SB_BYTES - 1] = 1;
	assert_int_equal(integrity_super_parse(bytes, &got), SUPER_NONE);
}

/* --- tags from above ------------------------------------------------------------------------------------------- */

#define TAG 28u
#define BLOCK_SECTORS 8u
#define BLOCK (BLOCK_SECTORS * 512u)
#define LENGTH 8192u

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;

static void note_end(struct dm_bio *bio)
{
	pthread_mutex_lock(&lock);
	*(bool *)bio->private = true;
	pthread_cond_signal(&cond);
	pthread_mutex_unlock(&lock);
}

static int submit(struct dm_mapped *md, enum dm_op op, uint64_t block, unsigned blocks, uint8_t *data, uint8_t *tags)
{
	struct iovec iov[2] = {{data, 700}, {data + 700, blocks * BLOCK - 700}};
	bool ended = false;
	struct dm_bio bio = {.op = op, .dev = &md->dev, .sector = block * BLOCK_SECTORS, .sectors = blocks * BLOCK_SECTORS,
			     .iov = iov, .iovcnt = 2, .tags = {tags, TAG, BLOCK_SECTORS}, .end = note_end,
			     .private = &ended};

	if (!tags)
		bio.tags = (struct dm_tags){0};
	dm_submit(&bio);
	pthread_mutex_lock(&lock);
	while (!ended)
		pthread_cond_wait(&cond, &lock);
	pthread_mutex_unlock(&lock);
	return bio.error;
}

static void fill(uint8_t *data, uint8_t *tags, uint64_t first, unsigned blocks, unsigned turn)
{
	for (unsigned i = 0; i < blocks; i++) {
		memset(data + i * BLOCK, (int)(first + i + turn), BLOCK);
		memset(tags + i * TAG, (int)(first + i + turn) ^ 0xff, TAG);
	}
}

static void check(struct dm_mapped *md, uint64_t first, unsigned blocks, unsigned turn)
{
	g_autofree uint8_t *data = g_malloc(blocks * BLOCK), *got = g_malloc0(blocks * BLOCK);
	g_autofree uint8_t *tags = g_malloc(blocks * TAG), *got_tags = g_malloc0(blocks * TAG);

	fill(data, tags, first, blocks, turn);
	assert_int_equal(submit(md, DM_READ, first, blocks, got, got_tags), 0);
	assert_memory_equal(data, got, blocks * BLOCK);
	assert_memory_equal(tags, got_tags, blocks * TAG);
}

static void put(struct dm_mapped *md, uint64_t first, unsigned blocks, unsigned turn)
{
	g_autofree uint8_t *data = g_malloc(blocks * BLOCK), *tags = g_malloc(blocks * TAG);

	fill(data, tags, first, blocks, turn);
	assert_int_equal(submit(md, DM_WRITE, first, blocks, data, tags), 0);
}

static void keep_tags(char mode, const char *words)
{
	struct memdev *m = memdev_new(DEVICE);
	struct dm_mapped *low, *vol;
	struct dm_limits limits;

	unit_store("m", &m->dev);
	for (unsigned turn = 0; turn < 3; turn++) {
		low = unit_device("low", "0 %u integrity unit:m 0 28 %c %s", LENGTH, mode, words);
		vol = unit_device("vol", "0 %u linear low 0", LENGTH);
		dm_dev_limits(&vol->dev, &limits);
		assert_int_equal(limits.tag_bytes, TAG);
		assert_int_equal(limits.tag_block, BLOCK);
		if (turn) {
			check(vol, 0, 40, turn - 1);
			check(vol, 100, 3, turn - 1);
		}
		put(vol, 0, 40, turn);
		put(vol, 100, 3, turn);
		check(vol, 0, 40, turn);
		/* some of it written anew: a read of old and new, journal and home */
		put(vol, 7, 2, turn + 5);
		check(vol, 7, 2, turn + 5);
		check(vol, 9, 31, turn);
		put(vol, 7, 2, turn);
		check(vol, 0, 40, turn);
		unit_remove(vol);
		unit_remove(low);
	}
	unit_stores_forget();
	memdev_put(m);
}

static void tags_from_above_are_kept(void **state)
{
	keep_tags('D', "2 block_size:4096 fix_padding");
	keep_tags('J', "2 block_size:4096 fix_padding");
	keep_tags('J', "4 block_size:4096 fix_padding journal_sectors:1 interleave_sectors:64");
	keep_tags('J', "4 block_size:4096 fix_padding journal_watermark:100 journal_mac:hmac(sha256):00");
}

static int setup(void **state)
{
	dm_register_targets(dm_target_list);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(formats_as_the_kernel_does),
		cmocka_unit_test(nothing_lies_on_anything_else),
		cmocka_unit_test(hostile_numbers_are_refused_or_fit),
		cmocka_unit_test(superblocks_come_back),
		cmocka_unit_test(tags_from_above_are_kept),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
