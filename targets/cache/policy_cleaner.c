/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * cleaner: writes all dirty blocks back and brings nothing new into the cache, to decommission it
 * (cache-policies.rst).  Its hints are smq's levels, all 0.
 */
#include "policy.h"

#include <dmfs/le.h>

enum { DIRTY = 1, BUSY = 2 };

struct cleaner {
	uint32_t cblocks, at; /* where it looks next */
	uint32_t nr_dirty, nr_busy; /* of the dirty ones, those being written back */
	uint8_t *state;
};

static void *cleaner_create(uint32_t cblocks, uint64_t oblocks, uint32_t block_sectors)
{
	struct cleaner *c = g_new0(struct cleaner, 1);

	c->cblocks = cblocks;
	c->state = g_try_malloc0((size_t)cblocks + 1);
	if (!c->state)
		g_clear_pointer(&c, g_free);
	return c;
}

static void cleaner_destroy(void *policy)
{
	struct cleaner *c = policy;

	g_free(c->state);
	g_free(c);
}

static void cleaner_print(void *policy, GString *out)
{
	g_string_append_c(out, '0');
}

static void cleaner_dirty(void *policy, uint32_t cblock, bool dirty)
{
	struct cleaner *c = policy;

	if (!(c->state[cblock] & DIRTY) == !dirty)
		return;
	c->state[cblock] ^= DIRTY;
	c->nr_dirty += dirty ? 1 : -1u;
	if (c->state[cblock] & BUSY)
		c->nr_busy += dirty ? 1 : -1u;
}

static void cleaner_load(void *policy, uint32_t cblock, bool dirty, const void *hint)
{
	cleaner_dirty(policy, cblock, dirty);
}

static void cleaner_hit(void *policy, uint32_t cblock, bool write)
{
}

static bool cleaner_miss(void *policy, uint64_t oblock, bool write)
{
	return false;
}

static bool cleaner_take_free(void *policy, uint32_t *cblock)
{
	return false;
}

static bool cleaner_work(void *policy, enum cache_room room, struct cache_work *out)
{
	struct cleaner *c = policy;

	if (c->nr_dirty == c->nr_busy)
		return false;
	while (c->state[c->at] != DIRTY)
		c->at = c->at + 1 < c->cblocks ? c->at + 1 : 0;
	c->state[c->at] |= BUSY;
	c->nr_busy++;
	*out = (struct cache_work){.op = CACHE_WRITEBACK, .cblock = c->at};
	return true;
}

static void cleaner_done(void *policy, const struct cache_work *work, bool success)
{
	struct cleaner *c = policy;

	if (c->state[work->cblock] & DIRTY)
		c->nr_busy--;
	c->state[work->cblock] &= (uint8_t)~BUSY;
}

static void cleaner_removed(void *policy, uint32_t cblock)
{
	cleaner_dirty(policy, cblock, false);
}

static void cleaner_hint(void *policy, uint32_t cblock, void *out)
{
	put_le32(out, 0);
}

static void cleaner_tick(void *policy)
{
}

const struct cache_policy_type cache_policy_cleaner = {
	.name = "cleaner",
	.version = {2, 0, 0},
	.hint_bytes = 4,
	.create = cleaner_create,
	.destroy = cleaner_destroy,
	.print = cleaner_print,
	.load = cleaner_load,
	.hit = cleaner_hit,
	.miss = cleaner_miss,
	.take_free = cleaner_take_free,
	.dirty = cleaner_dirty,
	.work = cleaner_work,
	.done = cleaner_done,
	.removed = cleaner_removed,
	.hint = cleaner_hint,
	.tick = cleaner_tick,
};
