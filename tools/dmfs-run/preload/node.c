/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is a device: the images of the mount, the disks, and the mount's control and events files, which stand for
 * /dev/mapper/control.  Told by st_dev and st_ino, so that it does not matter by which name it was opened, or by whom.
 *
 * An image's inode is asked for once: what number it has stays as long as the device is there, and inodes are not used
 * again.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "run.h"

#define CONTROL_MAJOR 10 /* misc */
#define CONTROL_MINOR 236

/* --- images ---------------------------------------------------------------------------------------- */

#define CACHED 256

/* The inode << 21 | the minor number + 1, or without a number if it is no image. */
static atomic_uint_least64_t cache[CACHED];

#define MINOR_BITS 21

static bool cached(ino_t ino, long *minor_nr)
{
	uint64_t v = atomic_load_explicit(&cache[ino % CACHED], memory_order_relaxed);

	if (!v || v >> MINOR_BITS != ino)
		return false;
	*minor_nr = (long)(v & ((1u << MINOR_BITS) - 1)) - 1;
	return true;
}

/* MOUNT/NAME/image of an open file; false: it is another file, or removed. */
static bool image_name(int fd, char name[128])
{
	char link[64], path[PATH_MAX];
	size_t len;

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	if (!link_read(link, path, sizeof path) || strncmp(path, run.mount, run.mount_len) ||
	    path[run.mount_len] != '/')
		return false;
	len = strlen(path);
	if (len < 6 || strcmp(path + len - 6, "/image"))
		return false;
	path[len - 6] = '\0';
	if (!tree_valid_name(path + run.mount_len + 1))
		return false;
	strcpy(name, path + run.mount_len + 1);
	return true;
}

static long image_minor(const struct stat *st, int fd, const char *path)
{
	int before = errno, own = -1;
	char name[128];
	long nr = -1;

	if (cached(st->st_ino, &nr))
		return nr;
	if (fd < 0 && path)
		fd = own = NEXT(open)(path, O_PATH | O_CLOEXEC);
	if (fd >= 0 && image_name(fd, name))
		nr = tree_minor(name);
	if (own >= 0)
		NEXT(close)(own);
	if (fd >= 0)
		atomic_store_explicit(&cache[st->st_ino % CACHED],
				      (uint64_t)st->st_ino << MINOR_BITS | (uint64_t)(nr + 1), memory_order_relaxed);
	errno = before;
	return nr;
}

/* --- all kinds ------------------------------------------------------------------------------------- */

enum node_kind node_find(const struct stat *st, int fd, const char *path, unsigned *minor_nr)
{
	long nr;

	if (!run.on || !S_ISREG(st->st_mode))
		return NODE_NONE;
	if (st->st_dev == run.mount_dev) {
		if (st->st_ino == run.control_ino || st->st_ino == run.events_ino)
			return NODE_CONTROL;
		nr = image_minor(st, fd, path);
		*minor_nr = (unsigned)nr;
		return nr < 0 ? NODE_NONE : NODE_MAPPED;
	}
	*minor_nr = disk_of_file(st->st_dev, st->st_ino);
	return *minor_nr == DISK_NONE ? NODE_NONE : NODE_DISK;
}

enum node_kind node_of_fd(int fd, struct node *out)
{
	struct stat st;
	int before = errno;

	*out = (struct node){0};
	if (!run.on || NEXT(fstat)(fd, &st)) {
		errno = before;
		return NODE_NONE;
	}
	out->kind = node_find(&st, fd, NULL, &out->minor);
	return out->kind;
}

void node_stat(struct stat *st, int fd, const char *path)
{
	unsigned minor_nr = 0;
	enum node_kind kind = node_find(st, fd, path, &minor_nr);

	if (kind == NODE_NONE)
		return;
	st->st_mode = (st->st_mode & 07777) | (kind == NODE_CONTROL ? S_IFCHR | 0600 : S_IFBLK);
	st->st_rdev = kind == NODE_CONTROL  ? makedev(CONTROL_MAJOR, CONTROL_MINOR)
		      : kind == NODE_MAPPED ? makedev(run.dm_major, minor_nr)
					    : makedev(run.disk_major, minor_nr);
	st->st_size = st->st_blocks = 0;
}

/* --- who has it ------------------------------------------------------------------------------------ */

struct search {
	dev_t dev;
};

static bool deps_have(const char *name, const char *message, dev_t wanted)
{
	AUTO_TEXT t = {0};

	if (tree_message(name, message, strlen(message), &t))
		return false;
	for (char *line = t.s; line && *line;) {
		size_t len = strcspn(line, "\n");
		bool more = line[len];
		dev_t dev;

		line[len] = '\0';
		if (word_to_dev(line, &dev) && dev == wanted)
			return true;
		line += len + more;
	}
	return false;
}

static int uses(const struct listed *d, void *data)
{
	const struct search *s = data;

	return deps_have(d->name, "@numbers deps", s->dev) || deps_have(d->name, "@numbers inactive deps", s->dev);
}

bool node_is_held(const struct node *n)
{
	struct search s = {.dev = makedev(n->kind == NODE_MAPPED ? run.dm_major : run.disk_major, n->minor)};

	return tree_each(uses, &s) > 0;
}
