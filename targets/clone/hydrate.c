/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Hydration: by writes that need a region now, and in the background.
 *
 * The background hydration takes what was read twice first, then goes round
 * from region to region.  It gives way to user I/O: while there was some within BUSY_NS it works
 * in bursts of about BURST_NS, each until all it began has ended, and rests
 * three times as long after it, though no longer than MAX_REST_NS: so a slow
 * source is read from all the same.  A stretch that is a hole in the source is not
 * copied but zeroed (on a file, a hole as well), however many regions it is.
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

/* --- those under way; c->lock held ---------------------------------------------------------- */

gint clone_compare_hydrations(gconstpointer a, gconstpointer b)
{
	const struct hydration *x = a, *y = b;

	return x->region < y->region ? -1 : x->region > y->region;
}

/* Where to look for a region from a hydration on: 0 is here. */
static gint which_way(gconstpointer key, gconstpointer data)
{
	const struct hydration *h = key;
	uint64_t region = *(const uint64_t *)data;

	return region < h->region ? -1 : region - h->region >= h->n;
}

static struct hydration *find(struct clone *c, uint64_t region)
{
	return g_tree_search(c->hydrations, which_way, &region);
}

/* The first region at or after `from`, and below `end`, that one is under way for; end if there is none. */
static uint64_t next_under_way(struct clone *c, uint64_t from, uint64_t end)
{
	struct hydration key = {.region = from};
	GTreeNode *node;

	if (find(c, from))
		return from;
	node = g_tree_lower_bound(c->hydrations, &key);
	return node ? MIN(end, ((struct hydration *)g_tree_node_key(node))->region) : end;
}

/* From `region` on, which is neither: how many are neither hydrated nor under way, at most. */
static uint64_t stretch(struct clone *c, uint64_t region, uint64_t most)
{
	uint64_t end = most < c->nr_regions - region ? region + most : c->nr_regions;

	end = clone_md_next_hydrated(c->md, region, end);
	return next_under_way(c, region, end) - region;
}

/* The first region at or after `from`, and below `end`, that is neither; end if there is none. */
static uint64_t next_free(struct clone *c, uint64_t from, uint64_t end)
{
	struct hydration *h;

	while ((from = clone_md_next(c->md, from, end)) < end && (h = find(c, from)))
		from = MIN(end, h->region + h->n);
	return from;
}

static struct hydration *start(struct clone *c, uint64_t region, uint64_t n, bool background)
{
	struct hydration *h = g_new0(struct hydration, 1);

	h->c = c;
	h->region = region;
	h->n = n;
	h->background = background;
	dm_bio_list_init(&h->waiting);
	g_tree_insert(c->hydrations, h, h);
	c->hydrating += (unsigned)n;
	if (background)
		c->background += (unsigned)n;
	return h;
}

static void forget(struct hydration *h)
{
	struct clone *c = h->c;

	g_tree_remove(c->hydrations, h);
	c->hydrating -= (unsigned)h->n;
	if (h->background)
		c->background -= (unsigned)h->n;
	if (!c->hydrating)
		pthread_cond_broadcast(&c->idle);
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
static void take_waiting(struct hydration *h, struct dm_bio_list *waiting)
{
	dm_bio_list_init(waiting);
	pthread_mutex_lock(&h->c->lock);
	dm_bio_list_take(&h->waiting, waiting);
	forget(h);
	pthread_mutex_unlock(&h->c->lock);
}

static void finish(struct hydration *h, int error)
{
	struct clone *c = h->c;
	struct dm_bio_list waiting;

	if (!error)
		clone_md_set(c->md, h->region, h->n);
	take_waiting(h, &waiting);
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
	struct clone_bio *cb = bio->private;
	struct hydration *h;
	bool whole = bio->sectors == regions_sectors(c, region, 1);

	pthread_mutex_lock(&c->lock);
	if (clone_md_hydrated(c->md, region)) { /* since we looked */
		pthread_mutex_unlock(&c->lock);
		bio->dev = c->dest;
		dm_submit(bio);
		return;
	}
	h = find(c, region);
	if (h) {
		dm_bio_list_add(&h->waiting, bio);
		pthread_mutex_unlock(&c->lock);
		return;
	}
	h = start(c, region, 1, false);
	if (whole)
		h->overwrite = bio;
	else
		dm_bio_list_add(&h->waiting, bio);
	pthread_mutex_unlock(&c->lock);
	if (whole) {
		cb->overwrite = h;
		bio->dev = c->dest;
		dm_submit(bio);
	} else {
		copy(h);
	}
}

/* From end_io of the write; what waited for it starts anew if it failed. */
void clone_overwrite_done(struct hydration *h, int error)
{
	struct clone *c = h->c;
	struct dm_bio_list waiting;
	struct dm_bio *bio;

	if (!error) {
		finish(h, 0);
		return;
	}
	take_waiting(h, &waiting);
	while ((bio = dm_bio_list_pop(&waiting)))
		clone_write_cold(c, bio, h->region);
	g_free(h);
}

/* Marks whole regions [from, to) as not worth copying, but those on their way; not if it cannot be remembered. */
void clone_discard_regions(struct clone *c, uint64_t from, uint64_t to)
{
	if (atomic_load(&c->complete) || atomic_load(&c->mode) != CLONE_RW)
		return;
	pthread_mutex_lock(&c->lock);
	for (uint64_t r = from, n; (r = next_free(c, r, to)) < to; r += n) {
		n = stretch(c, r, to - r);
		clone_md_set(c->md, r, n);
	}
	pthread_mutex_unlock(&c->lock);
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
	if (c->n_soon < CLONE_SOON && !find(c, region)) {
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
	if (atomic_exchange_explicit(&c->touched, false, memory_order_relaxed) || atomic_load(&c->ios_in_flight))
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

/* The next region to hydrate, or nr_regions; c->lock held. */
static uint64_t next_region(struct clone *c)
{
	uint64_t region;

	while (c->n_soon) {
		region = c->soon[--c->n_soon];
		if (!clone_md_hydrated(c->md, region) && !find(c, region))
			return region;
	}
	for (int round = 0; round < 2; round++) {
		region = next_free(c, c->cursor, c->nr_regions);
		if (region < c->nr_regions)
			return region;
		c->cursor = 0;
	}
	return c->nr_regions;
}

/*
 * How many regions from `region` on are a hole in the source, 0: it holds data.
 * To ask may mean reading the metadata of a file system, and costs what the answer is long: so
 * it is without the lock, and how far the data goes is remembered (the source does not change).
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

/*
 * Begins the hydration of the next stretch.  False: nothing to do, or enough is
 * under way.
 */
static bool hydrate_some(struct clone *c)
{
	unsigned threshold = atomic_load(&c->threshold), batch = MAX(atomic_load(&c->batch), 1u);
	struct hydration *h;
	uint64_t region, n;
	bool hole;

	pthread_mutex_lock(&c->lock);
	region = c->background < threshold ? next_region(c) : c->nr_regions;
	pthread_mutex_unlock(&c->lock);
	if (region >= c->nr_regions)
		return false;
	n = look_for_hole(c, region);
	hole = n > 0;
	if (!hole)
		n = batch;
	pthread_mutex_lock(&c->lock);
	n = next_free(c, region, region + 1) == region ? stretch(c, region, n) : 0;
	h = n ? start(c, region, n, true) : NULL;
	if (n)
		c->cursor = region + n;
	pthread_mutex_unlock(&c->lock);
	if (h) {
		h->hole = hole;
		copy(h);
	}
	return true;
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
		dm_wq_queue(c->wq, &c->commit_work); /* the bits may go */
}
