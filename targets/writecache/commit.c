/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * writecache's metadata: loaded at resume (load.c), changed by commits alone.
 *
 * A commit, of all that is new and all that is to be freed:
 *   1. the entries are changed in memory: what is new gets the current sequence, what is to be freed gets none;
 *   2. the changed pages are written, and the cache device is flushed: data, entries and frees are durable;
 *   3. the superblock gets the next sequence, FUA: what is new is valid from now on;
 *   4. older versions of it are freed, by steps 1 and 2 again.
 */
#include "writecache.h"

#include <inttypes.h>

#include <dmfs/container_of.h>
#include <dmfs/rounding.h>

#define IN_FLIGHT 64u

/* --- errors and kicks --------------------------------------------------------------------- */

void wc_fail(struct writecache *wc, int error, const char *what)
{
	int none = 0;

	if (atomic_compare_exchange_strong(&wc->error, &none, error))
		dm_log_err("writecache: %s: %s", what, g_strerror(-error));
	dm_wq_queue(wc->wq, &wc->blocked_work);
	wc_changed(wc);
}

static void kick_done(struct dm_commit_wait *wait, int error)
{
	struct writecache *wc = container_of(wait, struct writecache, kick);

	atomic_store(&wc->kicked, false);
	if (atomic_load(&wc->kick_wanted))
		wc_kick(wc);
}

void wc_kick(struct writecache *wc)
{
	atomic_store(&wc->kick_wanted, true);
	if (atomic_exchange(&wc->kicked, true))
		return;
	wc->kick.done = kick_done;
	dm_group_commit(wc->commits, &wc->kick);
}

void wc_freed(struct writecache *wc, uint32_t e)
{
	wc_put_free(wc->ix, e);
	if (atomic_load(&wc->any_blocked))
		dm_wq_queue(wc->wq, &wc->blocked_work);
}

/* --- the cache device ----------------------------------------------------------------------- */

int wc_cache_io(struct writecache *wc, enum dm_op op, unsigned flags, uint64_t at, uint64_t len, void *buf)
{
	uint64_t sector = wc->opt.start_sector + (at >> DM_SECTOR_SHIFT);
	struct iovec iov = {buf, len};
	int error;

	if (!wc->mem)
		return op == DM_READ ? dm_read_sync(wc->cache, sector, len >> DM_SECTOR_SHIFT, buf, flags)
				     : dm_write_sync(wc->cache, sector, len >> DM_SECTOR_SHIFT, buf, flags);
	if (op == DM_READ)
		return wc_mem_read(wc->mem, sector << DM_SECTOR_SHIFT, &iov, 1);
	error = wc_mem_write(wc->mem, sector << DM_SECTOR_SHIFT, &iov, 1);
	return error || !(flags & DM_FUA) ? error : wc_mem_persist(wc->mem);
}

static int cache_flush(struct writecache *wc)
{
	return wc->mem ? wc_mem_persist(wc->mem) : dm_flush_sync(wc->cache);
}

static int write_super(struct writecache *wc, uint64_t seq)
{
	wc_super_write(wc->meta, &(struct wc_super){wc->block_bytes, wc->n_blocks, seq});
	return wc_cache_io(wc, DM_WRITE, DM_FUA | DM_META, 0, wc->block_bytes, wc->meta);
}

/* The superblock comes last, so that a device that was formatted in part is fresh still. */
int wc_format(struct writecache *wc, GError **err)
{
	struct wc_super super = {.block_bytes = wc->block_bytes};
	g_autofree uint8_t *buf = g_malloc(WC_PIECE);
	uint64_t bytes = (dm_dev_sectors(wc->cache) - wc->opt.start_sector) << DM_SECTOR_SHIFT, meta;
	int error = wc_blocks_in(bytes, wc->block_bytes, &super.blocks);

	if (error)
		return dm_fail(err, -error,
			       "writecache: Invalid device size: %" PRIu64 " bytes, %u to %u blocks of %u bytes "
			       "have room with their metadata",
			       bytes, 1, WC_MAX_BLOCKS, wc->block_bytes);
	meta = wc_meta_bytes(super.blocks, wc->block_bytes);
	memset(buf, 0xff, WC_PIECE);
	memset(buf, 0, WC_HEAD_BYTES);
	for (uint64_t at = 0; at < meta && !error; at += WC_PIECE) {
		uint64_t len = MIN(WC_PIECE, meta - at);

		if (meta - at <= len) /* what lies behind the last entry is not used */
			memset(buf + (WC_HEAD_BYTES + super.blocks * WC_ENTRY_BYTES - at), 0,
			       meta - WC_HEAD_BYTES - super.blocks * WC_ENTRY_BYTES);
		error = wc_cache_io(wc, DM_WRITE, DM_META, at, len, buf);
		memset(buf, 0xff, WC_HEAD_BYTES);
	}
	if (!error)
		error = cache_flush(wc);
	if (!error)
		error = wc_cache_io(wc, DM_READ, DM_META, 0, wc->block_bytes, buf);
	wc_super_write(buf, &super);
	if (!error)
		error = wc_cache_io(wc, DM_WRITE, DM_META | DM_FUA, 0, wc->block_bytes, buf);
	return error ? dm_fail(err, -error, "writecache: Unable to initialize device: %s", g_strerror(-error)) : 0;
}

/* --- changed pages ----------------------------------------------------------------------------- */

void wc_set_dirty(struct writecache *wc, uint32_t e)
{
	uint64_t page = (WC_HEAD_BYTES + (uint64_t)e * WC_ENTRY_BYTES) / WC_META_PAGE;

	wc->dirty[page / 64] |= UINT64_C(1) << page % 64;
}

static bool is_dirty(struct writecache *wc, uint64_t page, uint64_t pages)
{
	return page < pages && wc->dirty[page / 64] >> page % 64 & 1;
}

struct writes {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned running;
	int error;
};

struct one_write {
	struct writes *all;
	struct iovec iov;
};

static void written(int error, const int *errors, void *context)
{
	struct one_write *w = context;
	struct writes *all = w->all;

	g_free(w);
	pthread_mutex_lock(&all->lock);
	all->running--;
	if (error)
		all->error = error;
	pthread_cond_signal(&all->cond);
	pthread_mutex_unlock(&all->lock);
}

static void wait_writes(struct writes *all, unsigned most)
{
	pthread_mutex_lock(&all->lock);
	while (all->running > most)
		pthread_cond_wait(&all->cond, &all->lock);
	pthread_mutex_unlock(&all->lock);
}

/* Beside others, or, if it is the last, here and now: most commits have one page. */
static int write_pages(struct writecache *wc, uint64_t from, uint64_t to, bool last, struct writes *all)
{
	uint64_t at = from * WC_META_PAGE, len = MIN(to * WC_META_PAGE, wc->meta_bytes) - at;
	struct one_write *w;

	if (wc->mem || last)
		return wc_cache_io(wc, DM_WRITE, DM_META, at, len, wc->meta + at);
	w = g_new(struct one_write, 1);
	*w = (struct one_write){.all = all, .iov = {wc->meta + at, len}};
	wait_writes(all, IN_FLIGHT - 1);
	pthread_mutex_lock(&all->lock);
	all->running++;
	pthread_mutex_unlock(&all->lock);
	dm_io_async(
	    DM_WRITE, DM_META, 1,
	    &(struct dm_region){wc->cache, wc->opt.start_sector + (at >> DM_SECTOR_SHIFT), len >> DM_SECTOR_SHIFT},
	    &w->iov, 1, written, w);
	return 0;
}

int wc_write_dirty(struct writecache *wc)
{
	struct writes all = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
	uint64_t pages = dm_div_up(wc->meta_bytes, WC_META_PAGE), from = 0, to = 0;
	int error = 0;

	for (uint64_t page = 0, end; page < pages && !error; page++) {
		if (!wc->dirty[page / 64]) {
			page |= 63;
			continue;
		}
		if (!is_dirty(wc, page, pages))
			continue;
		for (end = page + 1; is_dirty(wc, end, pages) && end - page < WC_PIECE / WC_META_PAGE;)
			end++;
		if (to)
			error = write_pages(wc, from, to, false, &all);
		from = page;
		to = end;
		page = end - 1;
	}
	if (to && !error)
		error = write_pages(wc, from, to, true, &all);
	dm_block_begin();
	wait_writes(&all, 0);
	dm_block_end();
	memset(wc->dirty, 0, dm_div_up(pages, 64) * sizeof *wc->dirty);
	if (!error)
		error = all.error;
	return error ? error : cache_flush(wc);
}

/* --- commits ----------------------------------------------------------------------------------------- */

static void collect_freeing(struct writecache *wc, struct wc_shard *s)
{
	for (uint32_t e = s->freeing; e != WC_NONE; e = wc->ix->entries[e].next) {
		wc_entry_clear(wc->meta, e);
		wc_set_dirty(wc, e);
		g_array_append_val(wc->freed, e);
	}
	s->freeing = WC_NONE;
}

static void collect_new(struct writecache *wc, struct wc_shard *s)
{
	for (uint32_t e = s->newest; e != WC_NONE && wc->ix->entries[e].state == WC_NEW; e = wc->ix->entries[e].prev) {
		wc->ix->entries[e].state = WC_COMMITTING;
		wc_entry_write(wc->meta, e, wc->ix->entries[e].block << wc->block_shift, wc->seq);
		wc_set_dirty(wc, e);
		g_array_append_val(wc->committing, e);
	}
}

/* What is touched while this goes on is for the next commit, unless its shard's turn is still to come. */
static void collect(struct writecache *wc, bool new_too)
{
	uint64_t touched = atomic_exchange(&wc->ix->touched, 0);

	g_array_set_size(wc->freed, 0);
	g_array_set_size(wc->committing, 0);
	for (; touched; touched &= touched - 1) {
		struct wc_shard *s = &wc->ix->shards[__builtin_ctzll(touched)];

		pthread_mutex_lock(&s->lock);
		collect_freeing(wc, s);
		if (new_too)
			collect_new(wc, s);
		else if (s->newest != WC_NONE && wc->ix->entries[s->newest].state == WC_NEW)
			wc_touch(wc->ix, s);
		pthread_mutex_unlock(&s->lock);
	}
	atomic_fetch_sub(&wc->n_new, wc->committing->len);
}

/* Entries whose state only a commit changes: their blocks stay, so that the shard is known before it is locked. */
static struct wc_shard *lock_shard_of(struct writecache *wc, uint32_t e)
{
	struct wc_shard *s = wc_shard_of(wc->ix, wc->ix->entries[e].block);

	pthread_mutex_lock(&s->lock);
	return s;
}

static bool have_committed(struct writecache *wc)
{
	bool more = false;

	for (guint i = 0; i < wc->committing->len; i++) {
		uint32_t e = g_array_index(wc->committing, uint32_t, i), older;
		struct wc_shard *s = lock_shard_of(wc, e);

		wc->ix->entries[e].state = WC_COMMITTED;
		for (older = wc_older(wc->ix, e); older != WC_NONE; older = wc_older(wc->ix, older)) {
			if (wc->ix->entries[older].state != WC_COMMITTED)
				continue;
			wc_unqueue(wc->ix, s, older);
			wc_to_free(wc->ix, s, older);
			more = true;
		}
		pthread_mutex_unlock(&s->lock);
	}
	return more;
}

static void have_freed(struct writecache *wc)
{
	for (guint i = 0; i < wc->freed->len; i++) {
		uint32_t e = g_array_index(wc->freed, uint32_t, i);
		struct wc_entry *x = &wc->ix->entries[e];
		struct wc_shard *s = lock_shard_of(wc, e);
		bool used = x->users, written;

		wc_remove(wc->ix, s, e);
		x->state = used ? WC_DROPPED : WC_FREE;
		written = x->flags & WC_WRITTEN;
		pthread_mutex_unlock(&s->lock);
		if (!used)
			wc_freed(wc, e);
		if (written)
			atomic_fetch_sub(&wc->n_writeback, 1);
	}
	if (wc->freed->len)
		wc_changed(wc);
}

static int commit(struct writecache *wc, bool new_too)
{
	bool more = false;
	int error;

	collect(wc, new_too);
	error = wc_write_dirty(wc);
	if (!error && wc->committing->len) {
		error = write_super(wc, wc->seq + 1);
		wc->seq++;
	}
	if (error) {
		wc_fail(wc, error, "error writing metadata");
		return error;
	}
	more = have_committed(wc);
	have_freed(wc);
	return more ? commit(wc, false) : 0;
}

static bool any_work(struct writecache *wc)
{
	return atomic_exchange(&wc->overwrote, false) || atomic_load(&wc->ix->touched);
}

/* n_new first: a commit is under way before it takes from that. */
bool wc_all_committed(struct writecache *wc)
{
	return !atomic_load(&wc->n_new) && !atomic_load(&wc->committing_now) && !wc_failed(wc);
}

int wc_commit(void *context)
{
	struct writecache *wc = context;
	int error = 0;

	atomic_store(&wc->kick_wanted, false);
	atomic_store(&wc->autocommit_armed, false);
	if (!wc->ix)
		return 0;
	if (!wc_failed(wc) && any_work(wc)) {
		atomic_store(&wc->committing_now, true);
		error = commit(wc, true);
		atomic_store(&wc->committing_now, false);
	}
	if (atomic_load(&wc->draining) || atomic_load(&wc->cleaner))
		dm_wq_queue(wc->wb_wq, &wc->wb_work);
	return wc_failed(wc) ? -EIO : error;
}

/* --- discards -------------------------------------------------------------------------------------------- */

/*
 * Forgets all versions of a block, unless an older one is on its way to the origin or being freed: that would come up
 * again.  Beside no commit.
 */
static bool forget(struct writecache *wc, struct wc_shard *s, uint64_t block)
{
	uint32_t e;

	for (e = wc_find(wc->ix, s, block); e != WC_NONE; e = wc_older(wc->ix, e))
		if (wc->ix->entries[e].state == WC_WRITEBACK || wc->ix->entries[e].state == WC_FREEING)
			return false;
	while ((e = wc_find(wc->ix, s, block)) != WC_NONE) {
		struct wc_entry *x = &wc->ix->entries[e];

		wc_unqueue(wc->ix, s, e);
		if (x->state == WC_COMMITTED) {
			wc_to_free(wc->ix, s, e);
			return true;
		}
		wc_remove(wc->ix, s, e);
		atomic_fetch_sub(&wc->n_new, 1);
		x->state = x->users ? WC_DROPPED : WC_FREE;
		if (x->state == WC_FREE)
			wc_freed(wc, e);
	}
	return false;
}

/* All that a shard has in a range. */
static bool forget_shard(struct writecache *wc, struct wc_shard *s, uint64_t from, uint64_t to)
{
	g_autoptr(GArray) blocks = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	bool to_free = false;

	pthread_mutex_lock(&s->lock);
	for (uint32_t e = s->oldest; e != WC_NONE; e = wc->ix->entries[e].next)
		if (wc->ix->entries[e].block >= from && wc->ix->entries[e].block < to)
			g_array_append_val(blocks, wc->ix->entries[e].block);
	for (guint i = 0; i < blocks->len; i++)
		to_free |= forget(wc, s, g_array_index(blocks, uint64_t, i));
	pthread_mutex_unlock(&s->lock);
	return to_free;
}

static bool forget_range(struct writecache *wc, uint64_t from, uint64_t to)
{
	bool to_free = false;

	if (to - from > wc->n_blocks) { /* there are fewer entries than blocks */
		for (unsigned i = 0; i < WC_SHARDS; i++)
			to_free |= forget_shard(wc, &wc->ix->shards[i], from, to);
		return to_free;
	}
	for (uint64_t block = from; block < to; block++) {
		struct wc_shard *s = wc_shard_of(wc->ix, block);

		if (!atomic_load(&s->count)) {
			block |= WC_GROUP - 1;
			continue;
		}
		pthread_mutex_lock(&s->lock);
		to_free |= forget(wc, s, block);
		pthread_mutex_unlock(&s->lock);
	}
	return to_free;
}

/* In the commits' queue: what the cache has is forgotten, durably, before the origin hears of it. */
void wc_discard(struct dm_work *work)
{
	struct writecache *wc = container_of(work, struct writecache, discard_work);
	struct dm_bio_list bios;
	bool to_free = false;
	struct dm_bio *bio;
	int error = 0;

	dm_bio_list_init(&bios);
	pthread_mutex_lock(&wc->lock);
	dm_bio_list_take(&wc->discards, &bios);
	pthread_mutex_unlock(&wc->lock);
	for (bio = bios.head; bio; bio = bio->next)
		to_free |=
		    forget_range(wc, bio->sector >> wc->block_shift, (bio->sector + bio->sectors) >> wc->block_shift);
	if (to_free)
		error = wc_commit(wc);
	while ((bio = dm_bio_list_pop(&bios))) {
		if (error) {
			dm_bio_end(bio, error);
			continue;
		}
		bio->dev = wc->origin;
		dm_submit(bio);
	}
}
