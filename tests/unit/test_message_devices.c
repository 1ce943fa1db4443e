/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Messages that name devices: as their sender sees them, and those that the table has already. */
#include "device.h"

#include <glib/gstdio.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "targets/list.h"

/* --- a target that takes, finds and puts devices by message ---------------------------------- */

struct holder {
	GPtrArray *devs;
};

static int holder_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct holder *h = ti->private = g_new0(struct holder, 1);
	int error = 0;

	h->devs = g_ptr_array_new();
	for (int i = 0; i < argc && !error; i++) {
		struct dm_dev *dev;

		error = dm_get_device(ti, argv[i], DM_MODE_RW, &dev, err);
		if (!error)
			g_ptr_array_add(h->devs, dev);
	}
	return error;
}

static void holder_dtr(struct dm_target *ti)
{
	struct holder *h = ti->private;

	for (unsigned i = 0; i < h->devs->len; i++)
		dm_put_device(ti, h->devs->pdata[i]);
	g_ptr_array_unref(h->devs);
	g_free(h);
}

/* "get NAME", "find NAME", "put INDEX"; the reply is the device's place among those it has. */
static int holder_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	struct holder *h = ti->private;
	struct dm_dev *dev;
	unsigned nr;
	int error;

	if (!strcmp(argv[0], "put")) {
		assert_true(dm_parse_uint(argv[1], &nr));
		dm_put_device(ti, g_ptr_array_remove_index(h->devs, nr));
		return 0;
	}
	if (!strcmp(argv[0], "get")) {
		error = dm_get_device(ti, argv[1], DM_MODE_RW, &dev, err);
		if (!error)
			g_ptr_array_add(h->devs, dev);
	} else {
		error = dm_find_device(ti, argv[1], &dev, err);
	}
	if (error)
		return error;
	assert_true(g_ptr_array_find(h->devs, dev, &nr));
	g_string_printf(reply, "%u", nr);
	return 0;
}

static const struct dm_target_type holder_target = {
	.name = "holder",
	.version = {1, 0, 0},
	.ctr = holder_ctr,
	.dtr = holder_dtr,
	.message = holder_message,
};

/* --- senders in directories of their own -------------------------------------------------------- */

static char *top;

/* A process whose working directory is top/NAME, where it has a file `disk`. */
static pid_t sender_in(const char *name)
{
	g_autofree char *dir = g_build_filename(top, name, NULL), *file = g_build_filename(dir, "disk", NULL);
	int ready[2];
	char c;
	pid_t pid;

	assert_int_equal(g_mkdir(dir, 0755), 0);
	assert_true(g_file_set_contents(file, "", 0, NULL));
	assert_int_equal(truncate(file, 65536), 0);
	assert_int_equal(pipe(ready), 0);
	pid = fork();
	if (!pid) {
		if (chdir(dir) || write(ready[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	assert_int_equal(read(ready[0], &c, 1), 1);
	close(ready[0]);
	close(ready[1]);
	return pid;
}

static void end_sender(pid_t pid, const char *name)
{
	g_autofree char *dir = g_build_filename(top, name, NULL), *file = g_build_filename(dir, "disk", NULL);

	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	g_unlink(file);
	g_rmdir(dir);
}

static int setup(void **state)
{
	static const struct dm_target_type *list[64];
	unsigned n = 0;

	for (; dm_target_list[n]; n++)
		list[n] = dm_target_list[n];
	assert_true(n + 1 < G_N_ELEMENTS(list));
	list[n] = &holder_target;
	dm_register_targets(list);
	top = g_dir_make_tmp("dmfs-senders-XXXXXX", NULL);
	assert_non_null(top);
	return 0;
}

static int teardown(void **state)
{
	g_rmdir(top);
	g_free(top);
	unit_files_close();
	return 0;
}

/* Sends a message; its reply as a number, or a negative errno. */
static int send_as(struct dm_mapped *md, pid_t pid, const char *text)
{
	struct dm_opener who = {pid, geteuid(), getegid()};
	g_autofree char *copy = g_strdup(text);
	g_autoptr(GString) reply = g_string_new(NULL);
	g_autoptr(GError) err = NULL;
	int error = dm_mapped_message(md, copy, &who, reply, &err);

	assert_int_equal(!error, !err);
	return error ? error : atoi(reply->str);
}

static int sendf(struct dm_mapped *md, const char *fmt, ...)
{
	g_autofree char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	text = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	return send_as(md, 0, text);
}

static char *deps(struct dm_mapped *md)
{
	struct dm_table *t = dm_mapped_live(md);
	GString *out = g_string_new(NULL);

	dm_table_print_deps(t, out);
	dm_table_unref(t);
	return g_string_free(out, FALSE);
}

static unsigned lines(const char *text)
{
	unsigned n = 0;

	for (; *text; text++)
		n += *text == '\n';
	return n;
}

/* --- the tests ------------------------------------------------------------------------------------- */

static void a_name_is_the_senders(void **state)
{
	pid_t one = sender_in("one"), two = sender_in("two");
	g_autofree char *first = g_build_filename(top, "one", "disk", NULL);
	struct dm_mapped *md = unit_device("vol", "0 64 holder %s", first);
	g_autofree char *names = NULL;

	assert_int_equal(send_as(md, one, "find disk"), 0);
	assert_int_equal(send_as(md, two, "find disk"), -EINVAL);
	assert_int_equal(send_as(md, two, "get disk"), 1);
	assert_int_equal(send_as(md, two, "find disk"), 1); /* the same word, another device */
	assert_int_equal(send_as(md, one, "find disk"), 0);
	assert_int_equal(send_as(md, one, "get disk"), 0); /* again: the table's own */
	names = deps(md);
	assert_int_equal(lines(names), 2);
	unit_remove(md);
	end_sender(one, "one");
	end_sender(two, "two");
}

static void found_by_any_name(void **state)
{
	struct dm_mapped *below = unit_device("below", "0 64 zero");
	const char *a = unit_file(128), *b = unit_file(128);
	struct dm_mapped *md = unit_device("vol", "0 64 holder %s below %s", a, b);
	g_autofree char *link = g_build_filename(top, "link", NULL);

	assert_int_equal(symlink(b, link), 0);
	assert_int_equal(sendf(md, "find %s", a), 0);
	assert_int_equal(sendf(md, "find below"), 1);
	assert_int_equal(sendf(md, "find 0:%u", below->minor), 1);
	assert_int_equal(sendf(md, "find %s", b), 2);
	assert_int_equal(sendf(md, "find %s", link), 2);
	assert_int_equal(sendf(md, "find %s/nothing", top), -ENOENT);
	assert_int_equal(sendf(md, "find %s", unit_file(8)), -EINVAL);
	g_unlink(link);
	unit_remove(md);
	unit_remove(below);
}

static void found_though_it_has_gone(void **state)
{
	g_autofree char *path = g_build_filename(top, "a name", NULL);
	struct dm_mapped *md;

	assert_true(g_file_set_contents(path, "12345678", 8, NULL));
	md = unit_device("vol", "0 64 holder %s/a\\ name", top);
	g_unlink(path);
	assert_int_equal(sendf(md, "find %s/a\\ name", top), 0);
	unit_remove(md);
}

static void what_a_message_took_is_used_until_it_is_put(void **state)
{
	struct dm_mapped *below = unit_device("below", "0 64 zero"), *md = unit_device("vol", "0 64 holder");

	assert_int_equal(sendf(md, "get below"), 0);
	assert_int_equal(sendf(md, "get below"), 0); /* counted twice */
	assert_int_equal(dm_remove(below, NULL), -EBUSY);
	assert_int_equal(sendf(md, "put 1"), 0);
	assert_int_equal(dm_remove(below, NULL), -EBUSY);
	assert_int_equal(sendf(md, "put 0"), 0);
	unit_remove(below);
	assert_int_equal(sendf(md, "get vol"), -ELOOP); /* no device stands on itself */
	unit_remove(md);
}

/* --- messages at once ------------------------------------------------------------------------------- */

struct many {
	struct dm_mapped *md;
	const char *path;
};

static void *find_often(void *data)
{
	const struct many *m = data;

	for (unsigned i = 0; i < 500; i++)
		assert_int_equal(sendf(m->md, "find %s", m->path), 0);
	return NULL;
}

static int toggling_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	struct dm_dev *dev;
	int error = dm_get_device(ti, argv[1], DM_MODE_RW, &dev, err);

	if (!error)
		dm_put_device(ti, dev);
	return error;
}

static void messages_come_at_once(void **state)
{
	struct dm_mapped *md = unit_device("vol", "0 64 holder %s", unit_file(128));
	struct dm_table *t = dm_mapped_live(md);
	g_autofree char *path = g_strchomp(deps(md));
	struct many m = {md, path};
	GThread *finder = g_thread_new("find", find_often, &m);
	const char *other = unit_file(128);

	for (unsigned i = 0; i < 500; i++) {
		char *argv[] = {(char *)"toggle", (char *)(i % 2 ? other : path)};

		assert_int_equal(toggling_message(dm_table_target(t, 0), 2, argv, NULL, NULL), 0);
	}
	g_thread_join(finder);
	dm_table_unref(t);
	unit_remove(md);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_name_is_the_senders),
		cmocka_unit_test(found_by_any_name),
		cmocka_unit_test(found_though_it_has_gone),
		cmocka_unit_test(what_a_message_took_is_used_until_it_is_put),
		cmocka_unit_test(messages_come_at_once),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
