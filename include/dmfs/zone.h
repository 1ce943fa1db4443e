/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Zones: a device whose limits have a zone model is made of zones of zone_sectors each (the last may be shorter).  A
 * sequential zone is written at its write pointer alone, from its start to its capacity, and is reset as a whole.
 *
 * The operations on a zone (DM_ZONE_OPEN, CLOSE, FINISH, RESET) have the zone's start and length as their range;
 * DM_ZONE_RESET_ALL has a range of whole zones and leaves those in it alone that are not sequential.  DM_ZONE_APPEND
 * writes at the write pointer: its sector is the zone's start, and at end() the sector that its data begins at.  It
 * is never split: it is at most max_append_sectors of the limits long.
 *
 * What is mapped keeps its place in its zone: a target begins and ends with zones, and so does its range of the
 * device beneath.  Reads and writes are split at the zones' borders, and the parts of a write go out one after the
 * other.  Sectors count from the begin of the device that the question or the bio is put to.
 */
#ifndef DMFS_ZONE_H
#define DMFS_ZONE_H

#include <stdint.h>

enum dm_zone_model {
	DM_ZONES_NONE,
	DM_ZONES_HOST_AWARE,   /* sequential zones may be written anywhere, but should not */
	DM_ZONES_HOST_MANAGED, /* and must not */
};

enum dm_zone_type {
	DM_ZONE_CONVENTIONAL = 1,
	DM_ZONE_SEQUENTIAL = 2,           /* host-managed */
	DM_ZONE_SEQUENTIAL_PREFERRED = 3, /* host-aware */
};

/* Numbers as in linux/blkzoned.h. */
enum dm_zone_condition {
	DM_ZONE_NOT_WP = 0, /* conventional: there is no write pointer */
	DM_ZONE_EMPTY = 1,
	DM_ZONE_IMPLICITLY_OPEN = 2, /* by a write */
	DM_ZONE_EXPLICITLY_OPEN = 3, /* by DM_ZONE_OPEN */
	DM_ZONE_CLOSED = 4,
	DM_ZONE_READONLY = 13,
	DM_ZONE_FULL = 14,
	DM_ZONE_OFFLINE = 15,
};

struct dm_zone {
	enum dm_zone_type type;
	enum dm_zone_condition condition;
	uint64_t start, sectors;
	uint64_t capacity; /* sectors from the start on that can be used */
	uint64_t wp;       /* sector that is written next; of a sequential zone that is not full, read-only or offline */
};

/* Is told of one zone; 0 to go on, or a negative errno to stop with. */
typedef int (*dm_zone_fn)(const struct dm_zone *zone, void *data);

struct dm_dev;
struct dm_target;

/*
 * Tells of at most max zones, from the one that holds a sector on, in order.  0 or a negative errno: fn's,
 * -EOPNOTSUPP without zones, -EAGAIN while a dmfs device is suspended, a device's own.  May block on I/O: not from
 * map() or an end().
 */
int dm_dev_report_zones(struct dm_dev *dev, uint64_t sector, uint64_t max, dm_zone_fn fn, void *data);

/*
 * For a target's report_zones: the zones of the device beneath it as the target's.  start is the sector of dev that
 * the target's first one is mapped to; sector counts from the target's begin.
 */
int dm_target_report_zones(struct dm_target *ti, struct dm_dev *dev, uint64_t start, uint64_t sector, uint64_t max,
			   dm_zone_fn fn, void *data);

#endif
