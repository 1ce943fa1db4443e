/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "zonedev.h"

#include <errno.h>
#include <string.h>

static struct dm_zone *zone_at(struct zonedev *z, uint64_t sector)
{
	return &z->zones[sector / z->limits.zone_sectors];
}

/* A write of a bio's data at a sector of a zone. */
static int write_at(struct zonedev *z, struct dm_zone *zone, struct dm_bio *bio, uint64_t sector)
{
	bool sequential = zone->type != DM_ZONE_CONVENTIONAL;

	if (sector + bio->sectors > zone->start + (sequential ? zone->capacity : zone->sectors))
		return -EIO;
	if (zone->type == DM_ZONE_SEQUENTIAL && (zone->condition == DM_ZONE_FULL || sector != zone->wp))
		return -EIO;
	dm_iov_read(bio->iov, bio->iovcnt, 0, z->data + sector * 512, bio->sectors * 512);
	if (!sequential)
		return 0;
	zone->wp = MAX(zone->wp, sector + bio->sectors);
	if (zone->wp == zone->start + zone->capacity)
		zone->condition = DM_ZONE_FULL;
	else if (zone->condition != DM_ZONE_EXPLICITLY_OPEN)
		zone->condition = DM_ZONE_IMPLICITLY_OPEN;
	return 0;
}

static void reset(struct zonedev *z, struct dm_zone *zone)
{
	memset(z->data + zone->start * 512, 0, zone->sectors * 512);
	zone->wp = zone->start;
	zone->condition = DM_ZONE_EMPTY;
}

static int reset_all(struct zonedev *z, const struct dm_bio *bio)
{
	for (uint64_t at = bio->sector; at < bio->sector + bio->sectors; at += z->limits.zone_sectors)
		if (zone_at(z, at)->type != DM_ZONE_CONVENTIONAL)
			reset(z, zone_at(z, at));
	return 0;
}

static int manage(struct zonedev *z, const struct dm_bio *bio)
{
	struct dm_zone *zone = zone_at(z, bio->sector);

	if (bio->op == DM_ZONE_RESET_ALL)
		return reset_all(z, bio);
	if (zone->type == DM_ZONE_CONVENTIONAL || bio->sector != zone->start || bio->sectors != zone->sectors)
		return -EINVAL;
	if (bio->op == DM_ZONE_RESET)
		reset(z, zone);
	else if (bio->op == DM_ZONE_OPEN)
		zone->condition = DM_ZONE_EXPLICITLY_OPEN;
	else if (bio->op == DM_ZONE_CLOSE)
		zone->condition = zone->wp == zone->start ? DM_ZONE_EMPTY : DM_ZONE_CLOSED;
	else
		zone->condition = DM_ZONE_FULL;
	return 0;
}

static int carry_out(struct zonedev *z, struct dm_bio *bio)
{
	struct dm_zone *zone;
	int error;

	if (bio->op == DM_FLUSH)
		return 0;
	if (bio->sector + bio->sectors > (uint64_t)z->n * z->limits.zone_sectors)
		return -EIO;
	if (dm_op_manages_zones(bio->op))
		return manage(z, bio);
	zone = zone_at(z, bio->sector);
	if (bio->sector + bio->sectors > zone->start + zone->sectors)
		return -EINVAL; /* over a border: nobody sends that */
	switch (bio->op) {
	case DM_READ:
		dm_iov_write(bio->iov, bio->iovcnt, 0, z->data + bio->sector * 512, bio->sectors * 512);
		return 0;
	case DM_WRITE:
		return write_at(z, zone, bio, bio->sector);
	case DM_ZONE_APPEND:
		if (zone->type == DM_ZONE_CONVENTIONAL || bio->sector != zone->start)
			return -EINVAL;
		bio->sector = zone->wp;
		error = write_at(z, zone, bio, zone->wp);
		return error;
	default:
		return -EOPNOTSUPP;
	}
}

static void zone_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	struct zonedev *z = (struct zonedev *)dev;
	int error;

	pthread_mutex_lock(&z->lock);
	error = carry_out(z, bio);
	pthread_mutex_unlock(&z->lock);
	dm_bio_end(bio, error);
}

static uint64_t zone_dev_sectors(struct dm_dev *dev)
{
	struct zonedev *z = (struct zonedev *)dev;

	return (uint64_t)z->n * z->limits.zone_sectors;
}

static void zone_limits(struct dm_dev *dev, struct dm_limits *l)
{
	*l = ((struct zonedev *)dev)->limits;
}

static int zone_report(struct dm_dev *dev, uint64_t sector, uint64_t max, dm_zone_fn fn, void *data)
{
	struct zonedev *z = (struct zonedev *)dev;
	uint64_t first = sector / z->limits.zone_sectors;
	int error = 0;

	for (uint64_t i = first; i < z->n && i - first < max && !error; i++) {
		struct dm_zone zone;

		pthread_mutex_lock(&z->lock);
		zone = z->zones[i];
		pthread_mutex_unlock(&z->lock);
		error = fn(&zone, data);
	}
	return error;
}

static void zone_print(struct dm_dev *dev, GString *out)
{
	g_string_append_printf(out, "/zones/%p", (void *)dev);
}

static void zone_identity(struct dm_dev *dev, uint64_t id[3])
{
	id[0] = id[1] = 1;
	id[2] = (uintptr_t)dev;
}

static void zone_free(struct dm_dev *dev)
{
	struct zonedev *z = (struct zonedev *)dev;

	pthread_mutex_destroy(&z->lock);
	g_free(z->zones);
	g_free(z->data);
	g_free(z);
}

static const struct dm_dev_ops zone_ops = {
	.submit = zone_submit,
	.sectors = zone_dev_sectors,
	.limits = zone_limits,
	.report_zones = zone_report,
	.print = zone_print,
	.identity = zone_identity,
	.free = zone_free,
};

struct zonedev *zonedev_new(enum dm_zone_model model, unsigned n, unsigned conventional, unsigned zone_sectors,
			    unsigned capacity)
{
	struct zonedev *z = g_new0(struct zonedev, 1);

	z->dev.ops = &zone_ops;
	atomic_init(&z->dev.refs, 1);
	z->dev.mode = DM_MODE_RW;
	pthread_mutex_init(&z->lock, NULL);
	z->n = n;
	z->conventional = conventional;
	z->data = g_malloc0((size_t)n * zone_sectors * 512);
	z->zones = g_new0(struct dm_zone, n);
	z->limits = (struct dm_limits){
		.logical_block_size = 512,
		.physical_block_size = 512,
		.zone_model = model,
		.zone_sectors = zone_sectors,
		.zone_capacity = capacity,
		.max_open_zones = 4,
		.max_active_zones = 6,
		.max_append_sectors = capacity,
	};
	for (unsigned i = 0; i < n; i++) {
		bool plain = i < conventional;

		z->zones[i] = (struct dm_zone){
			.type = plain			       ? DM_ZONE_CONVENTIONAL :
				model == DM_ZONES_HOST_MANAGED ? DM_ZONE_SEQUENTIAL :
								 DM_ZONE_SEQUENTIAL_PREFERRED,
			.condition = plain ? DM_ZONE_NOT_WP : DM_ZONE_EMPTY,
			.start = (uint64_t)i * zone_sectors,
			.sectors = zone_sectors,
			.capacity = plain ? zone_sectors : capacity,
			.wp = (uint64_t)i * zone_sectors,
		};
	}
	return z;
}
