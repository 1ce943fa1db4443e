/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dm-io over more regions than a word has bits: each is written, and each one's own error comes back. */
#include "memdev.h"
#include "unit.h"

#include <pthread.h>

#define REGIONS 253u /* what raid takes */

static struct memdev *devs[REGIONS];
static struct dm_region where[REGIONS];
static char data[4096];
static const struct iovec iov = {data, sizeof data};

static int setup(void **state)
{
	for (unsigned i = 0; i < REGIONS; i++) {
		devs[i] = memdev_new(64);
		where[i] = (struct dm_region){&devs[i]->dev, i % 8, sizeof data / 512};
	}
	memset(data, 7, sizeof data);
	return 0;
}

static int teardown(void **state)
{
	for (unsigned i = 0; i < REGIONS; i++)
		memdev_put(devs[i]);
	return 0;
}

/* The first and the last, and those where a word of 32 or 64 bits ends. */
static int error_of(unsigned i)
{
	return i == 31 || i == 32 ? -ENODATA : i == 63 || i == 64 || i == REGIONS - 1 ? -ENODEV : i == 0 ? -EILSEQ : 0;
}

static void make_fail(unsigned first)
{
	for (unsigned i = first; i < REGIONS; i++) {
		devs[i]->fail_error = error_of(i);
		devs[i]->fail_at = error_of(i) != 0;
	}
}

static void assert_errors(const int *errors)
{
	for (unsigned i = 0; i < REGIONS; i++) {
		assert_int_equal(errors[i], error_of(i));
		assert_int_equal(devs[i]->data[where[i].sector * 512], error_of(i) ? 0 : 7);
		assert_int_equal(devs[i]->data[where[i].sector * 512 + sizeof data - 1], error_of(i) ? 0 : 7);
	}
}

static void sync_tells_of_each(void **state)
{
	int errors[REGIONS];

	make_fail(0);
	assert_int_equal(dm_io_sync(DM_WRITE, 0, REGIONS, where, &iov, 1, errors), -EILSEQ);
	assert_errors(errors);
	assert_int_equal(dm_io_sync(DM_WRITE, 0, REGIONS - 1, where + 1, &iov, 1, NULL), -ENODATA);
	assert_int_equal(dm_io_sync(DM_FLUSH, 0, 31, where + 1, NULL, 0, NULL), -ENODATA);
	assert_int_equal(dm_io_sync(DM_FLUSH, 0, 30, where + 1, NULL, 0, errors), 0);
	for (unsigned i = 0; i < 30; i++)
		assert_int_equal(errors[i], 0);
}

struct answer {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	int error, errors[REGIONS];
	bool done;
};

static void answered(int error, const int *errors, void *context)
{
	struct answer *a = context;

	pthread_mutex_lock(&a->lock);
	a->error = error;
	memcpy(a->errors, errors, sizeof a->errors);
	a->done = true;
	pthread_cond_signal(&a->cond);
	pthread_mutex_unlock(&a->lock);
}

static void async_tells_of_each(void **state)
{
	struct answer a = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};

	make_fail(0);
	dm_io_async(DM_WRITE, 0, REGIONS, where, &iov, 1, answered, &a);
	pthread_mutex_lock(&a.lock);
	while (!a.done)
		pthread_cond_wait(&a.cond, &a.lock);
	pthread_mutex_unlock(&a.lock);
	assert_int_equal(a.error, -EILSEQ);
	assert_errors(a.errors);
}

static void one_region_is_read(void **state)
{
	struct dm_region one = {&devs[5]->dev, 3, 8};
	char got[4096];
	struct iovec to = {got, sizeof got};

	memset(devs[5]->data + 3 * 512, 9, 4096);
	assert_int_equal(dm_io_sync(DM_READ, 0, 1, &one, &to, 1, NULL), 0);
	assert_int_equal(got[0], 9);
	assert_int_equal(got[4095], 9);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(sync_tells_of_each, setup, teardown),
		cmocka_unit_test_setup_teardown(async_tells_of_each, setup, teardown),
		cmocka_unit_test_setup_teardown(one_region_is_read, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
