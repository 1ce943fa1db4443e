/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * era's metadata: which blocks were written in which era, on the disk and in memory.
 *
 * On the disk (metadata.c has the layout) there are the era array, the era of each block's last write as far as it is
 * archived; a bitset (a "writeset") for each era that is not archived yet; and the current era's own writeset.  In
 * memory are the bits of the current era, read without a lock.
 *
 * Threads: era_md_marked() and era_md_usage() at any time from any thread; all else by one thread at a time.
 */
#ifndef ERA_METADATA_H
#define ERA_METADATA_H

#include <dmfs/io.h>

struct era_md;

/* Opens, or formats an all-zero device.  Metadata of another block size is refused. */
int era_md_open(struct dm_dev *dev, uint32_t block_sectors, struct era_md **out, GError **err);
void era_md_close(struct era_md *meta);

/* How many blocks the metadata has room for; 0 when it is fresh. */
uint32_t era_md_blocks(struct era_md *meta);
/* Makes room for so many blocks, more or fewer, while no era is current.  Durable with the next commit. */
int era_md_resize(struct era_md *meta, uint32_t blocks, GError **err);

/*
 * Archives the current era's writeset, if there is one, so that no era is current (marks are not possible) until
 * era_md_new_era(), which begins the next one and commits.
 */
int era_md_archive(struct era_md *meta);
int era_md_new_era(struct era_md *meta);

/* Whether a write to all blocks first to last is recorded in this era, durably. */
bool era_md_marked(struct era_md *meta, uint32_t first, uint32_t last);
/*
 * Records such a write: in the metadata, and with era_md_commit() on the disk, after which era_md_marked() knows of it.
 */
int era_md_mark(struct era_md *meta, uint32_t first, uint32_t last);
int era_md_commit(struct era_md *meta);

/*
 * Moves a part of the oldest archived writeset into the era array; *more: something is left to do.  Committed by
 * itself when a writeset is done with.
 */
int era_md_digest(struct era_md *meta, bool *more);

/* A copy of the metadata for programs to read while it is in use; -EINVAL: there is one, there is none. */
int era_md_take_snap(struct era_md *meta, GError **err);
int era_md_drop_snap(struct era_md *meta, GError **err);

struct era_usage {
	uint64_t used, total; /* metadata blocks */
	uint64_t snap;        /* 0: none */
	uint32_t era;
};
/* As of the last commit. */
void era_md_usage(struct era_md *meta, struct era_usage *out);

#endif
