/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Saving first, then publishing (core/state.h): each call that changes what is kept is made to fail at every write,
 * sync and truncation that SQLite does, once and from there on.  What has failed has changed nothing, in memory nor
 * after a restart; what has not is there in both.
 */
#include "device.h"

#include <fcntl.h>
#include <glib/gstdio.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/concise.h"
#include "core/state.h"

#include "../../targets/list.h"

/* --- a file system that fails ----------------------------------------------------------------- */

struct file {
	sqlite3_file base;
	sqlite3_file *real;
};

static sqlite3_vfs failing, *real_vfs;
static int ops_left = -1; /* before one fails; -1: none does */
static bool for_good;     /* and all after it do, too */
static bool any_failed;

static bool fails(void)
{
	if (ops_left < 0)
		return false;
	if (ops_left > 0) {
		ops_left--;
		return false;
	}
	any_failed = true;
	if (!for_good)
		ops_left = -1;
	return true;
}

static sqlite3_file *real(sqlite3_file *f)
{
	return ((struct file *)f)->real;
}

static int file_close(sqlite3_file *f)
{
	int rc = real(f)->pMethods ? real(f)->pMethods->xClose(real(f)) : SQLITE_OK;

	g_free(real(f));
	return rc;
}

static int file_read(sqlite3_file *f, void *buf, int len, sqlite3_int64 at)
{
	return real(f)->pMethods->xRead(real(f), buf, len, at);
}

static int file_write(sqlite3_file *f, const void *buf, int len, sqlite3_int64 at)
{
	return fails() ? SQLITE_FULL : real(f)->pMethods->xWrite(real(f), buf, len, at);
}

static int file_truncate(sqlite3_file *f, sqlite3_int64 size)
{
	return fails() ? SQLITE_IOERR_TRUNCATE : real(f)->pMethods->xTruncate(real(f), size);
}

static int file_sync(sqlite3_file *f, int flags)
{
	return fails() ? SQLITE_IOERR_FSYNC : real(f)->pMethods->xSync(real(f), flags);
}

static int file_size(sqlite3_file *f, sqlite3_int64 *size)
{
	return real(f)->pMethods->xFileSize(real(f), size);
}

static int file_lock(sqlite3_file *f, int level)
{
	return real(f)->pMethods->xLock(real(f), level);
}

static int file_unlock(sqlite3_file *f, int level)
{
	return real(f)->pMethods->xUnlock(real(f), level);
}

static int file_reserved(sqlite3_file *f, int *out)
{
	return real(f)->pMethods->xCheckReservedLock(real(f), out);
}

static int file_control(sqlite3_file *f, int op, void *arg)
{
	return real(f)->pMethods->xFileControl(real(f), op, arg);
}

static int file_sector(sqlite3_file *f)
{
	return real(f)->pMethods->xSectorSize(real(f));
}

static int file_characteristics(sqlite3_file *f)
{
	return real(f)->pMethods->xDeviceCharacteristics(real(f));
}

static const sqlite3_io_methods methods = {
	.iVersion = 1,
	.xClose = file_close,
	.xRead = file_read,
	.xWrite = file_write,
	.xTruncate = file_truncate,
	.xSync = file_sync,
	.xFileSize = file_size,
	.xLock = file_lock,
	.xUnlock = file_unlock,
	.xCheckReservedLock = file_reserved,
	.xFileControl = file_control,
	.xSectorSize = file_sector,
	.xDeviceCharacteristics = file_characteristics,
};

static int vfs_open(sqlite3_vfs *v, const char *name, sqlite3_file *f, int flags, int *out_flags)
{
	int rc;

	((struct file *)f)->real = g_malloc0((gsize)real_vfs->szOsFile);
	rc = real_vfs->xOpen(real_vfs, name, real(f), flags, out_flags);
	f->pMethods = rc ? NULL : &methods;
	if (rc)
		g_free(real(f));
	return rc;
}

static void use_failing_vfs(void)
{
	sqlite3_initialize();
	real_vfs = sqlite3_vfs_find(NULL);
	failing = *real_vfs;
	failing.zName = "failing";
	failing.pNext = NULL;
	failing.szOsFile = sizeof(struct file);
	failing.xOpen = vfs_open;
	sqlite3_vfs_register(&failing, 1);
}

/* --- what there is ---------------------------------------------------------------------------- */

static char *dir, *path;

static void print_one(struct dm_mapped *md, GString *out)
{
	struct dm_table *live = dm_mapped_live(md), *inactive = dm_mapped_inactive(md);
	g_autofree char *name = dm_mapped_dup_name(md), *uuid = dm_mapped_dup_uuid(md);
	struct dm_owner owner;

	dm_mapped_owner(md, &owner);
	g_string_append_printf(out, "%u '%s' '%s' %s image %o %u %u\n", md->minor, name, uuid,
			       atomic_load(&md->readonly) ? "ro" : "rw", owner.mode, owner.uid, owner.gid);
	if (live) {
		dm_table_print(live, DM_STATUS_TABLE, out);
		dm_table_print(live, DM_STATUS_INFO, out);
	}
	g_string_append(out, "inactive\n");
	if (inactive)
		dm_table_print(inactive, DM_STATUS_TABLE, out);
	dm_table_unref(live);
	dm_table_unref(inactive);
}

static char *print_all(void)
{
	g_autoptr(GPtrArray) all = dm_list_devices();
	GString *out = g_string_new(NULL);

	for (unsigned i = 0; i < all->len; i++)
		print_one(all->pdata[i], out);
	return g_string_free(out, FALSE);
}

static void restart(void)
{
	g_autoptr(GError) err = NULL;

	dm_state_close();
	dm_remove_all();
	if (dm_state_open(path, &err))
		fail_msg("opening it again: %s", err->message);
}

/* --- the calls -------------------------------------------------------------------------------- */

static struct dm_table *table(struct dm_mapped *md, const char *line)
{
	struct dm_opener self = dm_opener_self();
	struct dm_table *t = dm_table_new(md, DM_MODE_RW, &self);
	g_autofree char *copy = g_strdup(line);

	assert_int_equal(dm_table_add_line(t, copy, NULL), 0);
	assert_int_equal(dm_table_complete(t, NULL), 0);
	return t;
}

static int load_live(struct dm_mapped *md, GError **err)
{
	return dm_mapped_swap(md, table(md, "0 16 error"), NULL, NULL, err);
}

static int load_live_suspended(struct dm_mapped *md, GError **err)
{
	int error;

	assert_int_equal(dm_mapped_suspend(md, 0, NULL, NULL, NULL), 0);
	error = dm_mapped_swap(md, table(md, "0 16 error"), NULL, NULL, err);
	assert_int_equal(atomic_load(&md->suspended), error != 0);
	return error;
}

static int load_inactive(struct dm_mapped *md, GError **err)
{
	return dm_mapped_load(md, table(md, "0 24 zero"), err);
}

static int clear_inactive(struct dm_mapped *md, GError **err)
{
	return dm_mapped_load(md, NULL, err);
}

static int resume_inactive(struct dm_mapped *md, GError **err)
{
	return dm_mapped_resume(md, 0, NULL, NULL, err);
}

static int rename_it(struct dm_mapped *md, GError **err)
{
	return dm_rename(md, "other", err);
}

static int set_uuid(struct dm_mapped *md, GError **err)
{
	return dm_set_uuid(md, "a-uuid", err);
}

static int set_readonly(struct dm_mapped *md, GError **err)
{
	return dm_mapped_set_readonly(md, true, err);
}

static int set_mode(struct dm_mapped *md, GError **err)
{
	return dm_mapped_set_owner(md, DM_CHANGE_MODE, &(struct dm_owner){0640, 1, 1}, err);
}

static int set_owner(struct dm_mapped *md, GError **err)
{
	return dm_mapped_set_owner(md, DM_CHANGE_UID | DM_CHANGE_GID, &(struct dm_owner){0777, 12, 34}, err);
}

static int create(struct dm_mapped *md, GError **err)
{
	struct dm_mapped *made = NULL;
	int error = dm_create("made", 40, &made, err);

	dm_mapped_unref(made);
	return error;
}

static int remove_it(struct dm_mapped *md, GError **err)
{
	return dm_remove(md, err);
}

static int remove_deferred(struct dm_mapped *md, GError **err)
{
	return dm_remove_deferred(md, err);
}

static int concise(struct dm_mapped *md, GError **err)
{
	struct dm_opener self = dm_opener_self();

	return dm_concise_create("c1,u1,,rw,0 8 zero;c2,,,ro,0 8 linear c1 0,8 8 error", &self, err);
}

static int message(struct dm_mapped *md, const char *text, GError **err)
{
	int error = unit_message(md, text, NULL);

	return error ? dm_fail(err, -error, "the message") : 0;
}

static struct dm_mapped *target_device(const char *name)
{
	struct dm_mapped *md = dm_find_name(name);

	dm_mapped_unref(md); /* it stays */
	return md;
}

static int dust_add(struct dm_mapped *md, GError **err)
{
	return message(target_device("dust"), "addbadblock 9", err);
}

static int dust_clear(struct dm_mapped *md, GError **err)
{
	return message(target_device("dust"), "clearbadblocks", err);
}

static int dust_enable(struct dm_mapped *md, GError **err)
{
	return message(target_device("dust"), "enable", err);
}

static int switch_map(struct dm_mapped *md, GError **err)
{
	return message(target_device("switch"), "set_region_mappings 0:1 :0 :1", err);
}

/* --- each of them, failing everywhere ---------------------------------------------------------- */

static void make_devices(void)
{
	g_autoptr(GError) err = NULL;
	struct dm_mapped *vol, *dust, *sw;
	const char *file = unit_file(1024);
	int fd = open(file, O_RDWR);

	assert_int_equal(pwrite(fd, "second path", 11, 64 * DM_SECTOR_SIZE), 11);
	close(fd);
	use_failing_vfs();
	if (dm_state_open(path, &err))
		fail_msg("%s", err->message);
	vol = unit_device("vol", "0 8 zero\n8 8 error");
	assert_int_equal(dm_mapped_load(vol, table(vol, "0 48 zero"), NULL), 0);
	dust = unit_device("dust", "0 64 dust %s 0 512", file);
	assert_int_equal(unit_message(dust, "addbadblock 7", NULL), 0);
	sw = unit_device("switch", "0 64 switch 2 8 0 %s 0 %s 64", file, file);
	dm_mapped_unref(vol);
	dm_mapped_unref(dust);
	dm_mapped_unref(sw);
}

/* What dust and switch have in memory and is no part of their status: the blocks, and where a region leads. */
static char *rows(void)
{
	g_autofree char *blocks = NULL;
	uint8_t sector[DM_SECTOR_SIZE];

	assert_int_equal(unit_message(target_device("dust"), "listbadblocks", &blocks), 0);
	assert_int_equal(dm_read_sync(&target_device("switch")->dev, 0, 1, sector, 0), 0);
	return g_strdup_printf("%s%u\n", blocks, sector[0]);
}

static char *everything(void)
{
	g_autofree char *all = print_all(), *blocks = rows();

	return g_strconcat(all, blocks, NULL);
}

static bool fail_at(int (*call)(struct dm_mapped *, GError **), const char *what, int op, bool ever)
{
	g_autofree char *before = everything(), *memory = NULL, *back = NULL;
	struct dm_mapped *md = dm_find_name("vol");
	g_autoptr(GError) err = NULL;
	bool failed;
	int error;

	ops_left = op;
	for_good = ever;
	any_failed = false;
	error = call(md, &err);
	failed = any_failed;
	ops_left = -1;
	dm_mapped_unref(md);
	memory = everything();
	restart();
	back = everything();
	assert_int_equal(error != 0, err != NULL);
	if (error && strcmp(before, memory))
		fail_msg("%s, operation %d: failed (%s), and there is\n%snot\n%s", what, op, err->message, memory, before);
	if (!error && !strcmp(before, memory))
		fail_msg("%s, operation %d: done, and nothing has changed", what, op);
	if (strcmp(memory, back))
		fail_msg("%s, operation %d: %s, and after a restart there is\n%snot\n%s", what, op,
			 error ? err->message : "done", back, memory);
	return failed;
}

static void test_failing_saves(void **state)
{
	static const struct {
		const char *what;
		int (*call)(struct dm_mapped *, GError **);
	} calls[] = {
	    {"load", load_live},           {"load, suspended", load_live_suspended}, {"inactive", load_inactive},
	    {"clear", clear_inactive},     {"resume", resume_inactive},              {"rename", rename_it},
	    {"uuid", set_uuid},            {"readonly", set_readonly},               {"mode", set_mode},
	    {"owner", set_owner},          {"create", create},                       {"concise", concise},
	    {"dust, add", dust_add},       {"dust, clear", dust_clear},              {"dust, enable", dust_enable},
	    {"switch", switch_map},        {"remove", remove_it},                    {"remove, deferred", remove_deferred},
	};
	g_autofree char *image = NULL;
	gsize len;

	make_devices();
	dm_state_close();
	dm_remove_all();
	assert_true(g_file_get_contents(path, &image, &len, NULL));
	assert_int_equal(dm_state_open(path, NULL), 0);
	for (unsigned i = 0; i < G_N_ELEMENTS(calls); i++)
		for (unsigned ever = 0; ever < 2; ever++) {
			int op = 0;

			for (bool failed = true; failed; op++) {
				assert_true(op < 1000);
				failed = fail_at(calls[i].call, calls[i].what, op, ever);
				dm_state_close();
				dm_remove_all();
				assert_true(g_file_set_contents(path, image, (gssize)len, NULL));
				assert_int_equal(dm_state_open(path, NULL), 0);
			}
			if (op < 4) /* a journal written and synced, a page written and synced, the journal emptied */
				fail_msg("%s: it did %d operations", calls[i].what, op - 1);
		}
}

/* --- changes beside each other ------------------------------------------------------------------- */

static atomic_bool stop;

#define AGAIN(name, change)                                  \
	static void *name(void *data)                        \
	{                                                    \
		struct dm_mapped *md = data;                 \
                                                             \
		for (unsigned i = 0; !atomic_load(&stop); i++) \
			assert_int_equal(change, 0);         \
		return NULL;                                 \
	}

AGAIN(change_mode, dm_mapped_set_owner(md, DM_CHANGE_MODE, &(struct dm_owner){.mode = 0600 + i % 64}, NULL))
AGAIN(change_owner, dm_mapped_set_owner(md, DM_CHANGE_UID | DM_CHANGE_GID, &(struct dm_owner){0, i % 9, i % 7}, NULL))
AGAIN(change_readonly, dm_mapped_set_readonly(md, i % 2, NULL))
AGAIN(change_name, dm_rename(md, i % 2 ? "one" : "another", NULL))
AGAIN(change_table, dm_mapped_swap(md, table(md, i % 2 ? "0 16 error" : "0 24 zero"), NULL, NULL, NULL))
AGAIN(change_inactive, dm_mapped_load(md, i % 3 ? table(md, i % 2 ? "0 32 error" : "0 40 zero") : NULL, NULL))

/* Whatever is in memory when all have returned is there after a restart. */
static void test_changes_beside_each_other(void **state)
{
	GThreadFunc changes[] = {change_mode, change_owner, change_readonly, change_name, change_table, change_inactive};
	GThread *threads[G_N_ELEMENTS(changes)];
	g_autofree char *memory = NULL, *back = NULL;
	struct dm_mapped *md;

	restart();
	md = unit_device("beside", "0 8 zero");
	for (unsigned i = 0; i < G_N_ELEMENTS(changes); i++)
		threads[i] = g_thread_new("change", changes[i], md);
	g_usleep(500000);
	atomic_store(&stop, true);
	for (unsigned i = 0; i < G_N_ELEMENTS(changes); i++)
		g_thread_join(threads[i]);
	dm_mapped_unref(md);
	memory = print_all();
	restart();
	back = print_all();
	assert_string_equal(memory, back);
}

static int setup(void **state)
{
	dm_register_targets(dm_target_list);
	dir = g_dir_make_tmp("dmfs-test-state-XXXXXX", NULL);
	path = g_build_filename(dir, "state", NULL);
	return dir ? 0 : -1;
}

static int teardown(void **state)
{
	g_autofree char *journal = g_strconcat(path, "-journal", NULL);

	ops_left = -1;
	dm_state_close();
	dm_remove_all();
	unit_files_close();
	g_unlink(journal);
	g_unlink(path);
	g_rmdir(dir);
	g_free(path);
	g_free(dir);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_failing_saves),
	    cmocka_unit_test(test_changes_beside_each_other),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
