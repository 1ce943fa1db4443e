/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writes that are not whole blocks: read the blocks at the edges, put the data
 * in, write all of it back, with nobody writing to these blocks between.
 *
 * Whole-block writes normally take no lock: they only pass the gate
 * image->writes.  The first unaligned write closes the gate.  From then on
 * every write comes here, into one of two lists: active, if it overlaps no other that is in the
 * lists (two whole-block writes may overlap, as on any disk), else waiting, in the order of arrival.  Nothing
 * is started before the writes that were inside the gate have left it.  When the
 * lists are empty the gate opens again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

#include <dmfs/work.h>

#include <dmfs/container_of.h>

static void start(struct dmfs_rmw *w);

static bool is_whole(const struct dmfs_rmw *w)
{
	return !w->reads_head && !w->reads_tail;
}

static bool conflicts(const struct dmfs_rmw *a, const struct dmfs_rmw *b)
{
	return a->begin < b->end && b->begin < a->end && !(is_whole(a) && is_whole(b));
}

/* Whether w may run beside the active ones and those that wait before it. */
static bool must_wait(struct dmfs_image *image, const struct dmfs_rmw *w)
{
	for (GList *l = image->active.head; l; l = l->next)
		if (conflicts(l->data, w))
			return true;
	for (GList *l = image->waiting.head; l && l->data != w; l = l->next)
		if (conflicts(l->data, w))
			return true;
	return false;
}

/* Starts whatever may start; image->lock held, and dropped around the starting. */
static void schedule(struct dmfs_image *image)
{
	GQueue ready = G_QUEUE_INIT;
	GList *l, *next;

	if (!image->drained)
		return;
	for (l = image->waiting.head; l; l = next) {
		struct dmfs_rmw *w = l->data;

		next = l->next;
		if (must_wait(image, w))
			continue;
		g_queue_unlink(&image->waiting, &w->link_waiting);
		w->waits = false;
		g_queue_push_tail_link(&image->active, &w->link_active);
		g_queue_push_tail(&ready, w);
	}
	pthread_mutex_unlock(&image->lock);
	for (struct dmfs_rmw *w; (w = g_queue_pop_head(&ready));)
		start(w);
	pthread_mutex_lock(&image->lock);
}

static void writes_drained(struct dm_gate *gate)
{
	struct dmfs_image *image = container_of(gate, struct dmfs_image, writes);
	struct dmfs_device *d = image->device;

	/* A write that schedule() starts may be answered at once, and its device gone before schedule() is back. */
	dm_mapped_ref(d->md);
	pthread_mutex_lock(&image->lock);
	if (image->slow && !image->drained && !dm_gate_inside(gate)) {
		image->drained = true;
		schedule(image);
	}
	pthread_mutex_unlock(&image->lock);
	dmfs_device_put(d);
}

/* One has left the lists; image->lock held. */
static void go_on(struct dmfs_image *image)
{
	schedule(image);
	if (image->slow && !image->active.length && !image->waiting.length) {
		image->slow = false;
		dm_gate_open(&image->writes);
	}
}

static void finish(struct dmfs_rmw *w, int error)
{
	struct dmfs_image *image = w->image;

	pthread_mutex_lock(&image->lock);
	g_queue_unlink(&image->active, &w->link_active);
	go_on(image);
	pthread_mutex_unlock(&image->lock);
	w->done(w, error);
}

void dmfs_rmw_cancel(struct dmfs_rmw *w)
{
	struct dmfs_image *image = w->image;
	bool waited;

	pthread_mutex_lock(&image->lock);
	waited = w->waits;
	if (waited) {
		w->waits = false;
		g_queue_unlink(&image->waiting, &w->link_waiting);
		go_on(image);
	}
	pthread_mutex_unlock(&image->lock);
	if (waited)
		w->done(w, -EINTR);
}

/* --- the three steps of one write --------------------------------------------------------- */

enum { READ_HEAD, READ_TAIL, WRITE };

static void next_step(struct dmfs_rmw *w);

static void step_end(struct dm_bio *bio)
{
	struct dmfs_rmw *w = bio->private;
	uint64_t keep;

	if (bio->error) {
		finish(w, bio->error);
		return;
	}
	switch (w->step) {
	case READ_HEAD:
		memcpy(w->data, w->edge, w->offset - w->begin);
		if (w->end - w->begin == w->block) { /* it is the tail as well */
			keep = w->end - (w->offset + w->len);
			memcpy(w->data + w->block - keep, w->edge + w->block - keep, keep);
			w->reads_tail = false;
		}
		break;
	case READ_TAIL:
		keep = w->end - (w->offset + w->len);
		memcpy(w->data + (w->end - w->begin) - keep, w->edge + w->block - keep, keep);
		break;
	case WRITE:
		finish(w, 0);
		return;
	}
	w->step++;
	next_step(w);
}

static void submit_step(struct dmfs_rmw *w, enum dm_op op, uint64_t at, char *data, uint64_t bytes)
{
	w->iov = (struct iovec){data, bytes};
	w->bio = (struct dm_bio){
		.op = op,
		.flags = op == DM_WRITE ? w->flags : 0,
		.dev = &w->image->device->md->dev,
		.sector = at >> DM_SECTOR_SHIFT,
		.sectors = bytes >> DM_SECTOR_SHIFT,
		.iov = &w->iov,
		.iovcnt = 1,
		.end = step_end,
		.private = w,
		.origin = w->origin,
	};
	dm_submit(&w->bio);
}

static void next_step(struct dmfs_rmw *w)
{
	if (w->step == READ_HEAD && !w->reads_head)
		w->step++;
	if (w->step == READ_TAIL && !w->reads_tail)
		w->step++;
	if (w->step == READ_HEAD)
		submit_step(w, DM_READ, w->begin, w->edge, w->block);
	else if (w->step == READ_TAIL)
		submit_step(w, DM_READ, w->end - w->block, w->edge, w->block);
	else
		submit_step(w, DM_WRITE, w->begin, w->data, w->end - w->begin);
}

static void start(struct dmfs_rmw *w)
{
	w->step = READ_HEAD;
	next_step(w);
}

void dmfs_rmw_start(struct dmfs_rmw *w, struct dmfs_image *image, const char *buf, uint64_t offset, uint64_t len,
		    unsigned flags, void (*done)(struct dmfs_rmw *, int))
{
	struct dmfs_device *d = image->device;

	w->image = image;
	w->block = image->block;
	w->offset = offset;
	w->len = len;
	w->begin = offset & ~(uint64_t)(w->block - 1);
	w->end = (offset + len + w->block - 1) & ~(uint64_t)(w->block - 1);
	w->reads_head = w->begin != offset;
	w->reads_tail = w->end != offset + len;
	if (w->end - w->begin == w->block && w->reads_tail)
		w->reads_head = true; /* one block: read it once */
	w->flags = flags;
	w->done = done;
	w->data = g_malloc(w->end - w->begin);
	w->edge = is_whole(w) ? NULL : g_malloc(w->block);
	memcpy(w->data + (offset - w->begin), buf, len);
	w->link_active.data = w->link_waiting.data = w;

	dm_mapped_ref(d->md); /* as in writes_drained() */
	pthread_mutex_lock(&image->lock);
	w->waits = true;
	g_queue_push_tail_link(&image->waiting, &w->link_waiting);
	if (!image->slow) {
		image->slow = true;
		image->drained = false;
		dm_gate_close(&image->writes);
	}
	if (!image->drained && !dm_gate_inside(&image->writes))
		image->drained = true;
	schedule(image);
	pthread_mutex_unlock(&image->lock);
	dmfs_device_put(d);
}

void dmfs_rmw_clear(struct dmfs_rmw *w)
{
	g_free(w->data);
	g_free(w->edge);
}

struct dmfs_image *dmfs_image_new(struct dmfs_device *d)
{
	struct dmfs_image *image = g_new0(struct dmfs_image, 1);

	image->device = d;
	dm_gate_init(&image->writes);
	image->writes.drained = writes_drained;
	pthread_mutex_init(&image->lock, NULL);
	g_queue_init(&image->active);
	g_queue_init(&image->waiting);
	pthread_mutex_init(&image->changes_lock, NULL);
	g_queue_init(&image->changes);
	image->drops = dm_wq_new("invalidate", 8);
	return image;
}

void dmfs_image_free(struct dmfs_device *d)
{
	if (!d->image)
		return;
	dm_wq_free(d->image->drops);
	pthread_mutex_destroy(&d->image->changes_lock);
	dm_gate_destroy(&d->image->writes);
	pthread_mutex_destroy(&d->image->lock);
	g_free(d->image);
}
