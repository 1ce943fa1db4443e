/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of the target zoned share: zoned.c, io.c, reclaim.c. */
#ifndef DMFS_ZONED_H
#define DMFS_ZONED_H

#include <dmfs/block_lock.h>
#include <dmfs/group_commit.h>
#include <dmfs/hold.h>
#include <dmfs/work.h>

#include "metadata.h"

#define ZONED_IDLE_NS UINT64_C(10000000000)
#define ZONED_COMMIT_NS UINT64_C(10000000000)

struct zoned {
	struct dm_target *ti;
	struct zoned_geometry g;
	struct zoned_meta *meta; /* read anew at each resume */
	uint32_t chunks;
	struct dm_block_lock *lock; /* of chunks */
	struct dm_wq *io_wq, *commit_wq, *reclaim_wq;
	struct dm_group_commit *commits;
	struct dm_hold starving; /* writes that no zone is free for; always closed */
	struct dm_work reclaim;
	struct dm_timer idle;
	_Atomic uint64_t last_io_ns;
	atomic_bool stopped, forced; /* forced: by a message, until there is nothing more to move */
};

/* io.c */
enum dm_mapio zoned_map(struct dm_target *ti, struct dm_bio *bio);
enum dm_endio zoned_end_io(struct dm_target *ti, struct dm_bio *bio);
size_t zoned_bio_size(void);
/* Writes that waited for a zone try again. */
void zoned_feed(struct zoned *z);

/* reclaim.c */
void zoned_reclaim_init(struct zoned *z);
/* A zone was taken: it may be time to free some; idle reclaim follows when nothing comes for a while. */
void zoned_reclaim_check(struct zoned *z);
void zoned_reclaim_now(struct zoned *z);
/* Nothing of it runs at return; not from it. */
void zoned_reclaim_stop(struct zoned *z);

#endif
