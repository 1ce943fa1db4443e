/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An array on the way to another shape: what reshape.c and reshape10.c share. */
#ifndef DMFS_TARGETS_RAID_RESHAPE_H
#define DMFS_TARGETS_RAID_RESHAPE_H

#include "raid.h"

#define RAID_RESHAPE_MOST 8192u /* sectors of a window, if a row or chunk is not larger */

struct reshape {
	struct raid_geo from_geo, to_geo;
	struct raid_stripes *from, *to; /* not raid10's */
	struct dm_block_lock *lock;	/* of the array's sectors */
	uint64_t moves;			/* sectors that are somewhere before; what follows them becomes zeroes */
	uint64_t sectors;		/* with these */
	_Atomic uint64_t position;	/* what lies before it has moved; backwards: from it on */
};

static inline bool raid_is_raid10(const struct reshape *rs)
{
	return rs->from_geo.level == 10;
}

/* --- reshape10.c ----------------------------------------------------------------------------- */

/* A boundary before which, or from which on, nothing has moved, or all has. */
static inline uint64_t raid_all_old(const struct raid *r)
{
	return r->state.backwards ? UINT64_MAX : 0;
}

static inline uint64_t raid_all_new(const struct raid *r)
{
	return r->state.backwards ? 0 : UINT64_MAX;
}

/*
 * Reads or writes sectors of a raid10 where they are if the boundary is the position; done() is called at the end with
 * 0 or a negative errno, in any thread.  The caller has a claim for them: shared to read, exclusive to write.  Never
 * waits.
 */
void raid10_bio(struct raid *r, struct dm_bio *bio, uint64_t sector, uint64_t boundary,
		void (*done)(void *private, int error), void *private);
/* The same with data in memory, and waits. */
int raid10_io(struct raid *r, enum dm_op op, uint64_t sector, uint64_t sectors, uint64_t boundary, void *data);
/* How many sectors to move next: from the position on, backwards before it. */
uint64_t raid10_window(const struct raid *r, const struct reshape *rs, uint64_t position);
/* Whether the new places of sectors begin to end are old places of some that are not known to have moved before. */
bool raid10_hits_old(const struct raid *r, const struct reshape *rs, uint64_t begin, uint64_t end);
/* Whether windows can go all the way from the beginning without that. */
bool raid10_has_way(const struct raid *r, const struct reshape *rs);

#endif
