/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * writecache: what was committed is read back, from the cache or from the origin; what writeback has brought to the
 * origin never hides, and never is hidden by, what came later.  Small caches and low watermarks, so that blocks are
 * written back, freed and used again all the time.
 */
#include "lab.h"

#define SECTORS 512u

static int open_with(struct lab *lab, const char *line, GError **err)
{
	int error = lab_device(lab, "vol", err, line, NULL);

	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

static int open_writecache(struct lab *lab, GError **err)
{
	return open_with(lab, "0 512 writecache s origin fast 4096 8 high_watermark 20 low_watermark 10 pause_writeback 0 "
			      "autocommit_blocks 8", err);
}

/* Sectors, from the middle of the device on, and nothing goes back unless it is sent. */
static int open_small(struct lab *lab, GError **err)
{
	return open_with(lab, "0 512 writecache s origin fast 512 10 start_sector 40 high_watermark 100 low_watermark 100 "
			      "autocommit_time 3600000 pause_writeback 0", err);
}

/*
 * Full all the time: writes wait for room, or go around.  The origin is slow, so that blocks on their way to it are
 * written again, and these versions committed, in the meantime.
 */
static int open_full(struct lab *lab, GError **err)
{
	int error = lab_device(lab, "slow", err, "0 512 delay origin 0 0 origin 0 1", NULL);

	return error ? error : open_with(lab, "0 512 writecache s slow fast 4096 6 pause_writeback 0 high_watermark 1 low_watermark 0", err);
}

static void use_writecache(struct lab *lab)
{
	g_autoptr(GError) err = NULL;

	lab_random_io(lab, 50, "vol", NULL);
	lab_ok(lab, lab_message(lab, "vol", NULL, &err, "flush"), &err);
	lab_random_io(lab, 30, "vol", NULL);
	lab_reopen(lab);
	lab_random_io(lab, 30, "vol", NULL);
}

static void use_shortly(struct lab *lab)
{
	lab_random_io(lab, 30, "vol", NULL);
}

static void use_from_thread(struct lab *lab, unsigned i, void *data)
{
	g_autoptr(GError) err = NULL;

	lab_random_io(lab, 25, "vol", NULL);
	if (i)
		return;
	lab_ok(lab, lab_message(lab, "vol", NULL, &err, "flush"), &err);
	lab_random_io(lab, 15, "vol", NULL);
}

static void use_from_threads(struct lab *lab)
{
	lab_threads(lab, 3, use_from_thread, NULL);
}

/* All is on the origin when the cache has been flushed: the next table does without it. */
static int check_removal(struct lab *lab, GError **err)
{
	int error = lab_message(lab, "vol", NULL, err, "flush_on_suspend");
	g_autofree char *status = NULL;

	if (!error)
		error = lab_load(lab, "vol", err, "0 512 linear origin 0", NULL);
	if (!error && (!(status = lab_status(lab, "vol")) || !strstr(status, "linear")))
		error = dm_fail(err, EILSEQ, "not linear: %s", status);
	return error;
}

LAB_CUSTOMER(writecache) = {
	.slices = {{"fast", 330}, {"origin", SECTORS}},
	.open = open_writecache,
	.workload = use_writecache,
	.fault_workload = use_shortly,
	.check = check_removal,
};

LAB_CUSTOMER(writecache_small) = {
	.slices = {{"fast", 440}, {"origin", SECTORS}},
	.open = open_small,
	.workload = use_writecache,
	.fault_workload = use_shortly,
};

LAB_CUSTOMER(writecache_full) = {
	.slices = {{"fast", 88}, {"origin", SECTORS}},
	.open = open_full,
	.workload = use_from_threads,
	.fault_workload = use_shortly,
};
