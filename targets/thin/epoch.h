/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which bios are on their way to the data device: they are inside one of two gates.
 *
 * thin_epoch_drain() returns when every bio that entered before it has left, while others go on entering: it shows
 * newcomers to the other gate, and closes the old one until that is empty.  It does so with both in turn: somebody may
 * have looked which gate it is just before an earlier drain, and come in only after that.
 */
#ifndef DMFS_TARGETS_THIN_EPOCH_H
#define DMFS_TARGETS_THIN_EPOCH_H

#include <dmfs/gate.h>
#include <dmfs/io.h>

struct thin_epoch {
	_Atomic unsigned now;
	pthread_mutex_t drain;
	struct dm_gate gates[2];
};

static inline void thin_epoch_init(struct thin_epoch *e)
{
	pthread_mutex_init(&e->drain, NULL);
	dm_gate_init(&e->gates[0]);
	dm_gate_init(&e->gates[1]);
}

static inline void thin_epoch_destroy(struct thin_epoch *e)
{
	pthread_mutex_destroy(&e->drain);
	dm_gate_destroy(&e->gates[0]);
	dm_gate_destroy(&e->gates[1]);
}

static inline void thin_epoch_drain(struct thin_epoch *e)
{
	dm_block_begin();
	pthread_mutex_lock(&e->drain);
	for (int turn = 0; turn < 2; turn++) {
		struct dm_gate *gate = &e->gates[atomic_fetch_add(&e->now, 1) & 1];

		dm_gate_close(gate);
		dm_gate_wait(gate, NULL, NULL);
		dm_gate_open(gate);
	}
	pthread_mutex_unlock(&e->drain);
	dm_block_end();
}

/* What it gives goes to dm_gate_exit(), from any thread. */
static inline struct dm_gate *thin_epoch_enter(struct thin_epoch *e)
{
	struct dm_gate *gate;

	do
		gate = &e->gates[atomic_load(&e->now) & 1];
	while (!dm_gate_enter(gate));
	return gate;
}

#endif
