/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mirror with a disk log: of two legs, and of three used by several threads; and with a userspace log on a disk.
 *
 * Before the stack is built on what a power loss has left, the legs are
 * compared wherever the log says clean; when all is in sync, everywhere.
 *
 * keep_log: what one leg has is answered.  The log does not say which leg
 * that is, so after a leg has failed the next table must name a good one
 * first, as its user would.
 */
#include <stdlib.h>

#include "lab.h"

#define SECTORS 512u
#define REGION 32u
#define REGIONS (SECTORS / REGION)
#define BITMAP 1024u

struct kept {
	unsigned bad; /* 1 + the leg that failed first */
};

static const char *const legs[] = {"a", "b", "c"};

static int compare_regions(struct lab *lab, unsigned n, const uint8_t *clean, GError **err)
{
	g_autofree uint8_t *one = g_malloc(SECTORS * DM_SECTOR_SIZE), *other = g_malloc(SECTORS * DM_SECTOR_SIZE);
	int error = lab_read_raw(lab, legs[0], 0, one, SECTORS * DM_SECTOR_SIZE, err);

	for (unsigned i = 1; i < n && !error; i++) {
		error = lab_read_raw(lab, legs[i], 0, other, SECTORS * DM_SECTOR_SIZE, err);
		for (unsigned r = 0; r < REGIONS && !error; r++) {
			size_t at = r * REGION * DM_SECTOR_SIZE;

			if (clean && !(clean[r / 8] >> (r % 8) & 1))
				continue;
			if (memcmp(one + at, other + at, REGION * DM_SECTOR_SIZE))
				error = dm_fail(err, EIO, "region %u differs on %s and %s though %s", r, legs[0], legs[i],
						clean ? "the log says clean" : "all is in sync");
		}
	}
	return error;
}

static int compare_clean(struct lab *lab, unsigned n, GError **err)
{
	uint8_t log[BITMAP + 8];
	int error = lab_read_raw(lab, "log", 0, log, sizeof log, err);

	if (error || memcmp(log, "rRiM", 4))
		return error;
	return compare_regions(lab, n, log + BITMAP, err);
}

static int open_mirror(struct lab *lab, unsigned n, GError **err)
{
	struct kept *kept = lab_private(lab, sizeof *kept);
	unsigned first = kept->bad == 1 ? 1 : 0;
	g_autoptr(GString) line = g_string_new(NULL);
	int error = lab_first_open(lab) ? 0 : compare_clean(lab, n, err);

	g_string_printf(line, "0 %u mirror %s log %u %u", SECTORS,
			lab_is(lab, "userlog") ? "userspace 5 uuid integrated_flush clustered-disk" : "disk 2", REGION, n);
	for (unsigned i = 0; i < n; i++)
		g_string_append_printf(line, " %s 0", legs[(first + i) % n]);
	g_string_append(line, " 2 handle_errors keep_log");
	if (!error)
		error = lab_device(lab, "vol", err, line->str, NULL);
	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

static int open_two(struct lab *lab, GError **err)
{
	return open_mirror(lab, 2, err);
}

static int open_three(struct lab *lab, GError **err)
{
	return open_mirror(lab, 3, err);
}

static int check_mirror(struct lab *lab, unsigned n, GError **err)
{
	g_autofree char *all = g_strdup_printf(" %u/%u 1 AA", REGIONS, REGIONS);
	int error = lab_wait_status(lab, "vol", all, err);

	return error ? error : compare_regions(lab, n, NULL, err);
}

static int check_two(struct lab *lab, GError **err)
{
	return check_mirror(lab, 2, err);
}

static int check_three(struct lab *lab, GError **err)
{
	return check_mirror(lab, 3, err);
}

/* A suspend leaves all regions clean, so that the next writes mark them anew. */
static void pause_volume(struct lab *lab)
{
	g_autoptr(GError) err = NULL;

	if (lab_ok(lab, lab_suspend(lab, "vol", &err), &err))
		lab_ok(lab, lab_resume(lab, "vol", &err), &err);
}

static void use_two(struct lab *lab)
{
	lab_random_io(lab, 60, "vol", NULL);
	pause_volume(lab);
	for (unsigned i = 0; i < 6; i++) {
		lab_random_io(lab, 10, "vol", NULL);
		pause_volume(lab);
	}
	lab_reopen(lab);
	lab_random_io(lab, 40, "vol", NULL);
}

static void use_from_thread(struct lab *lab, unsigned i, void *data)
{
	lab_random_io(lab, 25, "vol", NULL);
}

static void use_three(struct lab *lab)
{
	for (unsigned i = 0; i < 3; i++) {
		lab_threads(lab, 4, use_from_thread, NULL);
		pause_volume(lab);
	}
}

/* The letters come after " 16/16 1 "; sync is how many regions are in sync. */
static unsigned look_for_bad_leg(struct lab *lab, unsigned *sync)
{
	g_autofree char *status = lab_status(lab, "vol");
	const char *letters = status ? strstr(status, "/16 1 ") : NULL;

	*sync = 0;
	if (!letters)
		return 0;
	for (const char *p = letters; p[-1] != ' '; p--)
		*sync = (unsigned)strtoul(p - 1, NULL, 10);
	letters += strlen("/16 1 ");
	for (unsigned i = 0; letters[i] && letters[i] != ' '; i++)
		if (letters[i] != 'A' && letters[i] != 'R')
			return i + 1;
	return 0;
}

/* 1: it is; 0: not yet; -1: it cannot be read or written. */
static int log_is_clean(struct lab *lab)
{
	g_autofree char *status = lab_status(lab, "vol");
	uint8_t log[BITMAP + REGIONS / 8];

	if (!status || !strstr(status, "disk log A") || lab_read_raw(lab, "log", 0, log, sizeof log, NULL))
		return -1;
	for (unsigned r = 0; r < REGIONS; r++)
		if (!(log[BITMAP + r / 8] >> (r % 8) & 1))
			return 0;
	return 1;
}

/*
 * False: a leg has failed, and until all is in sync no other can stand for the
 * first.  The log is waited for so that the mirror's own flushes are over: with everything failing from some I/O on
 * these and a request could each take one leg, and nobody could tell afterwards which was the better.
 */
static bool wait_for_sync(struct lab *lab)
{
	unsigned sync;

	for (unsigned ms = 0; ms < 60000; ms++) {
		if (look_for_bad_leg(lab, &sync))
			return false;
		if (sync == REGIONS && log_is_clean(lab))
			return log_is_clean(lab) > 0;
		g_usleep(1000); /* between looks */
	}
	return false;
}

static void use_shortly(struct lab *lab)
{
	struct kept *kept = lab_private(lab, sizeof *kept);
	unsigned sync;

	if (!wait_for_sync(lab))
		return;
	for (unsigned i = 0; i < 20; i++) {
		lab_random_io(lab, 1, "vol", NULL);
		if (!kept->bad)
			kept->bad = look_for_bad_leg(lab, &sync);
	}
}

LAB_CUSTOMER(mirror) = {
	.slices = {{"log", 8}, {"a", SECTORS}, {"b", SECTORS}},
	.open = open_two,
	.workload = use_two,
	.check = check_two,
	.fault_workload = use_shortly,
};

/* What is its own is its name and its line: shorter than the others. */
LAB_CUSTOMER(userlog) = {
	.slices = {{"log", 8}, {"a", SECTORS}, {"b", SECTORS}},
	.open = open_two,
	.workload = use_shortly,
	.check = check_two,
	.fault_workload = use_shortly,
};

LAB_CUSTOMER(mirror3) = {
	.slices = {{"log", 8}, {"a", SECTORS}, {"b", SECTORS}, {"c", SECTORS}},
	.open = open_three,
	.workload = use_three,
	.check = check_three,
	.fault_workload = use_shortly,
};
