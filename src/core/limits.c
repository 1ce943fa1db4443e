/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a table's targets and their devices add up to: the limits of the device that runs the table.
 *
 * Sizes and alignments are the largest of any.
 *
 * Discards are taken if all targets take them, and so do all devices of those targets that only pass them on.  That is
 * the kernel's rule; so a discard that is refused has changed nothing.
 *
 * Tags are all or nothing.  A device takes them if each target takes them, or passes them on to devices that do, and
 * all would take the same.
 *
 * Zones are of one model and one size on all devices of a table, as in the kernel.  Only a target that makes something
 * else of them may use devices of any kind.  To a target that knows nothing of zones host-aware ones are plain sectors.
 */
#include <errno.h>
#include <inttypes.h>

#include "table.h"

/* While devices or targets are added up. */
struct sum {
	struct dm_limits limits;
	bool begun; /* something has been added */
	bool no_discards; /* of something that takes none */
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

/* The lesser of two where 0 is no bound. */
static unsigned least(unsigned a, unsigned b)
{
	return a && b ? MIN(a, b) : MAX(a, b);
}

static void no_zones(struct dm_limits *limits)
{
	limits->zone_model = DM_ZONES_NONE;
	limits->zone_sectors = limits->zone_capacity = 0;
	limits->max_open_zones = limits->max_active_zones = limits->max_append_sectors = 0;
}

/* Whether they match is looked at when all are there. */
static void add_zones(struct dm_limits *l, const struct dm_limits *one)
{
	bool first = !l->zone_model;

	if (!one->zone_model)
		return;
	l->zone_model = MAX(l->zone_model, one->zone_model);
	l->zone_sectors = one->zone_sectors;
	l->zone_capacity = least(l->zone_capacity, one->zone_capacity);
	l->max_open_zones = least(l->max_open_zones, one->max_open_zones);
	l->max_active_zones = least(l->max_active_zones, one->max_active_zones);
	l->max_append_sectors = first ? one->max_append_sectors : MIN(l->max_append_sectors, one->max_append_sectors);
}

static void add(struct sum *sum, const struct dm_limits *one)
{
	struct dm_limits *l = &sum->limits;

	add_sizes(l, one);
	sum->no_discards |= !one->max_discard_sectors;
	add_zones(l, one);
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

/* Bios are cut at the zones' borders too; an append is never cut. */
static void cut_at_zones(struct dm_target *ti, struct dm_limits *limits)
{
	unsigned a = limits->zone_sectors, b = ti->max_io_sectors;

	if (!limits->zone_model)
		return;
	while (b) { /* the greatest common divisor */
		unsigned rest = a % b;

		a = b;
		b = rest;
	}
	ti->max_io_sectors = a;
	limits->max_append_sectors = MIN(limits->max_append_sectors, a);
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
	else if (!ti->discards_supported && sum.no_discards)
		out->max_discard_sectors = 0;
	if (!(ti->type->features & DM_TARGET_PASSES_TAGS))
		no_tags(out);
	if (!(ti->type->features & DM_TARGET_ZONES))
		no_zones(out);
	if (ti->type->io_hints)
		ti->type->io_hints(ti, out);
	cut_at_zones(ti, out);
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

/* --- zones that match ------------------------------------------------------------------- */

struct match {
	enum dm_zone_model model;
	unsigned zone_sectors;
	GError **err;
};

static const char *model_name(enum dm_zone_model model)
{
	return model == DM_ZONES_HOST_MANAGED ? "host-managed" : model == DM_ZONES_HOST_AWARE ? "host-aware" : "none";
}

static int first_zones(struct dm_target *ti, struct dm_dev *dev, uint64_t start, uint64_t len, void *data)
{
	struct match *match = data;
	struct dm_limits one;

	dm_dev_limits(dev, &one);
	if (one.zone_model > match->model)
		match->model = one.zone_model;
	if (one.zone_model && !match->zone_sectors)
		match->zone_sectors = one.zone_sectors;
	return 0;
}

static int check_zones(struct dm_target *ti, struct dm_dev *dev, uint64_t start, uint64_t len, void *data)
{
	const struct match *match = data;
	struct dm_limits one;
	g_autoptr(GString) name = NULL;

	dm_dev_limits(dev, &one);
	if ((ti->type->features & DM_TARGET_ZONES) && one.zone_model != match->model) {
		name = g_string_new(NULL);
		dm_dev_print(dev, name);
		return dm_fail(match->err, EINVAL,
			       "%s: zoned model is not consistent across all devices: %s has %s, another %s",
			       ti->type->name, name->str, model_name(one.zone_model), model_name(match->model));
	}
	if (one.zone_model && one.zone_sectors != match->zone_sectors) {
		name = g_string_new(NULL);
		dm_dev_print(dev, name);
		return dm_fail(match->err, EINVAL,
			       "%s: zone sectors is not consistent across all zoned devices: %s has %u, another %u",
			       ti->type->name, name->str, one.zone_sectors, match->zone_sectors);
	}
	return 0;
}

static int check_target_zones(struct dm_target *ti, struct match *match)
{
	if (match->model == DM_ZONES_HOST_MANAGED && !(ti->type->features & (DM_TARGET_ZONES | DM_TARGET_MIXED_ZONES)))
		return dm_fail(match->err, EINVAL,
			       "%s: zoned model is not consistent across all devices: the target takes no host-managed zones",
			       ti->type->name);
	return ti->type->iterate_devices ? ti->type->iterate_devices(ti, check_zones, match) : 0;
}

/* All or nothing: afterwards the table's zones are those of each of its targets. */
static int match_zones(struct dm_table *t, GError **err)
{
	struct match match = {.err = err};
	bool all = true;

	for (unsigned i = 0; i < t->n; i++) {
		struct dm_target *ti = dm_table_target(t, i);

		if (ti->type->iterate_devices)
			ti->type->iterate_devices(ti, first_zones, &match);
		all &= (ti->type->features & DM_TARGET_ZONES) != 0;
	}
	for (unsigned i = 0; i < t->n && match.model; i++) {
		int error = check_target_zones(dm_table_target(t, i), &match);

		if (error)
			return error;
	}
	if (!all)
		no_zones(&t->limits);
	return 0;
}

int dm_table_limits(struct dm_table *t, GError **err)
{
	struct sum sum = sum_new();
	int error;

	for (unsigned i = 0; i < t->n; i++) {
		struct dm_limits one = target_limits(dm_table_target(t, i));

		add(&sum, &one);
	}
	t->limits = sum.limits;
	if (sum.no_discards)
		t->limits.max_discard_sectors = 0;
	error = match_zones(t, err);
	return error ? error : check_alignment(t, err);
}
