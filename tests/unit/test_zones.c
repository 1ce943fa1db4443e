/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Zones through tables: limits, reports, operations, an append's sector on its way up, and what may not be mixed. */
#include "device.h"
#include "memdev.h"
#include "zonedev.h"

#include "targets/list.h"

#define ZONE 128u /* sectors */
#define CAPACITY 96u
#define ZONES 8u
#define KEY "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static struct zonedev *a, *b;

static int setup_all(void **state)
{
	dm_register_targets(dm_target_list);
	return 0;
}

static int setup(void **state)
{
	a = zonedev_new(DM_ZONES_HOST_MANAGED, ZONES, 2, ZONE, CAPACITY);
	b = zonedev_new(DM_ZONES_HOST_MANAGED, ZONES, 0, ZONE, ZONE);
	unit_store("a", &a->dev);
	unit_store("b", &b->dev);
	return 0;
}

static int teardown(void **state)
{
	unit_stores_forget();
	zonedev_put(a);
	zonedev_put(b);
	return 0;
}

static void note_end(struct dm_bio *bio)
{
	*(bool *)bio->private = true;
}

/* Returns the error; *sector, if not NULL, is the bio's at its end. */
static int submit(struct dm_mapped *md, enum dm_op op, uint64_t at, uint64_t sectors, void *data, uint64_t *sector)
{
	struct iovec iov = {data, sectors * 512};
	bool ended = false;
	struct dm_bio bio = {.op = op, .dev = &md->dev, .sector = at, .sectors = sectors, .iov = &iov,
			     .iovcnt = dm_op_has_data(op), .end = note_end, .private = &ended};

	dm_submit(&bio);
	while (!__atomic_load_n(&ended, __ATOMIC_ACQUIRE))
		g_thread_yield();
	if (sector)
		*sector = bio.sector;
	return bio.error;
}

static int add_zone(const struct dm_zone *zone, void *data)
{
	g_array_append_vals(data, zone, 1);
	return 0;
}

static GArray *report(struct dm_mapped *md, uint64_t sector, uint64_t max)
{
	GArray *zones = g_array_new(FALSE, FALSE, sizeof(struct dm_zone));

	assert_int_equal(dm_dev_report_zones(&md->dev, sector, max, add_zone, zones), 0);
	return zones;
}

static struct dm_zone zone_of(struct dm_mapped *md, uint64_t sector)
{
	g_autoptr(GArray) zones = report(md, sector, 1);

	assert_int_equal(zones->len, 1);
	return g_array_index(zones, struct dm_zone, 0);
}

/* --- limits -------------------------------------------------------------------------------- */

static struct dm_limits limits_of(const char *table)
{
	struct dm_mapped *md = unit_device("vol", "%s", table);
	struct dm_limits limits;

	dm_dev_limits(&md->dev, &limits);
	unit_remove(md);
	return limits;
}

static void limits_are_those_of_the_devices(void **state)
{
	struct dm_limits l = limits_of("0 256 linear unit:a 128\n256 128 linear unit:b 0");

	assert_int_equal(l.zone_model, DM_ZONES_HOST_MANAGED);
	assert_int_equal(l.zone_sectors, ZONE);
	assert_int_equal(l.zone_capacity, CAPACITY);
	assert_int_equal(l.max_open_zones, 4);
	assert_int_equal(l.max_active_zones, 6);
	assert_int_equal(l.max_append_sectors, CAPACITY);
	l = limits_of("0 1024 crypt aes-xts-plain64 " KEY " 0 unit:a 0");
	assert_int_equal(l.zone_model, DM_ZONES_HOST_MANAGED);
	assert_int_equal(l.max_append_sectors, 0);
	assert_int_equal(limits_of("0 128 zero").zone_model, DM_ZONES_NONE);
}

/* --- what is refused ------------------------------------------------------------------------- */

static void refuse(const char *table, const char *why)
{
	g_autoptr(GError) err = NULL;
	struct dm_mapped *md;

	assert_int_equal(dm_create("vol", -1, &md, NULL), 0);
	assert_int_equal(unit_load(md, table, &err), -EINVAL);
	if (!strstr(err->message, why))
		fail_msg("'%s' does not say '%s'", err->message, why);
	unit_remove(md);
}

static void what_cannot_be_mixed_is_refused(void **state)
{
	struct zonedev *other = zonedev_new(DM_ZONES_HOST_MANAGED, 16, 0, 64, 64);
	struct zonedev *aware = zonedev_new(DM_ZONES_HOST_AWARE, ZONES, 0, ZONE, ZONE);
	struct memdev *plain = memdev_new(1024);

	unit_store("other", &other->dev);
	unit_store("aware", &aware->dev);
	unit_store("plain", &plain->dev);
	refuse("0 128 linear unit:a 64", "start=64, len=128 not aligned to the h/w zone size 128");
	refuse("0 64 linear unit:a 0", "start=0, len=64 not aligned to the h/w zone size 128");
	refuse("0 128 linear unit:a 0\n128 128 linear unit:other 0", "zone sectors is not consistent");
	refuse("0 128 linear unit:a 0\n128 128 linear unit:aware 0", "zoned model is not consistent");
	refuse("0 128 linear unit:a 0\n128 128 linear unit:plain 0", "zoned model is not consistent");
	refuse("0 128 linear unit:plain 0\n128 128 linear unit:a 0", "zoned model is not consistent");
	refuse("0 128 linear unit:a 0\n128 128 zero", "takes no host-managed zones");
	refuse("0 1024 delay unit:a 0 10", "takes no host-managed zones");
	refuse("0 1024 striped 2 128 unit:a 0 unit:b 0", "takes no host-managed zones");
	zonedev_put(other);
	zonedev_put(aware);
	memdev_put(plain);
}

static void host_aware_zones_are_sectors_to_who_knows_none(void **state)
{
	struct zonedev *aware = zonedev_new(DM_ZONES_HOST_AWARE, ZONES, 0, ZONE, ZONE);

	unit_store("aware", &aware->dev);
	assert_int_equal(limits_of("0 1024 linear unit:aware 0").zone_model, DM_ZONES_HOST_AWARE);
	assert_int_equal(limits_of("0 1024 delay unit:aware 0 0").zone_model, DM_ZONES_NONE);
	assert_int_equal(limits_of("0 128 linear unit:aware 0\n128 128 delay unit:aware 128 0").zone_model, DM_ZONES_NONE);
	zonedev_put(aware);
}

/* --- reports --------------------------------------------------------------------------------- */

/* What table lines map to: zone i of the volume is zone `zone` of a device. */
struct place {
	struct zonedev *dev;
	unsigned zone;
};

static void assert_zones(struct dm_mapped *md, const struct place *places, unsigned n)
{
	for (unsigned from = 0; from <= n; from++)
		for (uint64_t max = 0; max <= n; max++) {
			g_autoptr(GArray) zones = report(md, from * ZONE + 5, max);

			assert_int_equal(zones->len, MIN(max, n - from));
			for (unsigned i = 0; i < zones->len; i++) {
				struct dm_zone *z = &g_array_index(zones, struct dm_zone, i);
				struct dm_zone *below = &places[from + i].dev->zones[places[from + i].zone];

				assert_int_equal(z->start, (from + i) * ZONE);
				assert_int_equal(z->type, below->type);
				assert_int_equal(z->condition, below->condition);
				assert_int_equal(z->sectors, ZONE);
				assert_int_equal(z->capacity, below->capacity);
				if (z->type != DM_ZONE_CONVENTIONAL)
					assert_int_equal(z->wp - z->start, below->wp - below->start);
			}
		}
}

static void a_report_goes_over_targets_and_down_stacks(void **state)
{
	static uint8_t data[16 * 512];
	struct place places[] = {{a, 1}, {a, 2}, {a, 3}, {b, 5}, {a, 7}};
	struct dm_mapped *md = unit_device("vol", "0 384 linear unit:a 128\n384 128 flakey unit:b 640 1 0\n"
						  "512 128 linear unit:a 896");
	struct dm_mapped *above = unit_device("above", "0 512 linear vol 128");

	assert_int_equal(submit(md, DM_WRITE, 2 * ZONE, 16, data, NULL), 0);
	assert_int_equal(submit(md, DM_WRITE, 3 * ZONE, 8, data, NULL), 0);
	assert_zones(md, places, 5);
	assert_zones(above, places + 1, 4);
	unit_remove(above);
	unit_remove(md);
}

static int stop_at_third(const struct dm_zone *zone, void *data)
{
	return ++*(unsigned *)data == 3 ? -ECANCELED : 0;
}

static void a_report_can_be_stopped_and_refused(void **state)
{
	struct dm_mapped *md = unit_device("vol", "0 256 linear unit:a 0\n256 256 linear unit:b 0");
	struct dm_mapped *none = unit_device("none", "0 64 zero");
	unsigned seen = 0;

	assert_int_equal(dm_dev_report_zones(&md->dev, 0, UINT64_MAX, stop_at_third, &seen), -ECANCELED);
	assert_int_equal(seen, 3);
	assert_int_equal(dm_dev_report_zones(&none->dev, 0, 1, stop_at_third, &seen), -EOPNOTSUPP);
	assert_int_equal(dm_mapped_suspend(md, 0, NULL, NULL, NULL), 0);
	assert_int_equal(dm_dev_report_zones(&md->dev, 0, 1, stop_at_third, &seen), -EAGAIN);
	assert_int_equal(dm_mapped_resume(md, 0, NULL, NULL, NULL), 0);
	unit_remove(md);
	unit_remove(none);
}

/* --- operations ------------------------------------------------------------------------------- */

static void operations_reach_the_zone(void **state)
{
	static uint8_t data[8 * 512];
	struct dm_mapped *md = unit_device("vol", "0 128 linear unit:b 256\n128 512 linear unit:a 384");
	struct dm_zone *zone = &a->zones[4]; /* the volume's zone 2 */

	assert_int_equal(submit(md, DM_ZONE_OPEN, 2 * ZONE, ZONE, NULL, NULL), 0);
	assert_int_equal(zone->condition, DM_ZONE_EXPLICITLY_OPEN);
	assert_int_equal(submit(md, DM_WRITE, 2 * ZONE, 8, data, NULL), 0);
	assert_int_equal(submit(md, DM_ZONE_CLOSE, 2 * ZONE, ZONE, NULL, NULL), 0);
	assert_int_equal(zone_of(md, 2 * ZONE).condition, DM_ZONE_CLOSED);
	assert_int_equal(zone_of(md, 2 * ZONE).wp, 2 * ZONE + 8);
	assert_int_equal(submit(md, DM_ZONE_FINISH, 2 * ZONE, ZONE, NULL, NULL), 0);
	assert_int_equal(zone_of(md, 2 * ZONE).condition, DM_ZONE_FULL);
	assert_int_equal(submit(md, DM_WRITE, 2 * ZONE + 8, 8, data, NULL), -EIO);
	assert_int_equal(submit(md, DM_ZONE_RESET, 2 * ZONE, ZONE, NULL, NULL), 0);
	assert_int_equal(zone_of(md, 2 * ZONE).condition, DM_ZONE_EMPTY);
	assert_int_equal(a->zones[3].condition, DM_ZONE_EMPTY);
	/* not one zone */
	assert_int_equal(submit(md, DM_ZONE_RESET, 2 * ZONE + 8, ZONE, NULL, NULL), -EINVAL);
	assert_int_equal(submit(md, DM_ZONE_RESET, 2 * ZONE, 2 * ZONE, NULL, NULL), -EINVAL);
	assert_int_equal(submit(md, DM_ZONE_RESET, 5 * ZONE, ZONE, NULL, NULL), -EIO);
	unit_remove(md);
}

static void reset_all_goes_to_every_target(void **state)
{
	static uint8_t data[8 * 512];
	struct dm_mapped *md = unit_device("vol", "0 512 linear unit:a 0\n512 256 linear unit:b 0");

	memset(data, 1, sizeof data);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(submit(md, DM_WRITE, i * ZONE, 8, data, NULL), 0);
	assert_int_equal(submit(md, DM_ZONE_RESET_ALL, ZONE, 4 * ZONE, NULL, NULL), 0);
	assert_int_equal(zone_of(md, 2 * ZONE).condition, DM_ZONE_EMPTY);
	assert_int_equal(zone_of(md, 4 * ZONE).condition, DM_ZONE_EMPTY);
	assert_int_equal(zone_of(md, 5 * ZONE).condition, DM_ZONE_IMPLICITLY_OPEN);
	assert_int_equal(a->data[ZONE * 512], 1); /* conventional: as it was */
	assert_int_equal(submit(md, DM_ZONE_RESET_ALL, 0, 4 * ZONE + 8, NULL, NULL), -EINVAL);
	unit_remove(md);
}

static void without_zones_there_is_nothing_to_do(void **state)
{
	static uint8_t data[8 * 512];
	struct dm_mapped *file = unit_device("file", "0 128 linear %s 0", unit_file(128));
	struct dm_mapped *zero = unit_device("zero", "0 128 zero");

	for (enum dm_op op = DM_ZONE_APPEND; op <= DM_ZONE_RESET_ALL; op++) {
		assert_int_equal(submit(file, op, 0, op == DM_ZONE_APPEND ? 8 : 128, data, NULL), -EOPNOTSUPP);
		assert_int_equal(submit(zero, op, 0, op == DM_ZONE_APPEND ? 8 : 128, data, NULL), -EOPNOTSUPP);
	}
	unit_remove(file);
	unit_remove(zero);
	unit_files_close();
}

/* --- writes and appends ------------------------------------------------------------------------ */

static void a_large_write_is_cut_at_zones_and_goes_in_order(const char *table, bool clear)
{
	g_autofree uint8_t *data = g_malloc(3 * ZONE * 512), *got = g_malloc0(3 * ZONE * 512);
	struct dm_mapped *md = unit_device("vol", "%s", table);

	for (unsigned i = 0; i < 3 * ZONE * 512; i++)
		data[i] = (uint8_t)(i / 512 * 3 + i);
	assert_int_equal(submit(md, DM_WRITE, 0, 3 * ZONE, data, NULL), 0);
	assert_int_equal(submit(md, DM_READ, 0, 3 * ZONE, got, NULL), 0);
	assert_memory_equal(data, got, 3 * ZONE * 512);
	if (clear)
		assert_memory_equal(data, b->data + ZONE * 512, 3 * ZONE * 512);
	assert_int_equal(submit(md, DM_WRITE, 3 * ZONE + 8, 8, data, NULL), -EIO); /* not at the write pointer */
	unit_remove(md);
}

static void writes_linear(void **state)
{
	a_large_write_is_cut_at_zones_and_goes_in_order("0 512 linear unit:b 128", true);
}

static void writes_over_targets(void **state)
{
	a_large_write_is_cut_at_zones_and_goes_in_order("0 256 linear unit:b 128\n256 256 flakey unit:b 384 1 0", true);
}

static void writes_crypt(void **state)
{
	a_large_write_is_cut_at_zones_and_goes_in_order("0 512 crypt aes-xts-plain64 " KEY " 0 unit:b 128", false);
}

static void an_append_learns_where_it_went(void **state)
{
	static uint8_t data[CAPACITY * 512];
	struct dm_mapped *md = unit_device("vol", "0 256 linear unit:b 0\n256 256 linear unit:a 384");
	struct dm_mapped *above = unit_device("above", "0 128 linear vol 384");
	uint64_t sector;

	assert_int_equal(submit(md, DM_ZONE_APPEND, 2 * ZONE, 8, data, &sector), 0);
	assert_int_equal(sector, 2 * ZONE);
	assert_int_equal(submit(md, DM_ZONE_APPEND, 2 * ZONE, 16, data, &sector), 0);
	assert_int_equal(sector, 2 * ZONE + 8);
	assert_int_equal(submit(md, DM_WRITE, 3 * ZONE, 24, data, NULL), 0);
	assert_int_equal(submit(above, DM_ZONE_APPEND, 0, 8, data, &sector), 0);
	assert_int_equal(sector, 24);
	assert_int_equal(a->zones[4].wp, 4 * ZONE + 32);
	/* one that fails is where it was sent */
	assert_int_equal(submit(md, DM_ZONE_APPEND, 3 * ZONE, CAPACITY, data, &sector), -EIO);
	assert_int_equal(sector, 3 * ZONE);
	unit_remove(above);
	unit_remove(md);
}

static void an_append_is_never_split(void **state)
{
	static uint8_t data[2 * ZONE * 512];
	struct dm_mapped *md = unit_device("vol", "0 256 linear unit:b 0\n256 256 linear unit:a 384");
	struct dm_mapped *crypt = unit_device("crypt", "0 512 crypt aes-xts-plain64 " KEY " 0 vol 0");

	assert_int_equal(submit(md, DM_ZONE_APPEND, 0, CAPACITY + 1, data, NULL), -EINVAL);
	assert_int_equal(submit(md, DM_ZONE_APPEND, 8, 8, data, NULL), -EINVAL);
	assert_int_equal(submit(crypt, DM_ZONE_APPEND, 0, 8, data, NULL), -EOPNOTSUPP);
	unit_remove(crypt);
	unit_remove(md);
}

static void stats_see_an_append_once(void **state)
{
	static uint8_t data[8 * 512];
	struct dm_mapped *md = unit_device("vol", "0 256 linear unit:b 0");
	g_autofree char *reply = NULL;
	uint64_t sector;

	assert_int_equal(unit_message(md, "@stats_create - 8", NULL), 0);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(submit(md, DM_ZONE_APPEND, 0, 8, data, &sector), 0);
	assert_int_equal(sector, 8);
	assert_int_equal(unit_message(md, "@stats_print 0 0 1", &reply), 0);
	assert_true(g_str_has_prefix(reply, "0+8 0 0 0 0 2 0 16 "));
	unit_remove(md);
}

int main(void)
{
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(limits_are_those_of_the_devices),
		TEST(what_cannot_be_mixed_is_refused),
		TEST(host_aware_zones_are_sectors_to_who_knows_none),
		TEST(a_report_goes_over_targets_and_down_stacks),
		TEST(a_report_can_be_stopped_and_refused),
		TEST(operations_reach_the_zone),
		TEST(reset_all_goes_to_every_target),
		TEST(without_zones_there_is_nothing_to_do),
		TEST(writes_linear),
		TEST(writes_over_targets),
		TEST(writes_crypt),
		TEST(an_append_learns_where_it_went),
		TEST(an_append_is_never_split),
		TEST(stats_see_an_append_once),
	};

	return cmocka_run_group_tests(tests, setup_all, NULL);
}
