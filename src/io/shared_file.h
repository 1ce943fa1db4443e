/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Files and block devices that stores have open: one of each path and mode, however many stores there are of it, so
 * that ten thousand devices on one file are one file.
 *
 * Linux tells of a write-back error once for each open file, to whichever fsync(2) comes first.  So a FLUSH of one
 * store could take an error that was another's to know.  Here each error is counted, and a store remembers how many
 * there had been at its last FLUSH: it is told of every error since, whoever's fsync(2) met it.  Two things make that
 * hold.  FLUSHes of a file take turns, those that wait share the next fsync(2): one that succeeded beside another
 * cannot say "all is well" before the other has said what it met.  And a write with O_DSYNC, which may also be
 * told of an error, goes through an open file of its own.
 */
#ifndef DMFS_IO_SHARED_FILE_H
#define DMFS_IO_SHARED_FILE_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include <dmfs/io.h>

struct shared_file {
	/* What it is. */
	enum dm_mode mode;
	bool block_device;
	dev_t st_dev; /* a block device's own number, else the file system's */
	ino_t st_ino; /* 0 for a block device */
	char *path;
	struct fs_share *share; /* of its file system */
	int fd, dsync_fd; /* the second for writes with RWF_DSYNC; -1 if it is never written to */
	/* The rest is shared_file.c's. */
	atomic_int refs;
	pthread_mutex_t lock;
	pthread_cond_t synced;
	uint64_t begun, done; /* fsync(2)s */
	bool syncing;
	unsigned errors; /* how many there have been */
	int error;       /* the last of them */
};

/* The one that is open, with a reference more, or NULL; key's first five members count. */
struct shared_file *shared_file_find(const struct shared_file *key);
/*
 * One that was opened: the members up to dsync_fd are taken over, the path and the reference to the share too.  If
 * somebody was faster his is returned, and what was given is closed.
 */
struct shared_file *shared_file_new(const struct shared_file *opened);
void shared_file_put(struct shared_file *f);

/* For a new store: it is not to hear of errors that there have been. */
unsigned shared_file_errors(struct shared_file *f);
/*
 * Makes what was written durable.  *seen is how many errors the store has been told of; a negative errno if there are
 * more by now, and then it has been told if `tell`.  May wait: dm_block_begin() is the caller's.
 */
int shared_file_sync(struct shared_file *f, unsigned *seen, bool tell);
/* The same for all that can be written, as at unmount: 0 or the first negative errno. */
int shared_files_sync(void);

/* fdatasync(2), for tests to fail. */
extern int (*shared_file_fdatasync)(int fd);

#endif
