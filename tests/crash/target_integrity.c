/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * integrity, and crypt above it.
 *
 *   J            a small journal that is full again and again: each block is old or new, with its tag; also with a
 *                metadata device, a MAC and encryption
 *   B            what is dirty is recalculated: then every block reads, checked
 *   D            blocks that were not in flight read, checked; the others' data are what they should be
 *   recalc       no tags at first: power is lost while they are made, which goes on then, and all fit
 *   aead         the tags come from above, by crypt: each sector is old or new, and is authentic
 *   wipe         nothing is written at first: power is lost while crypt wipes what was not written, beside writes;
 *                what was written stays
 *
 * prepare() has the tags of what was never written made, but of the last two.
 */
#include <stdio.h>

#include "lab.h"

#define VOLUME 512u
#define DEVICE 1024u
#define HALF (VOLUME / 2)
#define JOURNAL " journal_sectors:160 interleave_sectors:256 fix_padding"

static const struct kind {
	const char *name, *tag, *words;
} kinds[] = {
    {"integrity_j", "128 J", "internal_hash:crc32c" JOURNAL},
    {"integrity_meta", "128 J",
     "meta_device:meta internal_hash:hmac(sha256):00 journal_mac:hmac(sha256):01 fix_hmac "
     "journal_crypt:ctr(aes):000102030405060708090a0b0c0d0e0f journal_sectors:160 buffer_sectors:8"},
    {"integrity_b", "4 B", "internal_hash:crc32c sectors_per_bit:32 bitmap_flush_interval:10" JOURNAL},
    {"integrity_d", "4 D", "internal_hash:crc32c" JOURNAL},
    {"integrity_recalc", "4 J", "internal_hash:crc32c journal_sectors:160 interleave_sectors:8 fix_padding"},
};

static const struct kind *kind_of(struct lab *lab)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(kinds); i++)
		if (lab_is(lab, kinds[i].name))
			return &kinds[i];
	return NULL;
}

static char *table(const struct kind *k, const char *more)
{
	g_autofree char *words = g_strconcat(k->words, more, NULL);
	unsigned n = 1;

	for (const char *p = words; *p; p++)
		n += *p == ' ';
	return g_strdup_printf("0 %u integrity data 0 %s %u %s", VOLUME, k->tag, n, words);
}

/* Until all tags were made anew, if they are to be. */
static int wait_recalculated(struct lab *lab, GError **err)
{
	g_autofree char *status = lab_status(lab, "vol"), *all = NULL;
	unsigned long long provided;

	if (!status || sscanf(status, "%*u %*u integrity %*u %llu", &provided) != 1)
		return dm_fail(err, EIO, "the status is %s", status);
	if (strstr(status, " -"))
		return 0;
	all = g_strdup_printf(" %llu %llu", provided, provided);
	return lab_wait_status(lab, "vol", all, err);
}

static int prepare_integrity(struct lab *lab, GError **err)
{
	g_autofree char *line = table(kind_of(lab), " recalculate");
	int error = lab_device(lab, "vol", err, line, NULL);

	if (!error)
		error = wait_recalculated(lab, err);
	return error ? error : lab_remove(lab, "vol", err);
}

static int open_integrity(struct lab *lab, GError **err)
{
	g_autofree char *line = table(kind_of(lab), "");
	int error = lab_device(lab, "vol", err, line, NULL);

	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

static int read_checked(struct lab *lab, unsigned first, unsigned sectors, GError **err)
{
	g_autofree char *data = g_malloc(sectors * DM_SECTOR_SIZE), *status = NULL;
	unsigned long long mismatches;
	int error = lab_read_raw(lab, "vol", first * DM_SECTOR_SIZE, data, sectors * DM_SECTOR_SIZE, err);

	status = lab_status(lab, "vol");
	if (!error && (!status || sscanf(status, "%*u %*u integrity %llu", &mismatches) != 1 || mismatches))
		error = dm_fail(err, EIO, "the status is %s", status);
	return error;
}

static int check_integrity(struct lab *lab, GError **err)
{
	return read_checked(lab, 0, VOLUME, err);
}

static void use_integrity(struct lab *lab)
{
	g_autoptr(GError) err = NULL;

	lab_random_io(lab, 40, "vol", NULL);
	if (lab_ok(lab, lab_suspend(lab, "vol", &err), &err))
		lab_ok(lab, lab_resume(lab, "vol", &err), &err);
	lab_random_io(lab, 20, "vol", NULL);
	lab_reopen(lab);
	lab_random_io(lab, 30, "vol", NULL);
}

struct kept {
	bool faults; /* writes have failed, perhaps */
};

static void use_shortly(struct lab *lab)
{
	struct kept *kept = lab_private(lab, sizeof *kept);

	kept->faults = true;
	lab_random_io(lab, 15, "vol", NULL);
}

/* A write that has failed leaves a block whose tag does not fit. */
static bool excuse_failed(struct lab *lab, const char *volume)
{
	return true;
}

/* --- B ---------------------------------------------------------------------------------------- */

static int check_bitmap(struct lab *lab, GError **err)
{
	struct kept *kept = lab_private(lab, sizeof *kept);
	int error = wait_recalculated(lab, err);

	return error || kept->faults ? error : read_checked(lab, 0, VOLUME, err);
}

/* --- D ---------------------------------------------------------------------------------------- */

/* The first half was written and flushed before the step, the second one after it. */
static int open_direct(struct lab *lab, GError **err)
{
	const struct kind *k = kind_of(lab);
	g_autofree char *line = table(k, ""), *anew = table(k, " reset_recalculate");
	int error = lab_device(lab, "vol", err, line, NULL);

	if (!error && !lab_first_open(lab) && lab_reached(lab, "flushed"))
		error = read_checked(lab, 0, HALF, err);
	if (!error && !lab_first_open(lab))
		error = lab_load(lab, "vol", err, anew, NULL);
	if (!error && !lab_first_open(lab))
		error = wait_recalculated(lab, err);
	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

static void write_half(struct lab *lab, unsigned first)
{
	for (unsigned i = 0; i < 25; i++) {
		unsigned at = lab_random(lab, HALF), n = 1 + lab_random(lab, MIN(HALF - at, 16));

		lab_write(lab, "vol", first + at, n, lab_random(lab, 4) ? 0 : DM_FUA);
	}
}

static void use_direct(struct lab *lab)
{
	write_half(lab, 0);
	lab_flush(lab, "vol");
	lab_step(lab, "flushed");
	write_half(lab, HALF);
	lab_flush(lab, "vol");
	write_half(lab, HALF);
}

/* --- recalculation ---------------------------------------------------------------------------- */

/* Formatted, with the tags of nothing. */
static int prepare_untagged(struct lab *lab, GError **err)
{
	g_autofree char *line = table(kind_of(lab), "");
	int error = lab_device(lab, "vol", err, line, NULL);

	return error ? error : lab_remove(lab, "vol", err);
}

static int open_recalculating(struct lab *lab, GError **err)
{
	g_autofree char *line = table(kind_of(lab), " recalculate");
	int error = lab_device(lab, "vol", err, line, NULL);

	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

/* The position is written before the end: by the suspend, which may come in the midst of it. */
static void use_recalculating(struct lab *lab)
{
	g_autoptr(GError) err = NULL;

	lab_random_io(lab, 5, "vol", NULL);
	if (lab_ok(lab, lab_suspend(lab, "vol", &err), &err))
		lab_ok(lab, lab_resume(lab, "vol", &err), &err);
	lab_random_io(lab, 30, "vol", NULL);
	lab_reopen(lab);
	lab_random_io(lab, 20, "vol", NULL);
}

/* --- crypt above ------------------------------------------------------------------------------ */

#define KEY "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
#define WIPED 2048u /* sectors */

static int stack(struct lab *lab, unsigned sectors, GError **err)
{
	g_autofree char *dif = g_strdup_printf("0 %u integrity data 0 28 J 3" JOURNAL, sectors);
	g_autofree char *vol =
	    g_strdup_printf("0 %u crypt capi:gcm(aes)-random " KEY " 0 dif 0 1 integrity:28:aead", sectors);
	int error = lab_device(lab, "dif", err, dif, NULL);

	return error ? error : lab_device(lab, "vol", err, vol, NULL);
}

static int begin_wipe(struct lab *lab, GError **err)
{
	int error = lab_suspend(lab, "vol", err);

	if (!error)
		error = lab_message(lab, "vol", NULL, err, "wipe 0");
	return error ? error : lab_resume(lab, "vol", err);
}

/* What was never written reads as zeroes, then. */
static int wipe(struct lab *lab, unsigned sectors, GError **err)
{
	g_autofree char *all = g_strdup_printf("wiping %u/%u", sectors, sectors);
	int error = begin_wipe(lab, err);

	return error ? error : lab_wait_status(lab, "vol", all, err);
}

static int remove_stack(struct lab *lab, GError **err)
{
	int error = lab_remove(lab, "vol", err);

	return error ? error : lab_remove(lab, "dif", err);
}

static int prepare_aead(struct lab *lab, GError **err)
{
	int error = stack(lab, VOLUME, err);

	if (!error)
		error = wipe(lab, VOLUME, err);
	return error ? error : remove_stack(lab, err);
}

static int open_aead(struct lab *lab, GError **err)
{
	int error = stack(lab, VOLUME, err);

	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

static int prepare_wipe(struct lab *lab, GError **err)
{
	int error = stack(lab, WIPED, err);

	return error ? error : remove_stack(lab, err);
}

static int open_wipe(struct lab *lab, GError **err)
{
	int error = stack(lab, WIPED, err);

	if (!error)
		error = lab_first_open(lab) ? begin_wipe(lab, err) : wipe(lab, WIPED, err);
	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

/* No reads before all is wiped. */
static void use_wipe(struct lab *lab)
{
	g_autoptr(GError) err = NULL;

	for (unsigned i = 0; i < 40; i++) {
		unsigned at = lab_random(lab, WIPED), n = 1 + lab_random(lab, MIN(WIPED - at, 64));

		lab_write(lab, "vol", at, n, lab_random(lab, 4) ? 0 : DM_FUA);
		if (i % 10 == 9)
			lab_flush(lab, "vol");
		if (i == 4 && lab_ok(lab, lab_suspend(lab, "vol", &err), &err))
			lab_ok(lab, lab_resume(lab, "vol", &err), &err);
	}
	lab_reopen(lab);
	lab_random_io(lab, 20, "vol", NULL);
}

static void use_wipe_shortly(struct lab *lab)
{
	for (unsigned i = 0; i < 10; i++)
		lab_write(lab, "vol", lab_random(lab, WIPED - 16), 1 + lab_random(lab, 16), 0);
	lab_flush(lab, "vol");
}

/* What was not wiped cannot be read. */
static bool excuse_unwiped(struct lab *lab, const char *volume)
{
	return volume != NULL;
}

LAB_CUSTOMER(integrity_j) = {
    .slices = {{"data", DEVICE}},
    .prepare = prepare_integrity,
    .open = open_integrity,
    .workload = use_integrity,
    .fault_workload = use_shortly,
    .check = check_integrity,
};

LAB_CUSTOMER(integrity_meta) = {
    .slices = {{"data", VOLUME}, {"meta", 512}},
    .prepare = prepare_integrity,
    .open = open_integrity,
    .workload = use_integrity,
    .fault_workload = use_shortly,
    .check = check_integrity,
};

LAB_CUSTOMER(integrity_b) = {
    .slices = {{"data", DEVICE}},
    .prepare = prepare_integrity,
    .open = open_integrity,
    .workload = use_integrity,
    .fault_workload = use_shortly,
    .check = check_bitmap,
    .excuse = excuse_failed,
};

LAB_CUSTOMER(integrity_d) = {
    .slices = {{"data", DEVICE}},
    .prepare = prepare_integrity,
    .open = open_direct,
    .workload = use_direct,
    .fault_workload = use_shortly,
    .excuse = excuse_failed,
};

LAB_CUSTOMER(integrity_recalc) = {
    .slices = {{"data", 2560}},
    .prepare = prepare_untagged,
    .open = open_recalculating,
    .workload = use_recalculating,
    .fault_workload = use_shortly,
    .check = check_bitmap,
    .excuse = excuse_failed,
};

LAB_CUSTOMER(integrity_aead) = {
    .slices = {{"data", DEVICE}},
    .prepare = prepare_aead,
    .open = open_aead,
    .workload = use_integrity,
    .fault_workload = use_shortly,
};

LAB_CUSTOMER(integrity_wipe) = {
    .slices = {{"data", 4096}},
    .prepare = prepare_wipe,
    .open = open_wipe,
    .workload = use_wipe,
    .fault_workload = use_wipe_shortly,
    .excuse = excuse_unwiped,
};
