/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which block of the origin is where in the cache, and which blocks of the cache are free.
 *
 * An entry stands for a block of the cache and is called by that block's number.  Entries that hold something are found
 * by the origin's block (its number, not its sector), in one of some shards, each with a lock of its own.  64 blocks in
 * a row are in one shard.  Several entries may hold versions of one block: the newest is found, the others lie beneath.
 *
 * A shard keeps its entries that are not on their way to the origin in the order they came, the oldest first, all that
 * are committed before all others.
 *
 * Memory: 32 bytes an entry, 4 for its bucket, a bit and a bit for whether it is free; nothing is ever added.
 *
 * All calls on a shard or an entry that is in use need the shard's lock.  The map of free blocks needs none.  While the
 * index is filled, each shard by one thread alone, nothing does.
 */
#ifndef WRITECACHE_INDEX_H
#define WRITECACHE_INDEX_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define WC_NONE UINT32_MAX
#define WC_SHARDS 64u
#define WC_GROUP 64u /* blocks in a row that are in one shard */

enum wc_state {
	WC_FREE,       /* not in the index: free, or allocated by a write that has not ended */
	WC_NEW,	       /* written, and not committed */
	WC_COMMITTING, /* a commit has begun that will make it durable */
	WC_COMMITTED,
	WC_WRITEBACK, /* committed, on its way to the origin */
	WC_FREEING,   /* not needed any more; free when that is durable */
	WC_DROPPED,   /* not in the index; free when its last user has gone */
};

#define WC_WRITTEN 1u /* WC_WRITEBACK and then WC_FREEING: counted among those under writeback */

struct wc_entry {
	uint64_t block;	     /* of the origin */
	uint32_t chain;	     /* the next of the bucket */
	uint32_t next, prev; /* in the order they came; of WC_FREEING: next of the shard's list */
	uint32_t age_ms;     /* when it came, of any clock that wraps */
	uint32_t users;	     /* bios that read or write it now */
	uint16_t writers;    /* of them, those that write it in place */
	uint8_t state, flags;
};

struct wc_shard {
	pthread_mutex_t lock;
	uint32_t *buckets;
	uint32_t oldest, newest; /* in the order they came */
	uint32_t freeing;	 /* list of those to be freed */
	_Atomic uint32_t count;	 /* entries in it, to see without the lock that there are none */
} __attribute__((aligned(128)));

struct wc_index {
	uint32_t n;
	struct wc_entry *entries;
	uint32_t *buckets, shard_buckets;
	_Atomic uint64_t *free, *summary; /* a bit a block; a bit for each word of that, which may be set too many */
	_Atomic uint32_t cursor;	  /* where the next free block is looked for */
	_Atomic int64_t n_free;
	_Atomic uint64_t touched; /* a bit for each shard that may have something for a commit */
	struct wc_shard shards[WC_SHARDS];
};

/* All are WC_FREE, and none is in the map of free blocks yet.  NULL: there is not so much memory. */
struct wc_index *wc_index_new(uint32_t n);
void wc_index_free(struct wc_index *ix);

struct wc_shard *wc_shard_of(struct wc_index *ix, uint64_t block);
/* The newest entry of a block, or WC_NONE; the next older one of the same block. */
uint32_t wc_find(struct wc_index *ix, struct wc_shard *s, uint64_t block);
uint32_t wc_older(struct wc_index *ix, uint32_t e);
/* Puts an entry in, as the newest of the block and the last that came. */
void wc_insert(struct wc_index *ix, struct wc_shard *s, uint32_t e, uint64_t block, enum wc_state state,
	       uint32_t age_ms);
/* For who looks for many blocks: where a block would be, to have it fetched in time, and then found and put in there.
 */
uint32_t *wc_bucket_of(struct wc_index *ix, struct wc_shard *s, uint64_t block);
uint32_t wc_find_in(struct wc_index *ix, const uint32_t *bucket, uint64_t block);
void wc_insert_in(struct wc_index *ix, struct wc_shard *s, uint32_t *bucket, uint32_t e, uint64_t block,
		  enum wc_state state, uint32_t age_ms);
/* Takes it out of the order, and out of the index. */
void wc_unqueue(struct wc_index *ix, struct wc_shard *s, uint32_t e);
void wc_remove(struct wc_index *ix, struct wc_shard *s, uint32_t e);
/* Puts an entry that was taken out of the order back, as the oldest. */
void wc_requeue(struct wc_index *ix, struct wc_shard *s, uint32_t e);
/* An entry that is out of the order is to be freed.  Its shard is touched then, as by wc_insert() of a WC_NEW. */
void wc_to_free(struct wc_index *ix, struct wc_shard *s, uint32_t e);
void wc_touch(struct wc_index *ix, struct wc_shard *s);

/* Takes a free block, the next in a row where that is possible; WC_NONE: there is none. */
uint32_t wc_take_free(struct wc_index *ix);
/* This one, if it is free. */
bool wc_take_free_at(struct wc_index *ix, uint32_t e);
void wc_put_free(struct wc_index *ix, uint32_t e);

static inline uint32_t wc_n_free(const struct wc_index *ix)
{
	int64_t n = atomic_load(&ix->n_free);

	return n < 0 ? 0 : (uint32_t)n;
}

#endif
