/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How many threads may wait in the system calls of one file system, or of one block device.
 *
 * A file system may hang: its server is far away, or stopped.  Who has called it then waits, and nothing makes it come
 * back.  So of the threads that submit bios only so many do the call themselves; what is beyond waits in a queue,
 * without a thread each, that a few threads of its own empty.  However many requests there are, one file system holds
 * that many threads and no more.
 */
#ifndef DMFS_IO_FS_SHARE_H
#define DMFS_IO_FS_SHARE_H

#include <stdbool.h>
#include <sys/types.h>

#include <dmfs/bio.h>

/*
 * Descriptors of files that are far have numbers from here on.  A close asks the file's server; whoever starts a
 * program can leave these behind (CLOSE_RANGE_UNSHARE, for which Linux copies descriptors by 64s), so that nothing
 * closes a copy.
 */
#define FS_SHARE_FAR_FDS 64

struct fs_share;

/*
 * The one of this file system or block device, with a reference more.  `far`: its calls may hang for ever, also those
 * that on a disk are quick.  The path names it in messages.
 */
struct fs_share *fs_share_get(dev_t dev, bool block_device, bool far, const char *path);
void fs_share_put(struct fs_share *s);
bool fs_share_far(const struct fs_share *s);

/*
 * Before a call that may wait: dm_block_begin(), if there is room for one caller more; else false, and the bio should
 * go to fs_share_queue().
 */
bool fs_share_enter(struct fs_share *s);
/* For a call that has to be made here and now, however many there are. */
void fs_share_enter_anyway(struct fs_share *s);
void fs_share_leave(struct fs_share *s);
/* Calls fn(bio) soon, from a thread that may wait. */
void fs_share_queue(struct fs_share *s, struct dm_bio *bio, void (*fn)(struct dm_bio *));

/*
 * At the daemon's end, which began then: the path of one that has not come back with anything for so many milliseconds
 * since, though it has been called, or NULL.
 */
char *fs_share_hanging(uint64_t since_ns, unsigned ms, bool far_only);

#endif
