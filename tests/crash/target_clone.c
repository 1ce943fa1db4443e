/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * clone: a source of zeroes, a destination of rubbish.  A region that is
 * called hydrated before its data is durable shows the rubbish.
 */
#include "lab.h"

#define SECTORS 512u
#define REGIONS (SECTORS / 8)

static int fill_dest(struct lab *lab, GError **err)
{
	char rubbish[4096];
	int error = 0;

	memset(rubbish, 0xd1, sizeof rubbish);
	for (unsigned at = 0; at < SECTORS * DM_SECTOR_SIZE && !error; at += sizeof rubbish)
		error = lab_write_raw(lab, "dest", at, rubbish, sizeof rubbish, err);
	return error;
}

static int open_clone(struct lab *lab, GError **err)
{
	int error = lab_device(lab, "vol", err, "0 512 clone meta dest source 8 0 4 hydration_threshold 2 hydration_batch_size 3",
			       NULL);

	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

/* Without the background hydration only writes hydrate: the order of commits is theirs. */
static int open_cold(struct lab *lab, GError **err)
{
	int error = lab_device(lab, "vol", err, "0 512 clone meta dest source 16 1 no_hydration", NULL);

	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

static void use_clone(struct lab *lab)
{
	lab_random_io(lab, 60, "vol", NULL);
	lab_reopen(lab);
	lab_random_io(lab, 40, "vol", NULL);
}

/*
 * No opening anew: what no FLUSH has covered may be gone after it, where the
 * metadata could not be written, and a FLUSH after it is about what came after it.
 */
static void use_shortly(struct lab *lab)
{
	lab_random_io(lab, 60, "vol", NULL);
}

static void use_from_thread(struct lab *lab, unsigned i, void *data)
{
	lab_random_io(lab, 40, "vol", NULL);
}

static void use_cold(struct lab *lab)
{
	lab_threads(lab, 3, use_from_thread, NULL);
}

/* The hydration goes on to the end, whatever was there. */
static int check_clone(struct lab *lab, GError **err)
{
	g_autofree char *all = g_strdup_printf(" %u/%u ", REGIONS, REGIONS);

	return lab_wait_status(lab, "vol", all, err);
}

LAB_CUSTOMER(clone) = {
	.slices = {{"meta", 512}, {"dest", SECTORS}, {"source", SECTORS}},
	.prepare = fill_dest,
	.open = open_clone,
	.workload = use_clone,
	.fault_workload = use_shortly,
	.check = check_clone,
};

LAB_CUSTOMER(clone_cold) = {
	.slices = {{"meta", 512}, {"dest", SECTORS}, {"source", SECTORS}},
	.prepare = fill_dest,
	.open = open_cold,
	.workload = use_cold,
};
