/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Regions of work, above a dirty log (dirty_log.h): which regions are written to, marked, cleaned, out of sync and
 * copied.  It is for targets that keep the same data in several copies; where those are and how they are written and
 * copied is the target's to know.
 *
 * What is known of a region that has nobody's attention is in the log alone: a bit says whether it is in sync.  A
 * region that is written to or copied is in a hash besides.  A write has a claim for its sectors (block_lock.h) from
 * before it looks at its region to its end, and a recovery one for its regions: so writes to the same sector come one
 * after the other, and wait while it is copied.
 *
 * Out of sync there are two kinds.  Where the copies were never the same the data is in the first one, only.  A region
 * that a copy missed a write to is degraded: all copies that missed nothing have it, and go on being kept the same.
 *
 * One work, the worker, does all that changes the log or the sync of a region; it never waits for anything but the
 * log's device.  The cleaner flushes the copies and hands it regions to clean.
 *
 *	struct my_bio { struct dm_region_io io; … };	the first of the target's bytes of a bio
 *
 *	map():       dm_region_io_init(rs, &my->io, bio);
 *	             write:  dm_regions_write(rs, &my->io);         ops->write() comes when it may be sent
 *	             read:   dm_regions_where() tells where from; with a shared log dm_regions_read(), and ops->read()
 *	             flush:  my->flush = dm_regions_flush_begins(rs); if it reached all copies, dm_regions_flushed()
 *	at its end:  write:  dm_regions_write_end(rs, &my->io), and dm_bio_end()
 *
 * The log may be one that other hosts share; then more of it waits for an answer, and which copy is the first must
 * never change.
 */
#ifndef DMFS_REGIONS_H
#define DMFS_REGIONS_H

#include <dmfs/block_lock.h>
#include <dmfs/dirty_log.h>
#include <dmfs/work.h>

struct dm_regions;

/* Where a region's data is, and is to go. */
enum dm_region_where {
	DM_REGION_ALL,   /* in sync: all copies */
	DM_REGION_SOUND, /* degraded: those that missed nothing */
	DM_REGION_FIRST, /* never in sync: the first */
};

struct dm_region_io {
	struct dm_bio *bio;
	uint64_t offset; /* sectors of the target */
	bool in_sync;    /* in ops->read(): what the shared log says */
	/* The regions' own from here on. */
	struct dm_regions *rs;
	struct dm_region_work *region;
	struct dm_block_claim claim;
	struct dm_work work;
	uint64_t turn;
	bool claimed;
};

/* Regions to be copied: [first, +count), `sectors` from `sector` on, which end with the target. */
struct dm_region_run {
	uint64_t first, sector, sectors;
	unsigned count;
};

/* What a target does.  context is what dm_regions_new() was given. */
struct dm_regions_ops {
	/*
	 * The write may be sent, to these copies.  From dm_regions_write(), or later, then from a thread where it may
	 * wait for the disk.
	 */
	void (*write)(struct dm_region_io *io, enum dm_region_where where);
	/* The log could not be written, or did not answer: the write cannot be sent. */
	void (*log_failed)(struct dm_region_io *io);
	/* Of a shared log only.  io->in_sync is known: true, and the bio goes where it points; or it has been ended. */
	bool (*read)(struct dm_region_io *io);
	/* A bio that waits for a shared log leaves early, with the error of a hold (hold.h); it was not sent. */
	void (*leave)(struct dm_region_io *io, int error);
	/* Whether no copy has missed anything since all were in sync: else nothing is cleaned. */
	bool (*all_sound)(void *context);
	/* Flushes all copies; may wait.  0 or a negative errno; then flush_failed() comes in the worker. */
	int (*flush)(void *context);
	void (*flush_failed)(void *context);
	/* Copies regions from where they are to all other copies, and then calls dm_regions_copied(). */
	void (*copy)(void *context, struct dm_region_run *run);
	/* All regions have become in sync. */
	void (*all_in_sync)(void *context);
	/* The worker's: what it was told of by dm_regions_failed(). */
	void (*failed)(struct dm_region_io *io);
};

/*
 * In ctr; on success the log is its own.  strict: a log that could not be written is not written again before the next
 * table, and who needs it fails.  -ENOMEM: for its bitmap.
 */
int dm_regions_new(struct dm_target *ti, struct dm_dirty_log *log, bool strict, const struct dm_regions_ops *ops,
		   void *context, struct dm_regions **rs, GError **err);
/* In dtr; after a suspend, if it was resumed. */
void dm_regions_free(struct dm_regions *rs);

/* The target's hooks of these names.  In presuspend, bios that wait for the target are let go first. */
void dm_regions_presuspend(struct dm_regions *rs);
void dm_regions_presuspend_undo(struct dm_regions *rs);
void dm_regions_postsuspend(struct dm_regions *rs);
int dm_regions_preresume(struct dm_regions *rs, GError **err);
void dm_regions_resume(struct dm_regions *rs);
void dm_regions_end_waiting(struct dm_regions *rs);

/* --- bios; any thread, none waits --- */

/* For each bio, before all else.  It lies within one region; a flush is nowhere. */
void dm_region_io_init(struct dm_regions *rs, struct dm_region_io *io, struct dm_bio *bio);
void dm_regions_write(struct dm_regions *rs, struct dm_region_io *io);
/* A write leaves its region, and those that waited for it go on.  Of a flush or a read this does nothing. */
void dm_regions_write_end(struct dm_regions *rs, struct dm_region_io *io);
void dm_regions_read(struct dm_regions *rs, struct dm_region_io *io);
/* What is known of a sector of the target here and now; with a shared log that is not all. */
enum dm_region_where dm_regions_where(struct dm_regions *rs, uint64_t sector);
/* Numbers a flush, before it is sent; and that it reached all copies. */
uint64_t dm_regions_flush_begins(struct dm_regions *rs);
void dm_regions_flushed(struct dm_regions *rs, uint64_t flush);

/* --- the target tells; any thread unless it says otherwise, none waits --- */

void dm_regions_copied(struct dm_regions *rs, struct dm_region_run *run, bool ok);
/* A write or flush that did not reach all copies it should, or was not sent, is the worker's to deal with. */
void dm_regions_failed(struct dm_regions *rs, struct dm_region_io *io);
/* Has the worker raise an event, when the status tells all of what happened. */
void dm_regions_event(struct dm_regions *rs);
/* Whether all regions are in sync, and that was said. */
bool dm_regions_all_in_sync(struct dm_regions *rs);
/* In ops->failed() only.  A copy missed this write, or (NULL) a flush: its region, or every dirty one, is out of sync. */
void dm_regions_missed(struct dm_regions *rs, struct dm_region_io *io);
/* The same of a write after which copies differ though none has failed: it is copied at once. */
void dm_regions_mend(struct dm_regions *rs, struct dm_region_io *io);

#endif
