/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The stripe cache (stripe.h): stripes by number, in shards, those at rest in the order they came to it; and pages.
 *
 * Pages: stripe_cache columns at most have some, as the kernel counts.  A stripe at rest keeps its pages, for the next
 * to find, until others want them.  An operation takes all it needs at its begin or waits, in line, with none but what
 * it had; when no other is under way it may take more than there are.
 */
#include <inttypes.h>

#include "stripe.h"

#define DEFAULT_ENTRIES 256u
#define LEAST_ENTRIES 16u
#define MOST_ENTRIES 32768u

/* --- stripes ---------------------------------------------------------------------------------------------- */

struct raid_shard *raid_stripe_shard(struct raid_stripes *c, uint64_t nr)
{
	return &c->shards[nr % RAID_SHARDS];
}

static struct raid_stripe **bucket_of(struct raid_shard *shard, uint64_t nr)
{
	return &shard->bucket[nr / RAID_SHARDS % G_N_ELEMENTS(shard->bucket)];
}

static struct raid_stripe *stripe_new(struct raid_stripes *c, uint64_t nr)
{
	size_t pages = (size_t)c->disks * c->pages;
	struct raid_stripe *s = g_malloc0(sizeof *s + RAID_NR_MASKS * pages + 2 * c->pages);
	const struct raid_geo *g = &c->geo;

	s->c = c;
	s->nr = nr;
	s->tail = &s->pending;
	s->mode = s->masks + RAID_NR_MASKS * pages;
	s->recon = s->mode + c->pages;
	s->page = g_new0(void *, pages);
	raid_row_parity(g, nr * c->sectors / g->chunk, &s->p, &s->q);
	return s;
}

void raid_stripe_wake(struct raid_stripe *s)
{
	s->lru.prev->next = s->lru.next;
	s->lru.next->prev = s->lru.prev;
	s->in_lru = false;
}

void raid_stripe_rest(struct raid_shard *shard, struct raid_stripe *s)
{
	s->lru.prev = shard->lru.prev;
	s->lru.next = &shard->lru;
	s->lru.prev->next = &s->lru;
	shard->lru.prev = &s->lru;
	s->in_lru = true;
}

/* Under the shard's lock. */
static void pages_drop(struct raid_shard *shard, struct raid_stripe *s)
{
	struct raid_stripes *c = s->c;
	unsigned n = 0;

	for (unsigned i = 0; i < c->disks * c->pages; i++) {
		if (!s->page[i])
			continue;
		*(void **)s->page[i] = shard->free_pages;
		shard->free_pages = s->page[i];
		s->page[i] = NULL;
		n++;
	}
	atomic_fetch_sub(&c->used, n);
}

static void stripe_drop(struct raid_shard *shard, struct raid_stripe *s)
{
	struct raid_stripe **p = bucket_of(shard, s->nr);

	while (*p != s)
		p = &(*p)->hash_next;
	*p = s->hash_next;
	raid_stripe_wake(s);
	pages_drop(shard, s);
	g_free(s->page);
	g_free(s);
}

struct raid_stripe *raid_stripe_get(struct raid_shard *shard, struct raid_stripes *c, uint64_t nr)
{
	struct raid_stripe **bucket = bucket_of(shard, nr), *s;

	for (s = *bucket; s; s = s->hash_next)
		if (s->nr == nr)
			return s;
	s = stripe_new(c, nr);
	s->hash_next = *bucket;
	*bucket = s;
	return s;
}

/* Frees stripes at rest until there is room for n pages more, or none is left. */
static bool make_room(struct raid_stripes *c, unsigned n, unsigned first)
{
	for (unsigned i = 0; i < RAID_SHARDS; i++) {
		struct raid_shard *shard = &c->shards[(first + i) % RAID_SHARDS];

		pthread_mutex_lock(&shard->lock);
		while (atomic_load(&c->used) + n > c->most && shard->lru.next != &shard->lru)
			stripe_drop(shard, container_of(shard->lru.next, struct raid_stripe, lru));
		pthread_mutex_unlock(&shard->lock);
		if (atomic_load(&c->used) + n <= c->most)
			return true;
	}
	return false;
}

/* --- pages of an operation ------------------------------------------------------------------------------------ */

static bool needs_page(struct raid_stripe *s, unsigned d, unsigned column)
{
	bool parity = (int)d == s->p || (int)d == s->q;

	if (s->recon[column] || (parity && s->mode[column] != RAID_NOTHING))
		return true;
	return raid_mask(s, RAID_WANT, d)[column] | raid_mask(s, RAID_WRITE, d)[column] |
	       raid_mask(s, RAID_ASK, d)[column];
}

static unsigned missing_pages(struct raid_stripe *s)
{
	unsigned n = 0;

	for (unsigned d = 0; d < s->c->disks; d++)
		for (unsigned column = 0; column < s->c->pages; column++)
			n += !raid_page(s, d, column) && needs_page(s, d, column);
	return n;
}

static void take_pages(struct raid_stripe *s, unsigned n)
{
	struct raid_stripes *c = s->c;
	struct raid_shard *shard = raid_stripe_shard(c, s->nr);

	atomic_fetch_add(&c->used, n);
	pthread_mutex_lock(&shard->lock);
	for (unsigned i = 0; i < c->disks * c->pages && n; i++) {
		if (s->page[i] || !needs_page(s, i / c->pages, i % c->pages))
			continue;
		s->page[i] = shard->free_pages;
		if (s->page[i])
			shard->free_pages = *(void **)s->page[i];
		else
			s->page[i] = aligned_alloc(PAGE_BYTES, PAGE_BYTES);
		n--;
	}
	pthread_mutex_unlock(&shard->lock);
}

bool raid_stripe_pages(struct raid_stripe *s)
{
	struct raid_stripes *c = s->c;
	unsigned n = missing_pages(s);
	bool room, now;

	room = !n || make_room(c, n, (unsigned)(s->nr % RAID_SHARDS));
	pthread_mutex_lock(&c->starve_lock);
	now = s->paged || !c->running || (room && !c->starved);
	if (now && !s->paged)
		c->running++;
	if (!now) {
		s->starved_next = NULL;
		*c->starved_tail = s;
		c->starved_tail = &s->starved_next;
	}
	pthread_mutex_unlock(&c->starve_lock);
	if (now) {
		s->paged = true;
		take_pages(s, n);
	}
	return now;
}

struct raid_stripe *raid_stripe_fed(struct raid_stripes *c)
{
	for (;;) {
		struct raid_stripe *s;
		bool go = false;
		unsigned n;

		pthread_mutex_lock(&c->starve_lock);
		s = c->starved;
		n = s ? missing_pages(s) : 0;
		go = s && (!c->running || atomic_load(&c->used) + n <= c->most);
		if (go) {
			c->starved = s->starved_next;
			if (!c->starved)
				c->starved_tail = &c->starved;
			c->running++;
		}
		pthread_mutex_unlock(&c->starve_lock);
		if (!go && s && make_room(c, n, 0))
			continue;
		if (!go)
			return NULL;
		s->paged = true;
		take_pages(s, n);
		return s;
	}
}

bool raid_stripes_busy(struct raid_stripes *c, uint64_t sector, uint64_t sectors)
{
	bool busy = false;

	for (uint64_t nr = sector / c->sectors; nr <= (sector + sectors - 1) / c->sectors && !busy; nr++) {
		struct raid_shard *shard = raid_stripe_shard(c, nr);

		pthread_mutex_lock(&shard->lock);
		for (struct raid_stripe *s = *bucket_of(shard, nr); s && !busy; s = s->hash_next)
			busy = s->nr == nr && s->busy;
		pthread_mutex_unlock(&shard->lock);
	}
	return busy;
}

/* --- begin and end ---------------------------------------------------------------------------------------- */

int raid_stripes_check(struct raid *r, GError **err)
{
	unsigned wish = r->params.value[RAID_STRIPE_CACHE];

	r->stripe_cache = MAX(raid_given(&r->params, RAID_STRIPE_CACHE) ? wish : DEFAULT_ENTRIES, r->geo.chunk / 2);
	if (r->stripe_cache <= LEAST_ENTRIES || r->stripe_cache > MOST_ENTRIES)
		return dm_fail(err, EINVAL,
			       "raid: Failed to set raid4/5/6 stripe cache size: %u, %u to %u would be right",
			       r->stripe_cache, LEAST_ENTRIES + 1, MOST_ENTRIES);
	return 0;
}

struct raid_stripes *raid_stripes_new(struct raid *r, const struct raid_geo *geo, bool moved)
{
	struct raid_stripes *c;
	void *room = NULL;

	if (posix_memalign(&room, 64, sizeof *c))
		g_error("no memory for a stripe cache");
	c = memset(room, 0, sizeof *c);
	c->r = r;
	c->geo = *geo;
	c->moved = moved;
	c->disks = geo->disks;
	c->sectors = MIN(geo->chunk, STRIPE_SECTORS);
	c->pages = c->sectors / PAGE_SECTORS;
	c->most = r->stripe_cache * c->disks;
	pthread_mutex_init(&c->starve_lock, NULL);
	c->starved_tail = &c->starved;
	for (unsigned i = 0; i < RAID_SHARDS; i++) {
		struct raid_shard *shard = &c->shards[i];

		pthread_mutex_init(&shard->lock, NULL);
		pthread_cond_init(&shard->quiet, NULL);
		shard->lru.next = shard->lru.prev = &shard->lru;
	}
	return c;
}

void raid_stripes_settle(struct raid_stripes *c)
{
	for (unsigned i = 0; i < RAID_SHARDS; i++) {
		struct raid_shard *shard = &c->shards[i];

		pthread_mutex_lock(&shard->lock);
		while (shard->active)
			pthread_cond_wait(&shard->quiet, &shard->lock);
		pthread_mutex_unlock(&shard->lock);
	}
}

void raid_stripes_free(struct raid_stripes *c)
{
	if (!c)
		return;
	raid_stripes_settle(c);
	for (unsigned i = 0; i < RAID_SHARDS; i++) {
		struct raid_shard *shard = &c->shards[i];

		while (shard->lru.next != &shard->lru)
			stripe_drop(shard, container_of(shard->lru.next, struct raid_stripe, lru));
		while (shard->free_pages) {
			void *page = shard->free_pages;

			shard->free_pages = *(void **)page;
			free(page);
		}
		pthread_cond_destroy(&shard->quiet);
		pthread_mutex_destroy(&shard->lock);
	}
	pthread_mutex_destroy(&c->starve_lock);
	free(c);
}
