/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A set of numbers as sorted ranges. */
#ifndef DMFS_TARGETS_THIN_RANGES_H
#define DMFS_TARGETS_THIN_RANGES_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct range {
	uint64_t begin, end; /* end exclusive */
};

struct ranges {
	GArray *array; /* struct range, apart from each other; NULL: empty */
	uint64_t count; /* numbers in it */
};

void ranges_add(struct ranges *rs, uint64_t begin, uint64_t end);
/* The range must be in the set. */
void ranges_remove(struct ranges *rs, uint64_t begin, uint64_t end);
bool ranges_has(const struct ranges *rs, uint64_t n);
void ranges_clear(struct ranges *rs);
static inline unsigned ranges_n(const struct ranges *rs)
{
	return rs->array ? rs->array->len : 0;
}
static inline struct range *ranges_at(const struct ranges *rs, unsigned i)
{
	return &g_array_index(rs->array, struct range, i);
}

#endif
