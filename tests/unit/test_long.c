/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Bios that would take for ever: they leave the thread that brings them, and stop when nobody wants them any more. */
#include "device.h"

#include <dmfs/hold.h>
#include <dmfs/target.h>
#include <inttypes.h>
#include <pthread.h>

#define ETERNITY (UINT64_C(1) << 50) /* sectors: in parts of 8 it takes years */
#define NEVER UINT64_MAX

/* A target that ends what it gets at once, and with an error from a sector on. */
static atomic_uint_fast64_t parts, fails_from;
static atomic_uintptr_t mapper; /* the thread that has map() called now */

static int count_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	ti->max_io_sectors = 8;
	ti->num_discard_bios = 1;
	ti->split_discards = true;
	ti->discards_supported = true;
	return 0;
}

static enum dm_mapio count_map(struct dm_target *ti, struct dm_bio *bio)
{
	atomic_fetch_add(&parts, 1);
	atomic_store(&mapper, (uintptr_t)pthread_self());
	dm_bio_end(bio, bio->sector >= atomic_load(&fails_from) ? -EREMOTEIO : 0);
	return DM_MAPIO_SUBMITTED;
}

static void count_io_hints(struct dm_target *ti, struct dm_limits *limits)
{
	limits->max_discard_sectors = UINT64_MAX;
	limits->discard_granularity = 512;
}

static const struct dm_target_type count_target = {
	.name = "count",
	.version = {1, 0, 0},
	.ctr = count_ctr,
	.map = count_map,
	.io_hints = count_io_hints,
};
static const struct dm_target_type *const list[] = {&count_target, NULL};

static struct {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool done;
} end = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};

static void ended(struct dm_bio *bio)
{
	pthread_mutex_lock(&end.lock);
	end.done = true;
	pthread_cond_signal(&end.cond);
	pthread_mutex_unlock(&end.lock);
}

/* It goes on without us until it is stopped; what it ended with. */
static int run(enum dm_op op, uint64_t sectors, void (*stop)(struct dm_origin *))
{
	struct dm_mapped *md = unit_device("long", "0 %" PRIu64 " count", sectors);
	struct dm_bio bio = {.op = op, .dev = &md->dev, .sectors = sectors, .end = ended};
	struct dm_origin origin;

	dm_origin_init(&origin);
	bio.origin = &origin;
	end.done = false;
	atomic_store(&parts, 0);
	dm_submit(&bio);
	if (stop) {
		while (atomic_load(&mapper) == (uintptr_t)pthread_self()) /* until another thread is at it */
			sched_yield();
		stop(&origin);
	}
	pthread_mutex_lock(&end.lock);
	while (!end.done)
		pthread_cond_wait(&end.cond, &end.lock);
	pthread_mutex_unlock(&end.lock);
	dm_origin_destroy(&origin);
	unit_remove(md);
	return bio.error;
}

static void stop_never(struct dm_origin *origin)
{
}

static void all_of_it(void **state)
{
	atomic_store(&fails_from, NEVER);
	assert_int_equal(run(DM_DISCARD, 8 * 10000, NULL), 0);
	assert_int_equal(atomic_load(&parts), 10000);
	assert_int_equal(run(DM_WRITE_ZEROES, 8 * 1000, stop_never), 0);
	assert_int_equal(atomic_load(&parts), 1000);
}

static void until_the_caller_dies(void **state)
{
	atomic_store(&fails_from, NEVER);
	assert_int_equal(run(DM_DISCARD, ETERNITY, dm_origin_cancel), -EINTR);
	assert_int_equal(run(DM_WRITE_ZEROES, ETERNITY, dm_origin_cancel), -EINTR);
}

static void until_something_fails(void **state)
{
	atomic_store(&fails_from, 8 * 1000);
	assert_int_equal(run(DM_DISCARD, ETERNITY, NULL), -EREMOTEIO);
	assert_in_range(atomic_load(&parts), 1001, 1100);
	assert_int_equal(run(DM_WRITE_ZEROES, ETERNITY, NULL), -EREMOTEIO);
	assert_in_range(atomic_load(&parts), 1001, 1100);
}

static void end_the_daemon(struct dm_origin *origin)
{
	dm_end_all_holds();
}

/* The last one: there is no way back. */
static void until_the_daemon_ends(void **state)
{
	atomic_store(&fails_from, NEVER);
	assert_int_equal(run(DM_DISCARD, ETERNITY, end_the_daemon), -EIO);
	assert_int_equal(run(DM_WRITE_ZEROES, ETERNITY, NULL), -EIO);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_of_it),
		cmocka_unit_test(until_the_caller_dies),
		cmocka_unit_test(until_something_fails),
		cmocka_unit_test(until_the_daemon_ends),
	};

	dm_register_targets(list);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
