/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a path stands on: the file or device itself, and what is below it through partitions, loop devices and the
 * devices of every dmfs in sight.
 *
 * It serves to find out whether two things are the same storage, and who else uses it.  What cannot be looked into
 * (another's dmfs, the kernel's own mappings) ends the way down: two ranges that overlap are the same storage, two that
 * do not may still be.  around_look() has been called before.
 */
#ifndef DMFS_LUKS_STORAGE_H
#define DMFS_LUKS_STORAGE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/* A range of one thing: bytes from..to, to not included. */
struct extent {
	char *what; /* the same for all names of one thing */
	char *name; /* for people */
	uint64_t from, to;
};

/* One thing that a line of a table uses. */
struct use {
	char *word;	   /* a path, a device's name or a URI */
	uint64_t from, to; /* bytes of it */
};

/* The extents of bytes from..to of a path: itself first.  Never NULL; empty if there is no such path. */
GPtrArray *storage_extents(const char *path, uint64_t from, uint64_t to);
/* The first of a's that overlaps one of b's; or NULL. */
const struct extent *storage_overlap(const GPtrArray *a, const GPtrArray *b);
/* The name of a device (of a dmfs, or a loop device) that may write there and is none of the extents' own; or NULL. */
char *storage_other_user(const GPtrArray *extents);
/* Whether it is a partition's block device: its disk's node (g_free()) and where it starts there, in sectors. */
bool storage_partition(const char *path, char **disk, uint64_t *start);
/*
 * What bytes from..to of a device with this table use, as struct use; deps: as the device's file says.
 * Left out is what others use beside it by design: pools of thin volumes, origins of snapshots, sources of clones.
 */
GPtrArray *storage_uses(const char *table, const char *deps, uint64_t from, uint64_t to);

#endif
