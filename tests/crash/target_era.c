/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * era: no block is written after a checkpoint without a record of it.  The workload writes a number of blocks, notes
 * that, and sends a checkpoint; at a crash point each block that was written at the origin must have an era, and
 * those written after the checkpoint one of after it.
 */
#include <stdio.h>

#include <dmfs/array.h>

#define SECTORS 512u
#include "../fuzz/fuzz_mem.h"
#include "lab.h"

#include "../../targets/era/metadata.h"

#define BLOCKS (SECTORS / 8)
#define SM_ROOT_AT 44
#define ERAS_AT 208

struct seen {
	uint32_t era; /* when the last checkpoint had been answered */
	char before[SECTORS * DM_SECTOR_SIZE]; /* what the origin held then */
};

static int open_era(struct lab *lab, GError **err)
{
	int error = lab_device(lab, "vol", err, "0 512 era meta origin 8", NULL);

	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

static uint32_t current_era(struct lab *lab)
{
	g_autofree char *status = lab_status(lab, "vol");
	unsigned era = 0;

	return status && sscanf(status, "%*u %*u era 8 %*u/%*u %u", &era) == 1 ? era : 0;
}

static void use_era(struct lab *lab)
{
	g_autoptr(GError) err = NULL;
	struct seen *seen = lab_private(lab, sizeof *seen);

	lab_random_io(lab, 25, "vol", NULL);
	lab_ok(lab, lab_message(lab, "vol", NULL, &err, "checkpoint"), &err);
	g_clear_error(&err);
	seen->era = current_era(lab);
	lab_read_raw(lab, "origin", 0, seen->before, sizeof seen->before, NULL);
	lab_step(lab, "checkpoint");
	lab_random_io(lab, 25, "vol", NULL);
	lab_ok(lab, lab_message(lab, "vol", NULL, &err, "checkpoint"), &err);
	lab_random_io(lab, 10, "vol", NULL);
}

static void use_shortly(struct lab *lab)
{
	g_autoptr(GError) err = NULL;

	lab_random_io(lab, 20, "vol", NULL);
	lab_ok(lab, lab_message(lab, "vol", NULL, &err, "checkpoint"), &err);
	lab_random_io(lab, 10, "vol", NULL);
}

/* Digests all there is in a copy of the metadata, and reads the era of each block. */
static int read_eras(struct mem *mem, uint32_t *eras, GError **err)
{
	static const struct dm_btree_value_type type = {.size = 4};
	struct dm_array_info info;
	bool more = true;
	struct era_meta *md;
	struct dm_bm *bm;
	struct dm_tm *tm;
	int error = era_meta_open(&mem->dev, 8, &md, err);

	if (error)
		return error;
	error = era_meta_archive(md);
	while (!error && more)
		error = era_meta_digest(md, &more);
	if (!error)
		error = era_meta_commit(md);
	era_meta_close(md);
	bm = dm_bm_new(&mem->dev, DM_META_BLOCK_SIZE, 1 << 20);
	if (!error)
		error = dm_tm_open(bm, 0, mem->data + SM_ROOT_AT, DM_SM_ROOT_SIZE, &tm);
	if (!error) {
		dm_array_info_init(&info, tm, &type);
		for (uint32_t i = 0; i < BLOCKS && !error; i++) {
			uint8_t value[4];

			error = dm_array_get(&info, get_le64(mem->data + ERAS_AT), i, value);
			eras[i] = get_le32(value);
		}
		dm_tm_free(tm);
	}
	dm_bm_free(bm);
	return error ? dm_fail(err, -error, "the metadata cannot be read: %s", g_strerror(-error)) : 0;
}

static int check_era(struct lab *lab, GError **err)
{
	g_autofree struct mem *mem = g_new0(struct mem, 1);
	g_autofree char *data = g_malloc(SECTORS * DM_SECTOR_SIZE);
	struct seen *seen = lab_private(lab, sizeof *seen);
	bool after = lab_reached(lab, "checkpoint");
	uint32_t eras[BLOCKS] = {0};
	int error;

	mem->dev.ops = &mem_ops;
	mem->dev.mode = DM_MODE_RW;
	atomic_init(&mem->dev.refs, 1);
	error = lab_suspend(lab, "vol", err); /* the metadata is all on the disk */
	if (!error)
		error = lab_read_raw(lab, "meta", 0, mem->data, sizeof mem->data, err);
	if (!error)
		error = lab_read_raw(lab, "origin", 0, data, SECTORS * DM_SECTOR_SIZE, err);
	if (!error)
		error = lab_resume(lab, "vol", err);
	if (!error)
		error = read_eras(mem, eras, err);
	for (unsigned at = 0; at < SECTORS * DM_SECTOR_SIZE && !error; at++) {
		uint32_t era = eras[at / 4096];

		if (data[at] && !era)
			error = dm_fail(err, EILSEQ, "block %u was written, and no era says so", at / 4096);
		else if (after && data[at] != seen->before[at] && era < seen->era)
			error = dm_fail(err, EILSEQ, "block %u was written after the checkpoint to era %u; its era is %u",
					at / 4096, seen->era, era);
	}
	return error;
}

LAB_CUSTOMER(era) = {
	.slices = {{"meta", SECTORS}, {"origin", SECTORS}},
	.open = open_era,
	.workload = use_era,
	.fault_workload = use_shortly,
	.check = check_era,
};
