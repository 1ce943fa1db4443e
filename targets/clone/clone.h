/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the parts of clone share.
 *
 * A region is hydrated when its bit is set; then its I/O goes to the destination.  Until then reads go to the source,
 * and the first write makes a struct hydration, which claims the region (block_lock.h) and with which further writes of
 * it are parked.  A region with one is left alone by the background hydration, and a discard does not set its bit.
 */
#ifndef CLONE_H
#define CLONE_H

#include <pthread.h>

#include "metadata.h"

#include <dmfs/block_lock.h>
#include <dmfs/gate.h>
#include <dmfs/group_commit.h>
#include <dmfs/kcopyd.h>
#include <dmfs/target.h>
#include <dmfs/work.h>

#define CLONE_MAX_TRIES 8      /* failures in a row, after which the background hydration stops */
#define CLONE_RECENT 1024      /* reads of the source that are remembered */
#define CLONE_SOON 256         /* regions that are read again and wait to be hydrated sooner */

struct clone;

/* Regions [region, region + n) on their way to the destination. */
struct hydration {
	struct clone *c;
	uint64_t region, n;
	bool background, hole;
	struct dm_block_claim claim; /* others are parked with it */
	struct dm_bio *first;        /* the write it was made for, if any */
	bool overwrites;             /* which is of the whole region, and takes the place of a copy */
};

struct clone {
	struct dm_target *ti;
	struct dm_dev *meta_dev, *dest, *source;
	struct clone_md *meta;
	uint32_t region_sectors;
	unsigned shift;
	uint64_t nr_regions;
	bool reopen; /* a table was live when this one was built */
	char *args; /* what follows the region size in the table line */
	bool want_passdown;
	atomic_bool discard_passdown, enabled, stopped, complete, suspended;
	_Atomic enum clone_mode mode;
	_Atomic unsigned threshold, batch;
	atomic_uint failures; /* in a row */

	struct dm_kcopyd_client *kcopyd;
	struct dm_wq *wq;   /* commits and hydration: one at a time */
	struct dm_work hydrate_work, release_work;
	struct dm_timer rest_timer;
	struct dm_group_commit *commits;
	struct dm_block_lock *regions; /* being hydrated */
	struct dm_gate bits; /* inside are those who look at them */
	atomic_bool touched; /* one has ended since the background hydration looked */

	pthread_mutex_t lock; /* for all below */
	pthread_cond_t idle;
	unsigned hydrating;     /* regions */
	unsigned background;    /* of them, by the background hydration */
	uint64_t cursor;
	uint64_t soon[CLONE_SOON];
	unsigned n_soon;
	/* The background hydration's own. */
	uint64_t busy_until_ns, burst_from_ns, rest_until_ns;
	uint64_t data_from, data_to; /* regions of the source known to hold data */
	_Atomic uint64_t recent[CLONE_RECENT];
};

static inline uint64_t clone_region(const struct clone *c, uint64_t offset)
{
	return offset >> c->shift;
}

/* hydrate.c */
void clone_write_cold(struct clone *c, struct dm_bio *bio, uint64_t region);
void clone_overwrite_done(struct hydration *h, int error);
void clone_note_read(struct clone *c, uint64_t region);
void clone_discard_regions(struct clone *c, uint64_t from, uint64_t to);
void clone_hydrate(struct dm_work *work);
void clone_rest_over(struct dm_timer *t);
void clone_wake(struct clone *c);
void clone_wait_hydrations(struct clone *c);

/* clone.c */
void clone_set_mode(struct clone *c, enum clone_mode mode);
void clone_check_complete(struct clone *c);
/* Regions were set: they are committed within a second. */
void clone_commit_soon(struct clone *c);

struct clone_bio {
	struct dm_bio *bio;
	struct dm_commit_wait commit;
	struct hydration *overwrite;
	uint64_t from, to; /* a discard: the whole regions of it */
	bool counted;
};

#endif
