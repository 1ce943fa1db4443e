/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * raid0: rows of chunks without parity.
 *
 * What a bio has on one device follows each other there, so each device gets
 * one bio for all of its part.
 */
#include "raid.h"

static int raid0_start(struct raid *r, GError **err)
{
	return 0;
}

static void raid0_stop(struct raid *r)
{
}

static void raid0_done(struct raid_runs *runs, void *private)
{
	struct dm_bio *bio = private;
	int error = raid_runs_error(runs);

	raid_runs_free(runs);
	dm_bio_end(bio, error);
}

static enum dm_mapio raid0_map(struct raid *r, struct dm_bio *bio, struct raid_bio *rb)
{
	uint64_t sector = rb->sector, end = sector + bio->sectors, at;
	struct raid_runs *runs;

	if (raid_geo_run(&r->geo, sector) >= bio->sectors) {
		struct raid_member *m = &r->members[raid_row_map(&r->geo, sector, &at)];

		bio->dev = m->data;
		bio->sector = m->data_offset + at;
		return DM_MAPIO_REMAPPED;
	}
	runs = raid_runs_new(r, bio, (unsigned)((end - 1) / r->geo.chunk - sector / r->geo.chunk + 1), raid0_done, bio);
	for (uint64_t n; sector < end; sector += n) {
		unsigned disk = raid_row_map(&r->geo, sector, &at);

		n = MIN(end - sector, raid_geo_run(&r->geo, sector));
		raid_runs_add(runs, disk, at, sector - rb->sector, n);
	}
	raid_runs_submit(runs);
	return DM_MAPIO_SUBMITTED;
}

const struct raid_ops raid0_ops = {
	.start = raid0_start,
	.stop = raid0_stop,
	.map = raid0_map,
};
