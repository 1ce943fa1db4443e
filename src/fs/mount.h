/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The connections to the kernel: the tree's, and with -o images=DIR one that shows images alone.
 *
 * Called by main, in this order, from one thread.
 */
#ifndef DMFS_FS_MOUNT_H
#define DMFS_FS_MOUNT_H

#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <sys/types.h>

#include "fs.h"
#include "loop.h"

struct dmfs_mount {
	unsigned nr;
	char *path;                   /* absolute; NULL: only a descriptor was given, and where it is mounted is not known yet */
	int fd;                       /* of one that mount.fuse3 has mounted for us, else -1 */
	dev_t st_dev;                 /* once it is mounted */
	struct fuse_session *session; /* NULL: not there, or gone */
};

extern struct dmfs_mount dmfs_mounts[DMFS_MOUNTS];

/*
 * Whether a directory, or /dev/fd/N of a mount that waits to be served, can be mounted on; frees one that a killed
 * daemon has left.  0, or -1 with the reason on stderr.
 */
int dmfs_mount_prepare(unsigned nr, const char *path);
/* Takes the mount options; copies args.  0, or -1 with the reason on stderr. */
int dmfs_mount_options(unsigned nr, const struct fuse_args *args, const char *source);
/* Mounts and serves.  The first answer to the kernel may be still on its way.  0, or -1 with the reason on stderr. */
int dmfs_mount_up(unsigned nr, unsigned threads);
/* Once it serves (dmfs_loop_ready()): finds out where it is mounted, if that is not known, and tells the engine. */
void dmfs_mount_find(unsigned nr);
/* Whoever has files open may go on using them; nothing if it is not mounted any more. */
void dmfs_mount_detach(unsigned nr);
/* After dmfs_loop_end() and once the loop has settled. */
void dmfs_mount_free(unsigned nr);

#endif
