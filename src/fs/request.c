/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A request for an image as a bio.
 *
 * The bio's data is in the worker's own buffer, and so is the request itself.  If the bio has not ended when
 * dm_submit() returns, the buffer stays with it and the worker takes another; the request is listed as waiting then
 * (waiting.h), or earlier, when the worker is about to wait inside dm_submit().  Who drops the last reference cleans
 * up.
 *
 * Whoever asked may be dying.  What is held ends with EINTR.  A read or a FLUSH that is under way is answered at once;
 * it is an orphan then: nobody takes what it brings, its buffer counts as data that waits, and the device counts as
 * open until it has ended, so that it is not removed beneath.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>

#include "core/stats.h"
#include "request.h"

#include <dmfs/container_of.h>
#include <dmfs/spread.h>

#define LARGE_SECTORS 1024u   /* reads of this are worth cutting */
#define PART_SECTORS 512u     /* into parts of this */
#define COPY_BYTES_PER_NS 12u /* how fast a core copies */
#define ORPHAN_BYTES 8192u    /* what keeping a request costs besides its data */

G_STATIC_ASSERT(sizeof(struct request) <= sizeof(((struct dmfs_buf *)NULL)->request));

static _Thread_local struct request *submitting;

/* --- answers ------------------------------------------------------------------------- */

static void answer(struct request *r)
{
	struct dmfs_channel *before = dmfs_channel_use(r->channel);
	int error = r->bio.error;

	if (error)
		fuse_reply_err(r->req, -error);
	else if (r->bio.op == DM_READ)
		fuse_reply_buf(r->req, r->reply, r->reply_len);
	else if (r->bio.op == DM_WRITE)
		fuse_reply_write(r->req, r->reply_len);
	else
		fuse_reply_err(r->req, 0);
	dmfs_channel_use(before);
}

static void request_done(struct request *r)
{
	if (r->waiting.unseen)
		dmfs_waiting_unlist(&r->waiting);
	if (!atomic_exchange(&r->answered, true))
		answer(r);
	dmfs_waiting_put(&r->waiting);
}

static void change_done(struct dmfs_change *c)
{
	request_done(container_of(c, struct request, change));
}

static void request_end(struct dm_bio *bio)
{
	struct request *r = bio->private;

	if (r->gated)
		dm_gate_exit(&r->h->device->image->writes);
	if (dm_op_is_write(bio->op))
		dmfs_change_end(&r->change, bio->error);
	else
		request_done(r);
}

/* --- requests that wait ----------------------------------------------------------------- */

static void release(struct request *r)
{
	free(r->bounce);
	dm_origin_destroy(&r->origin);
	dmfs_loop_release(r->buf, r->channel);
}

/* The close may remove the device, which waits for its I/O: not in a thread that ends some. */
static void close_orphan(struct dm_work *work)
{
	struct request *r = container_of(work, struct request, work);
	struct dm_mapped *md = r->orphan_of;

	release(r);
	dm_mapped_close(md);
	dm_mapped_unref(md);
}

static struct dm_wq *orphans;

static void make_orphans(void)
{
	orphans = dm_wq_new("orphans", 8);
}

static void request_free(struct dmfs_waiting *w)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct request *r = container_of(w, struct request, waiting);

	if (!r->orphan_of) {
		release(r);
		return;
	}
	pthread_once(&once, make_orphans);
	r->work = (struct dm_work){.fn = close_orphan};
	dm_wq_queue(orphans, &r->work);
}

/* Answers a read or FLUSH that goes on.  Until it is answered its handle, and so the device, is there. */
static void orphan(struct request *r)
{
	size_t bytes = ORPHAN_BYTES + (r->bio.op == DM_READ ? r->iov.iov_len : 0);
	struct dm_mapped *md;

	if (dmfs_buf_full(bytes) || atomic_exchange(&r->answered, true))
		return;
	md = r->h->device->md;
	if (!dm_mapped_open(md))
		r->orphan_of = dm_mapped_ref(md);
	dmfs_buf_charge(r->buf, bytes);
	struct dmfs_channel *before = dmfs_channel_use(r->channel);
	fuse_reply_err(r->req, EINTR);
	dmfs_channel_use(before);
}

static void give_up(struct dmfs_waiting *w)
{
	struct request *r = container_of(w, struct request, waiting);

	dm_origin_cancel(&r->origin);
	if (r->bio.op == DM_READ || r->bio.op == DM_FLUSH)
		orphan(r);
}

void dmfs_request_blocks(void)
{
	struct request *r = submitting;

	if (!r || r->listed_early)
		return;
	r->listed_early = true;
	dmfs_waiting_list(&r->waiting);
}

/* --- submitting --------------------------------------------------------------------------- */

void request_uses(struct dmfs_handle *h)
{
	if (atomic_load_explicit(&h->closing, memory_order_relaxed))
		dmfs_closing_not(h);
}

struct request *request_new(fuse_req_t req, struct dmfs_handle *h, enum dm_op op, uint64_t offset, uint64_t bytes)
{
	struct dmfs_buf *buf = dmfs_loop_buf();
	struct request *r = (struct request *)buf->request;

	request_uses(h);
	r->req = req;
	r->h = h;
	r->channel = dmfs_channel_now();
	atomic_init(&r->answered, false);
	r->orphan_of = NULL;
	r->buf = buf;
	r->bounce = NULL;
	r->gated = r->listed_early = false;
	if (dm_op_is_write(op))
		dmfs_change_begin(&r->change, h, op, offset, bytes, change_done);
	dm_origin_init(&r->origin);
	dmfs_waiting_init(&r->waiting, fuse_req_ctx(req)->pid, give_up, request_free);
	if (r->waiting.tid <= 0 && !dm_op_has_data(op) && op != DM_FLUSH)
		r->waiting.unseen = req;
	r->bio = (struct dm_bio){
		.op = op,
		.dev = &h->device->md->dev,
		.sector = offset >> DM_SECTOR_SHIFT,
		.sectors = bytes >> DM_SECTOR_SHIFT,
		.iov = &r->iov,
		.iovcnt = dm_op_has_data(op),
		.end = request_end,
		.private = r,
		.origin = &r->origin,
	};
	return r;
}

/*
 * A large read goes in pieces that other cores help with: most of its time is copying, out of the page cache and back
 * to the reader.  Not while there are statistics: they count reads.
 */
struct large_read {
	struct dm_parts parts; /* first */
	struct part {
		struct dm_bio bio;
		struct iovec iov;
	} part[];
};

static void part_end(struct dm_bio *bio)
{
	dm_parts_end(bio->private, bio->error);
}

static void start_part(void *context, unsigned nr)
{
	struct large_read *large = context;
	const struct dm_bio *whole = large->parts.whole;
	struct part *p = &large->part[nr];
	uint64_t at = (uint64_t)nr * PART_SECTORS, sectors = MIN(PART_SECTORS, whole->sectors - at);

	p->iov = (struct iovec){(char *)whole->iov->iov_base + (at << DM_SECTOR_SHIFT), sectors << DM_SECTOR_SHIFT};
	p->bio = (struct dm_bio){
		.op = DM_READ,
		.dev = whole->dev,
		.sector = whole->sector + at,
		.sectors = sectors,
		.iov = &p->iov,
		.iovcnt = 1,
		.end = part_end,
		.private = &large->parts,
		.origin = whole->origin,
	};
	dm_submit(&p->bio);
}

static void read_in_parts(struct request *r)
{
	unsigned n = (unsigned)((r->bio.sectors + PART_SECTORS - 1) / PART_SECTORS);
	struct large_read *large = g_malloc(sizeof(*large) + n * sizeof(large->part[0]));

	dm_parts_init(&large->parts, &r->bio, n);
	dm_spread_start(&(struct dm_spread_run){start_part, large, n}, true);
}

/* Whether the bio has ended and nobody else has the request: then the buffer stays the worker's. */
static bool is_over(struct request *r)
{
	if (atomic_load_explicit(&r->waiting.refs, memory_order_acquire) > 1)
		return false;
	if (r->listed_early) {
		dmfs_waiting_unlist(&r->waiting);
		if (atomic_load_explicit(&r->waiting.refs, memory_order_acquire) > 1)
			return false;
	}
	return !r->orphan_of;
}

void request_submit(struct request *r)
{
	struct request *outer = submitting;

	dmfs_waiting_get(&r->waiting);
	submitting = r;
	if (!dm_op_has_data(r->bio.op)) /* it may take long without ever waiting */
		dmfs_request_blocks();
	if (r->bio.op == DM_READ && r->bio.sectors >= LARGE_SECTORS && !dm_stats_any() &&
	    dm_spread_pays((r->bio.sectors << DM_SECTOR_SHIFT) / COPY_BYTES_PER_NS))
		read_in_parts(r);
	else
		dm_submit(&r->bio);
	submitting = outer;
	if (is_over(r)) {
		free(r->bounce);
		dm_origin_destroy(&r->origin);
		return;
	}
	dmfs_loop_keep();
	if (r->bio.op == DM_WRITE)
		dmfs_buf_charge(r->buf, r->reply_len);
	if (!r->listed_early)
		dmfs_waiting_list(&r->waiting);
	dmfs_waiting_put(&r->waiting);
}
