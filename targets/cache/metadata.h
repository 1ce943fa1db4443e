/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A cache's metadata on the disk: which origin block each cache block holds, which of them are dirty, the policy's
 * hints, and which parts of the origin are discarded.
 *
 * What holds of the format: dirty bits, hints and discards are as the last clean end has left them; without one every
 * cached block counts as dirty, and hints and discards as unknown.
 *
 * One thread at a time, but for cache_meta_usage() and cache_meta_changed().  A function that changes something and
 * fails has broken the metadata (cache_meta_broken()): nothing can be committed any more, cache_meta_abort() is all
 * that is left.
 */
#ifndef CACHE_METADATA_H
#define CACHE_METADATA_H

#include <dmfs/io.h>

#define CACHE_MD_POLICY_NAME 16 /* bytes, with a zero at the end */
#define CACHE_MD_MAX_HINT 128	/* bytes */
#define CACHE_MD_MAX_OBLOCK ((UINT64_C(1) << 48) - 1)

struct cache_meta;

/* Whose hints there are. */
struct cache_meta_policy {
	char name[CACHE_MD_POLICY_NAME];
	uint32_t version[3], hint_bytes; /* 0: it keeps none */
};

struct cache_meta_counters {
	uint32_t read_hits, read_misses, write_hits, write_misses;
};

/* Opens; or formats an all-zero device, as version 1 or 2.  -EINVAL: another block size. */
int cache_meta_open(struct dm_dev *dev, uint32_t block_sectors, unsigned version, struct cache_meta **out,
		    GError **err);
void cache_meta_close(struct cache_meta *meta);

unsigned cache_meta_version(struct cache_meta *meta);
uint32_t cache_meta_blocks(struct cache_meta *meta);
bool cache_meta_clean(struct cache_meta *meta); /* the last end was a clean one */
bool cache_meta_needs_check(struct cache_meta *meta);
void cache_meta_usage(struct cache_meta *meta, uint64_t *used, uint64_t *total);
void cache_meta_counters(struct cache_meta *meta, struct cache_meta_counters *out);
/* They go to the disk with the next commit. */
void cache_meta_set_counters(struct cache_meta *meta, const struct cache_meta_counters *counters);

/* New blocks hold nothing; blocks that go must hold nothing, or what need not be kept. */
int cache_meta_resize(struct cache_meta *meta, uint32_t blocks);

/* hint: NULL where there is none of this policy's that counts. */
typedef int (*cache_meta_load_fn)(void *context, uint32_t cblock, uint64_t oblock, bool dirty, const void *hint);
/* Calls fn for each cache block in use; a result other than 0 ends it. */
int cache_meta_load(struct cache_meta *meta, const struct cache_meta_policy *policy, cache_meta_load_fn fn,
		    void *context);

int cache_meta_insert(struct cache_meta *meta, uint32_t cblock, uint64_t oblock);
int cache_meta_remove(struct cache_meta *meta, uint32_t cblock);

/* For a clean end: whether each block is dirty; each block's hint; each discard block's bit. */
int cache_meta_write_dirty(struct cache_meta *meta, bool (*dirty)(void *context, uint32_t cblock), void *context);
int cache_meta_write_hints(struct cache_meta *meta, const struct cache_meta_policy *policy,
			   void (*hint)(void *context, uint32_t cblock, void *out), void *context);
int cache_meta_write_discards(struct cache_meta *meta, uint64_t dblock_sectors, uint32_t dblocks,
			      bool (*discarded)(void *context, uint32_t dblock), void *context);
/* Calls fn for each run of discarded sectors. */
int cache_meta_load_discards(struct cache_meta *meta, void (*fn)(void *context, uint64_t sector, uint64_t sectors),
			     void *context);

/* Whether there is something to commit; any thread. */
bool cache_meta_changed(struct cache_meta *meta);
/* clean: this is a clean end. */
int cache_meta_commit(struct cache_meta *meta, bool clean);
bool cache_meta_broken(struct cache_meta *meta);
/* Gives up what was not committed, and says on the disk that the metadata needs a check. */
int cache_meta_abort(struct cache_meta *meta);

#endif
