/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "epoch.h"

#include <dmfs/io.h>

_Thread_local unsigned thin_epoch_my_slot;

unsigned thin_epoch_new_slot(void)
{
	static atomic_uint threads;

	thin_epoch_my_slot = atomic_fetch_add(&threads, 1) % THIN_EPOCH_SLOTS + 1;
	return thin_epoch_my_slot;
}

void thin_epoch_init(struct thin_epoch *e)
{
	pthread_mutex_init(&e->drain, NULL);
	pthread_mutex_init(&e->lock, NULL);
	pthread_cond_init(&e->left, NULL);
}

void thin_epoch_destroy(struct thin_epoch *e)
{
	pthread_mutex_destroy(&e->drain);
	pthread_mutex_destroy(&e->lock);
	pthread_cond_destroy(&e->left);
}

void thin_epoch_wake(struct thin_epoch *e)
{
	pthread_mutex_lock(&e->lock);
	pthread_cond_broadcast(&e->left);
	pthread_mutex_unlock(&e->lock);
}

static bool is_empty(struct thin_epoch *e, unsigned column)
{
	for (unsigned i = 0; i < THIN_EPOCH_SLOTS; i++)
		if (atomic_load(&e->slots[i].column[column]))
			return false;
	return true;
}

void thin_epoch_drain(struct thin_epoch *e)
{
	dm_block_begin();
	pthread_mutex_lock(&e->drain);
	for (int turn = 0; turn < 2; turn++) {
		unsigned column = atomic_fetch_add(&e->now, 1) & 1;

		pthread_mutex_lock(&e->lock);
		atomic_store(&e->waiting, true);
		while (!is_empty(e, column))
			pthread_cond_wait(&e->left, &e->lock);
		atomic_store(&e->waiting, false);
		pthread_mutex_unlock(&e->lock);
	}
	pthread_mutex_unlock(&e->drain);
	dm_block_end();
}
