/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The parts of the mirror target.
 *
 * What is known of a region that has nobody's attention is in the log alone: a bit says whether it is in sync.  A
 * region that is written to or copied has a struct region, in one of several hashes with a lock each:
 *
 *   MARKING     in sync; its writes wait until the log has it as dirty, on disk
 *   DIRTY       in sync and marked: writes go to all legs at once
 *   NOSYNC      out of sync: writes go where its data is (see below)
 *   RECOVERING  out of sync, being copied, or about to be
 *   LOST        another host has it (a shared log): as if it were not there, but for what is under way
 *
 * A write has a claim for its sectors (block_lock.h) from before it looks at its region to its end, and a copy one for
 * its regions: so writes to the same sector come one after the other, and wait while it is copied.
 *
 * Out of sync there are two kinds.  Where the legs were never the same the data is on the primary leg, only.  A region
 * that a leg missed a write to is `degraded`: all legs that missed nothing have it, and go on being kept the same.
 *
 * A leg is stale from its first failed write, flush or copy until all regions are in sync again; nothing is read from a
 * stale leg.
 *
 * One work, the worker, does all that changes the log or the sync of a region; it never waits for anything but the
 * log's device.  The cleaner flushes the legs and hands it regions to clean.  The worker alone makes a leg stale or,
 * when all is in sync, well again, unless regions are out of sync anyway: so between the two no failure is forgotten.
 *
 * A log may be shared with other hosts; what is different then is in shared.c.
 *
 * Locks, the outer first: a shard's, ms->lock.  Both are held for moments.
 */
#ifndef DMFS_TARGETS_MIRROR_H
#define DMFS_TARGETS_MIRROR_H

#include <pthread.h>

#include <dmfs/block_lock.h>
#include <dmfs/dirty_log.h>
#include <dmfs/hold.h>
#include <dmfs/kcopyd.h>
#include <dmfs/target.h>
#include <dmfs/work.h>

#define SHARDS 64u /* a power of two */

enum leg_error { LEG_FLUSH_ERROR, LEG_WRITE_ERROR, LEG_SYNC_ERROR, LEG_READ_ERROR };
#define LEG_STALE (1u << LEG_FLUSH_ERROR | 1u << LEG_WRITE_ERROR | 1u << LEG_SYNC_ERROR)

struct leg {
	struct dm_dev *dev;
	uint64_t offset;
	atomic_uint errors; /* a bit an enum leg_error */
	atomic_bool flush_failed; /* the cleaner tells the worker */
};

enum region_state { REGION_MARKING, REGION_DIRTY, REGION_NOSYNC, REGION_RECOVERING, REGION_LOST };

struct run;
struct mirror_bio;

struct region {
	uint64_t nr; /* first: the hash's key */
	enum region_state state;
	unsigned pending;          /* writes under way */
	struct dm_bio_list marking; /* writes that wait for the log */
	bool touched;              /* written to since the cleaner last looked */
	uint64_t flush;            /* flushes begun when it last found it touched */
	struct region *next_mark;
};

struct shard {
	pthread_mutex_t lock;
	GHashTable *regions;
} __attribute__((aligned(64)));

/* One leg's part of a write or flush. */
struct leg_bio {
	struct dm_bio bio; /* first */
	struct dm_bio *whole;
	unsigned leg;
};

/* The target's space of a bio. */
struct mirror_bio {
	struct mirror *ms;
	struct dm_bio *bio;
	uint64_t offset; /* sectors of the target */
	struct dm_block_claim claim; /* a write's */
	bool claimed;
	struct region *region; /* counted in its pending */
	bool in_sync;   /* a shared log's answer to a read */
	bool unsent;    /* a read that no leg has failed */
	uint64_t turn;  /* of the worker, when it began to wait for an answer */
	bool requeue;   /* end_io gives it back for after the resume */
	bool log_failed; /* its region could not be marked */
	bool blocked;   /* it was not sent, for a leg has failed */
	unsigned leg, first, step; /* reads: where it went, and what is left to try */
	unsigned nr;    /* writes: legs it goes to */
	atomic_uint pending;
	uint64_t flush; /* a flush's number */
	struct dm_work work;
	struct leg_bio legs[];
};

/* Bios that wait for what a shared log says of their regions. */
struct asking {
	struct dm_hold bios;
	GArray *regions; /* of uint64_t: to ask about; under ms->lock */
};

struct mirror {
	struct dm_target *ti;
	struct dm_dirty_log *log;
	unsigned region_shift;
	bool handle_errors, keep_log;
	bool shared; /* the log is one of other hosts', too */
	unsigned nr_legs;
	struct leg *legs;
	atomic_uint primary;
	uint8_t *degraded; /* a bit a region */

	struct shard shards[SHARDS];
	struct dm_block_lock *sectors; /* being written or copied */
	struct dm_hold holds;          /* failed writes, until somebody suspends the device */

	struct dm_wq *wq, *io_wq; /* the worker's; where delayed bios and the cleaner run */
	struct dm_work worker, cleaner;
	struct dm_timer timer; /* for the cleaner */
	atomic_bool timer_armed, stopped;
	atomic_uint_fast64_t flushes, flushed; /* begun; the last that reached all legs */
	struct dm_kcopyd_throttle throttle;
	struct dm_kcopyd_client *kcopyd;

	atomic_bool in_sync, leg_failure, log_failure;
	atomic_bool event_due; /* raised by the worker, when the status says all of what happened */

	pthread_mutex_t lock; /* what follows */
	pthread_cond_t recovery_stopped;
	struct region *to_mark;
	struct dm_bio_list failures;
	struct run *done_runs;
	GArray *to_clean;      /* of uint64_t: regions, legs flushed */
	bool flush_failed;     /* the cleaner could not flush all legs */
	bool announce, announced; /* all is in sync: flush the legs and say so; flushed */
	bool recovering;       /* recovery may start */
	unsigned runs;

	/* Of a shared log. */
	struct asking reads, writes;
	struct dm_timer ask_timer;
	atomic_bool ask_due, turning_away;
	atomic_uint_fast64_t settled; /* the log's introductions for which all regions have been asked about */
	atomic_uint_fast64_t turn, ask_at_ns; /* when the timer comes; UINT64_MAX: it does not */
	GArray *denied; /* of uint64_t: regions to write to that others have; the worker's */

	/* The worker's. */
	bool announcing;
	GArray *again; /* of uint64_t: regions to copy that get_resync_work will not return again */
};

static inline struct shard *mirror_shard(struct mirror *ms, uint64_t region)
{
	return &ms->shards[(region ^ region >> 6) & (SHARDS - 1)];
}

static inline uint64_t mirror_region(const struct mirror *ms, uint64_t offset)
{
	return offset >> ms->region_shift;
}

static inline bool leg_is_stale(const struct leg *leg)
{
	return atomic_load(&leg->errors) & LEG_STALE;
}

static inline bool region_in_sync(struct mirror *ms, uint64_t region)
{
	return dm_dirty_log_in_sync(ms->log, region);
}

static inline void mirror_wake(struct mirror *ms)
{
	dm_wq_queue(ms->wq, &ms->worker);
}

/* io.c: what bios do. */
enum dm_mapio mirror_map(struct dm_target *ti, struct dm_bio *bio);
enum dm_endio mirror_end_io(struct dm_target *ti, struct dm_bio *bio);
/* Ends a write or flush: it leaves its region, and those that waited for it go on. */
void mirror_write_end(struct mirror_bio *b, int error);
/* Points a read at the next leg to try; false: there is none. */
bool mirror_point_at_leg(struct mirror_bio *b);
/* Lets writes that have waited go on. */
void mirror_redispatch(struct dm_bio_list *list);

/* region.c: the hash, marking, cleaning.  */
/* Finds or makes a region; NULL if it is in sync, not in the hash, and `make` is false.  Its shard's lock held. */
struct region *region_get(struct mirror *ms, uint64_t nr, bool make);
void region_drop(struct mirror *ms, struct region *reg);
/* Calls fn for each region in the hash, with its shard's lock held; one that fn says true of is dropped. */
typedef bool (*region_fn)(struct mirror *ms, struct region *reg, void *data);
void regions_each(struct mirror *ms, region_fn fn, void *data);
/* One that is not in the hash; its shard's lock held. */
struct region *region_make(struct mirror *ms, uint64_t nr, enum region_state state);
/* A region begins to be written to while it is clean; its shard's lock held. */
void region_begin_dirty(struct mirror *ms, struct region *reg);
/* The worker's: marks regions and lets their writes go. */
void regions_mark(struct mirror *ms, struct region *list);
void regions_clean(struct mirror *ms, const GArray *regions);
/* A leg missed something: the region (or every dirty one) is not in sync any more. */
void region_lost_sync(struct mirror *ms, uint64_t nr);
void regions_lost_sync(struct mirror *ms);
void mirror_arm_cleaner(struct mirror *ms);
/* A flush reached all legs. */
void mirror_flushed(struct mirror *ms, uint64_t flush);
void mirror_clean_work(struct dm_work *work);
void mirror_clean_timer(struct dm_timer *t);
/* In postsuspend: leaves nothing in the hash, and cleans what can be. */
void regions_settle(struct mirror *ms);

/* recover.c: copying regions. */
void recovery_start(struct mirror *ms);
void runs_finish(struct mirror *ms, struct run *list);
void recovery_stop(struct mirror *ms);

/* shared.c: a log that other hosts share.  Before a bio goes on: it will, as read or write, when there is an answer. */
void shared_ask(struct mirror_bio *b);
/* The worker's turn; and that there will be one when it is time to ask again. */
void shared_work(struct mirror *ms);
void shared_arm(struct mirror *ms);
/* Whether what is marked is ours still; else it has to be asked about. */
bool shared_in_touch(struct mirror *ms);
/* In presuspend; in resume, or when it was for nothing. */
void shared_suspending(struct mirror *ms);
void shared_resuming(struct mirror *ms);
void shared_init(struct mirror *ms);
void shared_destroy(struct mirror *ms);

/* mirror.c */
void mirror_fail_leg(struct mirror *ms, unsigned leg, enum leg_error kind);
/* A write or flush that did not reach all it should is the worker's to deal with. */
void mirror_failed(struct mirror_bio *b);
/* Flushes all legs and notes those that fail for mirror_fail_flush(); may block.  0 or a negative errno. */
int mirror_flush_legs(struct mirror *ms);
/* The worker's: these legs have failed, and no region that was dirty is in sync. */
void mirror_fail_flush(struct mirror *ms);

#endif
