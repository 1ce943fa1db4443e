/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which page caches hold stale pages after a write, and how they are dropped (coherence.h). */
#include <fcntl.h>

#include "coherence.h"
#include "image.h"

#include <dmfs/container_of.h>

#define PAGE 4096u

static bool is_cached(const struct dmfs_handle *h)
{
	return !(h->flags & O_DIRECT);
}

static unsigned cached_opens(const struct dmfs_device *d, unsigned mount)
{
	return atomic_load_explicit(&d->cached_opens[mount], memory_order_relaxed);
}

unsigned dmfs_cached_opens(const struct dmfs_device *d)
{
	return cached_opens(d, DMFS_TREE) + cached_opens(d, DMFS_IMAGES);
}

static unsigned other(unsigned mount)
{
	return mount == DMFS_TREE ? DMFS_IMAGES : DMFS_TREE;
}

/* Of its own connection the kernel drops what is discarded or zeroed. */
static bool is_stale(const struct dmfs_change *c, unsigned mount)
{
	const struct dmfs_handle *h = c->h;

	if (mount == h->mount && (c->op != DM_WRITE || is_cached(h)))
		return false;
	return cached_opens(h->device, mount);
}

static void drop(struct dmfs_device *d, unsigned mount, uint64_t begin, uint64_t end)
{
	dmfs_invalidate(mount, dmfs_ino(d, DMFS_IMAGE_KIND), (off_t)begin, (off_t)(end - begin));
}

void dmfs_change_begin(struct dmfs_change *c, struct dmfs_handle *h, enum dm_op op, uint64_t offset, uint64_t bytes,
		       void (*done)(struct dmfs_change *))
{
	struct dmfs_image *image = h->device->image;

	c->h = h;
	c->op = op;
	c->begin = offset & ~(uint64_t)(PAGE - 1);
	c->end = offset + bytes;
	c->done = done;
	c->listed = op == DM_WRITE && is_cached(h) && cached_opens(h->device, other(h->mount));
	if (!c->listed)
		return;
	c->link.data = c;
	pthread_mutex_lock(&image->changes_lock);
	g_queue_push_tail_link(&image->changes, &c->link);
	pthread_mutex_unlock(&image->changes_lock);
}

static void unlist(struct dmfs_change *c)
{
	struct dmfs_image *image = c->h->device->image;

	if (!c->listed)
		return;
	pthread_mutex_lock(&image->changes_lock);
	g_queue_unlink(&image->changes, &c->link);
	pthread_mutex_unlock(&image->changes_lock);
}

/* Whether an overlapping buffered write of the other connection has no answer yet. */
static bool meets_another(const struct dmfs_change *c)
{
	struct dmfs_image *image = c->h->device->image;
	bool found = false;

	if (c->op != DM_WRITE || !is_cached(c->h))
		return false;
	pthread_mutex_lock(&image->changes_lock);
	for (GList *l = image->changes.head; l && !found; l = l->next) {
		const struct dmfs_change *x = l->data;

		found = x->h->mount != c->h->mount && x->begin < c->end && c->begin < x->end;
	}
	pthread_mutex_unlock(&image->changes_lock);
	return found;
}

static void drop_then_answer(struct dm_work *work)
{
	struct dmfs_change *c = container_of(work, struct dmfs_change, work);

	for (unsigned mount = 0; mount < DMFS_MOUNTS; mount++)
		if (is_stale(c, mount))
			drop(c->h->device, mount, c->begin, c->end);
	unlist(c);
	c->done(c);
}

/* What is dropped after the answer, when the handle may be gone. */
struct late_drop {
	struct dm_work work;
	struct dmfs_device *device; /* with a reference to its md */
	uint64_t begin, end;
};

static struct dm_wq *late;

static void make_late(void)
{
	late = dm_wq_new("invalidate late", 16);
}

static void drop_late(struct dm_work *work)
{
	struct late_drop *l = container_of(work, struct late_drop, work);

	for (unsigned mount = 0; mount < DMFS_MOUNTS; mount++)
		drop(l->device, mount, l->begin, l->end);
	dmfs_device_put(l->device);
	g_free(l);
}

static void answer_then_drop(struct dmfs_change *c)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct late_drop *l = g_new0(struct late_drop, 1);

	pthread_once(&once, make_late);
	*l = (struct late_drop){.work.fn = drop_late, .device = c->h->device, .begin = c->begin, .end = c->end};
	dm_mapped_ref(l->device->md);
	unlist(c);
	c->done(c);
	dm_wq_queue(late, &l->work);
}

void dmfs_change_end(struct dmfs_change *c, bool failed)
{
	if (failed || (!is_stale(c, DMFS_TREE) && !is_stale(c, DMFS_IMAGES))) {
		unlist(c);
		c->done(c);
	} else if (meets_another(c)) {
		answer_then_drop(c);
	} else {
		c->work = (struct dm_work){.fn = drop_then_answer};
		dm_wq_queue(c->h->device->image->drops, &c->work);
	}
}
