/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Zoned disks on a plain device: what a FLUSH keeps, in which order, and what happens when something fails. */
#include "unit.h"

#include <dmfs/container_of.h>

#include "io/zoned.h"
#include "memdev.h"

#define ZONE 64u
#define ZONES 6u

/* --- a keeper that remembers -------------------------------------------------------------------- */

struct keeper {
	struct zones_keeper keeper;
	struct memdev *m;
	GString *text; /* what there is */
	unsigned appends, rewrites, closes;
	uint64_t flushes; /* of the device, when it was called last */
	int fail, fail_rewrite;
};

static int append(struct zones_keeper *zk, const GString *batch)
{
	struct keeper *k = container_of(zk, struct keeper, keeper);

	k->appends++;
	k->flushes = k->m->flushes;
	if (k->fail)
		return k->fail;
	g_string_append(k->text, batch->str);
	return 0;
}

static int rewrite(struct zones_keeper *zk, const GString *text)
{
	struct keeper *k = container_of(zk, struct keeper, keeper);

	k->rewrites++;
	k->flushes = k->m->flushes;
	if (k->fail || k->fail_rewrite)
		return k->fail ? k->fail : k->fail_rewrite;
	g_string_assign(k->text, text->str);
	return 0;
}

static void close_keeper(struct zones_keeper *zk)
{
	container_of(zk, struct keeper, keeper)->closes++;
}

static struct zones zones(void)
{
	struct zones z = {.model = DM_ZONES_HOST_MANAGED,
			  .logical_block = 512,
			  .zone_sectors = ZONE,
			  .sectors = ZONE * ZONES,
			  .n = ZONES};

	z.zone = g_new0(struct zones_zone, ZONES);
	for (unsigned i = 0; i < ZONES; i++)
		z.zone[i] = i < 2 ? (struct zones_zone){0, ZONE, DM_ZONE_CONVENTIONAL, DM_ZONE_NOT_WP}
				  : (struct zones_zone){0, ZONE, DM_ZONE_SEQUENTIAL, DM_ZONE_EMPTY};
	return z;
}

/* The disk, with its first text kept. */
static struct dm_dev *disk(struct memdev *m, struct keeper *k)
{
	struct zones z = zones();

	*k = (struct keeper){.keeper = {append, rewrite, close_keeper}, .m = m, .text = g_string_new(NULL)};
	zones_print_head(&z, k->text);
	for (unsigned i = 0; i < ZONES; i++)
		zones_print_zone(&z, i, z.zone[i], k->text);
	return dm_zoned_new(&m->dev, &z, &k->keeper);
}

/* What is kept of a zone's write pointer. */
static uint32_t kept_wp(const struct keeper *k, unsigned zone)
{
	struct zones z;
	uint32_t wp;

	assert_int_equal(zones_parse(k->text->str, k->text->len, "x", &z, NULL), 0);
	assert_int_equal(z.n, ZONES);
	wp = z.zone[zone].wp;
	zones_clear(&z);
	return wp;
}

static int copy_zone(const struct dm_zone *zone, void *out)
{
	*(struct dm_zone *)out = *zone;
	return 0;
}

static struct dm_zone zone_now(struct dm_dev *dev, unsigned i)
{
	struct dm_zone zone;

	assert_int_equal(dm_dev_report_zones(dev, (uint64_t)i * ZONE, 1, copy_zone, &zone), 0);
	return zone;
}

static int manage(struct dm_dev *dev, enum dm_op op, unsigned i)
{
	struct dm_region where = {dev, (uint64_t)i * ZONE, ZONE};

	return dm_io_sync(op, 0, 1, &where, NULL, 0, NULL);
}

static int put(struct dm_dev *dev, unsigned zone, uint32_t offset, uint32_t sectors, unsigned flags)
{
	g_autofree uint8_t *data = g_malloc(sectors * 512);

	memset(data, (int)(zone * 16 + offset + 1), sectors * 512);
	return dm_write_sync(dev, (uint64_t)zone * ZONE + offset, sectors, data, flags);
}

static void drop(struct dm_dev *dev, struct keeper *k)
{
	dm_dev_put(dev);
	assert_int_equal(k->closes, 1);
	g_string_free(k->text, TRUE);
}

/* --- tests ------------------------------------------------------------------------------------------ */

static void test_a_flush_keeps_what_was_written_after_the_data(void **state)
{
	struct memdev *m = memdev_new(ZONE * ZONES);
	struct keeper k;
	struct dm_dev *dev = disk(m, &k);

	assert_int_equal(put(dev, 2, 0, 8, 0), 0);
	assert_int_equal(kept_wp(&k, 2), 0);
	assert_int_equal(dm_flush_sync(dev), 0);
	assert_int_equal(kept_wp(&k, 2), 8);
	assert_int_equal(k.flushes, 1); /* the device's came first */
	assert_int_equal(dm_flush_sync(dev), 0);
	assert_int_equal(k.appends, 1); /* nothing has changed */
	assert_int_equal(put(dev, 2, 8, 4, DM_FUA), 0);
	assert_int_equal(kept_wp(&k, 2), 12);
	assert_int_equal(put(dev, 0, 8, 4, DM_FUA), 0);
	drop(dev, &k);
}

static void test_a_reset_is_kept_at_once(void **state)
{
	struct memdev *m = memdev_new(ZONE * ZONES);
	struct keeper k;
	struct dm_dev *dev = disk(m, &k);
	uint8_t data[512];

	assert_int_equal(put(dev, 2, 0, 8, DM_FUA), 0);
	assert_int_equal(put(dev, 3, 0, 8, 0), 0);
	assert_int_equal(manage(dev, DM_ZONE_RESET, 2), 0);
	assert_int_equal(kept_wp(&k, 2), 0);
	assert_int_equal(kept_wp(&k, 3), 0); /* its data may not be there */
	assert_int_equal(dm_read_sync(dev, 2 * ZONE, 1, data, 0), 0);
	assert_int_equal(data[0], 0);
	k.fail = -ENOSPC;
	assert_int_equal(put(dev, 2, 0, 8, 0), 0);
	assert_int_equal(manage(dev, DM_ZONE_RESET, 2), -ENOSPC);
	assert_int_equal(zone_now(dev, 2).wp, 2 * ZONE + 8); /* and nothing was reset */
	k.fail = 0;
	drop(dev, &k);
}

static void test_a_keeper_that_fails_gets_it_all_again(void **state)
{
	struct memdev *m = memdev_new(ZONE * ZONES);
	struct keeper k;
	struct dm_dev *dev = disk(m, &k);

	assert_int_equal(put(dev, 2, 0, 8, 0), 0);
	k.fail = -EIO;
	assert_int_equal(dm_flush_sync(dev), -EIO);
	assert_int_equal(put(dev, 3, 0, 4, DM_FUA), -EIO);
	k.fail = 0;
	assert_int_equal(dm_flush_sync(dev), 0);
	assert_int_equal(kept_wp(&k, 2), 8);
	assert_int_equal(kept_wp(&k, 3), 4);
	drop(dev, &k);
}

/* Where no file can be made the batches go on. */
static void test_what_cannot_be_written_anew_is_added_to(void **state)
{
	struct memdev *m = memdev_new(ZONE * ZONES);
	struct keeper k;
	struct dm_dev *dev = disk(m, &k);

	k.fail_rewrite = -EACCES;
	for (unsigned i = 0; i < 1500; i++) {
		if (i % ZONE == 0)
			assert_int_equal(manage(dev, DM_ZONE_RESET, 2), 0);
		assert_int_equal(put(dev, 2, i % ZONE, 1, DM_FUA), 0);
		assert_true(k.rewrites <= 3);
	}
	assert_true(k.rewrites > 0);
	assert_int_equal(kept_wp(&k, 2), 1500 % ZONE);
	drop(dev, &k);
}

static void test_a_failed_flush_promises_nothing(void **state)
{
	struct memdev *m = memdev_new(ZONE * ZONES);
	struct keeper k;
	struct dm_dev *dev = disk(m, &k);

	assert_int_equal(put(dev, 2, 0, 8, 0), 0);
	m->fail_at = 1;
	m->fail_error = -EIO;
	assert_int_equal(dm_flush_sync(dev), -EIO);
	assert_int_equal(kept_wp(&k, 2), 0);
	m->fail_at = 0;
	assert_int_equal(dm_flush_sync(dev), 0);
	assert_int_equal(kept_wp(&k, 2), 8);
	drop(dev, &k);
}

static void test_a_failed_write_is_taken_back(void **state)
{
	struct memdev *m = memdev_new(ZONE * ZONES);
	struct keeper k;
	struct dm_dev *dev = disk(m, &k);

	assert_int_equal(put(dev, 2, 0, 8, 0), 0);
	m->fail_at = 1;
	m->fail_error = -EIO;
	assert_int_equal(put(dev, 2, 8, ZONE - 8, 0), -EIO);
	m->fail_at = 0;
	assert_int_equal(zone_now(dev, 2).wp, 2 * ZONE + 8);
	assert_int_equal(zone_now(dev, 2).condition, DM_ZONE_CLOSED);
	assert_int_equal(put(dev, 2, 8, ZONE - 8, 0), 0);
	assert_int_equal(zone_now(dev, 2).condition, DM_ZONE_FULL);
	drop(dev, &k);
}

/* --- writes that are under way --- */

struct slow {
	struct dm_dev dev;
	struct memdev *m;
	bool hold;
	struct dm_bio *held;
};

static void slow_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	struct slow *s = (struct slow *)dev;

	if (s->hold && bio->op == DM_WRITE && !s->held) {
		s->held = bio;
		return;
	}
	bio->dev = &s->m->dev;
	s->m->dev.ops->submit(&s->m->dev, bio);
}

static uint64_t slow_sectors(struct dm_dev *dev)
{
	return ZONE * ZONES;
}

static void slow_free(struct dm_dev *dev)
{
}

static void count_end(struct dm_bio *bio)
{
	++*(unsigned *)bio->private;
}

static void test_what_is_under_way_is_not_promised(void **state)
{
	static const struct dm_dev_ops ops = {.submit = slow_submit, .sectors = slow_sectors, .free = slow_free};
	struct memdev *m = memdev_new(ZONE * ZONES);
	struct slow s = {.dev = {.ops = &ops, .mode = DM_MODE_RW}, .m = m, .hold = true};
	uint8_t data[8 * 512] = {1};
	struct iovec iov = {data, sizeof data};
	unsigned ends = 0;
	struct dm_bio bio = {.op = DM_WRITE,
			     .sector = 2 * ZONE,
			     .sectors = 8,
			     .iov = &iov,
			     .iovcnt = 1,
			     .end = count_end,
			     .private = &ends};
	struct zones z = zones();
	struct keeper k = {.keeper = {append, rewrite, close_keeper}, .m = m, .text = g_string_new(NULL)};
	struct dm_dev *dev;

	zones_print_head(&z, k.text);
	for (unsigned i = 0; i < ZONES; i++)
		zones_print_zone(&z, i, z.zone[i], k.text);
	atomic_init(&s.dev.refs, 1);
	dev = dm_zoned_new(&s.dev, &z, &k.keeper);
	bio.dev = dev;
	dm_submit(&bio);
	assert_int_equal(ends, 0);
	assert_int_equal(put(dev, 2, 8, 8, 0), 0); /* the next is done before it */
	assert_int_equal(zone_now(dev, 2).wp, 2 * ZONE + 16);
	assert_int_equal(dm_flush_sync(dev), 0);
	assert_int_equal(kept_wp(&k, 2), 0);
	s.hold = false;
	slow_submit(&s.dev, s.held);
	assert_int_equal(ends, 1);
	assert_int_equal(dm_flush_sync(dev), 0);
	assert_int_equal(kept_wp(&k, 2), 16);
	drop(dev, &k);
	memdev_put(m);
}

static void test_appends_tell_where_they_went(void **state)
{
	struct memdev *m = memdev_new(ZONE * ZONES);
	struct keeper k;
	struct dm_dev *dev = disk(m, &k);
	uint8_t data[8 * 512] = {9};
	struct iovec iov = {data, sizeof data};
	unsigned ends = 0;

	for (unsigned i = 0; i < 9; i++) {
		struct dm_bio bio = {.op = DM_ZONE_APPEND,
				     .dev = dev,
				     .sector = 3 * ZONE,
				     .sectors = 8,
				     .iov = &iov,
				     .iovcnt = 1,
				     .end = count_end,
				     .private = &ends};

		dm_submit(&bio);
		assert_int_equal(bio.error, i < 8 ? 0 : -EIO);
		if (i < 8)
			assert_int_equal(bio.sector, 3 * ZONE + i * 8);
	}
	assert_int_equal(ends, 9);
	assert_int_equal(zone_now(dev, 3).condition, DM_ZONE_FULL);
	drop(dev, &k);
}

static void test_reads_over_borders_and_write_pointers(void **state)
{
	struct memdev *m = memdev_new(ZONE * ZONES);
	struct keeper k;
	struct dm_dev *dev = disk(m, &k);
	g_autofree uint8_t *data = g_malloc(3 * ZONE * 512);

	memset(m->data, 0xee, ZONE * ZONES * 512); /* of an earlier life */
	assert_int_equal(put(dev, 1, 0, ZONE, 0), 0);
	assert_int_equal(put(dev, 2, 0, 10, 0), 0);
	assert_int_equal(dm_read_sync(dev, ZONE, 3 * ZONE, data, 0), 0);
	for (unsigned i = 0; i < 3 * ZONE; i++)
		assert_int_equal(data[i * 512 + i % 512], i < ZONE ? 17 : i < ZONE + 10 ? 33 : 0);
	assert_int_equal(manage(dev, DM_ZONE_FINISH, 4), 0); /* nor does what was never written come to light so */
	assert_int_equal(dm_read_sync(dev, 4 * ZONE, ZONE, data, 0), 0);
	assert_int_equal(data[0], 0);
	assert_int_equal(put(dev, 1, ZONE - 4, 8, 0), -EIO); /* over a border: nobody sends that */
	assert_int_equal(dm_read_sync(dev, (ZONES - 1) * ZONE, 2 * ZONE, data, 0), -EIO);
	drop(dev, &k);
}

static void test_without_a_keeper_nothing_is_written(void **state)
{
	struct memdev *m = memdev_new(ZONE * ZONES);
	struct zones z = zones();
	struct dm_dev *dev = dm_zoned_new(&m->dev, &z, NULL);

	assert_int_equal(put(dev, 2, 0, 8, 0), -EROFS);
	assert_int_equal(put(dev, 0, 0, 8, 0), -EROFS);
	assert_int_equal(manage(dev, DM_ZONE_RESET, 2), -EROFS);
	assert_int_equal(dm_flush_sync(dev), 0);
	dm_dev_put(dev);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_a_flush_keeps_what_was_written_after_the_data),
	    cmocka_unit_test(test_a_reset_is_kept_at_once),
	    cmocka_unit_test(test_a_keeper_that_fails_gets_it_all_again),
	    cmocka_unit_test(test_what_cannot_be_written_anew_is_added_to),
	    cmocka_unit_test(test_a_failed_flush_promises_nothing),
	    cmocka_unit_test(test_a_failed_write_is_taken_back),
	    cmocka_unit_test(test_what_is_under_way_is_not_promised),
	    cmocka_unit_test(test_appends_tell_where_they_went),
	    cmocka_unit_test(test_reads_over_borders_and_write_pointers),
	    cmocka_unit_test(test_without_a_keeper_nothing_is_written),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
