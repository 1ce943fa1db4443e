/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reports of zones (zone.h) on their way up: through a table, and through a target that maps to a device. */
#include <errno.h>

#include "table.h"

/* --- a table: its targets, one after the other ------------------------------------------- */

struct walk {
	dm_zone_fn fn;
	void *data;
	uint64_t left; /* how many zones are still wanted */
	uint64_t next; /* sector of the table */
};

static int walk_zone(const struct dm_zone *zone, void *data)
{
	struct walk *w = data;

	w->left--;
	w->next = zone->start + zone->sectors;
	return w->fn(zone, w->data);
}

int dm_table_report_zones(struct dm_table *t, uint64_t sector, uint64_t max, dm_zone_fn fn, void *data)
{
	struct walk w = {fn, data, max, sector};

	while (w.left && w.next < t->sectors) {
		uint64_t at = w.next;
		struct dm_target *ti = dm_table_find(t, at);
		int error = ti->type->report_zones ?
				    ti->type->report_zones(ti, at - ti->begin, w.left, walk_zone, &w) :
				    -EOPNOTSUPP;

		if (error)
			return error;
		if (w.next <= at) /* the device beneath tells of fewer than it says it has */
			return -EIO;
	}
	return 0;
}

/* --- a target: a device's zones are its own ----------------------------------------------- */

struct remap {
	dm_zone_fn fn;
	void *data;
	uint64_t from, to; /* the sector of the device, and what it is called above */
};

static int remap_zone(const struct dm_zone *zone, void *data)
{
	const struct remap *r = data;
	struct dm_zone above = *zone;

	above.start = zone->start - r->from + r->to;
	if (zone->type != DM_ZONE_CONVENTIONAL)
		above.wp = zone->wp - r->from + r->to;
	return r->fn(&above, r->data);
}

int dm_target_report_zones(struct dm_target *ti, struct dm_dev *dev, uint64_t start, uint64_t sector, uint64_t max,
			   dm_zone_fn fn, void *data)
{
	struct remap r = {fn, data, start, ti->begin};
	struct dm_limits limits;
	uint64_t zones;

	dm_dev_limits(dev, &limits);
	if (!limits.zone_model)
		return -EOPNOTSUPP;
	zones = (ti->len - 1) / limits.zone_sectors - sector / limits.zone_sectors + 1;
	return dm_dev_report_zones(dev, start + sector, MIN(max, zones), remap_zone, &r);
}
