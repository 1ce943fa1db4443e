/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A metadata device: what the formats of persistent data that begin with a superblock have in common, opening,
 * formatting and committing it, and a copy of it for programs to read (persistent-data.rst).
 *
 * The superblock is block 0, and its head is the same in all of them, little endian:
 *
 *     0  u32  CRC-32C of the rest of the block, with the format's seed
 *     4  u32  flags
 *     8  u64  number of this block
 *    16       uuid, 16 bytes, unused
 *    32  u64  magic
 *    40  u32  version
 *
 * Behind it each format has its own numbers and roots, the root of the metadata space map among them (128 bytes, of
 * which it takes DM_SM_ROOT_SIZE).
 *
 * Calls come from one thread at a time, but for dm_md_usage().  After an error of a commit or of a change all that is
 * left is to close the metadata, and to open it as the last commit left it.
 */
#ifndef DMFS_METADATA_H
#define DMFS_METADATA_H

#include <dmfs/btree.h>
#include <dmfs/error.h>

#define DM_MD_SUPERBLOCK 0
#define DM_MD_FLAGS 4 /* where they are in the superblock */

struct dm_md;

/* A format: a constant.  sb is a whole superblock. */
struct dm_md_format {
	const char *name; /* what lines of the log begin with */
	uint64_t magic;
	uint32_t seed;
	uint32_t min_version, max_version; /* that are known; 0, 0: whatever is there */
	unsigned sm_root;   /* where the metadata space map's root is */
	size_t cache_bytes; /* of memory, for blocks */
	/* Takes the numbers and roots from a superblock; 0, or a negative errno (with a text): not what is wanted. */
	int (*read)(struct dm_md *md, const uint8_t *sb, GError **err);
	/* The transaction manager is there: sets up what stands on it.  sb NULL: all is new, and gets its roots. */
	int (*begin)(struct dm_md *md, const uint8_t *sb);
	/* A commit begins: what is in memory alone goes into the trees.  May be NULL. */
	int (*prepare)(struct dm_md *md);
	/* Then fills in all behind the head, but for the metadata space map's root. */
	void (*fill)(struct dm_md *md, uint8_t *sb);
};

/* Embedded in the format's own struct. */
struct dm_md {
	const struct dm_md_format *format;
	struct dm_validator validator; /* of superblocks */
	struct dm_dev *dev;
	struct dm_bm *bm;
	struct dm_tm *tm; /* NULL: not open */
	uint32_t flags, version; /* as they are to be in the superblock */
	_Atomic uint64_t used, total;
};

/* Before all else.  Takes no reference to the device.  version: what it is formatted as. */
void dm_md_init(struct dm_md *md, const struct dm_md_format *format, struct dm_dev *dev, uint32_t version);
/*
 * Opens it; formats it, if its first block is all zeroes.  *fresh tells of that, also after an error: -EPERM: it is,
 * and it may not be formatted.  -EINVAL, -EILSEQ, -ENOTBLK: not (good) metadata of this format.
 */
int dm_md_open(struct dm_md *md, bool may_format, bool *fresh, GError **err);
/* Only opens it. */
int dm_md_load(struct dm_md *md, GError **err);
/* What is not committed is lost.  As before dm_md_init(); so does nothing to what is all zeroes. */
void dm_md_close(struct dm_md *md);

int dm_md_commit(struct dm_md *md);
/* Metadata blocks, as of the last commit; any thread. */
void dm_md_usage(struct dm_md *md, uint64_t *used, uint64_t *total);
/* The same of a device: as many of its blocks as a metadata space map can have. */
uint64_t dm_md_dev_blocks(struct dm_dev *dev);

/* A tree whose root a superblock has. */
struct dm_md_root {
	unsigned at;
	struct dm_btree_info *info;
};

/*
 * A metadata snapshot: a copy of the superblock as the last commit left it, which holds these trees.  edit() takes out
 * of it what is not to be read.  *held is where it is; release() drops copy and trees and sets it to 0.  Both are to
 * be committed.  *held is as it was where nothing has been changed.
 */
int dm_md_hold(struct dm_md *md, const struct dm_md_root *roots, unsigned n, void (*edit)(uint8_t *sb),
	       dm_block_t *held);
int dm_md_release(struct dm_md *md, const struct dm_md_root *roots, unsigned n, dm_block_t *held);

#endif
