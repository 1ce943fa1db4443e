/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Thin metadata with damage behind good checksums: the input says which bytes
 * of a small pool's metadata to change and what then to do with the pool.  Whatever comes of it,
 * nothing may crash or run for ever, and errors must be errnos.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <dmfs/le.h>
#include <dmfs/target.h>

#include "../../targets/thin/metadata.h"

#define SECTORS 1024u
#include "fuzz_mem.h"

#define BLOCKS (SECTORS / 8)

static int flush_data(void *pool)
{
	return 0;
}

static void nothing(void *pool)
{
}

static const struct thin_meta_ops meta_ops = {flush_data, nothing, nothing};
static struct mem mem;
static uint8_t good[sizeof(mem.data)];

/* A pool with two devices that share, and one snapshot of the metadata. */
static void make_good(void)
{
	struct thin_dev *td;
	struct thin_meta *meta;

	mem.dev.ops = &mem_ops;
	mem.dev.mode = DM_MODE_RW;
	atomic_init(&mem.dev.refs, 1);
	if (thin_meta_open(&mem.dev, 128, true, &meta_ops, NULL, &meta, NULL))
		abort();
	thin_meta_resize_data(meta, 3000);
	thin_meta_create(meta, 0);
	thin_meta_open_device(meta, 0, &td);
	for (unsigned i = 0; i < 600; i++)
		thin_meta_provision(td, i * 3);
	thin_meta_hold(meta);
	thin_meta_snap(meta, 1, 0);
	thin_meta_snap(meta, 2, 0);
	thin_meta_snap(meta, 3, 1);
	for (unsigned i = 0; i < 50; i++)
		thin_meta_provision(td, i * 7 + 1);
	thin_meta_close_device(td);
	if (thin_meta_commit(meta, NULL))
		abort();
	thin_meta_close(meta);
	memcpy(good, mem.data, sizeof(good));
}

/* Which kind a block was tells its checksum's seed. */
static uint32_t seed_of(unsigned b)
{
	static const uint32_t seeds[] = {160774, 121107, 240779, 160478};
	const uint8_t *p = good + b * 4096;

	for (unsigned i = 0; i < G_N_ELEMENTS(seeds); i++)
		if (get_le32(p) == dm_bm_checksum(p + 4, 4092, seeds[i]))
			return seeds[i];
	return seeds[1];
}

static void act(struct thin_meta *meta, uint8_t what, uint8_t arg)
{
	uint64_t first, run, block;
	struct thin_mapping m;
	struct thin_dev *td;
	bool flag;

	switch (what % 8) {
	case 0:
		thin_meta_commit(meta, NULL);
		return;
	case 1:
		thin_meta_snap(meta, 10 + arg % 4, arg % 5);
		return;
	case 2:
		thin_meta_delete(meta, arg % 5, 100, &flag);
		return;
	case 3:
		arg % 2 ? thin_meta_hold(meta) : thin_meta_release(meta);
		return;
	case 4:
		thin_meta_resize_data(meta, 3000 + arg * 1000);
		return;
	}
	if (thin_meta_open_device(meta, arg % 5, &td))
		return;
	if (what % 8 == 5)
		thin_meta_provision(td, arg * 5);
	else if (what % 8 == 6)
		thin_meta_remove(td, arg * 3, arg * 6, 300, NULL, &flag);
	else if (!thin_meta_find(td, arg * 3, &m) && !thin_meta_find_run(td, arg, &first, &run))
		thin_meta_highest(td, &block);
	thin_meta_close_device(td);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct thin_meta *meta;

	if (!good[32])
		make_good();
	if (!size)
		return 0;
	memcpy(mem.data, good, sizeof(good));
	mem_damage(&mem, &data, &size, seed_of);
	if (thin_meta_open(&mem.dev, 128, true, &meta_ops, NULL, &meta, NULL))
		return 0;
	for (; size >= 2; data += 2, size -= 2)
		act(meta, data[0], data[1]);
	thin_meta_commit(meta, NULL);
	thin_meta_close(meta);
	return 0;
}
