/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The bottoms that claims lie on (claim.c), by their sectors, and the locks on their files.
 *
 * A bottom is a backing store, or a dmfs device beneath which a claim does not reach.  All of it is under the lock of
 * claims.
 */
#ifndef DMFS_CORE_CLAIM_BOTTOM_H
#define DMFS_CORE_CLAIM_BOTTOM_H

#include "mapped.h"

struct extent;

/* One of them. */
struct bottom {
	struct dm_dev *dev; /* one of those that lead there, referenced */
	GPtrArray *extents; /* by their starts */
	GArray *reach;      /* up to each of them, the largest end */
	bool unsorted;      /* the two are not so at the moment */
	unsigned leaving;   /* extents that are gone and not swept yet */
	/* While a claim's are counted: the first of them, how many, and what they span. */
	struct extent *first;
	unsigned pieces;
	uint64_t start, end;
	int fd;             /* the locks' file description; -1: there is none */
	bool fd_writes, unlockable;
};

/* Of the way down. */
struct step {
	struct dm_mapped *md;
	uint64_t start, end;
};

/* What a claim has on a bottom. */
struct extent {
	struct claim *claim;
	struct bottom *bottom;
	struct dm_dev *dev; /* by which it was reached, referenced */
	uint64_t start, end;
	bool exact;  /* false: the claim is somewhere in it */
	bool fresh;  /* of a table that is not live yet */
	bool locked;
	bool covered, cover; /* one of many, and what is locked for them */
	bool gone;           /* on its way out */
	unsigned steps;
	struct step way[];
};

struct claim {
	struct dm_target *ti;
	struct dm_dev *dev; /* the table's */
	uint64_t start, end;
	enum dm_mode mode;
	const char *what;
	unsigned set; /* claims of one do not meet */
	bool active;  /* its table is live, and not suspended */
	GPtrArray *extents;
	struct claim *next; /* of the same target */
};

/* Makes it if need be; it goes when the last extent on it is gone. */
struct bottom *dm_bottom_get(struct dm_dev *dev);
/* When nothing is on it any more; its device is put later, by who frees the array. */
void dm_bottom_drop(struct bottom *b, GPtrArray *put);
/* Puts an extent in its place; few: of a few, else it is found when it is needed. */
void dm_bottom_place(struct extent *e, bool few);
/* Leaves out what is gone. */
void dm_bottom_order(struct bottom *b);
/* Calls fn for those that have sectors in common with an extent, until it returns true: that one. */
struct extent *dm_bottom_common(struct extent *e, bool (*fn)(struct extent *, struct extent *, void *), void *data);

/* Locks its sectors of the file, if it is one.  -EBUSY: another program has them. */
int dm_extent_lock(struct extent *e, GError **err);
/* Of what an extent had, which is gone, what no other one has. */
void dm_extent_unlock(struct extent *e);

#endif
