/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * zero: reads as zeroes; writes and discards are dropped (zero.txt).
 *
 *   (no arguments)
 */
#include <dmfs/target.h>

static int zero_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	if (argc)
		return dm_fail(err, EINVAL, "zero: No arguments required, but '%s' is one", argv[0]);
	ti->num_flush_bios = 0;
	ti->num_discard_bios = 1;
	ti->num_write_zeroes_bios = 1;
	ti->discards_supported = true;
	return 0;
}

static enum dm_mapio zero_map(struct dm_target *ti, struct dm_bio *bio)
{
	if (bio->op == DM_READ)
		dm_iov_zero(bio->iov, bio->iovcnt, 0, bio->sectors << DM_SECTOR_SHIFT);
	dm_bio_end(bio, 0);
	return DM_MAPIO_SUBMITTED;
}

static int zero_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	*out = (struct dm_extent){.data = false, .sectors = sectors};
	return 0;
}

static uint64_t zero_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	return 0;
}

const struct dm_target_type zero_target = {
	.name = "zero",
	.version = {1, 1, 0},
	.ctr = zero_ctr,
	.map = zero_map,
	.extent = zero_extent,
	.provisioned = zero_provisioned,
};
