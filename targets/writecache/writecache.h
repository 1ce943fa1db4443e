/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the parts of writecache share.
 *
 * A write takes a free block, is written there, and enters the index when it has ended, as WC_NEW.  So nothing that is
 * under way is ever read, committed or written back, and no commit waits for it.  A commit writes the entries of what
 * is new, flushes, and counts the superblock's sequence up.  Writeback copies committed blocks to the origin, flushes
 * that, and gives them to the next commit to be freed: a block is free when its entry is so on the disk, never before.
 *
 * A block with an older version in the index, in whatever state, is not written back, and while there is any version of
 * it no write of it goes around the cache.  So what is older never comes after what is newer, not after a crash either.
 *
 * Locks: shards of the index (index.h), then `lock`, each for a moment, one shard at a time.  The metadata in memory
 * (meta, dirty, seq) is the commit's alone.
 */
#ifndef WRITECACHE_H
#define WRITECACHE_H

#include <pthread.h>

#include <dmfs/group_commit.h>
#include <dmfs/hold.h>
#include <dmfs/kcopyd.h>
#include <dmfs/target.h>
#include <dmfs/work.h>

#include "format.h"
#include "index.h"
#include "mem.h"

#define WC_MAX_RUN 256u /* blocks that are written back at once */
#define WC_META_PAGE 4096u
#define WC_PIECE (1u << 20) /* bytes of metadata that are read or written at once */

/* The optional arguments: values, and which were given. */
struct wc_options {
	uint64_t start_sector;
	unsigned high, low; /* percent */
	unsigned jobs, autocommit_blocks, autocommit_ms, max_age_ms, pause_ms;
	bool cleaner, fua, metadata_only;
	unsigned set; /* bits, options.c's */
};

enum wc_count {
	WC_READS,
	WC_READ_HITS,
	WC_WRITES,
	WC_HITS_NEW,
	WC_HITS_COMMITTED,
	WC_AROUND,
	WC_ALLOCATED,
	WC_BLOCKED,
	WC_FLUSHES,
	WC_DISCARDS,
	WC_COUNTS,
};

#define WC_COUNT_SLOTS 16u

struct wc_counts {
	_Atomic uint64_t n[WC_COUNTS];
} __attribute__((aligned(128)));

struct writecache {
	struct dm_target *ti;
	struct dm_dev *origin, *cache;
	bool pmem;			   /* type p */
	unsigned block_bytes, block_shift; /* the shift is of sectors */
	struct wc_options opt;
	uint32_t n_blocks;
	uint64_t data_sector; /* of the cache: the first block */
	uint64_t high_free, low_free;
	struct wc_mem *mem; /* type p: the cache device's memory */
	struct wc_counts counts[WC_COUNT_SLOTS];

	atomic_int error;
	atomic_bool cleaner, flush_on_suspend;
	atomic_bool loaded; /* between preresume and postsuspend there is an index */

	/* For who looks at the index beside the bios: whether there is one. */
	pthread_rwlock_t ix_lock;
	struct wc_index *ix;
	uint32_t last_free; /* while there is none: as it was */
	_Atomic uint64_t n_writeback;

	/* commit.c */
	struct dm_wq *wq; /* one at a time */
	struct dm_group_commit *commits;
	struct dm_commit_wait kick; /* for nobody in particular */
	atomic_bool kicked, kick_wanted, autocommit_armed, overwrote;
	atomic_uint n_new; /* at no time fewer than there are */
	atomic_bool committing_now;
	uint8_t *meta;
	uint64_t meta_bytes, seq;
	uint64_t *dirty; /* a bit for each WC_META_PAGE bytes of meta */
	GArray *committing, *freed;
	struct dm_work discard_work, blocked_work;
	pthread_mutex_t lock; /* for what follows */
	pthread_cond_t changed;
	uint64_t changes; /* counts them */
	struct dm_bio_list discards;
	struct wc_job *done; /* copies that have ended */

	struct dm_hold blocked; /* writes that wait for a free block */
	atomic_bool any_blocked;

	/* writeback.c */
	struct dm_wq *wb_wq, *done_wq;
	struct dm_work wb_work, done_work;
	struct dm_timer wb_timer, age_timer;
	struct dm_kcopyd_client *kcopyd;
	atomic_bool draining, stuck, stopping;
	atomic_uint copies; /* under way */
	atomic_uint around; /* writes to the origin under way */
	_Atomic uint64_t around_ns;
	atomic_bool all;      /* somebody waits for all to be written back */
	struct dm_wq *mem_wq; /* type p: who copies */
};

/* A part of a bio that goes to one place. */
enum wc_way {
	WC_NOWHERE,
	WC_ORIGIN,
	WC_READ,	  /* a read of blocks in the cache */
	WC_OVERWRITE,	  /* a write in place */
	WC_ALLOCATED_RUN, /* a write to blocks that were free */
	WC_WAIT,	  /* no block is free */
};

struct wc_run {
	enum wc_way way;
	uint32_t entry; /* the first of n in a row */
	uint64_t block, n;
};

struct wc_io {
	struct dm_commit_wait commit;
	struct dm_work work;
	struct dm_bio *bio;
	struct writecache *wc;
	struct wc_run run;
	bool fua, around, flushes_cache;
};

static inline uint32_t wc_now_ms(void)
{
	return (uint32_t)(dm_now_ns() / 1000000);
}

static inline bool wc_failed(struct writecache *wc)
{
	return atomic_load_explicit(&wc->error, memory_order_relaxed) != 0;
}

/* Whether what the entry holds is there to be read. */
static inline bool wc_live(const struct wc_entry *x)
{
	return x->state >= WC_NEW && x->state <= WC_WRITEBACK;
}

/* options.c */
int wc_options_parse(struct wc_options *o, struct dm_args *as, bool pmem, uint64_t cache_sectors, GError **err);
void wc_options_print(const struct wc_options *o, GString *out);

/* map.c */
enum dm_mapio wc_map(struct dm_target *ti, struct dm_bio *bio);
enum dm_endio wc_end_io(struct dm_target *ti, struct dm_bio *bio);
void wc_retry_blocked(struct dm_work *work);
void wc_hold_fail(struct dm_hold *h, struct dm_bio *bio, int error);
void wc_count(struct writecache *wc, enum wc_count what, uint64_t n);

/* load.c */
int wc_load(struct writecache *wc, GError **err);
void wc_unload(struct writecache *wc);

/* commit.c */
int wc_format(struct writecache *wc, GError **err);
/* Reads or writes the cache device; bytes from start_sector on, whole sectors.  Waits. */
int wc_cache_io(struct writecache *wc, enum dm_op op, unsigned flags, uint64_t at, uint64_t len, void *buf);
/* An entry of meta has changed, by one thread at a time; what has changed is written, and the device flushed. */
void wc_set_dirty(struct writecache *wc, uint32_t e);
int wc_write_dirty(struct writecache *wc);
int wc_commit(void *context);
/* Whether there is no block whose entry is not on the disk.  Any thread. */
bool wc_all_committed(struct writecache *wc);
/* A commit soon, for nobody in particular; any thread. */
void wc_kick(struct writecache *wc);
void wc_discard(struct dm_work *work);
/* The first error stays: nothing is written any more until the table is loaded anew. */
void wc_fail(struct writecache *wc, int error, const char *what);
/* A block is free. */
void wc_freed(struct writecache *wc, uint32_t e);

/* writeback.c */
void wc_writeback(struct dm_work *work);
void wc_writeback_done(struct dm_work *work);
void wc_wake_timer(struct dm_timer *t);
void wc_age_timer(struct dm_timer *t);
/* Has writeback begin if few blocks are free. */
void wc_check_free(struct writecache *wc);
/* Writes back all that is there at the call.  May wait. */
int wc_writeback_all(struct writecache *wc);
/* Waits until nothing is on its way to the origin. */
void wc_wait_writeback(struct writecache *wc);
void wc_changed(struct writecache *wc);
/* What writeback met that could not go perhaps can now. */
void wc_unstuck(struct writecache *wc);

#endif
