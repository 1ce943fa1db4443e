/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * era's metadata with damage behind good checksums: the input says which bytes of a small device's metadata to change
 * and what then to do with it.  Whatever comes of it, nothing may crash or run for ever, and what is marked in memory
 * was marked.
 */
#include <stdlib.h>

#include <dmfs/target.h>

#include "../../targets/era/metadata.h"

#define SECTORS 512u
#include "fuzz_mem.h"

#define BLOCKS 4000u /* a bitset and an array of several blocks */

static struct mem mem;
static uint8_t good[sizeof(mem.data)];

static void make_good(void)
{
	struct era_meta *md;

	mem.dev.ops = &mem_ops;
	mem.dev.mode = DM_MODE_RW;
	atomic_init(&mem.dev.refs, 1);
	if (era_meta_open(&mem.dev, 8, &md, NULL) || era_meta_resize(md, BLOCKS / 2, NULL) || era_meta_new_era(md))
		abort();
	for (unsigned era = 0; era < 3; era++) {
		for (unsigned i = 0; i < 40; i++)
			if (era_meta_mark(md, (i * 991 + era) % (BLOCKS / 2), (i * 991 + era) % (BLOCKS / 2)))
				abort();
		if (era == 1 ? era_meta_take_snap(md, NULL) : era_meta_new_era(md))
			abort();
	}
	era_meta_close(md);
	memcpy(good, mem.data, sizeof good);
}

/* Which kind a block was tells its checksum's seed: superblock, array, btree, index, bitmap. */
static uint32_t seed_of(unsigned b)
{
	static const uint32_t seeds[] = {146538381, 595846735, 121107, 160478, 240779};
	const uint8_t *p = good + b * 4096;

	for (unsigned i = 0; i < G_N_ELEMENTS(seeds); i++)
		if (get_le32(p) == dm_bm_checksum(p + 4, 4092, seeds[i]))
			return seeds[i];
	return seeds[b % G_N_ELEMENTS(seeds)];
}

static void use(struct era_meta *md, const uint8_t *in)
{
	uint32_t first = (in[1] | in[2] << 8) % BLOCKS, last = MIN(first + in[0] / 8, BLOCKS - 1);
	bool more;

	switch (in[0] % 8) {
	case 0:
		era_meta_new_era(md);
		break;
	case 1:
	case 2:
		era_meta_digest(md, &more);
		break;
	case 3:
		era_meta_take_snap(md, NULL);
		break;
	case 4:
		era_meta_drop_snap(md, NULL);
		break;
	default:
		if (!era_meta_mark(md, first, last) && !era_meta_commit(md) && !era_meta_marked(md, first, last))
			g_error("blocks %u to %u are marked and are not", first, last);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct era_usage usage;
	struct era_meta *md;

	if (!mem.dev.ops)
		make_good();
	if (!size)
		return 0;
	memcpy(mem.data, good, sizeof good);
	mem_damage(&mem, &data, &size, seed_of);
	if (era_meta_open(&mem.dev, 8, &md, NULL))
		return 0;
	if (!era_meta_archive(md) && !era_meta_resize(md, BLOCKS, NULL) && !era_meta_new_era(md))
		for (unsigned n = 0; size >= 3 && n < 200; n++, data += 3, size -= 3)
			use(md, data);
	era_meta_usage(md, &usage);
	era_meta_close(md);
	return 0;
}
