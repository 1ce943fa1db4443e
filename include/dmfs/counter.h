/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A number that every I/O changes and few look at: each CPU adds to a place of its own, and who wants to know sums up.
 *
 * What one CPU added another may take away.  A sum that is made meanwhile may miss either, so it is about right while
 * others are at it, never below 0, and exact once they are done.  All zeroes is 0; there is nothing to free.
 */
#ifndef DMFS_COUNTER_H
#define DMFS_COUNTER_H

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#define DM_COUNTER_PLACES 8u /* a power of two; with more CPUs some share */
#define DM_COUNTER_LINE 64u

struct dm_counter {
	struct {
		_Atomic int64_t n;
		char pad[DM_COUNTER_LINE - sizeof(_Atomic int64_t)];
	} places[DM_COUNTER_PLACES];
};

static inline void dm_counter_add(struct dm_counter *c, int64_t n)
{
	atomic_fetch_add_explicit(&c->places[(unsigned)sched_getcpu() % DM_COUNTER_PLACES].n, n, memory_order_relaxed);
}

static inline uint64_t dm_counter_sum(struct dm_counter *c)
{
	int64_t sum = 0;

	for (unsigned i = 0; i < DM_COUNTER_PLACES; i++)
		sum += atomic_load_explicit(&c->places[i].n, memory_order_relaxed);
	return sum > 0 ? (uint64_t)sum : 0;
}

#endif
