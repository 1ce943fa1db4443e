/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * multipath's path checker, in place of multipathd (-o path-check=SECONDS; off by default).
 *
 * While a path is failed, so many seconds after the last look one block is read from its start; when that answers the
 * path is reinstated.  A check that has no answer yet is not begun again, so a path that hangs has one at most.
 */
#include <dmfs/options.h>

#include <dmfs/container_of.h>

#include "multipath.h"

struct path_check {
	struct multipath *m;
	struct path *path;
	void *data;
	struct iovec iov;
	struct dm_bio bio;
	struct dm_work over;
	int error;
};

/* Looks again later if a path is failed that nobody is looking at; lock held. */
static void arm(struct multipath *m)
{
	bool needed = false;

	for (unsigned i = 0; i < m->paths->len && !needed; i++) {
		struct path *path = m->paths->pdata[i];

		needed = atomic_load(&path->p.failed) && !path->check;
	}
	if (needed && !m->ending && !m->check_timer.heap_index)
		dm_timer_arm(&m->check_timer, dm_now_ns() + dm_options.path_check_seconds * UINT64_C(1000000000));
}

void multipath_check_start(struct multipath *m)
{
	if (!dm_options.path_check_seconds)
		return;
	pthread_mutex_lock(&m->lock);
	arm(m);
	pthread_mutex_unlock(&m->lock);
}

static void check_over(struct dm_work *work)
{
	struct path_check *c = container_of(work, struct path_check, over);
	struct multipath *m = c->m;
	struct path *path = c->path;
	int error = c->error;

	g_free(c->data);
	g_free(c);
	if (!error)
		multipath_reinstate_path(m, path);
	pthread_mutex_lock(&m->lock);
	path->check = NULL; /* m may be freed as soon as nobody is checking */
	pthread_cond_broadcast(&m->checked);
	arm(m);
	pthread_mutex_unlock(&m->lock);
}

static void check_end(struct dm_bio *bio)
{
	struct path_check *c = bio->private;

	/* An error of the medium is an answer. */
	c->error = bio->error && dm_error_is_path(bio->error) ? bio->error : 0;
	dm_wq_queue(multipath_wq, &c->over);
}

static struct path_check *check_new(struct multipath *m, struct path *path)
{
	struct path_check *c = g_new0(struct path_check, 1);
	struct dm_limits limits = {0};
	size_t bytes;

	dm_dev_limits(path->p.dev, &limits);
	bytes = MAX(limits.logical_block_size, DM_SECTOR_SIZE);
	c->m = m;
	c->path = path;
	c->over.fn = check_over;
	c->data = g_malloc(bytes);
	c->iov = (struct iovec){c->data, bytes};
	c->bio = (struct dm_bio){.op = DM_READ,
				 .flags = DM_FAILFAST,
				 .dev = path->p.dev,
				 .sectors = bytes >> DM_SECTOR_SHIFT,
				 .iov = &c->iov,
				 .iovcnt = 1,
				 .end = check_end,
				 .private = c};
	return c;
}

void multipath_check_work(struct dm_work *work)
{
	struct multipath *m = container_of(work, struct multipath, check_work);

	for (unsigned i = 0; i < m->paths->len; i++) {
		struct path *path = m->paths->pdata[i];
		struct path_check *c = NULL;

		pthread_mutex_lock(&m->lock);
		if (atomic_load(&path->p.failed) && !path->check && !m->ending)
			c = path->check = check_new(m, path);
		pthread_mutex_unlock(&m->lock);
		if (c)
			dm_submit(&c->bio);
	}
}

void multipath_check_timer(struct dm_timer *timer)
{
	struct multipath *m = container_of(timer, struct multipath, check_timer);

	dm_wq_queue(multipath_wq, &m->check_work);
}

/* Whether a check is under way; lock held. */
static bool checking(struct multipath *m)
{
	bool any = false;

	for (unsigned i = 0; i < m->paths->len; i++)
		any |= ((struct path *)m->paths->pdata[i])->check != NULL;
	return any;
}

void multipath_check_end(struct multipath *m)
{
	pthread_mutex_lock(&m->lock);
	m->ending = true;
	pthread_mutex_unlock(&m->lock);
	dm_timer_cancel_sync(&m->check_timer);
	dm_wq_flush_work(multipath_wq, &m->check_work);
	pthread_mutex_lock(&m->lock);
	while (checking(m))
		pthread_cond_wait(&m->checked, &m->lock);
	pthread_mutex_unlock(&m->lock);
}
