/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What may run beside what (target.h): messages and status at any time, against suspending, resuming, handing over and
 * the end of a table.  The sanitizers see what goes wrong in the targets; a target of our own sees the rule itself.
 */
#include "device.h"

#include <sched.h>

#include <dmfs/completion.h>
#include <dmfs/container_of.h>

#include "../../targets/list.h"

#define KEY "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
#define SECONDS 0.5 /* a test */

/* --- threads that do something again and again until the main one is ready ------------------- */

static atomic_bool stop;

static bool time_left(gint64 since)
{
	return g_get_monotonic_time() - since < (gint64)(SECONDS * 1e6);
}

static void begin(GThread **threads, unsigned n, GThreadFunc fn, void *data)
{
	atomic_store(&stop, false);
	for (unsigned i = 0; i < n; i++)
		threads[i] = g_thread_new("again", fn, data);
}

static void end(GThread **threads, unsigned n)
{
	atomic_store(&stop, true);
	for (unsigned i = 0; i < n; i++)
		g_thread_join(threads[i]);
}

static void *read_and_write(void *md)
{
	static _Thread_local uint8_t data[8192];

	while (!atomic_load(&stop)) {
		dm_write_sync(&((struct dm_mapped *)md)->dev, 8, sizeof data / 512, data, 0);
		dm_read_sync(&((struct dm_mapped *)md)->dev, 0, sizeof data / 512, data, 0);
	}
	return NULL;
}

static void *read_status(void *md)
{
	while (!atomic_load(&stop)) {
		g_free(unit_status(md, DM_STATUS_INFO));
		g_free(unit_status(md, DM_STATUS_TABLE));
	}
	return NULL;
}

/* --- crypt: the key --------------------------------------------------------------------------- */

static void *set_keys(void *md)
{
	while (!atomic_load(&stop))
		unit_message(md, "key set " KEY, NULL);
	return NULL;
}

/* A cipher with many keys, whose setting takes long. */
static void test_key_set_beside_resume(void **state)
{
	struct dm_mapped *md = unit_device("crypt", "0 1024 crypt aes:2-cbc-plain64 %s 0 %s 0", KEY, unit_file(1024));
	gint64 since = g_get_monotonic_time();
	GThread *setters[2], *users[2];

	begin(setters, 2, set_keys, md);
	begin(users, 1, read_and_write, md);
	begin(users + 1, 1, read_status, md);
	while (time_left(since)) {
		assert_int_equal(dm_mapped_suspend(md, 0, NULL, NULL, NULL), 0);
		unit_message(md, "key set " KEY, NULL);
		assert_int_equal(dm_mapped_resume(md, 0, NULL, NULL, NULL), 0);
	}
	end(setters, 2);
	end(users, 2);
	unit_remove(md);
}

/* --- snapshot: status beside a handover -------------------------------------------------------- */

static void test_status_beside_a_handover(void **state)
{
	struct dm_mapped *base = unit_device("base", "0 1024 linear %s 0", unit_file(1024));
	struct dm_mapped *cow = unit_device("cow", "0 1024 linear %s 0", unit_file(1024));
	struct dm_mapped *md = unit_device("snapshot", "0 1024 snapshot base cow P 8");
	gint64 since = g_get_monotonic_time();
	GThread *readers[2], *users[1];

	begin(readers, 2, read_status, md);
	begin(users, 1, read_and_write, md);
	while (time_left(since)) {
		g_autoptr(GError) err = NULL;

		if (unit_load(md, "0 1024 snapshot base cow P 8", &err))
			fail_msg("%s", err->message);
	}
	end(readers, 2);
	end(users, 1);
	unit_remove(md);
	unit_remove(cow);
	unit_remove(base);
}

/* --- raid: status beside the resume that assembles the array, and I/O up to the end of its table ------ */

static void *read_inactive(void *md)
{
	while (!atomic_load(&stop)) {
		struct dm_table *t = dm_mapped_inactive(md);
		g_autoptr(GString) text = g_string_new(NULL);

		if (t) {
			dm_table_print(t, DM_STATUS_TABLE, text);
			assert_true(g_str_has_prefix(text->str, "0 1024 raid raid5_ls 3 8 region_size 64 3 "));
			g_string_truncate(text, 0);
			dm_table_print(t, DM_STATUS_INFO, text);
			assert_true(g_str_has_prefix(text->str, "0 1024 raid raid5_ls 3 "));
		}
		dm_table_unref(t);
	}
	return NULL;
}

static void test_status_and_io_beside_assembling(void **state)
{
	g_autoptr(GString) line = g_string_new("0 1024 raid raid5_ls 3 8 region_size 64 3");
	struct dm_mapped *md;
	gint64 since = g_get_monotonic_time();
	GThread *readers[2], *users[2];

	for (unsigned i = 0; i < 6; i++)
		g_string_append_printf(line, " %s", unit_file(1024));
	md = unit_device("raid", "%s", line->str);
	begin(readers, 2, read_inactive, md);
	begin(users, 2, read_and_write, md);
	while (time_left(since)) {
		g_autoptr(GError) err = NULL;

		if (unit_load_inactive(md, line->str, &err) || dm_mapped_resume(md, 0, NULL, NULL, &err))
			fail_msg("%s", err->message);
	}
	end(readers, 2);
	end(users, 2);
	unit_remove(md);
}

/* --- the rule ----------------------------------------------------------------------------------- */

static atomic_int hooking, messages, alive, quiet;

static void hook(void)
{
	assert_int_equal(atomic_fetch_add(&hooking, 1), 0);
	sched_yield();
	assert_int_equal(atomic_fetch_sub(&hooking, 1), 1);
}

static int probe_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	ti->private = g_new0(int, 1); /* whether it is live */
	atomic_fetch_add(&alive, 1);
	return 0;
}

static void probe_dtr(struct dm_target *ti)
{
	assert_int_equal(*(int *)ti->private, 0);
	g_free(ti->private);
	ti->private = NULL;
	atomic_fetch_sub(&alive, 1);
}

static enum dm_mapio probe_map(struct dm_target *ti, struct dm_bio *bio)
{
	return DM_MAPIO_KILL;
}

static void probe_presuspend(struct dm_target *ti)
{
	hook();
}

static void probe_postsuspend(struct dm_target *ti)
{
	hook();
	atomic_store(&quiet, 1);
	*(int *)ti->private = 0;
}

static int probe_preresume(struct dm_target *ti, GError **err)
{
	hook();
	return 0;
}

static void probe_resume(struct dm_target *ti)
{
	*(int *)ti->private = 1;
	atomic_store(&quiet, 0);
	dm_status_pause(ti, NULL);
	hook();
	dm_status_go_on(ti, NULL);
}

static int probe_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	int before = atomic_load(&quiet);

	assert_int_equal(*(int *)ti->private, !before);
	hook();
	assert_int_equal(atomic_load(&quiet), before);
	atomic_fetch_add(&messages, 1);
	return 0;
}

static void probe_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	assert_non_null(ti->private);
	g_string_append(out, "probe");
}

static const struct dm_target_type probe = {
	.name = "probe",
	.ctr = probe_ctr,
	.dtr = probe_dtr,
	.map = probe_map,
	.presuspend = probe_presuspend,
	.presuspend_undo = probe_presuspend,
	.postsuspend = probe_postsuspend,
	.preresume = probe_preresume,
	.resume = probe_resume,
	.message = probe_message,
	.status = probe_status,
};

static void *send_messages(void *md)
{
	while (!atomic_load(&stop))
		assert_int_equal(unit_message(md, "hello", NULL), 0);
	return NULL;
}

static void test_hooks_and_messages_come_one_at_a_time(void **state)
{
	struct dm_mapped *md = unit_device("probe", "0 8 probe");
	gint64 since = g_get_monotonic_time();
	GThread *senders[2], *readers[2];
	unsigned rounds = 0;

	begin(senders, 2, send_messages, md);
	begin(readers, 2, read_status, md);
	while (time_left(since) || rounds < 10 || atomic_load(&messages) < 10) {
		assert_int_equal(dm_mapped_suspend(md, 0, NULL, NULL, NULL), 0);
		assert_int_equal(dm_mapped_resume(md, 0, NULL, NULL, NULL), 0);
		assert_int_equal(unit_load(md, "0 8 probe", NULL), 0);
		rounds++;
	}
	end(senders, 2);
	end(readers, 2);
	unit_remove(md);
	assert_int_equal(atomic_load(&alive), 0);
}

static bool at_once(void *unused)
{
	return true;
}

static void *hold_hooks(void *data)
{
	struct dm_mapped *md = data;

	dm_mapped_lock_hooks(md, NULL, NULL);
	while (!atomic_load(&stop))
		g_usleep(1000);
	dm_mapped_unlock_hooks(md);
	return NULL;
}

/* A message takes its time: the suspend can be given up, and status is there. */
static void test_a_long_message(void **state)
{
	struct dm_mapped *md = unit_device("probe", "0 8 probe");
	g_autofree char *text = NULL;
	GThread *holder;

	begin(&holder, 1, hold_hooks, md);
	while (!atomic_load(&md->hooking))
		g_usleep(1000);
	assert_int_equal(dm_mapped_suspend(md, 0, at_once, NULL, NULL), -EINTR);
	text = unit_status(md, DM_STATUS_INFO);
	assert_string_equal(text, "0 8 probe probe\n");
	end(&holder, 1);
	assert_int_equal(dm_mapped_suspend(md, 0, NULL, NULL, NULL), 0);
	unit_remove(md);
}

/* --- a noflush suspend that is given up ----------------------------------------------------- */

struct asked {
	struct dm_bio bio;
	struct iovec iov;
	struct dm_completion done;
	uint8_t data[512];
};

static struct asked early = {.done = DM_COMPLETION_INIT}, late = {.done = DM_COMPLETION_INIT};
static struct dm_bio *kept; /* the suspend waits for it */
static atomic_bool gives_back;

static void asked_end(struct dm_bio *bio)
{
	dm_complete(&container_of(bio, struct asked, bio)->done);
}

static void ask(struct dm_mapped *md, struct asked *a)
{
	a->iov = (struct iovec){a->data, sizeof a->data};
	a->bio = (struct dm_bio){.op = DM_READ, .dev = &md->dev, .sectors = 1, .iov = &a->iov, .iovcnt = 1,
				 .end = asked_end};
	dm_submit(&a->bio);
}

static int answer(struct asked *a)
{
	dm_completion_wait(&a->done);
	return a->bio.error;
}

static int giver_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	return 0;
}

static enum dm_mapio giver_map(struct dm_target *ti, struct dm_bio *bio)
{
	if (atomic_load(&gives_back))
		return DM_MAPIO_REQUEUE;
	if (!kept)
		kept = bio;
	else
		dm_bio_end(bio, 0);
	return DM_MAPIO_SUBMITTED;
}

static void giver_presuspend(struct dm_target *ti)
{
	atomic_store(&gives_back, dm_target_noflush(ti));
}

/* What comes before the target knows that the suspend is off it gives back still. */
static void giver_presuspend_undo(struct dm_target *ti)
{
	ask(ti->table->md, &late);
	atomic_store(&gives_back, false);
}

static const struct dm_target_type giver = {
	.name = "giver",
	.ctr = giver_ctr,
	.map = giver_map,
	.presuspend = giver_presuspend,
	.presuspend_undo = giver_presuspend_undo,
};

static void test_what_a_given_up_suspend_leaves_behind(void **state)
{
	struct dm_mapped *md = unit_device("giver", "0 8 giver");

	ask(md, &early);
	assert_non_null(kept);
	assert_int_equal(dm_mapped_suspend(md, DM_SUSPEND_NOFLUSH, at_once, NULL, NULL), -EINTR);
	assert_int_equal(answer(&late), 0);
	dm_bio_requeue(kept); /* as who saw the suspend before */
	assert_int_equal(answer(&early), 0);
	unit_remove(md);
}

static int setup(void **state)
{
	g_autoptr(GPtrArray) types = g_ptr_array_new();

	for (unsigned i = 0; dm_target_list[i]; i++)
		g_ptr_array_add(types, (gpointer)dm_target_list[i]);
	g_ptr_array_add(types, (gpointer)&probe);
	g_ptr_array_add(types, (gpointer)&giver);
	g_ptr_array_add(types, NULL);
	dm_register_targets((const struct dm_target_type *const *)g_ptr_array_steal(types, NULL));
	return 0;
}

static int teardown(void **state)
{
	unit_files_close();
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_teardown(test_key_set_beside_resume, teardown),
	    cmocka_unit_test_teardown(test_status_beside_a_handover, teardown),
	    cmocka_unit_test_teardown(test_status_and_io_beside_assembling, teardown),
	    cmocka_unit_test(test_hooks_and_messages_come_one_at_a_time),
	    cmocka_unit_test(test_a_long_message),
	    cmocka_unit_test(test_what_a_given_up_suspend_leaves_behind),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
