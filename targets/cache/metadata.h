/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A cache's metadata on the disk: which origin block each cache block holds, which of them are dirty, the policy's
 * hints, and which parts of the origin are discarded.
 *
 * What holds of the format: dirty bits, hints and discards are as the last clean end has left them; without one every
 * cached block counts as dirty, and hints and discards as unknown.
 *
 * One thread at a time, but for cache_md_usage() and cache_md_changed().  A function that changes something and fails has broken
 * the metadata (cache_md_broken()): nothing can be committed any more, cache_md_abort() is all that is left.
 */
#ifndef CACHE_METADATA_H
#define CACHE_METADATA_H

#include <dmfs/io.h>

#define CACHE_MD_POLICY_NAME 16 /* bytes, with a zero at the end */
#define CACHE_MD_MAX_HINT 128   /* bytes */
#define CACHE_MD_MAX_OBLOCK ((UINT64_C(1) << 48) - 1)

struct cache_md;

/* Whose hints there are. */
struct cache_md_policy {
	char name[CACHE_MD_POLICY_NAME];
	uint32_t version[3], hint_bytes; /* 0: it keeps none */
};

struct cache_md_counters {
	uint32_t read_hits, read_misses, write_hits, write_misses;
};

/* Opens; or formats an all-zero device, as version 1 or 2.  -EINVAL: another block size. */
int cache_md_open(struct dm_dev *dev, uint32_t block_sectors, unsigned version, struct cache_md **out, GError **err);
void cache_md_close(struct cache_md *md);

unsigned cache_md_version(struct cache_md *md);
uint32_t cache_md_blocks(struct cache_md *md);
bool cache_md_clean(struct cache_md *md);       /* the last end was a clean one */
bool cache_md_needs_check(struct cache_md *md);
void cache_md_usage(struct cache_md *md, uint64_t *used, uint64_t *total);
void cache_md_counters(struct cache_md *md, struct cache_md_counters *out);
/* They go to the disk with the next commit. */
void cache_md_set_counters(struct cache_md *md, const struct cache_md_counters *counters);

/* New blocks hold nothing; blocks that go must hold nothing, or what need not be kept. */
int cache_md_resize(struct cache_md *md, uint32_t blocks);

/* hint: NULL where there is none of this policy's that counts. */
typedef int (*cache_md_load_fn)(void *context, uint32_t cblock, uint64_t oblock, bool dirty, const void *hint);
/* Calls fn for each cache block in use; a result other than 0 ends it. */
int cache_md_load(struct cache_md *md, const struct cache_md_policy *policy, cache_md_load_fn fn, void *context);

int cache_md_insert(struct cache_md *md, uint32_t cblock, uint64_t oblock);
int cache_md_remove(struct cache_md *md, uint32_t cblock);

/* For a clean end: whether each block is dirty; each block's hint; each discard block's bit. */
int cache_md_write_dirty(struct cache_md *md, bool (*dirty)(void *context, uint32_t cblock), void *context);
int cache_md_write_hints(struct cache_md *md, const struct cache_md_policy *policy,
			 void (*hint)(void *context, uint32_t cblock, void *out), void *context);
int cache_md_write_discards(struct cache_md *md, uint64_t dblock_sectors, uint32_t dblocks,
			    bool (*discarded)(void *context, uint32_t dblock), void *context);
/* Calls fn for each run of discarded sectors. */
int cache_md_load_discards(struct cache_md *md, void (*fn)(void *context, uint64_t sector, uint64_t sectors),
			   void *context);

/* Whether there is something to commit; any thread. */
bool cache_md_changed(struct cache_md *md);
/* clean: this is a clean end. */
int cache_md_commit(struct cache_md *md, bool clean);
bool cache_md_broken(struct cache_md *md);
/* Gives up what was not committed, and says on the disk that the metadata needs a check. */
int cache_md_abort(struct cache_md *md);

#endif
