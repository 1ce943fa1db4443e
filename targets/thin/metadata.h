/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A pool's metadata: which virtual block of which thin device is where, how often each data block is referenced, and
 * the details of every device.
 *
 * The superblock, block 0 of the metadata device, little endian:
 *
 *     0  u32 checksum (of all after it)     4  u32 flags: 1 needs_check
 *     8  u64 own block number, 0           16  uuid, 16 bytes
 *    32  u64 magic 27022010                40  u32 version 2
 *    44  u32 time                          48  u64 transaction id
 *    56  u64 held root: a copy of the superblock for userspace, or 0
 *    64  data space map's root, 128 bytes
 *   192  metadata space map's root, 128 bytes
 *   320  u64 mappings: btree, device -> btree, virtual block -> data block << 24 | time
 *   328  u64 details: btree, device -> device details
 *   336  u32 sectors of a data block       340  u32 sectors of a metadata block, 8
 *   344  u64 metadata blocks               352  u32 compatible, 356 read-only compatible, 360 incompatible features
 *
 * Device details: u64 mapped blocks, u64 transaction id at creation, u32 time at creation, u32 time of the last
 * snapshot.  A mapping older than that is (or was) shared.
 *
 * Locks: `change` is held by whoever changes anything and across a commit; `root` is held for reading by lookups, and
 * for writing by a change while the trees are in flux.  A commit moves no mapping, so lookups go on during its I/O.
 */
#ifndef DMFS_TARGETS_THIN_METADATA_H
#define DMFS_TARGETS_THIN_METADATA_H

#include <pthread.h>

#include <dmfs/metadata.h>
#include <dmfs/ranges.h>

#include "map_cache.h"

#define THIN_MAX_ID ((1u << 24) - 1)
#define THIN_NEEDS_CHECK 1u
#define THIN_NO_BLOCK UINT64_MAX

struct thin_md;

/* An open thin device; details of devices that changed stay until the commit. */
struct thin_dev {
	struct thin_md *meta;
	uint64_t id;
	unsigned opens;
	_Atomic uint64_t cookie; /* its name in the mapping cache; a new one forgets all its mappings there */
	_Atomic uint64_t mapped;
	_Atomic uint64_t top; /* the highest mapped block + 1; THIN_NO_BLOCK: it cannot be told.  Of an open device */
	uint64_t transaction;
	uint32_t created;
	_Atomic uint32_t snapshotted;
	atomic_bool changed; /* in this transaction */
	atomic_bool aborted; /* changes were lost in an aborted transaction */
	bool has_last;       /* under `change`: the block last given a data block, and that */
	uint64_t last_block, last_data;
};

/* What the pool does at points of a commit. */
struct thin_md_ops {
	int (*flush_data)(void *pool);   /* data that new mappings lead to, before they become durable */
	void (*drain)(void *pool);       /* waits for bios on their way that may have looked up what is freed now */
	void (*changed)(void *pool);     /* there is something to commit */
};

struct thin_md_stats {
	uint64_t transaction, meta_used, meta_total, data_used, data_total, held_root;
	bool needs_check, failed;
};

struct thin_md {
	pthread_mutex_t change;
	pthread_cond_t turn;
	atomic_uint waiting; /* for `change` */
	uint64_t served;
	unsigned yielding;
	pthread_rwlock_t root_lock;
	struct dm_md md;
	struct dm_sm *data_sm;
	struct dm_btree_info info, top, bottom, details;
	dm_block_t root, details_root;
	_Atomic uint64_t held_root, transaction;
	uint32_t time, block_sectors;
	uint64_t reserve;   /* metadata blocks kept for commits */
	GHashTable *devices; /* id -> struct thin_dev */
	struct map_cache *cache;
	uint64_t next_cookie;
	bool dirty, read_only;
	bool torn; /* a change has failed half-way: the transaction must not be committed */
	atomic_bool failed; /* nothing but closing is possible */
	uint64_t generation; /* transactions aborted */
	/* Blocks the allocator must pass over although they are free. */
	struct dm_ranges reserved;   /* chosen for a mapping that is not yet made */
	struct dm_ranges quarantine; /* allocated and freed in this transaction; bios may be on their way there */
	struct dm_ranges discarding; /* being discarded on the data device */
	struct dm_ranges *freed;     /* if set, collects the data blocks that are freed */
	_Atomic uint64_t meta_free, meta_total, data_free, data_total; /* for who holds no lock */
	_Atomic uint64_t data_available; /* free and not set aside */
	_Atomic uint64_t releases; /* how often blocks set aside became free again */
	_Atomic uint64_t no_space_at; /* releases when the allocator last found none */
	const struct thin_md_ops *ops;
	void *pool;
};

/*
 * Opens a metadata device, formatting it if its first block is all zeroes and may_format.  -EPERM: not formatted;
 * -EINVAL, -EILSEQ, -ENOTBLK: not (good) metadata.
 */
int thin_md_open(struct dm_dev *dev, uint32_t block_sectors, bool may_format, const struct thin_md_ops *ops, void *pool,
		 struct thin_md **out, GError **err);
/* What is not committed is lost.  All devices must be closed. */
void thin_md_close(struct thin_md *meta);
/* The same device, opened by another table. */
void thin_md_set_dev(struct thin_md *meta, struct dm_dev *dev);

/* 0 also if there was nothing to do, then *did (may be NULL) is false. */
int thin_md_commit(struct thin_md *meta, bool *did);
/* The next commit writes, even if nothing has changed. */
void thin_md_touch(struct thin_md *meta);
/* Goes back to the last commit.  On an error the metadata is failed. */
int thin_md_abort(struct thin_md *meta);
/* Whether a change has failed half-way, so that only thin_md_abort() is left. */
bool thin_md_is_torn(struct thin_md *meta);
int thin_md_set_needs_check(struct thin_md *meta);
void thin_md_set_read_only(struct thin_md *meta, bool read_only);
void thin_md_get_stats(struct thin_md *meta, struct thin_md_stats *st);
/* Free metadata blocks beyond the reserve, and free data blocks, at the last look. */
uint64_t thin_md_free_meta(struct thin_md *meta);
uint64_t thin_md_free_data(struct thin_md *meta);
/* Whether there may be blocks for the allocator that last found none. */
bool thin_md_has_space(struct thin_md *meta);
int thin_md_resize_data(struct thin_md *meta, uint64_t blocks);
int thin_md_resize_meta(struct thin_md *meta, uint64_t blocks);

/* Devices: -EEXIST, -ENODATA (no such device), -EBUSY (open). */
int thin_md_create(struct thin_md *meta, uint64_t id);
int thin_md_snap(struct thin_md *meta, uint64_t id, uint64_t origin);
/* Takes at most max mappings away; the device goes with the last one, and *done is true. */
int thin_md_delete(struct thin_md *meta, uint64_t id, uint64_t max, bool *done);
int thin_md_open_device(struct thin_md *meta, uint64_t id, struct thin_dev **out);
void thin_md_close_device(struct thin_dev *td);

int thin_md_set_transaction(struct thin_md *meta, uint64_t from, uint64_t to); /* -EINVAL: from is not the current one */
int thin_md_hold(struct thin_md *meta);    /* -EBUSY: there is a held root already */
int thin_md_release(struct thin_md *meta); /* -EINVAL: there is none */

struct thin_mapping {
	uint64_t block; /* of the data device */
	bool shared;
};

/*
 * Any thread, concurrently.  -ENODATA: not mapped; -EINPROGRESS where the caller must not wait (dm_may_wait()), and it
 * is not in memory or just being changed.
 */
int thin_md_find(struct thin_dev *td, uint64_t block, struct thin_mapping *out);
/*
 * The first mapped block at or after one, and the blocks mapped from there on without a gap (as far as one leaf tells).
 */
int thin_md_find_run(struct thin_dev *td, uint64_t block, uint64_t *first, uint64_t *run);
int thin_md_highest(struct thin_dev *td, uint64_t *block); /* without waiting; -ENODATA: nothing is mapped */
/* Sets a free data block aside for a block, for thin_md_insert() or thin_md_unreserve().  -ENOSPC. */
int thin_md_reserve(struct thin_dev *td, uint64_t block, uint64_t *data_block);
void thin_md_unreserve(struct thin_md *meta, uint64_t data_block);
/*
 * Maps a block that is mapped to expected now (THIN_NO_BLOCK: not mapped) to a reserved data block.  -EAGAIN: it is
 * mapped otherwise.
 */
int thin_md_insert(struct thin_dev *td, uint64_t block, uint64_t expected, uint64_t data_block);
/* Maps an unmapped block to a new data block in one go; -EAGAIN, -ENOSPC. */
int thin_md_provision(struct thin_dev *td, uint64_t block);
/*
 * Unmaps blocks from begin to end - 1, at most max of them; *more: some are left.  freed (may be NULL) gets the data
 * blocks without references now; they stay unallocated until thin_md_discarded().
 */
int thin_md_remove(struct thin_dev *td, uint64_t begin, uint64_t end, uint64_t max, struct dm_ranges *freed, bool *more);
void thin_md_discarded(struct thin_md *meta, struct dm_ranges *freed);

/* Between batches: waits until those who want to change something now have done so. */
void thin_md_yield(struct thin_md *meta);

/* Inside the metadata: metadata.c */
struct thin_dev *thin_md_get(struct thin_md *meta, uint64_t id, bool create, int *error);
/* Sets td->top; the same locks. */
void thin_md_read_top(struct thin_dev *td);
int thin_md_begin(struct thin_md *meta); /* takes the locks for a change; fails on failed or read-only metadata */
int thin_md_end(struct thin_md *meta, bool changed, int error); /* the error */
void thin_md_released(struct thin_md *meta); /* `change` is held */

#endif
