/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an image keeps between requests, and writes that are not whole blocks (rmw.c).
 */
#ifndef DMFS_FS_IMAGE_H
#define DMFS_FS_IMAGE_H

#include "fs.h"

#include <dmfs/block_lock.h>

struct dmfs_image {
	struct dmfs_device *device;
	_Atomic uint64_t bytes;  /* the live table's size */
	_Atomic unsigned block;  /* and its logical block size */
	struct dm_gate writes;   /* aligned writes under way; closed while there are unaligned ones */
	struct dm_block_lock *sectors; /* being written the slow way */
	pthread_mutex_t lock;    /* rmw.c's, for all below */
	unsigned slow;           /* writes that go the slow way */
	struct dmfs_rmw *waiting, **waiting_tail; /* of them, until the gate is empty */
	bool drained;            /* it is */
	pthread_mutex_t changes_lock; /* coherence.c's */
	GQueue changes;
	struct dm_wq *drops; /* stale pages are dropped in it */
};

struct dmfs_image *dmfs_image_new(struct dmfs_device *d);

/* A write with a copy of its data, widened to whole blocks. */
struct dmfs_rmw {
	struct dmfs_image *image;
	uint64_t offset, len;  /* what was asked, bytes */
	uint64_t begin, end;   /* whole blocks around it */
	struct dm_bio bio;
	struct iovec iov;
	char *data; /* end - begin bytes */
	bool reads_head, reads_tail;
	unsigned flags;
	unsigned block;
	char *edge; /* a block that is read */
	int step;
	struct dm_origin *origin; /* the caller's, before dmfs_rmw_start(); may be NULL */
	enum { RMW_GATE, RMW_BLOCKS, RMW_GOES } waits; /* for what; under image->lock */
	void (*done)(struct dmfs_rmw *, int error);
	struct dm_block_claim claim;
	struct dmfs_rmw *next;
};

/*
 * Writes buf to the image; done is called, from any thread, when it has.  It must call dmfs_rmw_clear().
 */
void dmfs_rmw_start(struct dmfs_rmw *w, struct dmfs_image *image, const char *buf, uint64_t offset, uint64_t len,
		    unsigned flags, void (*done)(struct dmfs_rmw *, int));
void dmfs_rmw_clear(struct dmfs_rmw *w);
/* If it waits for others it is done, with -EINTR; what has begun is for dm_origin_cancel(). */
void dmfs_rmw_cancel(struct dmfs_rmw *w);

bool dmfs_device_readonly(struct dmfs_device *d);

#endif
