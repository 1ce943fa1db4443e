/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Open files.
 *
 * Requests of an open file find everything in its handle; nothing here looks an inode up.
 */
#include <errno.h>
#include <poll.h>
#include <sys/stat.h>

#include "node.h"

static void handle_free(struct dmfs_handle *h)
{
	dmfs_text_free(h->text);
	dmfs_text_free(h->partial);
	pthread_mutex_destroy(&h->lock);
	dmfs_device_put(h->device);
	g_free(h);
}

/*
 * The answer to a request may bring the RELEASE before the answerer has let go of the handle.  Image requests see to
 * that themselves: their answer is the last they do.
 */
static void handle_get(struct dmfs_handle *h)
{
	atomic_fetch_add_explicit(&h->refs, 1, memory_order_relaxed);
}

static void handle_put(void *p)
{
	struct dmfs_handle *h = p;

	if (atomic_fetch_sub_explicit(&h->refs, 1, memory_order_acq_rel) != 1)
		return;
	if (h->file->release)
		h->file->release(h);
	handle_free(h);
}

static void handle_close(struct dmfs_handle *h)
{
	dmfs_opened_remove(h->mount, h);
	handle_put(h);
}

void dmfs_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	const struct dmfs_file *file;
	struct dmfs_device *d;
	struct dmfs_handle *h;

	if (!dmfs_inode(ino, &file, &d)) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	if (!file || (d && dm_mapped_removed(d->md))) {
		dmfs_device_put(d);
		fuse_reply_err(req, file ? ENOENT : EISDIR);
		return;
	}
	h = g_new0(struct dmfs_handle, 1);
	h->file = file;
	h->device = d;
	h->mount = dmfs_mount_of(req);
	h->flags = fi->flags;
	atomic_init(&h->refs, 1);
	pthread_mutex_init(&h->lock, NULL);
	fi->fh = (uintptr_t)h;
	dmfs_opened_add(h->mount, h, handle_put);
	if (file->open) {
		file->open(req, h, fi);
		return;
	}
	fi->direct_io = 1;
	if (fuse_reply_open(req, fi))
		dmfs_open_failed(req, h, 0);
}

void dmfs_open_failed(fuse_req_t req, struct dmfs_handle *h, int error)
{
	if (!error) {
		handle_close(h);
		return;
	}
	dmfs_opened_remove(h->mount, h);
	handle_free(h);
	fuse_reply_err(req, -error);
}

static struct dmfs_handle *handle_of(struct fuse_file_info *fi)
{
	return (struct dmfs_handle *)(uintptr_t)fi->fh;
}

void dmfs_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct dmfs_handle *h = handle_of(fi);

	if (h->file->answers_last) {
		h->file->read(req, h, size, off, fi);
		return;
	}
	handle_get(h);
	if (h->file->read)
		h->file->read(req, h, size, off, fi);
	else
		dmfs_text_read(req, h, size, off);
	handle_put(h);
}

void dmfs_op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
		     struct fuse_file_info *fi)
{
	struct dmfs_handle *h = handle_of(fi);

	if (h->file->answers_last) {
		h->file->write(req, h, buf, size, off, fi);
		return;
	}
	handle_get(h);
	if (h->file->write)
		h->file->write(req, h, buf, size, off, fi);
	else if (h->file->write_text)
		dmfs_text_write(req, h, buf, size, off);
	else
		fuse_reply_err(req, EINVAL);
	handle_put(h);
}

void dmfs_op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct dmfs_handle *h = handle_of(fi);

	if (h->file->flush)
		h->file->flush(req, h);
	else if (h->file->long_text)
		dmfs_text_flush(req, h);
	else
		fuse_reply_err(req, 0);
}

void dmfs_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct dmfs_handle *h = handle_of(fi);

	if (h->file->long_text)
		dmfs_text_release(req, h);
	handle_close(h);
	fuse_reply_err(req, 0);
}

void dmfs_op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	struct dmfs_handle *h = handle_of(fi);

	if (h->file->fsync)
		h->file->fsync(req, h);
	else
		fuse_reply_err(req, 0);
}

void dmfs_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len, struct fuse_file_info *fi)
{
	struct dmfs_handle *h = handle_of(fi);

	if (h->file->fallocate)
		h->file->fallocate(req, h, mode, off, len);
	else
		fuse_reply_err(req, EOPNOTSUPP);
}

void dmfs_op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi)
{
	struct dmfs_handle *h = handle_of(fi);

	if (h->file->lseek)
		h->file->lseek(req, h, off, whence);
	else
		fuse_reply_err(req, EINVAL);
}

void dmfs_op_poll(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct fuse_pollhandle *ph)
{
	struct dmfs_handle *h = handle_of(fi);

	if (h->file->poll) {
		handle_get(h);
		h->file->poll(req, h, ph);
		handle_put(h);
		return;
	}
	if (ph)
		fuse_pollhandle_destroy(ph);
	fuse_reply_poll(req, POLLIN | POLLRDNORM | POLLOUT | POLLWRNORM);
}
