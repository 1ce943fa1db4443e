/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * raid1 and raid10: every chunk in several places.
 *
 * A read goes to one of them; a write to all, under a claim for its sectors, so that writes to the same sectors leave
 * the same everywhere and none runs into a resynchronisation.  Where the copies may differ (a region that needs it)
 * reads go to the place a resynchronisation would copy from.
 *
 * A read that fails is done again by a thread that may wait: under a claim, from place after place, in smaller and
 * smaller pieces; where another place had the data it is written back to the one that failed.
 *
 * Write-behind (raid1, max_write_behind): a write is answered when the legs that are not write-mostly have it.  The
 * others get theirs from a copy, and keep the claim: a read that must go to such a leg waits for it.
 */
#include <dmfs/under_way.h>

#include "copies.h"

#define BLOCK_SECTORS 8u  /* the smallest piece a failed read is tried in */
#define SYNC_SECTORS 128u /* what a mismatch counts for, as in the kernel */
#define LOCK_SHIFT 8u

struct copies {
	struct dm_block_lock *lock; /* of the array's sectors */
	struct dm_under_way behind; /* writes answered and not done everywhere */
};

static int copies_start(struct raid *r, GError **err)
{
	struct copies *c = g_new0(struct copies, 1);

	c->lock = dm_block_lock_new(LOCK_SHIFT);
	dm_under_way_init(&c->behind);
	r->family = c;
	return 0;
}

static void copies_settle(struct raid *r)
{
	struct copies *c = r->family;

	dm_under_way_wait(&c->behind);
}

static void copies_stop(struct raid *r)
{
	struct copies *c = r->family;

	if (!c)
		return;
	copies_settle(r);
	dm_block_lock_free(c->lock);
	dm_under_way_destroy(&c->behind);
	g_free(c);
}

/* --- which copy ------------------------------------------------------------------------------------- */

/* A region's word where sync space is the array's, which it is here. */
static bool may_differ(struct raid *r, uint64_t sector)
{
	return r->bitmap && raid_region_needed(r->bitmap, sector >> r->bitmap->shift);
}

/* The copy a resynchronisation copies from: the first that is no write-mostly one, else the first. */
static int first_copy(struct raid *r, unsigned nr, const struct raid_copy *copies, uint64_t sectors)
{
	int found = -1;

	for (unsigned i = 0; i < nr; i++) {
		struct raid_member *m = &r->members[copies[i].disk];

		if (!raid_member_readable(m, copies[i].sector + sectors))
			continue;
		if (!(atomic_load(&m->flags) & RAID_WRITE_MOSTLY))
			return (int)i;
		if (found < 0)
			found = (int)i;
	}
	return found;
}

/* Who goes on where its last read ended; else who has the least to do; write-mostly ones only if they must. */
static int best_copy(struct raid *r, unsigned nr, const struct raid_copy *copies, uint64_t sectors)
{
	uint64_t best_cost = UINT64_MAX;
	int best = -1;

	for (unsigned i = 0; i < nr; i++) {
		struct raid_member *m = &r->members[copies[i].disk];
		uint64_t cost;

		if (!raid_member_readable(m, copies[i].sector + sectors))
			continue;
		cost = 2ull * atomic_load_explicit(&m->reads, memory_order_relaxed);
		if (atomic_load_explicit(&m->next_read, memory_order_relaxed) != copies[i].sector)
			cost++;
		if (atomic_load_explicit(&m->flags, memory_order_relaxed) & RAID_WRITE_MOSTLY)
			cost |= 1ull << 32;
		if (cost < best_cost) {
			best_cost = cost;
			best = (int)i;
		}
	}
	return best;
}

int raid_copies_choose(struct raid *r, const struct raid_geo *geo, uint64_t sector, uint64_t sectors,
		       struct raid_copy *copies)
{
	raid_copies(geo, sector, copies);
	return may_differ(r, sector) ? first_copy(r, geo->copies, copies, sectors)
				     : best_copy(r, geo->copies, copies, sectors);
}

/* --- reads ------------------------------------------------------------------------------------------- */

struct slow {
	struct raid *r;
	struct dm_bio *bio;
	uint64_t sector;
	struct dm_work work;
};

int raid_copies_read(struct raid *r, const struct raid_geo *geo, bool moved, uint64_t sector, uint64_t sectors,
		     uint8_t *buf)
{
	struct raid_copy copies[RAID_MAX_DISKS];
	bool tried[RAID_MAX_DISKS] = {false};
	int error = -EIO, result = -EIO;

	raid_copies(geo, sector, copies);
	for (unsigned pass = 0; pass < 2 && result; pass++) {
		for (unsigned i = 0; i < geo->copies && result; i++) {
			struct raid_member *m = &r->members[copies[i].disk];
			bool mostly = atomic_load(&m->flags) & RAID_WRITE_MOSTLY;

			if (mostly != (pass == 1) || !raid_member_readable(m, copies[i].sector + sectors))
				continue;
			result = dm_read_sync(m->data, raid_data_offset(m, moved) + copies[i].sector, sectors, buf, 0);
			if (result)
				error = result;
			tried[i] = result != 0;
		}
	}
	if (result && sectors > BLOCK_SECTORS) {
		for (uint64_t at = 0; at < sectors; at += BLOCK_SECTORS) {
			result = raid_copies_read(r, geo, moved, sector + at, MIN(BLOCK_SECTORS, sectors - at),
						  buf + at * DM_SECTOR_SIZE);
			if (result)
				return result;
		}
		return 0;
	}
	for (unsigned i = 0; i < geo->copies && !result; i++) {
		struct raid_member *m = &r->members[copies[i].disk];
		int mend = 0;

		if (tried[i] && raid_member_alive(m) && r->writable)
			mend = dm_write_sync(m->data, raid_data_offset(m, moved) + copies[i].sector, sectors, buf, 0);
		if (mend)
			raid_member_fail(r, copies[i].disk, "mend a read error of", mend);
	}
	return result ? error : 0;
}

static int read_copies(struct raid *r, uint64_t sector, uint64_t sectors, uint8_t *buf)
{
	return raid_copies_read(r, &r->geo, false, sector, sectors, buf);
}

static void slow_read(struct dm_work *work)
{
	struct slow *s = container_of(work, struct slow, work);
	struct raid *r = s->r;
	struct copies *c = r->family;
	struct dm_bio *bio = s->bio;
	uint64_t left = bio->sectors, sector = s->sector;
	g_autofree uint8_t *buf = g_malloc(MIN(left, 2048) * DM_SECTOR_SIZE);
	int error = 0;

	while (left && !error) {
		uint64_t n = MIN(MIN(left, 2048), raid_geo_run(&r->geo, sector));
		struct dm_block_sync_claim hold;

		dm_block_lock_sync(c->lock, &hold, sector, sector + n - 1, DM_BLOCK_EXCLUSIVE);
		error = read_copies(r, sector, n, buf);
		dm_block_unlock(c->lock, &hold.claim, NULL);
		if (!error)
			dm_iov_write(bio->iov, bio->iovcnt, (sector - s->sector) * DM_SECTOR_SIZE, buf,
				     n * DM_SECTOR_SIZE);
		sector += n;
		left -= n;
	}
	g_free(s);
	dm_bio_end(bio, error);
}

static void copies_reread(struct raid *r, struct dm_bio *bio, struct raid_bio *rb)
{
	struct slow *s = g_new0(struct slow, 1);

	s->r = r;
	s->bio = bio;
	s->sector = rb->sector;
	s->work.fn = slow_read;
	dm_wq_queue(r->slow_wq, &s->work);
}

static void read_done(struct raid_runs *runs, void *private)
{
	struct slow *s = private;
	struct dm_bio *bio = s->bio;
	int error = raid_runs_error(runs);

	raid_runs_free(runs);
	if (error) {
		dm_wq_queue(s->r->slow_wq, &s->work);
		return;
	}
	g_free(s);
	dm_bio_end(bio, 0);
}

/* Several chunks, each from the copy that is best for it. */
static enum dm_mapio read_chunks(struct raid *r, struct dm_bio *bio, uint64_t first)
{
	struct raid_copy copies[RAID_MAX_DISKS];
	unsigned pieces = (unsigned)((first + bio->sectors - 1) / r->geo.chunk - first / r->geo.chunk + 1);
	struct slow *s = g_new0(struct slow, 1);
	struct raid_runs *runs = raid_runs_new(r, bio, pieces, read_done, s);
	uint64_t sector = first, end = first + bio->sectors;

	*s = (struct slow){.r = r, .bio = bio, .sector = first, .work.fn = slow_read};
	for (uint64_t n; sector < end; sector += n) {
		int best;

		n = MIN(end - sector, raid_geo_run(&r->geo, sector));
		best = raid_copies_choose(r, &r->geo, sector, n, copies);
		if (best < 0) {
			raid_runs_free(runs);
			g_free(s);
			return DM_MAPIO_KILL;
		}
		atomic_store_explicit(&r->members[copies[best].disk].next_read, copies[best].sector + n,
				      memory_order_relaxed);
		raid_runs_add(runs, copies[best].disk, copies[best].sector, sector - first, n);
	}
	raid_runs_submit(runs);
	return DM_MAPIO_SUBMITTED;
}

static enum dm_mapio map_read(struct raid *r, struct dm_bio *bio, struct raid_bio *rb)
{
	struct raid_copy copies[RAID_MAX_DISKS];
	struct raid_member *m;
	int best;

	if (raid_geo_run(&r->geo, rb->sector) < bio->sectors)
		return read_chunks(r, bio, rb->sector);
	best = raid_copies_choose(r, &r->geo, rb->sector, bio->sectors, copies);
	if (best < 0)
		return DM_MAPIO_KILL;
	m = &r->members[copies[best].disk];
	if (r->params.value[RAID_WRITE_BEHIND] && atomic_load(&m->flags) & RAID_WRITE_MOSTLY) {
		copies_reread(r, bio, rb); /* it may be behind: the claim tells */
		return DM_MAPIO_SUBMITTED;
	}
	rb->disk = (int)copies[best].disk;
	atomic_fetch_add_explicit(&m->reads, 1, memory_order_relaxed);
	atomic_store_explicit(&m->next_read, copies[best].sector + bio->sectors, memory_order_relaxed);
	bio->dev = m->data;
	bio->sector = m->data_offset + copies[best].sector;
	return DM_MAPIO_REMAPPED;
}

/* --- writes ------------------------------------------------------------------------------------------- */

struct write {
	struct dm_block_claim claim;
	struct raid_wait mark; /* and for the superblocks */
	struct raid *r;
	struct dm_bio *bio;
	uint64_t sector;
	int error;
	bool need;	    /* copies differ */
	atomic_uint parts;  /* the legs that count, and those behind */
	struct dm_bio copy; /* what those behind are written from */
	struct iovec iov;
	uint8_t *data;
};

static void behind_done(struct raid *r)
{
	struct copies *c = r->family;

	dm_under_way_end(&c->behind);
}

static void write_release(struct write *w)
{
	struct raid *r = w->r;
	struct copies *c = r->family;
	bool behind = w->data;

	if (atomic_fetch_sub(&w->parts, 1) > 1)
		return;
	if (w->need)
		raid_regions_need(r, &w->mark);
	raid_unmark(r, &w->mark);
	dm_block_unlock(c->lock, &w->claim, NULL);
	g_free(w->data);
	g_free(w);
	if (behind)
		behind_done(r);
}

static void write_answer(struct raid_wait *wait)
{
	struct write *w = container_of(wait, struct write, mark);
	struct dm_bio *bio = w->bio;
	int error = w->error ? w->error : wait->error;

	w->need |= wait->error != 0;
	write_release(w);
	dm_bio_end(bio, error);
}

/*
 * A discard is a wish: a device that does not fulfil it has not failed.  But its copies may differ now,
 * which a resynchronisation mends.
 */
static void discard_done(struct write *w, int error)
{
	w->error = error;
	w->need = error != 0;
	write_answer(&w->mark);
}

static void write_done(struct raid_runs *runs, void *private)
{
	struct write *w = private;
	bool dropped = false;

	if (w->bio->op == DM_DISCARD) {
		int error = raid_runs_error(runs);

		raid_runs_free(runs);
		discard_done(w, error);
		return;
	}
	w->error = raid_runs_drop_failed(runs, &dropped);
	w->need = w->error != 0;
	raid_runs_free(runs);
	if (dropped || atomic_load(&w->r->unsaved)) {
		/* the mark is still counted, so its regions are kept beside */
		struct raid_wait *wait = &w->mark;

		wait->fn = write_answer;
		raid_save(w->r, wait);
	} else {
		write_answer(&w->mark);
	}
}

static void behind_runs_done(struct raid_runs *runs, void *private)
{
	struct write *w = private;
	bool dropped;

	raid_runs_drop_failed(runs, &dropped);
	raid_runs_free(runs);
	write_release(w);
}

/* Takes a place among the writes behind, if there is one, and a copy of the data. */
static bool write_behind(struct write *w)
{
	struct raid *r = w->r;
	struct copies *c = r->family;
	unsigned max = r->params.value[RAID_WRITE_BEHIND] / 2;
	bool some = false, other = false;

	if (!max || w->bio->op != DM_WRITE || w->bio->flags & DM_FUA || !raid_has_bitmap(r))
		return false;
	for (unsigned i = 0; i < r->geo.disks; i++) {
		uint32_t flags = atomic_load(&r->members[i].flags);

		if (flags & (RAID_FAULTY | RAID_MISSING))
			continue;
		some |= (flags & RAID_WRITE_MOSTLY) != 0;
		other |= !(flags & RAID_WRITE_MOSTLY) && flags & RAID_IN_SYNC;
	}
	if (!some || !other)
		return false;
	if (!dm_under_way_try(&c->behind, max))
		return false;
	w->iov.iov_len = w->bio->sectors * DM_SECTOR_SIZE;
	w->iov.iov_base = w->data = g_malloc(w->iov.iov_len);
	dm_iov_read(w->bio->iov, w->bio->iovcnt, 0, w->data, w->iov.iov_len);
	return true;
}

/* Adds the legs that are write-mostly, or those that are not, or all. */
static struct raid_runs *make_runs(struct write *w, unsigned flags, unsigned want,
				   void (*done)(struct raid_runs *, void *))
{
	struct raid *r = w->r;
	struct raid_copy copies[RAID_MAX_DISKS];
	uint64_t sector = w->sector, end = sector + w->bio->sectors;
	unsigned pieces = r->geo.chunk ? (unsigned)((end - 1) / r->geo.chunk - sector / r->geo.chunk + 1) : 1;
	struct raid_runs *runs = raid_runs_new(r, w->bio, pieces * r->geo.copies, done, w);

	for (uint64_t n; sector < end; sector += n) {
		n = MIN(end - sector, raid_geo_run(&r->geo, sector));
		raid_copies(&r->geo, sector, copies);
		for (unsigned i = 0; i < r->geo.copies; i++) {
			uint32_t f = atomic_load(&r->members[copies[i].disk].flags);

			if (!(f & (RAID_FAULTY | RAID_MISSING)) && (f & flags) == want)
				raid_runs_add(runs, copies[i].disk, copies[i].sector, sector - w->sector, n);
		}
	}
	return runs;
}

static void write_marked(struct raid_wait *wait)
{
	struct write *w = container_of(wait, struct write, mark);
	struct raid_runs *behind, *runs;

	if (wait->error) {
		w->error = wait->error;
		write_answer(wait);
		return;
	}
	if (!write_behind(w)) {
		raid_runs_submit(make_runs(w, 0, 0, write_done));
		return;
	}
	atomic_store(&w->parts, 2);
	/* both are made before either may be over: then the bio is gone */
	runs = make_runs(w, RAID_WRITE_MOSTLY, 0, write_done);
	w->copy = *w->bio;
	w->copy.iov = &w->iov;
	w->copy.iovcnt = 1;
	behind = raid_runs_new(w->r, &w->copy, w->r->disks, behind_runs_done, w);
	for (unsigned i = 0; i < w->r->disks; i++)
		if (raid_member_alive(&w->r->members[i]) && atomic_load(&w->r->members[i].flags) & RAID_WRITE_MOSTLY)
			raid_runs_add(behind, i, w->sector, 0, w->copy.sectors);
	raid_runs_submit(runs);
	raid_runs_submit(behind);
}

static void write_locked(struct dm_block_claim *claim)
{
	struct write *w = container_of(claim, struct write, claim);

	if (raid_mark(w->r, w->sector, w->bio->sectors, &w->mark))
		write_marked(&w->mark);
}

static enum dm_mapio copies_map(struct raid *r, struct dm_bio *bio, struct raid_bio *rb)
{
	struct copies *c = r->family;
	struct write *w;

	if (bio->op == DM_READ)
		return map_read(r, bio, rb);
	w = g_new0(struct write, 1);
	w->r = r;
	w->bio = bio;
	w->sector = rb->sector;
	w->mark.fn = write_marked;
	atomic_init(&w->parts, 1);
	if (dm_block_lock(c->lock, &w->claim, w->sector, w->sector + bio->sectors - 1, DM_BLOCK_EXCLUSIVE,
			  write_locked))
		write_locked(&w->claim);
	return DM_MAPIO_SUBMITTED;
}

/* --- synchronisation ------------------------------------------------------------------------------------- */

struct pass {
	struct raid_window *w;
	uint8_t *source, *other;
};

/* Compares all copies of a piece with the one to copy from; writes those that differ, unless it is a check. */
static int sync_piece(struct pass *p, uint64_t sector, uint64_t n)
{
	struct raid *r = p->w->r;
	struct raid_copy copies[RAID_MAX_DISKS];
	bool differs = false;
	int from, error;

	raid_copies(&r->geo, sector, copies);
	from = first_copy(r, r->geo.copies, copies, n);
	if (from < 0)
		return 0; /* nobody has it */
	error = read_copies(r, sector, n, p->source);
	if (error)
		return p->w->action == RAID_CHECK || p->w->action == RAID_REPAIR ? 0 : error;
	for (unsigned i = 0; i < r->geo.copies; i++) {
		struct raid_member *m = &r->members[copies[i].disk];
		bool same, unreadable;

		if ((int)i == from || !raid_member_alive(m))
			continue;
		if (!raid_member_readable(m, copies[i].sector + n) && p->w->action != RAID_RESYNC)
			continue; /* its turn is in a recovery */
		unreadable = dm_read_sync(m->data, m->data_offset + copies[i].sector, n, p->other, DM_BACKGROUND) != 0;
		same = !unreadable && !memcmp(p->source, p->other, n * DM_SECTOR_SIZE);
		differs |= !same && !unreadable;
		if (same || (p->w->action == RAID_CHECK && !unreadable))
			continue; /* what cannot be read is mended by writing, in a check too */
		error = dm_write_sync(m->data, m->data_offset + copies[i].sector, n, p->source, DM_BACKGROUND);
		if (error)
			raid_member_fail(r, copies[i].disk, "synchronise", error);
	}
	if (differs)
		p->w->mismatches += n;
	return 0;
}

static int sync_range(struct pass *p)
{
	struct raid *r = p->w->r;
	struct copies *c = r->family;
	uint64_t sector = p->w->sector, end = sector + p->w->sectors;
	struct dm_block_sync_claim hold;
	int error = 0;

	dm_block_lock_sync(c->lock, &hold, sector, end - 1, DM_BLOCK_EXCLUSIVE);
	for (uint64_t n; sector < end && !error; sector += n) {
		n = MIN(MIN(end - sector, raid_geo_run(&r->geo, sector)), SYNC_SECTORS - sector % SYNC_SECTORS);
		error = sync_piece(p, sector, n);
	}
	dm_block_unlock(c->lock, &hold.claim, NULL);
	return error;
}

/* A piece of one device that is to be rebuilt, under a claim for the array's sectors it has. */
static int recover_piece(struct pass *p, unsigned disk, uint64_t dev_sector, uint64_t n)
{
	struct raid *r = p->w->r;
	struct copies *c = r->family;
	struct raid_member *m = &r->members[disk];
	struct dm_block_sync_claim hold;
	uint64_t sector;
	int error;

	if (!raid_copy_of(&r->geo, disk, dev_sector, &sector))
		return 0;
	if (atomic_load(&m->flags) & RAID_PARTIAL && r->bitmap &&
	    !(atomic_load(&r->bitmap->words[sector >> r->bitmap->shift]) & (RAID_REGION_DURABLE | RAID_REGION_NEEDED)))
		return 0;
	dm_block_lock_sync(c->lock, &hold, sector, sector + n - 1, DM_BLOCK_EXCLUSIVE);
	error = read_copies(r, sector, n, p->source);
	if (!error && raid_member_alive(m)) {
		error = dm_write_sync(m->data, m->data_offset + dev_sector, n, p->source, DM_BACKGROUND);
		if (error)
			raid_member_fail(r, disk, "rebuild", error);
	}
	dm_block_unlock(c->lock, &hold.claim, NULL);
	return error;
}

static int recover_range(struct pass *p)
{
	struct raid *r = p->w->r;
	uint64_t end = p->w->sector + p->w->sectors;
	int error = 0;

	for (unsigned i = 0; i < r->geo.disks && !error; i++) {
		struct raid_member *m = &r->members[i];

		if (!raid_member_alive(m) || raid_member_readable(m, end))
			continue;
		for (uint64_t n, sector = p->w->sector; sector < end && !error; sector += n) {
			n = MIN(MIN(end - sector, raid_geo_run(&r->geo, sector)), 2048);
			error = recover_piece(p, i, sector, n);
		}
	}
	return error;
}

static void copies_sync(struct raid_window *w)
{
	struct pass p = {.w = w, .source = g_malloc(2048 * DM_SECTOR_SIZE)};

	if (w->action == RAID_RECOVER) {
		w->error = recover_range(&p);
	} else {
		p.other = g_malloc(SYNC_SECTORS * DM_SECTOR_SIZE);
		w->error = sync_range(&p);
	}
	g_free(p.source);
	g_free(p.other);
}

const struct raid_ops raid_copies_ops = {
	.start = copies_start,
	.stop = copies_stop,
	.map = copies_map,
	.reread = copies_reread,
	.sync = copies_sync,
	.settle = copies_settle,
};
