/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * writecache's metadata at resume: read, and an index made of it, by as many threads as there are processors.
 *
 * Each thread takes the next piece that nobody has read.  When all is there each goes through all entries, in their
 * order, and enters those of its own shards; which are free it tells in runs of its own.  The metadata is changed by
 * none of them, but only when they have ended: entries that were not committed, and older versions, are freed.
 */
#include "writecache.h"

#include <inttypes.h>
#include <unistd.h>

#include <dmfs/container_of.h>
#include <dmfs/rounding.h>

#define MAX_THREADS 16u		  /* of WC_SHARDS, a power of two */
#define THREAD_ENTRIES (1u << 16) /* as few are not worth a thread */
#define FREE_RUN 4096u		  /* entries, one after the other, whose free ones one thread has */
#define BATCH 32u		  /* entries of which the memory is fetched beside each other */

struct candidate {
	uint32_t e;
	uint64_t block, seq;
	struct wc_shard *shard;
	uint32_t *bucket;
};

struct load {
	struct writecache *wc;
	struct wc_index *ix;
	uint32_t now_ms;
	unsigned threads; /* a power of two */
	_Atomic uint64_t next_piece;
	atomic_int error;
};

struct loader {
	struct dm_work work;
	struct load *load;
	unsigned i;
	GArray *lost; /* entries that are free from now on */
};

/* --- entering ------------------------------------------------------------------------------- */

static void lose(struct loader *l, uint32_t e)
{
	wc_put_free(l->load->ix, e);
	g_array_append_val(l->lost, e);
}

/* The other one of the same block, if there is one, is older or newer. */
static int enter(struct loader *l, const struct candidate *c)
{
	struct load *load = l->load;
	struct wc_index *ix = load->ix;
	uint32_t other = wc_find_in(ix, c->bucket, c->block);
	uint64_t sector, other_seq;

	if (other != WC_NONE) {
		wc_entry_read(load->wc->meta, other, &sector, &other_seq);
		if (other_seq == c->seq) {
			dm_log_err("writecache: two identical entries, position %" PRIu32 ", sector %" PRIu64
				   ", sequence %" PRIu64,
				   c->e, sector, c->seq);
			return -EINVAL;
		}
		if (other_seq > c->seq) {
			lose(l, c->e);
			return 0;
		}
		wc_unqueue(ix, c->shard, other);
		wc_remove(ix, c->shard, other);
		ix->entries[other].state = WC_FREE;
		lose(l, other);
	}
	wc_insert_in(ix, c->shard, c->bucket, c->e, c->block, WC_COMMITTED, load->now_ms);
	return 0;
}

static int enter_all(struct loader *l, struct candidate *batch, unsigned n)
{
	int error = 0;

	for (unsigned i = 0; i < n; i++) {
		batch[i].bucket = wc_bucket_of(l->load->ix, batch[i].shard, batch[i].block);
		__builtin_prefetch(batch[i].bucket, 1);
	}
	for (unsigned i = 0; i < n; i++)
		if (*batch[i].bucket != WC_NONE)
			__builtin_prefetch(&l->load->ix->entries[*batch[i].bucket]);
	for (unsigned i = 0; i < n; i++) {
		int r = enter(l, &batch[i]);

		if (r)
			error = r;
	}
	return error;
}

static bool is_mine(const struct loader *l, const struct wc_shard *s)
{
	return ((unsigned)(s - l->load->ix->shards) & (l->load->threads - 1)) == l->i;
}

/*
 * A valid entry; 1: it is this thread's, 0: another's (either way without a branch, which no processor would foresee).
 * What is none is the first thread's to tell.
 */
static int take(struct loader *l, uint32_t e, uint64_t sector, uint64_t seq, struct candidate *c)
{
	struct load *load = l->load;
	uint64_t block = sector >> load->wc->block_shift;

	if (sector & ((1u << load->wc->block_shift) - 1) || sector > INT64_MAX >> DM_SECTOR_SHIFT) {
		if (!l->i)
			dm_log_err("writecache: block %" PRIu32 " of the cache is of sector %" PRIu64
				   ", where no block begins",
				   e, sector);
		return -EINVAL;
	}
	*c = (struct candidate){e, block, seq, wc_shard_of(load->ix, block), NULL};
	return is_mine(l, c->shard);
}

static void found_free(struct loader *l, uint32_t e, uint64_t seq)
{
	if ((e / FREE_RUN & (l->load->threads - 1)) != l->i)
		return;
	if (seq == UINT64_MAX)
		wc_put_free(l->load->ix, e);
	else
		lose(l, e);
}

static void enter_work(struct dm_work *work)
{
	struct loader *l = container_of(work, struct loader, work);
	struct writecache *wc = l->load->wc;
	struct candidate batch[BATCH];
	uint64_t sector, seq;
	unsigned n = 0;
	int error = 0, r;

	for (uint32_t e = 0; e < wc->n_blocks; e++) {
		wc_entry_read(wc->meta, e, &sector, &seq);
		if (seq >= wc->seq) {
			found_free(l, e, seq);
			continue;
		}
		r = take(l, e, sector, seq, &batch[n]);
		if (r < 0)
			error = r;
		else
			n += (unsigned)r;
		if (n == BATCH) {
			r = enter_all(l, batch, n);
			if (r)
				error = r;
			n = 0;
		}
	}
	r = enter_all(l, batch, n);
	if (r || error)
		atomic_store(&l->load->error, r ? r : error);
}

/* --- reading ------------------------------------------------------------------------------------ */

static void read_work(struct dm_work *work)
{
	struct loader *l = container_of(work, struct loader, work);
	struct writecache *wc = l->load->wc;

	while (!atomic_load(&l->load->error)) {
		uint64_t at = atomic_fetch_add(&l->load->next_piece, 1) * WC_PIECE;
		int error;

		if (at >= wc->meta_bytes)
			return;
		error = wc_cache_io(wc, DM_READ, DM_META, at, MIN(WC_PIECE, wc->meta_bytes - at), wc->meta + at);
		if (error)
			atomic_store(&l->load->error, error);
	}
}

static int check_super(struct writecache *wc, GError **err)
{
	struct wc_super super;
	uint64_t bytes = (dm_dev_sectors(wc->cache) - wc->opt.start_sector) << DM_SECTOR_SHIFT;
	int error = wc_super_read(wc->meta, bytes, wc->block_bytes, &super, err);

	if (error)
		return error < 0 ? error : dm_fail(err, EINVAL, "writecache: the superblock has gone");
	if (super.blocks != wc->n_blocks)
		return dm_fail(err, EINVAL, "writecache: the superblock has %" PRIu64 " blocks, it had %" PRIu32,
			       super.blocks, wc->n_blocks);
	wc->seq = super.seq;
	return 0;
}

/* --- all together ----------------------------------------------------------------------------------- */

static unsigned n_threads(const struct writecache *wc)
{
	long processors = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned n = 1;

	while (n < MAX_THREADS && n * 2 <= processors && n * 2 <= wc->n_blocks / THREAD_ENTRIES)
		n *= 2;
	return n;
}

/* Has each thread do it, and waits; 0 or an error of any. */
static int run(struct load *load, struct loader *loaders, void (*fn)(struct dm_work *))
{
	struct dm_wq *wq = dm_wq_new("writecache load", load->threads);

	for (unsigned i = 0; i < load->threads; i++) {
		loaders[i].load = load;
		loaders[i].i = i;
		loaders[i].work = (struct dm_work){.fn = fn};
		dm_wq_queue(wq, &loaders[i].work);
	}
	dm_block_begin();
	dm_wq_free(wq);
	dm_block_end();
	return atomic_load(&load->error);
}

/* *bad: an entry was not as it should be; nothing is written then that others are free. */
static int make_index(struct load *load, struct loader *loaders, int *bad)
{
	struct writecache *wc = load->wc;
	bool changed = false;

	for (unsigned i = 0; i < load->threads; i++)
		loaders[i].lost = g_array_new(FALSE, FALSE, sizeof(uint32_t));
	*bad = run(load, loaders, enter_work);
	for (unsigned i = 0; i < load->threads; i++) {
		for (guint k = 0; k < loaders[i].lost->len; k++) {
			uint32_t e = g_array_index(loaders[i].lost, uint32_t, k);

			wc_entry_clear(wc->meta, e);
			wc_set_dirty(wc, e);
			changed = true;
		}
		g_array_unref(loaders[i].lost);
	}
	return changed && !*bad ? wc_write_dirty(wc) : 0;
}

static int no_memory(struct writecache *wc, GError **err)
{
	return dm_fail(err, ENOMEM, "writecache: Unable to allocate memory for metadata of %" PRIu32 " blocks",
		       wc->n_blocks);
}

void wc_unload(struct writecache *wc)
{
	struct wc_index *ix;

	atomic_store(&wc->loaded, false);
	pthread_rwlock_wrlock(&wc->ix_lock);
	ix = wc->ix;
	if (ix)
		wc->last_free = wc_n_free(ix);
	wc->ix = NULL;
	pthread_rwlock_unlock(&wc->ix_lock);
	wc_index_free(ix);
	g_clear_pointer(&wc->meta, g_free);
	g_clear_pointer(&wc->dirty, g_free);
}

static void begin(struct writecache *wc, struct wc_index *ix)
{
	pthread_rwlock_wrlock(&wc->ix_lock);
	wc->ix = ix;
	pthread_rwlock_unlock(&wc->ix_lock);
	atomic_store(&wc->n_new, 0);
	atomic_store(&wc->loaded, true);
}

int wc_load(struct writecache *wc, GError **err)
{
	uint64_t pages = dm_div_up(wc->meta_bytes, WC_META_PAGE);
	struct load load = {.wc = wc, .now_ms = wc_now_ms(), .threads = n_threads(wc)};
	struct loader loaders[MAX_THREADS];
	int error, bad;

	wc_unload(wc);
	wc->meta = g_try_malloc(wc->meta_bytes);
	wc->dirty = g_try_malloc0((dm_div_up(pages, 64) + 1) * sizeof *wc->dirty);
	if (!wc->meta || !wc->dirty)
		return no_memory(wc, err);
	error = run(&load, loaders, read_work);
	if (error)
		return dm_fail(err, -error, "writecache: unable to read metadata: %s", g_strerror(-error));
	error = check_super(wc, err);
	if (error)
		return error;
	load.ix = wc_index_new(wc->n_blocks);
	if (!load.ix)
		return no_memory(wc, err);
	error = make_index(&load, loaders, &bad);
	if (error) {
		wc_index_free(load.ix);
		return dm_fail(err, -error, "writecache: error writing metadata: %s", g_strerror(-error));
	}
	begin(wc, load.ix);
	if (bad)
		wc_fail(wc, bad, "the metadata is corrupt, nothing is written any more");
	return 0;
}
