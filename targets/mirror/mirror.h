/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The parts of the mirror target.
 *
 * mirror.c   the table line, the hooks, status and messages
 * io.c       what bios do
 * legs.c     legs that fail, and what becomes of the writes they missed
 * copy.c     copying regions from leg to leg
 *
 * The regions of work (dmfs/regions.h) say which legs a write goes to, and when; their copies are our legs.
 *
 * A leg is stale from its first failed write, flush or copy until all regions are in sync again; nothing is read from a
 * stale leg.  The regions' worker alone makes a leg stale or, when all is in sync, well again, unless regions are out
 * of sync anyway: so between the two no failure is forgotten.
 */
#ifndef DMFS_TARGETS_MIRROR_H
#define DMFS_TARGETS_MIRROR_H

#include <dmfs/hold.h>
#include <dmfs/kcopyd.h>
#include <dmfs/regions.h>
#include <dmfs/target.h>

enum leg_error { LEG_FLUSH_ERROR, LEG_WRITE_ERROR, LEG_SYNC_ERROR, LEG_READ_ERROR };
#define LEG_STALE (1u << LEG_FLUSH_ERROR | 1u << LEG_WRITE_ERROR | 1u << LEG_SYNC_ERROR)

struct leg {
	struct dm_dev *dev;
	uint64_t offset;
	atomic_uint errors; /* a bit an enum leg_error */
	atomic_bool flush_failed; /* the cleaner tells the worker */
};

/* One leg's part of a write or flush. */
struct leg_bio {
	struct dm_bio bio; /* first */
	struct dm_bio *whole;
	unsigned leg;
};

/* The target's space of a bio. */
struct mirror_bio {
	struct dm_region_io io; /* first */
	struct mirror *ms;
	bool unsent;    /* a read that no leg has failed; or a write that was not sent */
	bool requeue;   /* end_io gives it back for after the resume */
	bool log_failed; /* its region could not be marked */
	unsigned leg, first, step; /* reads: where it went, and what is left to try */
	unsigned nr;    /* writes: legs it goes to */
	atomic_uint pending;
	uint64_t flush; /* a flush's number */
	struct leg_bio legs[];
};

struct mirror {
	struct dm_target *ti;
	struct dm_dirty_log *log; /* the regions' */
	struct dm_regions *regions;
	bool handle_errors, keep_log;
	bool shared; /* the log is one of other hosts', too */
	unsigned nr_legs;
	struct leg *legs;
	atomic_uint primary;
	atomic_bool leg_failure;

	struct dm_kcopyd_throttle throttle;
	struct dm_kcopyd_client *kcopyd;

	struct dm_hold holds; /* failed writes, until somebody suspends the device */
};

static inline bool leg_is_stale(const struct leg *leg)
{
	return atomic_load(&leg->errors) & LEG_STALE;
}

/* A leg that is not stale, or -1. */
static inline int mirror_sound_leg(const struct mirror *ms)
{
	for (unsigned i = 0; i < ms->nr_legs; i++)
		if (!leg_is_stale(&ms->legs[i]))
			return (int)i;
	return -1;
}

/* io.c */
enum dm_mapio mirror_map(struct dm_target *ti, struct dm_bio *bio);
enum dm_endio mirror_end_io(struct dm_target *ti, struct dm_bio *bio);
/* dm_regions_ops.write, .read */
void mirror_write(struct dm_region_io *io, enum dm_region_where where);
bool mirror_read(struct dm_region_io *io);
/* Ends a write or flush. */
void mirror_write_end(struct mirror_bio *b, int error);

/* legs.c */
void mirror_fail_leg(struct mirror *ms, unsigned leg, enum leg_error kind);
/* A write that cannot be sent now is the worker's to deal with. */
void mirror_not_sent(struct mirror_bio *b);
/* dm_regions_ops.failed, .log_failed, .leave, .flush, .flush_failed, .all_in_sync */
void mirror_failed(struct dm_region_io *io);
void mirror_log_failed(struct dm_region_io *io);
void mirror_leave(struct dm_region_io *io, int error);
int mirror_flush(void *context);
void mirror_flush_failed(void *context);
void mirror_all_in_sync(void *context);

/* copy.c: dm_regions_ops.copy */
void mirror_copy(void *context, struct dm_region_run *run);

#endif
