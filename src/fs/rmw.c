/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writes that are not whole blocks: read the blocks at the edges, put the data in, write all of it back, with nobody
 * writing to these blocks between.
 *
 * Whole-block writes normally take no lock: they only pass the gate image->writes.  The first unaligned write closes
 * the gate.  From then on every write comes here and claims its blocks (block_lock.h): unaligned ones for themselves,
 * whole-block ones together with others of their kind (two may overlap, as on any disk).  Nothing claims any before the
 * writes that were inside the gate have left it.  When there are none any more the gate opens again.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

#include <dmfs/container_of.h>
#include <dmfs/later.h>
#include <dmfs/work.h>

#define SECTORS_SHIFT 11 /* few writes are longer than 1 MiB */

static void start(struct dmfs_rmw *w);
static void granted(struct dm_block_claim *claim);

static bool is_whole(const struct dmfs_rmw *w)
{
	return !w->reads_head && !w->reads_tail;
}

/*
 * If the gate is empty: has those that waited for it claim their blocks, and returns those that have got them, for
 * start_all().  image->lock held.
 */
static struct dmfs_rmw *claim_blocks(struct dmfs_image *image)
{
	struct dmfs_rmw *w = image->waiting, *next, *ready = NULL, **tail = &ready;

	if (!image->slow || (!image->drained && dm_gate_inside(&image->writes)))
		return NULL;
	image->drained = true;
	image->waiting = NULL;
	image->waiting_tail = &image->waiting;
	for (; w; w = next) {
		next = w->next;
		w->next = NULL;
		w->waits = RMW_BLOCKS;
		if (!dm_block_lock(image->sectors, &w->claim, w->begin >> DM_SECTOR_SHIFT, (w->end - 1) >> DM_SECTOR_SHIFT,
				   is_whole(w) ? DM_BLOCK_SHARED : DM_BLOCK_EXCLUSIVE, granted))
			continue;
		w->waits = RMW_GOES;
		*tail = w;
		tail = &w->next;
	}
	return ready;
}

static void start_all(struct dmfs_rmw *list)
{
	for (struct dmfs_rmw *next; list; list = next) {
		next = list->next;
		start(list);
	}
}

static void writes_drained(struct dm_gate *gate)
{
	struct dmfs_image *image = container_of(gate, struct dmfs_image, writes);
	struct dmfs_device *d = image->device;
	struct dmfs_rmw *list;

	/* A write may be answered at once, and its device gone. */
	dm_mapped_ref(d->md);
	pthread_mutex_lock(&image->lock);
	list = claim_blocks(image);
	pthread_mutex_unlock(&image->lock);
	start_all(list);
	dmfs_device_put(d);
}

static void one_less(struct dmfs_image *image)
{
	pthread_mutex_lock(&image->lock);
	if (!--image->slow)
		dm_gate_open(&image->writes);
	pthread_mutex_unlock(&image->lock);
}

static void finish(struct dmfs_rmw *w, int error)
{
	struct dmfs_image *image = w->image;

	dm_block_unlock(image->sectors, &w->claim, NULL);
	one_less(image);
	w->done(w, error);
}

/* Takes a write out of those that wait for the gate; image->lock held. */
static void forget_waiting(struct dmfs_rmw *w)
{
	struct dmfs_rmw **p = &w->image->waiting;

	while (*p != w)
		p = &(*p)->next;
	*p = w->next;
	if (!*p)
		w->image->waiting_tail = p;
}

void dmfs_rmw_cancel(struct dmfs_rmw *w)
{
	struct dmfs_image *image = w->image;
	bool waits_for_gate, waited;

	pthread_mutex_lock(&image->lock);
	waits_for_gate = w->waits == RMW_GATE;
	waited = w->waits != RMW_GOES;
	if (waits_for_gate)
		forget_waiting(w);
	w->waits = RMW_GOES;
	pthread_mutex_unlock(&image->lock);
	/* It may have got its blocks, and gone on, meanwhile. */
	if (!waited || (!waits_for_gate && !dm_block_cancel(image->sectors, &w->claim, NULL)))
		return;
	one_less(image);
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

static void prepare_step(struct dmfs_rmw *w, enum dm_op op, uint64_t at, char *data, uint64_t bytes)
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
}

static void prepare_next(struct dmfs_rmw *w)
{
	if (w->step == READ_HEAD && !w->reads_head)
		w->step++;
	if (w->step == READ_TAIL && !w->reads_tail)
		w->step++;
	if (w->step == READ_HEAD)
		prepare_step(w, DM_READ, w->begin, w->edge, w->block);
	else if (w->step == READ_TAIL)
		prepare_step(w, DM_READ, w->end - w->block, w->edge, w->block);
	else
		prepare_step(w, DM_WRITE, w->begin, w->data, w->end - w->begin);
}

static void next_step(struct dmfs_rmw *w)
{
	prepare_next(w);
	dm_submit(&w->bio);
}

static void start(struct dmfs_rmw *w)
{
	w->step = READ_HEAD;
	next_step(w);
}

/* In a thread of a queue's: it may wait for the disk. */
static void granted(struct dm_block_claim *claim)
{
	struct dmfs_rmw *w = container_of(claim, struct dmfs_rmw, claim);
	struct dm_bio_list bios;

	pthread_mutex_lock(&w->image->lock);
	w->waits = RMW_GOES;
	pthread_mutex_unlock(&w->image->lock);
	w->step = READ_HEAD;
	prepare_next(w);
	dm_bio_list_init(&bios);
	dm_bio_list_add(&bios, &w->bio);
	dm_submit_async(&bios);
}

void dmfs_rmw_start(struct dmfs_rmw *w, struct dmfs_image *image, const char *buf, uint64_t offset, uint64_t len,
		    unsigned flags, void (*done)(struct dmfs_rmw *, int))
{
	struct dmfs_device *d = image->device;
	struct dmfs_rmw *list;

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
	w->waits = RMW_GATE;
	w->next = NULL;

	dm_mapped_ref(d->md); /* as in writes_drained() */
	pthread_mutex_lock(&image->lock);
	if (!image->slow++) {
		image->drained = false;
		image->waiting_tail = &image->waiting;
		dm_gate_close(&image->writes);
	}
	*image->waiting_tail = w;
	image->waiting_tail = &w->next;
	list = claim_blocks(image);
	pthread_mutex_unlock(&image->lock);
	start_all(list);
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
	image->sectors = dm_block_lock_new(SECTORS_SHIFT);
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
	dm_block_lock_free(d->image->sectors);
	pthread_mutex_destroy(&d->image->lock);
	g_free(d->image);
}
