/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Regions of work, above a log in memory that tells what it is asked, and copies that are only noted: what happens in
 * which order.  The mirror's test has legs that hold data.
 */
#include "unit.h"

#include "core/devices.h"
#include "core/type.h"
#include "targets/list.h"

#include <dmfs/regions.h>

#include <pthread.h>

#define REGION 8u
#define REGIONS 16u

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static GString *story; /* of "mark 0 flush write 0 all …" */
static int log_error, copy_errors; /* flush's; how many copies fail */
static bool in_sync[REGIONS];
static uint64_t search;
static struct dm_regions *live;
static struct dm_mapped *md;

static void tell(const char *what, uint64_t nr)
{
	pthread_mutex_lock(&lock);
	g_string_append_printf(story, "%s %" G_GUINT64_FORMAT " ", what, nr);
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

/* Waits until the story has it; it is to come. */
static void wait_for(const char *text)
{
	pthread_mutex_lock(&lock);
	while (!strstr(story->str, text))
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
}

static void assert_story(const char *text)
{
	pthread_mutex_lock(&lock);
	assert_string_equal(story->str, text);
	g_string_truncate(story, 0);
	pthread_mutex_unlock(&lock);
}

/* --- a log ------------------------------------------------------------------------------ */

static int log_in_sync(struct dm_dirty_log *log, uint64_t nr, bool may_wait)
{
	return in_sync[nr];
}

static int log_flush(struct dm_dirty_log *log)
{
	tell("logged", 0);
	return log_error;
}

static void log_mark(struct dm_dirty_log *log, uint64_t nr)
{
	tell("mark", nr);
}

static void log_clear(struct dm_dirty_log *log, uint64_t nr)
{
	tell("clear", nr);
}

static bool log_next(struct dm_dirty_log *log, uint64_t *nr)
{
	while (search < REGIONS && in_sync[search])
		search++;
	*nr = search++;
	return *nr < REGIONS;
}

static void log_set(struct dm_dirty_log *log, uint64_t nr, bool to)
{
	in_sync[nr] = to;
	tell(to ? "synced" : "lost", nr);
}

static uint64_t log_count(struct dm_dirty_log *log)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < REGIONS; i++)
		n += in_sync[i];
	return n;
}

static void log_dtr(struct dm_dirty_log *log)
{
}

static const struct dm_dirty_log_type log_type = {
	.name = "told", .dtr = log_dtr, .in_sync = log_in_sync, .flush = log_flush, .mark_region = log_mark,
	.clear_region = log_clear, .get_resync_work = log_next, .set_region_sync = log_set, .sync_count = log_count,
};

/* --- a target ----------------------------------------------------------------------------- */

static void op_write(struct dm_region_io *io, enum dm_region_where where)
{
	static const char *const to[] = {"all", "sound", "first"};

	tell(to[where], io->offset);
}

static void op_failed(struct dm_region_io *io)
{
	dm_regions_missed(live, io);
	tell("missed", io->offset);
}

static void op_log_failed(struct dm_region_io *io)
{
	tell("unmarked", io->offset);
}

static bool op_sound(void *context)
{
	return true;
}

static int op_flush(void *context)
{
	tell("flushed", 0);
	return 0;
}

static void op_nothing(void *context)
{
}

static void op_copy(void *context, struct dm_region_run *run)
{
	bool ok = copy_errors-- <= 0;

	assert_int_equal(run->sector, run->first * REGION);
	assert_int_equal(run->sectors, run->count * REGION);
	tell(ok ? "copy" : "fail", run->first * 100 + run->count);
	dm_regions_copied(live, run, ok);
}

static const struct dm_regions_ops ops = {
	.write = op_write, .failed = op_failed, .log_failed = op_log_failed, .all_sound = op_sound, .flush = op_flush,
	.flush_failed = op_nothing, .copy = op_copy, .all_in_sync = op_nothing,
};

static int regioned_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct dm_dirty_log *log = g_new0(struct dm_dirty_log, 1);

	*log = (struct dm_dirty_log){.type = &log_type, .ti = ti, .region_sectors = REGION, .regions = REGIONS};
	return dm_regions_new(ti, log, true, &ops, NULL, &live, err);
}

static void regioned_dtr(struct dm_target *ti)
{
	dm_regions_free(live);
}

static void regioned_presuspend(struct dm_target *ti)
{
	dm_regions_presuspend(live);
}

static void regioned_postsuspend(struct dm_target *ti)
{
	dm_regions_postsuspend(live);
}

static void regioned_resume(struct dm_target *ti)
{
	dm_regions_resume(live);
}

static enum dm_mapio regioned_map(struct dm_target *ti, struct dm_bio *bio)
{
	return DM_MAPIO_KILL;
}

static const struct dm_target_type regioned_target = {
	.name = "regioned", .version = {1, 0, 0}, .ctr = regioned_ctr, .dtr = regioned_dtr, .map = regioned_map,
	.presuspend = regioned_presuspend, .postsuspend = regioned_postsuspend, .resume = regioned_resume,
};

/* --- tests ---------------------------------------------------------------------------------- */

static int setup_group(void **state)
{
	static const struct dm_target_type *types[] = {&regioned_target, NULL};

	dm_register_targets(types);
	return 0;
}

/* All in sync from `synced` on. */
static void begin(unsigned synced)
{
	struct dm_opener self = dm_opener_self();
	g_autofree char *line = g_strdup_printf("0 %u regioned", REGION * REGIONS);
	struct dm_table *t;

	for (unsigned i = 0; i < REGIONS; i++)
		in_sync[i] = i >= synced;
	search = 0;
	story = g_string_new(NULL);
	log_error = 0;
	assert_int_equal(dm_create("vol", -1, &md, NULL), 0);
	t = dm_table_new(md, DM_MODE_RW, &self);
	assert_int_equal(dm_table_add_line(t, line, NULL), 0);
	assert_int_equal(dm_table_complete(t, NULL), 0);
	assert_int_equal(dm_mapped_swap(md, t, NULL, NULL, NULL), 0);
}

static void end(void)
{
	dm_mapped_unref(md);
	dm_remove_all();
	g_string_free(story, TRUE);
}

struct io {
	struct dm_region_io io; /* first */
	struct dm_bio bio;
};

static void io_end(struct dm_bio *bio)
{
}

static void write_to(struct io *w, uint64_t sector, uint64_t sectors)
{
	w->bio = (struct dm_bio){.op = DM_WRITE, .sector = sector, .sectors = sectors, .end = io_end, .private = w};
	dm_region_io_init(live, &w->io, &w->bio);
	dm_regions_write(live, &w->io);
}

static void a_region_is_marked_before_it_is_written_and_cleaned_after_a_flush(void **state)
{
	struct io a, b;

	begin(0);
	write_to(&a, 8, 1);
	wait_for("all 8");
	assert_story("mark 1 logged 0 all 8 ");
	write_to(&b, 10, 1); /* it is dirty */
	assert_story("all 10 ");
	dm_regions_write_end(live, &a.io);
	dm_regions_write_end(live, &b.io);
	assert_int_equal(dm_mapped_suspend(md, 0, NULL, NULL, NULL), 0);
	/* The cleaner may have flushed before, on a slow machine. */
	assert_true(g_str_has_prefix(story->str, "flushed 0 "));
	assert_true(g_str_has_suffix(story->str, "flushed 0 clear 1 logged 0 "));
	end();
}

static void writes_to_a_sector_come_one_after_the_other(void **state)
{
	struct io a, b, c;

	begin(0);
	write_to(&a, 8, 4);
	wait_for("all 8");
	write_to(&b, 11, 4);
	write_to(&c, 9, 1);
	assert_story("mark 1 logged 0 all 8 ");
	dm_regions_write_end(live, &a.io);
	wait_for("all 11");
	wait_for("all 9");
	dm_regions_write_end(live, &b.io);
	dm_regions_write_end(live, &c.io);
	end();
}

static void a_strict_log_that_fails_is_not_asked_again(void **state)
{
	struct io a, b;

	begin(0);
	log_error = -EIO;
	write_to(&a, 8, 1);
	wait_for("unmarked 8");
	assert_story("mark 1 logged 0 clear 1 unmarked 8 ");
	log_error = 0;
	write_to(&b, 16, 1);
	wait_for("unmarked 16");
	assert_story("unmarked 16 ");
	dm_regions_write_end(live, &a.io);
	dm_regions_write_end(live, &b.io);
	end();
}

static void what_a_copy_missed_goes_on_in_those_that_did_not(void **state)
{
	struct io a, b;

	begin(0);
	write_to(&a, 8, 1);
	wait_for("all 8");
	assert_int_equal(dm_regions_where(live, 8), DM_REGION_ALL);
	dm_regions_failed(live, &a.io);
	wait_for("missed 8");
	assert_int_equal(dm_regions_where(live, 15), DM_REGION_SOUND);
	write_to(&b, 9, 1);
	wait_for("sound 9");
	dm_regions_write_end(live, &a.io);
	dm_regions_write_end(live, &b.io);
	end();
}

static void a_run_that_fails_is_copied_region_by_region(void **state)
{
	copy_errors = 2; /* the run, and the first of its regions */
	begin(3);
	wait_for("synced 1");
	wait_for("synced 2");
	assert_int_equal(dm_mapped_suspend(md, 0, NULL, NULL, NULL), 0);
	assert_non_null(strstr(story->str, "fail 3 fail 1 copy 101 copy 201 "));
	assert_null(strstr(story->str, "synced 0"));
	assert_int_equal(dm_regions_where(live, 0), DM_REGION_FIRST);
	assert_int_equal(dm_regions_where(live, 8), DM_REGION_ALL);
	end();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_region_is_marked_before_it_is_written_and_cleaned_after_a_flush),
		cmocka_unit_test(writes_to_a_sector_come_one_after_the_other),
		cmocka_unit_test(a_strict_log_that_fails_is_not_asked_again),
		cmocka_unit_test(what_a_copy_missed_goes_on_in_those_that_did_not),
		cmocka_unit_test(a_run_that_fails_is_copied_region_by_region),
	};

	return cmocka_run_group_tests(tests, setup_group, NULL);
}
