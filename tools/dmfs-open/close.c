/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Taking down what a run has opened.
 *
 * Nothing is remembered but in the devices: their uuids begin with OPEN-RUN-NUMBER-.  What dmfs-luks and dmfs-verity
 * made on them has their uuids, and stands on a device of ours.  Devices go in reverse order, and whatever else stands
 * on them (another's device, an open file) keeps them.
 *
 * An array of md's that was written to (its uuid says so) goes through md_close.c: before its members go, their
 * superblocks say that it is clean.
 */
#include <errno.h>
#include <glib/gstdio.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../common/client.h"
#include "../common/tree.h"
#include "open.h"

#define SERVER_MS 10000

static void dev_free(gpointer p)
{
	struct dev *d = p;

	g_free(d->name);
	g_free(d->uuid);
	g_free(d->table);
	g_free(d);
}

bool close_is_ours(const char *uuid, const char *run)
{
	if (!g_str_has_prefix(uuid, "OPEN-") || strlen(uuid) < 14 || uuid[13] != '-')
		return false;
	return !run || !strncmp(uuid + 5, run, 8);
}

const char *close_id(const char *uuid)
{
	const char *dash = strchr(uuid + 14, '-');

	return dash ? dash + 1 : "";
}

static bool is_helpers(const char *uuid)
{
	return g_str_has_prefix(uuid, "CRYPT-");
}

/* Every device that may be ours. */
static GPtrArray *all_devices(const char *mount, GError **err)
{
	GPtrArray *devs = g_ptr_array_new_with_free_func(dev_free);
	int error = 0;
	g_autoptr(GPtrArray) names = tree_devices(mount, &error);

	if (!names)
		fail(err, -error, "%s: %s", mount, g_strerror(-error));
	for (unsigned i = 0; names && i < names->len; i++) {
		g_autofree char *uuid = client_read(mount, names->pdata[i], "uuid");
		struct dev *d;

		if (!uuid)
			continue;
		g_strchomp(uuid);
		if (!close_is_ours(uuid, NULL) && !is_helpers(uuid))
			continue;
		d = g_new0(struct dev, 1);
		d->name = g_strdup(names->pdata[i]);
		d->uuid = g_steal_pointer(&uuid);
		if (is_helpers(d->uuid)) {
			d->table = client_read(mount, d->name, "table");
		} else {
			const char *id = close_id(d->uuid);

			d->seq = (unsigned)strtoul(d->uuid + 14, NULL, 10);
			if (!strcmp(id, "IMAGE") || !strcmp(id, "NBD") || !strcmp(id, "OVERLAY") ||
			    !strcmp(id, "MDDEV") || md_close_is(id))
				d->table = client_read(mount, d->name, "table");
		}
		g_ptr_array_add(devs, d);
	}
	return devs;
}

/* Whether a word of a table's text is what test says. */
static bool any_word(const char *table, bool (*test)(const char *word, gpointer data), gpointer data)
{
	g_auto(GStrv) lines = table ? tree_lines(table) : NULL;

	for (char **line = lines; line && *line; line++) {
		g_auto(GStrv) words = tree_words(*line);

		for (char **w = words; *w; w++) {
			g_autofree char *plain = tree_unquote(*w);

			if (test(plain, data))
				return true;
		}
	}
	return false;
}

static bool is_in(const char *word, gpointer set)
{
	return g_hash_table_contains(set, word);
}

static bool is_same(const char *word, gpointer other)
{
	return !strcmp(word, other);
}

/* The devices of a run, and those of the helpers that stand on them; the last made first. */
static int by_seq(gconstpointer a, gconstpointer b)
{
	const struct dev *x = *(struct dev *const *)a, *y = *(struct dev *const *)b;

	return x->seq < y->seq ? 1 : x->seq > y->seq ? -1 : 0;
}

static GPtrArray *of_run(GPtrArray *devs, const char *run)
{
	g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);
	GPtrArray *found = g_ptr_array_new();
	bool more = true;

	for (unsigned i = 0; i < devs->len; i++) {
		struct dev *d = devs->pdata[i];

		if (close_is_ours(d->uuid, run)) {
			g_hash_table_add(names, d->name);
			g_ptr_array_add(found, d);
		}
	}
	while (more) {
		more = false;
		for (unsigned i = 0; i < devs->len; i++) {
			struct dev *d = devs->pdata[i];

			if (is_helpers(d->uuid) && !g_hash_table_contains(names, d->name) &&
			    any_word(d->table, is_in, names)) {
				d->seq = UINT32_MAX;
				g_hash_table_add(names, d->name);
				g_ptr_array_add(found, d);
				more = true;
			}
		}
	}
	g_ptr_array_sort(found, by_seq);
	return found;
}

/* --- files of a run ----------------------------------------------------------------------------------------- */

/* .../dmfs-open-XXXXXX in a word of a table. */
static bool find_dir(const char *word, gpointer out)
{
	const char *at = strstr(word, "/dmfs-open-"), *from = strstr(word, "socket=");
	g_autofree char *dir = NULL;

	from = from ? from + 7 : word;
	if (!at || at < from || at[17] != '/' || *from != '/')
		return false;
	dir = g_strndup(from, (gsize)(at + 17 - from));
	*(char **)out = g_uri_unescape_string(dir, "/");
	return *(char **)out;
}

/* Ends the qemu-nbd, which mostly has by itself, its last client having gone; afterwards nobody has the image open. */
static void end_server(const char *pid_file)
{
	g_autofree char *text = NULL, *proc = NULL, *cmdline = NULL, *dir = g_path_get_dirname(pid_file);
	struct pollfd pfd = {.events = POLLIN};
	gsize len;

	if (!g_file_get_contents(pid_file, &text, NULL, NULL))
		return;
	proc = g_strdup_printf("/proc/%d/cmdline", atoi(text));
	pfd.fd = (int)syscall(SYS_pidfd_open, atoi(text), 0);
	/* the number may be another's by now */
	if (pfd.fd >= 0 && g_file_get_contents(proc, &cmdline, &len, NULL) && memmem(cmdline, len, dir, strlen(dir)))
		if (!syscall(SYS_pidfd_send_signal, pfd.fd, SIGTERM, NULL, 0))
			poll(&pfd, 1, SERVER_MS);
	if (pfd.fd >= 0)
		close(pfd.fd);
}

static void remove_files(const char *dir)
{
	GDir *d = g_dir_open(dir, 0, NULL);
	const char *name;

	while (d && (name = g_dir_read_name(d))) {
		g_autofree char *path = g_build_filename(dir, name, NULL);

		if (g_str_has_suffix(name, ".pid"))
			end_server(path);
		if (strstr(name, ".sock") || g_str_has_suffix(name, ".overlay"))
			g_unlink(path);
	}
	if (d)
		g_dir_close(d);
	g_rmdir(dir);
}

/* --- closing -------------------------------------------------------------------------------------------------- */

static bool remove_one(const char *mount, struct dev *d, struct md_closing *md)
{
	struct md_array *array = md_close_before(md, d);

	d->gone = !client_remove(mount, d->name, NULL) || !tree_has_device(mount, d->name);
	md_close_after(md, array, d->gone);
	return d->gone;
}

/* All that will go, go; the name of one that is in use, or NULL.  Arrays that cannot be closed well set the error. */
static const char *remove_all(const char *mount, GPtrArray *devs, GError **err)
{
	struct md_closing *md = md_close_new(mount, devs, err);
	const char *busy = NULL;
	bool progress = true;

	while (progress) {
		progress = false;
		busy = NULL;
		for (unsigned i = 0; i < devs->len; i++) {
			struct dev *d = devs->pdata[i];

			if (d->gone)
				continue;
			progress |= remove_one(mount, d, md);
			if (!d->gone && !busy)
				busy = d->name;
		}
		if (!busy)
			break;
	}
	md_close_free(md);
	return busy;
}

int close_run(const char *mount, const char *run, GError **err)
{
	g_autoptr(GPtrArray) devs = all_devices(mount, err), found = of_run(devs, run), names = g_ptr_array_new();
	g_autofree char *dir = NULL;
	g_autoptr(GError) why = NULL;
	const char *busy;
	int r;

	for (unsigned i = 0; i < found->len; i++) {
		struct dev *d = found->pdata[i];

		g_ptr_array_add(names, d->name);
		if (!dir)
			any_word(d->table, find_dir, &dir);
	}
	r = fs_unmount(mount, names, err);
	if (r)
		return r;
	busy = remove_all(mount, found, &why);
	if (busy)
		return fail(err, EBUSY,
			    "%s is in use: unmount what is on it, close its image, and remove what stands on it first",
			    busy);
	if (dir)
		remove_files(dir);
	if (!why)
		return 0;
	r = -EIO;
	g_propagate_error(err, g_steal_pointer(&why));
	return r;
}

/* The runs that opened an image, or all of them. */
static GPtrArray *runs_of(GPtrArray *devs, const char *path)
{
	GPtrArray *runs = g_ptr_array_new_with_free_func(g_free);

	for (unsigned i = 0; i < devs->len; i++) {
		struct dev *d = devs->pdata[i];
		char run[9] = {0};

		if (!close_is_ours(d->uuid, NULL) ||
		    (path && (strcmp(close_id(d->uuid), "IMAGE") || !any_word(d->table, is_same, (gpointer)path))))
			continue;
		memcpy(run, d->uuid + 5, 8);
		if (!g_ptr_array_find_with_equal_func(runs, run, g_str_equal, NULL))
			g_ptr_array_add(runs, g_strdup(run));
	}
	return runs;
}

/* A dmfs's own image is in a table by the device's name. */
static char *word_for(const char *mount, const char *path)
{
	g_autofree char *dir = g_path_get_dirname(path), *base = g_path_get_basename(path),
			*above = g_path_get_dirname(dir);
	char *root = realpath(mount, NULL);
	bool ours = root && !strcmp(base, "image") && !strcmp(above, root);

	free(root);
	return ours ? g_path_get_basename(dir) : g_strdup(path);
}

static int close_image(const char *mount, const char *image, GError **err)
{
	g_autoptr(GPtrArray) devs = all_devices(mount, err), runs = NULL;
	char *resolved = realpath(image, NULL);
	g_autofree char *word = NULL;
	int r = 0;

	if (resolved)
		word = word_for(mount, resolved);
	else
		word = g_canonicalize_filename(image, NULL);
	free(resolved);
	runs = runs_of(devs, word);
	if (!runs->len)
		return fail(err, ENODEV, "%s is not open in %s", image, mount);
	for (unsigned i = 0; !r && i < runs->len; i++)
		r = close_run(mount, runs->pdata[i], err);
	return r;
}

int close_all(const char *mount, char **images, GError **err)
{
	int r = 0;

	if (!images || !*images) {
		g_autoptr(GPtrArray) devs = all_devices(mount, err), runs = runs_of(devs, NULL);

		for (unsigned i = 0; i < runs->len; i++) {
			int one = close_run(mount, runs->pdata[i], err);

			r = r ? r : one;
		}
		return r;
	}
	for (; !r && *images; images++)
		r = close_image(mount, *images, err);
	return r;
}
