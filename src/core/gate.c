/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The slow side of gates. */
#include <assert.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <glib.h>

#include <dmfs/gate.h>
#include <dmfs/io.h>

#define INTERRUPT_POLL_MS 50

unsigned dm_gate_slots;

static void count_cpus(void)
{
	long n = sysconf(_SC_NPROCESSORS_CONF);

	dm_gate_slots = 1;
	while (dm_gate_slots < (unsigned long)MAX(n, 1) && dm_gate_slots < 128)
		dm_gate_slots *= 2;
}

void dm_gate_init(struct dm_gate *g)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_condattr_t attr;

	pthread_once(&once, count_cpus);
	atomic_init(&g->closed, 0);
	g->slots = aligned_alloc(64, dm_gate_slots * sizeof *g->slots);
	for (unsigned i = 0; i < dm_gate_slots; i++) {
		atomic_init(&g->slots[i].in, 0);
		atomic_init(&g->slots[i].out, 0);
	}
	pthread_mutex_init(&g->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&g->left, &attr);
	pthread_condattr_destroy(&attr);
	g->drained = NULL;
}

void dm_gate_destroy(struct dm_gate *g)
{
	/* The last to leave may not have unlocked it yet. */
	pthread_mutex_lock(&g->lock);
	pthread_mutex_unlock(&g->lock);
	pthread_mutex_destroy(&g->lock);
	pthread_cond_destroy(&g->left);
	free(g->slots);
}

unsigned long dm_gate_inside(struct dm_gate *g)
{
	unsigned long out = 0, in = 0;

	for (unsigned i = 0; i < dm_gate_slots; i++)
		out += atomic_load(&g->slots[i].out) & ~DM_GATE_CLOSED;
	for (unsigned i = 0; i < dm_gate_slots; i++)
		in += atomic_load(&g->slots[i].in);
	return (2 * in - out) / 2; /* only the difference is halved: either count may have wrapped */
}

void dm_gate_left(struct dm_gate *g, struct dm_gate_slot *slot)
{
	void (*drained)(struct dm_gate *) = NULL;

	pthread_mutex_lock(&g->lock);
	atomic_fetch_add(&slot->out, 2);
	if (atomic_load(&g->closed) && !dm_gate_inside(g)) {
		pthread_cond_broadcast(&g->left);
		drained = g->drained;
	}
	pthread_mutex_unlock(&g->lock);
	if (drained)
		drained(g);
}

void dm_gate_close(struct dm_gate *g)
{
	pthread_mutex_lock(&g->lock);
	if (atomic_fetch_add(&g->closed, 1) == 0)
		for (unsigned i = 0; i < dm_gate_slots; i++)
			atomic_fetch_or(&g->slots[i].out, DM_GATE_CLOSED);
	pthread_mutex_unlock(&g->lock);
}

bool dm_gate_wait(struct dm_gate *g, bool (*interrupted)(void *), void *data)
{
	bool empty = true;

	dm_gate_assert_closed(g);
	assert(!dm_in_end()); /* one of those inside may need this thread */
	pthread_mutex_lock(&g->lock);
	if (dm_gate_inside(g)) {
		dm_block_begin();
		while (dm_gate_inside(g)) {
			struct timespec until;

			if (!interrupted) {
				pthread_cond_wait(&g->left, &g->lock);
				continue;
			}
			if (interrupted(data)) {
				empty = false;
				break;
			}
			clock_gettime(CLOCK_MONOTONIC, &until);
			until.tv_nsec += INTERRUPT_POLL_MS * 1000000;
			until.tv_sec += until.tv_nsec / 1000000000;
			until.tv_nsec %= 1000000000;
			pthread_cond_timedwait(&g->left, &g->lock, &until);
		}
		dm_block_end();
	}
	pthread_mutex_unlock(&g->lock);
	return empty;
}

bool dm_gate_open(struct dm_gate *g)
{
	int closed;

	pthread_mutex_lock(&g->lock);
	closed = atomic_fetch_sub(&g->closed, 1);
	assert(closed > 0);
	if (closed == 1)
		for (unsigned i = 0; i < dm_gate_slots; i++)
			atomic_fetch_and(&g->slots[i].out, ~DM_GATE_CLOSED);
	pthread_mutex_unlock(&g->lock);
	return closed == 1;
}
