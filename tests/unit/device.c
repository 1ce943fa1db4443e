/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dmfs devices without a mount (device.h). */
#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static GPtrArray *files;

static void file_close(gpointer path)
{
	close(atoi(strrchr(path, '/') + 1));
	g_free(path);
}

const char *unit_file(uint64_t sectors)
{
	int fd = memfd_create("unit", MFD_CLOEXEC);
	char *path = g_strdup_printf("/proc/%d/fd/%d", (int)getpid(), fd);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)(sectors << DM_SECTOR_SHIFT)), 0);
	if (!files)
		files = g_ptr_array_new_with_free_func(file_close);
	g_ptr_array_add(files, path);
	return path;
}

void unit_files_close(void)
{
	g_clear_pointer(&files, g_ptr_array_unref);
}

static GHashTable *stores; /* name -> struct dm_dev * */

static int store_open(const struct dm_opener *who, const char *uri, enum dm_mode mode, struct dm_dev **out,
		      GError **err)
{
	struct dm_dev *dev = g_hash_table_lookup(stores, strchr(uri, ':') + 1);

	if (!dev)
		return dm_fail(err, ENOENT, "%s is not the name of a test's device", uri);
	*out = dm_dev_get(dev);
	return 0;
}

void unit_store(const char *name, struct dm_dev *dev)
{
	static const struct dm_store_scheme scheme = {"unit:", store_open};

	dm_store_scheme_more = &scheme;
	if (!stores)
		stores = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	g_hash_table_insert(stores, g_strdup(name), dev);
}

void unit_stores_forget(void)
{
	g_clear_pointer(&stores, g_hash_table_unref);
}

static int make_table(struct dm_mapped *md, const char *table, struct dm_table **out, GError **err)
{
	g_auto(GStrv) lines = g_strsplit(table, "\n", -1);
	struct dm_opener self = dm_opener_self();
	struct dm_table *t = dm_table_new(md, DM_MODE_RW, &self);
	int error = 0;

	for (unsigned i = 0; lines[i] && !error; i++)
		if (*lines[i])
			error = dm_table_add_line(t, lines[i], err);
	if (!error)
		error = dm_table_complete(t, err);
	if (!error)
		*out = t;
	else
		dm_table_unref(t);
	return error;
}

int unit_load(struct dm_mapped *md, const char *table, GError **err)
{
	struct dm_table *t = NULL;
	int error = make_table(md, table, &t, err);

	return error ? error : dm_mapped_swap(md, t, NULL, NULL, err);
}

int unit_load_inactive(struct dm_mapped *md, const char *table, GError **err)
{
	struct dm_table *t = NULL;
	int error = make_table(md, table, &t, err);

	return error ? error : dm_mapped_load(md, t, err);
}

struct dm_mapped *unit_device(const char *name, const char *fmt, ...)
{
	g_autoptr(GError) err = NULL;
	g_autofree char *table = NULL;
	struct dm_mapped *md;
	va_list ap;

	va_start(ap, fmt);
	table = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	assert_int_equal(dm_create(name, -1, &md, NULL), 0);
	if (unit_load(md, table, &err))
		fail_msg("%s: %s", name, err->message);
	return md;
}

void unit_remove(struct dm_mapped *md)
{
	assert_int_equal(dm_remove(md, NULL), 0);
	dm_mapped_unref(md);
}

char *unit_status(struct dm_mapped *md, enum dm_status_type type)
{
	struct dm_table *t = dm_mapped_live(md);
	GString *out = g_string_new(NULL);

	dm_table_print(t, type, out);
	dm_table_unref(t);
	return g_string_free(out, FALSE);
}

int unit_message(struct dm_mapped *md, const char *text, char **reply)
{
	struct dm_opener self = dm_opener_self();
	g_autofree char *copy = g_strdup(text);
	g_autoptr(GError) err = NULL;
	GString *out = g_string_new(NULL);
	int error = dm_mapped_message(md, copy, &self, out, &err);

	assert_int_equal(!error, !err);
	if (reply)
		*reply = g_string_free(out, FALSE);
	else
		g_string_free(out, TRUE);
	return error;
}
