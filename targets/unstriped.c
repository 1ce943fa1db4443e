/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * unstriped: one stripe out of a striped device, as a device (unstriped.rst).
 *
 *   <number of stripes> <chunk size> <stripe #> <dev_path> <offset>
 *
 * Chunk c of the target is chunk c * stripes + stripe of the device.  As in the kernel, the stripe number may be one
 * too large, or anything if there is one stripe, and nobody looks whether the device holds all of the stripe; so map()
 * checks that I/O lies inside the device.
 */
#include <inttypes.h>
#include <stdatomic.h>

#include <dmfs/target.h>

struct unstriped {
	struct dm_dev *dev;
	uint64_t start;
	uint64_t stripe_start;   /* of chunk 0 behind start */
	uint64_t others_sectors; /* of the other stripes between two chunks */
	unsigned stripes, stripe;
	uint32_t chunk_sectors;
	_Atomic uint64_t device_sectors; /* that it had, when last asked */
};

/* As the kernel reads these three: a '+' may stand before the number. */
static bool parse(const char *word, unsigned *out)
{
	return dm_parse_uint(word + (*word == '+'), out);
}

/* Whether the device sectors of the whole target can be told in 64 bits. */
static bool fits(const struct unstriped *u, uint64_t len)
{
	uint64_t end;

	return !__builtin_mul_overflow((len - 1) / u->chunk_sectors, u->others_sectors, &end) &&
	       !__builtin_add_overflow(end, len, &end) && !__builtin_add_overflow(end, u->stripe_start, &end) &&
	       !__builtin_add_overflow(end, u->start, &end);
}

static int unstriped_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct unstriped u = {0};
	int error;

	if (argc != 5)
		return dm_fail(err, EINVAL,
			       "unstriped: Invalid number of arguments: %d, <number of stripes> <chunk size> <stripe #> "
			       "<dev_path> <offset> are 5",
			       argc);
	if (!parse(argv[0], &u.stripes) || !u.stripes)
		return dm_fail(err, EINVAL, "unstriped: Invalid stripe count '%s', 1 is the least", argv[0]);
	if (!parse(argv[1], &u.chunk_sectors) || !u.chunk_sectors)
		return dm_fail(err, EINVAL, "unstriped: Invalid chunk_size '%s', 1 sector is the least", argv[1]);
	if (!parse(argv[2], &u.stripe))
		return dm_fail(err, EINVAL, "unstriped: Invalid stripe number '%s'", argv[2]);
	if (u.stripe > u.stripes && u.stripes > 1)
		return dm_fail(err, EINVAL, "unstriped: stripe %u of %u: Please provide stripe between [0, # of stripes]",
			       u.stripe, u.stripes);
	error = dm_read_u64(argv[4], 0, UINT64_MAX, "unstriped", "striped device offset", &u.start, err);
	if (error)
		return error;
	if (ti->len % u.chunk_sectors)
		return dm_fail(err, EINVAL,
			       "unstriped: Target length not divisible by chunk size: %" PRIu64 " by %u sectors", ti->len,
			       u.chunk_sectors);
	u.stripe_start = (uint64_t)u.stripe * u.chunk_sectors;
	u.others_sectors = (uint64_t)(u.stripes - 1) * u.chunk_sectors;
	if (!fits(&u, ti->len))
		return dm_fail(err, EINVAL,
			       "unstriped: %" PRIu64 " sectors spread over %u stripes from sector %" PRIu64
			       " reach beyond 2^64 sectors",
			       ti->len, u.stripes, u.start);
	error = dm_get_device(ti, argv[3], dm_target_mode(ti), &u.dev, err);
	if (error)
		return error;
	atomic_init(&u.device_sectors, dm_dev_sectors(u.dev));
	ti->private = g_memdup2(&u, sizeof u);
	ti->max_io_sectors = u.chunk_sectors;
	ti->num_discard_bios = 1;
	ti->num_write_zeroes_bios = 1;
	ti->provisions = true;
	ti->split_discards = true;
	return 0;
}

static void unstriped_dtr(struct dm_target *ti)
{
	struct unstriped *u = ti->private;

	dm_put_device(ti, u->dev);
	g_free(u);
}

static uint64_t device_sector(const struct unstriped *u, uint64_t offset)
{
	return u->start + u->stripe_start + offset / u->chunk_sectors * u->others_sectors + offset;
}

/* Asks the device only if it might have grown. */
static bool inside(struct unstriped *u, const struct dm_bio *bio)
{
	uint64_t end = bio->sector + bio->sectors;

	if (end <= atomic_load_explicit(&u->device_sectors, memory_order_relaxed))
		return true;
	atomic_store(&u->device_sectors, dm_dev_sectors(u->dev));
	return end <= atomic_load(&u->device_sectors);
}

static enum dm_mapio unstriped_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct unstriped *u = ti->private;

	bio->dev = u->dev;
	bio->sector = device_sector(u, dm_target_offset(ti, bio->sector));
	return inside(u, bio) ? DM_MAPIO_REMAPPED : DM_MAPIO_KILL;
}

static void unstriped_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct unstriped *u = ti->private;

	if (type == DM_STATUS_INFO)
		return;
	g_string_append_printf(out, "%u %" PRIu32 " %u ", u->stripes, u->chunk_sectors, u->stripe);
	dm_dev_print(u->dev, out);
	g_string_append_printf(out, " %" PRIu64, u->start);
}

static int unstriped_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct unstriped *u = ti->private;

	return fn(ti, u->dev, u->start, ti->len, data);
}

static int unstriped_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct unstriped *u = ti->private;

	sectors = MIN(sectors, u->chunk_sectors - sector % u->chunk_sectors);
	if (device_sector(u, sector) + sectors > dm_dev_sectors(u->dev)) { /* only an error is there */
		*out = (struct dm_extent){.data = true, .sectors = sectors};
		return 0;
	}
	return dm_dev_extent(u->dev, device_sector(u, sector), sectors, out);
}

static uint64_t unstriped_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct unstriped *u = ti->private;
	uint64_t from = device_sector(u, sector), to = device_sector(u, sector + sectors - 1) + 1;

	if (to > dm_dev_sectors(u->dev))
		return sectors;
	return dm_dev_provisioned(u->dev, from, to - from);
}

const struct dm_target_type unstriped_target = {
	.name = "unstriped",
	.version = {1, 1, 0},
	.features = DM_TARGET_FLUSH_DEVICES,
	.ctr = unstriped_ctr,
	.dtr = unstriped_dtr,
	.map = unstriped_map,
	.status = unstriped_status,
	.iterate_devices = unstriped_iterate_devices,
	.extent = unstriped_extent,
	.provisioned = unstriped_provisioned,
};
