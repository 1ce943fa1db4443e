/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where an array's sectors lie on its devices: pure geometry, no I/O.
 *
 * Three families:
 *
 *   rows     raid0, raid4/5/6.  A row is one chunk on every device at the same
 *            place; the data chunks of a row are numbered 0 to data - 1 in the
 *            order of the array's sectors, the others are P and Q.
 *   copies   raid1, raid10.  Each chunk lies in several places.
 *
 * Levels and layouts are md's numbers, as superblocks have them.  All counts are in sectors; device sectors count from
 * where the array's data begins there.
 */
#ifndef DMFS_TARGETS_RAID_LAYOUT_H
#define DMFS_TARGETS_RAID_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#define RAID_MAX_DISKS 253u

enum raid_layout {
	RAID5_LA = 0, /* raid6 as well, to RAID5_RS: P and Q rotate together */
	RAID5_RA = 1,
	RAID5_LS = 2,
	RAID5_RS = 3,
	RAID5_FIRST = 4, /* parity on the first device: what dm-raid calls raid4 */
	RAID5_N = 5,	 /* on the last; raid6: P and Q on the last two */
	RAID6_ZR = 8,
	RAID6_NR = 9,
	RAID6_NC = 10,
	RAID6_LA_6 = 16,
	RAID6_RA_6 = 17,
	RAID6_LS_6 = 18,
	RAID6_RS_6 = 19,
};

/* raid10's layout: near copies in bits 0 to 7, far ones in 8 to 15. */
#define RAID10_OFFSET (1u << 16)
#define RAID10_FAR_SETS (1u << 18)

struct raid_geo {
	unsigned level; /* 0, 1, 5, 6 or 10 */
	unsigned layout;
	unsigned disks;
	unsigned chunk;	      /* a power of two; 0 for raid1 */
	uint64_t dev_sectors; /* used of each device */
	/* derived */
	unsigned parity;	    /* 0 to 2 */
	unsigned data;		    /* data chunks in a row (rows only) */
	unsigned near, far, copies; /* copies only */
	unsigned set;		    /* devices of a far set */
	uint64_t stride;	    /* between far copies */
};

/* Fills in the derived fields and rounds dev_sectors down to whole chunks; false if these numbers make no array. */
bool raid_geo_init(struct raid_geo *g, unsigned level, unsigned layout, unsigned disks, unsigned chunk,
		   uint64_t dev_sectors);
static inline bool raid_geo_rows(const struct raid_geo *g)
{
	return g->level == 0 || g->level == 5 || g->level == 6;
}
/* How much such an array holds. */
uint64_t raid_geo_array_sectors(const struct raid_geo *g);

/* --- rows ------------------------------------------------------------------------------- */

/* Which devices P and Q of a row are on; -1 where the level has none. */
void raid_row_parity(const struct raid_geo *g, uint64_t row, int *p, int *q);
/* The device of a row's data chunk k. */
unsigned raid_row_disk(const struct raid_geo *g, uint64_t row, unsigned k);
/* Which data chunk of the row a device holds, -1 for P, -2 for Q. */
int raid_row_slot(const struct raid_geo *g, uint64_t row, unsigned disk);
/* raid6: whether Q's exponents are the devices' numbers, P and Q counted as zeroes. */
static inline bool raid_geo_by_disk(const struct raid_geo *g)
{
	return g->level == 6 && g->layout >= RAID6_ZR && g->layout <= RAID6_NC;
}
/* raid6: whether they are counted from the device behind Q on, around; else from the first. */
static inline bool raid_geo_from_q(const struct raid_geo *g)
{
	return g->level == 6 && g->layout <= RAID5_RS;
}
/* raid6: Q is the sum of 2^exponent times each data chunk.  disk holds data. */
unsigned raid_row_exponent(const struct raid_geo *g, uint64_t row, unsigned disk);
/* The device and its sector of a sector of the array. */
unsigned raid_row_map(const struct raid_geo *g, uint64_t sector, uint64_t *dev_sector);

/* --- copies ------------------------------------------------------------------------------ */

struct raid_copy {
	unsigned disk;
	uint64_t sector;
};

/* The places of a sector of the array, into copies[g->copies], the first one first. */
void raid_copies(const struct raid_geo *g, uint64_t sector, struct raid_copy *copies);
/* The sector of the array that a device's sector holds a copy of; false if it holds none. */
bool raid_copy_of(const struct raid_geo *g, unsigned disk, uint64_t dev_sector, uint64_t *sector);
/*
 * raid10 without far copies elsewhere than in the same rows (near, offset), in whole rows.  Device sectors: before
 * first() there is nothing from a sector of the array on, from end() on nothing before it.  Sectors of the array:
 * below() all lie before a device's sector, from above() on all lie behind it.
 */
uint64_t raid_copies_first(const struct raid_geo *g, uint64_t sector);
uint64_t raid_copies_end(const struct raid_geo *g, uint64_t sector);
uint64_t raid_copies_below(const struct raid_geo *g, uint64_t dev_sector);
uint64_t raid_copies_above(const struct raid_geo *g, uint64_t dev_sector);
/* Sectors that lie together from this one on: to the chunk's end. */
static inline uint64_t raid_geo_run(const struct raid_geo *g, uint64_t sector)
{
	return g->chunk ? g->chunk - (sector & (g->chunk - 1)) : UINT64_MAX;
}

#endif
