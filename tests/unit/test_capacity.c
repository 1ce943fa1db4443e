/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A target that says how much of its device there is: what bios reach, who is told, and what stands above it. */
#include "device.h"

#include <pthread.h>

#include "core/events.h"
#include "targets/list.h"

#define LENGTH 1024u

/* --- a target of so many sectors as its message says ------------------------------------------ */

static int elastic_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	uint64_t sectors;

	if (argc == 1 && dm_parse_u64(argv[0], &sectors))
		dm_target_set_capacity(ti, sectors);
	return 0;
}

static enum dm_mapio elastic_map(struct dm_target *ti, struct dm_bio *bio)
{
	dm_bio_end(bio, 0);
	return DM_MAPIO_SUBMITTED;
}

static int elastic_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	uint64_t sectors;

	if (!dm_parse_u64(argv[argc - 1], &sectors))
		return -EINVAL;
	dm_target_set_capacity(ti, sectors);
	return 0;
}

static const struct dm_target_type elastic_target = {
	.name = "elastic",
	.version = {1, 0, 0},
	.features = DM_TARGET_SINGLETON,
	.ctr = elastic_ctr,
	.map = elastic_map,
	.message = elastic_message,
};

/* --- a front end ------------------------------------------------------------------------------- */

static struct {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned resizes;
	uint64_t sectors; /* at the last one */
} front = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};

static void resized(struct dm_mapped *md)
{
	pthread_mutex_lock(&front.lock);
	front.resizes++;
	front.sectors = dm_mapped_sectors(md);
	pthread_cond_signal(&front.cond);
	pthread_mutex_unlock(&front.lock);
}

static void wait_for_size(uint64_t sectors)
{
	pthread_mutex_lock(&front.lock);
	while (!front.resizes || front.sectors != sectors)
		pthread_cond_wait(&front.cond, &front.lock);
	pthread_mutex_unlock(&front.lock);
}

static const struct dm_front_ops front_ops = {.resized = resized};

static int setup(void **state)
{
	static const struct dm_target_type *list[64];
	unsigned n = 0;

	for (; dm_target_list[n]; n++)
		list[n] = dm_target_list[n];
	assert_true(n + 1 < G_N_ELEMENTS(list));
	list[n] = &elastic_target;
	dm_register_targets(list);
	dm_front = &front_ops;
	return 0;
}

static void note_end(struct dm_bio *bio)
{
}

static int read_at(struct dm_mapped *md, uint64_t sector)
{
	char data[512];
	struct iovec iov = {data, sizeof data};
	struct dm_bio bio = {.op = DM_READ, .dev = &md->dev, .sector = sector, .sectors = 1, .iov = &iov, .iovcnt = 1,
			     .end = note_end};

	dm_submit(&bio);
	return bio.error;
}

static void assert_size(struct dm_mapped *md, uint64_t sectors)
{
	assert_int_equal(dm_mapped_sectors(md), sectors);
	assert_int_equal(dm_dev_sectors(&md->dev), sectors);
	if (sectors)
		assert_int_equal(read_at(md, sectors - 1), 0);
	assert_int_equal(read_at(md, sectors), -EIO);
}

/* --- the tests ---------------------------------------------------------------------------------- */

static void a_capacity_bounds_bios(void **state)
{
	struct dm_mapped *md = unit_device("vol", "0 %u elastic", LENGTH);

	assert_size(md, LENGTH);
	assert_int_equal(unit_message(md, "set 1000", NULL), 0);
	assert_size(md, 1000);
	wait_for_size(1000);
	assert_int_equal(unit_message(md, "set 1020", NULL), 0);
	assert_size(md, 1020);
	wait_for_size(1020);
	assert_int_equal(unit_message(md, "set 2000", NULL), 0); /* no more than the length */
	assert_size(md, LENGTH);
	wait_for_size(LENGTH);
	unit_remove(md);
	dm_events_settle();
}

static void a_table_may_begin_with_less(void **state)
{
	struct dm_mapped *md = unit_device("vol", "0 %u elastic 100", LENGTH);
	unsigned before = front.resizes;

	assert_size(md, 100);
	assert_int_equal(unit_load(md, "0 512 elastic", NULL), 0);
	assert_size(md, 512);
	dm_events_settle();
	assert_int_equal(front.resizes, before); /* that was told as a swap */
	unit_remove(md);
}

static void what_stands_on_it_sees_it(void **state)
{
	struct dm_mapped *md = unit_device("vol", "0 %u elastic 100", LENGTH), *above;
	g_autoptr(GError) err = NULL;

	assert_int_equal(dm_create("above", -1, &above, NULL), 0);
	assert_int_equal(unit_load(above, "0 101 linear vol 0", &err), -EINVAL);
	assert_non_null(strstr(err->message, "too small"));
	assert_int_equal(unit_load(above, "0 100 linear vol 0", NULL), 0);
	assert_int_equal(unit_message(md, "set 60", NULL), 0);
	assert_int_equal(read_at(above, 59), 0);
	assert_int_equal(read_at(above, 60), -EIO);
	unit_remove(above);
	unit_remove(md);
	dm_events_settle();
}

static void wake(void *context)
{
}

static void an_event_tells(void **state)
{
	struct dm_mapped *md = unit_device("vol", "0 %u elastic", LENGTH);
	struct dm_event_reader *r = dm_event_reader_new(md, wake, NULL);
	g_autoptr(GString) lines = g_string_new(NULL);
	unsigned counted = atomic_load(&md->event_nr);

	assert_int_equal(unit_message(md, "set 1024", NULL), 0); /* as it was: nothing to tell */
	assert_int_equal(unit_message(md, "set 10", NULL), 0);
	dm_events_settle();
	assert_true(dm_event_read(r, lines, 4096));
	assert_non_null(strstr(lines->str, "ACTION=change DM_NAME=vol"));
	assert_non_null(strstr(lines->str, " RESIZE=1 "));
	assert_ptr_equal(strchr(lines->str, '\n'), lines->str + lines->len - 1); /* one line */
	assert_int_equal(atomic_load(&md->event_nr), counted);
	dm_event_reader_free(r);
	unit_remove(md);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_capacity_bounds_bios),
		cmocka_unit_test(a_table_may_begin_with_less),
		cmocka_unit_test(what_stands_on_it_sees_it),
		cmocka_unit_test(an_event_tells),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
