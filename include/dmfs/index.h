/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An index: a map from numbers to numbers that is small, for as many as there are chunks of a large device.
 *
 * One open-addressing hash of 16-byte entries, filled to between 56 and 70 percent: less than 29 bytes an entry, a
 * lookup touches one or two cache lines.  All zeroes is an empty one.  No locking.
 */
#ifndef DMFS_INDEX_H
#define DMFS_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct dm_index_entry {
	uint64_t key; /* UINT64_MAX: an empty entry */
	uint64_t value : 63;
	uint64_t flag : 1; /* the owner's; 0 at first */
};

struct dm_index {
	struct dm_index_entry *slots;
	size_t size, used;
};

/* Spreads numbers over 64 bits: the upper ones may choose a shard, the lower ones are the place in its index. */
static inline uint64_t dm_index_hash(uint64_t key)
{
	uint64_t h = key * 0x9e3779b97f4a7c15u;

	return h ^ h >> 32;
}

/* Makes it empty, and frees its memory. */
void dm_index_clear(struct dm_index *ix);
/* A key's entry, or NULL; it stays where it is until the index is changed. */
struct dm_index_entry *dm_index_find(const struct dm_index *ix, uint64_t key);
/* key: below UINT64_MAX; value: below 2^63.  False, and nothing changes, if there is one of the key already. */
bool dm_index_add(struct dm_index *ix, uint64_t key, uint64_t value);
/* False if there is none. */
bool dm_index_remove(struct dm_index *ix, uint64_t key);
/* The least key that is at least `from`; UINT64_MAX if there is none.  Looks at all. */
uint64_t dm_index_next(const struct dm_index *ix, uint64_t from);

#endif
