/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One thread waits until something that others do for it is done: an asynchronous call made to wait for.
 *
 *	struct call { struct dm_bio bio; struct dm_completion done; } c = {.bio.end = ended,
 *	                                                                   .done = DM_COMPLETION_INIT};
 *	dm_submit(&c.bio);              ended(): dm_complete(&container_of(bio, struct call, bio)->done);
 *	dm_completion_wait(&c.done);
 */
#ifndef DMFS_COMPLETION_H
#define DMFS_COMPLETION_H

#include <pthread.h>
#include <stdbool.h>

#include <dmfs/io.h>

struct dm_completion {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool done;
};

#define DM_COMPLETION_INIT ((struct dm_completion){PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false})

/* Any thread, once for each wait.  The waiter may have gone with the completion when this returns. */
static inline void dm_complete(struct dm_completion *c)
{
	pthread_mutex_lock(&c->lock);
	c->done = true;
	pthread_cond_signal(&c->cond);
	pthread_mutex_unlock(&c->lock);
}

/* Where waiting is allowed (dm_block_begin()).  Afterwards it is as new; there is nothing to free. */
static inline void dm_completion_wait(struct dm_completion *c)
{
	dm_block_begin();
	pthread_mutex_lock(&c->lock);
	while (!c->done)
		pthread_cond_wait(&c->cond, &c->lock);
	c->done = false;
	pthread_mutex_unlock(&c->lock);
	dm_block_end();
}

#endif
