/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * era's metadata: which blocks were written in which era, on the disk and in memory.
 *
 * On the disk (metadata.c has the layout) there are the era array, the era of each block's last write as far as it is
 * archived; a bitset (a "writeset") for each era that is not archived yet; and the current era's own writeset.  In
 * memory are the bits of the current era, read without a lock.
 *
 * Threads: era_meta_marked() and era_meta_usage() at any time from any thread; all else by one thread at a time.
 */
#ifndef ERA_METADATA_H
#define ERA_METADATA_H

#include <dmfs/io.h>

struct era_meta;

/* Opens, or formats an all-zero device.  Metadata of another block size is refused. */
int era_meta_open(struct dm_dev *dev, uint32_t block_sectors, struct era_meta **out, GError **err);
void era_meta_close(struct era_meta *meta);

/* How many blocks the metadata has room for; 0 when it is fresh. */
uint32_t era_meta_blocks(struct era_meta *meta);
/* Makes room for so many blocks, more or fewer, while no era is current.  Durable with the next commit. */
int era_meta_resize(struct era_meta *meta, uint32_t blocks, GError **err);

/*
 * Archives the current era's writeset, if there is one, so that no era is current (marks are not possible) until
 * era_meta_new_era(), which begins the next one and commits.
 */
int era_meta_archive(struct era_meta *meta);
int era_meta_new_era(struct era_meta *meta);

/* Whether a write to all blocks first to last is recorded in this era, durably. */
bool era_meta_marked(struct era_meta *meta, uint32_t first, uint32_t last);
/*
 * Records such a write: in the metadata, and with era_meta_commit() on the disk, after which era_meta_marked() knows of
 * it.
 */
int era_meta_mark(struct era_meta *meta, uint32_t first, uint32_t last);
int era_meta_commit(struct era_meta *meta);

/*
 * Moves a part of the oldest archived writeset into the era array; *more: something is left to do.  Committed by
 * itself when a writeset is done with.
 */
int era_meta_digest(struct era_meta *meta, bool *more);

/* A copy of the metadata for programs to read while it is in use; -EINVAL: there is one, there is none. */
int era_meta_take_snap(struct era_meta *meta, GError **err);
int era_meta_drop_snap(struct era_meta *meta, GError **err);

struct era_usage {
	uint64_t used, total; /* metadata blocks */
	uint64_t snap;        /* 0: none */
	uint32_t era;
};
/* As of the last commit. */
void era_meta_usage(struct era_meta *meta, struct era_usage *out);

#endif
