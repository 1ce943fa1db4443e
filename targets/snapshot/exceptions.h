/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Completed exceptions in memory: which chunk of the origin lies where on the COW store.
 *
 * One open-addressing hash of 16-byte entries, filled to between 56 and 70
 * percent: less than 29 bytes an exception, a lookup touches one or two cache
 * lines.  A set belongs to one shard of a snapshot and is guarded by its lock.
 */
#ifndef DMFS_SNAPSHOT_EXCEPTIONS_H
#define DMFS_SNAPSHOT_EXCEPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct exception {
	uint64_t old_chunk; /* UINT64_MAX: an empty entry */
	uint64_t new_chunk : 63;
	uint64_t draining : 1; /* reads of the origin that began before may be under way */
};

struct exception_set {
	struct exception *slots;
	size_t size, used;
};

/* Spreads chunk numbers over 64 bits: the upper ones choose a shard, the lower ones the place in its set. */
static inline uint64_t exception_hash(uint64_t chunk)
{
	uint64_t h = chunk * 0x9e3779b97f4a7c15u;

	return h ^ h >> 32;
}

void exceptions_clear(struct exception_set *set);
/* The entry of a chunk, or NULL; it stays where it is until the set is changed. */
struct exception *exceptions_find(const struct exception_set *set, uint64_t old_chunk);
/* False if the chunk has an exception already. */
bool exceptions_add(struct exception_set *set, uint64_t old_chunk, uint64_t new_chunk);
/* False if there is none. */
bool exceptions_remove(struct exception_set *set, uint64_t old_chunk);
/* The least chunk with an exception that is at least `from`; UINT64_MAX if there is none.  Looks at all. */
uint64_t exceptions_next(const struct exception_set *set, uint64_t from);

#endif
