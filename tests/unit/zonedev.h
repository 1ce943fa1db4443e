/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A tiny device with zones, in memory: host-managed or host-aware, the first zones conventional.  A sequential zone
 * takes writes at its write pointer alone (host-aware: anywhere), up to its capacity.
 */
#ifndef DMFS_TESTS_ZONEDEV_H
#define DMFS_TESTS_ZONEDEV_H

#include <pthread.h>

#include <dmfs/io.h>

struct zonedev {
	struct dm_dev dev;
	pthread_mutex_t lock;
	uint8_t *data;
	struct dm_zone *zones;
	unsigned n, conventional;
	struct dm_limits limits;
};

/* n zones of so many sectors, of which the sequential ones can use capacity. */
struct zonedev *zonedev_new(enum dm_zone_model model, unsigned n, unsigned conventional, unsigned zone_sectors,
			    unsigned capacity);
static inline void zonedev_put(struct zonedev *z)
{
	dm_dev_put(&z->dev);
}

#endif
