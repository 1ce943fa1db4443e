/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Tags that travel with a bio: who takes them, and that each block's tag arrives with it wherever the bio is cut. */
#include "device.h"
#include "memdev.h"

#include "targets/list.h"

#define BLOCK 4096u
#define BLOCK_SECTORS 8u
#define TAG 12u
#define SECTORS 4096u

static struct memdev *a, *b;

static struct memdev *tagged(const char *name, unsigned bytes, unsigned block)
{
	struct memdev *m = memdev_new(SECTORS);

	if (bytes)
		memdev_tags(m, bytes, block);
	unit_store(name, &m->dev);
	return m;
}

static int setup(void **state)
{
	dm_register_targets(dm_target_list);
	a = tagged("a", TAG, BLOCK);
	b = tagged("b", TAG, BLOCK);
	return 0;
}

static int teardown(void **state)
{
	memdev_put(a);
	memdev_put(b);
	unit_stores_forget();
	return 0;
}

/* --- who takes them --------------------------------------------------------------------- */

/* Loads a table and says how many bytes of tags its device takes. */
static unsigned tags_of(const char *table)
{
	struct dm_mapped *md = unit_device("vol", "%s", table);
	struct dm_limits limits;

	dm_dev_limits(&md->dev, &limits);
	assert_int_equal(limits.tag_block, limits.tag_bytes ? BLOCK : 0);
	unit_remove(md);
	return limits.tag_bytes;
}

static void taken_by_who_passes_them_to_equals(void **state)
{
	struct memdev *plain = tagged("plain", 0, 0), *other = tagged("other", 4, BLOCK);

	assert_int_equal(tags_of("0 64 linear unit:a 0"), TAG);
	assert_int_equal(tags_of("0 64 linear unit:a 0\n64 64 linear unit:b 8"), TAG);
	assert_int_equal(tags_of("0 64 striped 2 8 unit:a 0 unit:b 8"), TAG);
	assert_int_equal(tags_of("0 64 delay unit:a 0 0"), TAG);
	/* not the same for all */
	assert_int_equal(tags_of("0 64 linear unit:a 0\n64 64 linear unit:plain 0"), 0);
	assert_int_equal(tags_of("0 64 linear unit:plain 0\n64 64 linear unit:a 0"), 0);
	assert_int_equal(tags_of("0 64 linear unit:a 0\n64 64 linear unit:other 0"), 0);
	assert_int_equal(tags_of("0 64 striped 2 8 unit:a 0 unit:other 0"), 0);
	assert_int_equal(tags_of("0 64 delay unit:a 0 0 unit:plain 0 0"), 0);
	/* not passed on */
	assert_int_equal(tags_of("0 64 flakey unit:a 0 1 0"), 0);
	assert_int_equal(tags_of("0 64 linear unit:a 0\n64 64 zero"), 0);
	assert_int_equal(tags_of("0 64 zero"), 0);
	memdev_put(plain);
	memdev_put(other);
}

static void a_block_cut_in_two_takes_none(void **state)
{
	assert_int_equal(tags_of("0 64 striped 2 4 unit:a 0 unit:b 0"), 0);
	assert_int_equal(tags_of("0 96 striped 2 24 unit:a 0 unit:b 0"), TAG);
}

/* --- that they arrive ---------------------------------------------------------------------- */

static uint8_t data_of(uint64_t block)
{
	return (uint8_t)(block * 7 + 1);
}

static void fill(uint8_t *data, uint8_t *tags, uint64_t first, unsigned blocks)
{
	for (unsigned i = 0; i < blocks; i++) {
		memset(data + i * BLOCK, data_of(first + i), BLOCK);
		memset(tags + i * TAG, data_of(first + i) ^ 0xff, TAG);
	}
}

static void note_end(struct dm_bio *bio)
{
	*(bool *)bio->private = true;
}

/* One bio, its data in pieces that respect no block. */
static int submit(struct dm_mapped *md, enum dm_op op, uint64_t sector, unsigned sectors, uint8_t *data,
		  struct dm_tags tags)
{
	size_t len = sectors * 512, cut = len > 700 ? 700 : len;
	struct iovec iov[2] = {{data, cut}, {data + cut, len - cut}};
	bool ended = false;
	struct dm_bio bio = {.op = op, .dev = &md->dev, .sector = sector, .sectors = sectors, .iov = iov,
			     .iovcnt = len > cut ? 2 : 1, .tags = tags, .end = note_end, .private = &ended};

	dm_submit(&bio);
	assert_true(ended);
	return bio.error;
}

/* Writes blocks [first, first + n) and reads them back with their tags. */
static void round_trip(struct dm_mapped *md, uint64_t first, unsigned n)
{
	g_autofree uint8_t *data = g_malloc(n * BLOCK), *got = g_malloc0(n * BLOCK);
	g_autofree uint8_t *tags = g_malloc(n * TAG), *got_tags = g_malloc0(n * TAG);

	fill(data, tags, first, n);
	assert_int_equal(submit(md, DM_WRITE, first * BLOCK_SECTORS, n * BLOCK_SECTORS, data,
				(struct dm_tags){tags, TAG, BLOCK_SECTORS}),
			 0);
	assert_int_equal(submit(md, DM_READ, first * BLOCK_SECTORS, n * BLOCK_SECTORS, got,
				(struct dm_tags){got_tags, TAG, BLOCK_SECTORS}),
			 0);
	assert_memory_equal(data, got, n * BLOCK);
	assert_memory_equal(tags, got_tags, n * TAG);
}

/* A block's tag lies beside its data in the device beneath. */
static void assert_side_by_side(struct memdev *m, unsigned blocks)
{
	unsigned seen = 0;

	for (unsigned i = 0; i < blocks; i++) {
		if (!m->data[i * BLOCK])
			continue;
		assert_int_equal(m->tags[i * TAG], m->data[i * BLOCK] ^ 0xff);
		seen++;
	}
	assert_true(seen > 0);
}

static void go_with_their_blocks(const char *table)
{
	struct dm_mapped *md = unit_device("vol", "%s", table);

	memset(a->data, 0, SECTORS * 512);
	memset(b->data, 0, SECTORS * 512);
	round_trip(md, 0, 1);
	round_trip(md, 0, 64);
	round_trip(md, 3, 41);
	assert_side_by_side(a, 64);
	assert_side_by_side(b, 64);
	unit_remove(md);
}

static void cut_at_targets(void **state)
{
	go_with_their_blocks("0 40 linear unit:a 0\n40 248 linear unit:b 16\n288 224 linear unit:a 48");
}

static void cut_at_chunks(void **state)
{
	go_with_their_blocks("0 512 striped 2 8 unit:a 0 unit:b 0");
	go_with_their_blocks("0 576 striped 2 24 unit:a 8 unit:b 16");
}

static void through_a_stack(void **state)
{
	struct dm_mapped *below = unit_device("below", "0 512 striped 2 16 unit:a 0 unit:b 8");

	go_with_their_blocks("0 64 linear below 0\n64 448 linear below 64");
	unit_remove(below);
}

/* --- what is refused ----------------------------------------------------------------------- */

static void tags_of_another_kind_are_refused(void **state)
{
	struct dm_mapped *md = unit_device("vol", "0 64 linear unit:a 0"), *none = unit_device("none", "0 64 zero");
	uint8_t data[2 * BLOCK], tags[64];

	assert_int_equal(submit(none, DM_READ, 0, 8, data, (struct dm_tags){tags, TAG, 8}), -EINVAL);
	assert_int_equal(submit(md, DM_READ, 0, 8, data, (struct dm_tags){tags, TAG + 1, 8}), -EINVAL);
	assert_int_equal(submit(md, DM_READ, 0, 8, data, (struct dm_tags){tags, TAG, 4}), -EINVAL);
	assert_int_equal(submit(md, DM_READ, 4, 8, data, (struct dm_tags){tags, TAG, 8}), -EINVAL);
	assert_int_equal(submit(md, DM_READ, 0, 12, data, (struct dm_tags){tags, TAG, 8}), -EINVAL);
	assert_int_equal(submit(md, DM_DISCARD, 0, 8, data, (struct dm_tags){tags, TAG, 8}), -EINVAL);
	assert_int_equal(submit(md, DM_READ, 0, 8, data, (struct dm_tags){0}), 0);
	unit_remove(md);
	unit_remove(none);
}

static void a_part_has_its_part(void **state)
{
	uint8_t bytes[TAG * 4];
	struct dm_tags tags = {bytes, TAG, 8}, part = dm_tags_from(tags, 16);

	assert_ptr_equal(part.data, bytes + 2 * TAG);
	assert_int_equal(part.bytes, TAG);
	assert_int_equal(part.block_sectors, 8);
	assert_ptr_equal(dm_tags_from(tags, 0).data, bytes);
	assert_null(dm_tags_from((struct dm_tags){0}, 5).data);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(taken_by_who_passes_them_to_equals),
		cmocka_unit_test(a_block_cut_in_two_takes_none),
		cmocka_unit_test(cut_at_targets),
		cmocka_unit_test(cut_at_chunks),
		cmocka_unit_test(through_a_stack),
		cmocka_unit_test(tags_of_another_kind_are_refused),
		cmocka_unit_test(a_part_has_its_part),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
