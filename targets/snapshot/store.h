/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A COW store: hands out chunks of the COW device and keeps exceptions on it.
 *
 * snap_alloc() gives a chunk; when its data is written (not necessarily flushed) snap_commit() makes the exception
 * durable and says so.  Exceptions become durable in the order their chunks were given out, so that a crash leaks no
 * chunk; those that are ready while a commit is under way are made together by the next one.  Nothing here waits for a
 * bio except what is marked (sync).
 *
 * Units: chunks are numbered from the begin of each device; sectors are 512 bytes.
 */
#ifndef DMFS_SNAPSHOT_STORE_H
#define DMFS_SNAPSHOT_STORE_H

#include <dmfs/target.h>

enum snap_store_kind { SNAP_PERSISTENT, SNAP_TRANSIENT };

struct snap_store;

/* One exception on its way to the disk; embedded in its owner, who sets old_chunk and done. */
struct snap_commit {
	uint64_t old_chunk, new_chunk;
	void (*done)(struct snap_commit *, bool ok); /* from any thread */
	struct snap_commit *next, **prev;            /* the store's from here on */
	bool ready;
};

/* dev must outlive the store, or be replaced by snap_store_set_dev() while nothing is under way. */
struct snap_store *snap_store_new(enum snap_store_kind kind, struct dm_dev *dev);
void snap_store_free(struct snap_store *st);
void snap_store_set_dev(struct snap_store *st, struct dm_dev *dev);

/*
 * (sync) Reads a store, or makes one if the device has none.  chunk_sectors: a power of two, or 0 for the default; a
 * store that is there overrides it. check() judges the chunk size that holds; add() takes every exception and returns a
 * negative errno to refuse it.  0; 1: the store is marked invalid; or a negative errno and the text.
 */
struct snap_reader {
	uint64_t origin_sectors;
	int (*check)(void *context, uint32_t chunk_sectors, GError **err);
	int (*add)(void *context, uint64_t old_chunk, uint64_t new_chunk);
	void *context;
};
int snap_store_open(struct snap_store *st, uint32_t chunk_sectors, const struct snap_reader *rd, GError **err);

/* After snap_store_open(). */
uint32_t snap_chunk_sectors(const struct snap_store *st);

/* Gives c a free chunk, or -ENOSPC.  Each must be committed or aborted, and after an abort the store is of no use. */
int snap_alloc(struct snap_store *st, struct snap_commit *c);
void snap_commit(struct snap_store *st, struct snap_commit *c);
void snap_abort(struct snap_store *st, struct snap_commit *c);
/* No commit that is not under way will be made: they fail. */
void snap_store_fail(struct snap_store *st);
/* (sync) Then: marks the store invalid on disk, durably.  0 or a negative errno; one thread at a time. */
int snap_store_mark(struct snap_store *st);
/* Waits until no commit is under way. */
void snap_store_wait(struct snap_store *st);

void snap_usage(struct snap_store *st, uint64_t *allocated, uint64_t *total, uint64_t *metadata);

/*
 * (sync) Merging takes exceptions away from the end.  snap_merge_last() copies up to max of the last ones of
 * one area into out, in the order they stand on disk, and returns how many: 0 when none are left.
 * snap_merge_forget() takes the last n away, durably.
 */
struct snap_pair {
	uint64_t old_chunk, new_chunk;
};
int snap_merge_last(struct snap_store *st, struct snap_pair *out, unsigned max);
int snap_merge_forget(struct snap_store *st, unsigned n);

#endif
