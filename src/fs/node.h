/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What node.c and open.c have of each other: the operations on open files and directories. */
#ifndef DMFS_FS_NODE_H
#define DMFS_FS_NODE_H

#include "fs.h"

void dmfs_opened_init(void);
unsigned dmfs_count_files(const struct dmfs_file *const *files);

void dmfs_op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void dmfs_op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void dmfs_op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
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
