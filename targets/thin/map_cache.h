/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A pool's cache of mappings, read without locks: a table of slots, each for the mappings that hash to it.  A slot has
 * a sequence number, odd while it is written; a reader that finds it changed has found nothing.
 *
 * Entries are set under the metadata's root lock, so what is set for reading cannot overtake what a change sets.  The
 * fields are stored with release and loaded with acquire: who sees one of a new entry sees the sequence number it was
 * written under.
 */
#ifndef DMFS_TARGETS_THIN_MAP_CACHE_H
#define DMFS_TARGETS_THIN_MAP_CACHE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct map_slot {
	_Atomic uint64_t seq, cookie, block, value;
};

struct map_cache {
	uint64_t mask;
	struct map_slot slots[];
};

struct map_cache *map_cache_new(unsigned slots_log2);
void map_cache_free(struct map_cache *c);
/* cookie: not 0. */
void map_cache_set(struct map_cache *c, uint64_t cookie, uint64_t block, uint64_t value);
void map_cache_forget(struct map_cache *c, uint64_t cookie, uint64_t block);

static inline struct map_slot *map_cache_slot(struct map_cache *c, uint64_t cookie, uint64_t block)
{
	return &c->slots[(block + cookie * 0x9e3779b97f4a7c15ull) & c->mask];
}

static inline bool map_cache_get(struct map_cache *c, uint64_t cookie, uint64_t block, uint64_t *value)
{
	struct map_slot *s = map_cache_slot(c, cookie, block);
	uint64_t seq = atomic_load_explicit(&s->seq, memory_order_acquire);
	bool hit = atomic_load_explicit(&s->cookie, memory_order_acquire) == cookie &&
		   atomic_load_explicit(&s->block, memory_order_acquire) == block;

	*value = atomic_load_explicit(&s->value, memory_order_acquire);
	return hit && !(seq & 1) && atomic_load_explicit(&s->seq, memory_order_relaxed) == seq;
}

#endif
