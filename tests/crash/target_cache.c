/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * cache: an origin of 16 blocks, of which 5 fit into the cache, so that blocks come and go all the time.  A cache block
 * that is used again before the metadata says so shows what belongs elsewhere; one that counts as clean too early shows
 * the past.
 *
 * cache_through: in writethrough mode the origin alone holds what was flushed, so at a crash point it is opened alone.
 * cache_gone: the cleaner at work; when all is clean, and flushed, the origin is opened alone.
 */
#include "lab.h"

#define BLOCK 64u
#define BLOCKS 16u
#define SLICES {{"meta", 256}, {"fast", 5 * BLOCK}, {"origin", BLOCKS * BLOCK}}

static int open_with(struct lab *lab, const char *rest, GError **err)
{
	g_autofree char *line = g_strdup_printf("0 %u cache meta fast origin %u %s", BLOCKS * BLOCK, BLOCK, rest);
	int error = lab_device(lab, "vol", err, line, NULL);

	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

static int open_cache(struct lab *lab, GError **err)
{
	return open_with(lab, "1 writeback smq 0", err);
}

static int open_cache2(struct lab *lab, GError **err)
{
	return open_with(lab, "2 writeback metadata2 smq 2 migration_threshold 128", err);
}

static int open_origin(struct lab *lab, GError **err)
{
	int error = lab_device(lab, "vol", err, "0 1024 linear origin 0", NULL);

	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

static int open_through(struct lab *lab, GError **err)
{
	return lab_first_open(lab) ? open_with(lab, "2 writethrough metadata2 smq 0", err) : open_origin(lab, err);
}

static int open_gone(struct lab *lab, GError **err)
{
	return lab_reached(lab, "clean") ? open_origin(lab, err) : open_with(lab, "0 smq 2 migration_threshold 0", err);
}

/* Three blocks become hot, beside writes. */
static void heat(struct lab *lab, unsigned rounds)
{
	unsigned first = lab_random(lab, BLOCKS);

	for (unsigned i = 0; i < rounds; i++)
		lab_read(lab, "vol", (first + i % 3 * 5) % BLOCKS * BLOCK + lab_random(lab, 56), 8);
}

static void write_blocks(struct lab *lab, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		lab_write(lab, "vol", lab_random(lab, BLOCKS) * BLOCK, BLOCK, lab_random(lab, 4) ? 0 : DM_FUA);
}

static void use(struct lab *lab, unsigned n)
{
	for (unsigned i = 0; i < 3; i++) {
		write_blocks(lab, 2);
		heat(lab, 130);
		lab_random_io(lab, n, "vol", NULL);
		lab_flush(lab, "vol");
	}
}

static void use_cache(struct lab *lab)
{
	use(lab, 12);
	lab_reopen(lab);
	use(lab, 6);
}

static void use_shortly(struct lab *lab)
{
	use(lab, 4);
}

static void use_gone(struct lab *lab)
{
	g_autoptr(GError) err = NULL;
	g_autofree char *line = g_strdup_printf("0 %u cache meta fast origin %u 0 cleaner 0", BLOCKS * BLOCK, BLOCK);

	use(lab, 8);
	lab_ok(lab, lab_load(lab, "vol", &err, line, NULL), &err);
	lab_random_io(lab, 10, "vol", NULL);
	if (lab_wait_status(lab, "vol", " 0 1 writeback 2", NULL) || lab_flush(lab, "vol"))
		return;
	lab_step(lab, "clean");
}

LAB_CUSTOMER(cache) = {
	.slices = SLICES,
	.open = open_cache,
	.workload = use_cache,
	.fault_workload = use_shortly,
};

LAB_CUSTOMER(cache2) = {
	.slices = SLICES,
	.open = open_cache2,
	.workload = use_cache,
	.fault_workload = use_shortly,
};

LAB_CUSTOMER(cache_through) = {
	.slices = SLICES,
	.open = open_through,
	.workload = use_shortly,
	.fault_workload = use_shortly,
};

LAB_CUSTOMER(cache_gone) = {
	.slices = SLICES,
	.open = open_gone,
	.workload = use_gone,
	.fault_workload = use_shortly,
};
