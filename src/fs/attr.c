/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Attributes of files and directories.
 *
 * Names are never cached by the kernel (entry timeout 0): a device may come or
 * go by `control` as well as by mkdir.  An image's attributes are cached until a swap says otherwise.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "core/state.h"
#include "node.h"

#define IMAGE_ATTR_SECONDS (24.0 * 3600)

static struct timespec mounted;

void dmfs_attr_init(void)
{
	clock_gettime(CLOCK_REALTIME, &mounted);
}

void dmfs_fill_attr(fuse_ino_t ino, const struct dmfs_file *file, struct dmfs_device *d, struct stat *st)
{
	memset(st, 0, sizeof *st);
	st->st_ino = ino;
	st->st_uid = d ? d->uid : dmfs_options.uid;
	st->st_gid = d ? d->gid : dmfs_options.gid;
	st->st_nlink = file ? 1 : 2;
	st->st_blksize = 4096;
	st->st_mode = file ? S_IFREG | file->mode : S_IFDIR | 0755;
	st->st_atim = st->st_mtim = st->st_ctim = d ? d->created : mounted;
	if (file == &dmfs_image_file) {
		uint64_t sectors = dm_mapped_sectors(d->md);

		st->st_mode = S_IFREG | d->image_mode;
		st->st_size = (off_t)(sectors << DM_SECTOR_SHIFT);
		st->st_blocks = (blkcnt_t)sectors;
	} else if (d) { /* an image can be given away, the rest stays the owner's */
		st->st_uid = dmfs_options.uid;
		st->st_gid = dmfs_options.gid;
	}
}

double dmfs_attr_timeout(const struct dmfs_file *file)
{
	return file == &dmfs_image_file ? IMAGE_ATTR_SECONDS : 0;
}

/* Answers a lookup (or mkdir); takes the reference to the device's md. */
void dmfs_reply_entry(fuse_req_t req, fuse_ino_t ino, const struct dmfs_file *file, struct dmfs_device *d)
{
	struct fuse_entry_param e = {.ino = ino, .attr_timeout = dmfs_attr_timeout(file)};

	dmfs_fill_attr(ino, file, d, &e.attr);
	if (d)
		dmfs_lookup_count(d, 1);
	if (fuse_reply_entry(req, &e) && d) /* interrupted: the kernel does not know it */
		dmfs_lookup_count(d, -1);
	dmfs_device_put(d);
}

void dmfs_op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	const struct dmfs_file *file;
	struct dmfs_device *d;
	struct stat st;

	if (!dmfs_inode(ino, &file, &d)) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	dmfs_fill_attr(ino, file, d, &st);
	fuse_reply_attr(req, &st, dmfs_attr_timeout(file));
	dmfs_device_put(d);
}

static int change_image(struct dmfs_device *d, const struct stat *st, int to_set)
{
	struct dmfs_device before = *d;
	int error;

	if (to_set & FUSE_SET_ATTR_MODE)
		d->image_mode = st->st_mode & 0777;
	if (to_set & FUSE_SET_ATTR_UID)
		d->uid = st->st_uid;
	if (to_set & FUSE_SET_ATTR_GID)
		d->gid = st->st_gid;
	error = dm_state_save(d->md, NULL);
	if (error) {
		d->image_mode = before.image_mode;
		d->uid = before.uid;
		d->gid = before.gid;
	}
	return error;
}

void dmfs_op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *st, int to_set, struct fuse_file_info *fi)
{
	const struct dmfs_file *file;
	struct dmfs_device *d;
	struct stat now;
	int error = 0;

	if (!dmfs_inode(ino, &file, &d)) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	if ((to_set & FUSE_SET_ATTR_SIZE) && file == &dmfs_image_file &&
	    (uint64_t)st->st_size > dm_mapped_sectors(d->md) << DM_SECTOR_SHIFT)
		error = -ENOSPC; /* who asks for more would count on it */
	if (!error && (to_set & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID))) {
		if (file == &dmfs_image_file)
			error = change_image(d, st, to_set);
		else
			error = -EPERM; /* control files are the owner's alone */
	}
	if (!error && (to_set & FUSE_SET_ATTR_SIZE) && file && file->truncate && st->st_size == 0)
		file->truncate(fi ? (struct dmfs_handle *)(uintptr_t)fi->fh : NULL, d, req);
	/* To its size or less: a device keeps its own; so do the times. */
	if (error) {
		fuse_reply_err(req, -error);
	} else {
		dmfs_fill_attr(ino, file, d, &now);
		fuse_reply_attr(req, &now, dmfs_attr_timeout(file));
	}
	dmfs_device_put(d);
}
