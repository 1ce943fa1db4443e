/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Holds and origins (dmfs/hold.h).
 *
 * A held bio has a record, which is in its keeper's structure and, if the bio has an origin, in the origin's list.
 * Who takes it out of the origin's list has the bio: the keeper, who wants to send it on, or dm_origin_cancel().
 * The loser leaves the record alone.  A keeper cannot go while a bio of his has not ended, so who cancels
 * may still take the keeper's lock to take the record out there.
 *
 * Locks, the outer first: all.lock; a keeper's; an origin's.
 */
#include <assert.h>
#include <glib.h>

#include <dmfs/hold.h>

static struct {
	pthread_mutex_t lock;
	struct dm_hold *first;
	atomic_bool ending;
} all = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* --- origins ------------------------------------------------------------------------- */

void dm_origin_init(struct dm_origin *o)
{
	pthread_mutex_init(&o->lock, NULL);
	o->held = NULL;
	atomic_init(&o->cancelled, false);
}

void dm_origin_destroy(struct dm_origin *o)
{
	assert(!o->held);
	pthread_mutex_destroy(&o->lock);
}

void dm_origin_cancel(struct dm_origin *o)
{
	struct dm_held *list, *held;

	pthread_mutex_lock(&o->lock);
	atomic_store(&o->cancelled, true);
	list = o->held;
	o->held = NULL;
	for (held = list; held; held = held->origin_next)
		held->origin_prev = NULL;
	pthread_mutex_unlock(&o->lock);
	while ((held = list)) {
		list = held->origin_next;
		held->cancel(held);
	}
}

int dm_held_begin(struct dm_held *held, struct dm_bio *bio, void (*cancel)(struct dm_held *held))
{
	struct dm_origin *o = bio->origin;
	int error;

	held->bio = bio;
	held->cancel = cancel;
	if (!o)
		return 0;
	pthread_mutex_lock(&o->lock);
	error = dm_bio_stop(bio);
	if (!error) {
		held->origin_next = o->held;
		held->origin_prev = &o->held;
		if (o->held)
			o->held->origin_prev = &held->origin_next;
		o->held = held;
	}
	pthread_mutex_unlock(&o->lock);
	return error;
}

bool dm_held_end(struct dm_held *held)
{
	struct dm_origin *o = held->bio->origin;
	bool ours;

	if (!o)
		return true;
	pthread_mutex_lock(&o->lock);
	ours = held->origin_prev;
	if (ours) {
		*held->origin_prev = held->origin_next;
		if (held->origin_next)
			held->origin_next->origin_prev = held->origin_prev;
	}
	pthread_mutex_unlock(&o->lock);
	return ours;
}

/* --- holds: under h->lock ---------------------------------------------------------------- */

static void append(struct dm_hold *h, struct dm_held *held)
{
	held->kept = true;
	held->next = NULL;
	held->prev = h->tail;
	*(h->tail ? &h->tail->next : &h->head) = held;
	h->tail = held;
	h->count++;
}

static void take_out(struct dm_held *held)
{
	struct dm_hold *h = held->keeper;

	*(held->prev ? &held->prev->next : &h->head) = held->next;
	*(held->next ? &held->next->prev : &h->tail) = held->prev;
	held->kept = false;
	h->count--;
}

static void take_if(struct dm_hold *h, bool (*fn)(struct dm_bio *, void *), void *data, struct dm_bio_list *out)
{
	struct dm_held *held, *next;

	for (held = h->head; held; held = next) {
		next = held->next;
		if (fn && !fn(held->bio, data))
			continue;
		take_out(held);
		if (!dm_held_end(held))
			continue;
		dm_bio_list_add(out, held->bio);
		g_free(held);
	}
}

/* --- holds ---------------------------------------------------------------------------------- */

void dm_hold_init(struct dm_hold *h, dm_hold_fail_fn fail, int end_error)
{
	*h = (struct dm_hold){.fail = fail, .end_error = end_error ? end_error : -EIO};
	pthread_mutex_init(&h->lock, NULL);
	pthread_mutex_lock(&all.lock);
	h->next = all.first;
	h->prev = &all.first;
	if (h->next)
		h->next->prev = &h->next;
	all.first = h;
	pthread_mutex_unlock(&all.lock);
}

void dm_hold_destroy(struct dm_hold *h)
{
	pthread_mutex_lock(&all.lock);
	*h->prev = h->next;
	if (h->next)
		h->next->prev = h->prev;
	pthread_mutex_unlock(&all.lock);
	/* Who took the last one out may not have unlocked yet. */
	pthread_mutex_lock(&h->lock);
	assert(!h->head);
	pthread_mutex_unlock(&h->lock);
	pthread_mutex_destroy(&h->lock);
}

void dm_hold_set_limit(struct dm_hold *h, size_t limit)
{
	pthread_mutex_lock(&h->lock);
	h->limit = limit;
	pthread_mutex_unlock(&h->lock);
}

void dm_hold_close(struct dm_hold *h)
{
	pthread_mutex_lock(&h->lock);
	h->closed++;
	pthread_mutex_unlock(&h->lock);
}

bool dm_hold_open(struct dm_hold *h, struct dm_bio_list *out)
{
	bool open;

	pthread_mutex_lock(&h->lock);
	assert(h->closed);
	open = --h->closed == 0;
	if (open)
		take_if(h, NULL, NULL, out);
	pthread_mutex_unlock(&h->lock);
	return open;
}

static void leave_early(struct dm_hold *h, struct dm_bio *bio, int error)
{
	if (h->fail)
		h->fail(h, bio, error);
	else
		dm_bio_end(bio, error);
}

static void cancel(struct dm_held *held)
{
	struct dm_hold *h = held->keeper;
	struct dm_bio *bio = held->bio;

	pthread_mutex_lock(&h->lock);
	if (held->kept)
		take_out(held);
	pthread_mutex_unlock(&h->lock);
	g_free(held);
	leave_early(h, bio, -EINTR);
}

int dm_hold_add(struct dm_hold *h, struct dm_bio *bio)
{
	struct dm_held *held = g_new(struct dm_held, 1);
	int error;

	held->keeper = h;
	pthread_mutex_lock(&h->lock);
	if (!h->closed)
		error = -EAGAIN;
	else if (dm_ending() && h->end_error != DM_HOLD_GOES_ON)
		error = h->end_error;
	else if (h->limit && h->count >= h->limit)
		error = -EBUSY;
	else
		error = dm_held_begin(held, bio, cancel);
	if (!error)
		append(h, held);
	pthread_mutex_unlock(&h->lock);
	if (error)
		g_free(held);
	return error;
}

void dm_hold_take_if(struct dm_hold *h, bool (*fn)(struct dm_bio *bio, void *data), void *data,
		     struct dm_bio_list *out)
{
	pthread_mutex_lock(&h->lock);
	take_if(h, fn, data, out);
	pthread_mutex_unlock(&h->lock);
}

void dm_hold_take(struct dm_hold *h, struct dm_bio_list *out)
{
	dm_hold_take_if(h, NULL, NULL, out);
}

struct dm_bio *dm_hold_take_first(struct dm_hold *h)
{
	struct dm_bio *bio = NULL;

	pthread_mutex_lock(&h->lock);
	while (!bio && h->head) {
		struct dm_held *held = h->head;

		take_out(held);
		if (!dm_held_end(held))
			continue;
		bio = held->bio;
		g_free(held);
	}
	pthread_mutex_unlock(&h->lock);
	return bio;
}

void dm_hold_fail(struct dm_hold *h, int error)
{
	struct dm_bio_list list;
	struct dm_bio *bio;

	dm_bio_list_init(&list);
	dm_hold_take(h, &list);
	while ((bio = dm_bio_list_pop(&list)))
		leave_early(h, bio, error);
}

size_t dm_hold_count(struct dm_hold *h)
{
	size_t count;

	pthread_mutex_lock(&h->lock);
	count = h->count;
	pthread_mutex_unlock(&h->lock);
	return count;
}

/* --- the end of the daemon -------------------------------------------------------------------- */

bool dm_ending(void)
{
	return atomic_load_explicit(&all.ending, memory_order_acquire);
}

/* A hold stays while one of its bios has not ended; so it is left alone after its last. */
void dm_end_all_holds(void)
{
	struct failing {
		struct dm_hold *hold;
		struct dm_bio_list bios;
	};
	g_autoptr(GArray) list = g_array_new(FALSE, FALSE, sizeof(struct failing));

	pthread_mutex_lock(&all.lock);
	atomic_store(&all.ending, true);
	for (struct dm_hold *h = all.first; h; h = h->next) {
		struct failing f = {.hold = h};

		if (h->end_error == DM_HOLD_GOES_ON)
			continue;
		dm_bio_list_init(&f.bios);
		dm_hold_take(h, &f.bios);
		if (f.bios.head)
			g_array_append_val(list, f);
	}
	pthread_mutex_unlock(&all.lock);
	for (unsigned i = 0; i < list->len; i++) {
		struct failing *f = &g_array_index(list, struct failing, i);
		struct dm_bio *bio = f->bios.head, *next;

		for (; bio; bio = next) {
			next = bio->next;
			leave_early(f->hold, bio, f->hold->end_error);
		}
	}
}
