/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Hydration: by writes that need a region now, and in the background.
 *
 * The background hydration takes what was read twice first, then goes round from region to region.  It gives way to
 * user I/O: while there was some within BUSY_NS it works in bursts of about BURST_NS, each until all it began has
 * ended, and rests three times as long after it, though no longer than MAX_REST_NS: so a slow source is read from all
 * the same.  A stretch that is a hole in the source is not copied but zeroed (on a file, a hole as well), however many
 * regions it is.
 */
#include <errno.h>
#include <string.h>

#include "clone.h"

#include <dmfs/container_of.h>

#define BUSY_NS UINT64_C(2000000)
#define BURST_NS UINT64_C(300000)
#define MAX_REST_NS UINT64_C(50000000)
#define HOLE_SECTORS ((uint64_t)1 << 18) /* zeroed at once, at most: a write to one of its regions waits for it */

static uint64_t region_sector(const struct clone *c, uint64_t region)
{
	return region << c->shift;
}

static uint64_t regions_sectors(const struct clone *c, uint64_t region, uint64_t n)
{
	return MIN(n << c->shift, c->ti->len - region_sector(c, region));
}

/* --- those under way -------------------------------------------------------------------------- */

static struct hydration *hydration_new(struct clone *c, uint64_t region, uint64_t n, bool background)
{
	struct hydration *h = g_new0(struct hydration, 1);

	h->c = c;
	h->region = region;
	h->n = n;
	h->background = background;
	return h;
}

/* Its regions are claimed. */
static void count(struct hydration *h)
{
	struct clone *c = h->c;

	pthread_mutex_lock(&c->lock);
	c->hydrating += (unsigned)h->n;
	if (h->background)
		c->background += (unsigned)h->n;
	pthread_mutex_unlock(&c->lock);
}

static void uncount(struct hydration *h)
{
	struct clone *c = h->c;

	pthread_mutex_lock(&c->lock);
	c->hydrating -= (unsigned)h->n;
	if (h->background)
		c->background -= (unsigned)h->n;
	if (!c->hydrating)
		pthread_cond_broadcast(&c->idle);
	pthread_mutex_unlock(&c->lock);
}

void clone_wait_hydrations(struct clone *c)
{
	dm_block_begin();
	pthread_mutex_lock(&c->lock);
	while (c->hydrating)
		pthread_cond_wait(&c->idle, &c->lock);
	pthread_mutex_unlock(&c->lock);
	dm_block_end();
}

/* --- the end of one --------------------------------------------------------------------------- */

/* Sends on, or fails, what waited for the region. */
static void run_waiting(struct clone *c, struct dm_bio_list *list, int error)
{
	struct dm_bio *bio;

	if (atomic_load(&c->mode) == CLONE_FAIL)
		error = -EIO;
	while ((bio = dm_bio_list_pop(list))) {
		if (error) {
			dm_bio_end(bio, error);
		} else {
			bio->dev = c->dest;
			dm_submit(bio);
		}
	}
}

static void count_failure(struct clone *c, bool source)
{
	dm_log_err_limit("clone: hydration failed: %s", source ? "reading the source" : "writing the destination");
	if (atomic_fetch_add(&c->failures, 1) + 1 < CLONE_MAX_TRIES || atomic_exchange(&c->stopped, true))
		return;
	dm_log_err("clone: %u failures in a row: the background hydration stops until enable_hydration",
		   CLONE_MAX_TRIES);
	dm_target_event(c->ti, "HYDRATION_STOPPED", NULL);
}

/* Ends the hydration for others: who waits for it is the caller's now. */
static void leave(struct hydration *h, struct dm_bio_list *waiting)
{
	dm_bio_list_init(waiting);
	if (h->first && !h->overwrites)
		dm_bio_list_add(waiting, h->first);
	dm_block_unlock(h->c->regions, &h->claim, waiting);
	uncount(h);
}

static void finish(struct hydration *h, int error)
{
	struct clone *c = h->c;
	struct dm_bio_list waiting;

	if (!error) {
		clone_md_set(c->meta, h->region, h->n);
		clone_commit_soon(c);
	}
	leave(h, &waiting);
	run_waiting(c, &waiting, error);
	if (!error)
		clone_check_complete(c);
	g_free(h);
	clone_wake(c);
}

static void copied(int read_error, unsigned long write_errors, void *context)
{
	struct hydration *h = context;

	if (read_error || write_errors)
		count_failure(h->c, read_error);
	else
		atomic_store(&h->c->failures, 0);
	finish(h, read_error ? read_error : write_errors ? -EIO : 0);
}

static void copy(struct hydration *h)
{
	struct clone *c = h->c;
	uint64_t sector = region_sector(c, h->region), len = regions_sectors(c, h->region, h->n);
	struct dm_region from = {c->source, sector, len}, to = {c->dest, sector, len};

	if (h->hole)
		dm_kcopyd_zero(c->kcopyd, 1, &to, 0, copied, h);
	else
		dm_kcopyd_copy(c->kcopyd, &from, 1, &to, 0, copied, h);
}

/* --- writes to regions that are not hydrated ----------------------------------------------------- */

void clone_write_cold(struct clone *c, struct dm_bio *bio, uint64_t region)
{
	struct hydration *h = hydration_new(c, region, 1, false);
	int r = dm_block_lock_or_park(c->regions, &h->claim, region, bio);

	if (r) {
		g_free(h);
		if (r < 0)
			dm_bio_end(bio, r);
		return;
	}
	count(h);
	h->first = bio;
	if (clone_md_hydrated(c->meta, region)) { /* since we looked */
		struct dm_bio_list waiting;

		leave(h, &waiting);
		g_free(h);
		run_waiting(c, &waiting, 0);
		return;
	}
	h->overwrites = bio->sectors == regions_sectors(c, region, 1);
	if (h->overwrites) {
		((struct clone_bio *)bio->private)->overwrite = h;
		bio->dev = c->dest;
		dm_submit(bio);
	} else {
		copy(h);
	}
}

static void write_again(struct clone *c, struct dm_bio_list *list)
{
	struct dm_bio *bio;

	while ((bio = dm_bio_list_pop(list)))
		clone_write_cold(c, bio, clone_region(c, bio->sector));
}

/* From end_io of the write; what waited for it starts anew if it failed. */
void clone_overwrite_done(struct hydration *h, int error)
{
	struct clone *c = h->c;
	struct dm_bio_list waiting;

	if (!error) {
		finish(h, 0);
		return;
	}
	leave(h, &waiting);
	g_free(h);
	write_again(c, &waiting);
}

/* As much of [from, to) as nobody has a claim for. */
static void discard_some(struct clone *c, uint64_t from, uint64_t to)
{
	struct dm_block_claim claim;
	struct dm_bio_list waiting;
	uint64_t n;

	dm_bio_list_init(&waiting);
	if (dm_block_trylock(c->regions, &claim, from, to - 1, DM_BLOCK_EXCLUSIVE, &waiting)) {
		for (uint64_t r = from; (r = clone_md_next(c->meta, r, to)) < to; r += n) {
			n = clone_md_next_hydrated(c->meta, r, to) - r;
			clone_md_set(c->meta, r, n);
		}
		dm_block_unlock(c->regions, &claim, &waiting);
	} else if (to - from > 1) {
		discard_some(c, from, from + (to - from) / 2);
		discard_some(c, from + (to - from) / 2, to);
	}
	write_again(c, &waiting);
}

/* Marks whole regions [from, to) as not worth copying, but those on their way; not if it cannot be remembered. */
void clone_discard_regions(struct clone *c, uint64_t from, uint64_t to)
{
	if (from >= to || atomic_load(&c->complete) || atomic_load(&c->mode) != CLONE_RW)
		return;
	discard_some(c, from, to);
	clone_commit_soon(c);
	clone_check_complete(c);
}

/* --- reads are hints ---------------------------------------------------------------------------- */

void clone_note_read(struct clone *c, uint64_t region)
{
	_Atomic uint64_t *slot = &c->recent[region % CLONE_RECENT];
	bool first = false;

	if (atomic_exchange_explicit(slot, region + 1, memory_order_relaxed) != region + 1)
		return;
	if (!atomic_load_explicit(&c->enabled, memory_order_relaxed) || pthread_mutex_trylock(&c->lock))
		return;
	if (c->n_soon < CLONE_SOON) {
		first = !c->n_soon;
		c->soon[c->n_soon++] = region;
	}
	pthread_mutex_unlock(&c->lock);
	if (first)
		clone_wake(c);
}

/* --- in the background ------------------------------------------------------------------------------ */

static bool may_hydrate(struct clone *c)
{
	return atomic_load(&c->enabled) && !atomic_load(&c->stopped) && !atomic_load(&c->suspended) &&
	       !atomic_load(&c->complete) && atomic_load(&c->mode) == CLONE_RW;
}

static bool user_io(struct clone *c, uint64_t now)
{
	if (atomic_exchange_explicit(&c->touched, false, memory_order_relaxed) || dm_gate_inside(&c->bits))
		c->busy_until_ns = now + BUSY_NS;
	return now < c->busy_until_ns;
}

/* User I/O goes first; true if it is to have its way: the timer, or the end of what is under way, comes back here. */
static bool must_pause(struct clone *c)
{
	uint64_t now = dm_now_ns();
	bool under_way;

	if (!user_io(c, now)) {
		c->burst_from_ns = 0;
		return false;
	}
	if (now >= c->rest_until_ns) {
		if (!c->burst_from_ns)
			c->burst_from_ns = now;
		if (now - c->burst_from_ns < BURST_NS)
			return false;
		pthread_mutex_lock(&c->lock);
		under_way = c->background > 0;
		pthread_mutex_unlock(&c->lock);
		if (under_way)
			return true;
		c->rest_until_ns = now + MIN(3 * (now - c->burst_from_ns), MAX_REST_NS);
		c->burst_from_ns = 0;
	}
	dm_timer_arm(&c->rest_timer, c->rest_until_ns);
	return true;
}

void clone_rest_over(struct dm_timer *t)
{
	clone_wake(container_of(t, struct clone, rest_timer));
}

/* The next region that was read twice, or at the cursor, and is not hydrated; nr_regions if there is none. */
static uint64_t next_region(struct clone *c)
{
	uint64_t region = c->nr_regions;

	pthread_mutex_lock(&c->lock);
	while (c->n_soon && region == c->nr_regions) {
		region = c->soon[--c->n_soon];
		if (clone_md_hydrated(c->meta, region))
			region = c->nr_regions;
	}
	pthread_mutex_unlock(&c->lock);
	return region < c->nr_regions ? region : clone_md_next(c->meta, c->cursor, c->nr_regions);
}

/*
 * How many regions from `region` on are a hole in the source, 0: it holds data.  To ask may mean reading the metadata
 * of a file system, and costs what the answer is long: so it is without the lock, and how far the data goes is
 * remembered (the source does not change).
 */
static uint64_t look_for_hole(struct clone *c, uint64_t region)
{
	uint64_t sector = region_sector(c, region), most = MIN(HOLE_SECTORS, c->ti->len - sector), n;
	struct dm_extent extent = {.data = true};

	if (region >= c->data_from && region < c->data_to)
		return 0;
	if (dm_dev_extent(c->source, sector, most, &extent))
		extent.data = true;
	n = extent.sectors >> c->shift;
	if (extent.data) {
		c->data_from = region;
		c->data_to = region + MAX(n, 1);
		return 0;
	}
	if (sector + extent.sectors >= c->ti->len)
		n = c->nr_regions - region;
	return n; /* 0: a hole that is less than a region */
}

/* Begins the hydration of what nobody has a claim for of [region, region + n), from region on; 0: even that is not. */
static uint64_t begin(struct clone *c, uint64_t region, uint64_t n, bool hole)
{
	struct hydration *h = hydration_new(c, region, n, true);
	struct dm_bio_list waiting;

	dm_bio_list_init(&waiting);
	while (h->n && !dm_block_trylock(c->regions, &h->claim, region, region + h->n - 1, DM_BLOCK_EXCLUSIVE, &waiting))
		h->n /= 2;
	write_again(c, &waiting);
	n = h->n;
	if (!n) {
		g_free(h);
		return 0;
	}
	count(h);
	h->hole = hole;
	if (clone_md_next_hydrated(c->meta, region, region + n) < region + n) { /* since we looked */
		leave(h, &waiting);
		g_free(h);
		write_again(c, &waiting);
	} else {
		copy(h);
	}
	return n;
}

static bool enough_under_way(struct clone *c)
{
	bool enough;

	pthread_mutex_lock(&c->lock);
	enough = c->background >= atomic_load(&c->threshold);
	pthread_mutex_unlock(&c->lock);
	return enough;
}

/*
 * Begins the hydration of the next stretch.  False: nothing to do, all that is left is on its way, or enough is.
 */
static bool hydrate_some(struct clone *c)
{
	unsigned batch = MAX(atomic_load(&c->batch), 1u);

	if (enough_under_way(c))
		return false;
	for (unsigned rounds = 0; rounds < 2;) {
		uint64_t region = next_region(c), n;
		bool hole;

		if (region >= c->nr_regions) {
			c->cursor = 0;
			rounds++;
			continue;
		}
		n = look_for_hole(c, region);
		hole = n > 0;
		n = MIN(hole ? n : batch, c->nr_regions - region);
		n = clone_md_next_hydrated(c->meta, region, region + n) - region;
		n = n ? begin(c, region, n, hole) : 0;
		c->cursor = region + MAX(n, 1);
		if (n)
			return true;
	}
	return false;
}

void clone_hydrate(struct dm_work *work)
{
	struct clone *c = container_of(work, struct clone, hydrate_work);

	while (may_hydrate(c) && !must_pause(c))
		if (!hydrate_some(c))
			break;
}

void clone_wake(struct clone *c)
{
	if (may_hydrate(c))
		dm_wq_queue(c->wq, &c->hydrate_work);
	else if (atomic_load(&c->complete))
		dm_wq_queue(c->wq, &c->release_work); /* the bits may go */
}
