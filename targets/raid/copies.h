/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reading chunks that lie in several places: what raid1 and raid10 (copies.c) share with a raid10 on the way to another
 * shape (reshape10.c), which has two geometries.
 */
#ifndef DMFS_TARGETS_RAID_COPIES_H
#define DMFS_TARGETS_RAID_COPIES_H

#include "raid.h"

/*
 * The places of sectors within a chunk, into copies[geo->copies], and which of them a read goes to; -1: none has them.
 * Where they may differ it is always the same one.
 */
int raid_copies_choose(struct raid *r, const struct raid_geo *geo, uint64_t sector, uint64_t sectors,
		       struct raid_copy *copies);

/*
 * Reads sectors within a chunk from place after place, in smaller and smaller pieces; a place that failed gets what
 * another had.  moved: at the devices' new data offsets.  Waits; nobody writes to the sectors meanwhile.
 * 0 or a negative errno.
 */
int raid_copies_read(struct raid *r, const struct raid_geo *geo, bool moved, uint64_t sector, uint64_t sectors,
		     uint8_t *buf);

#endif
