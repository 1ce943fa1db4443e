/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Group commit: those who wait for the same expensive thing, a commit of metadata, a flush, share it.  While one
 * runs, all who come meanwhile get the next one together.
 *
 *	struct my_bio { struct dm_commit_wait wait; struct dm_bio *bio; };
 *
 *	map():     my->wait.done = committed;
 *	           dm_group_commit(t->commits, &my->wait);
 *	           return DM_MAPIO_SUBMITTED;
 *	committed():  container_of() leads to my_bio; ends the bio with the error, or sends it on.
 *
 * The promise: the commit that a wait is told of began after dm_group_commit() was called.
 */
#ifndef DMFS_GROUP_COMMIT_H
#define DMFS_GROUP_COMMIT_H

#include <stdint.h>

#include <dmfs/work.h>

struct dm_group_commit;

/* Embedded in who waits; it stays there until done() is called, and may be freed in it. */
struct dm_commit_wait {
	/* In a thread of the queue's, with what commit() returned.  May block, but the next commit waits for it. */
	void (*done)(struct dm_commit_wait *wait, int error);
	struct dm_commit_wait *next; /* the commit's own */
};

/*
 * commit() runs in the queue wq, one at a time, and may block; 0 or a negative errno.  The queue must outlive what is
 * made here; other works may run in it.
 */
struct dm_group_commit *dm_group_commit_new(struct dm_wq *wq, int (*commit)(void *context), void *context);
/*
 * Nobody waits any more; what dm_group_commit_soon() asked for and has not begun will not be.  Not from commit() or
 * done().
 */
void dm_group_commit_free(struct dm_group_commit *gc);

/* Any thread, never waits. */
void dm_group_commit(struct dm_group_commit *gc, struct dm_commit_wait *wait);
/* Waits itself; what commit() returned.  Not from map(), nor from the queue. */
int dm_group_commit_sync(struct dm_group_commit *gc);
/*
 * Has one begin within so many nanoseconds, for nobody in particular: earlier if somebody asks for one earlier, and
 * not at all before this time if it is asked again.  Any thread, never waits.
 */
void dm_group_commit_soon(struct dm_group_commit *gc, uint64_t within_ns);
/* Waits until what was asked for before has been done; nothing comes of dm_group_commit_soon()s.  As _sync(). */
void dm_group_commit_settle(struct dm_group_commit *gc);

#endif
