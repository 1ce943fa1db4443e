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
 *   stripe_cache.c  which of them there are, and their pages
 *   journal.c   what closes the write hole
 *   sync.c      resync, recover, check, repair
 *   reshape.c   an array on the way to another shape; reshape10.c: raid10's I/O meanwhile
 *   raid.c      the target
 *
 * Sectors of bios count from the target's begin.  "Sync space" is what resync offsets and the bitmap count in: sectors
 * of a device, for raid10 of the array.
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
	RAID_FAULTY = 1u << 0,	     /* neither read nor written */
	RAID_IN_SYNC = 1u << 1,	     /* holds what it should */
	RAID_WRITE_MOSTLY = 1u << 2, /* read only when no other can be */
	RAID_PARTIAL = 1u << 3,	     /* out of sync only where the bitmap says so */
	RAID_MISSING = 1u << 4,	     /* "-" in the line */
};

struct raid_member {
	struct dm_dev *meta, *data; /* the line's */
	_Atomic uint32_t flags;
	_Atomic uint64_t recovered;  /* if not in sync: device sectors from 0 that hold what they should */
	_Atomic uint64_t checkpoint; /* the same, as superblocks say */
	_Atomic uint64_t data_offset; /* becomes the new one when a reshape ends */
	uint64_t new_data_offset;
	_Atomic uint32_t reads;	    /* under way */
	_Atomic uint64_t next_read; /* where the last one ended */
};

enum raid_action { RAID_IDLE, RAID_RESYNC, RAID_RECOVER, RAID_CHECK, RAID_REPAIR, RAID_RESHAPE };

struct raid;

/* Somebody waits for the metadata worker. */
struct raid_wait {
	void (*fn)(struct raid_wait *);
	struct raid_wait *next;
	uint64_t first, last; /* regions */
	int error;	      /* no device took it: nothing may be written, or called done */
};

/* A part of sync space that is being synchronised. */
struct raid_window {
	struct raid *r;
	uint64_t sector, sectors;
	uint64_t mismatches; /* sectors */
	int error;	     /* it was not done */
	bool busy;
	enum raid_action action;
	uint64_t started_ns;
	struct dm_work work;
};

/* At bio->private of the user's bios. */
struct raid_bio {
	uint64_t sector; /* of the target */
	int disk;	 /* where a read was sent straight to; -1: nowhere */
};

/* What a family of levels does. */
struct raid_ops {
	int (*start)(struct raid *, GError **);
	void (*stop)(struct raid *);
	/* A read, write or discard inside the array. */
	enum dm_mapio (*map)(struct raid *, struct dm_bio *, struct raid_bio *);
	/* A read that went straight to a device has failed there; ends it, some time.  NULL: nothing can be done. */
	void (*reread)(struct raid *, struct dm_bio *, struct raid_bio *);
	/* Does a window, in a thread that may wait; sets its mismatches and error. */
	void (*sync)(struct raid_window *);
	/* Before the first resume of a table that may be written; may wait.  May be NULL. */
	int (*replay)(struct raid *, GError **);
	/* Postsuspend: waits for what goes on after bios have ended.  May be NULL. */
	void (*settle)(struct raid *);
};

#define RAID_WINDOWS 4u

struct raid {
	struct dm_target *ti;
	bool writable; /* not so in a read-only table */
	struct raid_params params;
	struct raid_state state; /* as assembled; what changes later is beside it */
	struct raid_geo geo;
	const struct raid_ops *ops;
	void *family;		      /* the ops' own */
	struct raid_journal *journal; /* raid4/5/6's, or NULL */
	struct raid_member *members;
	unsigned disks;
	bool started, running; /* resumed once; now */
	bool built;	       /* what there is may be resumed */
	bool reshape_waits;    /* it begins with the next load */
	bool reshaped;	       /* it is done, and the next resume makes an array of it */
	bool continued;	       /* its line came back from the state: what it asks for has begun */
	struct dm_rows *rows;
	GString *kept_status[2]; /* by enum dm_status_type: while the array is assembled again; else NULL */
	uint64_t sync_sectors; /* of sync space */
	unsigned stripe_cache; /* in use, raid4/5/6 */

	/* metadata: meta.c */
	struct raid_bitmap *bitmap;
	unsigned daemon_sleep_ms;
	struct dm_wq *meta_wq;
	struct dm_work meta_work;
	struct dm_timer clean_timer;
	pthread_mutex_t lock; /* of what follows; short */
	struct raid_wait *marks, *super_waiters;
	bool super_stale, clean_due, clean_all, meta_busy;
	unsigned failures; /* devices that ever went out */
	atomic_bool clean_armed, meta_stopped;
	uint64_t events, events_cleared;
	_Atomic uint64_t resync_offset; /* as superblocks say */
	atomic_bool broken;  /* parity: more devices failed than it bears; what is lost is not brought back any more */
	atomic_bool dead; /* what was answered is in the journal alone and cannot go home: nothing is read or written */
	atomic_bool unsaved; /* a device is out, and no superblock says so */
	_Atomic unsigned degraded;

	/* sync.c, under lock */
	pthread_cond_t sync_ended;
	struct dm_wq *dispatch_wq, *sync_wq, *slow_wq;
	struct dm_work sync_work;
	struct dm_timer sync_timer;
	struct raid_window windows[RAID_WINDOWS];
	enum raid_action action, requested;
	bool may_sync; /* between resume and presuspend */
	unsigned halting;
	bool frozen, sync_stop, sync_error, last_was_check, paused;
	uint64_t sync_from, sync_next, sync_done, sync_end, checkpoint_at;
	uint64_t rate_from, rate_since_ns, checkpoint_ns, window_ns;
	unsigned last_users;
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
 * What a read ends with that came out well.  The devices may lack what was answered from the moment that dead is set: a
 * read that was let in before, and looked at them after it, is told here.
 */
static inline int raid_read_result(struct raid *r)
{
	return atomic_load(&r->dead) ? -EIO : 0;
}

/* Where the array's data begins on a device; moved: where a reshape brings it. */
static inline uint64_t raid_data_offset(const struct raid_member *m, bool moved)
{
	return moved ? m->new_data_offset : m->data_offset;
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
 * A write to sectors of sync space begins.  True: it may go on.  False: wait->fn is called when the regions' bits are
 * durable.  Any thread, never waits.
 */
bool raid_mark(struct raid *r, uint64_t sector, uint64_t sectors, struct raid_wait *wait);
void raid_unmark(struct raid *r, const struct raid_wait *wait);
/* Superblocks are to be written; wait (may be NULL) is called when they are.  Any thread. */
void raid_save(struct raid *r, struct raid_wait *wait);
/* The same, and waits.  An error: no device has taken it, or none is known to have. */
int raid_save_sync(struct raid *r);
/* Regions whose devices may differ now. */
void raid_regions_need(struct raid *r, const struct raid_wait *wait);
/* A resynchronisation came from sector, a region's begin or where it was before, to end: what it has passed needs it no
 * more. */
void raid_regions_synced(struct raid *r, uint64_t sector, uint64_t end);

/* --- sync.c ---------------------------------------------------------------------------------- */

void raid_sync_open(struct raid *r);
void raid_sync_close(struct raid *r);
/* Resume, presuspend (which waits until nothing goes on). */
void raid_sync_resume(struct raid *r);
void raid_sync_suspend(struct raid *r);
/* Looks what there is to do.  Any thread. */
void raid_sync_look(struct raid *r);
int raid_sync_message(struct raid *r, const char *word, GError **err);
struct raid_progress {
	uint64_t done, total, mismatches;
	const char *action;
	bool resyncing; /* all devices are alive, but none is in sync */
};
void raid_sync_progress(struct raid *r, struct raid_progress *p);

/* --- reshape.c ------------------------------------------------------------------------------- */

/* How much of what moves has moved, in sectors of the array; what the next window is. */
void raid_reshape_where(struct raid *r, uint64_t *done, uint64_t *total);
uint64_t raid_reshape_window(struct raid *r, uint64_t done);
/* done, total and action as status has them; total is sync space's before. */
void raid_reshape_progress(struct raid *r, struct raid_progress *p);
/* Whether what it has done, counted in sync space from the begin on, is in sync thereby.  Under lock. */
bool raid_reshape_syncs(const struct raid *r);
void raid_reshape_finish(struct raid *r);
/* What the array holds meanwhile; 0 if the state makes no sense. */
uint64_t raid_reshape_now(const struct raid_state *s);

/* --- families ----------------------------------------------------------------------------------- */

extern const struct raid_ops raid0_ops, raid_copies_ops, raid_stripes_ops, raid_reshape_ops;

/* --- runs.c -------------------------------------------------------------------------------------- */

/* Pieces of a bio, gathered into one bio for each run of a device's sectors. */
struct raid_runs;

/* Room for so many pieces.  private: for done(). */
struct raid_runs *raid_runs_new(struct raid *r, struct dm_bio *whole, unsigned pieces,
				void (*done)(struct raid_runs *, void *), void *private);
/* Other data than the bio's: laid out like it. */
void raid_runs_data(struct raid_runs *runs, struct iovec *iov, int iovcnt);
/* offset, sectors: of the bio; dev_sector: of the device's data, where they lie. */
void raid_runs_add(struct raid_runs *runs, unsigned disk, uint64_t dev_sector, uint64_t offset, uint64_t sectors);
/* The same, sector counted from the device's begin: a reshape has its data at two offsets. */
void raid_runs_add_at(struct raid_runs *runs, unsigned disk, uint64_t sector, uint64_t offset, uint64_t sectors);
/* Submits them; done() is called once all have ended, and frees them. */
void raid_runs_submit(struct raid_runs *runs);
void raid_runs_free(struct raid_runs *runs);
/*
 * In done(): devices that failed a write are out, where that can be.  0 or the error of one that
 * could not; *dropped: some are out, so the superblocks must be waited for.
 */
int raid_runs_drop_failed(struct raid_runs *runs, bool *dropped);
/* In done(): the error of one of those that failed, or 0. */
int raid_runs_error(const struct raid_runs *runs);

#endif
