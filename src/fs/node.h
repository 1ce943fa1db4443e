/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the rooms of the tree have of each other: inode.c, attr.c, tree.c, listing.c, opened.c, open.c, and session.c,
 * which hands their operations to libfuse.
 */
#ifndef DMFS_FS_NODE_H
#define DMFS_FS_NODE_H

#include "fs.h"

/* inode.c */
void dmfs_inodes_init(void);
unsigned dmfs_count_files(const struct dmfs_file *const *files);
void dmfs_device_freed(struct dm_mapped *md);
/* The inode of a device's image if the kernel knows the device by this connection, else 0. */
fuse_ino_t dmfs_known_image(struct dm_mapped *md, unsigned mount);
/* A connection has ended: its kernel's counts are void. */
void dmfs_forget_all(unsigned mount);
void dmfs_op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup);
void dmfs_op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets);

/* attr.c */
void dmfs_attr_init(void);
void dmfs_fill_attr(fuse_ino_t ino, const struct dmfs_file *file, struct dmfs_device *d, struct stat *st);
double dmfs_attr_timeout(const struct dmfs_file *file);
/* Answers a lookup (or mkdir); takes the reference to the device's md. */
void dmfs_reply_entry(fuse_req_t req, fuse_ino_t ino, const struct dmfs_file *file, struct dmfs_device *d);
void dmfs_op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void dmfs_op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *st, int to_set, struct fuse_file_info *fi);

/* tree.c */
void dmfs_op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void dmfs_op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void dmfs_op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void dmfs_op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent, const char *newname,
		    unsigned flags);
void dmfs_op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi);
void dmfs_op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
extern atomic_int dmfs_statfs_pid; /* who has asked last */
void dmfs_op_statfs(fuse_req_t req, fuse_ino_t ino);

/* images.c */
void dmfs_images_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void dmfs_images_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void dmfs_images_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void dmfs_images_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent, const char *newname,
			unsigned flags);

/* opened.c */
void dmfs_opened_init(void);
/* p is open; destroy frees it if it still is at the end. */
void dmfs_opened_add(unsigned mount, void *p, GDestroyNotify destroy);
void dmfs_opened_remove(unsigned mount, void *p);

/* listing.c */
void dmfs_op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void dmfs_op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void dmfs_op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);

/* open.c */
void dmfs_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void dmfs_op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void dmfs_op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off, struct fuse_file_info *fi);
void dmfs_op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void dmfs_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void dmfs_op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void dmfs_op_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t off, off_t len, struct fuse_file_info *fi);
void dmfs_op_lseek(fuse_req_t req, fuse_ino_t ino, off_t off, int whence, struct fuse_file_info *fi);
void dmfs_op_poll(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct fuse_pollhandle *ph);

#endif
