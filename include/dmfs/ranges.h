/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A set of numbers, such as blocks, as sorted ranges: small where they lie together.  All zeroes is the empty set.  No
 * locking.  Looking one up takes steps as the logarithm of the number of ranges; a change may move all of them.
 */
#ifndef DMFS_RANGES_H
#define DMFS_RANGES_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct dm_range {
	uint64_t begin, end; /* end exclusive */
};

struct dm_ranges {
	GArray *array; /* struct dm_range, apart from each other; NULL: empty */
	uint64_t count; /* numbers in it */
};

void dm_ranges_add(struct dm_ranges *rs, uint64_t begin, uint64_t end);
/* The range must be in the set. */
void dm_ranges_remove(struct dm_ranges *rs, uint64_t begin, uint64_t end);
bool dm_ranges_has(const struct dm_ranges *rs, uint64_t n);
void dm_ranges_clear(struct dm_ranges *rs);
static inline unsigned dm_ranges_n(const struct dm_ranges *rs)
{
	return rs->array ? rs->array->len : 0;
}
static inline struct dm_range *dm_ranges_at(const struct dm_ranges *rs, unsigned i)
{
	return &g_array_index(rs->array, struct dm_range, i);
}

#endif
