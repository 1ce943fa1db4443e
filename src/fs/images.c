/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A directory of images (-o images=DIR): a file for each device, by its name, and nothing else.
 *
 * Its files are the tree's images, by the same inode numbers.  Devices are made, renamed and removed in the tree.
 */
#include <errno.h>
#include <string.h>

#include "node.h"

void dmfs_images_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct dm_mapped *md = parent == FUSE_ROOT_ID ? dm_find_name(name) : NULL;
	struct dmfs_device *d;

	if (!md) {
		fuse_reply_err(req, strlen(name) > DM_NAME_MAX ? ENAMETOOLONG : ENOENT);
		return;
	}
	d = dmfs_device_of(md);
	dmfs_reply_entry(req, dmfs_ino(d, DMFS_IMAGE_KIND), &dmfs_image_file, d);
}

void dmfs_images_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	fuse_reply_err(req, EPERM);
}

void dmfs_images_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	fuse_reply_err(req, EPERM);
}

void dmfs_images_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent, const char *newname,
			unsigned flags)
{
	fuse_reply_err(req, EPERM);
}
