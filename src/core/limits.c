/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a table's targets and their devices add up to: the limits of the device that runs it.
 *
 * Sizes and alignments are the largest of any.  Tags are all or nothing: a device takes them only if every target
 * passes them on, or takes them itself, and all would take the same.
 */
#include <errno.h>
#include <inttypes.h>

#include "table.h"

/* While devices or targets are added up. */
struct sum {
	struct dm_limits limits;
	bool begun; /* something has been added */
};

static void add_sizes(struct dm_limits *sum, const struct dm_limits *one)
{
	sum->logical_block_size = MAX(sum->logical_block_size, one->logical_block_size);
	sum->physical_block_size = MAX(sum->physical_block_size, one->physical_block_size);
	sum->io_min = MAX(sum->io_min, one->io_min);
	sum->io_opt = MAX(sum->io_opt, one->io_opt);
	sum->max_discard_sectors = MAX(sum->max_discard_sectors, one->max_discard_sectors);
	sum->discard_granularity = MAX(sum->discard_granularity, one->discard_granularity);
}

static void no_tags(struct dm_limits *limits)
{
	limits->tag_bytes = limits->tag_block = 0;
}

static void add(struct sum *sum, const struct dm_limits *one)
{
	struct dm_limits *l = &sum->limits;

	add_sizes(l, one);
	if (!sum->begun) {
		l->tag_bytes = one->tag_bytes;
		l->tag_block = one->tag_block;
	} else if (l->tag_bytes != one->tag_bytes || l->tag_block != one->tag_block) {
		no_tags(l);
	}
	sum->begun = true;
}

static struct sum sum_new(void)
{
	return (struct sum){
		.limits = {.logical_block_size = DM_SECTOR_SIZE, .physical_block_size = DM_SECTOR_SIZE},
	};
}

static int add_device(struct dm_target *ti, struct dm_dev *dev, uint64_t start, uint64_t len, void *data)
{
	struct dm_limits one;

	dm_dev_limits(dev, &one);
	if (one.tag_block && start % (one.tag_block >> DM_SECTOR_SHIFT))
		no_tags(&one);
	add(data, &one);
	return 0;
}

/* Bios of a target are cut at its begin and at multiples of max_io_sectors, which must not be amid a tag's block. */
static void check_tags(const struct dm_target *ti, struct dm_limits *limits)
{
	unsigned block = limits->tag_block >> DM_SECTOR_SHIFT;

	if (block && (ti->begin % block || ti->len % block || ti->max_io_sectors % block))
		no_tags(limits);
}

static struct dm_limits target_limits(struct dm_target *ti)
{
	struct sum sum = sum_new();
	struct dm_limits *out = &sum.limits;

	if (ti->type->iterate_devices)
		ti->type->iterate_devices(ti, add_device, &sum);
	if (!ti->num_discard_bios)
		out->max_discard_sectors = 0;
	else if (ti->discards_supported && !out->max_discard_sectors)
		out->max_discard_sectors = UINT64_MAX;
	if (!(ti->type->features & DM_TARGET_PASSES_TAGS))
		no_tags(out);
	if (ti->type->io_hints)
		ti->type->io_hints(ti, out);
	check_tags(ti, out);
	return *out;
}

static int check_alignment(const struct dm_table *t, GError **err)
{
	for (unsigned i = 0; i < t->n && t->limits.logical_block_size > DM_SECTOR_SIZE; i++) {
		struct dm_target *ti = dm_table_target(t, i);
		unsigned block = t->limits.logical_block_size >> DM_SECTOR_SHIFT;

		if (ti->begin % block || ti->len % block)
			return dm_fail(err, EINVAL,
				       "%s: target at sector %" PRIu64 ", length %" PRIu64
				       " not aligned to the table's logical block size %u",
				       ti->type->name, ti->begin, ti->len, t->limits.logical_block_size);
	}
	return 0;
}

int dm_table_limits(struct dm_table *t, GError **err)
{
	struct sum sum = sum_new();

	for (unsigned i = 0; i < t->n; i++) {
		struct dm_limits one = target_limits(dm_table_target(t, i));

		add(&sum, &one);
	}
	t->limits = sum.limits;
	return check_alignment(t, err);
}
