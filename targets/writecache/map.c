/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * writecache's bios: each goes to one place, or is cut into runs of blocks that do.
 *
 * The counters count as the kernel's do: a write in place of several blocks in a row is one hit, and those after its
 * first count as allocated.
 */
#include "writecache.h"

#include <dmfs/container_of.h>

/* A part of a bio that goes on by itself. */
struct piece {
	struct dm_bio bio;
	struct wc_io io;
	struct dm_parts *parts;
	struct iovec iov[];
};

/* --- counting ------------------------------------------------------------------------------- */

static unsigned my_slot(void)
{
	static atomic_uint threads;
	static __thread unsigned mine;

	if (!mine)
		mine = atomic_fetch_add(&threads, 1) % WC_COUNT_SLOTS + 1;
	return mine - 1;
}

void wc_count(struct writecache *wc, enum wc_count what, uint64_t n)
{
	atomic_fetch_add_explicit(&wc->counts[my_slot()].n[what], n, memory_order_relaxed);
}

/* --- one block after the other, each with its shard locked ------------------------------------- */

struct walk {
	struct wc_index *ix;
	struct wc_shard *shard; /* NULL: none is locked */
	uint64_t group;
};

static void walk_end(struct walk *w)
{
	if (w->shard)
		pthread_mutex_unlock(&w->shard->lock);
	w->shard = NULL;
}

static void walk_to(struct walk *w, uint64_t block)
{
	if (w->shard && w->group == block / WC_GROUP)
		return;
	walk_end(w);
	w->group = block / WC_GROUP;
	w->shard = wc_shard_of(w->ix, block);
	pthread_mutex_lock(&w->shard->lock);
}

/* The newest entry of a block, whose shard is locked then; WC_NONE, with the shard locked or not. */
static uint32_t walk_find(struct walk *w, uint64_t block)
{
	if (!(w->shard && w->group == block / WC_GROUP)) {
		struct wc_shard *s = wc_shard_of(w->ix, block);

		if (!atomic_load_explicit(&s->count, memory_order_acquire))
			return WC_NONE;
	}
	walk_to(w, block);
	return wc_find(w->ix, w->shard, block);
}

/* --- reads --------------------------------------------------------------------------------------- */

/* Where the blocks from this one on are read; those in the cache are kept there while it lasts. */
static void next_read(struct writecache *wc, uint64_t block, uint64_t left, struct wc_run *run)
{
	struct walk w = {.ix = wc->ix};

	*run = (struct wc_run){.way = WC_ORIGIN, .block = block};
	for (; run->n < left; run->n++) {
		uint32_t e = walk_find(&w, block + run->n);

		if (e != WC_NONE && !wc_live(&wc->ix->entries[e]))
			e = WC_NONE;
		if (!run->n && e != WC_NONE) {
			run->way = WC_READ;
			run->entry = e;
		}
		if (run->way == WC_READ ? e == WC_NONE || e != run->entry + run->n : e != WC_NONE)
			break;
		if (e != WC_NONE)
			wc->ix->entries[e].users++;
	}
	walk_end(&w);
	wc_count(wc, WC_READS, run->n);
	if (run->way == WC_READ)
		wc_count(wc, WC_READ_HITS, run->n);
}

/* --- writes ---------------------------------------------------------------------------------------- */

/* What is committed is not overwritten in memory: there a write is as short as the power lets it be. */
static bool can_overwrite(struct writecache *wc, const struct wc_entry *x)
{
	return !wc->pmem && wc_live(x) && x->state != WC_WRITEBACK && x->writers < UINT16_MAX;
}

static void begin_overwrite(struct wc_entry *x)
{
	x->users++;
	x->writers++;
}

static void overwrite_run(struct writecache *wc, struct walk *w, uint32_t e, uint64_t left, struct wc_run *run)
{
	run->way = WC_OVERWRITE;
	run->entry = e;
	begin_overwrite(&wc->ix->entries[e]);
	for (run->n = 1; run->n < left; run->n++) {
		e = walk_find(w, run->block + run->n);
		if (e == WC_NONE || e != run->entry + run->n || !can_overwrite(wc, &wc->ix->entries[e]))
			break;
		begin_overwrite(&wc->ix->entries[e]);
	}
	wc_count(wc, WC_ALLOCATED, run->n - 1);
}

static void around_run(struct walk *w, uint64_t left, struct wc_run *run)
{
	run->way = WC_ORIGIN;
	for (run->n = 1; run->n < left; run->n++)
		if (walk_find(w, run->block + run->n) != WC_NONE)
			break;
}

static void allocated_run(struct writecache *wc, struct walk *w, uint64_t left, struct wc_run *run)
{
	run->way = WC_ALLOCATED_RUN;
	for (run->n = 1; run->n < left; run->n++)
		if (walk_find(w, run->block + run->n) != WC_NONE ||
		    !wc_take_free_at(wc->ix, run->entry + (uint32_t)run->n))
			break;
}

/* Where the blocks from this one on are written. */
static void next_write(struct writecache *wc, unsigned flags, uint64_t block, uint64_t left, struct wc_run *run)
{
	struct walk w = {.ix = wc->ix};
	uint32_t e = walk_find(&w, block);
	struct wc_entry *x = e == WC_NONE ? NULL : &wc->ix->entries[e];
	bool hit = x && wc_live(x), fresh = hit && x->state < WC_COMMITTED;

	*run = (struct wc_run){.block = block, .n = left};
	if (hit)
		wc_count(wc, fresh ? WC_HITS_NEW : WC_HITS_COMMITTED, 1);
	if (hit && can_overwrite(wc, x)) {
		overwrite_run(wc, &w, e, left, run);
	} else if (!x && (atomic_load_explicit(&wc->cleaner, memory_order_relaxed) ||
			  (wc->opt.metadata_only && !(flags & DM_META)))) {
		around_run(&w, left, run);
	} else {
		run->entry = wc_take_free(wc->ix);
		if (run->entry != WC_NONE) {
			allocated_run(wc, &w, left, run);
			wc_count(wc, WC_ALLOCATED, run->n - fresh);
		} else if (!x && !wc->pmem) {
			around_run(&w, left, run);
		} else {
			run->way = WC_WAIT;
		}
	}
	walk_end(&w);
	if (run->way == WC_WAIT) {
		wc_count(wc, WC_BLOCKED, 1);
		return;
	}
	wc_count(wc, WC_WRITES, run->n);
	if (run->way == WC_ORIGIN)
		wc_count(wc, WC_AROUND, run->n);
	if (run->way == WC_ALLOCATED_RUN)
		wc_check_free(wc);
}

/* --- the end of a run ---------------------------------------------------------------------------------- */

/* A user of an entry has gone; writers may have been waited for. */
static void leave(struct writecache *wc, struct walk *w, uint32_t e, uint64_t block, bool writer, bool ok)
{
	struct wc_entry *x = &wc->ix->entries[e];

	walk_to(w, block);
	if (writer) {
		x->writers--;
		if (ok && x->state != WC_NEW) /* the commit that knows of it may have flushed already */
			atomic_store(&wc->overwrote, true);
		if (!x->writers && atomic_load(&wc->stuck))
			wc_unstuck(wc);
	}
	if (!--x->users && x->state == WC_DROPPED) {
		x->state = WC_FREE;
		wc_freed(wc, e);
	}
}

/* Has the newest version of a block go that no commit knows of: another write of it has ended.  Its shard is locked. */
static bool drop_new(struct writecache *wc, struct wc_shard *s, uint32_t e)
{
	struct wc_entry *x = &wc->ix->entries[e];

	if (x->state != WC_NEW)
		return false;
	wc_unqueue(wc->ix, s, e);
	wc_remove(wc->ix, s, e);
	if (x->users) {
		x->state = WC_DROPPED;
	} else {
		x->state = WC_FREE;
		wc_freed(wc, e);
	}
	return true;
}

static void enter(struct writecache *wc, const struct wc_run *run)
{
	struct walk w = {.ix = wc->ix};
	uint32_t now = wc_now_ms();
	unsigned dropped = 0;

	atomic_fetch_add(&wc->n_new, (unsigned)run->n);
	for (uint64_t i = 0; i < run->n; i++) {
		uint32_t old;

		walk_to(&w, run->block + i);
		old = wc_find(wc->ix, w.shard, run->block + i);
		dropped += old != WC_NONE && drop_new(wc, w.shard, old);
		wc_insert(wc->ix, w.shard, run->entry + (uint32_t)i, run->block + i, WC_NEW, now);
	}
	walk_end(&w);
	if (atomic_fetch_sub(&wc->n_new, dropped) - dropped >= wc->opt.autocommit_blocks ||
	    atomic_load(&wc->any_blocked))
		wc_kick(wc);
	else if (!atomic_exchange(&wc->autocommit_armed, true))
		dm_group_commit_soon(wc->commits, wc->opt.autocommit_ms * UINT64_C(1000000));
}

static void end_run(struct writecache *wc, const struct wc_run *run, int error)
{
	struct walk w = {.ix = wc->ix};

	if (run->way == WC_ALLOCATED_RUN && !error) {
		enter(wc, run);
		return;
	}
	for (uint64_t i = 0; i < run->n && run->way != WC_ORIGIN; i++) {
		uint32_t e = run->entry + (uint32_t)i;

		if (run->way == WC_ALLOCATED_RUN)
			wc_freed(wc, e);
		else
			leave(wc, &w, e, run->block + i, run->way == WC_OVERWRITE, !error);
	}
	walk_end(&w);
}

static void end_io(struct wc_io *io, int error)
{
	struct writecache *wc = io->wc;

	if (io->run.way == WC_NOWHERE)
		return;
	end_run(wc, &io->run, error);
	io->run.way = WC_NOWHERE;
	if (io->around) {
		io->around = false;
		atomic_store(&wc->around_ns, dm_now_ns());
		atomic_fetch_sub(&wc->around, 1);
	}
}

/* --- sending them ------------------------------------------------------------------------------------------ */

static void copy_mem(struct writecache *wc, struct wc_io *io)
{
	struct dm_bio *bio = io->bio;
	uint64_t at = bio->sector << DM_SECTOR_SHIFT;
	int error = bio->op == DM_READ ? wc_mem_read(wc->mem, at, bio->iov, bio->iovcnt)
				       : wc_mem_write(wc->mem, at, bio->iov, bio->iovcnt);

	dm_bio_end(bio, error);
}

static void mem_work(struct dm_work *work)
{
	struct wc_io *io = container_of(work, struct wc_io, work);

	copy_mem(io->wc, io);
}

/* Until a block is free.  As soon as the lock is let go the bio may have ended, and the target with it. */
static void wait_for_room(struct writecache *wc, struct dm_bio *bio)
{
	int error;

	pthread_mutex_lock(&wc->lock);
	atomic_store(&wc->any_blocked, true);
	wc_check_free(wc);
	wc_kick(wc);
	error = dm_hold_add(&wc->blocked, bio);
	if (!error && (wc_n_free(wc->ix) || wc_failed(wc)))
		dm_wq_queue(wc->wq, &wc->blocked_work);
	pthread_mutex_unlock(&wc->lock);
	if (error)
		dm_bio_end(bio, error);
}

/* Points a bio at where all of it goes. */
static enum dm_mapio place(struct writecache *wc, struct dm_bio *bio)
{
	struct wc_io *io = bio->private;

	if (io->run.way == WC_WAIT) {
		io->run.way = WC_NOWHERE;
		wait_for_room(wc, bio);
		return DM_MAPIO_SUBMITTED;
	}
	if (io->run.way == WC_ORIGIN) {
		bio->dev = wc->origin;
		if (bio->op == DM_WRITE && wc->opt.pause_ms) {
			io->around = true;
			atomic_fetch_add(&wc->around, 1);
		}
		return DM_MAPIO_REMAPPED;
	}
	bio->dev = wc->cache;
	bio->sector = wc->data_sector + ((uint64_t)io->run.entry << wc->block_shift);
	if (bio->op == DM_WRITE)
		bio->flags &= ~(unsigned)DM_FUA; /* a commit follows */
	if (!wc->pmem)
		return DM_MAPIO_REMAPPED;
	io->bio = bio;
	if (wc_mem_direct(wc->mem)) {
		copy_mem(wc, io);
	} else {
		io->work = (struct dm_work){.fn = mem_work};
		dm_wq_queue(wc->mem_wq, &io->work);
	}
	return DM_MAPIO_SUBMITTED;
}

static void piece_end(struct dm_bio *bio)
{
	struct piece *p = container_of(bio, struct piece, bio);
	struct dm_parts *parts = p->parts;
	int error = bio->error;

	end_io(&p->io, error);
	g_free(p);
	dm_parts_end(parts, error);
}

static void send_piece(struct writecache *wc, struct dm_bio *whole, uint64_t at, const struct wc_run *run,
		       struct dm_parts *parts)
{
	struct piece *p = g_malloc(sizeof *p + sizeof(struct iovec) * (unsigned)whole->iovcnt);
	uint64_t sectors = run->n << wc->block_shift;

	p->parts = parts;
	p->io = (struct wc_io){.wc = wc, .run = *run};
	p->bio = (struct dm_bio){
	    .op = whole->op,
	    .flags = whole->flags,
	    .sector = whole->sector + at,
	    .sectors = sectors,
	    .iov = p->iov,
	    .iovcnt =
		dm_iov_slice(whole->iov, whole->iovcnt, at << DM_SECTOR_SHIFT, sectors << DM_SECTOR_SHIFT, p->iov),
	    .origin = whole->origin,
	    .end = piece_end,
	    .private = &p->io,
	};
	dm_parts_add(parts);
	if (place(wc, &p->bio) == DM_MAPIO_REMAPPED)
		dm_submit(&p->bio);
}

/* bio->sector counts from the target's begin. */
static enum dm_mapio drive(struct writecache *wc, struct dm_bio *bio)
{
	struct wc_io *io = bio->private;
	uint64_t at = 0, n = bio->sectors >> wc->block_shift;
	struct dm_parts *parts = NULL;

	if (bio->op == DM_WRITE && wc_failed(wc)) {
		wc_count(wc, WC_WRITES, n);
		dm_bio_end(bio, -EIO);
		return DM_MAPIO_SUBMITTED;
	}
	while (n) {
		uint64_t block = (bio->sector + at) >> wc->block_shift;
		struct wc_run run;

		if (bio->op == DM_READ)
			next_read(wc, block, n, &run);
		else
			next_write(wc, bio->flags, block, n, &run);
		if (!parts && run.n == n) {
			io->run = run;
			return place(wc, bio);
		}
		if (!parts) {
			parts = g_new(struct dm_parts, 1);
			dm_parts_init(parts, bio, 1);
		}
		n -= run.n;
		send_piece(wc, bio, at, &run, parts);
		at += run.n << wc->block_shift;
	}
	dm_parts_end(parts, 0);
	return DM_MAPIO_SUBMITTED;
}

/* In the commits' queue: blocks have become free, or nothing will be written any more. */
void wc_retry_blocked(struct dm_work *work)
{
	struct writecache *wc = container_of(work, struct writecache, blocked_work);
	struct dm_bio_list bios;
	struct dm_bio *bio;

	dm_bio_list_init(&bios);
	pthread_mutex_lock(&wc->lock);
	atomic_store(&wc->any_blocked, false);
	dm_hold_take(&wc->blocked, &bios);
	pthread_mutex_unlock(&wc->lock);
	while ((bio = dm_bio_list_pop(&bios)))
		if (drive(wc, bio) == DM_MAPIO_REMAPPED)
			dm_submit(bio);
}

void wc_hold_fail(struct dm_hold *h, struct dm_bio *bio, int error)
{
	dm_bio_end(bio, error);
}

/* --- the engine's calls ---------------------------------------------------------------------------------------- */

static void flushed(struct dm_commit_wait *wait, int error)
{
	struct wc_io *io = container_of(wait, struct wc_io, commit);
	struct writecache *wc = io->wc;
	struct dm_bio *bio = io->bio;

	/* Type p gets one FLUSH for both devices. */
	if (error || bio->op != DM_FLUSH || !wc->pmem || !(atomic_load(&wc->cleaner) || wc->opt.metadata_only)) {
		dm_bio_end(bio, error);
		return;
	}
	bio->dev = wc->origin;
	dm_submit(bio);
}

static void end_after_commit(struct writecache *wc, struct dm_bio *bio)
{
	struct wc_io *io = bio->private;

	io->bio = bio;
	io->commit.done = flushed;
	dm_group_commit(wc->commits, &io->commit);
}

/* What was overwritten in place needs no commit. */
static enum dm_mapio map_flush(struct writecache *wc, struct dm_bio *bio)
{
	struct wc_io *io = bio->private;

	if (wc_failed(wc))
		return DM_MAPIO_KILL;
	if (bio->nr) {
		bio->dev = wc->origin;
		return DM_MAPIO_REMAPPED;
	}
	wc_count(wc, WC_FLUSHES, 1);
	if (!wc->pmem && wc_all_committed(wc)) {
		io->flushes_cache = true;
		bio->dev = wc->cache;
		return DM_MAPIO_REMAPPED;
	}
	end_after_commit(wc, bio);
	return DM_MAPIO_SUBMITTED;
}

static enum dm_mapio map_discard(struct writecache *wc, struct dm_bio *bio)
{
	wc_count(wc, WC_DISCARDS, bio->sectors >> wc->block_shift);
	if (wc_failed(wc))
		return DM_MAPIO_KILL;
	pthread_mutex_lock(&wc->lock);
	dm_bio_list_add(&wc->discards, bio);
	pthread_mutex_unlock(&wc->lock);
	dm_wq_queue(wc->wq, &wc->discard_work);
	return DM_MAPIO_SUBMITTED;
}

enum dm_mapio wc_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct writecache *wc = ti->private;
	struct wc_io *io = bio->private;

	*io = (struct wc_io){.wc = wc, .fua = bio->op == DM_WRITE && (bio->flags & DM_FUA)};
	if (bio->op == DM_FLUSH)
		return map_flush(wc, bio);
	bio->sector = dm_target_offset(ti, bio->sector);
	if ((bio->sector | bio->sectors) & ((1u << wc->block_shift) - 1)) {
		dm_log_err_limit("writecache: I/O is not aligned, sector %" G_GUINT64_FORMAT ", %" G_GUINT64_FORMAT
				 " sectors, block size %u",
				 bio->sector, bio->sectors, wc->block_bytes);
		return DM_MAPIO_KILL;
	}
	if (bio->op == DM_DISCARD)
		return map_discard(wc, bio);
	return drive(wc, bio);
}

enum dm_endio wc_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct wc_io *io = bio->private;

	end_io(io, bio->error);
	if (io->flushes_cache && bio->error)
		wc_fail(io->wc, bio->error, "error flushing the cache device");
	if (!io->fua || bio->error)
		return DM_ENDIO_DONE;
	io->fua = false;
	end_after_commit(ti->private, bio);
	return DM_ENDIO_INCOMPLETE;
}
