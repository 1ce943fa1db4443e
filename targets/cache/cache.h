/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the parts of cache share.
 *
 * Block locks.  Origin block o is two numbers of one block lock: 2·o for writes of it, 2·o + 1 for reads of it from the
 * cache.  Reads and writes claim theirs shared.  A migration claims the writes alone while it copies, so reads go on;
 * who takes a block out of the cache claims the reads as well.  So what the cache holds of o does not
 * change while somebody has a claim on it, but that a promotion may end beside reads, which then come from the origin:
 * it holds the same.
 *
 * Order on the disk.  A commit first flushes both devices, then writes the metadata.  A cache block that has been given
 * up is free only after the next commit; until then the metadata on the disk may lead to it.  A block that was written
 * back counts as clean only when the origin has been flushed.
 *
 * Locks: meta_lock for all that touches the metadata, held across its I/O and flushes; policy_lock, short, after it;
 * the block lock's and the resident blocks' own last.  wait_lock and hold_lock stand alone.
 */
#ifndef CACHE_H
#define CACHE_H

#include <pthread.h>

#include "metadata.h"
#include "resident.h"

#include <dmfs/block_lock.h>
#include <dmfs/cache_policy.h>
#include <dmfs/container_of.h>
#include <dmfs/group_commit.h>
#include <dmfs/hold.h>
#include <dmfs/kcopyd.h>
#include <dmfs/target.h>
#include <dmfs/work.h>

#define CACHE_COUNT_SLOTS 64u
#define CACHE_HANDFUL 16u
#define CACHE_COMMIT_NS UINT64_C(1000000000)

enum cache_io_mode { CACHE_WRITEBACK_MODE, CACHE_WRITETHROUGH, CACHE_PASSTHROUGH };
enum cache_mode { CACHE_RW, CACHE_RO, CACHE_FAIL };
enum cache_count { READ_HITS, READ_MISSES, WRITE_HITS, WRITE_MISSES, CACHE_COUNTS };

struct migration;

/* Counters in a slot of the thread's own, so that threads share no cache lines. */
struct cache_slot {
	_Atomic uint64_t n[CACHE_COUNTS];
	char pad[64 - 8 * CACHE_COUNTS];
};

/* Hits that the policy has not been told of yet, in a slot of the thread's own too; who has set taken may use it. */
struct cache_hits {
	atomic_bool taken;
	unsigned nr;
	uint32_t cblock[CACHE_HANDFUL];
	bool write[CACHE_HANDFUL];
	char pad[128 - 2 * 4 - 5 * CACHE_HANDFUL];
};

struct cache {
	struct dm_target *ti;
	struct dm_dev *meta_dev, *fast, *origin;
	uint32_t block_sectors, cblocks;
	uint64_t oblocks; /* whole ones */
	char *args;	  /* what follows the block size in the table line */
	enum cache_io_mode io_mode;
	unsigned meta_version;
	bool want_passdown, loaded;
	atomic_bool passdown, suspended;
	_Atomic enum cache_mode mode;
	atomic_bool lost; /* the metadata on the disk is not what it should be, and cannot be made so */

	pthread_mutex_t meta_lock;
	struct cache_meta *meta;
	struct dm_group_commit *commits, *origin_flushes;
	struct dm_wq *wq, *flush_wq; /* each one at a time */
	struct resident *resident;
	struct dm_block_lock *locks;
	struct dm_kcopyd_client *kcopyd;
	struct dm_kcopyd_throttle throttle;

	const struct cache_policy_type *type;
	char **policy_args; /* key, value, … */
	pthread_mutex_t policy_lock;
	void *policy;
	uint32_t touched; /* hits that the policy was told of since all were forgotten */

	_Atomic uint64_t migration_threshold; /* sectors */
	atomic_uint promotions, demotions;
	struct cache_meta_counters base; /* of the time before this table */
	struct cache_slot slots[CACHE_COUNT_SLOTS];
	struct cache_hits hits[CACHE_COUNT_SLOTS];

	struct dm_work migrate_work, tick_work;
	struct dm_timer timer;
	atomic_bool ticking, idle;
	uint64_t last_sum, quiet_since_ns; /* the tick's own */
	/*
	 * Writes and flushes of the origin that have failed: a flush says so once, to whom it may concern or not, and
	 * what was written back before it may be lost.
	 */
	atomic_uint origin_failures;
	_Atomic uint64_t failed_ns; /* when a migration failed last; 0: not lately */

	pthread_mutex_t hold_lock; /* around the begin and end of held bios */
	pthread_mutex_t wait_lock;
	pthread_cond_t none_under_way;
	unsigned under_way;  /* migrations */
	atomic_uint copying; /* blocks */

	/* Discards: a bit for each so many blocks. */
	uint32_t dblock_blocks, dblocks;
	_Atomic uint64_t *discards;
	atomic_bool any_discards;
};

/* At bio->private. */
struct cache_bio {
	struct cache *c;
	struct dm_bio *bio;
	struct dm_block_claim claim;
	struct dm_held held; /* while it waits for its claim */
	atomic_uint arrived; /* of two, the canceller and the granter, when the claim was granted all the same */
	struct dm_commit_wait commit;
	struct migration *fill; /* it is the data of a promotion */
	uint64_t oblock;
	uint32_t within; /* sectors from the block's begin */
	uint32_t cblock;
	bool claimed, through;			  /* through: a write that went to both devices */
	uint64_t discard_sector, discard_sectors; /* passed down; 0 sectors: nothing */
};

static inline bool cache_is_rw(struct cache *c)
{
	return atomic_load_explicit(&c->mode, memory_order_relaxed) == CACHE_RW;
}

/* cache.c */
void cache_set_mode(struct cache *c, enum cache_mode mode);
/* Of something that changed the metadata; meta_lock is held.  An error ends the writing of metadata. */
int cache_meta_result(struct cache *c, int r);
void cache_commit_soon(struct cache *c);
uint64_t cache_sum(struct cache *c, enum cache_count which);
extern const char *const cache_io_modes[]; /* by enum cache_io_mode, as tables have them */
/* A key of the core or of this policy, and its value; 0 or -EINVAL. */
int cache_set_value(struct cache *c, void *policy, const char *key, const char *value);

/* status.c: hooks of the target type */
void cache_status(struct dm_target *ti, enum dm_status_type type, GString *out);
void cache_commit(struct dm_target *ti);
int cache_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err);

/* map.c */
enum dm_mapio cache_map(struct dm_target *ti, struct dm_bio *bio);
enum dm_endio cache_end_io(struct dm_target *ti, struct dm_bio *bio);
/* For a bio that was kept: goes on to the origin. */
void cache_to_origin(struct cache *c, struct dm_bio *bio);
/* Tells the policy of all hits that it has not heard of; with its lock. */
void cache_tell_hits(struct cache *c);

/* migrate.c */
void cache_migrate_init(struct cache *c);
void cache_wake(struct cache *c);
/* There is I/O. */
void cache_note_activity(struct cache *c);
/* A promotion with the data of a write, whose exclusive claim it takes over. */
bool cache_fill(struct cache *c, struct dm_bio *bio);
/* The write has ended. */
void cache_fill_written(struct migration *mg, int error);
/*
 * Takes a block out of the cache as it is, whatever is there.  bio: a write for the origin that waits for it, or NULL.
 * The caller has no claim, or shared ones that he gives up soon.
 */
void cache_invalidate(struct cache *c, uint64_t oblock, struct dm_bio *bio);
/* Waits until at most so many migrations are under way. */
void cache_wait_migrations(struct cache *c, unsigned most);

/* discard.c */
int cache_discards_init(struct cache *c);
bool cache_discarded(struct cache *c, uint64_t oblock);
void cache_undiscard(struct cache *c, uint64_t oblock);
enum dm_mapio cache_map_discard(struct cache *c, struct dm_bio *bio, uint64_t offset);
/* What of [sector, +sectors) is whole bits. */
void cache_set_discarded(struct cache *c, uint64_t sector, uint64_t sectors);
bool cache_discard_bit(struct cache *c, uint32_t dblock);

#endif
