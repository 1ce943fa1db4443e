/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The image: FUSE requests become bios.
 *
 * A request that is aligned to the logical block size is one bio whose data is
 * in the worker's own buffer, and so is the request itself.  If the bio has not ended when dm_submit() returns,
 * the buffer stays with it and the worker takes another; who is second, the
 * worker or the end call, cleans up.
 *
 * Unaligned reads read the blocks around.  Unaligned writes go the slow way of
 * rmw.c, and so do aligned writes while there is one: see there.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "caller.h"
#include "core/stats.h"
#include "image.h"
#include "loop.h"

#include <dmfs/container_of.h>
#include <dmfs/spread.h>
#include <dmfs/work.h>

enum { RUNNING, ENDED, KEPT };

#define LARGE_SECTORS 1024u   /* reads of this are worth cutting */
#define PART_SECTORS 512u     /* into parts of this */
#define COPY_BYTES_PER_NS 12u /* how fast a core copies */

/* --- one request --------------------------------------------------------------------- */

struct request {
	struct dm_bio bio;
	struct iovec iov;
	fuse_req_t req;
	struct dmfs_handle *h;
	struct dmfs_channel *channel;
	atomic_int state;
	struct dmfs_buf *buf;
	struct dm_work work;
	char *bounce; /* for an unaligned read that has no room in the buffer */
	struct dmfs_caller *caller; /* of what may take long; else NULL */
	const char *reply;
	size_t reply_len;
	bool gated; /* inside image->writes */
};

G_STATIC_ASSERT(sizeof(struct request) <= sizeof(((struct dmfs_buf *)NULL)->request));

static void answer(struct request *r)
{
	struct dmfs_channel *before = dmfs_channel_use(r->channel);
	int error = r->bio.error;

	dmfs_caller_free(r->caller);
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

/*
 * A direct write beside cached opens: newer kernels drop the pages themselves, older ones do not.  That waits for
 * pages that are being read, for bios perhaps that the thread which ended the write has to end as well, so it is
 * left to a queue.
 */
static bool pages_are_stale(const struct dmfs_handle *h)
{
	return (h->flags & O_DIRECT) && atomic_load_explicit(&h->device->cached_opens, memory_order_relaxed);
}

static void drop_pages(struct dmfs_handle *h, uint64_t offset, uint64_t bytes)
{
	dmfs_invalidate(dmfs_ino(h->device, DMFS_IMAGE_KIND), (off_t)offset,
			(off_t)bytes);
}

static struct dm_wq *drops;

static void make_drops(void)
{
	drops = dm_wq_new("invalidate", 64);
}

static void drop_later(struct dm_work *work, void (*fn)(struct dm_work *))
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, make_drops);
	*work = (struct dm_work){.fn = fn};
	dm_wq_queue(drops, work);
}

static void request_done(struct request *r)
{
	answer(r);
	free(r->bounce);
	if (atomic_exchange_explicit(&r->state, ENDED, memory_order_acq_rel) == KEPT)
		dmfs_loop_release(r->buf, r->channel);
}

static void request_drop_pages(struct dm_work *work)
{
	struct request *r = container_of(work, struct request, work);

	drop_pages(r->h, r->bio.sector << DM_SECTOR_SHIFT, r->bio.sectors << DM_SECTOR_SHIFT);
	request_done(r);
}

static void request_end(struct dm_bio *bio)
{
	struct request *r = bio->private;

	if (r->gated)
		dm_gate_exit(&r->h->device->image->writes);
	if (bio->op == DM_WRITE && !bio->error && pages_are_stale(r->h))
		drop_later(&r->work, request_drop_pages);
	else
		request_done(r);
}

static void in_use(struct dmfs_handle *h)
{
	if (atomic_load_explicit(&h->closing, memory_order_relaxed))
		dmfs_closing_not(h);
}

static struct request *request_new(fuse_req_t req, struct dmfs_handle *h, enum dm_op op, uint64_t offset,
				   uint64_t bytes)
{
	struct dmfs_buf *buf = dmfs_loop_buf();
	struct request *r = (struct request *)buf->request;

	in_use(h);
	r->req = req;
	r->h = h;
	r->channel = dmfs_channel_now();
	atomic_init(&r->state, RUNNING);
	r->buf = buf;
	r->bounce = NULL;
	r->caller = NULL;
	r->gated = false;
	r->bio = (struct dm_bio){
		.op = op,
		.dev = &h->device->md->dev,
		.sector = offset >> DM_SECTOR_SHIFT,
		.sectors = bytes >> DM_SECTOR_SHIFT,
		.iov = &r->iov,
		.iovcnt = dm_op_has_data(op),
		.end = request_end,
		.private = r,
	};
	return r;
}

static void read_in_parts(struct request *r);

static void request_submit(struct request *r)
{
	if (r->bio.op == DM_READ && r->bio.sectors >= LARGE_SECTORS && !dm_stats_any() &&
	    dm_spread_pays((r->bio.sectors << DM_SECTOR_SHIFT) / COPY_BYTES_PER_NS))
		read_in_parts(r);
	else
		dm_submit(&r->bio);
	if (atomic_load_explicit(&r->state, memory_order_acquire) != ENDED) {
		dmfs_loop_keep();
		if (r->bio.op == DM_WRITE)
			dmfs_buf_charge(r->buf, r->reply_len);
		if (atomic_exchange_explicit(&r->state, KEPT, memory_order_acq_rel) != ENDED)
			return;
		dmfs_loop_release(r->buf, r->channel);
	}
}

/* --- reads ------------------------------------------------------------------------------ */

static uint64_t image_bytes(struct dmfs_handle *h)
{
	return atomic_load_explicit(&h->device->image->bytes, memory_order_relaxed);
}

static unsigned image_block(struct dmfs_handle *h)
{
	return atomic_load_explicit(&h->device->image->block, memory_order_relaxed);
}

static void image_read(fuse_req_t req, struct dmfs_handle *h, size_t size, off_t off, struct fuse_file_info *fi)
{
	uint64_t total = image_bytes(h), block = image_block(h), begin, end;
	struct request *r;

	if (off < 0 || (uint64_t)off >= total || !size) {
		fuse_reply_buf(req, NULL, 0);
		return;
	}
	size = MIN(size, total - (uint64_t)off);
	begin = (uint64_t)off & ~(block - 1);
	end = ((uint64_t)off + size + block - 1) & ~(block - 1);
	if (size >= DMFS_LARGE)
		dmfs_loop_large();
	r = request_new(req, h, DM_READ, begin, end - begin);
	if (end - begin > DMFS_DATA_ROOM && posix_memalign((void **)&r->bounce, 4096, end - begin)) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	r->iov = (struct iovec){r->bounce ? r->bounce : r->buf->data, end - begin};
	r->reply = (char *)r->iov.iov_base + ((uint64_t)off - begin);
	r->reply_len = size;
	request_submit(r);
}

/*
 * A large read goes in pieces that other cores help with: most of its time is
 * copying, out of the page cache and back to the reader.  Not while there are statistics: they count reads.
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

/* --- writes ----------------------------------------------------------------------------- */

/* A write by the way of rmw.c has its own copy of the data. */
struct slow_write {
	struct dmfs_rmw rmw;
	fuse_req_t req;
	struct dmfs_handle *h;
	struct dmfs_channel *channel;
	int error;
	struct dm_work work;
};

static void slow_write_done(struct slow_write *w)
{
	struct dmfs_channel *before = dmfs_channel_use(w->channel), *channel = w->channel;

	if (w->error)
		fuse_reply_err(w->req, -w->error);
	else
		fuse_reply_write(w->req, w->rmw.len);
	dmfs_channel_use(before);
	dmfs_buf_uncharge(w->rmw.len);
	dmfs_rmw_clear(&w->rmw);
	g_free(w);
	dmfs_loop_answered(channel);
}

static void slow_write_drop_pages(struct dm_work *work)
{
	struct slow_write *w = container_of(work, struct slow_write, work);

	drop_pages(w->h, w->rmw.offset, w->rmw.len);
	slow_write_done(w);
}

static void slow_write_end(struct dmfs_rmw *rmw, int error)
{
	struct slow_write *w = (struct slow_write *)rmw;

	w->error = error;
	if (!error && pages_are_stale(w->h))
		drop_later(&w->work, slow_write_drop_pages);
	else
		slow_write_done(w);
}

static void image_write(fuse_req_t req, struct dmfs_handle *h, const char *buf, size_t size, off_t off,
			struct fuse_file_info *fi)
{
	struct dmfs_image *image = h->device->image;
	uint64_t total = image_bytes(h), block = image_block(h);
	unsigned flags = fi->flags & (O_DSYNC | O_SYNC) ? DM_FUA : 0;
	struct slow_write *w;

	if (off < 0 || (uint64_t)off >= total) {
		fuse_reply_err(req, ENOSPC);
		return;
	}
	size = MIN(size, total - (uint64_t)off);
	if (dmfs_buf_full(size)) {
		dm_log_err_limit("a write of %zu bytes is refused: %zu MiB of writes wait already (-o max_waiting)", size,
				 dmfs_options.max_waiting >> 20);
		fuse_reply_err(req, ENOMEM);
		return;
	}
	if (!(((uint64_t)off | size) & (block - 1)) && dm_gate_enter(&image->writes)) {
		struct request *r = request_new(req, h, DM_WRITE, (uint64_t)off, size);

		r->bio.flags = flags;
		r->iov = (struct iovec){(void *)buf, size};
		r->reply_len = size;
		r->gated = true;
		request_submit(r);
		return;
	}
	in_use(h);
	w = g_new0(struct slow_write, 1);
	w->req = req;
	w->h = h;
	w->channel = dmfs_loop_later();
	dmfs_buf_charge(NULL, size);
	dmfs_rmw_start(&w->rmw, image, buf, (uint64_t)off, size, flags, slow_write_end);
}

static void image_fsync(fuse_req_t req, struct dmfs_handle *h)
{
	request_submit(request_new(req, h, DM_FLUSH, 0, 0));
}

/* --- ranges ------------------------------------------------------------------------------ */

/* Room for later writes, of whole blocks around the range; there is none beyond the end. */
static int provision(struct dmfs_handle *h, uint64_t *off, uint64_t *len)
{
	uint64_t block = image_block(h), end;

	if (__builtin_add_overflow(*off, *len, &end) || end > image_bytes(h))
		return ENOSPC;
	*off &= ~(block - 1);
	*len = ((end + block - 1) & ~(block - 1)) - *off;
	return 0;
}

/* As blkdev's fallocate: what reaches past the end is cut off with KEEP_SIZE, refused without. */
static int whole_blocks(struct dmfs_handle *h, bool keep_size, uint64_t off, uint64_t *len)
{
	uint64_t total = image_bytes(h), block = image_block(h);

	if (off >= total || (*len > total - off && !keep_size))
		return EINVAL;
	*len = MIN(*len, total - off);
	return (off | *len) & (block - 1) ? EINVAL : 0;
}

static bool takes_discards(struct dmfs_handle *h)
{
	struct dm_limits limits;

	dm_dev_limits(&h->device->md->dev, &limits);
	return limits.max_discard_sectors;
}

/*
 * A block device takes no mode 0; here it is taken, and KEEP_SIZE alone, as what a target can do for it:
 * posix_fallocate(3) would write to each 4 KiB.
 */
static void image_fallocate(fuse_req_t req, struct dmfs_handle *h, int mode, off_t off, off_t len)
{
	uint64_t from = (uint64_t)off, bytes = (uint64_t)len;
	bool keep_size = mode & FALLOC_FL_KEEP_SIZE;
	enum dm_op op = DM_PROVISION;
	struct request *r;
	int error = 0;

	if (!(h->flags & (O_WRONLY | O_RDWR)))
		error = EBADF;
	else if ((mode & FALLOC_FL_PUNCH_HOLE) && !takes_discards(h))
		error = EOPNOTSUPP; /* before the range is looked at: so it can be asked with one beyond the end */
	else if (off < 0 || len <= 0)
		error = EINVAL;
	else if (mode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE))
		op = DM_DISCARD;
	else if ((mode & ~FALLOC_FL_KEEP_SIZE) == FALLOC_FL_ZERO_RANGE)
		op = DM_WRITE_ZEROES;
	else if (mode & ~FALLOC_FL_KEEP_SIZE)
		error = EOPNOTSUPP;
	if (!error)
		error = op == DM_PROVISION ? provision(h, &from, &bytes) : whole_blocks(h, keep_size, from, &bytes);
	if (error) {
		fuse_reply_err(req, error);
		return;
	}
	r = request_new(req, h, op, from, bytes);
	if (op == DM_WRITE_ZEROES)
		r->bio.flags = DM_NOUNMAP;
	r->caller = dmfs_caller_new(req);
	r->bio.origin = dmfs_caller_origin(r->caller);
	/* It may be all done here, and take hours: others read requests meanwhile, that of the caller's death among them. */
	dm_block_begin();
	request_submit(r);
	dm_block_end();
}

static void image_lseek(fuse_req_t req, struct dmfs_handle *h, off_t off, int whence)
{
	struct dm_dev *dev = &h->device->md->dev;
	uint64_t total = image_bytes(h), sectors = total >> DM_SECTOR_SHIFT, sector;

	if (whence != SEEK_DATA && whence != SEEK_HOLE) {
		fuse_reply_err(req, EINVAL);
		return;
	}
	if (off < 0 || (uint64_t)off >= total) {
		fuse_reply_err(req, ENXIO);
		return;
	}
	dm_block_begin();
	for (sector = (uint64_t)off >> DM_SECTOR_SHIFT; sector < sectors;) {
		struct dm_extent e;
		int error = dm_dev_extent(dev, sector, sectors - sector, &e);

		if (error || fuse_req_interrupted(req)) {
			fuse_reply_err(req, error ? -error : EINTR);
			break;
		}
		if (e.data == (whence == SEEK_DATA)) {
			fuse_reply_lseek(req, MAX(off, (off_t)(sector << DM_SECTOR_SHIFT)));
			break;
		}
		sector += e.sectors;
	}
	dm_block_end();
	if (sector >= sectors) {
		if (whence == SEEK_HOLE) /* the end is one */
			fuse_reply_lseek(req, (off_t)total);
		else
			fuse_reply_err(req, ENXIO);
	}
}

/* --- open and close --------------------------------------------------------------------------- */

static void refresh(struct dmfs_image *image)
{
	struct dm_limits limits;

	dm_dev_limits(&image->device->md->dev, &limits);
	image->block = limits.logical_block_size;
	atomic_store(&image->bytes, dm_mapped_sectors(image->device->md) << DM_SECTOR_SHIFT);
}

static void image_open(fuse_req_t req, struct dmfs_handle *h, struct fuse_file_info *fi)
{
	struct dmfs_device *d = h->device;
	bool direct = fi->flags & O_DIRECT;
	int error;

	if ((fi->flags & O_ACCMODE) != O_RDONLY && dmfs_device_readonly(d)) {
		dmfs_open_failed(req, h, -EROFS);
		return;
	}
	error = dm_mapped_open(d->md);
	if (error) {
		dmfs_open_failed(req, h, error);
		return;
	}
	dmfs_closing_opened(d);
	pthread_mutex_lock(&d->lock);
	if (!d->image)
		d->image = dmfs_image_new(d);
	refresh(d->image);
	pthread_mutex_unlock(&d->lock);
	if (!direct)
		atomic_fetch_add(&d->cached_opens, 1);
	/*
	 * Direct writes of one image may go side by side.  libfuse 3.14 has no field for the
	 * flag, so the answer is put together here.
	 */
	struct fuse_open_out out = {
		.fh = (uintptr_t)h,
		.open_flags = direct ? FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES : 0,
	};
	if (dmfs_options.writeback && direct)
		out.open_flags = 0;
	if (fuse_reply_buf(req, (char *)&out, sizeof out))
		dmfs_open_failed(req, h, 0);
}

static void image_release(struct dmfs_handle *h)
{
	if (!(h->flags & O_DIRECT))
		atomic_fetch_sub(&h->device->cached_opens, 1);
	dm_mapped_close(h->device->md);
	dmfs_closing_released(h);
}

static void image_flush(fuse_req_t req, struct dmfs_handle *h)
{
	dmfs_closing_flushed(h);
	fuse_reply_err(req, 0);
}

void dmfs_image_swapped(struct dm_mapped *md)
{
	struct dmfs_device *d = md->front;

	if (!d)
		return;
	pthread_mutex_lock(&d->lock);
	if (d->image)
		refresh(d->image);
	pthread_mutex_unlock(&d->lock);
}

const struct dmfs_file dmfs_image_file = {
	.name = "image",
	.answers_last = true,
	.open = image_open,
	.read = image_read,
	.write = image_write,
	.flush = image_flush,
	.fsync = image_fsync,
	.fallocate = image_fallocate,
	.lseek = image_lseek,
	.release = image_release,
};
