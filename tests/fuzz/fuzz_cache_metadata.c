/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * cache's metadata with damage behind good checksums: the input says which bytes of a small device's metadata to change
 * and what then to do with it.  Whatever comes of it, nothing may crash or run for ever, and what loads is in range.
 */
#include <stdlib.h>

#include <dmfs/target.h>

#include "../../targets/cache/metadata.h"

#define SECTORS 512u
#include "fuzz_mem.h"

#define BLOCKS 2000u

static const struct cache_meta_policy policy = {.name = "smq", .version = {2, 0, 0}, .hint_bytes = 4};

static struct mem mem;
static uint8_t good[2][sizeof(mem.data)];

static bool bit(void *context, uint32_t index)
{
	return index % 3 == 0;
}

static void hint(void *context, uint32_t cblock, void *out)
{
	put_le32(out, cblock);
}

static int end_cleanly(struct cache_meta *meta)
{
	int r = cache_meta_write_dirty(meta, bit, NULL);

	if (!r)
		r = cache_meta_write_discards(meta, 128, 5000, bit, NULL);
	if (!r)
		r = cache_meta_write_hints(meta, &policy, hint, NULL);
	return r ? r : cache_meta_commit(meta, true);
}

static void make_good(void)
{
	struct cache_meta *meta;

	mem.dev.ops = &mem_ops;
	mem.dev.mode = DM_MODE_RW;
	atomic_init(&mem.dev.refs, 1);
	for (unsigned version = 1; version <= 2; version++) {
		memset(mem.data, 0, sizeof mem.data);
		if (cache_meta_open(&mem.dev, 64, version, &meta, NULL) || cache_meta_resize(meta, BLOCKS))
			abort();
		for (unsigned i = 0; i < BLOCKS; i += 2)
			if (cache_meta_insert(meta, i, i * 7))
				abort();
		if (end_cleanly(meta))
			abort();
		cache_meta_close(meta);
		memcpy(good[version - 1], mem.data, sizeof mem.data);
	}
}

/* Which kind a block was tells its checksum's seed: superblock, array, btree, index, bitmap. */
static uint32_t seed_of(unsigned b)
{
	static const uint32_t seeds[] = {9031977, 595846735, 121107, 160478, 240779};
	const uint8_t *p = mem.data + b * 4096;

	for (unsigned v = 0; v < 2; v++)
		for (unsigned i = 0; i < G_N_ELEMENTS(seeds); i++)
			if (get_le32(good[v] + b * 4096) == dm_bm_checksum(good[v] + b * 4096 + 4, 4092, seeds[i]) &&
			    get_le32(p) == get_le32(good[v] + b * 4096))
				return seeds[i];
	return seeds[b ? 1 + b % 4 : 0];
}

static int loaded(void *context, uint32_t cblock, uint64_t oblock, bool dirty, const void *data)
{
	if (oblock > CACHE_MD_MAX_OBLOCK)
		g_error("block %u is said to hold %" G_GUINT64_FORMAT, cblock, oblock);
	if (data && get_le32(data) == 0xabcdef)
		return 1;
	return 0;
}

static void discarded(void *context, uint64_t sector, uint64_t sectors)
{
	if (sector + sectors < sector)
		g_error("a discard goes round");
}

static void use(struct cache_meta *meta, const uint8_t *in)
{
	uint32_t cblock = in[1] | in[2] << 8;

	switch (in[0] % 8) {
	case 0:
		cache_meta_commit(meta, in[1] % 2);
		break;
	case 1:
		end_cleanly(meta);
		break;
	case 2:
		cache_meta_resize(meta, cblock % 4096);
		break;
	case 3:
		cache_meta_load(meta, &policy, loaded, NULL);
		break;
	case 4:
		cache_meta_abort(meta);
		break;
	case 5:
		cache_meta_remove(meta, cblock);
		break;
	default:
		cache_meta_insert(meta, cblock, in[0]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint64_t used, total;
	struct cache_meta *meta;

	if (!mem.dev.ops)
		make_good();
	if (size < 2)
		return 0;
	memcpy(mem.data, good[*data++ % 2], sizeof mem.data);
	size--;
	mem_damage(&mem, &data, &size, seed_of);
	if (cache_meta_open(&mem.dev, 64, 1, &meta, NULL))
		return 0;
	if (cache_meta_blocks(meta) < 1 << 20)
		cache_meta_load(meta, &policy, loaded, NULL);
	cache_meta_load_discards(meta, discarded, NULL);
	for (unsigned n = 0; size >= 3 && n < 100; n++, data += 3, size -= 3)
		use(meta, data);
	cache_meta_usage(meta, &used, &total);
	cache_meta_close(meta);
	return 0;
}
