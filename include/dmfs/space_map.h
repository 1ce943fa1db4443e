/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Space maps: reference counts of blocks, kept on disk, and so the allocator of free ones (persistent-data.rst).
 *
 * There are two: of the metadata device itself (made with the transaction manager, transaction_manager.h), and of any
 * other device ("disk").  A block freed in a transaction is not handed out again before the transaction is committed.
 *
 * Changes come from one thread at a time, and not while others read.
 */
#ifndef DMFS_SPACE_MAP_H
#define DMFS_SPACE_MAP_H

#include <dmfs/block_manager.h>

struct dm_sm;
struct dm_tm;

#define DM_SM_ROOT_SIZE 32 /* bytes of a space map's root, as stored in a superblock */
/* A metadata device has at most 255 bitmap blocks of 16320 blocks each. */
#define DM_SM_METADATA_MAX_BITMAPS 255
#define DM_SM_METADATA_MAX_BLOCKS ((dm_block_t)DM_SM_METADATA_MAX_BITMAPS * (DM_META_BLOCK_SIZE - 16) * 4)

struct dm_sm *dm_sm_disk_create(struct dm_tm *tm, dm_block_t nr_blocks, int *error);
struct dm_sm *dm_sm_disk_open(struct dm_tm *tm, const void *root, size_t len, int *error);
void dm_sm_free(struct dm_sm *sm);

dm_block_t dm_sm_nr_blocks(struct dm_sm *sm);
dm_block_t dm_sm_nr_free(struct dm_sm *sm);
int dm_sm_extend(struct dm_sm *sm, dm_block_t extra);

int dm_sm_count(struct dm_sm *sm, dm_block_t b, uint32_t *count);
/* The reference counts of the blocks b to e - 1 go up or down by one. */
int dm_sm_inc(struct dm_sm *sm, dm_block_t b, dm_block_t e);
int dm_sm_dec(struct dm_sm *sm, dm_block_t b, dm_block_t e);
/* -ENOSPC when none is free; the new block's count is 1. */
int dm_sm_new_block(struct dm_sm *sm, dm_block_t *b);
/* Whether the block was free when the transaction began. */
int dm_sm_is_fresh(struct dm_sm *sm, dm_block_t b, bool *fresh);
/* Whether the transaction has freed a block that the last one had. */
bool dm_sm_has_freed(struct dm_sm *sm);

/* A disk space map's: the next block that could be allocated, without doing so; the next call goes on after it. */
int dm_sm_disk_find_free(struct dm_sm *sm, dm_block_t *b);
/*
 * Whether this very block could be allocated, -ENOSPC if not.  If it lies ahead of where dm_sm_disk_find_free() would
 * look, that goes on after it, and comes to those in between when it has come to the end.
 */
int dm_sm_disk_find_at(struct dm_sm *sm, dm_block_t b);
/* Blocks may not be busy any more: the allocator looks at all again. */
void dm_sm_disk_rewind(struct dm_sm *sm);
/* A disk space map's allocator passes over blocks for which busy() is true. */
void dm_sm_disk_set_busy(struct dm_sm *sm, bool (*busy)(void *context, dm_block_t b), void *context);
/*
 * A disk space map tells of blocks from b to e - 1 whose last reference has gone; fresh: they were free when
 * the transaction began.  The space map may not be used from there.
 */
void dm_sm_disk_set_freed(struct dm_sm *sm, void (*freed)(void *context, dm_block_t b, dm_block_t e, bool fresh),
			  void *context);

/* The root, valid after dm_tm_pre_commit(). */
void dm_sm_copy_root(struct dm_sm *sm, void *root);

/* The kinds' functions: for the transaction manager. */
struct dm_sm_ops {
	void (*free)(struct dm_sm *);
	dm_block_t (*nr_blocks)(struct dm_sm *);
	dm_block_t (*nr_free)(struct dm_sm *);
	int (*extend)(struct dm_sm *, dm_block_t extra);
	int (*count)(struct dm_sm *, dm_block_t, uint32_t *);
	int (*add)(struct dm_sm *, dm_block_t b, dm_block_t e, int delta);
	int (*new_block)(struct dm_sm *, dm_block_t *);
	int (*is_fresh)(struct dm_sm *, dm_block_t, bool *);
	int (*write)(struct dm_sm *);      /* brings its blocks up to date, before the commit's flush */
	void (*committed)(struct dm_sm *); /* the superblock is on the disk */
	void (*copy_root)(struct dm_sm *, void *);
};

struct dm_sm {
	const struct dm_sm_ops *ops;
	bool freed;
};

#endif
