/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The calls that open files, and those on open devices.
 *
 * A device is not truncated by O_TRUNC, nor made longer by ftruncate(2).  O_EXCL without O_CREAT is a claim: EBUSY if a
 * table uses the device or another has it so; it is held by flock(2), as long as the open file is there.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "run.h"

#define PUBLIC __attribute__((visibility("default")))

static bool is_device(int dir, const char *path)
{
	unsigned nr;
	struct stat st;

	if (NEXT(fstatat)(dir, path, &st, 0))
		return false;
	return node_find(&st, -1, *path == '/' || dir == AT_FDCWD ? path : NULL, &nr) != NODE_NONE;
}

/* Closes it again if it is somebody's. */
static int claim(int fd)
{
	struct node n;

	if (node_of_fd(fd, &n) < NODE_MAPPED)
		return fd;
	if (!flock(fd, LOCK_EX | LOCK_NB) && !node_is_held(&n))
		return fd;
	NEXT(close)(fd);
	errno = EBUSY;
	return -1;
}

/* A device that has never had a table has no node yet. */
static bool has_no_table(int fd)
{
	struct device d;
	struct stat st;
	char name[128];
	unsigned nr;

	if (NEXT(fstat)(fd, &st) || st.st_size || st.st_dev != run.mount_dev)
		return false;
	return node_find(&st, fd, NULL, &nr) == NODE_MAPPED && !tree_by_minor(nr, name) && !tree_device(name, &d) &&
	       !d.live && !d.inactive;
}

/* One in /sys is written whole by each write(2), and so has no rest of what it said before. */
static bool is_attribute(const char *real)
{
	return !strncmp(real, run.shadow, run.shadow_len) && !strncmp(real + run.shadow_len, "/sys/", 5);
}

static int open_at(int dir, const char *path, int flags, mode_t mode)
{
	char to[PATH_MAX];
	const char *real = place_at(dir, path, to, flags & O_CREAT ? PLACE_MAKE : PLACE_LOOK);
	int fd;

	if (run.on && flags & O_TRUNC && real && is_device(dir, real))
		flags &= ~(O_TRUNC | O_CREAT);
	else if (real != path && (flags & O_ACCMODE) == O_WRONLY && is_attribute(real))
		flags |= O_TRUNC;
	fd = NEXT(openat)(dir, real, flags, mode);
	if (fd < 0 && errno == EINVAL && flags & O_DIRECT && run.on && is_device(dir, real))
		fd = NEXT(openat)(dir, real, flags & ~O_DIRECT, mode); /* a file system without it, such as tmpfs */
	if (fd >= 0 && real != path && has_no_table(fd)) {
		NEXT(close)(fd);
		errno = ENOENT;
		return -1;
	}
	if (fd >= 0 && run.on && flags & O_ACCMODE)
		writes_mark(fd);
	if (fd >= 0 && run.on && (flags & (O_EXCL | O_CREAT)) == O_EXCL)
		return claim(fd);
	return fd;
}

/* Only these flags come with a mode. */
#define MODE_OF(flags)                                                                                                 \
	({                                                                                                             \
		mode_t mode_ = 0;                                                                                      \
                                                                                                                       \
		if ((flags)&O_CREAT || ((flags)&O_TMPFILE) == O_TMPFILE) {                                             \
			va_list ap;                                                                                    \
                                                                                                                       \
			va_start(ap, flags);                                                                           \
			mode_ = va_arg(ap, mode_t);                                                                    \
			va_end(ap);                                                                                    \
		}                                                                                                      \
		mode_;                                                                                                 \
	})

PUBLIC int open(const char *path, int flags, ...)
{
	return open_at(AT_FDCWD, path, flags, MODE_OF(flags));
}

PUBLIC int open64(const char *path, int flags, ...)
{
	return open_at(AT_FDCWD, path, flags | O_LARGEFILE, MODE_OF(flags));
}

PUBLIC int openat(int dir, const char *path, int flags, ...)
{
	return open_at(dir, path, flags, MODE_OF(flags));
}

PUBLIC int openat64(int dir, const char *path, int flags, ...)
{
	return open_at(dir, path, flags | O_LARGEFILE, MODE_OF(flags));
}

/* With _FORTIFY_SOURCE, calls without a mode. */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int dir, const char *path, int flags);
int __openat64_2(int dir, const char *path, int flags);

PUBLIC int __open_2(const char *path, int flags)
{
	return open_at(AT_FDCWD, path, flags, 0);
}

PUBLIC int __open64_2(const char *path, int flags)
{
	return open_at(AT_FDCWD, path, flags | O_LARGEFILE, 0);
}

PUBLIC int __openat_2(int dir, const char *path, int flags)
{
	return open_at(dir, path, flags, 0);
}

PUBLIC int __openat64_2(int dir, const char *path, int flags)
{
	return open_at(dir, path, flags | O_LARGEFILE, 0);
}

PUBLIC int creat(const char *path, mode_t mode)
{
	return open_at(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

PUBLIC int creat64(const char *path, mode_t mode)
{
	return open_at(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC | O_LARGEFILE, mode);
}

/* "w" would cut a disk's file off. */
static const char *stream_mode(const char *path, const char *mode)
{
	if (!run.on || *mode != 'w' || !path || !is_device(AT_FDCWD, path))
		return mode;
	return strchr(mode, 'e') ? "r+e" : "r+";
}

#define STREAM(name)                                                                                                   \
	PUBLIC FILE *name(const char *path, const char *mode)                                                          \
	{                                                                                                              \
		char to[PATH_MAX];                                                                                     \
                                                                                                                       \
		path = place(path, to, *mode == 'r' ? PLACE_LOOK : PLACE_MAKE);                                        \
		return NEXT(name)(path, stream_mode(path, mode));                                                      \
	}

STREAM(fopen)
STREAM(fopen64)

#define REOPEN(name)                                                                                                   \
	PUBLIC FILE *name(const char *path, const char *mode, FILE *stream)                                            \
	{                                                                                                              \
		char to[PATH_MAX];                                                                                     \
                                                                                                                       \
		path = place(path, to, *mode == 'r' ? PLACE_LOOK : PLACE_MAKE);                                        \
		return NEXT(name)(path, stream_mode(path, mode), stream);                                              \
	}

REOPEN(freopen)
REOPEN(freopen64)

/* --- sizes ----------------------------------------------------------------------------------------- */

#define TRUNCATE_FD(name, type)                                                                                        \
	PUBLIC int name(int fd, type length)                                                                           \
	{                                                                                                              \
		struct node n;                                                                                         \
                                                                                                                       \
		if (run.on && node_of_fd(fd, &n) != NODE_NONE) {                                                       \
			errno = EINVAL;                                                                                \
			return -1;                                                                                     \
		}                                                                                                      \
		return NEXT(name)(fd, length);                                                                         \
	}

TRUNCATE_FD(ftruncate, off_t)
TRUNCATE_FD(ftruncate64, off64_t)

#define TRUNCATE(name, type)                                                                                           \
	PUBLIC int name(const char *path, type length)                                                                 \
	{                                                                                                              \
		char to[PATH_MAX];                                                                                     \
                                                                                                                       \
		path = place(path, to, PLACE_LOOK);                                                                    \
		if (run.on && is_device(AT_FDCWD, path)) {                                                             \
			errno = EINVAL;                                                                                \
			return -1;                                                                                     \
		}                                                                                                      \
		return NEXT(name)(path, length);                                                                       \
	}

TRUNCATE(truncate, off_t)
TRUNCATE(truncate64, off64_t)

/* --- ioctl, syscall -------------------------------------------------------------------------------- */

#define BLOCK_TYPE 0x12
#define DM_TYPE 0xfd
#define GETGEO 0x0301

static int device_ioctl(int fd, unsigned long request, void *arg, bool *mine)
{
	struct node n;
	enum node_kind kind = node_of_fd(fd, &n);
	int before = errno, error;

	*mine = kind == NODE_CONTROL || kind == NODE_MAPPED || kind == NODE_DISK;
	if (!*mine)
		return 0;
	error = kind == NODE_CONTROL ? control_ioctl(fd, request, arg) : block_ioctl(fd, &n, request, arg);
	errno = error ? -error : before;
	return error ? -1 : 0;
}

PUBLIC int ioctl(int fd, unsigned long request, ...)
{
	unsigned type = request >> 8 & 0xff;
	void *arg;
	va_list ap;

	va_start(ap, request);
	arg = va_arg(ap, void *);
	va_end(ap);
	request &= 0xffffffff; /* some pass it as an int */
	if (run.on && (type == BLOCK_TYPE || type == DM_TYPE || request == GETGEO)) {
		bool mine;
		int r = device_ioctl(fd, request, arg, &mine);

		if (mine)
			return r;
	}
	return NEXT(ioctl)(fd, request, arg);
}

/* Some programs make system calls that their C library has no name for, or had none. */
PUBLIC long syscall(long number, ...)
{
	long a[6];
	va_list ap;

	va_start(ap, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	if (run.on) {
		switch (number) {
		case SYS_ioctl:
			return ioctl((int)a[0], (unsigned long)a[1], (void *)a[2]);
		case SYS_openat:
			return open_at((int)a[0], (const char *)a[1], (int)a[2], (mode_t)a[3]);
		case SYS_statx:
			return statx((int)a[0], (const char *)a[1], (int)a[2], (unsigned)a[3], (struct statx *)a[4]);
		case SYS_add_key:
		case SYS_request_key:
		case SYS_keyctl:
			return keys_call(number, a);
		default:
			break;
		}
	}
	return NEXT(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
