/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Making and removing devices of a mounted dmfs (client.h), as an ordinary process. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client.h"
#include "fail.h"
#include "tree.h"

#define MAX_UUID 128

/* Every dmfs that this process may look into. */
static GPtrArray *mounted(void)
{
	GPtrArray *found = g_ptr_array_new_with_free_func(g_free);
	g_autoptr(GPtrArray) all = NULL;
	g_autofree char *text = NULL;

	if (!g_file_get_contents("/proc/self/mountinfo", &text, NULL, NULL))
		return found;
	all = tree_list_mounts(text);
	for (unsigned i = 0; i < all->len; i++) {
		g_autofree char *control = tree_path(all->pdata[i], "control", NULL);

		if (!access(control, W_OK))
			g_ptr_array_add(found, g_strdup(all->pdata[i]));
	}
	return found;
}

char *client_named_mount(const char *wanted, GError **err)
{
	const char *named = wanted ? wanted : g_getenv("DMFS_MOUNT");
	g_autofree char *control = NULL;
	struct stat st;

	if (!named || !*named)
		return NULL;
	control = g_build_filename(named, "control", NULL);
	if (!stat(control, &st))
		return g_strdup(named);
	fail(err, errno, "%s is not a mounted dmfs: %s: %s", named, control, g_strerror(errno));
	return NULL;
}

char *client_only_mount(const GPtrArray *all, GError **err)
{
	if (all->len == 1)
		return g_strdup(all->pdata[0]);
	if (!all->len)
		fail(err, ENODEV, "no dmfs of yours is mounted: mount one with `dmfs MOUNTPOINT`, or name it with -m");
	else
		fail(err, EINVAL, "%u dmfs are mounted, at %s, %s%s: name one with -m or $DMFS_MOUNT", all->len,
		     (char *)all->pdata[0], (char *)all->pdata[1], all->len > 2 ? ", ..." : "");
	return NULL;
}

char *client_mount(const char *wanted, GError **err)
{
	GError *why = NULL;
	char *mount = client_named_mount(wanted, &why);
	g_autoptr(GPtrArray) all = NULL;

	if (mount || why) {
		if (why)
			g_propagate_error(err, why);
		return mount;
	}
	all = mounted();
	return client_only_mount(all, err);
}

int client_check_name(const char *name, GError **err)
{
	if (!*name || *name == '.' || strchr(name, '/') || strlen(name) > 127)
		return fail(err, EINVAL, "device name '%s' is not 1 to 127 bytes without '/' and without a dot at first",
			    name);
	return 0;
}

/* --- its files ---------------------------------------------------------------------------------- */

char *client_read(const char *mount, const char *name, const char *file)
{
	g_autofree char *path = tree_path(mount, name, file);
	char *text;

	return tree_read(path, &text) ? NULL : text;
}

int client_write(const char *mount, const char *name, const char *file, const char *data, size_t len, GError **err)
{
	g_autofree char *path = g_build_filename(mount, name, file, NULL), *why = NULL;
	int fd = open(path, O_WRONLY | O_CLOEXEC), code = 0;

	if (fd < 0)
		return fail(err, errno, "%s: %s", path, g_strerror(errno));
	if (write(fd, data, len) != (ssize_t)len)
		code = errno ? errno : EIO;
	if (close(fd) && !code)
		code = errno;
	if (!code)
		return 0;
	why = client_read(mount, name, "error");
	if (why && *why)
		return fail(err, code, "%s: %s", path, g_strstrip(why));
	return fail(err, code, "%s: %s", path, g_strerror(code));
}

int client_check_maker(const char *mount, const char *name, const char *tool, const char *prefix, GError **err)
{
	g_autofree char *uuid = NULL;

	if (!tree_has_device(mount, name))
		return fail(err, ENODEV, "there is no device %s in %s", name, mount);
	uuid = client_read(mount, name, "uuid");
	if (!uuid || !g_str_has_prefix(uuid, prefix))
		return fail(err, EINVAL, "%s was not opened by %s; rmdir removes any device", name, tool);
	return 0;
}

int client_remove(const char *mount, const char *name, GError **err)
{
	g_autofree char *path = g_build_filename(mount, name, NULL);

	if (!rmdir(path))
		return 0;
	if (errno == EBUSY)
		return fail(err, EBUSY, "%s is in use: unmount what is on it and close its image first", name);
	return fail(err, errno, "%s: %s", path, g_strerror(errno));
}

int client_make(const char *mount, const char *name, const char *uuid, bool readonly, const char *table, size_t len,
		GError **err)
{
	g_autofree char *path = g_build_filename(mount, name, NULL);
	int r = 0;

	if (mkdir(path, 0700)) {
		if (errno == EEXIST)
			return fail(err, EEXIST, "there is a device %s already", name);
		return fail(err, errno, "%s: %s", path, g_strerror(errno));
	}
	if (readonly)
		r = client_write(mount, name, "readonly", "1", 1, err);
	if (!r)
		r = client_write(mount, name, "uuid", uuid, MIN(strlen(uuid), MAX_UUID), err);
	if (!r)
		r = client_write(mount, name, "table", table, len, err);
	if (r)
		client_remove(mount, name, NULL);
	return r;
}

char **client_split(const char *line)
{
	g_autoptr(GStrvBuilder) words = g_strv_builder_new();
	g_autoptr(GString) word = g_string_new(NULL);

	for (; *line; line++) {
		if (*line == '\\' && line[1]) {
			g_string_append_c(word, *++line);
		} else if (*line != ' ') {
			g_string_append_c(word, *line);
		} else {
			g_strv_builder_add(words, word->str);
			g_string_truncate(word, 0);
		}
	}
	g_strv_builder_add(words, word->str);
	return g_strv_builder_end(words);
}
