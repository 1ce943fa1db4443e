/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The share of threads that one file system may keep waiting. */
#include "unit.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/sysmacros.h>

#include "io/fs_share.h"

#include <dmfs/container_of.h>
#include <dmfs/io.h>
#include <dmfs/work.h>

static atomic_uint begun, ended;

static void count_begin(void *unused)
{
	atomic_fetch_add(&begun, 1);
}

static void count_end(void *unused)
{
	atomic_fetch_add(&ended, 1);
}

static unsigned enter_all(struct fs_share *s)
{
	unsigned n = 0;

	while (fs_share_enter(s))
		n++;
	return n;
}

static void leave_all(struct fs_share *s, unsigned n)
{
	while (n--)
		fs_share_leave(s);
}

static void test_so_many_and_no_more(void **unused)
{
	struct fs_share *s = fs_share_get(makedev(9, 1), false, true, "/far"), *again, *other;
	unsigned n = enter_all(s);

	assert_true(n >= 8 && n <= 64);
	assert_false(fs_share_enter(s));
	/* the same file system by another file; a block device of that number; another */
	again = fs_share_get(makedev(9, 1), false, true, "/far/too");
	assert_ptr_equal(again, s);
	assert_false(fs_share_enter(again));
	other = fs_share_get(makedev(9, 1), true, false, "/dev/x");
	assert_ptr_not_equal(other, s);
	assert_true(fs_share_enter(other));
	fs_share_leave(other);
	fs_share_leave(s);
	assert_true(fs_share_enter(s));
	leave_all(s, n);
	assert_int_equal(enter_all(s), n);
	leave_all(s, n);
	fs_share_put(s);
	fs_share_put(again);
	fs_share_put(other);
}

static void test_a_number_is_used_again(void **unused)
{
	struct fs_share *s = fs_share_get(makedev(9, 2), false, true, "/far");

	assert_true(fs_share_far(s));
	fs_share_put(s);
	s = fs_share_get(makedev(9, 2), false, false, "/near");
	assert_false(fs_share_far(s));
	fs_share_put(s);
}

static void test_the_front_end_hears_of_it(void **unused)
{
	struct fs_share *s = fs_share_get(makedev(9, 3), false, false, "/x");

	dm_block_set_hooks(count_begin, count_end, NULL);
	assert_true(fs_share_enter(s));
	assert_int_equal(begun, 1);
	fs_share_leave(s);
	assert_int_equal(ended, 1);
	fs_share_enter_anyway(s);
	fs_share_leave(s);
	assert_int_equal(ended, 2);
	dm_block_set_hooks(NULL, NULL, NULL);
	fs_share_put(s);
}

/* --- the queue: more bios than it has threads, and all of them hang for a while --- */

#define BIOS 200

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned running, done;
	bool go;
} hang = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void hanging(struct dm_bio *bio)
{
	pthread_mutex_lock(&hang.lock);
	hang.running++;
	pthread_cond_broadcast(&hang.changed);
	while (!hang.go)
		pthread_cond_wait(&hang.changed, &hang.lock);
	hang.running--;
	hang.done++;
	bio->error++;
	pthread_cond_broadcast(&hang.changed);
	pthread_mutex_unlock(&hang.lock);
}

static void test_the_queue(void **unused)
{
	struct fs_share *s = fs_share_get(makedev(9, 4), false, true, "/hangs");
	static struct dm_bio bios[BIOS];
	g_autofree char *path = NULL;
	unsigned most;

	for (unsigned i = 0; i < BIOS; i++)
		fs_share_queue(s, &bios[i], hanging);
	pthread_mutex_lock(&hang.lock);
	while (hang.running < 32)
		pthread_cond_wait(&hang.changed, &hang.lock);
	most = hang.running;
	pthread_mutex_unlock(&hang.lock);
	assert_int_equal(most, 32);
	assert_int_equal(hang.done, 0);

	assert_null(fs_share_hanging(dm_now_ns(), 1000, true));
	path = fs_share_hanging(dm_now_ns() - 2000 * UINT64_C(1000000), 1000, true);
	assert_string_equal(path, "/hangs");
	pthread_mutex_lock(&hang.lock);
	hang.go = true;
	pthread_cond_broadcast(&hang.changed);
	while (hang.done < BIOS)
		pthread_cond_wait(&hang.changed, &hang.lock);
	pthread_mutex_unlock(&hang.lock);
	for (unsigned i = 0; i < BIOS; i++)
		assert_int_equal(bios[i].error, 1);
	fs_share_put(s);
}

static void test_hanging_near_and_far(void **unused)
{
	struct fs_share *s = fs_share_get(makedev(9, 5), false, false, "/near");
	uint64_t long_ago = dm_now_ns() - 5000 * UINT64_C(1000000);
	char *path;

	assert_null(fs_share_hanging(long_ago, 1000, false));
	fs_share_enter_anyway(s);
	assert_null(fs_share_hanging(long_ago, 1000, true));
	path = fs_share_hanging(long_ago, 1000, false);
	assert_string_equal(path, "/near");
	g_free(path);
	assert_null(fs_share_hanging(long_ago, 10000, false));
	fs_share_leave(s);
	assert_null(fs_share_hanging(long_ago, 1000, false));
	fs_share_put(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_so_many_and_no_more),
		cmocka_unit_test(test_a_number_is_used_again),
		cmocka_unit_test(test_the_front_end_hears_of_it),
		cmocka_unit_test(test_the_queue),
		cmocka_unit_test(test_hanging_near_and_far),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
