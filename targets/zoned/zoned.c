/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * zoned: zoned devices as one that can be written anywhere (dm-zoned.rst).
 *
 *   <zoned dev>
 *   <regular dev> <zoned dev>...
 *
 * The device is cut into chunks of the size of a zone.  A chunk lies in a zone: one for random writes, or a sequential
 * one, and then it may have one for random writes as a buffer.  A block is valid in one of the two or in none, and then
 * it is zeroes.
 *
 * FLUSH and FUA commit the metadata, after the data.
 */
#include <inttypes.h>

#include <dmfs/claim.h>

#include "zoned.h"

#define IO_THREADS 8u
#define MAX_DEVS 255

static int commit(void *context)
{
	struct zoned *z = context;
	bool freed;
	int error = zoned_meta_commit(z->meta, &freed);

	if (freed)
		zoned_feed(z);
	return error;
}

/* --- suspend and resume ------------------------------------------------------------------- */

/* The table before this one may have changed the metadata since ctr has looked. */
static int zoned_preresume(struct dm_target *ti, GError **err)
{
	struct zoned *z = ti->private;
	struct zoned_meta *fresh, *old = z->meta;
	int error = zoned_meta_open(&z->g, dm_target_mode(ti) & DM_MODE_WRITE, &fresh, err);

	if (error)
		return error;
	dm_status_pause(ti, NULL);
	z->meta = fresh;
	z->chunks = zoned_meta_chunks(fresh);
	dm_status_go_on(ti, NULL);
	zoned_meta_close(old);
	return 0;
}

static void zoned_resume(struct dm_target *ti)
{
	struct zoned *z = ti->private;

	atomic_store(&z->last_io_ns, dm_now_ns());
	atomic_store(&z->stopped, false);
	if (zoned_meta_pending(z->meta))
		dm_group_commit_soon(z->commits, 0);
	if (zoned_meta_reclaimable(z->meta))
		zoned_reclaim_check(z);
}

static void zoned_presuspend(struct dm_target *ti)
{
	struct zoned *z = ti->private;

	atomic_store(&z->stopped, true);
}

static void zoned_presuspend_undo(struct dm_target *ti)
{
	zoned_resume(ti);
}

static void zoned_postsuspend(struct dm_target *ti)
{
	struct zoned *z = ti->private;
	int error;

	zoned_reclaim_stop(z);
	error = dm_group_commit_sync(z->commits);
	dm_group_commit_settle(z->commits);
	if (error)
		dm_log_err("zoned: the metadata could not be committed: %s", g_strerror(-error));
}

static void zoned_commit(struct dm_target *ti)
{
	struct zoned *z = ti->private;

	dm_group_commit_sync(z->commits);
}

/* --- messages and status ------------------------------------------------------------------- */

static int zoned_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	struct zoned *z = ti->private;

	if (g_ascii_strcasecmp(argv[0], "reclaim"))
		return dm_fail(err, EINVAL, "zoned: unrecognized message '%s', reclaim is known", argv[0]);
	if (!(dm_target_mode(ti) & DM_MODE_WRITE))
		return dm_fail(err, EROFS, "zoned: the device is read-only");
	atomic_store(&z->forced, true);
	zoned_reclaim_now(z);
	return 0;
}

static void zoned_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct zoned *z = ti->private;

	if (type == DM_STATUS_INFO) {
		zoned_meta_status(z->meta, out);
		return;
	}
	for (unsigned d = 0; d < z->g.n; d++) {
		if (d)
			g_string_append_c(out, ' ');
		dm_dev_print(z->g.devs[d].dev, out);
	}
}

/* --- the target -------------------------------------------------------------------------------- */

static void zoned_dtr(struct dm_target *ti)
{
	struct zoned *z = ti->private;
	struct dm_bio_list none;

	atomic_store(&z->stopped, true);
	zoned_reclaim_stop(z);
	dm_wq_free(z->reclaim_wq);
	dm_group_commit_free(z->commits);
	dm_wq_free(z->commit_wq);
	dm_wq_free(z->io_wq);
	zoned_meta_close(z->meta);
	dm_bio_list_init(&none);
	dm_hold_open(&z->starving, &none);
	dm_hold_destroy(&z->starving);
	dm_block_lock_free(z->lock);
	for (unsigned d = 0; d < z->g.n; d++)
		if (z->g.devs[d].dev)
			dm_put_device(ti, z->g.devs[d].dev);
	g_free(z->g.devs);
	g_free(z);
}

static int open_devices(struct zoned *z, char **argv, GError **err)
{
	enum dm_mode mode = dm_target_mode(z->ti);

	for (unsigned d = 0; d < z->g.n; d++) {
		int error = dm_get_device(z->ti, argv[d], mode, &z->g.devs[d].dev, err);

		if (error) {
			g_prefix_error(err, "zoned: Get target device failed: ");
			return error;
		}
		for (unsigned other = 0; other < d; other++)
			if (dm_dev_same(z->g.devs[d].dev, z->g.devs[other].dev))
				return dm_fail(err, EINVAL, "zoned: device '%s' is there twice", argv[d]);
		error = dm_claim_device(z->ti, z->g.devs[d].dev, mode, "device", err);
		if (error)
			return error;
	}
	return 0;
}

static struct zoned *zoned_new(struct dm_target *ti, unsigned n)
{
	struct zoned *z = g_new0(struct zoned, 1);

	z->ti = ti;
	z->g.n = n;
	z->g.devs = g_new0(struct zoned_dev, n);
	z->lock = dm_block_lock_new(0);
	z->io_wq = dm_wq_new("zoned", IO_THREADS);
	z->commit_wq = dm_wq_new("zoned-commit", 1);
	z->reclaim_wq = dm_wq_new("zoned-reclaim", 1);
	z->commits = dm_group_commit_new(z->commit_wq, commit, z);
	dm_hold_init(&z->starving, NULL, 0);
	dm_hold_close(&z->starving);
	atomic_init(&z->stopped, true);
	zoned_reclaim_init(z);
	return z;
}

static int zoned_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct zoned *z;
	int error;

	if (argc < 1 || argc > MAX_DEVS)
		return dm_fail(err, EINVAL, "zoned: Invalid argument count: %d, 1 to %d devices are needed", argc,
			       MAX_DEVS);
	ti->private = z = zoned_new(ti, (unsigned)argc);
	error = open_devices(z, argv, err);
	if (!error)
		error = zoned_geometry(&z->g, err);
	if (!error)
		error = zoned_meta_open(&z->g, false, &z->meta, err);
	if (error) {
		zoned_dtr(ti);
		return error;
	}
	z->chunks = zoned_meta_chunks(z->meta);
	ti->per_bio_size = (uint32_t)zoned_bio_size();
	ti->max_io_sectors = z->g.zone_sectors;
	ti->num_discard_bios = 1;
	ti->num_write_zeroes_bios = 1;
	ti->split_discards = true;
	ti->discards_supported = true;
	dm_target_set_capacity(ti, MIN(ti->len, (uint64_t)z->chunks * z->g.zone_sectors));
	return 0;
}

static int zoned_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct zoned *z = ti->private;
	int r = 0;

	for (unsigned d = 0; d < z->g.n && !r; d++) {
		uint64_t sectors = dm_dev_sectors(z->g.devs[d].dev);

		r = fn(ti, z->g.devs[d].dev, 0, sectors - sectors % z->g.zone_sectors, data);
	}
	return r;
}

static void zoned_io_hints(struct dm_target *ti, struct dm_limits *limits)
{
	struct zoned *z = ti->private;

	limits->logical_block_size = limits->physical_block_size = ZONED_BLOCK;
	limits->io_min = limits->io_opt = ZONED_BLOCK;
	limits->discard_granularity = ZONED_BLOCK;
	limits->max_discard_sectors = z->g.zone_sectors;
	limits->discard_zeroes = true;
}

/* A chunk that nobody has written to takes no space. */
static int zoned_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct zoned *z = ti->private;
	uint64_t chunk = sector / z->g.zone_sectors;

	out->sectors = MIN(sectors, (chunk + 1) * z->g.zone_sectors - sector);
	out->data = chunk < z->chunks && zoned_meta_mapped(z->meta, (uint32_t)chunk);
	return 0;
}

const struct dm_target_type zoned_target = {
    .name = "zoned",
    .version = {2, 0, 0},
    .features = DM_TARGET_SINGLETON | DM_TARGET_MIXED_ZONES,
    .ctr = zoned_ctr,
    .dtr = zoned_dtr,
    .map = zoned_map,
    .end_io = zoned_end_io,
    .presuspend = zoned_presuspend,
    .presuspend_undo = zoned_presuspend_undo,
    .postsuspend = zoned_postsuspend,
    .preresume = zoned_preresume,
    .resume = zoned_resume,
    .status = zoned_status,
    .commit = zoned_commit,
    .message = zoned_message,
    .iterate_devices = zoned_iterate_devices,
    .io_hints = zoned_io_hints,
    .extent = zoned_extent,
};
