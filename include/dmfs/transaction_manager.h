/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The transaction manager: copy-on-write for metadata (persistent-data.rst).
 *
 * Writable blocks come from dm_tm_new_block() and dm_tm_shadow_block() only, so the blocks of the last commit stay as
 * they were until the next one is on the disk.  Changes come from one thread at a time and exclude readers of the same
 * structures; that is the caller's to arrange.
 */
#ifndef DMFS_TRANSACTION_MANAGER_H
#define DMFS_TRANSACTION_MANAGER_H

#include <dmfs/space_map.h>

struct dm_tm;

/*
 * Makes a manager with a new, or the stored, space map of the metadata device.  nr_blocks: blocks to manage (create);
 * root: the space map's root from the superblock. superblock is the block that the client keeps for itself.  The block
 * manager must outlive it.
 */
int dm_tm_create(struct dm_bm *bm, dm_block_t superblock, dm_block_t nr_blocks, struct dm_tm **tm);
int dm_tm_open(struct dm_bm *bm, dm_block_t superblock, const void *root, size_t len, struct dm_tm **tm);
/* With its metadata space map; not committed changes are lost. */
void dm_tm_free(struct dm_tm *tm);

struct dm_bm *dm_tm_bm(struct dm_tm *tm);
struct dm_sm *dm_tm_sm(struct dm_tm *tm); /* of the metadata device */

/* A disk space map that shall take part in commits (they do it by themselves). */
void dm_tm_join(struct dm_tm *tm, struct dm_sm *sm);
void dm_tm_leave(struct dm_tm *tm, struct dm_sm *sm);

/*
 * A commit: dm_tm_pre_commit() brings the space maps up to date; then the client locks the superblock, fills it in (the
 * roots included) and gives it to dm_tm_commit(), which flushes everything else, unlocks it and flushes it.  After an
 * error the only way on is to free the manager and open it again.
 */
int dm_tm_pre_commit(struct dm_tm *tm);
int dm_tm_commit(struct dm_tm *tm, struct dm_block *superblock);

/* A zeroed new block, write-locked. */
int dm_tm_new_block(struct dm_tm *tm, const struct dm_validator *v, struct dm_block **out);
/*
 * A block to write instead of orig: orig itself if it is new in this transaction and not shared, else a copy.  One
 * reference to orig becomes one to the result.  *inc_children: the copy's children got one more reference each that the
 * caller must count.
 */
int dm_tm_shadow_block(struct dm_tm *tm, dm_block_t orig, const struct dm_validator *v, struct dm_block **out,
		       bool *inc_children);
int dm_tm_read_lock(struct dm_tm *tm, dm_block_t b, const struct dm_validator *v, struct dm_block **out);
void dm_tm_unlock(struct dm_tm *tm, struct dm_block *block);

int dm_tm_inc(struct dm_tm *tm, dm_block_t b);
/* The same for n block numbers, little endian as stored. */
int dm_tm_inc_many(struct dm_tm *tm, const uint64_t *le_blocks, unsigned n);
/* -EILSEQ if the block is not referenced. */
int dm_tm_dec(struct dm_tm *tm, dm_block_t b);
int dm_tm_ref(struct dm_tm *tm, dm_block_t b, uint32_t *count);

#endif
