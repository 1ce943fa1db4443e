/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * writecache of type p on a file system that has MAP_SYNC, on one that has not, and on one that cannot be mapped:
 * mmap() and msync() of the file's map are this test's.
 */
#include "unit.h"

#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "device.h"

#include "targets/list.h"

static struct {
	int sync_error, map_error, msync_error; /* what they answer */
	unsigned sync_maps, maps;
	atomic_uint msyncs;
} fake;

static void *fake_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
#ifdef MAP_SYNC
	if (flags & MAP_SYNC) {
		assert_int_equal(flags, MAP_SHARED_VALIDATE | MAP_SYNC);
		fake.sync_maps++;
		flags = MAP_SHARED;
		errno = fake.sync_error;
		return fake.sync_error ? MAP_FAILED : mmap(addr, len, prot, flags, fd, offset);
	}
#endif
	assert_int_equal(flags, MAP_SHARED);
	fake.maps++;
	errno = fake.map_error;
	return fake.map_error ? MAP_FAILED : mmap(addr, len, prot, flags, fd, offset);
}

static int fake_msync(void *addr, size_t len, int flags)
{
	assert_int_equal(flags, MS_SYNC);
	atomic_fetch_add(&fake.msyncs, 1);
	errno = fake.msync_error;
	return fake.msync_error ? -1 : msync(addr, len, flags);
}

#define mmap fake_mmap
#define msync fake_msync
#include "targets/writecache/mem.c"
#undef mmap
#undef msync

#define SECTORS 2048u

struct stack {
	const char *origin, *cache;
	struct dm_mapped *md;
};

static void stack_open(struct stack *s)
{
	s->origin = unit_file(SECTORS);
	s->cache = unit_file(SECTORS);
	s->md =
	    unit_device("vol", "0 %u writecache p %s %s 4096 2 autocommit_time 3600000", SECTORS, s->origin, s->cache);
}

static void stack_close(struct stack *s)
{
	unit_remove(s->md);
	unit_files_close();
}

static void put(struct stack *s, unsigned block, uint8_t value)
{
	uint8_t data[4096];

	memset(data, value, sizeof data);
	assert_int_equal(dm_write_sync(&s->md->dev, block * 8, 8, data, 0), 0);
}

static void check_file(const char *path, uint64_t at, uint8_t value)
{
	int fd = atoi(strrchr(path, '/') + 1);
	uint8_t c;

	assert_int_equal(pread(fd, &c, 1, (off_t)at), 1);
	assert_int_equal(c, value);
}

static void use(struct stack *s)
{
	uint8_t data[4096];

	put(s, 3, 1);
	put(s, 9, 2);
	assert_int_equal(dm_flush_sync(&s->md->dev), 0);
	check_file(s->cache, 24, 1); /* the sequence */
	assert_int_equal(dm_read_sync(&s->md->dev, 24, 8, data, 0), 0);
	assert_int_equal(data[77], 1);
	put(s, 3, 3);
	assert_int_equal(unit_message(s->md, "flush", NULL), 0);
	check_file(s->origin, 3 * 4096, 3);
	check_file(s->origin, 9 * 4096, 2);
}

/* The CPU's caches are left by each copy: there is nothing that msync() would do. */
static void test_with_map_sync(void **state)
{
	struct stack s;

	if (!CAN_LEAVE_CACHES)
		skip();
	memset(&fake, 0, sizeof fake);
	stack_open(&s);
	assert_true(fake.sync_maps > 0);
	assert_int_equal(fake.maps, 0);
	use(&s);
	assert_int_equal(fake.msyncs, 0);
	stack_close(&s);
}

static void test_without_map_sync(void **state)
{
	static const int errors[] = {EOPNOTSUPP, EINVAL}; /* of file systems that know the flag, and of old kernels */

	for (unsigned i = 0; i < G_N_ELEMENTS(errors); i++) {
		unsigned before;
		struct stack s;

		memset(&fake, 0, sizeof fake);
		fake.sync_error = errors[i];
		stack_open(&s);
		assert_int_equal(fake.sync_maps > 0, CAN_LEAVE_CACHES);
		assert_int_equal(fake.maps, 1);
		use(&s);
		before = fake.msyncs;
		put(&s, 1, 1);
		assert_int_equal(fake.msyncs, before);
		assert_int_equal(dm_flush_sync(&s.md->dev), 0);
		assert_int_equal(fake.msyncs, before + 2); /* entries, then the superblock */
		stack_close(&s);
	}
}

static void test_msync_fails(void **state)
{
	char *status;
	struct stack s;

	memset(&fake, 0, sizeof fake);
	fake.sync_error = EOPNOTSUPP;
	stack_open(&s);
	put(&s, 1, 1);
	fake.msync_error = EIO;
	assert_int_equal(dm_flush_sync(&s.md->dev), -EIO);
	status = unit_status(s.md, DM_STATUS_INFO);
	assert_non_null(strstr(status, " writecache -5 "));
	g_free(status);
	stack_close(&s);
}

static void test_no_map_at_all(void **state)
{
	struct dm_mapped *md = unit_device("vol", "0 %u zero", SECTORS);
	g_autofree char *table =
	    g_strdup_printf("0 %u writecache p %s %s 4096 0", SECTORS, unit_file(SECTORS), unit_file(SECTORS));
	g_autoptr(GError) err = NULL;

	memset(&fake, 0, sizeof fake);
	fake.sync_error = fake.map_error = ENODEV;
	assert_int_equal(unit_load(md, table, &err), -ENODEV);
	assert_non_null(strstr(err->message, "Unable to map persistent memory for cache"));
	unit_remove(md);
	unit_files_close();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_with_map_sync),
	    cmocka_unit_test(test_without_map_sync),
	    cmocka_unit_test(test_msync_fails),
	    cmocka_unit_test(test_no_map_at_all),
	};

	dm_register_targets(dm_target_list);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
