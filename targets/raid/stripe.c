/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An operation's way through its steps (stripe.h):
 *
 *   begin    takes the pieces that wait, plans, gets pages
 *   read     what is wanted; a device that cannot be read is planned around
 *   compute  brings back what is lost, takes the new data in, parity
 *   write    to all devices at once
 *   end      answers, the superblocks first if a device fell out; the next operation begins
 *
 * Each step goes on in the thread that ended the last I/O of the one before.
 */
#include <inttypes.h>

#include "journal.h"
#include "stripe.h"

#include <dmfs/completion.h>

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

/* An operation has ended: who waits in line gets pages. */
static void feed(struct raid_stripes *c)
{
	struct raid_stripe *s;

	while ((s = raid_stripe_fed(c)))
		step(s, read_wanted);
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
	struct raid_shard *shard = raid_stripe_shard(s->c, s->nr);

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
	else if (raid_stripe_pages(s))
		read_wanted(s);
}

static void plan(struct raid_stripe *s)
{
	if (s->sync)
		replan_sync(s);
	else if (!raid_plan(s))
		cannot(s);
	else if (raid_stripe_pages(s))
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

/* The last thing done with the stripes: they may be freed once nobody is at work on them. */
static void leave(struct raid_shard *shard)
{
	pthread_mutex_lock(&shard->lock);
	if (!--shard->active)
		pthread_cond_broadcast(&shard->quiet);
	pthread_mutex_unlock(&shard->lock);
}

/* journaled: it leaves the journal, whose keeper may wait for the last to do so. */
static void rest(struct raid_stripe *s, bool journaled)
{
	struct raid_stripes *c = s->c;
	struct raid_shard *shard = raid_stripe_shard(c, s->nr);
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
			raid_stripe_rest(shard, s);
	}
	pthread_mutex_unlock(&shard->lock);
	feed(c);
	if (journaled)
		raid_journal_home(c->journal);
	if (more)
		step(s, begin);
	else
		leave(shard);
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

/* The piece's stripe, which stays until it is kicked; the piece may be done and gone by now, with its request. */
static struct raid_stripe *enqueue(struct raid_stripes *c, struct raid_piece *p)
{
	struct raid_shard *shard = raid_stripe_shard(c, p->nr);
	struct raid_stripe *s;

	pthread_mutex_lock(&shard->lock);
	s = raid_stripe_get(shard, c, p->nr);
	if (s->in_lru)
		raid_stripe_wake(s);
	s->users++;
	shard->active++;
	p->next = NULL;
	*s->tail = p;
	s->tail = &p->next;
	pthread_mutex_unlock(&shard->lock);
	return s;
}

static void kick(struct raid_stripe *s)
{
	struct raid_shard *shard = raid_stripe_shard(s->c, s->nr);
	bool mine;

	pthread_mutex_lock(&shard->lock);
	s->users--;
	mine = !s->busy && take_pending(s);
	if (mine)
		s->busy = true;
	else if (!s->busy && !s->users && !s->in_lru)
		raid_stripe_rest(shard, s);
	pthread_mutex_unlock(&shard->lock);
	if (mine)
		step(s, begin);
	else
		leave(shard);
}

/*
 * All pieces go to their stripes before any of these is kicked, so that the pieces of one bio for one stripe are one
 * operation.  The request may be gone once the last one is.
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
		all[i] = enqueue(c, p);
	}
	for (unsigned i = 0; i < n; i++)
		kick(all[i]);
}

void raid_stripes_set_journal(struct raid_stripes *c, struct raid_journal *j)
{
	c->journal = j;
}

/* --- synchronising -------------------------------------------------------------------------------------------------
 */

static void sync_done(struct raid_request *req)
{
	dm_complete(req->private);
}

void raid_stripes_sync(struct raid_window *w)
{
	struct raid_stripes *c = w->r->family;
	uint64_t first = w->sector / c->sectors, end = dm_div_up(w->sector + w->sectors, c->sectors);
	struct raid_request *req = raid_request_new(c, RAID_REQ_SYNC, (unsigned)(end - first));
	struct dm_completion done = DM_COMPLETION_INIT;

	req->window = w;
	req->private = &done;
	req->done = sync_done;
	for (uint64_t nr = first; nr < end; nr++)
		req->piece[req->pieces++].nr = nr;
	raid_stripes_submit(req);
	dm_completion_wait(&done);
	w->mismatches = atomic_load(&req->mismatches);
	w->error = atomic_load(&req->error);
	if (w->error && (w->action == RAID_CHECK || w->action == RAID_REPAIR))
		w->error = 0; /* what cannot be compared does not stop it */
	g_free(req);
}
