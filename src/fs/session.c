/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A session with the kernel: what it is asked for at the start, and which function does what. */
#include "mount.h"
#include "node.h"

/*
 * How many requests that nobody waits for (asynchronous I/O, read-ahead, write-back, RELEASE) the kernel gives us at a
 * time, of all images together: those that wait for one image must not hold up others.  So as many as can be; of a user
 * without privileges the kernel takes it as max_user_bgreq of its module fuse.  What bounds memory is dmfs_buf_full().
 */
#define MAX_BACKGROUND 65535u

struct dmfs_options dmfs_options;

unsigned dmfs_mount_of(fuse_req_t req)
{
	return ((struct dmfs_mount *)fuse_req_userdata(req))->nr;
}

static void op_init(void *userdata, struct fuse_conn_info *conn)
{
	conn->max_write = DMFS_MAX_WRITE;
	conn->max_readahead = DMFS_MAX_WRITE;
	conn->max_read = dmfs_options.max_read; /* libfuse asks that it is said here as well */
	conn->max_background = MAX_BACKGROUND;
	conn->congestion_threshold = MAX_BACKGROUND / 4 * 3;
	conn->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE |
				  FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_READDIRPLUS);
	conn->want |= conn->capable & (FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO | FUSE_CAP_PARALLEL_DIROPS |
				       FUSE_CAP_EXPLICIT_INVAL_DATA);
	if (dmfs_options.writeback)
		conn->want |= conn->capable & FUSE_CAP_WRITEBACK_CACHE;
}

const struct fuse_lowlevel_ops dmfs_ops = {
	.init = op_init,
	.lookup = dmfs_op_lookup,
	.forget = dmfs_op_forget,
	.forget_multi = dmfs_op_forget_multi,
	.getattr = dmfs_op_getattr,
	.setattr = dmfs_op_setattr,
	.mkdir = dmfs_op_mkdir,
	.rmdir = dmfs_op_rmdir,
	.unlink = dmfs_op_unlink,
	.create = dmfs_op_create,
	.rename = dmfs_op_rename,
	.opendir = dmfs_op_opendir,
	.readdir = dmfs_op_readdir,
	.releasedir = dmfs_op_releasedir,
	.open = dmfs_op_open,
	.read = dmfs_op_read,
	.write = dmfs_op_write,
	.flush = dmfs_op_flush,
	.release = dmfs_op_release,
	.fsync = dmfs_op_fsync,
	.fallocate = dmfs_op_fallocate,
	.lseek = dmfs_op_lseek,
	.poll = dmfs_op_poll,
	.statfs = dmfs_op_statfs,
};

/*
 * Images alone.  Without poll the kernel learns at the first that there is none, and takes every file for ready from
 * then on; io_uring asks before each request.
 */
const struct fuse_lowlevel_ops dmfs_images_ops = {
	.init = op_init,
	.lookup = dmfs_images_lookup,
	.forget = dmfs_op_forget,
	.forget_multi = dmfs_op_forget_multi,
	.getattr = dmfs_op_getattr,
	.setattr = dmfs_op_setattr,
	.mkdir = dmfs_images_mkdir,
	.rmdir = dmfs_images_rmdir,
	.unlink = dmfs_op_unlink,
	.create = dmfs_op_create,
	.rename = dmfs_images_rename,
	.opendir = dmfs_op_opendir,
	.readdir = dmfs_op_readdir,
	.releasedir = dmfs_op_releasedir,
	.open = dmfs_op_open,
	.read = dmfs_op_read,
	.write = dmfs_op_write,
	.flush = dmfs_op_flush,
	.release = dmfs_op_release,
	.fsync = dmfs_op_fsync,
	.fallocate = dmfs_op_fallocate,
	.lseek = dmfs_op_lseek,
	.statfs = dmfs_op_statfs,
};
