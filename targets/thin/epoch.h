/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which bios are on their way to the data device: counted in one of two columns, in a slot of the thread's own, so that
 * threads do not share cache lines.
 *
 * thin_epoch_drain() returns when every bio that entered before it has left.
 * It moves newcomers to the other column and waits for the old one to empty,
 * twice: somebody may have read the column number just before and counted himself just after.
 */
#ifndef DMFS_TARGETS_THIN_EPOCH_H
#define DMFS_TARGETS_THIN_EPOCH_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#define THIN_EPOCH_SLOTS 64u

struct thin_epoch_slot {
	atomic_long column[2];
	char pad[48];
};

struct thin_epoch {
	_Atomic unsigned now;
	atomic_bool waiting;
	pthread_mutex_t drain, lock;
	pthread_cond_t left;
	struct thin_epoch_slot slots[THIN_EPOCH_SLOTS] __attribute__((aligned(64)));
};

void thin_epoch_init(struct thin_epoch *e);
void thin_epoch_destroy(struct thin_epoch *e);
void thin_epoch_drain(struct thin_epoch *e);
void thin_epoch_wake(struct thin_epoch *e);

extern _Thread_local unsigned thin_epoch_my_slot; /* 1-based; 0: none yet */
unsigned thin_epoch_new_slot(void);

/* What it gives goes to thin_epoch_leave(), from any thread. */
static inline atomic_long *thin_epoch_enter(struct thin_epoch *e)
{
	unsigned slot = thin_epoch_my_slot ? thin_epoch_my_slot : thin_epoch_new_slot();
	atomic_long *count = &e->slots[slot % THIN_EPOCH_SLOTS].column[atomic_load(&e->now) & 1];

	atomic_fetch_add(count, 1);
	return count;
}

static inline void thin_epoch_leave(struct thin_epoch *e, atomic_long *count)
{
	if (atomic_fetch_sub(count, 1) == 1 && atomic_load(&e->waiting))
		thin_epoch_wake(e);
}

#endif
