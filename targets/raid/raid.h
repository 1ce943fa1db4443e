/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * raid inside: what its files share.
 *
 *   layout.c    where sectors lie            parity.c    P and Q
 *   params.c    the table line               super.c     superblocks' bytes
 *   assemble.c  what an array is             convert.c   what it may become
 *   bitmap.c    the write-intent bitmap      meta.c      the worker that writes both
 *   member.c    devices: usable, failed, back again
 *   copies.c    raid1, raid10                rows.c      raid0, and raid4/5/6's bios
 *   stripe.c    raid4/5/6's stripes          plan.c      what a stripe must read and write
 *   sync.c      resync, recover, check, repair
 *   raid.c      the target
 *
 * Sectors of bios count from the target's begin.  "Sync space" is what resync offsets and
 * the bitmap count in: sectors of a device, for raid10 of the array.
 */
#ifndef DMFS_TARGETS_RAID_H
#define DMFS_TARGETS_RAID_H

#include <pthread.h>

#include <dmfs/block_lock.h>
#include <dmfs/container_of.h>
#include <dmfs/rounding.h>
#include <dmfs/target.h>
#include <dmfs/work.h>

#include "assemble.h"
#include "bitmap.h"

enum raid_member_flags {
	RAID_FAULTY = 1u << 0,       /* neither read nor written */
	RAID_IN_SYNC = 1u << 1,      /* holds what it should */
	RAID_WRITE_MOSTLY = 1u << 2, /* read only when no other can be */
	RAID_PARTIAL = 1u << 3,      /* out of sync only where the bitmap says so */
	RAID_MISSING = 1u << 4,      /* "-" in the line */
};

struct raid_member {
	struct dm_dev *meta, *data; /* the line's */
	_Atomic uint32_t flags;
	_Atomic uint64_t recovered; /* if not in sync: device sectors from 0 that hold what they should */
	uint64_t data_offset, new_data_offset;
	_Atomic uint32_t reads;     /* under way */
	_Atomic uint64_t next_read; /* where the last one ended */
};

enum raid_action { RAID_IDLE, RAID_RESYNC, RAID_RECOVER, RAID_CHECK, RAID_REPAIR, RAID_RESHAPE };

struct raid;

/* Somebody waits for the metadata worker. */
struct raid_wait {
	void (*fn)(struct raid_wait *);
	struct raid_wait *next;
	uint64_t first, last; /* regions */
};

/* A part of sync space that is being synchronised. */
struct raid_window {
	struct raid *r;
	uint64_t sector, sectors;
	uint64_t mismatches; /* sectors */
	int error;           /* it was not done */
	bool busy, done, needs_lock;
	enum raid_action action;
	struct dm_block_claim claim;
	struct dm_work work;
	atomic_uint left;
	uint64_t started_ns;
};

/* What a family of levels does. */
struct raid_ops {
	int (*start)(struct raid *, GError **);
	void (*stop)(struct raid *);
	/* A read, write or discard, sector counted from the target's begin, inside the array.  Ends the bio, some time. */
	void (*submit)(struct raid *, struct dm_bio *, uint64_t sector);
	/* Does a window, in a thread that may wait, or later; raid_window_done() at the end. */
	void (*sync)(struct raid_window *);
	/* Postsuspend: waits for what goes on after bios have ended.  May be NULL. */
	void (*settle)(struct raid *);
};

#define RAID_WINDOWS 4u

struct raid {
	struct dm_target *ti;
	struct raid_params params;
	struct raid_state state; /* as assembled; what changes later is beside it */
	struct raid_geo geo;
	const struct raid_ops *ops;
	void *family; /* the ops' own */
	struct raid_member *members;
	unsigned disks;
	bool started; /* has been resumed once */
	uint64_t sync_sectors; /* of sync space */

	/* metadata: meta.c */
	struct raid_bitmap *bitmap;
	unsigned daemon_sleep_ms;
	struct dm_wq *meta_wq;
	struct dm_work meta_work;
	struct dm_timer clean_timer;
	pthread_mutex_t lock; /* of what follows; short */
	struct raid_wait *marks, *super_waiters;
	bool super_stale, clean_due, clean_all, meta_busy;
	atomic_bool clean_armed, meta_stopped;
	uint64_t events, events_cleared;
	_Atomic uint64_t resync_offset;
	atomic_bool failed; /* too many devices are gone */
	_Atomic unsigned degraded;

	/* sync.c */
	pthread_cond_t sync_idle;
	struct dm_wq *sync_wq;
	struct dm_work sync_work;
	struct dm_timer sync_timer;
	struct raid_window windows[RAID_WINDOWS];
	enum raid_action action, requested;
	bool frozen, sync_stop, sync_running, sync_error, last_was_check, sync_working;
	uint64_t sync_next, sync_done, checkpoint, rate_from;
	uint64_t rate_since_ns, checkpoint_ns, last_users;
	_Atomic uint64_t mismatches;
	atomic_uint users; /* counts bios, for who yields to them */
};

/* --- member.c -------------------------------------------------------------------------------- */

static inline bool raid_member_alive(const struct raid_member *m)
{
	return !(atomic_load(&m->flags) & (RAID_FAULTY | RAID_MISSING));
}

/* Whether what a device holds in the sectors up to end (not included) counts. */
static inline bool raid_member_readable(const struct raid_member *m, uint64_t end)
{
	uint32_t flags = atomic_load(&m->flags);

	if (flags & (RAID_FAULTY | RAID_MISSING))
		return false;
	return flags & RAID_IN_SYNC || end <= atomic_load(&m->recovered);
}

/*
 * A device has failed.  True: it is out, and the superblocks will say so; who answers for a write waits for
 * that first.  False: it is the last that has some of the data, and stays.
 */
bool raid_member_fail(struct raid *r, unsigned i, const char *what, int error);
/* Counts those out of sync, missing or failed. */
void raid_count_degraded(struct raid *r);
/* After a suspend: failed devices whose superblock can be read again come back. */
void raid_members_revive(struct raid *r);
/* FLUSH of all data devices; those that fail it are out.  May wait.  0 or a negative errno. */
int raid_members_flush(struct raid *r);
/* A FLUSH of the user's. */
void raid_flush(struct raid *r, struct dm_bio *bio);

/* --- meta.c ---------------------------------------------------------------------------------- */

/* Whether the array has superblocks, and a bitmap. */
static inline bool raid_has_bitmap(const struct raid *r)
{
	return r->state.persistent && r->geo.level && !r->params.journal;
}

int raid_meta_open(struct raid *r, GError **err);
/* Before the first resume: writes what is new, reads the bitmap. */
int raid_meta_start(struct raid *r, GError **err);
void raid_meta_resume(struct raid *r);
/* All bios have ended: clears what is clean and saves. */
void raid_meta_suspend(struct raid *r);
void raid_meta_close(struct raid *r);

/*
 * A write to sectors of sync space begins.  True: it may go on.  False: wait->fn is called when
 * the regions' bits are durable.  Any thread, never waits.
 */
bool raid_mark(struct raid *r, uint64_t sector, uint64_t sectors, struct raid_wait *wait);
void raid_unmark(struct raid *r, const struct raid_wait *wait);
/* Superblocks are to be written; wait (may be NULL) is called when they are.  Any thread. */
void raid_save(struct raid *r, struct raid_wait *wait);
/* The same, and waits. */
void raid_save_sync(struct raid *r);
/* Regions that were synchronised need it no more. */
void raid_regions_synced(struct raid *r, uint64_t sector, uint64_t end);

/* --- sync.c ---------------------------------------------------------------------------------- */

void raid_sync_init(struct raid *r);
void raid_sync_start(struct raid *r); /* looks what there is to do; may be called at any time */
void raid_sync_stop(struct raid *r);  /* and waits until nothing goes on */
void raid_sync_free(struct raid *r);
/* A window is done; any thread. */
void raid_window_done(struct raid_window *w);
int raid_sync_message(struct raid *r, const char *word, GError **err);
void raid_sync_status(struct raid *r, GString *out);
bool raid_sync_resyncing(struct raid *r);

/* --- families ----------------------------------------------------------------------------------- */

extern const struct raid_ops raid0_ops, raid_copies_ops, raid_stripes_ops;

/*
 * Pieces of a bio, gathered into one bio for each run of a device's sectors.
 */
struct raid_runs;
struct raid_runs *raid_runs_new(struct dm_bio *whole, unsigned pieces);
/* offset, sectors: of the bio; where they lie. */
void raid_runs_add(struct raid_runs *runs, unsigned disk, struct dm_dev *dev, uint64_t dev_sector, uint64_t offset,
		   uint64_t sectors);
/* Submits them; done(context, runs) once all have ended, then raid_runs_free(). */
void raid_runs_submit(struct raid_runs *runs, unsigned flags, void (*done)(struct raid_runs *, void *), void *context);
/* The error of one of those that failed; of each device: error(disk) is called for those that did. */
int raid_runs_error(const struct raid_runs *runs);
void raid_runs_for_errors(const struct raid_runs *runs, void (*fn)(void *, unsigned disk, int error), void *context);
void raid_runs_free(struct raid_runs *runs);

#endif
