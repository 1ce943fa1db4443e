/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How many things are under way, and waiting until there are none: as before a device may be suspended or its memory
 * freed, or for several things that one thread has begun.
 *
 *	dm_under_way_add(&u, n);     begin them; each at its end: dm_under_way_end(&u);
 *	dm_under_way_wait(&u);       where waiting is allowed (dm_block_begin())
 */
#ifndef DMFS_UNDER_WAY_H
#define DMFS_UNDER_WAY_H

#include <pthread.h>

#include <dmfs/io.h>

struct dm_under_way {
	pthread_mutex_t lock;
	pthread_cond_t none;
	unsigned long n;
};

static inline void dm_under_way_init(struct dm_under_way *u)
{
	*u = (struct dm_under_way){PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0};
}

/* Nobody waits. */
static inline void dm_under_way_destroy(struct dm_under_way *u)
{
	pthread_mutex_destroy(&u->lock);
	pthread_cond_destroy(&u->none);
}

/* One more; false, and there is none, if there are `most` or more already. */
static inline bool dm_under_way_try(struct dm_under_way *u, unsigned long most)
{
	bool ok;

	pthread_mutex_lock(&u->lock);
	ok = u->n < most;
	u->n += ok;
	pthread_mutex_unlock(&u->lock);
	return ok;
}

static inline void dm_under_way_add(struct dm_under_way *u, unsigned long n)
{
	pthread_mutex_lock(&u->lock);
	u->n += n;
	pthread_mutex_unlock(&u->lock);
}

/* When it returns, the waiter may have gone with all that this was of. */
static inline void dm_under_way_end(struct dm_under_way *u)
{
	pthread_mutex_lock(&u->lock);
	if (!--u->n)
		pthread_cond_broadcast(&u->none);
	pthread_mutex_unlock(&u->lock);
}

static inline void dm_under_way_wait(struct dm_under_way *u)
{
	dm_block_begin();
	pthread_mutex_lock(&u->lock);
	while (u->n)
		pthread_cond_wait(&u->none, &u->lock);
	pthread_mutex_unlock(&u->lock);
	dm_block_end();
}

#endif
