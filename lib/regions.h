/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The parts of regions of work (dmfs/regions.h).
 *
 * regions.c           the hash, writes, marking; the worker; suspend and resume
 * regions_clean.c     from dirty to clean, and to out of sync
 * regions_recover.c   which regions are copied, and what becomes of them
 * regions_shared.c    a log that other hosts share
 *
 * Locks, the outer first: a shard's, rs->lock.  Both are held for moments.
 */
#ifndef DMFS_LIB_REGIONS_H
#define DMFS_LIB_REGIONS_H

#include <pthread.h>

#include <dmfs/hold.h>
#include <dmfs/regions.h>
#include <dmfs/under_way.h>

#define REGIONS_SHARDS 64u /* a power of two */

enum region_state {
	REGION_MARKING,    /* in sync; its writes wait until the log has it as dirty, on disk */
	REGION_DIRTY,      /* in sync and marked: writes go to all copies at once */
	REGION_NOSYNC,     /* out of sync: writes go where its data is */
	REGION_RECOVERING, /* out of sync, being copied, or about to be */
	REGION_LOST,       /* another host has it (a shared log): as if it were not there, but for what is under way */
};

struct dm_region_work {
	uint64_t nr; /* first: the hash's key */
	enum region_state state;
	unsigned pending;           /* writes under way */
	struct dm_bio_list marking; /* writes that wait for the log */
	bool touched;               /* written to since the cleaner last looked */
	uint64_t flush;             /* flushes begun when it last found it touched */
	struct dm_region_work *next_mark;
};

struct regions_shard {
	pthread_mutex_t lock;
	GHashTable *regions;
} __attribute__((aligned(64)));

/* Bios that wait for what a shared log says of their regions. */
struct asking {
	struct dm_hold bios;
	GArray *regions; /* of uint64_t: to ask about; under rs->lock */
};

struct dm_regions {
	struct dm_target *ti;
	struct dm_dirty_log *log;
	const struct dm_regions_ops *ops;
	void *context;
	unsigned shift; /* of a region */
	bool strict;
	bool shared; /* the log is one of other hosts', too */
	uint8_t *degraded; /* a bit a region */

	struct regions_shard shards[REGIONS_SHARDS];
	struct dm_block_lock *sectors; /* being written or copied */

	struct dm_wq *wq, *io_wq; /* the worker's; where delayed bios and the cleaner run */
	struct dm_work worker, cleaner;
	struct dm_timer timer; /* for the cleaner */
	atomic_bool timer_armed, stopped;
	atomic_uint_fast64_t flushes, flushed; /* begun; the last that reached all copies */
	atomic_bool in_sync, log_failure, event_due;
	atomic_bool recovering; /* recovery may start */
	struct dm_under_way runs;

	pthread_mutex_t lock; /* what follows */
	struct dm_region_work *to_mark;
	struct dm_bio_list failures;
	struct run *done_runs;
	GArray *to_clean;         /* of uint64_t: regions, copies flushed */
	bool flush_failed;        /* the cleaner could not flush all copies */
	bool announce, announced; /* all is in sync: flush the copies and say so; flushed */

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

static inline uint64_t regions_nr(const struct dm_region_io *io)
{
	return io->offset >> io->rs->shift;
}

static inline GArray *regions_list(void)
{
	return g_array_new(FALSE, FALSE, sizeof(uint64_t));
}

static inline bool region_in_sync(struct dm_regions *rs, uint64_t nr)
{
	return dm_dirty_log_in_sync(rs->log, nr);
}

/* regions.c.  A region of the hash, or NULL; regions_lock() locks its shard, whose lock the others want. */
struct dm_region_work *regions_lock(struct dm_regions *rs, uint64_t nr);
void regions_unlock(struct dm_regions *rs, uint64_t nr);
/* One that is not in the hash; in the state that the log says, or in this one. */
struct dm_region_work *regions_make(struct dm_regions *rs, uint64_t nr);
struct dm_region_work *regions_make_as(struct dm_regions *rs, uint64_t nr, enum region_state state);
void regions_drop(struct dm_regions *rs, struct dm_region_work *reg);
/* Calls fn for each region in the hash, with its shard's lock held; one that fn says true of is dropped. */
typedef bool (*region_fn)(struct dm_regions *rs, struct dm_region_work *reg, void *data);
void regions_each(struct dm_regions *rs, region_fn fn, void *data);
void regions_wake(struct dm_regions *rs);
/* Writes that have waited look at their regions again, each in a thread of its own. */
void regions_go_on(struct dm_bio_list *list);

/* regions_clean.c */
void regions_arm_cleaner(struct dm_regions *rs);
void regions_clean_work(struct dm_work *work);
void regions_clean_timer(struct dm_timer *t);
/* The worker's, of regions that the cleaner found. */
void regions_clean(struct dm_regions *rs, const GArray *regions);
/* The worker's: not all copies could be flushed, and no region that was dirty is in sync. */
void regions_flush_failed(struct dm_regions *rs);
/* In postsuspend: leaves nothing in the hash, and cleans what can be. */
void regions_settle(struct dm_regions *rs);

/* regions_recover.c */
void regions_recover(struct dm_regions *rs);
void regions_runs_finish(struct dm_regions *rs, struct run *list);

/* regions_shared.c.  Before a bio goes on: it will, as read or write, when there is an answer. */
void shared_ask(struct dm_region_io *io);
/* The worker's turn; and that there will be one when it is time to ask again. */
void shared_work(struct dm_regions *rs);
void shared_arm(struct dm_regions *rs);
/* Whether what is marked is ours still; else it has to be asked about. */
bool shared_in_touch(struct dm_regions *rs);
/* In presuspend; in resume, or when it was for nothing. */
void shared_suspending(struct dm_regions *rs);
void shared_resuming(struct dm_regions *rs);
void shared_init(struct dm_regions *rs);
void shared_destroy(struct dm_regions *rs);

#endif
