/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "map_cache.h"

#include <glib.h>
#include <stdlib.h>

struct map_cache *map_cache_new(unsigned slots_log2)
{
	size_t n = (size_t)1 << slots_log2;
	struct map_cache *c = calloc(1, sizeof(*c) + n * sizeof(c->slots[0])); /* untouched pages cost nothing */

	if (!c)
		g_error("out of memory");
	c->mask = n - 1;
	return c;
}

void map_cache_free(struct map_cache *c)
{
	free(c);
}

/* Takes a slot for writing; false: somebody else is at it. */
static bool take(struct map_slot *s, uint64_t *seq)
{
	*seq = atomic_load_explicit(&s->seq, memory_order_relaxed);
	return !(*seq & 1) && atomic_compare_exchange_strong(&s->seq, seq, *seq + 1);
}

void map_cache_set(struct map_cache *c, uint64_t cookie, uint64_t block, uint64_t value)
{
	struct map_slot *s = map_cache_slot(c, cookie, block);
	uint64_t seq;

	if (!take(s, &seq)) /* two readers at once: one of them will do */
		return;
	atomic_store_explicit(&s->cookie, cookie, memory_order_release);
	atomic_store_explicit(&s->block, block, memory_order_release);
	atomic_store_explicit(&s->value, value, memory_order_release);
	atomic_store_explicit(&s->seq, seq + 2, memory_order_release);
}

void map_cache_forget(struct map_cache *c, uint64_t cookie, uint64_t block)
{
	struct map_slot *s = map_cache_slot(c, cookie, block);
	uint64_t seq;

	if (atomic_load(&s->cookie) != cookie || atomic_load(&s->block) != block)
		return;
	if (!take(s, &seq))
		g_assert_not_reached(); /* the root lock is held for writing */
	atomic_store_explicit(&s->cookie, 0, memory_order_release);
	atomic_store_explicit(&s->seq, seq + 2, memory_order_release);
}
