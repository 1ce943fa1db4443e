/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A zoned disk in memory, for what opens one (zoned_open.c) and what it does (zoned_file.c). */
#ifndef DMFS_IO_ZONED_DISK_H
#define DMFS_IO_ZONED_DISK_H

#include <pthread.h>

#include <dmfs/work.h>

#include "zoned.h"

/* A write to a sequential zone that is under way. */
struct zone_write {
	struct dm_bio bio; /* its own, to the file */
	struct dm_bio *whole;
	struct zoned_disk *disk;
	struct zone_write *next;
	unsigned zone;
	uint32_t offset;
	bool forgotten; /* the zone was reset meanwhile */
};

struct zoned_disk {
	int refs; /* under the lock of all disks, as these two */
	uint64_t id[3];
	void (*gone)(struct zoned_disk *); /* before it goes; NULL */
	pthread_mutex_t lock;
	struct zone_rules r;
	struct zone_write **writes; /* a zone's that are under way; by zone */
	GArray *changed;	    /* unsigned: zones to be kept */
	uint8_t *is_changed;	    /* a bit a zone */
	struct dm_bio_list waiting;
	struct dm_wq *wq;
	struct dm_work work;
	/* The queue's. */
	struct zones_keeper *keeper; /* NULL: it is only read */
	size_t batches;		     /* bytes since the whole was written */
	size_t base;
	unsigned commits;
	bool broken; /* what the keeper has is not known: the whole is written anew */
};

struct zoned_dev {
	struct dm_dev dev;
	struct dm_dev *inner;
	struct zoned_disk *disk;
};

/* All takes zones and keeper over; the device takes inner and a reference to the disk. */
struct zoned_disk *zoned_disk_new(struct zones *z, struct zones_keeper *keeper);
struct dm_dev *zoned_dev_new(struct dm_dev *inner, struct zoned_disk *d);
/* Of all disks: their references, and which files are disks. */
extern pthread_mutex_t zoned_disks_lock;

#endif
