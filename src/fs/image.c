/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The image: FUSE requests become bios.
 *
 * A request that is aligned to the logical block size is one bio (request.c).
 *
 * Unaligned reads read the blocks around.  Unaligned writes go the slow way of rmw.c, and so do aligned writes while
 * there is one: see there.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "request.h"

#include <dmfs/container_of.h>

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

/* --- writes ----------------------------------------------------------------------------- */

/* A write by the way of rmw.c has its own copy of the data. */
struct slow_write {
	struct dmfs_rmw rmw;
	fuse_req_t req;
	struct dmfs_handle *h;
	struct dmfs_channel *channel;
	int error;
	struct dmfs_change change;
	struct dm_origin origin;
	struct dmfs_waiting waiting; /* references: who starts it, its own until it is answered, that of who gives it up */
};

static void slow_write_give_up(struct dmfs_waiting *waiting)
{
	struct slow_write *w = container_of(waiting, struct slow_write, waiting);

	dmfs_rmw_cancel(&w->rmw);
	dm_origin_cancel(&w->origin);
}

static void slow_write_free(struct dmfs_waiting *waiting)
{
	struct slow_write *w = container_of(waiting, struct slow_write, waiting);
	struct dmfs_channel *channel = w->channel;

	dmfs_buf_uncharge(w->rmw.len);
	dmfs_rmw_clear(&w->rmw);
	dm_origin_destroy(&w->origin);
	g_free(w);
	dmfs_loop_answered(channel);
}

static void slow_write_done(struct dmfs_change *change)
{
	struct slow_write *w = container_of(change, struct slow_write, change);
	struct dmfs_channel *before = dmfs_channel_use(w->channel);

	if (w->error)
		fuse_reply_err(w->req, -w->error);
	else
		fuse_reply_write(w->req, w->rmw.len);
	dmfs_channel_use(before);
	dmfs_waiting_put(&w->waiting);
}

static void slow_write_end(struct dmfs_rmw *rmw, int error)
{
	struct slow_write *w = (struct slow_write *)rmw;

	w->error = error;
	dmfs_change_end(&w->change, error);
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
	request_uses(h);
	w = g_new0(struct slow_write, 1);
	w->req = req;
	w->h = h;
	w->channel = dmfs_loop_later();
	dmfs_buf_charge(NULL, size);
	dmfs_change_begin(&w->change, h, DM_WRITE, (uint64_t)off, size, slow_write_done);
	dm_origin_init(&w->origin);
	w->rmw.origin = &w->origin;
	dmfs_waiting_init(&w->waiting, fuse_req_ctx(req)->pid, slow_write_give_up, slow_write_free);
	dmfs_waiting_get(&w->waiting);
	dmfs_waiting_list(&w->waiting);
	dmfs_rmw_start(&w->rmw, image, buf, (uint64_t)off, size, flags, slow_write_end);
	dmfs_waiting_put(&w->waiting);
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
	/*
	 * It may be all done here, and take hours: others read requests meanwhile, that of the caller's death among
	 * them.
	 */
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
		atomic_fetch_add(&d->cached_opens[h->mount], 1);
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
		atomic_fetch_sub(&h->device->cached_opens[h->mount], 1);
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
