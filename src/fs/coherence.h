/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The page caches that an image may be in: those of the kernel's inodes of it, one of each connection.
 *
 * What was written is seen by all from the answer on.  The kernel sees to that for its own cache and buffered writes.
 * A direct write beside it leaves stale pages (newer kernels drop them, older ones do not), and of the other
 * connection's it knows nothing: these are dropped before the answer.
 *
 * That waits for pages that are locked: those being read, and those of buffered writes that have no answer yet.  Two
 * such writes to the same pages through both connections would wait for each other.  So a buffered write is
 * listed while there are cached opens of the other connection, and one that ends while an overlapping write of the
 * other has no answer is answered first; the pages are dropped afterwards, from both caches.
 */
#ifndef DMFS_FS_COHERENCE_H
#define DMFS_FS_COHERENCE_H

#include "fs.h"

#include <dmfs/bio.h>
#include <dmfs/work.h>

/* A write, discard or the like on its way; embedded in its request. */
struct dmfs_change {
	struct dmfs_handle *h;
	enum dm_op op;
	uint64_t begin, end; /* bytes */
	bool listed;
	GList link;
	void (*done)(struct dmfs_change *);
	struct dm_work work;
};

/* Before it is submitted; done() is to answer it. */
void dmfs_change_begin(struct dmfs_change *c, struct dmfs_handle *h, enum dm_op op, uint64_t offset, uint64_t bytes,
		       void (*done)(struct dmfs_change *));
/* It has ended, in any thread: calls done(), at once or when stale pages are gone. */
void dmfs_change_end(struct dmfs_change *c, bool failed);

#endif
