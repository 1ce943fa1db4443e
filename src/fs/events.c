/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * `events` and `status`: what can be waited for.
 *
 * A read of `events` that finds nothing is kept until there is a line; it holds no thread.  poll(2) on either is
 * answered from the open file's own place in the events.  When the engine wakes the reader, whatever waits is answered.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>

#include "core/events.h"
#include "files.h"
#include "loop.h"

struct waiting_read {
	fuse_req_t req;
	size_t size;
	struct dmfs_channel *channel;
	GList link;
};

struct watcher {
	struct dm_event_reader *reader;
	GQueue reads; /* of struct waiting_read, under the handle's lock */
	struct fuse_pollhandle *ph;
	bool unread; /* status: not read since the last line */
	GString *rest; /* of a line longer than the reader's buffer (a shell reads single bytes); under the handle's lock */
};

static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static GHashTable *open_watchers;

/* --- waking ---------------------------------------------------------------------------- */

/* Answers a read from what there is; false if there is nothing yet. */
static bool try_read(fuse_req_t req, struct watcher *w, size_t size)
{
	if (w->rest->len || dm_event_read(w->reader, w->rest, size)) {
		size = MIN(size, w->rest->len);
		fuse_reply_buf(req, w->rest->str, size);
		g_string_erase(w->rest, 0, size);
		return true;
	}
	if (dm_event_ended(w->reader)) {
		fuse_reply_buf(req, NULL, 0);
		return true;
	}
	return false;
}

static bool is_pending(struct watcher *w)
{
	return w->rest->len || dm_event_pending(w->reader);
}

static void rearm(struct watcher *w)
{
	if (w->reads.length || (w->ph && !is_pending(w)))
		dm_event_arm(w->reader);
}

static void read_free(struct watcher *w, struct waiting_read *r)
{
	g_queue_unlink(&w->reads, &r->link);
	dmfs_channel_put(r->channel);
	g_free(r);
}

static void drop_interrupted(struct watcher *w)
{
	GList *l, *next;

	for (l = w->reads.head; l; l = next) {
		struct waiting_read *r = l->data;
		struct dmfs_channel *before;

		next = l->next;
		if (!fuse_req_interrupted(r->req))
			continue;
		before = dmfs_channel_use(r->channel);
		fuse_reply_err(r->req, EINTR);
		dmfs_channel_use(before);
		read_free(w, r);
	}
}

static void wake(void *context)
{
	struct dmfs_handle *h = context;
	struct watcher *w = h->data;
	struct fuse_pollhandle *ph;

	pthread_mutex_lock(&h->lock);
	while (w->reads.length) {
		struct waiting_read *r = w->reads.head->data;
		struct dmfs_channel *before = dmfs_channel_use(r->channel);
		bool done = try_read(r->req, w, r->size);

		dmfs_channel_use(before);
		if (!done)
			break;
		read_free(w, r);
	}
	drop_interrupted(w);
	w->unread = true;
	ph = w->ph;
	w->ph = NULL;
	rearm(w);
	pthread_mutex_unlock(&h->lock);
	if (ph) {
		fuse_lowlevel_notify_poll(ph);
		fuse_pollhandle_destroy(ph);
	}
}

/* --- the two files ------------------------------------------------------------------------ */

static void watch_open(fuse_req_t req, struct dmfs_handle *h, struct fuse_file_info *fi)
{
	struct watcher *w = g_new0(struct watcher, 1);

	w->unread = true;
	w->rest = g_string_new(NULL);
	h->data = w;
	w->reader = dm_event_reader_new(h->device ? h->device->md : NULL, wake, h);
	pthread_mutex_lock(&open_lock);
	if (!open_watchers)
		open_watchers = g_hash_table_new(NULL, NULL);
	g_hash_table_add(open_watchers, w);
	pthread_mutex_unlock(&open_lock);
	fi->direct_io = 1;
	fi->nonseekable = h->file == &dmfs_events_file;
	if (fuse_reply_open(req, fi))
		dmfs_open_failed(req, h, 0);
}

static void watch_release(struct dmfs_handle *h)
{
	struct watcher *w = h->data;

	if (!w)
		return;
	pthread_mutex_lock(&open_lock);
	g_hash_table_remove(open_watchers, w);
	pthread_mutex_unlock(&open_lock);
	dm_event_reader_free(w->reader);
	while (w->reads.length) { /* only when the session has ended */
		struct waiting_read *r = w->reads.head->data;

		fuse_reply_err(r->req, ENODEV);
		read_free(w, r);
	}
	if (w->ph)
		fuse_pollhandle_destroy(w->ph);
	g_string_free(w->rest, TRUE);
	g_free(w);
}

/*
 * A waiting reader was interrupted.  Whether the file is still open cannot be known here but by looking; the answer is
 * given by wake(), for this may be called from within fuse_req_interrupt_func().
 */
static void interrupted(fuse_req_t req, void *data)
{
	pthread_mutex_lock(&open_lock);
	if (g_hash_table_contains(open_watchers, data))
		dm_event_kick(((struct watcher *)data)->reader);
	pthread_mutex_unlock(&open_lock);
}

static void events_read(fuse_req_t req, struct dmfs_handle *h, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct watcher *w = h->data;

	pthread_mutex_lock(&h->lock);
	if (w->reads.length || !try_read(req, w, size)) {
		if (fi->flags & O_NONBLOCK) {
			fuse_reply_err(req, EAGAIN);
		} else {
			struct waiting_read *r = g_new0(struct waiting_read, 1);
			r->req = req;
			r->size = size;
			r->channel = dmfs_channel_get(dmfs_channel_now());
			r->link.data = r;
			g_queue_push_tail_link(&w->reads, &r->link);
			dm_event_arm(w->reader);
			fuse_req_interrupt_func(req, interrupted, w); /* or at once, if it was before */
		}
	}
	pthread_mutex_unlock(&h->lock);
}

static void watch_poll(fuse_req_t req, struct dmfs_handle *h, struct fuse_pollhandle *ph)
{
	struct watcher *w = h->data;
	struct fuse_pollhandle *old = NULL;
	bool ready;

	pthread_mutex_lock(&h->lock);
	if (h->file == &dmfs_events_file)
		ready = is_pending(w);
	else
		ready = w->unread |= dm_event_pending(w->reader);
	if (ph) {
		old = w->ph;
		w->ph = ph;
		if (!ready)
			dm_event_arm(w->reader);
	}
	fuse_reply_poll(req, ready ? POLLIN | POLLRDNORM | POLLPRI : 0);
	pthread_mutex_unlock(&h->lock);
	if (old)
		fuse_pollhandle_destroy(old);
}

/* h->lock is held by the reader of texts. */
static int status_text(struct dmfs_handle *h, GString *out)
{
	struct watcher *w = h->data;
	struct dm_table *t;

	w->unread = false;
	dm_event_skip(w->reader); /* before the status is taken: what comes now is news */
	t = dm_mapped_live(h->device->md);
	if (t)
		dm_table_print(t, DM_STATUS_INFO, out);
	dm_table_unref(t);
	return 0;
}

const struct dmfs_file dmfs_status_file = {
	.name = "status",
	.mode = 0400,
	.read_text = status_text,
	.open = watch_open,
	.poll = watch_poll,
	.release = watch_release,
};

const struct dmfs_file dmfs_events_file = {
	.name = "events",
	.mode = 0400,
	.open = watch_open,
	.read = events_read,
	.poll = watch_poll,
	.release = watch_release,
};
