/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A bitset in persistent data: an array of 64-bit words, the bit of index i is bit i % 64 of word i / 64.  The word
 * last used is kept in the info, so changes reach the tree with dm_bitset_flush() or when another word is used: *root
 * may change in every call.
 */
#ifndef DMFS_BITSET_H
#define DMFS_BITSET_H

#include <dmfs/array.h>

struct dm_bitset_info {
	struct dm_array_info array;
	bool valid, dirty;
	uint32_t word;
	uint64_t bits;
};

void dm_bitset_info_init(struct dm_bitset_info *info, struct dm_tm *tm);
int dm_bitset_empty(struct dm_bitset_info *info, dm_block_t *root);
/* fn gives each bit. */
int dm_bitset_new(struct dm_bitset_info *info, dm_block_t *root, uint32_t size,
		  int (*fn)(void *context, uint32_t index, bool *value), void *context);
int dm_bitset_resize(struct dm_bitset_info *info, dm_block_t root, uint32_t old_size, uint32_t new_size,
		     bool value, dm_block_t *new_root);
int dm_bitset_del(struct dm_bitset_info *info, dm_block_t root);
int dm_bitset_set(struct dm_bitset_info *info, dm_block_t *root, uint32_t index, bool value);
int dm_bitset_test(struct dm_bitset_info *info, dm_block_t *root, uint32_t index, bool *value);
int dm_bitset_flush(struct dm_bitset_info *info, dm_block_t *root);

/* Steps through a bitset that has been flushed and does not change meanwhile; otherwise as an array's cursor. */
struct dm_bitset_cursor {
	uint32_t index, size;
	uint64_t bits; /* of the word that index is in */
	struct dm_array_cursor words;
};
int dm_bitset_cursor_begin(struct dm_bitset_info *info, dm_block_t root, uint32_t size, struct dm_bitset_cursor *c);
int dm_bitset_cursor_next(struct dm_bitset_cursor *c);
int dm_bitset_cursor_skip(struct dm_bitset_cursor *c, uint32_t n);
static inline bool dm_bitset_cursor_get(const struct dm_bitset_cursor *c)
{
	return c->bits >> c->index % 64 & 1;
}

#endif
