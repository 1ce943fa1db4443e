/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a device name in a table means, in the contract's order: a dmfs device (NAME, 0:MINOR, MOUNTPOINT/NAME,
 * MOUNTPOINT/NAME/image), a path, MAJ:MIN of a block device.
 *
 * A device cannot stand on itself, so its own name or number in its own table is the file of that name.  A path into
 * the mount is meant as it is written, and refused later.
 *
 * A path that leads into our own mount by other ways (a link, `..`, another mount point) is found out by its inode, so
 * that the daemon never opens its own files through the kernel.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "devices.h"
#include "table.h"

static pthread_mutex_t mountpoints_lock = PTHREAD_MUTEX_INITIALIZER;
static struct mountpoint {
	char *path;
	dev_t st_dev;
	struct dm_mapped *(*find_inode)(ino_t);
} mountpoints[DM_MOUNTPOINTS];

void dm_set_mountpoint(unsigned nr, const char *path, dev_t st_dev, struct dm_mapped *(*find_inode)(ino_t))
{
	pthread_mutex_lock(&mountpoints_lock);
	g_free(mountpoints[nr].path);
	mountpoints[nr] = (struct mountpoint){g_strdup(path), st_dev, find_inode};
	pthread_mutex_unlock(&mountpoints_lock);
}

/* What finds the device of an inode there, or NULL: it is no mount of ours. */
static struct dm_mapped *(*inode_finder(dev_t st_dev))(ino_t)
{
	struct dm_mapped *(*found)(ino_t) = NULL;

	pthread_mutex_lock(&mountpoints_lock);
	for (unsigned nr = 0; nr < DM_MOUNTPOINTS; nr++)
		if (mountpoints[nr].find_inode && mountpoints[nr].st_dev == st_dev)
			found = mountpoints[nr].find_inode;
	pthread_mutex_unlock(&mountpoints_lock);
	return found;
}

/* "MAJOR:MINOR" */
static bool parse_number(const char *name, unsigned *major_nr, unsigned *minor_nr)
{
	const char *colon = strchr(name, ':');
	g_autofree char *first = colon ? g_strndup(name, (gsize)(colon - name)) : NULL;

	return colon && dm_parse_uint(first, major_nr) && dm_parse_uint(colon + 1, minor_nr);
}

/* What stands below a mount point in a name, or NULL. */
static char *below_mountpoint(const char *name)
{
	char *rest = NULL;

	pthread_mutex_lock(&mountpoints_lock);
	for (unsigned nr = 0; nr < DM_MOUNTPOINTS && !rest; nr++) {
		size_t len = mountpoints[nr].path ? strlen(mountpoints[nr].path) : 0;

		if (!len || strncmp(name, mountpoints[nr].path, len) || name[len] != '/')
			continue;
		while (name[len] == '/')
			len++;
		rest = g_strdup(name + len);
	}
	pthread_mutex_unlock(&mountpoints_lock);
	return rest;
}

static struct dm_mapped *find_below_mountpoint(const char *name)
{
	g_autofree char *rest = below_mountpoint(name);

	if (!rest)
		return NULL;
	if (g_str_has_suffix(rest, "/image"))
		rest[strlen(rest) - strlen("/image")] = '\0';
	return dm_find_name(rest);
}

/* md unless it is the device that the table is of; *is_self then becomes true. */
static struct dm_mapped *another(struct dm_mapped *md, const struct dm_mapped *self, bool *is_self)
{
	if (!md || md != self)
		return md;
	*is_self = true;
	dm_mapped_unref(md);
	return NULL;
}

static struct dm_mapped *find_mapped(const struct dm_mapped *self, const char *name, bool *is_self)
{
	struct dm_mapped *md = another(dm_find_name(name), self, is_self);
	unsigned major_nr, minor_nr;

	if (!md && parse_number(name, &major_nr, &minor_nr) && major_nr == 0)
		md = another(dm_find_minor(minor_nr), self, is_self);
	return md ? md : find_below_mountpoint(name);
}

static int resolve_path(const struct dm_opener *who, const char *path, enum dm_mode mode, struct dm_dev **out,
			GError **err)
{
	struct dm_mapped *(*find_inode)(ino_t);
	struct dm_store_path found;
	int error = dm_store_find(who, path, &found, err);

	if (error)
		return error;
	find_inode = inode_finder(found.st.st_dev);
	if (find_inode) {
		struct dm_mapped *md = find_inode(found.st.st_ino);

		error = md ? 0 : dm_fail(err, ENOTBLK, "%s is a control file of this mount, not a device", path);
		*out = md ? &md->dev : NULL;
	} else {
		error = dm_store_open(who, &found, mode, out, err);
	}
	dm_store_path_clear(&found);
	return error;
}

/* "MAJ:MIN" of a block device: its node in /dev. */
static char *block_node(unsigned major_nr, unsigned minor_nr)
{
	g_autofree char *link = g_strdup_printf("/sys/dev/block/%u:%u", major_nr, minor_nr);
	g_autofree char *sys = g_file_read_link(link, NULL);
	g_autofree char *base = sys ? g_path_get_basename(sys) : NULL;
	char *node = base ? g_build_filename("/dev", base, NULL) : NULL;

	for (char *p = node; p && (p = strchr(p, '!'));)
		*p = '/';
	return node;
}

/* A name that is no dmfs device's but perhaps that of the device itself: a path, or MAJ:MIN. */
static int resolve_file(const struct dm_opener *who, const char *name, bool is_self, enum dm_mode mode,
			struct dm_dev **out, GError **err)
{
	g_autofree char *path = dm_opener_absolute(who, name, is_self ? NULL : err), *canonical = NULL, *node = NULL;
	g_autoptr(GError) path_error = NULL;
	unsigned major_nr, minor_nr;
	struct dm_mapped *md;
	int error = -ENOENT;

	if (path) {
		canonical = g_canonicalize_filename(path, "/");
		md = find_below_mountpoint(canonical);
		if (md) {
			*out = &md->dev;
			return 0;
		}
		error = resolve_path(who, path, mode, out, &path_error);
	}
	if (error == -ENOENT && is_self) {
		g_autofree char *dir = path ? g_path_get_dirname(path) : g_strdup("the working directory");

		return dm_fail(err, ELOOP, "%s is this very device, and no file in %s: write ./%s for a file", name, dir,
			       name);
	}
	if (path && error == -ENOENT && parse_number(name, &major_nr, &minor_nr)) {
		node = block_node(major_nr, minor_nr);
		return node ? resolve_path(who, node, mode, out, err) :
			      dm_fail(err, ENODEV, "there is no block device %s", name);
	}
	if (path_error)
		g_propagate_error(err, g_steal_pointer(&path_error));
	return error;
}

int dm_resolve(const struct dm_opener *who, const struct dm_mapped *self, const char *name, enum dm_mode mode,
	       struct dm_dev **out, GError **err)
{
	bool is_self = false;
	struct dm_mapped *md = find_mapped(self, name, &is_self);
	const struct dm_store_scheme *scheme;

	if (md) {
		*out = &md->dev;
		return 0;
	}
	scheme = dm_store_scheme_find(name);
	if (scheme)
		return scheme->open(who, name, mode, out, err);
	if (!*name)
		return dm_fail(err, ENOENT, "the name of a device is empty");
	return resolve_file(who, name, is_self, mode, out, err);
}

int dm_read_file(struct dm_target *ti, const char *path, size_t max, GBytes **out, GError **err)
{
	const struct dm_opener *who = &ti->table->opener;
	g_autofree char *absolute = dm_opener_absolute(who, path, err);
	struct dm_store_path found;
	int error = absolute ? dm_store_find(who, absolute, &found, err) : -ENOENT;

	if (!error) {
		if (inode_finder(found.st.st_dev)) /* we would wait for ourselves */
			error = dm_fail(err, EINVAL, "%s is a file of this mount", absolute);
		else
			error = dm_store_read_file(who, &found, max, out, err);
		dm_store_path_clear(&found);
	}
	if (error)
		g_prefix_error(err, "%s: ", ti->type->name);
	return error;
}
