/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Work that is done later: queues of functions run by a shared pool of threads, and timers.  Both cost nothing while
 * nothing is pending.
 */
#ifndef DMFS_WORK_H
#define DMFS_WORK_H

#include <stdbool.h>
#include <stdint.h>

/*
 * A piece of work, embedded in its owner.  Queuing one that is queued already (and has not started) does nothing and
 * returns false; it may queue itself again, or be freed, from inside fn.
 */
struct dm_work {
	void (*fn)(struct dm_work *);
	struct dm_work *next;
	int pending; /* dm_wq's */
};

struct dm_wq;

/* max_active: how many of its works may run at once, 1 or more; 1 keeps the order they were queued in. */
struct dm_wq *dm_wq_new(const char *name, unsigned max_active);
/* Waits for all its work, then frees it.  Not from one of its own works. */
void dm_wq_free(struct dm_wq *wq);
bool dm_wq_queue(struct dm_wq *wq, struct dm_work *work);
/* For what waits for the queue's works: this thread is in none of them. */
void dm_wq_assert_outside(struct dm_wq *wq);
/* Waits until everything queued before the call, and what that queued, is done.  Not from one of its own works. */
void dm_wq_flush(struct dm_wq *wq);

/* Waits until this work is neither queued nor running.  Not from itself. */
void dm_wq_flush_work(struct dm_wq *wq, struct dm_work *work);

/* Nanoseconds of CLOCK_MONOTONIC. */
uint64_t dm_now_ns(void);

/*
 * A timer, embedded in its owner, zeroed at first.  fn runs once, in the timer thread, at or after the due time; it
 * must not block (queue work instead), and may arm the timer again.  Timers fire in the order of their due times.
 */
struct dm_timer {
	void (*fn)(struct dm_timer *);
	uint64_t due_ns;
	unsigned heap_index; /* 1-based place in the heap; 0: not armed */
	uint64_t seq;
};

/* Arms it, or moves it to a new time. */
void dm_timer_arm(struct dm_timer *t, uint64_t due_ns);
/* Disarms it; true if it was armed and will not run.  Does not wait. */
bool dm_timer_cancel(struct dm_timer *t);
/* Disarms it and waits for fn to end if it is running.  Not from fn. */
void dm_timer_cancel_sync(struct dm_timer *t);

#endif
