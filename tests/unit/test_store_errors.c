/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Write-back errors of files that several stores share: Linux tells each once for an open file, and every store has to
 * learn of it at its next FLUSH, however FLUSHes meet.
 */
#include "device.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <linux/magic.h>
#include <pthread.h>
#include <sys/vfs.h>

#include "io/shared_file.h"
#include "targets/list.h"

/* --- an fsync that fails, once for each error and open file ---------------------------------- */

static struct {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	int error;           /* the next one tells it */
	unsigned calls;      /* how many there have been */
	unsigned inside;     /* are under way, at the most at once */
	bool hold, held;     /* the next one waits; it does */
} fake = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};

static int fake_fdatasync(int fd)
{
	int error;

	pthread_mutex_lock(&fake.lock);
	fake.calls++;
	assert_int_equal(fake.inside++, 0); /* of one file, one at a time */
	error = fake.error;
	fake.error = 0;
	while (fake.hold) {
		fake.held = true;
		pthread_cond_broadcast(&fake.cond);
		pthread_cond_wait(&fake.cond, &fake.lock);
	}
	fake.held = false;
	fake.inside--;
	pthread_mutex_unlock(&fake.lock);
	errno = error;
	return error ? -1 : 0;
}

static void break_next(int error)
{
	pthread_mutex_lock(&fake.lock);
	fake.error = error;
	pthread_mutex_unlock(&fake.lock);
}

/* Beside the test itself, for what is in memory is not written back. */
static char *path;

static bool make_file(void)
{
	g_autofree char *exe = g_file_read_link("/proc/self/exe", NULL);
	struct statfs fs;
	int fd;

	path = g_strdup_printf("%s.XXXXXX", exe);
	fd = g_mkstemp(path);
	if (fd < 0) {
		print_message("skipped: no file can be made at %s\n", path);
		return false;
	}
	if (fstatfs(fd, &fs) || fs.f_type == TMPFS_MAGIC) {
		print_message("skipped: %s is on a file system in memory\n", path);
		g_unlink(path);
		return false;
	}
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	close(fd);
	return true;
}

static int setup(void **state)
{
	dm_register_targets(dm_target_list);
	shared_file_fdatasync = fake_fdatasync;
	return 0;
}

static int teardown(void **state)
{
	shared_file_fdatasync = fdatasync;
	g_unlink(path);
	g_free(path);
	return 0;
}

static struct dm_dev *open_store(enum dm_mode mode)
{
	struct dm_opener self = dm_opener_self();
	struct dm_store_path found;
	struct dm_dev *dev;

	assert_int_equal(dm_store_find(&self, path, &found, NULL), 0);
	assert_int_equal(dm_store_open(&self, &found, mode, &dev, NULL), 0);
	dm_store_path_clear(&found);
	return dev;
}

/* --- each learns of it once --------------------------------------------------------------------- */

static void every_store_is_told(void **state)
{
	struct dm_dev *a = open_store(DM_MODE_RW), *b = open_store(DM_MODE_RW), *late;

	assert_ptr_not_equal(a, b);
	assert_true(dm_dev_same(a, b));
	break_next(EIO);
	assert_int_equal(dm_flush_sync(a), -EIO);
	late = open_store(DM_MODE_RW);
	assert_int_equal(dm_flush_sync(a), 0);
	assert_int_equal(dm_flush_sync(b), -EIO); /* although Linux has nothing to tell any more */
	assert_int_equal(dm_flush_sync(b), 0);
	assert_int_equal(dm_flush_sync(late), 0); /* that was before its time */
	break_next(ENOSPC);
	assert_int_equal(dm_flush_sync(late), -ENOSPC);
	assert_int_equal(dm_flush_sync(a), -ENOSPC);
	assert_int_equal(dm_flush_sync(b), -ENOSPC);
	assert_int_equal(dm_flush_sync(a), 0);
	dm_dev_put(a);
	dm_dev_put(b);
	dm_dev_put(late);
}

static void note_end(struct dm_bio *bio)
{
}

static int write_with(struct dm_dev *dev, enum dm_op op, unsigned flags)
{
	char data[4096] = "";
	struct iovec iov = {data, sizeof data};
	struct dm_bio bio = {.op = op, .flags = flags, .dev = dev, .sectors = 8, .iov = &iov,
			     .iovcnt = dm_op_has_data(op), .end = note_end};

	dm_submit(&bio);
	return bio.error;
}

static void what_is_no_flush_leaves_the_error_to_the_next(void **state)
{
	struct dm_dev *a = open_store(DM_MODE_RW), *b = open_store(DM_MODE_RW);
	unsigned calls;

	break_next(EIO);
	assert_int_equal(write_with(a, DM_WRITE_ZEROES, DM_FUA), -EIO);
	assert_int_equal(dm_flush_sync(b), -EIO);
	assert_int_equal(dm_flush_sync(a), -EIO); /* earlier writes of its own may be lost, too */
	assert_int_equal(dm_flush_sync(a), 0);
	/* a FLUSH before a write is one */
	break_next(EIO);
	assert_int_equal(write_with(a, DM_WRITE, DM_PREFLUSH), -EIO);
	assert_int_equal(dm_flush_sync(a), 0);
	assert_int_equal(dm_flush_sync(b), -EIO);
	/* FUA goes through an open file of its own, which takes no error from this one */
	calls = fake.calls;
	break_next(EIO);
	assert_int_equal(write_with(a, DM_WRITE, DM_FUA), 0);
	assert_int_equal(fake.calls, calls);
	assert_int_equal(dm_flush_sync(b), -EIO);
	assert_int_equal(dm_flush_sync(a), -EIO);
	dm_dev_put(a);
	dm_dev_put(b);
}

/* --- FLUSHes that meet ----------------------------------------------------------------------------- */

static void *flush(void *dev)
{
	return GINT_TO_POINTER(dm_flush_sync(dev));
}

/*
 * One FLUSH has met the error but not said so yet.  One that comes meanwhile must not say that all is well, and those
 * that come meanwhile share a fsync.
 */
static void flushes_that_meet_are_all_told(void **state)
{
	struct dm_dev *devs[4];
	pthread_t threads[4];
	unsigned calls;
	void *result;

	for (unsigned i = 0; i < 4; i++)
		devs[i] = open_store(DM_MODE_RW);
	calls = fake.calls;
	break_next(EIO);
	pthread_mutex_lock(&fake.lock);
	fake.hold = true;
	pthread_mutex_unlock(&fake.lock);
	pthread_create(&threads[0], NULL, flush, devs[0]);
	pthread_mutex_lock(&fake.lock);
	while (!fake.held)
		pthread_cond_wait(&fake.cond, &fake.lock);
	pthread_mutex_unlock(&fake.lock);
	for (unsigned i = 1; i < 4; i++)
		pthread_create(&threads[i], NULL, flush, devs[i]);
	pthread_mutex_lock(&fake.lock);
	fake.hold = false;
	pthread_cond_broadcast(&fake.cond);
	pthread_mutex_unlock(&fake.lock);
	for (unsigned i = 0; i < 4; i++) {
		pthread_join(threads[i], &result);
		assert_int_equal(GPOINTER_TO_INT(result), -EIO);
	}
	assert_in_range(fake.calls - calls, 2, 4);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(dm_flush_sync(devs[i]), 0);
	for (unsigned i = 0; i < 4; i++)
		dm_dev_put(devs[i]);
}

/* --- devices ------------------------------------------------------------------------------------------ */

static void two_devices_on_one_file_are_both_told(void **state)
{
	struct dm_mapped *a = unit_device("a", "0 1024 linear %s 0\n1024 512 linear %s 1024", path, path);
	struct dm_mapped *b = unit_device("b", "0 1024 linear %s 512", path);
	g_autoptr(GString) deps = g_string_new(NULL);
	struct dm_table *t = dm_mapped_live(a);
	unsigned calls = fake.calls;

	dm_table_print_deps(t, deps); /* one device, named by two lines */
	dm_table_unref(t);
	assert_ptr_equal(strchr(deps->str, '\n'), deps->str + deps->len - 1);
	assert_int_equal(dm_flush_sync(&a->dev), 0);
	assert_int_equal(fake.calls, calls + 1);
	break_next(EIO);
	assert_int_equal(dm_flush_sync(&a->dev), -EIO);
	assert_int_equal(dm_flush_sync(&a->dev), 0);
	assert_int_equal(dm_flush_sync(&b->dev), -EIO);
	assert_int_equal(dm_flush_sync(&b->dev), 0);
	unit_remove(a);
	unit_remove(b);
}

static void the_end_flushes_each_file(void **state)
{
	struct dm_dev *a = open_store(DM_MODE_RW), *b = open_store(DM_MODE_READ);
	unsigned calls = fake.calls;

	break_next(EIO);
	assert_int_equal(dm_store_flush_all(), -EIO);
	assert_int_equal(fake.calls, calls + 1);
	dm_dev_put(a);
	dm_dev_put(b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_store_is_told),
		cmocka_unit_test(what_is_no_flush_leaves_the_error_to_the_next),
		cmocka_unit_test(flushes_that_meet_are_all_told),
		cmocka_unit_test(two_devices_on_one_file_are_both_told),
		cmocka_unit_test(the_end_flushes_each_file),
	};

	if (!make_file())
		return 0;
	return cmocka_run_group_tests(tests, setup, teardown);
}
