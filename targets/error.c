/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * error: fails every bio with EIO.  io-err is its first name.
 *
 *   (arguments are not looked at, as in the kernel)
 *
 * A FLUSH of a table that has other targets is theirs: a device with one bad range must not fail every fsync.
 */
#include <dmfs/target.h>

static int error_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	ti->num_discard_bios = 1;
	ti->num_write_zeroes_bios = 1;
	ti->discards_supported = true;
	return 0;
}

static enum dm_mapio error_map(struct dm_target *ti, struct dm_bio *bio)
{
	return DM_MAPIO_KILL;
}

const struct dm_target_type error_target = {
	.name = "error",
	.version = {1, 5, 0},
	.features = DM_TARGET_FLUSH_LAST | DM_TARGET_WILDCARD,
	.ctr = error_ctr,
	.map = error_map,
};

/* Prints as `error`, for the engine swaps in the type it is an alias of. */
const struct dm_target_type io_err_target = {
	.name = "io-err",
	.alias_of = &error_target,
};
