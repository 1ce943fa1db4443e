/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Removing a device whose image was closed a moment ago.
 *
 * close(2) returns when its FLUSH is answered.  The RELEASE comes behind, and what the same program asks next, an
 * rmdir, may overtake it.  An open image that was flushed and not used since is most likely closing: if all of a
 * device's are, its removal waits for their RELEASE, though not for ever: another process may have inherited the file.
 */
#include <errno.h>
#include <time.h>

#include "image.h"

#include <dmfs/io.h>

#define PATIENCE_S 2

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* for all devices' struct dmfs_closing */
static pthread_cond_t released = PTHREAD_COND_INITIALIZER;

void dmfs_closing_opened(struct dmfs_device *d)
{
	pthread_mutex_lock(&lock);
	d->closing.opens++;
	pthread_mutex_unlock(&lock);
}

void dmfs_closing_flushed(struct dmfs_handle *h)
{
	pthread_mutex_lock(&lock);
	if (!atomic_exchange(&h->closing, true))
		h->device->closing.flushed++;
	pthread_mutex_unlock(&lock);
}

void dmfs_closing_not(struct dmfs_handle *h)
{
	pthread_mutex_lock(&lock);
	if (atomic_exchange(&h->closing, false))
		h->device->closing.flushed--;
	pthread_mutex_unlock(&lock);
}

void dmfs_closing_released(struct dmfs_handle *h)
{
	struct dmfs_closing *c = &h->device->closing;

	pthread_mutex_lock(&lock);
	c->opens--;
	c->releases++;
	if (atomic_load(&h->closing))
		c->flushed--;
	pthread_cond_broadcast(&released);
	pthread_mutex_unlock(&lock);
}

static unsigned releases(struct dmfs_device *d)
{
	unsigned n;

	pthread_mutex_lock(&lock);
	n = d->closing.releases;
	pthread_mutex_unlock(&lock);
	return n;
}

/* Waits for a release after the first `before`; false if none can be expected or none comes in time. */
static bool wait_release(struct dmfs_device *d, unsigned before, const struct timespec *until)
{
	struct dmfs_closing *c = &d->closing;
	int error = 0;
	bool came;

	dm_block_begin();
	pthread_mutex_lock(&lock);
	while (!error && c->releases == before && c->opens && c->flushed == c->opens)
		error = pthread_cond_timedwait(&released, &lock, until);
	came = c->releases != before;
	pthread_mutex_unlock(&lock);
	dm_block_end();
	return came;
}

int dmfs_remove(struct dm_mapped *md, GError **err)
{
	struct dmfs_device *d = dmfs_device_of(md);
	struct timespec until;
	unsigned before;
	int error;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += PATIENCE_S;
	do {
		g_clear_error(err);
		before = releases(d);
		error = dm_remove(md, err);
	} while (error == -EBUSY && wait_release(d, before, &until));
	return error;
}

int dmfs_remove_deferred(struct dm_mapped *md, GError **err)
{
	return dmfs_remove(md, NULL) == 0 ? 0 : dm_remove_deferred(md, err);
}
