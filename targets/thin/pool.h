/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A pool: the object that the thin-pool target and the thin targets of one pool device share.  It lives from the first
 * pool table loaded to the end of the last table, pool's or thin's, that uses it.
 *
 * A thin device's bios:
 *   - to mapped blocks that are not shared (reads: mapped at all) are sent to the data device from map(), inside
 *     pool->epoch, without a lock, if what says so is in memory;
 *   - all others go to the mapper, a work of the pool's: it looks up, in the order of blocks, and makes what new
 *     mappings are needed (queue.c, provision.c);
 *   - FLUSH, and FUA writes when their data is written, wait for a commit if there is something to commit;
 *   - discards go to a worker of their own (discard.c).
 *
 * A data block freed by a transaction is allocated again only after its commit, and the commit waits until the bios
 * have ended that had entered the epoch when the mapping went: so no bio finds its block changed under it.
 *
 * While the pool is suspended all of this stops; bios of thin devices are parked.  It stops in two steps: first nothing
 * new is provisioned, and what has been begun ends; for that an external origin may have to be read, which may be
 * a volume of this pool.
 *
 * Locks, outer first: pools (the list of all), pool->mode_lock, metadata `change`, pool->lock.
 */
#ifndef DMFS_TARGETS_THIN_POOL_H
#define DMFS_TARGETS_THIN_POOL_H

#include <dmfs/block_lock.h>
#include <dmfs/group_commit.h>
#include <dmfs/hold.h>
#include <dmfs/kcopyd.h>
#include <dmfs/target.h>
#include <dmfs/work.h>

#include "epoch.h"
#include "metadata.h"

/* From good to bad. */
enum pool_mode {
	PM_WRITE,
	PM_OUT_OF_DATA_SPACE,
	PM_OUT_OF_METADATA_SPACE,
	PM_READ_ONLY,
	PM_FAIL,
};

struct pool_features {
	enum pool_mode mode;
	bool zero, discard, passdown, error_if_no_space;
};

struct fill;

struct thin_pool {
	struct thin_pool *next;
	unsigned refs; /* under the lock of the list */
	struct dm_mapped *mapped;
	struct dm_dev *meta_dev, *data_dev;
	struct thin_md *meta;
	uint32_t block_sectors;
	int block_shift; /* -1: not a power of two */

	pthread_mutex_t mode_lock;
	atomic_bool ending; /* nothing waits for space or a resume any more */
	_Atomic int mode;
	atomic_bool zero, discard, passdown, error_if_no_space;

	struct thin_epoch epoch;
	struct dm_gate changes; /* inside are blocks being filled, and who discards; closed while stopping */
	atomic_bool stopping;  /* nothing is provisioned or discarded any more */
	atomic_bool suspended; /* nor read or written */

	struct dm_hold parked;   /* for the pool's resume */
	struct dm_hold to_fill;  /* first writes whose turn has not come */
	struct dm_hold retry;    /* for space */
	struct dm_hold discards; /* for the worker */

	pthread_mutex_t lock; /* for what follows */
	GPtrArray *thins;          /* of struct thin: all tables of volumes */
	struct pool_target *bound; /* the table in charge, NULL before the first resume */
	struct dm_bio_list deferred; /* for the mapper */
	struct fill *filled, **filled_tail; /* the same */
	bool low_water_triggered, meta_low_triggered;

	struct dm_block_lock *blocks; /* being filled: pool_block_key() */
	struct dm_kcopyd_client *kcopyd;
	unsigned fills;   /* under way; the mapper's */
	bool mapped_some; /* the same: since it last looked at the marks */
	struct dm_wq *wq, *commit_wq, *discard_wq;
	struct dm_work work, discard_work, no_space_work;
	struct dm_group_commit *commits;
	bool committed_now; /* the commit that is being told of had something to do */
	struct dm_timer no_space_timer;
};

/* A thin-pool table. */
struct pool_target {
	struct dm_target *ti;
	struct thin_pool *pool;
	struct dm_dev *meta_dev, *data_dev;
	uint64_t low_water;
	struct pool_features requested, adjusted;
};

/* A thin table. */
struct thin {
	struct dm_target *ti;
	struct thin_pool *pool;
	struct thin_dev *td;
	struct dm_dev *pool_dev, *origin;
	uint64_t origin_sectors;
	atomic_bool requeue; /* in a noflush suspend */
	bool listed;         /* in pool->thins */
	bool frozen;         /* with the pool; under its lock */
};

/* What a thin target keeps with a bio. */
struct thin_io {
	struct thin *thin;
	struct dm_bio *bio;
	struct dm_gate *epoch; /* if it is inside */
	bool turn;    /* it has waited for its turn in pool->to_fill */
	bool written; /* a FUA write whose data is on the data device: the commit is left to do */
	struct dm_commit_wait wait;
};

/* Where the content of a new block comes from that the write does not give. */
struct fill_source {
	struct dm_dev *dev; /* NULL: zeroes */
	uint64_t sector, sectors; /* of the block on dev; what is beyond sectors is zero */
};

/* A new data block being written, to be mapped then. */
struct fill {
	struct dm_bio io;
	struct thin *thin;
	struct dm_bio *bio; /* the write, or a provision */
	uint64_t block, data_block;
	uint64_t offset, given; /* sectors of the block that the bio has the data of; a provision has none */
	uint64_t expected; /* the shared data block it is mapped to now, or THIN_NO_BLOCK */
	struct fill_source src;
	struct dm_block_claim claim;
	unsigned step;
	int error;
	void *buffer;
	struct fill *next;
	struct iovec iov[];
};

static inline struct thin_io *thin_io(struct dm_bio *bio)
{
	return bio->private;
}

static inline enum pool_mode pool_mode(struct thin_pool *pool)
{
	return atomic_load_explicit(&pool->mode, memory_order_acquire);
}

static inline uint64_t pool_block(const struct thin_pool *pool, uint64_t sector, uint64_t *offset)
{
	if (pool->block_shift >= 0) {
		*offset = sector & (pool->block_sectors - 1);
		return sector >> pool->block_shift;
	}
	*offset = sector % pool->block_sectors;
	return sector / pool->block_sectors;
}

/* pool.c */
/* The pool of a pool device, with a reference; NULL: none. */
struct thin_pool *pool_find(struct dm_mapped *mapped);
/* For a thin-pool table: finds or makes the pool.  *created tells. */
int pool_get(struct dm_mapped *mapped, struct dm_dev *meta_dev, struct dm_dev *data_dev, uint32_t block_sectors,
	     bool read_only, struct thin_pool **out, bool *created, GError **err);
void pool_put(struct thin_pool *pool);
/* A volume's table comes and goes.  -EBUSY: the pool is suspended. */
int pool_add_thin(struct thin_pool *pool, struct thin *t);
void pool_remove_thin(struct thin_pool *pool, struct thin *t);

int pool_commit(struct thin_pool *pool, bool *did);
void pool_set_mode(struct thin_pool *pool, enum pool_mode mode);
void pool_metadata_failed(struct thin_pool *pool, const char *what, int error);
void pool_event(struct thin_pool *pool);
/* After allocations: marks and reserves. */
void pool_check_marks(struct thin_pool *pool);
void pool_check_data_space(struct thin_pool *pool);
/* Turns to out of data space unless a commit frees some; true: try again. */
bool pool_out_of_space(struct thin_pool *pool);
/* Hooks of thin-pool's.  From now on what finds no space fails, and what waits for the pool to be resumed. */
void pool_end_waiting(struct dm_target *ti);
void pool_suspend(struct dm_target *ti);
void pool_resume(struct dm_target *ti);
/* Puts a table in charge (the pool is suspended), or no longer. */
void pool_bind(struct thin_pool *pool, struct pool_target *pt);
void pool_unbind(struct thin_pool *pool, struct pool_target *pt);
const char *pool_name(struct thin_pool *pool, GString *buf);
uint64_t pool_meta_threshold(struct dm_dev *meta_dev);

/* queue.c: bios that wait for something, and the mapper. */
void pool_queue_init(struct thin_pool *pool);
void pool_queue_destroy(struct thin_pool *pool);
/* Waits for what the workers do. */
void pool_queue_flush(struct thin_pool *pool);
void pool_kick(struct thin_pool *pool);
/* Has the mapper deal with a bio. */
void pool_defer(struct thin_pool *pool, struct dm_bio *bio);
void pool_defer_all(struct thin_pool *pool, struct dm_bio_list *bios);
/* A block has been filled, or could not be. */
void pool_filled(struct thin_pool *pool, struct fill *f);
void pool_wait_for_commit(struct thin_pool *pool, struct dm_bio *bio);
/* The mapper's: leaves a bio in one of the holds. */
void pool_keep(struct thin_pool *pool, struct dm_hold *hold, struct dm_bio *bio);
/* The mapper's: a write that cannot be served fails, or waits for space. */
void pool_unserviceable(struct thin_pool *pool, struct dm_bio *bio);
void pool_retry_all(struct thin_pool *pool);
/* After pool_end_waiting(): fails what waits for the pool to be resumed. */
void pool_fail_parked(struct thin_pool *pool);
/* Gives back what waits of a thin device, in a noflush suspend of it. */
void pool_requeue_thin(struct thin *t);
/* There is something to commit: does so within a second. */
void pool_commit_soon(struct thin_pool *pool);
void pool_arm_no_space(struct thin_pool *pool, bool on);

/* discard.c */
void pool_discard_work(struct dm_work *work);

/* provision.c: the mapper's.  Bios that are to be sent on go to `out`. */
#define POOL_MAX_FILLS 64u
/* A write to a block that is not mapped, or shared (then `shared` is what it is mapped to, else NULL). */
void thin_provision(struct thin *t, struct dm_bio *bio, uint64_t block, uint64_t offset,
		    const struct thin_mapping *shared, struct dm_bio_list *out);
/* Maps the block that was filled, and ends its bio. */
void thin_map_filled(struct fill *f);

/* thin.c: the mapper's */
void thin_dispatch(struct dm_bio *bio, struct dm_bio_list *out);

#endif
