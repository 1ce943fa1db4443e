/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writes to disks end where the disk does: to the kernel it is a file, which would grow.
 *
 * A descriptor of a disk is marked with the disk's end when it is opened, and so are its copies.  What goes beyond is
 * looked at once more, so a mark that is left from another file does no harm.  Descriptors beyond the marks are not
 * looked at, nor are writes that do not go by these calls (mmap, io_uring).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "run.h"

#define PUBLIC __attribute__((visibility("default")))
#define MARKS 4096

static atomic_uint_least64_t ends[MARKS]; /* bytes; 0: not a disk */

void writes_mark(int fd)
{
	struct node n;
	struct stat st;
	bool disk = fd >= 0 && fd < MARKS && node_of_fd(fd, &n) == NODE_DISK && !NEXT(fstat)(fd, &st);

	if (fd >= 0 && fd < MARKS)
		atomic_store_explicit(&ends[fd], disk ? (uint64_t)st.st_size : 0, memory_order_relaxed);
}

static uint64_t end_of(int fd)
{
	return fd >= 0 && fd < MARKS ? atomic_load_explicit(&ends[fd], memory_order_relaxed) : 0;
}

static int copied(int from, int to)
{
	if (to >= 0 && to < MARKS)
		atomic_store_explicit(&ends[to], end_of(from), memory_order_relaxed);
	return to;
}

PUBLIC int dup(int fd)
{
	return copied(fd, NEXT(dup)(fd));
}

PUBLIC int dup2(int fd, int to)
{
	return copied(fd, NEXT(dup2)(fd, to));
}

PUBLIC int dup3(int fd, int to, int flags)
{
	return copied(fd, NEXT(dup3)(fd, to, flags));
}

PUBLIC int fcntl(int fd, int command, ...)
{
	void *arg;
	va_list ap;
	int r;

	va_start(ap, command);
	arg = va_arg(ap, void *);
	va_end(ap);
	r = NEXT(fcntl)(fd, command, arg);
	return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? copied(fd, r) : r;
}

PUBLIC int fcntl64(int fd, int command, ...) __attribute__((alias("fcntl")));

/* How many of len bytes at an offset (-1: where the descriptor is) fit; -1 and ENOSPC if none does. */
static ssize_t fitting(int fd, size_t len, off_t at)
{
	uint64_t end = end_of(fd);
	int before = errno;

	if (!end || !len)
		return (ssize_t)len;
	if (at < 0)
		at = NEXT(lseek)(fd, 0, SEEK_CUR);
	errno = before;
	if (at < 0 || ((uint64_t)at <= end && len <= end - (uint64_t)at))
		return (ssize_t)len;
	writes_mark(fd); /* another file by now, or of another size */
	end = end_of(fd);
	if (!end)
		return (ssize_t)len;
	if ((uint64_t)at >= end) {
		errno = ENOSPC;
		return -1;
	}
	return end - (uint64_t)at < len ? (ssize_t)(end - (uint64_t)at) : (ssize_t)len;
}

PUBLIC ssize_t write(int fd, const void *buf, size_t len)
{
	ssize_t n = fitting(fd, len, -1);

	return n < 0 && len <= SSIZE_MAX ? -1 : NEXT(write)(fd, buf, (size_t)n);
}

PUBLIC ssize_t pwrite(int fd, const void *buf, size_t len, off_t at)
{
	ssize_t n = fitting(fd, len, at);

	return n < 0 && len <= SSIZE_MAX ? -1 : NEXT(pwrite)(fd, buf, (size_t)n, at);
}

PUBLIC ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t at)
{
	ssize_t n = fitting(fd, len, at);

	return n < 0 && len <= SSIZE_MAX ? -1 : NEXT(pwrite64)(fd, buf, (size_t)n, at);
}

static size_t length(const struct iovec *iov, int count)
{
	size_t all = 0;

	for (int i = 0; i < count; i++)
		if (__builtin_add_overflow(all, iov[i].iov_len, &all))
			return SSIZE_MAX;
	return all;
}

/* One that does not fit whole is written up to the device's end, piece by piece. */
static ssize_t write_pieces(int fd, const struct iovec *iov, int count, off_t at)
{
	ssize_t all = 0, n;

	for (int i = 0; i < count; i++) {
		n = at < 0 ? write(fd, iov[i].iov_base, iov[i].iov_len)
			   : pwrite(fd, iov[i].iov_base, iov[i].iov_len, at + all);
		if (n < 0)
			return all ? all : -1;
		all += n;
		if ((size_t)n < iov[i].iov_len)
			break;
	}
	return all;
}

static bool too_long(int fd, const struct iovec *iov, int count, off_t at)
{
	size_t all;
	ssize_t n;

	if (!end_of(fd))
		return false;
	all = length(iov, count);
	n = fitting(fd, all, at);
	return n < 0 || (size_t)n < all;
}

PUBLIC ssize_t writev(int fd, const struct iovec *iov, int count)
{
	return too_long(fd, iov, count, -1) ? write_pieces(fd, iov, count, -1) : NEXT(writev)(fd, iov, count);
}

PUBLIC ssize_t pwritev(int fd, const struct iovec *iov, int count, off_t at)
{
	return too_long(fd, iov, count, at) ? write_pieces(fd, iov, count, at) : NEXT(pwritev)(fd, iov, count, at);
}

PUBLIC ssize_t pwritev64(int fd, const struct iovec *iov, int count, off64_t at)
{
	return too_long(fd, iov, count, at) ? write_pieces(fd, iov, count, at) : NEXT(pwritev64)(fd, iov, count, at);
}

PUBLIC ssize_t pwritev2(int fd, const struct iovec *iov, int count, off_t at, int flags)
{
	return too_long(fd, iov, count, at) ? write_pieces(fd, iov, count, at)
					    : NEXT(pwritev2)(fd, iov, count, at, flags);
}

PUBLIC ssize_t pwritev64v2(int fd, const struct iovec *iov, int count, off64_t at, int flags)
{
	return too_long(fd, iov, count, at) ? write_pieces(fd, iov, count, at)
					    : NEXT(pwritev64v2)(fd, iov, count, at, flags);
}
