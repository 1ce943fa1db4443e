/* SPDX-License-Identifier: GPL-2.0-or-later */
/* delay: order, no thread for what waits, suspend, and disks that block. */
#include "device.h"

#include "targets/list.h"

#include <dirent.h>
#include <dmfs/work.h>
#include <pthread.h>
#include <stdlib.h>

#define BIOS 10000u
#define HOUR_MS 3600000

/* A target that blocks who submits to it until told otherwise. */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool open;
	unsigned inside;
} gate = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, 0};

static int blocker_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	return 0;
}

static enum dm_mapio blocker_map(struct dm_target *ti, struct dm_bio *bio)
{
	dm_block_begin();
	pthread_mutex_lock(&gate.lock);
	gate.inside++;
	pthread_cond_broadcast(&gate.changed);
	while (!gate.open)
		pthread_cond_wait(&gate.changed, &gate.lock);
	pthread_mutex_unlock(&gate.lock);
	dm_block_end();
	dm_bio_end(bio, 0);
	return DM_MAPIO_SUBMITTED;
}

static const struct dm_target_type blocker_target = {
	.name = "blocker",
	.version = {1, 0, 0},
	.ctr = blocker_ctr,
	.map = blocker_map,
};

static int setup(void **state)
{
	static const struct dm_target_type *list[64];
	unsigned n = 0;

	for (; dm_target_list[n]; n++)
		list[n] = dm_target_list[n];
	assert_true(n + 1 < G_N_ELEMENTS(list));
	list[n] = &blocker_target;
	dm_register_targets(list);
	return 0;
}

static int teardown(void **state)
{
	dm_remove_all();
	unit_files_close();
	return 0;
}

/* --- bios that tell when and after how many others they ended ---------------------------- */

struct probe {
	struct dm_bio bio; /* first */
	struct iovec iov;
	char data[512];
	uint64_t before_ns, after_ns, delay_ns; /* submitted between the two */
	uint64_t ended_ns;
	unsigned turn;
};

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned ended;
} done = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};

static void probe_end(struct dm_bio *bio)
{
	struct probe *p = (struct probe *)bio;

	pthread_mutex_lock(&done.lock);
	p->ended_ns = dm_now_ns();
	p->turn = done.ended++;
	pthread_cond_broadcast(&done.changed);
	pthread_mutex_unlock(&done.lock);
}

static void submit(struct probe *p, struct dm_mapped *md, enum dm_op op, uint64_t sector)
{
	p->iov = (struct iovec){p->data, sizeof p->data};
	p->bio = (struct dm_bio){.op = op, .dev = &md->dev, .sector = sector, .end = probe_end};
	if (op != DM_FLUSH) {
		p->bio.sectors = 1;
		p->bio.iov = &p->iov;
		p->bio.iovcnt = 1;
	}
	p->before_ns = dm_now_ns();
	dm_submit(&p->bio);
	p->after_ns = dm_now_ns();
}

static void wait_for(unsigned n)
{
	pthread_mutex_lock(&done.lock);
	while (done.ended < n)
		pthread_cond_wait(&done.changed, &done.lock);
	pthread_mutex_unlock(&done.lock);
}

static unsigned ended(void)
{
	unsigned n;

	pthread_mutex_lock(&done.lock);
	n = done.ended;
	pthread_mutex_unlock(&done.lock);
	return n;
}

static unsigned threads(void)
{
	DIR *dir = opendir("/proc/self/task");
	unsigned n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n - 2;
}

static int by_turn(const void *a, const void *b)
{
	const struct probe *x = *(struct probe *const *)a, *y = *(struct probe *const *)b;

	return x->turn < y->turn ? -1 : x->turn > y->turn;
}

/* --- tests ---------------------------------------------------------------------------- */

static void test_ten_thousand_fire_in_order(void **state)
{
	const char *file = unit_file(BIOS);
	g_autoptr(GString) table = g_string_new(NULL);
	g_autofree struct probe *probes = g_new0(struct probe, BIOS);
	g_autofree struct probe **sorted = g_new(struct probe *, BIOS);
	g_autofree uint64_t *late_us = g_new(uint64_t, BIOS);
	uint64_t latest_due = 0, worst = 0;
	struct dm_mapped *md;
	unsigned waiting_threads;

	done.ended = 0;
	for (unsigned i = 0; i < BIOS; i++) {
		unsigned ms = 300 + i * 7919u % 400;

		probes[i].delay_ns = (uint64_t)ms * 1000000;
		g_string_append_printf(table, "%u 1 delay %s %u %u\n", i, file, i, ms);
	}
	md = unit_device("many", "%s", table->str);
	for (unsigned i = 0; i < BIOS; i++)
		submit(&probes[i], md, i % 3 ? DM_READ : DM_WRITE, i);
	waiting_threads = threads();
	wait_for(BIOS);
	assert_true(waiting_threads < 16);

	for (unsigned i = 0; i < BIOS; i++) {
		assert_int_equal(probes[i].bio.error, 0);
		assert_true(probes[i].ended_ns >= probes[i].before_ns + probes[i].delay_ns); /* never early */
		sorted[i] = &probes[i];
	}
	qsort(sorted, BIOS, sizeof *sorted, by_turn);
	for (unsigned i = 0; i < BIOS; i++) {
		struct probe *p = sorted[i];

		assert_true(latest_due <= p->after_ns + p->delay_ns); /* none before it was due after it */
		latest_due = MAX(latest_due, p->before_ns + p->delay_ns);
		worst = MAX(worst, p->ended_ns - p->before_ns - p->delay_ns);
	}
	print_message("the latest was %.3f ms behind its time, %u threads while all waited\n", (double)worst / 1e6,
		      waiting_threads);
	unit_remove(md);
}

static void test_suspend_lets_all_go(void **state)
{
	struct dm_mapped *md = unit_device("held", "0 100 delay %s 0 %d", unit_file(100), HOUR_MS);
	g_autofree struct probe *probes = g_new0(struct probe, 61);
	g_autofree char *held = NULL, *none = NULL, *again = NULL;

	done.ended = 0;
	for (unsigned i = 0; i < 60; i++)
		submit(&probes[i], md, i < 30 ? DM_READ : i < 50 ? DM_WRITE : DM_FLUSH, i < 50 ? i : 0);
	held = unit_status(md, DM_STATUS_INFO);
	assert_string_equal(held, "0 100 delay 30 20 10\n");
	assert_int_equal(ended(), 0);
	assert_int_equal(dm_mapped_suspend(md, 0, NULL, NULL, NULL), 0);
	wait_for(60);
	none = unit_status(md, DM_STATUS_INFO);
	assert_string_equal(none, "0 100 delay 0 0 0\n");

	assert_int_equal(dm_mapped_resume(md, 0, NULL, NULL, NULL), 0);
	submit(&probes[60], md, DM_READ, 0);
	again = unit_status(md, DM_STATUS_INFO);
	assert_string_equal(again, "0 100 delay 1 0 0\n");
	unit_remove(md); /* lets it go too */
	wait_for(61);
}

static bool at_once(void *unused)
{
	return true;
}

static void test_an_interrupted_suspend_delays_again(void **state)
{
	struct dm_mapped *slow = unit_device("slow", "0 100 blocker");
	struct dm_mapped *md = unit_device("above", "0 100 delay slow 0 1 %s 0 %d", unit_file(100), HOUR_MS);
	g_autofree struct probe *probes = g_new0(struct probe, 2);
	g_autofree char *held = NULL;

	done.ended = 0;
	gate.inside = 0;
	gate.open = false;
	submit(&probes[0], md, DM_READ, 0);
	pthread_mutex_lock(&gate.lock);
	while (!gate.inside)
		pthread_cond_wait(&gate.changed, &gate.lock);
	pthread_mutex_unlock(&gate.lock);
	assert_int_equal(dm_mapped_suspend(md, 0, at_once, NULL, NULL), -EINTR);
	submit(&probes[1], md, DM_WRITE, 0);
	held = unit_status(md, DM_STATUS_INFO);
	assert_string_equal(held, "0 100 delay 0 1 0\n");
	pthread_mutex_lock(&gate.lock);
	gate.open = true;
	pthread_cond_broadcast(&gate.changed);
	pthread_mutex_unlock(&gate.lock);
	unit_remove(md);
	wait_for(2);
	unit_remove(slow);
}

/* Bios beneath which a disk blocks hold up neither those behind them nor those of other targets. */
static void test_a_blocking_disk_blocks_nobody_else(void **state)
{
	const char *file = unit_file(200);
	struct dm_mapped *slow = unit_device("slow", "0 100 blocker");
	struct dm_mapped *one = unit_device("one", "0 100 delay slow 0 1\n100 100 delay %s 0 1", file);
	struct dm_mapped *two = unit_device("two", "0 100 delay %s 100 1", file);
	g_autofree struct probe *probes = g_new0(struct probe, 40);

	done.ended = 0;
	gate.inside = 0;
	gate.open = false;
	for (unsigned i = 0; i < 40; i++) {
		if (i % 4 == 0)
			submit(&probes[i], one, DM_READ, i);
		else
			submit(&probes[i], i % 2 ? one : two, DM_WRITE, i % 2 ? 100 + i : i);
	}
	wait_for(30);
	for (unsigned i = 0; i < 40; i++)
		assert_int_equal(probes[i].ended_ns > 0, i % 4 > 0);
	pthread_mutex_lock(&gate.lock);
	gate.open = true;
	pthread_cond_broadcast(&gate.changed);
	pthread_mutex_unlock(&gate.lock);
	wait_for(40);
	unit_remove(one);
	unit_remove(two);
	unit_remove(slow);
}

/* Writers go on while the device is suspended, resumed and given other delays. */
static void *hammer(void *data)
{
	struct dm_mapped *md = data;
	char buf[512];

	for (unsigned i = 0; i < 300; i++) {
		memset(buf, (int)i, sizeof buf);
		assert_int_equal(dm_write_sync(&md->dev, i % 64, 1, buf, 0), 0);
		assert_int_equal(dm_read_sync(&md->dev, i % 64, 1, buf, 0), 0);
		if (i % 50 == 0)
			assert_int_equal(dm_flush_sync(&md->dev), 0);
	}
	return NULL;
}

static void test_suspend_under_load(void **state)
{
	const char *file = unit_file(64);
	struct dm_mapped *md = unit_device("load", "0 64 delay %s 0 1", file);
	pthread_t writers[4];

	for (unsigned i = 0; i < 4; i++)
		pthread_create(&writers[i], NULL, hammer, md);
	for (unsigned i = 0; i < 60; i++) {
		g_autofree char *table = g_strdup_printf("0 64 delay %s 0 %u %s 0 %u", file, i % 3, file, (i + 1) % 2);

		if (i % 2) {
			assert_int_equal(dm_mapped_suspend(md, i % 4 == 1 ? DM_SUSPEND_NOFLUSH : 0, NULL, NULL, NULL), 0);
			assert_int_equal(dm_mapped_resume(md, 0, NULL, NULL, NULL), 0);
		} else {
			assert_int_equal(unit_load(md, table, NULL), 0);
		}
	}
	for (unsigned i = 0; i < 4; i++)
		pthread_join(writers[i], NULL);
	unit_remove(md);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ten_thousand_fire_in_order),
		cmocka_unit_test(test_suspend_lets_all_go),
		cmocka_unit_test(test_an_interrupted_suspend_delays_again),
		cmocka_unit_test(test_a_blocking_disk_blocks_nobody_else),
		cmocka_unit_test(test_suspend_under_load),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
