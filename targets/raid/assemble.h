/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an array is, from its line and the superblocks found: which of them is right, which devices can be trusted,
 * whether it is new, taken over by another level, or about to change its shape.  No I/O.
 */
#ifndef DMFS_TARGETS_RAID_ASSEMBLE_H
#define DMFS_TARGETS_RAID_ASSEMBLE_H

#include "super.h"

struct raid_found {
	bool has_data, has_meta; /* given in the line */
	bool readable;		 /* the superblock's sector could be read */
	bool has_super;		 /* and there is one */
	struct raid_super sb;
	uint64_t data_sectors; /* size of the data device */
};

struct raid_member_state {
	bool faulty;	    /* given, but not to be used */
	bool in_sync;	    /* holds what it should, everywhere */
	bool partial;	    /* not in sync, but only where the bitmap says so */
	uint64_t recovered; /* if not in sync: it is up to here; RAID_NONE else */
	uint64_t data_offset, new_data_offset;
};

struct raid_state {
	unsigned level, layout, chunk, disks; /* in a reshape: of before, but for disks, which is the larger number */
	unsigned new_level, new_layout, new_chunk;
	int delta_disks;
	bool backwards;
	_Atomic uint64_t reshape_position; /* of the array; RAID_NONE: none */
	uint64_t dev_sectors;	   /* used of each device, whole chunks */
	uint64_t array_sectors;
	uint64_t events;
	uint64_t resync_offset;
	bool persistent;	     /* there are metadata devices */
	bool ours;          /* nobody else has written the superblocks since a journal was begun */
	bool new_bitmap;	     /* what is in the bitmap's place means nothing */
	bool save;		     /* the superblocks must be written before it starts */
	bool begin_reshape;	     /* a change of shape was asked for: it is set up, and runs from the next load on */
	struct raid_member_state *m; /* of each device in the line */
};

/*
 * How many of a line's devices, the last ones, are spares: an array of parity or raid10 has fewer, and all others are to
 * be rebuilt.  So LVM names devices that a reshape is to add, in a line before that of the reshape.  They get no
 * superblock here (the kernel gives them one of no device, RAID_SPARE), and are not used.
 */
unsigned raid_spares(const struct raid_params *p, const struct raid_found *found);
/* The line without them, and its length: what is behind the array cannot be reached. */
int raid_without_spares(struct raid_params *p, unsigned spares, uint64_t *len, GError **err);

/* Fills in *s; raid_state_clear() in any case. */
int raid_assemble(const struct raid_params *p, uint64_t len, const struct raid_found *found, struct raid_state *s,
		  GError **err);
void raid_state_clear(struct raid_state *s);

/* How many devices of this level may be lost at most (of raid10: if they are the right ones). */
unsigned raid_redundancy(unsigned level, unsigned layout, unsigned disks);
/* Whether the data is all there without the devices that lost() names. */
bool raid_enough(unsigned level, unsigned layout, unsigned disks, bool (*lost)(const void *, unsigned),
		 const void *context);
/* The same of an array of so many devices; of a raid10 that is being reshaped, with both shapes. */
bool raid_state_enough(const struct raid_state *s, unsigned disks, bool (*lost)(const void *, unsigned),
		       const void *context);

/* convert.c: whether an array may become what the line says it is. */
int raid_check_takeover(const struct raid_params *p, const struct raid_state *s, GError **err);
int raid_takeover(const struct raid_params *p, const struct raid_found *found, struct raid_state *s, GError **err);
bool raid_wants_reshape(const struct raid_params *p, const struct raid_state *s);
int raid_prepare_reshape(const struct raid_params *p, const struct raid_found *found, struct raid_state *s,
			 GError **err);

#endif
