/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The btree of persistent data: 64-bit keys, values of one size, several levels of nesting (a level's values are then
 * the roots of the next level's trees).
 *
 * Trees are immutable to their users: a change gives a new root, the old one's reference is used up (dm_tm_inc() it
 * first to keep both).  After an error other than those named, the transaction can only be abandoned.  Lookups may run
 * in several threads, changes exclude all else.
 *
 * Damaged trees give -EILSEQ (also -ENOTBLK, -EINVAL, -ENXIO from the block manager).
 */
#ifndef DMFS_BTREE_H
#define DMFS_BTREE_H

#include <dmfs/transaction_manager.h>

#define DM_BTREE_MAX_LEVELS 4
#define DM_BTREE_MAX_VALUE 512

/* What happens when references to values appear and go: n values as stored.  Functions may be NULL. */
struct dm_btree_value_type {
	void *context;
	uint32_t size; /* bytes */
	int (*inc)(void *context, const void *values, unsigned n);
	int (*dec)(void *context, const void *values, unsigned n);
	/* Replacing a value by an equal one changes no references. */
	bool (*equal)(void *context, const void *a, const void *b);
};

struct dm_btree_info {
	struct dm_tm *tm;
	unsigned levels; /* 1 to DM_BTREE_MAX_LEVELS */
	struct dm_btree_value_type vt; /* of the last level */
};

/* A new tree without keys. */
int dm_btree_empty(struct dm_btree_info *info, dm_block_t *root);
/* Drops a reference to a tree; with the last one, its nodes and its values' references. */
int dm_btree_del(struct dm_btree_info *info, dm_block_t root);

/* keys: one a level.  -ENODATA: no such key. */
int dm_btree_lookup(struct dm_btree_info *info, dm_block_t root, const uint64_t *keys, void *value);
/* The first key of the last level at or after keys[]; -ENODATA: none. */
int dm_btree_lookup_next(struct dm_btree_info *info, dm_block_t root, const uint64_t *keys, uint64_t *key,
			 void *value);
/*
 * Up to n consecutive entries from that key on, all from one leaf: their number, or -ENODATA.  keys_out and values
 * have room for n.
 */
int dm_btree_lookup_run(struct dm_btree_info *info, dm_block_t root, const uint64_t *keys, unsigned n,
			uint64_t *keys_out, void *values);
/* The last key of a tree of one level; -ENODATA: it is empty. */
int dm_btree_highest(struct dm_btree_info *info, dm_block_t root, uint64_t *key);

/* Inserts or replaces; missing trees of inner levels are made.  *inserted (may be NULL): the key is new. */
int dm_btree_insert(struct dm_btree_info *info, dm_block_t root, const uint64_t *keys, const void *value,
		    dm_block_t *new_root, bool *inserted);
/* -ENODATA: no such key, and nothing has changed. */
int dm_btree_remove(struct dm_btree_info *info, dm_block_t root, const uint64_t *keys, dm_block_t *new_root);
/*
 * Removes the keys of the last level from keys[] (inclusive) to end (exclusive), at most max of them; *removed tells
 * how many; fewer than max: none are left.
 */
int dm_btree_remove_range(struct dm_btree_info *info, dm_block_t root, const uint64_t *keys, uint64_t end,
			  uint64_t max, dm_block_t *new_root, uint64_t *removed);

/* Calls fn for each entry of a tree of one level, in order; it stops with fn's result if that is not 0. */
int dm_btree_walk(struct dm_btree_info *info, dm_block_t root,
		  int (*fn)(void *context, uint64_t key, const void *value), void *context);

/* Steps through a tree of one level, holding no locks; the tree must not change meanwhile. */
struct dm_btree_cursor {
	struct dm_btree_info *info;
	dm_block_t root;
	unsigned at, n;
	uint64_t keys[DM_META_BLOCK_SIZE / 8];
	uint8_t values[DM_META_BLOCK_SIZE];
};
/* Both -ENODATA: at the end. */
int dm_btree_cursor_begin(struct dm_btree_info *info, dm_block_t root, uint64_t from, struct dm_btree_cursor *c);
int dm_btree_cursor_next(struct dm_btree_cursor *c);
uint64_t dm_btree_cursor_get(const struct dm_btree_cursor *c, const void **value);

/* The value type of 64-bit block numbers of metadata blocks, referenced through tm. */
struct dm_btree_value_type dm_btree_block_type(struct dm_tm *tm);

#endif
