/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Dirty logs without a mirror: the disk log's bytes, what it refuses, what it knows after a resume. */
#include "unit.h"

#include "core/devices.h"
#include "core/type.h"
#include "targets/list.h"

#include <dmfs/dirty_log.h>

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#define REGION 8u
#define BITMAP 1024u

static struct dm_mapped *md;
static struct dm_dirty_log *live; /* of the table made last */

/* A target that is nothing but a log: <log type> <log params>*. */
static int logged_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	int error = dm_dirty_log_new(ti, "logged", argv[0], argc - 1, argv + 1, &live, err);

	ti->private = live;
	return error;
}

static void logged_dtr(struct dm_target *ti)
{
	dm_dirty_log_free(ti->private);
}

static enum dm_mapio logged_map(struct dm_target *ti, struct dm_bio *bio)
{
	return DM_MAPIO_KILL;
}

static const struct dm_target_type logged_target = {
	.name = "logged", .version = {1, 0, 0}, .ctr = logged_ctr, .dtr = logged_dtr, .map = logged_map};

static int setup(void **state)
{
	static const struct dm_target_type *types[256];
	unsigned n = 0;

	for (; dm_target_list[n]; n++)
		types[n] = dm_target_list[n];
	types[n] = &logged_target;
	dm_register_targets(types);
	return dm_create("vol", -1, &md, NULL);
}

static int teardown(void **state)
{
	dm_mapped_unref(md);
	dm_remove_all();
	return 0;
}

struct file {
	char path[40];
	int fd;
};

static void file_open(struct file *f, size_t bytes)
{
	strcpy(f->path, "/tmp/dmfs-unit-log-XXXXXX");
	f->fd = mkstemp(f->path);
	assert_true(f->fd >= 0 && !ftruncate(f->fd, (off_t)bytes));
}

static void file_close(struct file *f)
{
	close(f->fd);
	unlink(f->path);
}

static void put(struct file *f, off_t at, const void *data, size_t len)
{
	assert_int_equal(pwrite(f->fd, data, len, at), len);
}

static uint8_t byte(struct file *f, off_t at)
{
	uint8_t b;

	assert_int_equal(pread(f->fd, &b, 1, at), 1);
	return b;
}

static bool bit(struct file *f, uint64_t region)
{
	return byte(f, (off_t)(BITMAP + region / 8)) >> region % 8 & 1;
}

static void put_header(struct file *f, uint32_t magic, uint32_t version, uint64_t regions)
{
	uint32_t words[2] = {GUINT32_TO_LE(magic), GUINT32_TO_LE(version)};
	uint64_t n = GUINT64_TO_LE(regions);

	put(f, 0, words, sizeof words);
	put(f, 8, &n, sizeof n);
}

/* A table with a log for so many regions; NULL and an error if it is refused. */
static struct dm_table *make(uint64_t regions, GError **err, const char *fmt, ...) G_GNUC_PRINTF(3, 4);
static struct dm_table *make(uint64_t regions, GError **err, const char *fmt, ...)
{
	struct dm_opener self = dm_opener_self();
	struct dm_table *t = dm_table_new(md, DM_MODE_RW, &self);
	g_autofree char *args = NULL, *line = NULL;
	va_list ap;

	va_start(ap, fmt);
	args = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	line = g_strdup_printf("0 %" G_GUINT64_FORMAT " logged %s", regions * REGION - 3, args);
	if (dm_table_add_line(t, line, err)) {
		dm_table_unref(t);
		return NULL;
	}
	return t;
}

static void refused(uint64_t regions, const char *what, const char *args)
{
	g_autoptr(GError) err = NULL;

	assert_null(make(regions, &err, "%s", args));
	assert_non_null(err);
	if (!strstr(err->message, what))
		fail_msg("'%s' is not about '%s'", err->message, what);
}

static void resume(void)
{
	assert_int_equal(live->type->resume(live), 0);
}

static void text(enum dm_status_type type, const char *fmt, const char *path)
{
	g_autofree char *want = g_strdup_printf(fmt, path);
	g_autoptr(GString) got = g_string_new(NULL);

	live->type->status(live, type, got);
	assert_string_equal(got->str, want);
}

static void a_new_log_has_the_kernel_s_layout(void **state)
{
	static const uint8_t header[16] = {0x72, 0x52, 0x69, 0x4d, 2, 0, 0, 0, 100, 0, 0, 0, 0, 0, 0, 0};
	struct file f;
	struct dm_table *t;
	uint8_t got[16];

	file_open(&f, 8192);
	put(&f, 16, "kept", 4);
	put(&f, 1020, "kept", 4);
	memset(got, 0xff, 16);
	put(&f, BITMAP, got, 16); /* of what was there before */
	t = make(100, NULL, "disk %s %u", f.path, REGION);
	assert_non_null(t);
	assert_int_equal(byte(&f, 0), 0); /* loading alone writes nothing */
	text(DM_STATUS_TABLE, "disk 2 %s 8", f.path);
	resume();
	assert_int_equal(pread(f.fd, got, 16, 0), 16);
	assert_memory_equal(got, header, 16);
	assert_int_equal(byte(&f, 16), 'k');
	assert_int_equal(byte(&f, 1023), 't');
	for (uint64_t r = 0; r < 128; r++)
		assert_false(bit(&f, r));
	assert_int_equal(live->type->sync_count(live), 0);
	text(DM_STATUS_INFO, "3 disk %s A", f.path);
	dm_table_unref(t);
	t = make(100, NULL, "disk %s %u nosync", f.path, REGION);
	assert_int_equal(live->type->sync_count(live), 100);
	text(DM_STATUS_TABLE, "disk 3 %s 8 nosync", f.path);
	resume();
	for (uint64_t r = 0; r < 128; r++)
		assert_int_equal(bit(&f, r), r < 100);
	dm_table_unref(t);
	t = make(100, NULL, "disk %s %u sync", f.path, REGION);
	resume();
	for (uint64_t r = 0; r < 128; r++)
		assert_false(bit(&f, r));
	/* Once it is ours, a resume asks the log and not the table. */
	live->type->clear_region(live, 7);
	live->type->postsuspend(live);
	resume();
	assert_int_equal(live->type->sync_count(live), 1);
	dm_table_unref(t);
	file_close(&f);
}

static void a_mark_is_on_the_disk_after_flush(void **state)
{
	const uint64_t n = 100000; /* four blocks of bitmap */
	struct file f;
	struct dm_table *t;
	g_autofree bool *clean = g_new(bool, n);

	file_open(&f, 1024 + n / 8 + 600);
	t = make(n, NULL, "disk %s %u nosync", f.path, REGION);
	assert_non_null(t);
	resume();
	for (uint64_t r = 0; r < n; r++)
		clean[r] = true;
	for (unsigned round = 0; round < 50; round++) {
		for (unsigned i = 0; i < 20; i++) {
			uint64_t r = (round * 7919u + i * 104729u * (round + 1)) % n;

			clean[r] = i % 3 == 0;
			(clean[r] ? live->type->clear_region : live->type->mark_region)(live, r);
			assert_int_equal(live->type->is_clean(live, r), clean[r]);
		}
		assert_int_equal(live->type->flush(live), 0);
		if (round % 10 == 9)
			for (uint64_t r = 0; r < n; r++)
				assert_int_equal(bit(&f, r), clean[r]);
	}
	dm_table_unref(t);
	/* And that is what the next one goes by. */
	t = make(n, NULL, "disk %s %u", f.path, REGION);
	resume();
	for (uint64_t r = 0; r < n; r++)
		assert_int_equal(live->type->in_sync(live, r, false), clean[r]);
	for (uint64_t r = 0, work; r < n; r++) {
		if (clean[r])
			continue;
		assert_true(live->type->get_resync_work(live, &work));
		assert_int_equal(work, r);
	}
	assert_false(live->type->get_resync_work(live, &(uint64_t){0}));
	dm_table_unref(t);
	file_close(&f);
}

static void a_stranger_is_refused(void **state)
{
	struct file f;
	struct dm_table *t;
	g_autofree char *args = NULL, *forced = NULL;
	uint8_t before[8192], after[8192];

	file_open(&f, sizeof before);
	args = g_strdup_printf("disk %s %u", f.path, REGION);
	forced = g_strdup_printf("disk %s %u sync", f.path, REGION);
	memset(before, 0xa5, sizeof before);
	put(&f, 0, before, sizeof before);
	refused(100, "magic 0xa5a5a5a5", args);
	put_header(&f, 0, 0, 1);
	refused(100, "magic 0x00000000", args);
	put_header(&f, 0x4d695272, 3, 100);
	refused(100, "version 3", args);
	put_header(&f, 0x4d695272, 0, 100);
	refused(100, "version 0", args);
	put_header(&f, 0x4d695272, 0xffffffff, 100);
	refused(100, "version 4294967295", args);
	put_header(&f, 0x4d695272, 2, 99);
	refused(100, "99 regions", args);
	put_header(&f, 0x4d695272, 2, UINT64_MAX - 1);
	refused(100, "18446744073709551614 regions", args);
	assert_int_equal(pread(f.fd, before, sizeof before, 0), sizeof before);
	put_header(&f, 0x4d695272, 1, 100); /* the same but for its number */
	t = make(100, NULL, "%s", args);
	assert_non_null(t);
	dm_table_unref(t);
	put_header(&f, 0x4d695272, 2, UINT64_MAX - 1);
	assert_int_equal(pread(f.fd, after, sizeof after, 0), sizeof after);
	assert_memory_equal(before, after, sizeof before); /* nobody wrote */
	t = make(100, NULL, "%s", forced);
	assert_non_null(t);
	resume();
	assert_int_equal(byte(&f, 8), 100);
	dm_table_unref(t);
	file_close(&f);
}

/* Between load and resume another could have written there. */
static void it_is_looked_at_again_before_the_resume(void **state)
{
	g_autoptr(GError) err = NULL;
	struct file f;
	struct dm_table *t;

	file_open(&f, 8192);
	t = make(100, NULL, "disk %s %u", f.path, REGION);
	assert_int_equal(live->type->preresume(live, &err), 0);
	put(&f, 0, "mine", 4);
	assert_int_equal(live->type->preresume(live, &err), -EINVAL);
	assert_non_null(err);
	dm_table_unref(t);
	file_close(&f);
}

static void bits_past_the_last_region_count_for_nothing(void **state)
{
	struct file f;
	struct dm_table *t;
	uint8_t ones[64];

	file_open(&f, 8192);
	memset(ones, 0xff, sizeof ones);
	put(&f, BITMAP, ones, sizeof ones);
	put_header(&f, 0x4d695272, 2, 101);
	t = make(101, NULL, "disk %s %u", f.path, REGION);
	resume();
	assert_int_equal(live->type->sync_count(live), 101);
	for (uint64_t r = 0; r < 128; r++)
		assert_int_equal(bit(&f, r), r < 101);
	assert_int_equal(byte(&f, BITMAP + 16), 0xff); /* not ours */
	dm_table_unref(t);
	file_close(&f);
}

static void sizes_and_arguments(void **state)
{
	static const char *const bad[][2] = {
		{"core", "wrong number"},	  {"core 8 sync 3", "wrong number"},   {"core 0", "region size '0'"},
		{"core 1", "region size '1'"},	  {"core 12", "region size '12'"},     {"core 8x", "region size '8x'"},
		{"core 1024", "length 797"},	  {"core 8 maybe", "'maybe'"},	       {"userspace x 8", "Too few"},
		{"clustered-disk 8", "unknown"},  {"disk", "wrong number"},	       {"disk 8", "wrong number"},
		{"disk /nonexistent 8", "/none"}, {"disk /nonexistent 8 a b", "wrong number"},
		{"userspace u 8 clustered-core", "type '8'"}, {"userspace u integrated_flush clustered-core", "wrong number"},
		{"userspace u clustered-core 1", "region size '1'"}, {"userspace u clustered-core 3 8", "unrecognised sync"},
		{"userspace u clustered-disk 8", "wrong number"},
		{"userspace u clustered-disk 2 /nonexistent 8", "/none"}, {"userspace u disk /nonexistent 8", "type 'disk'"},
	};
	struct file f;
	struct dm_table *t;
	g_autofree char *args = NULL;

	for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++)
		refused(100, bad[i][1], bad[i][0]);
	args = g_strdup_printf("userspace %0129d clustered-core 8", 0);
	refused(100, "129 bytes", args);
	g_clear_pointer(&args, g_free);
	/* 1024 + 16 bytes are three sectors */
	file_open(&f, 1024);
	args = g_strdup_printf("disk %s %u", f.path, REGION);
	refused(100, "too small: need 1536 bytes", args);
	assert_int_equal(ftruncate(f.fd, 1536), 0);
	t = make(100, NULL, "%s", args);
	assert_non_null(t);
	resume();
	dm_table_unref(t);
	refused((uint64_t)1 << 33, "limit", "core 8");
	file_close(&f);
}

static void core_forgets(void **state)
{
	struct dm_table *t = make(100, NULL, "core %u", REGION);
	uint64_t r;

	resume();
	text(DM_STATUS_INFO, "1 core%s", "");
	text(DM_STATUS_TABLE, "core 1 8%s", "");
	assert_int_equal(live->type->sync_count(live), 0);
	for (uint64_t want = 0; want < 100; want++) {
		assert_true(live->type->get_resync_work(live, &r));
		assert_int_equal(r, want);
		live->type->set_region_sync(live, r, want != 50);
		live->type->set_region_sync(live, r, want != 50); /* counts once */
	}
	assert_false(live->type->get_resync_work(live, &r));
	assert_int_equal(live->type->sync_count(live), 99);
	live->type->set_region_sync(live, 3, false);
	assert_false(live->type->get_resync_work(live, &r)); /* not before the next resume */
	resume();
	assert_true(live->type->get_resync_work(live, &r) && r == 3);
	assert_true(live->type->get_resync_work(live, &r) && r == 50);
	assert_false(live->type->get_resync_work(live, &r));
	dm_table_unref(t);
}

/* Without a server they are core and disk by other names; the types' own count of parameters may be there or not. */
static void userspace_logs_for_one_node(void **state)
{
	static const char *const lines[][2] = {
		{"userspace u clustered-core 8", "userspace 3 u clustered-core 8"},
		{"userspace u clustered-core 1 8", "userspace 3 u clustered-core 8"},
		{"userspace u clustered-core 2 8 nosync", "userspace 4 u clustered-core 8 nosync"},
		{"userspace a\\ b Integrated_Flush clustered-core 8 sync",
		 "userspace 5 a\\ b integrated_flush clustered-core 8 sync"},
	};
	struct file f;
	struct dm_table *t;

	for (unsigned i = 0; i < G_N_ELEMENTS(lines); i++) {
		t = make(100, NULL, "%s", lines[i][0]);
		assert_non_null(t);
		resume();
		text(DM_STATUS_INFO, "1 clustered-core%s", "");
		text(DM_STATUS_TABLE, lines[i][1], "");
		dm_table_unref(t);
	}
	file_open(&f, 8192);
	t = make(100, NULL, "userspace u clustered-disk 3 %s 8 nosync", f.path);
	assert_non_null(t);
	resume();
	live->type->mark_region(live, 9);
	assert_int_equal(live->type->flush(live), 0);
	assert_true(bit(&f, 8) && !bit(&f, 9));
	text(DM_STATUS_INFO, "3 clustered-disk %s A", f.path);
	text(DM_STATUS_TABLE, "userspace 5 u clustered-disk %s 8 nosync", f.path);
	dm_table_unref(t);
	file_close(&f);
}

static void a_device_that_fails_is_written_when_it_is_back(void **state)
{
	struct dm_opener self = dm_opener_self();
	struct dm_mapped *under;
	struct file f;
	struct dm_table *t, *swap;
	g_autofree char *good = NULL, *first = NULL, *broken = g_strdup("0 16 error");

	file_open(&f, 8192);
	good = g_strdup_printf("0 16 linear %s 0", f.path);
	assert_int_equal(dm_create("under", -1, &under, NULL), 0);
	swap = dm_table_new(under, DM_MODE_RW, &self);
	first = g_strdup(good);
	assert_int_equal(dm_table_add_line(swap, first, NULL), 0);
	assert_int_equal(dm_table_complete(swap, NULL), 0);
	assert_int_equal(dm_mapped_swap(under, swap, NULL, NULL, NULL), 0);
	t = make(100, NULL, "disk under %u nosync", REGION);
	resume();
	swap = dm_table_new(under, DM_MODE_RW, &self);
	assert_int_equal(dm_table_add_line(swap, broken, NULL), 0);
	assert_int_equal(dm_table_complete(swap, NULL), 0);
	assert_int_equal(dm_mapped_swap(under, swap, NULL, NULL, NULL), 0);
	live->type->mark_region(live, 9);
	assert_int_equal(live->type->flush(live), -EIO);
	text(DM_STATUS_INFO, "3 disk %s D", "under");
	assert_true(bit(&f, 9));
	swap = dm_table_new(under, DM_MODE_RW, &self);
	assert_int_equal(dm_table_add_line(swap, good, NULL), 0);
	assert_int_equal(dm_table_complete(swap, NULL), 0);
	assert_int_equal(dm_mapped_swap(under, swap, NULL, NULL, NULL), 0);
	assert_int_equal(live->type->flush(live), 0);
	assert_false(bit(&f, 9));
	text(DM_STATUS_INFO, "3 disk %s D", "under");
	dm_table_unref(t);
	assert_int_equal(dm_remove(under, NULL), 0);
	dm_mapped_unref(under);
	file_close(&f);
}

/* --- a log on another host --------------------------------------------------------------- */

static int far_in_sync(struct dm_dirty_log *log, uint64_t region, bool may_wait)
{
	return region > 9 ? -ETIMEDOUT : may_wait ? (int)(region % 2) : -EWOULDBLOCK;
}

static bool far_recovering(struct dm_dirty_log *log, uint64_t region)
{
	return region == 4;
}

static void far_end_waiting(struct dm_dirty_log *log)
{
	*(bool *)log->context = true;
}

/* What is not known is not in sync, and what a log on this host leaves out means nothing. */
static void a_log_far_away(void **state)
{
	static const struct dm_dirty_log_type far = {
		.in_sync = far_in_sync, .is_remote_recovering = far_recovering, .end_waiting = far_end_waiting};
	bool ended = false;
	struct dm_dirty_log log = {.type = &far, .context = &ended};

	assert_false(dm_dirty_log_in_sync(&log, 1));
	assert_false(dm_dirty_log_in_sync(&log, 10));
	assert_int_equal(log.type->in_sync(&log, 1, true), 1);
	assert_true(dm_dirty_log_is_remote_recovering(&log, 4));
	assert_false(dm_dirty_log_is_remote_recovering(&log, 5));
	dm_dirty_log_end_waiting(&log);
	assert_true(ended);
	log.type = &(const struct dm_dirty_log_type){.in_sync = far_in_sync};
	assert_false(dm_dirty_log_is_remote_recovering(&log, 4));
	dm_dirty_log_end_waiting(&log);
}

/* LVM's, which says with its bits alone what is in sync, before anybody knows how many there are. */
static void a_log_for_any_number_of_regions(void **state)
{
	struct file f;
	struct dm_table *t;
	g_autofree char *args = NULL;
	uint8_t bits[8] = {0xff, 0x0f};

	file_open(&f, 8192);
	args = g_strdup_printf("disk %s %u", f.path, REGION);
	put_header(&f, 0x4d695272, 2, UINT64_MAX);
	put(&f, BITMAP, bits, sizeof bits);
	t = make(20, NULL, "%s", args);
	assert_non_null(t);
	resume();
	assert_int_equal(byte(&f, 8), 20);
	assert_int_equal(byte(&f, 9), 0);
	for (uint64_t i = 0; i < 20; i++)
		assert_int_equal(bit(&f, i), i < 12);
	dm_table_unref(t);
	file_close(&f);
}

/* Who has it live may grow and shrink with it; who has other regions, or comes later, may not. */
static void a_log_in_use_is_resized(void **state)
{
	struct file f;
	struct dm_table *t, *grown;
	g_autofree char *args = NULL, *larger = NULL;

	file_open(&f, 8192);
	args = g_strdup_printf("disk %s %u", f.path, REGION);
	larger = g_strdup_printf("disk %s %u", f.path, 2 * REGION);
	t = make(20, NULL, "%s nosync", args);
	resume();
	refused(10, "of 20 regions", larger);
	grown = make(30, NULL, "%s", args);
	assert_non_null(grown);
	dm_table_unref(t);
	resume();
	for (uint64_t i = 0; i < 30; i++)
		assert_int_equal(bit(&f, i), i < 20);
	t = make(10, NULL, "%s", args);
	assert_non_null(t);
	dm_table_unref(grown);
	refused(11, "of 30 regions", args);
	resume();
	assert_int_equal(byte(&f, 8), 10);
	dm_table_unref(t);
	file_close(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_new_log_has_the_kernel_s_layout),
		cmocka_unit_test(a_mark_is_on_the_disk_after_flush),
		cmocka_unit_test(a_stranger_is_refused),
		cmocka_unit_test(a_log_for_any_number_of_regions),
		cmocka_unit_test(a_log_in_use_is_resized),
		cmocka_unit_test(it_is_looked_at_again_before_the_resume),
		cmocka_unit_test(bits_past_the_last_region_count_for_nothing),
		cmocka_unit_test(sizes_and_arguments),
		cmocka_unit_test(core_forgets),
		cmocka_unit_test(userspace_logs_for_one_node),
		cmocka_unit_test(a_device_that_fails_is_written_when_it_is_back),
		cmocka_unit_test(a_log_far_away),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
