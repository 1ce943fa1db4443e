/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Attributes of files and directories.
 *
 * Names are never cached by the kernel (entry timeout 0): a device may come or go by `control` as well as by mkdir.
 * Nor are attributes: what an image has provisioned changes by other images, too.  But with -o writeback the kernel
 * asks for them with each write.
 */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "core/events.h"
#include "core/state.h"
#include "node.h"

#define WRITEBACK_ATTR_SECONDS 1.0
#define SOME_BLOCKS 8 /* of 512 bytes */

static struct timespec mounted;

void dmfs_attr_init(void)
{
	clock_gettime(CLOCK_REALTIME, &mounted);
}

/* The root's times tell who keeps a picture of the devices whether it is still true. */
static struct timespec last_change(void)
{
	struct timespec t = dm_devices_changed();

	return t.tv_sec > mounted.tv_sec || (t.tv_sec == mounted.tv_sec && t.tv_nsec > mounted.tv_nsec) ? t : mounted;
}

/*
 * What is provisioned.  Programs take a file without blocks for all zeroes and do not read it, so there are some while
 * the kernel may have data that it has not yet handed down.
 */
static uint64_t image_blocks(struct dmfs_device *d, uint64_t sectors)
{
	uint64_t blocks = dm_dev_provisioned(&d->md->dev, 0, sectors);
	bool maybe_more = dmfs_options.writeback || dmfs_cached_opens(d);

	return !blocks && maybe_more ? MIN(SOME_BLOCKS, sectors) : blocks;
}

void dmfs_fill_attr(fuse_ino_t ino, const struct dmfs_file *file, struct dmfs_device *d, struct stat *st)
{
	memset(st, 0, sizeof *st);
	st->st_ino = ino;
	st->st_uid = dmfs_options.uid;
	st->st_gid = dmfs_options.gid;
	st->st_nlink = file ? 1 : 2;
	st->st_blksize = 4096;
	st->st_mode = file ? S_IFREG | file->mode : S_IFDIR | 0755;
	st->st_atim = st->st_mtim = st->st_ctim = d ? d->created : mounted;
	if (ino == FUSE_ROOT_ID)
		st->st_mtim = st->st_ctim = last_change();
	if (file == &dmfs_image_file) {
		uint64_t sectors = dm_mapped_sectors(d->md);
		struct dm_owner owner;

		dm_mapped_owner(d->md, &owner); /* an image can be given away, the rest stays the owner's */
		st->st_mode = S_IFREG | owner.mode;
		st->st_uid = owner.uid;
		st->st_gid = owner.gid;
		st->st_size = (off_t)(sectors << DM_SECTOR_SHIFT);
		st->st_blocks = (blkcnt_t)image_blocks(d, sectors);
	}
}

double dmfs_attr_timeout(const struct dmfs_file *file)
{
	return file == &dmfs_image_file && dmfs_options.writeback ? WRITEBACK_ATTR_SECONDS : 0;
}

/* Answers a lookup (or mkdir); takes the reference to the device's md. */
void dmfs_reply_entry(fuse_req_t req, fuse_ino_t ino, const struct dmfs_file *file, struct dmfs_device *d)
{
	struct fuse_entry_param e = {.ino = ino, .attr_timeout = dmfs_attr_timeout(file)};
	unsigned mount = dmfs_mount_of(req);

	dmfs_fill_attr(ino, file, d, &e.attr);
	if (d)
		dmfs_lookup_count(d, mount, 1);
	if (fuse_reply_entry(req, &e) && d) /* interrupted: the kernel does not know it */
		dmfs_lookup_count(d, mount, -1);
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
	struct dm_owner to = {st->st_mode & 0777, st->st_uid, st->st_gid};
	unsigned what = 0;

	if (to_set & FUSE_SET_ATTR_MODE)
		what |= DM_CHANGE_MODE;
	if (to_set & FUSE_SET_ATTR_UID)
		what |= DM_CHANGE_UID;
	if (to_set & FUSE_SET_ATTR_GID)
		what |= DM_CHANGE_GID;
	return dm_mapped_set_owner(d->md, what, &to, NULL);
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
