/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the raid customers share: target_raid.c has it, target_raid_reshape.c uses it too. */
#ifndef DMFS_TESTS_CRASH_RAID_H
#define DMFS_TESTS_CRASH_RAID_H

#include "lab.h"

#define DEV_SECTORS 256u
#define META_SECTORS 16u

/* As the newest superblock has it, when the stack is opened on what a power loss has left. */
struct kept {
	uint64_t failed;   /* devices, as bits */
	uint64_t behind;   /* those that are not rebuilt, by their own superblocks */
	uint64_t resync;   /* how far the array has been synchronised; all ones: it has been */
	uint64_t position; /* of a reshape; all ones: none */
	uint32_t layout, chunk;
	unsigned line; /* which line was taken: a reshape's matter */
};

/* Looks at the superblocks of m0, m1, …; name: the metadata device that has the newest. */
int raid_newest(struct lab *lab, unsigned disks, char *name, GError **err);
/*
 * Whether a sector of a raid5_ls, raid5_ra, raid6_zr or raid6_nr whose data begins at offset is on a device that is
 * out, in a row where the power failed while something was written.
 */
bool raid_in_hole(struct lab *lab, const char *type, unsigned disks, unsigned chunk, uint64_t sector, uint64_t offset);
/* Once it is whole and in sync a check must find nothing. */
int raid_check_array(struct lab *lab, const char *name, unsigned disks, GError **err);
/* Suspends and resumes; false after an error. */
bool raid_pause(struct lab *lab, const char *name);
/* raid6 goes on synchronising without one device, but is not started so: that is a dirty degraded array. */
bool raid_excuse(struct lab *lab, const char *volume);

#define RAID_SLICES2(room)                                                                                             \
	{                                                                                                              \
		{"m0", META_SECTORS}, {"m1", META_SECTORS}, {"d0", DEV_SECTORS + (room)},                              \
		{                                                                                                      \
			"d1", DEV_SECTORS + (room)                                                                     \
		}                                                                                                      \
	}
#define RAID_SLICES3(room)                                                                                             \
	{                                                                                                              \
		{"m0", META_SECTORS}, {"m1", META_SECTORS}, {"m2", META_SECTORS}, {"d0", DEV_SECTORS + (room)},        \
		    {"d1", DEV_SECTORS + (room)},                                                                      \
		{                                                                                                      \
			"d2", DEV_SECTORS + (room)                                                                     \
		}                                                                                                      \
	}
#define RAID_SLICES4(room)                                                                                             \
	{                                                                                                              \
		{"m0", META_SECTORS}, {"m1", META_SECTORS}, {"m2", META_SECTORS}, {"m3", META_SECTORS},                \
		    {"d0", DEV_SECTORS + (room)}, {"d1", DEV_SECTORS + (room)}, {"d2", DEV_SECTORS + (room)},          \
		{                                                                                                      \
			"d3", DEV_SECTORS + (room)                                                                     \
		}                                                                                                      \
	}

#endif
