/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A gate counts who is inside, can be closed, and can be waited on until everybody has left.  No cache line is written
 * to by two CPUs.
 *
 * Each CPU has a slot with two counters: who came in there, and who went out there.  A bio may leave on another CPU
 * than it came.  Who comes in counts himself first, then looks whether the gate is closed.  Who closes it sets the flag
 * first, then sums up.  One of the two sees the other.
 *
 * The outs are summed before the ins.  Both only grow, so if the sums are equal nobody was inside at a moment between.
 *
 * Once the last one has left, the gate may be gone at any moment.  So who leaves counts himself and learns whether the
 * gate is closed in one step, from one word.  If it is closed he takes the lock first, which whoever waits for him must
 * have had before he frees it.
 */
#ifndef DMFS_GATE_H
#define DMFS_GATE_H

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#define DM_GATE_CLOSED 1ul

struct dm_gate_slot {
	atomic_ulong in;
	atomic_ulong out; /* twice the number, and DM_GATE_CLOSED */
	char pad[48];
};

struct dm_gate {
	atomic_int closed; /* how often */
	struct dm_gate_slot *slots;
	pthread_mutex_t lock;
	pthread_cond_t left;
	void (*drained)(struct dm_gate *); /* called, with no lock, whenever the last one leaves a closed gate */
};

extern unsigned dm_gate_slots; /* a power of two */

void dm_gate_init(struct dm_gate *g);
void dm_gate_destroy(struct dm_gate *g);
/* Leaves a gate that is, or was a moment ago, closed. */
void dm_gate_left(struct dm_gate *g, struct dm_gate_slot *slot);

static inline struct dm_gate_slot *dm_gate_slot(struct dm_gate *g)
{
	return &g->slots[(unsigned)sched_getcpu() & (dm_gate_slots - 1)];
}

static inline void dm_gate_exit(struct dm_gate *g)
{
	struct dm_gate_slot *slot = dm_gate_slot(g);
	unsigned long out = atomic_load_explicit(&slot->out, memory_order_relaxed);

	while (__builtin_expect(!(out & DM_GATE_CLOSED), 1))
		if (atomic_compare_exchange_weak(&slot->out, &out, out + 2))
			return;
	dm_gate_left(g, slot);
}

/* False if it is closed. */
static inline bool dm_gate_enter(struct dm_gate *g)
{
	atomic_fetch_add(&dm_gate_slot(g)->in, 1);
	if (__builtin_expect(!atomic_load(&g->closed), 1))
		return true;
	dm_gate_exit(g);
	return false;
}

/* For what may be done only while nobody comes in. */
static inline void dm_gate_assert_closed(struct dm_gate *g)
{
	assert(atomic_load(&g->closed) > 0);
}

void dm_gate_close(struct dm_gate *g);
/* Waits until nobody is inside a closed gate; false if interrupted() said so before. */
bool dm_gate_wait(struct dm_gate *g, bool (*interrupted)(void *), void *data);
/* True when this was the last close to be taken back. */
bool dm_gate_open(struct dm_gate *g);
/* How many are inside.  Who comes to a closed gate counts for a moment. */
unsigned long dm_gate_inside(struct dm_gate *g);

#endif
