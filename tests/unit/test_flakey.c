/* SPDX-License-Identifier: GPL-2.0-or-later */
/* flakey: intervals, and every feature while down; unstriped beside striped. */
#include "device.h"

#include "targets/list.h"

#include <dmfs/work.h>

#define SECTORS 64u
#define BYTES (SECTORS * 512)

static int setup(void **state)
{
	dm_register_targets(dm_target_list);
	return 0;
}

static int teardown(void **state)
{
	dm_remove_all();
	unit_files_close();
	return 0;
}

/* A device that is always down, over "under", which is linear on the same file. */
static struct dm_mapped *down(const char *features, struct dm_mapped **under)
{
	const char *file = unit_file(SECTORS);

	*under = unit_device("under", "0 %u linear %s 0", SECTORS, file);
	return unit_device("down", "0 %u flakey %s 0 0 1 %s", SECTORS, file, features);
}

static unsigned differences(const char *a, const char *b, size_t n)
{
	unsigned found = 0;

	for (size_t i = 0; i < n; i++)
		found += a[i] != b[i];
	return found;
}

static void test_up_and_down_in_turns(void **state)
{
	const char *file = unit_file(SECTORS);
	uint64_t before = dm_now_ns(), after, now;
	struct dm_mapped *md = unit_device("turns", "0 %u flakey %s 0 1 1", SECTORS, file);
	char buf[512];
	unsigned phase = 0;

	after = dm_now_ns();
	/* up, down, up: each read as the time it was done at says, where that is beyond doubt */
	while (phase < 3) {
		uint64_t from = dm_now_ns();
		int error = dm_read_sync(&md->dev, 0, 1, buf, 0);
		uint64_t least, most;

		now = dm_now_ns();
		least = (from - after) / 1000000000;
		most = (now - before) / 1000000000;
		if (least == most)
			assert_int_equal(error, least % 2 ? -EIO : 0);
		if (phase == 0 || phase == 2)
			phase += !error && most >= phase;
		else
			phase += error == -EIO;
	}
	unit_remove(md);
}

static void test_always_up(void **state)
{
	struct dm_mapped *md = unit_device("up", "0 %u flakey %s 0 1 0", SECTORS, unit_file(SECTORS));
	char buf[512] = "x";

	assert_int_equal(dm_write_sync(&md->dev, 5, 1, buf, 0), 0);
	assert_int_equal(dm_flush_sync(&md->dev), 0);
	unit_remove(md);
}

static void test_errors(void **state)
{
	static const struct {
		const char *features;
		int read, write, flush;
		bool written;
	} cases[] = {
		{"", -EIO, -EIO, -EIO, false},
		{"0", -EIO, -EIO, -EIO, false},
		{"1 error_reads", -EIO, 0, 0, true},
		{"1 error_writes", 0, -EIO, -EIO, false},
		{"2 error_reads error_writes", -EIO, -EIO, -EIO, false},
		{"1 drop_writes", 0, 0, 0, false},
		{"2 drop_writes error_reads", -EIO, 0, 0, false},
		{"2 random_read_corrupt 0", 0, 0, 0, true},
	};
	char data[512], seen[512];

	memset(data, 'x', sizeof data);
	for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
		struct dm_mapped *under, *md = down(cases[i].features, &under);
		struct dm_region all = {&md->dev, 0, SECTORS};

		assert_int_equal(dm_write_sync(&md->dev, 3, 1, data, 0), cases[i].write);
		assert_int_equal(dm_read_sync(&md->dev, 3, 1, seen, 0), cases[i].read);
		assert_int_equal(dm_flush_sync(&md->dev), cases[i].flush);
		assert_int_equal(dm_read_sync(&under->dev, 3, 1, seen, 0), 0);
		assert_int_equal(seen[0] == 'x', cases[i].written);
		assert_int_equal(dm_io_sync(DM_DISCARD, 0, 1, &all, NULL, 0, NULL), cases[i].write);
		assert_int_equal(dm_write_sync(&under->dev, 3, 1, data, 0), 0);
		assert_int_equal(dm_io_sync(DM_WRITE_ZEROES, 0, 1, &all, NULL, 0, NULL), cases[i].write);
		assert_int_equal(dm_read_sync(&under->dev, 3, 1, seen, 0), 0);
		assert_int_equal(seen[0] == 0, cases[i].written);
		unit_remove(md);
		unit_remove(under);
	}
}

/* Which byte of the data a fixed corruption changes, -1: none. */
static void corrupts(const char *features, enum dm_op op, unsigned flags, int expected)
{
	struct dm_mapped *under, *md = down(features, &under);
	char data[BYTES], kept[BYTES], seen[BYTES];
	struct iovec iov[2] = {{data, 600}, {data + 600, BYTES - 600}};
	struct dm_region where = {&md->dev, 0, SECTORS};

	memset(data, 'd', sizeof data);
	memcpy(kept, data, sizeof data);
	if (op == DM_READ) {
		assert_int_equal(dm_write_sync(&under->dev, 0, SECTORS, data, 0), 0);
		memset(data, 0, sizeof data);
	}
	assert_int_equal(dm_io_sync(op, flags, 1, &where, iov, 2, NULL), 0);
	assert_int_equal(dm_read_sync(&under->dev, 0, SECTORS, seen, 0), 0);
	if (op == DM_READ) {
		assert_memory_equal(seen, kept, sizeof seen); /* the disk is as it was */
		memcpy(seen, data, sizeof seen);
	} else {
		assert_memory_equal(data, kept, sizeof data); /* the writer's data is its own */
	}
	if (expected >= 0) {
		assert_int_equal(seen[expected], 'X');
		seen[expected] = 'd';
	}
	assert_memory_equal(seen, kept, sizeof seen);
	unit_remove(md);
	unit_remove(under);
}

static void test_corrupt_bio_byte(void **state)
{
	corrupts("5 corrupt_bio_byte 1 r 88 0", DM_READ, 0, 0);
	corrupts("5 corrupt_bio_byte 601 r 88 0", DM_READ, 0, 600);
	corrupts("5 corrupt_bio_byte 32768 r 88 0", DM_READ, 0, BYTES - 1);
	corrupts("5 corrupt_bio_byte 32769 r 88 0", DM_READ, 0, -1);
	corrupts("5 corrupt_bio_byte 4294967295 r 88 0", DM_READ, 0, -1);
	corrupts("5 corrupt_bio_byte 1 r 88 0", DM_WRITE, 0, -1);
	corrupts("5 corrupt_bio_byte 600 w 88 0", DM_WRITE, 0, 599);
	corrupts("5 corrupt_bio_byte 600 w 88 0", DM_READ, 0, -1);
	corrupts("6 drop_writes corrupt_bio_byte 7 r 88 0", DM_READ, 0, 6);
	corrupts("6 error_writes corrupt_bio_byte 7 r 88 0", DM_READ, 0, 6);
	corrupts("6 error_reads corrupt_bio_byte 7 w 88 0", DM_WRITE, 0, 6);
	/* flags: all must be there; as dm-flakey.rst has it, 32 is REQ_META */
	corrupts("5 corrupt_bio_byte 7 w 88 32", DM_WRITE, 0, -1);
	corrupts("5 corrupt_bio_byte 7 w 88 32", DM_WRITE, DM_META, 6);
	corrupts("5 corrupt_bio_byte 7 w 88 4096", DM_WRITE, DM_META, 6);
	corrupts("5 corrupt_bio_byte 7 r 88 4096", DM_READ, DM_META, 6);
	corrupts("5 corrupt_bio_byte 7 w 88 1", DM_WRITE, 0, 6);
	corrupts("5 corrupt_bio_byte 7 r 88 1", DM_READ, 0, -1);
	corrupts("5 corrupt_bio_byte 7 w 88 131073", DM_WRITE, 0, -1);
	corrupts("5 corrupt_bio_byte 7 w 88 131073", DM_WRITE, DM_FUA, 6);
}

/* A chance in ten is some of many; certainty is always, and no chance never. */
static void test_random_corruption(void **state)
{
	static const struct {
		const char *features;
		unsigned least, most;
	} cases[] = {
		{"2 random_%s_corrupt 0", 0, 0},
		{"2 random_%s_corrupt 1000000000", 900, 1000}, /* the random byte may be the right one */
		{"2 random_%s_corrupt 100000000", 20, 300},
	};
	char data[4096], seen[4096], kept[4096];

	memset(data, 'd', sizeof data);
	memcpy(kept, data, sizeof data);
	for (unsigned i = 0; i < 2 * G_N_ELEMENTS(cases); i++) {
		bool reads = i % 2;
		g_autofree char *features = g_strdup_printf(cases[i / 2].features, reads ? "read" : "write");
		struct dm_mapped *under, *md = down(features, &under);
		struct dm_mapped *write_to = reads ? under : md, *read_from = reads ? md : under;
		unsigned corrupted = 0;

		for (unsigned n = 0; n < 1000; n++) {
			unsigned found;

			assert_int_equal(dm_write_sync(&write_to->dev, 8, 8, data, 0), 0);
			assert_memory_equal(data, kept, sizeof data);
			assert_int_equal(dm_read_sync(&read_from->dev, 8, 8, seen, 0), 0);
			found = differences(seen, data, sizeof data);
			assert_true(found <= 1);
			corrupted += found;
		}
		assert_in_range(corrupted, cases[i / 2].least, cases[i / 2].most);
		unit_remove(md);
		unit_remove(under);
	}
}

static void test_bad_combinations(void **state)
{
	static const char *const bad[] = {
		"2 drop_writes error_writes",
		"2 error_reads error_reads",
		"3 drop_writes random_write_corrupt 5",
		"3 error_writes random_write_corrupt 5",
		"3 error_reads random_read_corrupt 5",
		"6 error_reads corrupt_bio_byte 1 r 1 0",
		"6 error_writes corrupt_bio_byte 1 w 1 0",
		"2 random_read_corrupt 1000000001",
		"2 random_read_corrupt x",
		"1 random_read_corrupt",
		"1 random_read_corrupt 5",
		"4 random_read_corrupt 1 random_read_corrupt 1",
		"4 random_write_corrupt 1 random_write_corrupt 1",
		"10 corrupt_bio_byte 1 r 1 0 corrupt_bio_byte 2 r 1 0",
		"12 error_reads",
	};
	struct dm_mapped *md = unit_device("bad", "0 8 zero");
	const char *file = unit_file(SECTORS);

	for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
		g_autofree char *table = g_strdup_printf("0 %u flakey %s 0 1 1 %s", SECTORS, file, bad[i]);
		g_autoptr(GError) err = NULL;

		assert_int_equal(unit_load(md, table, &err), -EINVAL);
		assert_true(g_str_has_prefix(err->message, "flakey: "));
	}
	unit_remove(md);
}

static void test_table_loads_again(void **state)
{
	static const char *const good[] = {
		"0",
		"1 error_reads",
		"2 error_reads drop_writes",
		"2 error_reads error_writes",
		"5 corrupt_bio_byte 9 w 255 4096",
		"2 random_read_corrupt 0",
		"11 error_reads corrupt_bio_byte 9 w 1 0 random_write_corrupt 7",
		"11 drop_writes corrupt_bio_byte 9 r 1 0 random_read_corrupt 7",
		"9 corrupt_bio_byte 9 r 1 0 random_read_corrupt 7 random_write_corrupt 1000000000",
	};
	const char *file = unit_file(SECTORS);

	for (unsigned i = 0; i < G_N_ELEMENTS(good); i++) {
		/* the number of arguments is counted here */
		g_auto(GStrv) words = g_strsplit(good[i], " ", -1);
		g_autofree char *rest = g_strjoinv(" ", words + 1);
		g_autofree char *line = g_strdup_printf("0 %u flakey %s 0 1 2 %u%s%s", SECTORS, file,
							g_strv_length(words) - 1, *rest ? " " : "", rest);
		struct dm_mapped *md = unit_device("t", "%s", line);
		g_autofree char *table = unit_status(md, DM_STATUS_TABLE);

		g_strchomp(table);
		assert_string_equal(table, line);
		unit_remove(md);
	}
}

/* unstriped takes out of striped what striped put in, for stripes and chunks of any size. */
static void test_unstriped_undoes_striped(void **state)
{
	static const struct {
		unsigned stripes, chunk, chunks;
	} cases[] = {{1, 8, 5}, {2, 8, 7}, {3, 5, 11}, {4, 1, 9}, {7, 16, 3}};

	for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
		unsigned n = cases[i].stripes, each = cases[i].chunk * cases[i].chunks;
		g_autoptr(GString) line = g_string_new(NULL);
		g_autofree char *data = g_malloc((size_t)each * n * 512), *seen = g_malloc((size_t)each * 512);
		g_autofree char *want = g_malloc((size_t)each * 512);
		struct dm_mapped *members[8], *raid, *one;

		g_string_printf(line, "0 %u striped %u %u", each * n, n, cases[i].chunk);
		for (unsigned m = 0; m < n; m++) {
			g_autofree char *name = g_strdup_printf("member%u", m);

			members[m] = unit_device(name, "0 %u linear %s 0", each, unit_file(each));
			g_string_append_printf(line, " %s 0", name);
		}
		raid = unit_device("raid", "%s", line->str);
		for (size_t b = 0; b < (size_t)each * n * 512; b++)
			data[b] = (char)(b / 512 * 7 + b);
		assert_int_equal(dm_write_sync(&raid->dev, 0, each * n, data, 0), 0);
		for (unsigned m = 0; m < n; m++) {
			struct dm_extent extent;

			one = unit_device("one", "0 %u unstriped %u %u %u raid 0", each, n, cases[i].chunk, m);
			assert_int_equal(dm_read_sync(&one->dev, 0, each, seen, 0), 0);
			assert_int_equal(dm_read_sync(&members[m]->dev, 0, each, want, 0), 0);
			assert_memory_equal(seen, want, (size_t)each * 512);
			memset(seen, 'n', (size_t)each * 512);
			assert_int_equal(dm_write_sync(&one->dev, 0, each, seen, 0), 0);
			assert_int_equal(dm_read_sync(&members[m]->dev, 0, each, want, 0), 0);
			assert_memory_equal(seen, want, (size_t)each * 512);
			assert_int_equal(dm_dev_extent(&one->dev, 0, each, &extent), 0);
			assert_true(extent.data && extent.sectors >= 1 && extent.sectors <= cases[i].chunk);
			assert_int_equal(dm_flush_sync(&one->dev), 0);
			unit_remove(one);
		}
		unit_remove(raid);
		for (unsigned m = 0; m < n; m++)
			unit_remove(members[m]);
	}
}

/* The kernel lets these through; what lies outside fails there and does not wrap. */
static void test_unstriped_outside_fails(void **state)
{
	struct dm_mapped *md = unit_device("out", "0 64 unstriped 4 8 4 %s 0", unit_file(64));
	char buf[512];

	assert_int_equal(dm_read_sync(&md->dev, 0, 1, buf, 0), 0);
	assert_int_equal(dm_read_sync(&md->dev, 63, 1, buf, 0), -EIO);
	assert_int_equal(dm_write_sync(&md->dev, 63, 1, buf, 0), -EIO);
	unit_remove(md);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_up_and_down_in_turns),
		cmocka_unit_test(test_always_up),
		cmocka_unit_test(test_errors),
		cmocka_unit_test(test_corrupt_bio_byte),
		cmocka_unit_test(test_random_corruption),
		cmocka_unit_test(test_bad_combinations),
		cmocka_unit_test(test_table_loads_again),
		cmocka_unit_test(test_unstriped_undoes_striped),
		cmocka_unit_test(test_unstriped_outside_fails),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
