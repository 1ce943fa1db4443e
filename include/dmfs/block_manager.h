/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The block manager: fixed-size metadata blocks of a device behind read and write locks, checked and checksummed by
 * validators, cached in bounded memory (persistent-data.rst).
 *
 * Locks are per block and held for short times.  Several threads may read-lock one block; a write lock excludes all
 * others.  A thread must not lock a block twice.  Write and then anything fails with -EDEADLK: a cycle in damaged
 * metadata ends there.  Read and then write would wait for ever.
 *
 * A dirty block may reach the disk at any time after its unlock.  So only blocks that nothing committed refers to may
 * be written, except between the dm_bm_flush() calls of a commit.
 */
#ifndef DMFS_BLOCK_MANAGER_H
#define DMFS_BLOCK_MANAGER_H

#include <dmfs/io.h>

typedef uint64_t dm_block_t;

#define DM_META_BLOCK_SIZE 4096u
#define DM_META_BLOCK_SECTORS 8u

struct dm_bm;
struct dm_block; /* a locked block */

/* What belongs into every block of a kind: called with the context and the block's whole content. */
struct dm_validator {
	const char *name;
	/* Fills in checksum and block number before a write. */
	void (*prepare)(void *context, dm_block_t where, void *data, size_t size);
	/* 0; -ENOTBLK: a block from elsewhere; -EILSEQ: damaged. */
	int (*check)(void *context, dm_block_t where, const void *data, size_t size);
	void *context; /* what a checksum depends on besides, a salt for example */
};

/* cache_bytes bounds the memory for unlocked blocks.  The device must stay; the manager takes no reference. */
struct dm_bm *dm_bm_new(struct dm_dev *dev, unsigned block_size, size_t cache_bytes);
/* Drops everything not flushed.  No locks may be held. */
void dm_bm_free(struct dm_bm *bm);

/* The same device by another handle, while no block is locked and nobody calls. */
void dm_bm_set_dev(struct dm_bm *bm, struct dm_dev *dev);

unsigned dm_bm_block_size(struct dm_bm *bm);
/* Whole blocks on the device, now. */
dm_block_t dm_bm_nr_blocks(struct dm_bm *bm);
/* Bytes of cached blocks, now. */
size_t dm_bm_memory(struct dm_bm *bm);

/*
 * Lock a block.  validator may be NULL (no check, no checksum).  Errors: a read's errno, the validator's, -EINVAL for a
 * block cached under another validator, -EIO past the end of the device, -EPERM for a write lock of a read-only
 * manager; -EINPROGRESS where the caller must not wait (dm_may_wait(): in map()) and the block is not there at once.
 */
int dm_bm_read_lock(struct dm_bm *bm, dm_block_t b, const struct dm_validator *v, struct dm_block **out);
int dm_bm_write_lock(struct dm_bm *bm, dm_block_t b, const struct dm_validator *v, struct dm_block **out);
/* Without reading it: the content is all zeroes. */
int dm_bm_write_lock_zero(struct dm_bm *bm, dm_block_t b, const struct dm_validator *v, struct dm_block **out);
void dm_bm_unlock(struct dm_block *block);

/*
 * Begins to read n blocks that will be locked soon, those that are not cached, and returns at once.  A wish: what the
 * memory has no room for is not read, and errors come from the lock.  Blocks beyond the device's end are left out.
 */
void dm_bm_prefetch(struct dm_bm *bm, dm_block_t b, unsigned n);

dm_block_t dm_block_location(const struct dm_block *block);
void *dm_block_data(struct dm_block *block);

/* Writes all dirty blocks, in ascending order, then flushes the device.  No write locks may be held. */
int dm_bm_flush(struct dm_bm *bm);

/* A block that is not needed any more: a dirty one need not be written. */
void dm_bm_forget(struct dm_bm *bm, dm_block_t b);

void dm_bm_set_read_only(struct dm_bm *bm, bool read_only);
bool dm_bm_is_read_only(struct dm_bm *bm);

/* CRC-32C as metadata blocks have it, started with all ones and combined with the structure's own seed. */
uint32_t dm_bm_checksum(const void *data, size_t len, uint32_t xor_seed);

#endif
