/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is mounted and attached around us: the devices of every dmfs in sight,
 * and loop devices.
 *
 * A dmfs whose daemon hangs, and a file system below a loop device that does,
 * must not make us hang: others than the dmfs that is worked on are asked by
 * processes of their own, whose answers are waited for AROUND_SECONDS.  That is done
 * once, before there is a secret that they could inherit.  Not for threads.
 */
#ifndef DMFS_LUKS_AROUND_H
#define DMFS_LUKS_AROUND_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define AROUND_SECONDS 2

/* A device of a dmfs. */
struct node {
	char *root, *name; /* its mount point */
	dev_t mount;	   /* of which it is, under any name */
	uint64_t inode;	   /* of its image, */
	uint64_t created;  /* and its time in nanoseconds: both also as a directory of images shows it */
	bool readonly;
	char *table, *deps; /* as its files say */
};

struct loop_device {
	char *name; /* loop0 */
	dev_t dev;
	bool readonly;
	char *file; /* as the kernel names it */
	/* what it is; mode 0: not known, as of what a dmfs has that is not asked again */
	mode_t mode;
	dev_t file_dev, file_rdev;
	uint64_t file_inode;
	uint64_t offset, limit; /* bytes of it; limit 0: none */
};

/* Looks around, if that has not been done, and at the dmfs that is worked on anew; NULL: at none. */
void around_look(const char *root);
/* Afterwards, until the next look: struct node, struct loop_device. */
const GPtrArray *around_nodes(void);
const GPtrArray *around_loops(void);
/* Who has not answered, for people, separated by commas; g_free(); NULL: all have. */
char *around_silent(void);
/* Mount points of every dmfs that answers and that we may control. */
const GPtrArray *around_mounts(void);
/*
 * Whether a path is in a dmfs, or its directory of images, found without a look at it; *node: its device, or NULL if it is
 * not known.
 */
bool around_is_in_dmfs(const char *path, const struct node **node);
/* The device whose image that is, in the tree or in a directory of images; or NULL. */
const struct node *around_node_of(dev_t mount, uint64_t inode);

#endif
