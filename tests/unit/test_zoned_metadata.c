/* SPDX-License-Identifier: GPL-2.0-or-later */
/* zoned's superblock and metadata: the checksum, how much memory they take, and commits. */
#include "unit.h"

#include <dmfs/le.h>

#include "device.h"
#include "io/zoned.h"
#include "targets/zoned/metadata.h"

/* --- a disk ------------------------------------------------------------------------------ */

static int keep(struct zones_keeper *k, const GString *text)
{
	return 0;
}

static void keep_nothing(struct zones_keeper *k)
{
}

static struct zones_keeper keeper = {keep, keep, keep_nothing};

static struct zones make_zones(unsigned n, unsigned conventional, uint32_t sectors)
{
	struct zones z = {.model = DM_ZONES_HOST_MANAGED,
			  .logical_block = 512,
			  .zone_sectors = sectors,
			  .sectors = (uint64_t)n * sectors,
			  .n = n};

	z.zone = g_new0(struct zones_zone, n);
	for (unsigned i = 0; i < n; i++)
		z.zone[i] = i < conventional ? (struct zones_zone){0, sectors, DM_ZONE_CONVENTIONAL, DM_ZONE_NOT_WP}
					     : (struct zones_zone){0, sectors, DM_ZONE_SEQUENTIAL, DM_ZONE_EMPTY};
	return z;
}

static struct dm_dev *open_file(uint64_t sectors)
{
	struct dm_opener self = dm_opener_self();
	struct dm_store_path found;
	struct dm_dev *dev;

	assert_int_equal(dm_store_find(&self, unit_file(sectors), &found, NULL), 0);
	assert_int_equal(dm_store_open(&self, &found, DM_MODE_RW, &dev, NULL), 0);
	dm_store_path_clear(&found);
	return dev;
}

/* Formats a disk of which set_zones zones hold a set. */
static void format(struct dm_dev *dev, unsigned n, uint32_t zone_sectors, unsigned set_zones, unsigned reserved)
{
	uint32_t blocks = zone_sectors / ZONED_BLOCK_SECTORS;
	struct zoned_super sb = {
	    .version = 2, .generation = 1, .reserved_seq = reserved, .uuid = {1}, .device_uuid = {2}};
	g_autofree uint8_t *block = g_malloc(ZONED_BLOCK), *map = g_malloc(ZONED_BLOCK);

	sb.chunks = n - 2 * set_zones - reserved;
	sb.map_blocks = zoned_map_blocks(sb.chunks);
	sb.bitmap_blocks = n * zoned_zone_bitmap_blocks(blocks);
	sb.set_blocks = 1 + sb.map_blocks + sb.bitmap_blocks;
	memset(map, 0xff, ZONED_BLOCK);
	for (unsigned set = 0; set < 2; set++) {
		uint64_t at = (uint64_t)set * set_zones * zone_sectors;

		sb.block = (uint64_t)set * set_zones * blocks;
		zoned_super_write(&sb, block);
		assert_int_equal(dm_write_sync(dev, at, ZONED_BLOCK_SECTORS, block, 0), 0);
		for (uint32_t i = 0; i < sb.map_blocks; i++)
			assert_int_equal(
			    dm_write_sync(dev, at + (1 + i) * ZONED_BLOCK_SECTORS, ZONED_BLOCK_SECTORS, map, 0), 0);
	}
}

static int write_block(struct zoned_meta *meta, uint32_t chunk, uint32_t block)
{
	g_autofree uint8_t *data = g_malloc0(ZONED_BLOCK);
	struct zoned_chunk c;
	struct dm_dev *dev;
	uint64_t sector;
	int which, error = zoned_chunk_get(meta, chunk, true, &c);

	if (error)
		return error;
	put_le32(data, chunk * 65536 + block);
	which = zoned_chunk_place(meta, &c, block, 1, &dev, &sector);
	if (which >= 0) {
		error = dm_write_sync(dev, sector, ZONED_BLOCK_SECTORS, data, 0);
		zoned_chunk_written(meta, &c, which, block, 1, error);
	}
	zoned_chunk_put(meta, &c);
	return which < 0 ? which : error;
}

static bool holds(struct zoned_meta *meta, uint32_t chunk, uint32_t block)
{
	g_autofree uint8_t *data = g_malloc0(ZONED_BLOCK);
	struct zoned_chunk c;
	struct dm_dev *dev;
	uint64_t sector;
	int error;

	assert_int_equal(zoned_chunk_get(meta, chunk, true, &c), 0);
	assert_int_equal(zoned_chunk_find(meta, &c, block, 1, &dev, &sector, &error), 1);
	if (dev && !error)
		assert_int_equal(dm_read_sync(dev, sector, ZONED_BLOCK_SECTORS, data, 0), 0);
	zoned_chunk_put(meta, &c);
	return get_le32(data) == chunk * 65536 + block;
}

/* --- tests ---------------------------------------------------------------------------------- */

/* What zlib's crc32() gives for the same bytes, begun with the generation and with its inversions undone. */
static void test_checksum(void **state)
{
	g_autofree uint8_t *block = g_malloc0(ZONED_BLOCK);
	struct zoned_super sb = {.version = 2,
				 .generation = 1,
				 .block = 0,
				 .set_blocks = 35,
				 .reserved_seq = 4,
				 .chunks = 27,
				 .map_blocks = 1,
				 .bitmap_blocks = 33,
				 .label = "dmz-disk"},
			   read;

	zoned_super_write(&sb, block);
	assert_memory_equal(block, "DBZD", 4);
	assert_int_equal(get_le32(block + 44), 0x0808f86d);
	assert_true(zoned_super_read(&read, block));
	assert_int_equal(read.chunks, 27);
	assert_string_equal((char *)read.label, "dmz-disk");
	for (unsigned at = 0; at < ZONED_BLOCK; at += 37) {
		block[at] ^= 4;
		assert_false(zoned_super_read(&read, block));
		block[at] ^= 4;
	}
}

/* 10 TiB with zones of 256 MiB: at most 4.5 MB, as the document promises. */
static void test_memory(void **state)
{
	enum { N = 40960, CONVENTIONAL = 410, ZONE = 1 << 19, SET_ZONES = 2 };
	struct zones z = make_zones(N, CONVENTIONAL, ZONE);
	struct dm_dev *disk = dm_zoned_new(open_file((uint64_t)N * ZONE), &z, &keeper);
	struct zoned_dev one = {.dev = disk};
	struct zoned_geometry g = {.devs = &one, .n = 1};
	struct zoned_meta *meta;
	size_t most = 0;
	bool freed;

	format(disk, N, ZONE, SET_ZONES, 16);
	assert_int_equal(zoned_geometry(&g, NULL), 0);
	assert_int_equal(zoned_meta_open(&g, true, &meta, NULL), 0);
	for (uint32_t chunk = 0; chunk < 1000; chunk++) {
		assert_int_equal(write_block(meta, chunk, chunk % 5 ? 0 : 9), 0);
		most = MAX(most, zoned_meta_bytes(meta));
		if (zoned_meta_dirty(meta))
			assert_int_equal(zoned_meta_commit(meta, &freed), 0);
	}
	assert_int_equal(zoned_meta_commit(meta, &freed), 0);
	assert_in_range(most, 1 << 20, 4500000);
	for (uint32_t chunk = 0; chunk < 1000; chunk++)
		assert_true(holds(meta, chunk, chunk % 5 ? 0 : 9));
	zoned_meta_close(meta);
	dm_dev_put(disk);
}

/* Both sets are there after any number of commits, and what they say is what was written. */
static void test_commits(void **state)
{
	enum { N = 40, CONVENTIONAL = 12, ZONE = 512, SET_ZONES = 1 };
	struct zones z = make_zones(N, CONVENTIONAL, ZONE);
	struct dm_dev *disk = dm_zoned_new(open_file(N * ZONE), &z, &keeper);
	struct zoned_dev one = {.dev = disk};
	struct zoned_geometry g = {.devs = &one, .n = 1};
	struct zoned_super sb;
	struct zoned_meta *meta;
	bool freed;

	format(disk, N, ZONE, SET_ZONES, 3);
	assert_int_equal(zoned_geometry(&g, NULL), 0);
	for (uint32_t round = 0; round < 5; round++) {
		assert_int_equal(zoned_meta_open(&g, true, &meta, NULL), 0);
		zoned_meta_super(meta, &sb);
		assert_int_equal(sb.generation, 1 + round);
		for (uint32_t before = 0; before < round; before++)
			assert_true(holds(meta, before, before * 3));
		assert_int_equal(write_block(meta, round, round * 3), 0);
		assert_int_equal(zoned_meta_commit(meta, &freed), 0);
		assert_int_equal(zoned_meta_commit(meta, &freed), 0); /* nothing has changed */
		zoned_meta_close(meta);
	}
	dm_dev_put(disk);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_checksum),
	    cmocka_unit_test(test_memory),
	    cmocka_unit_test(test_commits),
	};
	int failed = cmocka_run_group_tests(tests, NULL, NULL);

	unit_files_close();
	return failed;
}
