/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Hold and release: bios that are kept until something happens, a resume, space, a path, an administrator; and the
 * ways they leave early, when the caller dies or the daemon ends.
 *
 * Origins.  A bio's `origin` is who asked for it.  dm_origin_cancel() says that nobody waits for the answer any
 * more: every bio of this origin that is held anywhere ends with -EINTR, and what is to be held later ends so at
 * once.  Held means that nothing has changed yet.  The engine's parts of a bio inherit its origin.  Who makes a bio of
 * his own for a part of another's work passes the origin on only if an -EINTR of it leads to nothing but an
 * -EINTR of the whole; and an -EINTR from below is nobody's failure: no leg, no path, no metadata is bad.
 *
 * A hold is a list of bios, first in, first out, that is closed (it keeps what comes) or open.  Closing nests.
 *
 *	map():      switch (dm_hold_add(&t->hold, bio)) {
 *	            case 0:       return DM_MAPIO_SUBMITTED;
 *	            case -EAGAIN: it is open, the bio goes on;
 *	            default:      dm_bio_end(bio, that error);
 *	            }
 *	resume():   dm_hold_open(&t->hold, &bios), and dm_submit() or dm_bio_requeue() each.
 *
 * All calls may come from any thread, and none waits.  No lock is held while a bio ends.
 */
#ifndef DMFS_HOLD_H
#define DMFS_HOLD_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include <dmfs/bio.h>

struct dm_hold;
struct dm_held;

/* --- origins --- */

/* Embedded in whoever asks; it must outlive its bios. */
struct dm_origin {
	pthread_mutex_t lock;
	struct dm_held *held;
	atomic_bool cancelled;
};

void dm_origin_init(struct dm_origin *o);
/* None of its bios is under way. */
void dm_origin_destroy(struct dm_origin *o);
/*
 * Ends what is held with -EINTR, from this thread.  The caller keeps the origin until this returns, or it may go
 * with the last of its bios to end: it is not touched after that.  Again does nothing.
 */
void dm_origin_cancel(struct dm_origin *o);

/* --- the end of the daemon --- */

/*
 * The daemon ends: what is held in any hold ends with the hold's end_error, and what comes later at once; nobody
 * resumes anything any more.  What waits otherwise is for its keeper (dm_target_type's end_waiting).
 */
void dm_end_all_holds(void);
bool dm_ending(void);

/*
 * Whether to go on with a bio, between its pieces or before it waits: 0; -EINTR: its origin was cancelled.
 * dm_bio_stop_long() is for what may take for ever and need not be finished (a discard, zeroes): also -EIO when
 * the daemon ends, if somebody has asked for it.  What the daemon does of itself is finished.
 */
static inline int dm_bio_stop(const struct dm_bio *bio)
{
	return bio->origin && atomic_load_explicit(&bio->origin->cancelled, memory_order_relaxed) ? -EINTR : 0;
}

static inline int dm_bio_stop_long(const struct dm_bio *bio)
{
	return dm_bio_stop(bio) ? -EINTR : bio->origin && dm_ending() ? -EIO : 0;
}

/* --- holds --- */

/* How a bio leaves early; dm_bio_end() with the error, unless the keeper has more to do. */
typedef void (*dm_hold_fail_fn)(struct dm_hold *h, struct dm_bio *bio, int error);

struct dm_hold {
	pthread_mutex_t lock;
	struct dm_held *head, *tail;
	size_t count, limit;
	unsigned closed;
	int end_error;
	dm_hold_fail_fn fail;
	struct dm_hold *next, **prev; /* all there are */
};

/*
 * Open at first.  fail: may be NULL.  end_error: what bios end with when the daemon ends, 0 for -EIO; or
 * DM_HOLD_GOES_ON: its end changes nothing, for the keeper will send them on by itself.
 */
#define DM_HOLD_GOES_ON 1
void dm_hold_init(struct dm_hold *h, dm_hold_fail_fn fail, int end_error);
/* There is nothing in it. */
void dm_hold_destroy(struct dm_hold *h);
/* How many bios it keeps at most; 0: any number.  At first. */
void dm_hold_set_limit(struct dm_hold *h, size_t limit);

void dm_hold_close(struct dm_hold *h);
/* Takes one close back; with the last the hold is open, and what it kept goes to the end of out, for the caller. */
bool dm_hold_open(struct dm_hold *h, struct dm_bio_list *out);

/*
 * 0: the bio is kept.  Else it is still the caller's: -EAGAIN the hold is open; -EBUSY it is full; -EINTR the bio's
 * origin was cancelled; the end_error when the daemon ends.
 */
int dm_hold_add(struct dm_hold *h, struct dm_bio *bio);

/* Takes all, or those fn says true of (under the lock: it must not call here), while the hold stays as it is. */
void dm_hold_take(struct dm_hold *h, struct dm_bio_list *out);
void dm_hold_take_if(struct dm_hold *h, bool (*fn)(struct dm_bio *bio, void *data), void *data,
		     struct dm_bio_list *out);
/* Takes the one that came first; NULL: it is empty. */
struct dm_bio *dm_hold_take_first(struct dm_hold *h);
/* Takes all, and has each leave early. */
void dm_hold_fail(struct dm_hold *h, int error);
/* How many there are now. */
size_t dm_hold_count(struct dm_hold *h);

/* --- for other keepers of bios (a heap, a tree): one record a bio --- */

/*
 * Under the keeper's lock: dm_held_begin() before the record goes into the keeper's structure, and dm_held_end() after
 * it was taken out.  If that says false the bio is not the keeper's any more, nor is the record: cancel() has been
 * called, or is about to be, in another thread.  cancel() is called without a lock; it takes the keeper's lock, takes
 * the record out of the structure if it still is there, unlocks, frees it, and ends the bio.
 */
struct dm_held {
	struct dm_bio *bio;
	void (*cancel)(struct dm_held *held);
	struct dm_held *origin_next, **origin_prev;
	/* The keeper's; keeper is set before dm_held_begin(). */
	void *keeper;
	struct dm_held *next, *prev;
	bool kept;
};

/* 0, or -EINTR if the bio's origin was cancelled: then it is not held. */
int dm_held_begin(struct dm_held *held, struct dm_bio *bio, void (*cancel)(struct dm_held *held));
bool dm_held_end(struct dm_held *held);

#endif
