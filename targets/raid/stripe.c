/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The stripe cache, and an operation's way through its steps (stripe.h):
 *
 *   begin    takes the pieces that wait, plans, gets pages
 *   read     what is wanted; a device that cannot be read is planned around
 *   compute  brings back what is lost, takes the new data in, parity
 *   write    to all devices at once
 *   end      answers, the superblocks first if a device fell out; the next operation begins
 *
 * Each step goes on in the thread that ended the last I/O of the one before.
 *
 * Pages: stripe_cache columns at most have some, as the kernel counts.  A stripe
 * at rest keeps its pages, for the next to find, until others want them.  An
 * operation takes all it needs at its begin or waits, in line, with none but what it had;
 * when no other is under way it may take more than there are.
 */
#include <inttypes.h>

#include "journal.h"
#include "stripe.h"

#define DEFAULT_ENTRIES 256u
#define LEAST_ENTRIES 16u
#define MOST_ENTRIES 32768u

static void begin(struct raid_stripe *s);
static void end(struct raid_stripe *s);
static void read_wanted(struct raid_stripe *s);

/*
 * The end of one operation is the begin of the next, here or on another stripe: they are a loop over this
 * thread's list, not a recursion.
 */
static _Thread_local struct raid_stripe **steps;

static void step(struct raid_stripe *s, void (*fn)(struct raid_stripe *))
{
	struct raid_stripe *list = s;

	s->step = fn;
	s->step_next = NULL;
	if (steps) {
		struct raid_stripe **p = steps;

		while (*p)
			p = &(*p)->step_next;
		*p = s;
		return;
	}
	steps = &list;
	while ((s = list)) {
		list = s->step_next;
		s->step(s);
	}
	steps = NULL;
}

/* --- the cache ------------------------------------------------------------------------------------------- */

static struct raid_shard *shard_of(struct raid_stripes *c, uint64_t nr)
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

static void lru_take(struct raid_stripe *s)
{
	s->lru.prev->next = s->lru.next;
	s->lru.next->prev = s->lru.prev;
	s->in_lru = false;
}

static void lru_put(struct raid_shard *shard, struct raid_stripe *s)
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
	lru_take(s);
	pages_drop(shard, s);
	g_free(s->page);
	g_free(s);
}

/* Under the shard's lock. */
static struct raid_stripe *stripe_get(struct raid_shard *shard, struct raid_stripes *c, uint64_t nr)
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
	struct raid_shard *shard = shard_of(c, s->nr);

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

/* False: it waits in line; read_wanted() is called when it has them. */
static bool get_pages(struct raid_stripe *s)
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

/* An operation has ended: who waits in line gets pages. */
static void feed(struct raid_stripes *c)
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
			return;
		s->paged = true;
		take_pages(s, n);
		step(s, read_wanted);
	}
}

/* --- I/O ------------------------------------------------------------------------------------------------------- */

struct dev_io {
	struct dm_bio bio; /* first */
	struct raid_stripe *s;
	unsigned disk, first, n;
	struct iovec iov[];
};

static void ios_end(struct raid_stripe *s)
{
	if (atomic_fetch_sub(&s->ios, 1) == 1)
		s->then(s);
}

static void set_bits(uint8_t *mask, unsigned first, unsigned n)
{
	for (unsigned i = first; i < first + n; i++)
		mask[i / PAGE_SECTORS] |= (uint8_t)(1u << (i % PAGE_SECTORS));
}

static void read_end(struct dm_bio *bio)
{
	struct dev_io *io = (struct dev_io *)bio;
	struct raid_stripe *s = io->s;

	/* each device has its masks to itself */
	if (bio->error) {
		dm_log_err_limit("raid: read error on device #%u, sector %" PRIu64 ": %s", io->disk, bio->sector,
				 g_strerror(-bio->error));
		set_bits(raid_mask(s, RAID_BAD, io->disk), io->first, io->n);
		atomic_store(&s->read_failed, true);
	} else {
		set_bits(raid_mask(s, RAID_VALID, io->disk), io->first, io->n);
	}
	g_free(io);
	ios_end(s);
}

static void write_end(struct dm_bio *bio)
{
	struct dev_io *io = (struct dev_io *)bio;
	struct raid_stripe *s = io->s;

	if (bio->error) {
		if (raid_member_fail(s->c->r, io->disk, "write to", bio->error)) {
			atomic_store(&s->dropped, true);
		} else {
			atomic_store(&s->write_failed, true);
			atomic_store(&s->c->r->broken, true);
		}
	}
	g_free(io);
	ios_end(s);
}

static void send(struct raid_stripe *s, enum dm_op op, unsigned disk, unsigned first, unsigned n)
{
	struct raid_member *m = &s->c->r->members[disk];
	uint64_t offset = s->c->moved ? m->new_data_offset : m->data_offset;
	unsigned pages = (first + n - 1) / PAGE_SECTORS - first / PAGE_SECTORS + 1;
	struct dev_io *io = g_malloc(sizeof *io + pages * sizeof io->iov[0]);

	io->s = s;
	io->disk = disk;
	io->first = first;
	io->n = n;
	io->bio = (struct dm_bio){
	    .op = op,
	    .flags = (op == DM_WRITE && s->fua ? DM_FUA : 0) | (s->sync ? DM_BACKGROUND : 0),
	    .dev = m->data,
	    .sector = offset + s->nr * s->c->sectors + first,
	    .sectors = n,
	    .iov = io->iov,
	    .iovcnt = (int)pages,
	    .end = op == DM_READ ? read_end : write_end,
	};
	for (unsigned i = 0; i < pages; i++) {
		unsigned skip = i ? 0 : first % PAGE_SECTORS, len = MIN(PAGE_SECTORS - skip, n);

		io->iov[i].iov_base = raid_page(s, disk, first / PAGE_SECTORS + i) + skip * DM_SECTOR_SIZE;
		io->iov[i].iov_len = len * DM_SECTOR_SIZE;
		n -= len;
	}
	atomic_fetch_add(&s->ios, 1);
	dm_submit(&io->bio);
}

static bool bit_at(const uint8_t *mask, unsigned i)
{
	return mask[i / PAGE_SECTORS] >> (i % PAGE_SECTORS) & 1;
}

/* One bio for each run of sectors in the mask; then(s) once all have ended. */
static void send_all(struct raid_stripe *s, enum dm_op op, enum raid_mask which, void (*then)(struct raid_stripe *))
{
	s->then = then;
	atomic_store(&s->ios, 1);
	for (unsigned d = 0; d < s->c->disks; d++) {
		const uint8_t *mask = raid_mask(s, which, d);

		for (unsigned i = 0, first; i < s->c->sectors; i++) {
			if (!mask[i / PAGE_SECTORS]) {
				i |= PAGE_SECTORS - 1;
				continue;
			}
			if (!bit_at(mask, i))
				continue;
			for (first = i; i < s->c->sectors && bit_at(mask, i); i++)
				;
			send(s, op, d, first, i - first);
		}
	}
	ios_end(s);
}

/* --- the steps -------------------------------------------------------------------------------------------------- */

static bool writable(const struct raid_stripe *s)
{
	return s->c->r->writable;
}

static void written(struct raid_stripe *s)
{
	end(s);
}

static bool has_writes(const struct raid_stripe *s)
{
	for (const struct raid_piece *p = s->pieces; p; p = p->next)
		if (p->req->kind == RAID_REQ_WRITE)
			return true;
	return false;
}

static void request_drop(struct raid_request *req)
{
	if (atomic_fetch_sub(&req->left, 1) == 1)
		req->done(req);
}

static void out_is_known(struct raid_wait *wait)
{
	struct raid_stripe *s = container_of(wait, struct raid_stripe, wait);

	if (!wait->error) {
		raid_journal_append(s->c->journal, s);
		return;
	}
	atomic_store(&s->write_failed, true);
	end(s);
}

static void compute(struct raid_stripe *s)
{
	raid_plan_recover(s);
	if (s->sync) {
		atomic_fetch_add(&s->sync->mismatches, raid_plan_compare(s, s->sync->window->action));
	} else {
		raid_plan_write(s);
		raid_plan_answer(s);
	}
	if (!writable(s))
		memset(raid_mask(s, RAID_OUT, 0), 0, (size_t)s->c->disks * s->c->pages);
	if (!s->c->journal || !has_writes(s)) {
		send_all(s, DM_WRITE, RAID_OUT, written);
		return;
	}
	/* what was computed without a device must not be replayed when nobody knows that it was out */
	s->wait = (struct raid_wait){.fn = out_is_known};
	if (atomic_load(&s->c->r->unsaved))
		raid_save(s->c->r, &s->wait);
	else
		raid_journal_append(s->c->journal, s);
}

/* Write-back: what is in the journal is answered; the stripe stays busy. */
static void answer_early(struct raid_stripe *s)
{
	struct raid_piece *list = s->pieces;

	s->pieces = NULL;
	while (list) {
		struct raid_piece *p = list;

		list = p->next;
		request_drop(p->req);
	}
}

static void go_home(struct raid_stripe *s)
{
	send_all(s, DM_WRITE, RAID_OUT, written);
}

void raid_stripe_journaled(struct raid_stripe *s, int error)
{
	s->journaled = true;
	if (error) {
		atomic_store(&s->write_failed, true);
		end(s);
		return;
	}
	if (s->c->r->params.write_back)
		answer_early(s);
	step(s, go_home);
}

/* Too many devices are lost: all but the first piece go back, so that one that can be done is not failed with it. */
static void cannot(struct raid_stripe *s)
{
	struct raid_shard *shard = shard_of(s->c, s->nr);

	if (s->pieces && s->pieces->next) {
		struct raid_piece *rest = s->pieces->next, *last = rest;

		while (last->next)
			last = last->next;
		pthread_mutex_lock(&shard->lock);
		last->next = s->pending;
		if (!s->pending)
			s->tail = &last->next;
		s->pending = rest;
		pthread_mutex_unlock(&shard->lock);
		s->pieces->next = NULL;
		step(s, begin);
		return;
	}
	if (s->pieces)
		atomic_store(&s->pieces->req->error, -EIO);
	if (s->sync)
		atomic_store(&s->sync->error, -EIO);
	end(s);
}

static void plan(struct raid_stripe *s);

static void reads_ended(struct raid_stripe *s)
{
	if (atomic_exchange(&s->read_failed, false))
		plan(s); /* around what could not be read */
	else
		compute(s);
}

static void read_wanted(struct raid_stripe *s)
{
	send_all(s, DM_READ, RAID_WANT, reads_ended);
}

static void replan_sync(struct raid_stripe *s)
{
	g_autofree uint8_t *bad = g_memdup2(raid_mask(s, RAID_BAD, 0), (size_t)s->c->disks * s->c->pages);

	/* from the beginning, but for what is known to be bad */
	if (!raid_plan_sync(s)) {
		cannot(s);
		return;
	}
	memcpy(raid_mask(s, RAID_BAD, 0), bad, (size_t)s->c->disks * s->c->pages);
	if (!raid_plan_sync(s))
		cannot(s);
	else if (get_pages(s))
		read_wanted(s);
}

static void plan(struct raid_stripe *s)
{
	if (s->sync)
		replan_sync(s);
	else if (!raid_plan(s))
		cannot(s);
	else if (get_pages(s))
		read_wanted(s);
}

/* The stripe is the caller's (busy); it has pieces. */
static void begin(struct raid_stripe *s)
{
	s->fua = false;
	for (struct raid_piece *p = s->pieces; p; p = p->next)
		s->fua |= p->req->kind == RAID_REQ_WRITE && p->req->bio->flags & DM_FUA;
	memset(raid_mask(s, RAID_BAD, 0), 0, (size_t)s->c->disks * s->c->pages);
	plan(s);
}

/* Takes what waits: pieces of bios, or one stripe's synchronisation.  Under the shard's lock; false: nothing does. */
static bool take_pending(struct raid_stripe *s)
{
	struct raid_piece *p = s->pending;

	s->pieces = NULL;
	s->sync = NULL;
	if (!p)
		return false;
	if (p->req->kind == RAID_REQ_SYNC) {
		s->sync = p->req;
		s->pending = p->next;
		if (!s->pending)
			s->tail = &s->pending;
		return true;
	}
	s->pieces = p;
	while (p->next && p->next->req->kind != RAID_REQ_SYNC)
		p = p->next;
	s->pending = p->next;
	if (!s->pending)
		s->tail = &s->pending;
	p->next = NULL;
	return true;
}

/* journaled: it leaves the journal, whose keeper may wait for the last to do so. */
static void rest(struct raid_stripe *s, bool journaled)
{
	struct raid_stripes *c = s->c;
	struct raid_shard *shard = shard_of(c, s->nr);
	bool paged = s->paged, more;

	s->paged = false;
	if (paged) {
		pthread_mutex_lock(&c->starve_lock);
		c->running--;
		pthread_mutex_unlock(&c->starve_lock);
	}
	pthread_mutex_lock(&shard->lock);
	more = take_pending(s);
	if (!more) {
		s->busy = false;
		if (!s->users)
			lru_put(shard, s);
	}
	pthread_mutex_unlock(&shard->lock);
	feed(c);
	if (more)
		step(s, begin);
	if (journaled)
		raid_journal_home(c->journal);
}

static void answer(struct raid_stripe *s)
{
	struct raid_piece *list = s->pieces;
	struct raid_request *sync = s->sync;
	bool failed = atomic_exchange(&s->write_failed, false), journaled = s->journaled;

	s->journaled = false;
	s->pieces = NULL;
	s->sync = NULL;
	if (failed && journaled && s->c->r->params.write_back && !s->journal_error)
		atomic_store(&s->c->r->dead, true);
	if (failed) /* what is on the devices is not known */
		memset(raid_mask(s, RAID_VALID, 0), 0, (size_t)s->c->disks * s->c->pages);
	while (list) {
		struct raid_piece *p = list;

		list = p->next;
		if (failed && p->req->kind == RAID_REQ_WRITE) {
			atomic_store(&p->req->error, -EIO);
			atomic_store(&p->req->need, true);
		}
		request_drop(p->req);
	}
	if (sync) {
		if (failed)
			atomic_store(&sync->error, -EIO);
		request_drop(sync);
	}
	rest(s, journaled);
}

static void saved(struct raid_wait *wait)
{
	struct raid_stripe *s = container_of(wait, struct raid_stripe, wait);

	if (wait->error)
		atomic_store(&s->write_failed, true);
	answer(s);
}

static void end(struct raid_stripe *s)
{
	s->wait = (struct raid_wait){.fn = saved};
	if (atomic_exchange(&s->dropped, false) || atomic_load(&s->c->r->unsaved))
		raid_save(s->c->r, &s->wait);
	else
		answer(s);
}

/* --- requests ---------------------------------------------------------------------------------------------------- */

struct raid_request *raid_request_new(struct raid_stripes *c, enum raid_request_kind kind, unsigned pieces)
{
	struct raid_request *req = g_malloc0(sizeof *req + pieces * sizeof req->piece[0]);

	req->r = c->r;
	req->c = c;
	req->kind = kind;
	return req;
}

static void enqueue(struct raid_stripes *c, struct raid_piece *p)
{
	struct raid_shard *shard = shard_of(c, p->nr);
	struct raid_stripe *s;

	pthread_mutex_lock(&shard->lock);
	s = stripe_get(shard, c, p->nr);
	if (s->in_lru)
		lru_take(s);
	s->users++;
	p->stripe = s;
	p->next = NULL;
	*s->tail = p;
	s->tail = &p->next;
	pthread_mutex_unlock(&shard->lock);
}

static void kick(struct raid_stripe *s)
{
	struct raid_shard *shard = shard_of(s->c, s->nr);
	bool mine;

	pthread_mutex_lock(&shard->lock);
	s->users--;
	mine = !s->busy && take_pending(s);
	if (mine)
		s->busy = true;
	else if (!s->busy && !s->users && !s->in_lru)
		lru_put(shard, s);
	pthread_mutex_unlock(&shard->lock);
	if (mine)
		step(s, begin);
}

/*
 * All pieces go to their stripes before any of these is kicked, so that the pieces of one bio
 * for one stripe are one operation.  The request may be gone once the last one is.
 */
void raid_stripes_submit(struct raid_request *req)
{
	struct raid_stripes *c = req->c;
	unsigned n = req->pieces;
	g_autofree struct raid_stripe **all = g_new(struct raid_stripe *, n);

	atomic_store(&req->left, n);
	for (unsigned i = 0; i < n; i++) {
		struct raid_piece *p = &req->piece[i];

		p->req = req;
		enqueue(c, p);
		all[i] = p->stripe;
	}
	for (unsigned i = 0; i < n; i++)
		kick(all[i]);
}

void raid_stripes_set_journal(struct raid_stripes *c, struct raid_journal *j)
{
	c->journal = j;
}

bool raid_stripes_busy(struct raid_stripes *c, uint64_t sector, uint64_t sectors)
{
	bool busy = false;

	for (uint64_t nr = sector / c->sectors; nr <= (sector + sectors - 1) / c->sectors && !busy; nr++) {
		struct raid_shard *shard = shard_of(c, nr);

		pthread_mutex_lock(&shard->lock);
		for (struct raid_stripe *s = *bucket_of(shard, nr); s && !busy; s = s->hash_next)
			busy = s->nr == nr && s->busy;
		pthread_mutex_unlock(&shard->lock);
	}
	return busy;
}

/* --- synchronising -------------------------------------------------------------------------------------------------
 */

struct sync_wait {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool done;
};

static void sync_done(struct raid_request *req)
{
	struct sync_wait *w = req->private;

	pthread_mutex_lock(&w->lock);
	w->done = true;
	pthread_cond_signal(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

void raid_stripes_sync(struct raid_window *w)
{
	struct raid_stripes *c = w->r->family;
	uint64_t first = w->sector / c->sectors, end = dm_div_up(w->sector + w->sectors, c->sectors);
	struct raid_request *req = raid_request_new(c, RAID_REQ_SYNC, (unsigned)(end - first));
	struct sync_wait wait = {.done = false};

	pthread_mutex_init(&wait.lock, NULL);
	pthread_cond_init(&wait.cond, NULL);
	req->window = w;
	req->private = &wait;
	req->done = sync_done;
	for (uint64_t nr = first; nr < end; nr++)
		req->piece[req->pieces++].nr = nr;
	raid_stripes_submit(req);
	dm_block_begin();
	pthread_mutex_lock(&wait.lock);
	while (!wait.done)
		pthread_cond_wait(&wait.cond, &wait.lock);
	pthread_mutex_unlock(&wait.lock);
	dm_block_end();
	w->mismatches = atomic_load(&req->mismatches);
	w->error = atomic_load(&req->error);
	if (w->error && (w->action == RAID_CHECK || w->action == RAID_REPAIR))
		w->error = 0; /* what cannot be compared does not stop it */
	pthread_mutex_destroy(&wait.lock);
	pthread_cond_destroy(&wait.cond);
	g_free(req);
}

/* --- begin and end
 * ---------------------------------------------------------------------------------------------------- */

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
		shard->lru.next = shard->lru.prev = &shard->lru;
	}
	return c;
}

void raid_stripes_free(struct raid_stripes *c)
{
	if (!c)
		return;
	for (unsigned i = 0; i < RAID_SHARDS; i++) {
		struct raid_shard *shard = &c->shards[i];

		while (shard->lru.next != &shard->lru)
			stripe_drop(shard, container_of(shard->lru.next, struct raid_stripe, lru));
		while (shard->free_pages) {
			void *page = shard->free_pages;

			shard->free_pages = *(void **)page;
			free(page);
		}
		pthread_mutex_destroy(&shard->lock);
	}
	pthread_mutex_destroy(&c->starve_lock);
	free(c);
}
