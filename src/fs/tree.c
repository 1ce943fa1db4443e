/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The tree: looking up, making, removing and renaming. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "node.h"

static const struct dmfs_file *find_file(const struct dmfs_file *const *files, const char *name)
{
	for (unsigned i = 0; files[i]; i++)
		if (!strcmp(files[i]->name, name))
			return files[i];
	return NULL;
}

void dmfs_op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	const struct dmfs_file *file = NULL;
	struct dmfs_device *d = NULL;

	if (parent == FUSE_ROOT_ID) {
		struct dm_mapped *md;

		file = find_file(dmfs_root_files, name);
		if (file) {
			dmfs_reply_entry(req, 1 + dmfs_kind_of(dmfs_root_files, file), file, NULL);
			return;
		}
		md = dm_find_name(name);
		if (!md) {
			fuse_reply_err(req, strlen(name) > DM_NAME_MAX ? ENAMETOOLONG : ENOENT);
			return;
		}
		d = dmfs_device_of(md);
		dmfs_reply_entry(req, dmfs_ino(d, 0), NULL, d);
		return;
	}
	if (!dmfs_inode(parent, &file, &d) || file || !d || !(file = find_file(dmfs_device_files, name))) {
		dmfs_device_put(d);
		fuse_reply_err(req, ENOENT);
		return;
	}
	dmfs_reply_entry(req, dmfs_ino(d, dmfs_kind_of(dmfs_device_files, file)), file, d);
}

void dmfs_op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	g_autoptr(GError) err = NULL;
	struct dmfs_device *d;
	struct dm_mapped *md;
	int error;

	if (parent != FUSE_ROOT_ID) {
		fuse_reply_err(req, EPERM);
		return;
	}
	error = dm_create(name, -1, &md, &err);
	if (error) {
		dm_log_err("mkdir: %s", err->message);
		fuse_reply_err(req, -error);
		return;
	}
	d = dmfs_device_of(md);
	dmfs_reply_entry(req, dmfs_ino(d, 0), NULL, d);
}

void dmfs_op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct dm_mapped *md = parent == FUSE_ROOT_ID ? dm_find_name(name) : NULL;
	g_autoptr(GError) err = NULL;
	int error;

	if (!md) {
		bool is_file = find_file(parent == FUSE_ROOT_ID ? dmfs_root_files : dmfs_device_files, name);

		fuse_reply_err(req, is_file ? ENOTDIR : ENOENT);
		return;
	}
	error = dmfs_remove(md, &err);
	if (error)
		dm_log_err("rmdir: %s", err->message);
	fuse_reply_err(req, -error);
	dm_mapped_unref(md);
}

void dmfs_op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent, const char *newname,
		      unsigned flags)
{
	struct dm_mapped *md;
	g_autoptr(GError) err = NULL;
	int error;

	if (parent != FUSE_ROOT_ID || newparent != FUSE_ROOT_ID || find_file(dmfs_root_files, name) ||
	    (flags & ~(unsigned)RENAME_NOREPLACE)) {
		fuse_reply_err(req, (flags & ~(unsigned)RENAME_NOREPLACE) ? EINVAL : EPERM);
		return;
	}
	md = dm_find_name(name);
	if (!md) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	error = dm_rename(md, newname, &err);
	if (error)
		dm_log_err("rename: %s", err->message);
	fuse_reply_err(req, -error);
	dm_mapped_unref(md);
}

void dmfs_op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	fuse_reply_err(req, EPERM);
}

void dmfs_op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	fuse_reply_err(req, EPERM);
}

atomic_int dmfs_statfs_pid;

void dmfs_op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	struct statvfs st = {.f_bsize = 4096, .f_frsize = 4096, .f_namemax = DM_NAME_MAX};

	atomic_store(&dmfs_statfs_pid, fuse_req_ctx(req)->pid);
	fuse_reply_statfs(req, &st);
}
