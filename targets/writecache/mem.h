/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A file as memory, for writecache's type p: mapped, with MAP_SYNC where the file system has it, so that what was
 * written is durable when it has left the CPU's caches; elsewhere msync(2) makes it so.
 *
 * Whoever truncates the file, or fills the disk beneath a sparse one, makes pages vanish: then copies give -EIO.
 *
 * Any thread.  Offsets in bytes, inside what was opened.
 */
#ifndef WRITECACHE_MEM_H
#define WRITECACHE_MEM_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include <dmfs/io.h>

struct wc_mem;

/* -EOPNOTSUPP: the device is no file that can be mapped. */
int wc_mem_open(struct dm_dev *dev, uint64_t bytes, struct wc_mem **out, GError **err);
void wc_mem_close(struct wc_mem *m);
/* Whether it is memory indeed: copies do not wait for a disk. */
bool wc_mem_direct(const struct wc_mem *m);
int wc_mem_read(struct wc_mem *m, uint64_t at, const struct iovec *iov, int iovcnt);
int wc_mem_write(struct wc_mem *m, uint64_t at, const struct iovec *iov, int iovcnt);
/* What was written before the call is durable. */
int wc_mem_persist(struct wc_mem *m);

#endif
