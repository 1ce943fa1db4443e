/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the three targets share: snapshots, and the origins they are of.
 *
 * snapshot.c   the snapshot and snapshot-merge targets: lines, tables, handover
 * map.c        bios of the two
 * copy.c       pending exceptions: copying a chunk out, and all that waits for it
 * merge.c      the merge itself
 * origin.c     origins and the snapshot-origin target
 * extent.c     which parts hold data
 * invalid.c    snapshots that have missed a write, and how that is kept
 * absent.c     snapshots that the state has and that could not be loaded
 * store.c      exceptions on disk
 *
 * Two block locks (block_lock.h) say who works on a chunk of a snapshot:
 *   cow->copies   who copies it to the COW store has it; who needs the copy is parked with him
 *   cow->users    reads of the origin have it together, and of a merge the writes to the COW device; who is to change
 *                 what they stand on has it alone
 * And so it is in one of these states:
 *   unchanged    no exception; reads go to the origin
 *   pending      claimed in copies: it is being copied to the COW store
 *   draining     an exception, marked: copied and durable, but a read of the origin that began before has not ended
 *                yet, so the origin must not change; still claimed in copies
 *   complete     an exception
 *   merging      an exception, claimed in users: being copied back; writes wait
 * An origin's chunk is written only when it is complete in every snapshot.
 *
 * Locks, from the outer to the inner:
 *   origin->control   who joins and leaves; held across waits for I/O
 *   origin->slots     any one of them to look at the snapshots of the origin, all of them to change the list
 *   shard->lock       a snapshot's exceptions, by chunk
 *   snap->lock        its state and who waits for it
 *   the store's own
 * No bio is submitted or ended under any but control.
 */
#ifndef DMFS_SNAPSHOT_H
#define DMFS_SNAPSHOT_H

#include <pthread.h>

#include "store.h"

#include <dmfs/block_lock.h>
#include <dmfs/hold.h>
#include <dmfs/index.h>
#include <dmfs/kcopyd.h>
#include <dmfs/rows.h>
#include <dmfs/under_way.h>
#include <dmfs/work.h>

#define SHARD_BITS 7
#define SHARDS (1u << SHARD_BITS)
#define ORIGIN_SLOTS 16u

struct pending;
struct snapshot;

/* bio->private in all three targets. */
struct snap_bio {
	struct dm_bio *bio;
	struct snapshot *snap; /* whose it is; of the two snapshot targets */
	struct dm_block_claim use; /* in cow->users */
	bool uses;
	/* A write to the origin: */
	struct origin *origin; /* NULL: it is none */
	uint64_t safe_to;              /* all before this sector is complete in all snapshots */
	bool guarded;                  /* copies of all of its chunks were begun once */
	void (*go)(struct dm_bio *);   /* it may be written now */
};

struct shard {
	pthread_mutex_t lock;
	struct dm_index complete; /* chunk to where it lies; flag: it is draining */
} __attribute__((aligned(64)));

/* What is handed over from one table's target to another's: the exceptions and where they lie. */
struct cow {
	struct snap_store *store;
	struct dm_kcopyd_client *kcopyd;
	uint32_t chunk_sectors;
	unsigned shift;
	atomic_bool unmarked; /* it is invalid, and its store does not say so */
	struct dm_block_lock *copies, *users;
	struct shard shards[SHARDS];
};

enum snap_state {
	SNAP_VALID,
	SNAP_INVALIDATING, /* the store is being marked; writes to the origin wait for it */
	SNAP_INVALID,
};

struct snapshot {
	struct dm_target *ti;
	struct dm_dev *origin_dev, *cow_dev;
	uint64_t origin_sectors; /* when the table was loaded */
	struct origin *origin;
	struct cow *cow; /* NULL: before a handover to it, and after one from it */
	bool merging;    /* the type: snapshot-merge */
	bool overflow_option, discard_zeroes_cow, discard_passdown_origin;
	enum snap_store_kind kind;
	uint32_t wanted_chunk_sectors; /* the line's */
	bool active;      /* under the origin's locks: writes to the origin make exceptions */

	pthread_mutex_t lock;
	struct dm_under_way users; /* pending exceptions and the like: all that uses cow; s may be gone after the last */
	struct dm_bio_list wait_invalid; /* origin bios */
	_Atomic enum snap_state state;
	atomic_bool overflowed, merge_failed;

	/* Being invalid (invalid.c). */
	struct dm_rows *rows;
	struct dm_work mark_work;
	struct dm_timer mark_timer; /* to try again */

	/* The merge. */
	struct dm_wq *merge_wq;
	struct dm_work merge_work;
	atomic_bool merge_stop;
	atomic_bool merge_running;
};

struct origin {
	struct dm_dev *dev; /* one of those that name it, referenced */
	unsigned refs;      /* under the registry's lock */
	pthread_mutex_t control;
	GPtrArray *snapshots; /* of struct snapshot */
	GPtrArray *targets;   /* of struct dm_target: live snapshot-origins; under control */
	pthread_mutex_t absent_lock;
	GPtrArray *absents;   /* of struct absent, under absent_lock */
	atomic_uint unmarked; /* of them: the next write is to wait for */
	struct slot {
		pthread_mutex_t lock;
	} __attribute__((aligned(64))) slots[ORIGIN_SLOTS];
};

/* A chunk on its way to the COW store. */
struct pending {
	struct snap_commit commit; /* first: old and new chunk */
	struct snapshot *snap;
	struct dm_block_claim claim; /* in cow->copies */
	struct dm_block_claim drain; /* in cow->users, when the exception is durable */
	struct pending *next_start;
	uint64_t sectors;     /* of the chunk; fewer at the origin's end */
	uint64_t before, after; /* where in the chunk first begins and ends; without one, at its end */
	struct dm_bio *first; /* the write to the snapshot that made it; its data goes with the chunk */
	bool follows;         /* or it is sent when the chunk is there */
	struct dm_bio io;
	struct iovec *iov;
	char *buffer;
};

/* What was decided under locks and is done after them. */
struct to_start {
	struct pending *copies, **tail;
	struct dm_bio_list again; /* were parked with somebody who has gone */
	struct dm_bio_list dead;  /* their callers are */
};

static inline struct shard *snap_shard(struct snapshot *s, uint64_t chunk)
{
	return &s->cow->shards[dm_index_hash(chunk) >> (64 - SHARD_BITS)];
}

/* The exception of a chunk as it is now; false: there is none. */
static inline bool snap_find(struct snapshot *s, uint64_t chunk, struct dm_index_entry *out)
{
	struct shard *shard = snap_shard(s, chunk);
	const struct dm_index_entry *e;

	pthread_mutex_lock(&shard->lock);
	e = dm_index_find(&shard->complete, chunk);
	if (e)
		*out = *e;
	pthread_mutex_unlock(&shard->lock);
	return e;
}

static inline enum snap_state snap_state(struct snapshot *s)
{
	return atomic_load_explicit(&s->state, memory_order_acquire);
}

/* snapshot.c */
extern const struct dm_target_type snapshot_merge_target;

/* map.c */
enum dm_mapio snapshot_map(struct dm_target *ti, struct dm_bio *bio);
enum dm_mapio merge_map(struct dm_target *ti, struct dm_bio *bio);
enum dm_endio snapshot_end_io(struct dm_target *ti, struct dm_bio *bio);
/* Points a bio at its place on the COW device. */
void snap_remap(struct snapshot *s, struct dm_bio *bio, uint64_t new_chunk);

/* extent.c */
int snapshot_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out);
uint64_t snapshot_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors);

/* copy.c */
void to_start_init(struct to_start *start);
void to_start_run(struct to_start *start); /* no locks held */
/*
 * Claims a chunk for a copy: 0, and *pe.  1: it is another's, with whom the bio (may be NULL) is parked.  -EINTR: its
 * caller is dead.  The lock of the origin's snapshots may be held.
 */
int pending_claim(struct snapshot *s, uint64_t chunk, struct dm_bio *bio, struct pending **pe);
/* No copy is needed: the chunk is complete. */
void pending_drop(struct pending *pe, struct to_start *start);
/*
 * Adds the copy to `start`.  first: the write to the snapshot that it is for; or waits: one to the origin, that is
 * parked with it; or neither.  False: the store is full, and the claim given up.
 */
bool pending_begin(struct pending *pe, struct dm_bio *first, struct dm_bio *waits, struct to_start *start);
/* Looks at bios again that were parked; no locks held. */
void run_parked(struct dm_bio_list *bios);

/* invalid.c */
/* The snapshot is of no use any more; why is for the log.  Locks may be held; s is in use. */
void snap_invalidate(struct snapshot *s, const char *why);
void snap_invalid_init(struct snapshot *s);
/* After its store was opened: what the state knows of it, or its stand-in (missed). */
int snap_invalid_known(struct snapshot *s, bool missed, GError **err);
void snap_invalid_begin(struct snapshot *s); /* at resume: goes on trying to mark the store */
void snap_invalid_end(struct snapshot *s);   /* at suspend, before a handover and at the end: tries it now, and stops */
struct dm_wq *snap_invalid_wq(void);
/* The row that says so in the state. */
int snap_rows_load(struct dm_rows *rows, bool *invalid, GError **err);
bool snap_rows_mark(struct dm_rows *rows); /* durably; waits */

/* absent.c */
extern const struct dm_target_type snapshot_absent;
/* For the first write to an origin with absent snapshots: true, or the bio is kept until it may go (or ends). */
bool absent_guard(struct origin *o, struct dm_bio *bio);
bool absent_missed(struct origin *o, struct dm_mapped *md); /* whether that of a device has missed a write */
bool absent_names(struct origin *o, GString *out);          /* of those that have missed none; false: there are none */

/* origin.c */
struct origin *origin_get(struct dm_dev *dev);
void origin_put(struct origin *o);
/* The lock by which this thread looks at the snapshots, and at their cow. */
pthread_mutex_t *origin_slot(struct origin *o);
void origin_lock_all(struct origin *o);
void origin_unlock_all(struct origin *o);
/*
 * Sees to it that [bio->sector, +sectors) of the origin may be written.  True: now.  False: the bio was kept, and
 * its go() is called when it may.  guard_init() first; no locks held.
 */
void guard_init(struct origin *o, struct dm_bio *bio, void (*go)(struct dm_bio *));
bool origin_guard(struct origin *o, struct dm_bio *bio);

/* merge.c */
void merge_init(struct snapshot *s);
void merge_start(struct snapshot *s);
void merge_stop(struct snapshot *s); /* waits */

#endif
