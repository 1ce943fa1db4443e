/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Zoned block devices, by ioctls that the test answers: what is asked of them, and devices that tell nonsense. */
#include "unit.h"

#include <linux/blkzoned.h>
#include <unistd.h>

#include "device.h"
#include "io/zoned.h"

#define ZONE 64u
#define ZONES 600u /* more than one report has */
#define CONVENTIONAL 2u

static struct {
	uint32_t zone_sectors;
	unsigned long request; /* of the last change */
	struct blk_zone_range range;
	unsigned changes;
	uint32_t wp[ZONES];
	struct blk_zone lie; /* told of zone 3 if len or start are not 0 */
	bool lies;
} fake;

static void fill(struct blk_zone_report *r)
{
	uint64_t first = r->sector / ZONE;
	unsigned n = (unsigned)MIN(r->nr_zones, first < ZONES ? ZONES - first : 0);

	r->nr_zones = n;
	r->flags = BLK_ZONE_REP_CAPACITY;
	for (unsigned i = 0; i < n; i++) {
		uint64_t z = first + i;

		r->zones[i] = (struct blk_zone){
		    .start = z * ZONE,
		    .len = ZONE,
		    .capacity = z < CONVENTIONAL ? ZONE : ZONE - 8,
		    .wp = z * ZONE + fake.wp[z],
		    .type = z < CONVENTIONAL ? BLK_ZONE_TYPE_CONVENTIONAL : BLK_ZONE_TYPE_SEQWRITE_REQ,
		    .cond = z < CONVENTIONAL ? BLK_ZONE_COND_NOT_WP
			    : fake.wp[z]     ? BLK_ZONE_COND_IMP_OPEN
					     : BLK_ZONE_COND_EMPTY,
		};
		if (z == 3 && fake.lies)
			r->zones[i] = fake.lie;
	}
}

static int fake_ioctl(int fd, unsigned long request, void *arg)
{
	switch (request) {
	case BLKGETZONESZ:
		*(uint32_t *)arg = fake.zone_sectors;
		return 0;
	case BLKREPORTZONE:
		fill(arg);
		return 0;
	default:
		fake.request = request;
		fake.range = *(struct blk_zone_range *)arg;
		fake.changes++;
		return 0;
	}
}

static struct dm_dev *open_store(enum dm_mode mode)
{
	struct dm_opener self = dm_opener_self();
	struct dm_store_path found;
	struct dm_dev *dev;

	assert_int_equal(dm_store_find(&self, unit_file(ZONES * ZONE), &found, NULL), 0);
	assert_int_equal(dm_store_open(&self, &found, mode, &dev, NULL), 0);
	dm_store_path_clear(&found);
	return dev;
}

static struct dm_dev *open_zoned(enum dm_mode mode)
{
	struct dm_dev *dev = open_store(mode), *plain = dev;

	memset(&fake, 0, sizeof fake);
	fake.zone_sectors = ZONE;
	assert_int_equal(dm_zoned_block_wrap(&dev, NULL), 0);
	assert_ptr_not_equal(dev, plain);
	return dev;
}

static int count(const struct dm_zone *zone, void *data)
{
	struct dm_zone *last = data;

	last->capacity++; /* a count */
	last->start = zone->start;
	last->wp = zone->wp;
	last->type = zone->type;
	last->condition = zone->condition;
	return 0;
}

static void test_reports_and_limits(void **state)
{
	struct dm_dev *dev = open_zoned(DM_MODE_RW);
	struct dm_zone last = {0};
	struct dm_limits l;

	dm_dev_limits(dev, &l);
	assert_int_equal(l.zone_model, DM_ZONES_HOST_MANAGED);
	assert_int_equal(l.zone_sectors, ZONE);
	assert_int_equal(l.zone_capacity, ZONE - 8);
	assert_int_equal(l.max_append_sectors, 0);
	assert_int_equal(dm_dev_report_zones(dev, ZONE + 5, UINT64_MAX, count, &last), 0);
	assert_int_equal(last.capacity, ZONES - 1);
	assert_int_equal(last.start, (ZONES - 1) * ZONE);
	fake.wp[7] = 16;
	memset(&last, 0, sizeof last);
	assert_int_equal(dm_dev_report_zones(dev, 7 * ZONE, 1, count, &last), 0);
	assert_int_equal(last.capacity, 1);
	assert_int_equal(last.wp, 7 * ZONE + 16);
	assert_int_equal(last.condition, DM_ZONE_IMPLICITLY_OPEN);
	dm_dev_put(dev);
}

static void test_what_is_written_is_there(void **state)
{
	struct dm_dev *dev = open_zoned(DM_MODE_RW);
	g_autofree uint8_t *data = g_malloc(ZONE * 512 + 1), *back = g_malloc0(ZONE * 512);
	uint8_t *odd = data + 1; /* no memory for direct I/O */

	for (unsigned i = 0; i < ZONE * 512; i++)
		odd[i] = (uint8_t)(i * 7 + i / 512);
	assert_int_equal(dm_write_sync(dev, 5 * ZONE, ZONE, odd, DM_FUA), 0);
	assert_int_equal(dm_write_sync(dev, 0, ZONE, odd, 0), 0);
	assert_int_equal(dm_read_sync(dev, 5 * ZONE, ZONE, back, 0), 0);
	assert_memory_equal(odd, back, ZONE * 512);
	assert_int_equal(dm_flush_sync(dev), 0);
	assert_int_equal(dm_write_sync(dev, ZONES * ZONE, 1, odd, 0), -EIO);
	dm_dev_put(dev);
}

static void test_what_is_done_with_zones(void **state)
{
	static const struct {
		enum dm_op op;
		unsigned long request;
	} ops[] = {{DM_ZONE_OPEN, BLKOPENZONE},
		   {DM_ZONE_CLOSE, BLKCLOSEZONE},
		   {DM_ZONE_FINISH, BLKFINISHZONE},
		   {DM_ZONE_RESET, BLKRESETZONE}};
	struct dm_dev *dev = open_zoned(DM_MODE_RW);
	struct dm_region all = {dev, 0, ZONES * ZONE}, part = {dev, ZONE, 3 * ZONE};

	for (unsigned i = 0; i < G_N_ELEMENTS(ops); i++) {
		struct dm_region where = {dev, 9 * ZONE, ZONE};

		assert_int_equal(dm_io_sync(ops[i].op, 0, 1, &where, NULL, 0, NULL), 0);
		assert_true(fake.request == ops[i].request);
		assert_int_equal(fake.range.sector, 9 * ZONE);
		assert_int_equal(fake.range.nr_sectors, ZONE);
	}
	fake.changes = 0;
	assert_int_equal(dm_io_sync(DM_ZONE_RESET_ALL, 0, 1, &all, NULL, 0, NULL), 0);
	assert_int_equal(fake.changes, 1);
	assert_int_equal(fake.range.nr_sectors, ZONES * ZONE);
	assert_int_equal(dm_io_sync(DM_ZONE_RESET_ALL, 0, 1, &part, NULL, 0, NULL), 0);
	assert_int_equal(fake.changes, 3); /* not the conventional one */
	dm_dev_put(dev);
	dev = open_zoned(DM_MODE_READ);
	all.dev = dev;
	assert_int_equal(dm_io_sync(DM_ZONE_RESET_ALL, 0, 1, &all, NULL, 0, NULL), -EROFS);
	dm_dev_put(dev);
}

static void test_devices_that_lie(void **state)
{
	static const struct blk_zone lies[] = {
	    {.start = 3 * ZONE, .len = 0, .type = 2, .capacity = 8},
	    {.start = 3 * ZONE + 8, .len = ZONE, .type = 2, .capacity = 8},
	    {.start = ZONES * ZONE, .len = ZONE, .type = 2, .capacity = 8},
	    {.start = 0, .len = ZONE, .type = 2, .capacity = 8},
	};

	for (unsigned i = 0; i < G_N_ELEMENTS(lies); i++) {
		struct dm_dev *dev = open_store(DM_MODE_RW);
		g_autoptr(GError) err = NULL;

		memset(&fake, 0, sizeof fake);
		fake.zone_sectors = ZONE;
		fake.lies = true;
		fake.lie = lies[i];
		assert_int_equal(dm_zoned_block_wrap(&dev, &err), -EIO);
		assert_non_null(strstr(err->message, "the zones cannot be told"));
	}
}

static void test_a_device_without_zones_stays_what_it_is(void **state)
{
	struct dm_dev *dev = open_store(DM_MODE_RW), *plain = dev;

	memset(&fake, 0, sizeof fake);
	assert_int_equal(dm_zoned_block_wrap(&dev, NULL), 0);
	assert_ptr_equal(dev, plain);
	dm_dev_put(dev);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_reports_and_limits),
	    cmocka_unit_test(test_what_is_written_is_there),
	    cmocka_unit_test(test_what_is_done_with_zones),
	    cmocka_unit_test(test_devices_that_lie),
	    cmocka_unit_test(test_a_device_without_zones_stays_what_it_is),
	};
	int failed;

	zoned_block_ioctl = fake_ioctl;
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	unit_files_close();
	return failed;
}
