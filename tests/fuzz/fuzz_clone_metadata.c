/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A clone's metadata with damage behind good checksums: the input says which
 * bytes of a small clone's metadata to change and what then to do with it.  Whatever comes of it,
 * nothing may crash or run for ever, and the bits in memory stay consistent.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <dmfs/block_manager.h>
#include <dmfs/le.h>
#include <dmfs/target.h>

#include "../../targets/clone/metadata.h"

#define SECTORS 512u
#include "fuzz_mem.h"

#define BLOCKS (SECTORS / 8)
#define REGION 8u
#define REGIONS 33000u /* a bitset of two blocks */

static struct mem mem;
static uint8_t good[sizeof(mem.data)];

static int open_it(struct clone_meta **meta)
{
	return clone_meta_open(&mem.dev, (uint64_t)REGIONS * REGION, REGION, meta, NULL);
}

static void make_good(void)
{
	struct clone_meta *meta;

	mem.dev.ops = &mem_ops;
	mem.dev.mode = DM_MODE_RW;
	atomic_init(&mem.dev.refs, 1);
	if (open_it(&meta))
		abort();
	for (unsigned i = 0; i < 30000; i++)
		clone_meta_set(meta, i * 13 % REGIONS, 1);
	if (clone_meta_commit(meta, &mem.dev))
		abort();
	clone_meta_close(meta);
	memcpy(good, mem.data, sizeof good);
}

/* Which kind a block was tells its checksum's seed: superblock, bitset, btree, index, bitmap. */
static uint32_t seed_of(unsigned b)
{
	static const uint32_t seeds[] = {257649492, 595846735, 121107, 160478, 240779};
	const uint8_t *p = good + b * 4096;

	for (unsigned i = 0; i < G_N_ELEMENTS(seeds); i++)
		if (get_le32(p) == dm_bm_checksum(p + 4, 4092, seeds[i]))
			return seeds[i];
	return seeds[b % G_N_ELEMENTS(seeds)];
}

static void check(struct clone_meta *meta)
{
	uint64_t clear = 0, used, total;

	for (uint64_t r = 0; (r = clone_meta_next(meta, r, REGIONS)) < REGIONS; r++) {
		if (clone_meta_hydrated(meta, r))
			g_error("region %u is hydrated and is not", (unsigned)r);
		clear++;
	}
	if (clear + clone_meta_nr_hydrated(meta) != REGIONS || clone_meta_nr_regions(meta) != REGIONS)
		g_error("%u regions are not hydrated, %u are", (unsigned)clear, (unsigned)clone_meta_nr_hydrated(meta));
	clone_meta_usage(meta, &used, &total);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct clone_meta *meta;

	if (!mem.dev.ops)
		make_good();
	if (!size)
		return 0;
	memcpy(mem.data, good, sizeof good);
	mem_damage(&mem, &data, &size, seed_of);
	if (open_it(&meta))
		return 0;
	check(meta);
	for (; size >= 3; data += 3, size -= 3) {
		if (data[0] % 8)
			clone_meta_set(meta, (data[1] | data[2] << 8 | data[0] % 2 << 16) % REGIONS, 1);
		else
			clone_meta_commit(meta, &mem.dev);
	}
	check(meta);
	clone_meta_commit(meta, &mem.dev);
	clone_meta_close(meta);
	if (!open_it(&meta)) {
		check(meta);
		clone_meta_close(meta);
	}
	return 0;
}
