/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * linear: a range of a device, mapped one to one (linear.txt).
 *
 *   <dev path> <offset>
 */
#include <inttypes.h>

#include <dmfs/target.h>

struct linear {
	struct dm_dev *dev;
	uint64_t start;
};

G_STATIC_ASSERT(sizeof(struct linear) <= sizeof(((struct dm_target *)NULL)->room));

static int linear_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct linear *l;
	uint64_t start;
	int error;

	if (argc != 2)
		return dm_fail(err, EINVAL, "linear: Invalid argument count: %d arguments, <dev path> <offset> are 2",
			       argc);
	error = dm_read_u64(argv[1], 0, UINT64_MAX, "linear", "device sector", &start, err);
	if (error)
		return error;
	l = ti->private = ti->room;
	l->start = start;
	error = dm_get_device(ti, argv[0], dm_target_mode(ti), &l->dev, err);
	if (error)
		return error;
	ti->num_discard_bios = 1;
	ti->num_write_zeroes_bios = 1;
	ti->provisions = true;
	return 0;
}

static void linear_dtr(struct dm_target *ti)
{
	struct linear *l = ti->private;

	dm_put_device(ti, l->dev);
}

static enum dm_mapio linear_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct linear *l = ti->private;

	bio->dev = l->dev;
	bio->sector = l->start + dm_target_offset(ti, bio->sector);
	return DM_MAPIO_REMAPPED;
}

static void linear_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct linear *l = ti->private;

	if (type == DM_STATUS_INFO)
		return;
	dm_dev_print(l->dev, out);
	g_string_append_printf(out, " %" PRIu64, l->start);
}

static int linear_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct linear *l = ti->private;

	return fn(ti, l->dev, l->start, ti->len, data);
}

static int linear_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct linear *l = ti->private;

	return dm_dev_extent(l->dev, l->start + sector, sectors, out);
}

static uint64_t linear_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct linear *l = ti->private;

	return dm_dev_provisioned(l->dev, l->start + sector, sectors);
}

static int linear_report_zones(struct dm_target *ti, uint64_t sector, uint64_t max, dm_zone_fn fn, void *data)
{
	struct linear *l = ti->private;

	return dm_target_report_zones(ti, l->dev, l->start, sector, max, fn, data);
}

const struct dm_target_type linear_target = {
	.name = "linear",
	.version = {1, 4, 0},
	.features = DM_TARGET_FLUSH_DEVICES | DM_TARGET_PASSES_TAGS | DM_TARGET_ZONES | DM_TARGET_STRAIGHT,
	.ctr = linear_ctr,
	.dtr = linear_dtr,
	.map = linear_map,
	.status = linear_status,
	.iterate_devices = linear_iterate_devices,
	.extent = linear_extent,
	.provisioned = linear_provisioned,
	.report_zones = linear_report_zones,
};
