/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Discards.  What is discarded of the origin need not be copied when it is promoted.  It is remembered in at most MAX_DBLOCKS
 * bits: one for so many blocks of the cache, a power of two.  A write to any part of them clears the bit.
 */
#include "cache.h"

#include <dmfs/rounding.h>

#define MAX_DBLOCKS (1u << 14)

int cache_discards_init(struct cache *c)
{
	c->dblock_blocks = 1;
	while (dm_div_up(c->oblocks, c->dblock_blocks) > MAX_DBLOCKS)
		c->dblock_blocks *= 2;
	c->dblocks = (uint32_t)dm_div_up(c->oblocks, c->dblock_blocks);
	c->discards = g_try_malloc0_n(c->dblocks / 64 + 1, 8);
	return c->discards ? 0 : -ENOMEM;
}

bool cache_discard_bit(struct cache *c, uint32_t dblock)
{
	return atomic_load(&c->discards[dblock / 64]) >> dblock % 64 & 1;
}

bool cache_discarded(struct cache *c, uint64_t oblock)
{
	return atomic_load_explicit(&c->any_discards, memory_order_relaxed) &&
	       cache_discard_bit(c, (uint32_t)(oblock / c->dblock_blocks));
}

void cache_undiscard(struct cache *c, uint64_t oblock)
{
	uint32_t dblock = (uint32_t)(oblock / c->dblock_blocks);

	if (cache_discarded(c, oblock))
		atomic_fetch_and(&c->discards[dblock / 64], ~(UINT64_C(1) << dblock % 64));
}

void cache_set_discarded(struct cache *c, uint64_t sector, uint64_t sectors)
{
	uint64_t step = (uint64_t)c->dblock_blocks * c->block_sectors, end;

	if (__builtin_add_overflow(sector, sectors, &end))
		return;
	for (uint64_t d = dm_div_up(sector, step); d < c->dblocks && (d + 1) * step <= end; d++) {
		atomic_store_explicit(&c->any_discards, true, memory_order_relaxed);
		atomic_fetch_or(&c->discards[d / 64], UINT64_C(1) << d % 64);
	}
}

/* What is in the cache stays as it is, and dirty if it was: only the origin's content is of no use any more. */
enum dm_mapio cache_map_discard(struct cache *c, struct dm_bio *bio, uint64_t offset)
{
	struct cache_bio *cb = bio->private;

	cb->discard_sector = offset;
	cb->discard_sectors = bio->sectors;
	if (!atomic_load(&c->passdown)) {
		dm_bio_end(bio, 0); /* end_io remembers it */
		return DM_MAPIO_SUBMITTED;
	}
	bio->dev = c->origin;
	bio->sector = offset;
	return DM_MAPIO_REMAPPED;
}
