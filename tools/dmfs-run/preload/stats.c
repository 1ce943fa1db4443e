/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The calls that tell what a file is. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "run.h"

#define PUBLIC __attribute__((visibility("default")))

/* struct stat and struct stat64 are one on every machine whose long has 64 bits. */
_Static_assert(sizeof(struct stat) == sizeof(struct stat64), "a 64-bit machine");

#define BY_PATH(name, type, what)                                                                                      \
	PUBLIC int name(const char *path, struct type *st)                                                             \
	{                                                                                                              \
		char to[PATH_MAX];                                                                                     \
		int r;                                                                                                 \
                                                                                                                       \
		path = place(path, to, what);                                                                          \
		r = NEXT(name)(path, st);                                                                              \
		if (!r && run.on)                                                                                      \
			node_stat((struct stat *)st, -1, path);                                                        \
		return r;                                                                                              \
	}

#define BY_FD(name, type)                                                                                              \
	PUBLIC int name(int fd, struct type *st)                                                                       \
	{                                                                                                              \
		int r = NEXT(name)(fd, st);                                                                            \
                                                                                                                       \
		if (!r && run.on)                                                                                      \
			node_stat((struct stat *)st, fd, NULL);                                                        \
		return r;                                                                                              \
	}

/* The path alone does not tell an image from a descriptor's directory: it is opened again, if need be, from there. */
static void at_stat(struct stat *st, int dir, const char *path, int flags)
{
	int fd = -1;

	if (!*path && flags & AT_EMPTY_PATH) {
		node_stat(st, dir, NULL);
		return;
	}
	if (*path == '/' || dir == AT_FDCWD) {
		node_stat(st, -1, path);
		return;
	}
	if (S_ISREG(st->st_mode) && st->st_dev == run.mount_dev)
		fd = NEXT(openat)(dir, path, O_PATH | O_CLOEXEC | (flags & AT_SYMLINK_NOFOLLOW ? O_NOFOLLOW : 0));
	node_stat(st, fd, NULL);
	if (fd >= 0)
		NEXT(close)(fd);
}

#define BY_DIR(name, type)                                                                                             \
	PUBLIC int name(int dir, const char *path, struct type *st, int flags)                                         \
	{                                                                                                              \
		char to[PATH_MAX];                                                                                     \
		int r;                                                                                                 \
                                                                                                                       \
		path = place_at(dir, path, to, flags & AT_SYMLINK_NOFOLLOW ? PLACE_LINK : PLACE_LOOK);                 \
		r = NEXT(name)(dir, path, st, flags);                                                                  \
		if (!r && run.on)                                                                                      \
			at_stat((struct stat *)st, dir, path, flags);                                                  \
		return r;                                                                                              \
	}

BY_PATH(stat, stat, PLACE_LOOK)
BY_PATH(stat64, stat64, PLACE_LOOK)
BY_PATH(lstat, stat, PLACE_LINK)
BY_PATH(lstat64, stat64, PLACE_LINK)
BY_FD(fstat, stat)
BY_FD(fstat64, stat64)
BY_DIR(fstatat, stat)
BY_DIR(fstatat64, stat64)

/* What programs built with a C library before 2.33 call. */
#define OLD_PATH(old, now, type)                                                                                       \
	PUBLIC int old(int version, const char *path, struct type *st);                                                \
	PUBLIC int old(int version, const char *path, struct type *st)                                                 \
	{                                                                                                              \
		(void)version;                                                                                         \
		return now(path, st);                                                                                  \
	}
#define OLD_FD(old, now, type)                                                                                         \
	PUBLIC int old(int version, int fd, struct type *st);                                                          \
	PUBLIC int old(int version, int fd, struct type *st)                                                           \
	{                                                                                                              \
		(void)version;                                                                                         \
		return now(fd, st);                                                                                    \
	}
#define OLD_DIR(old, now, type)                                                                                        \
	PUBLIC int old(int version, int dir, const char *path, struct type *st, int flags);                            \
	PUBLIC int old(int version, int dir, const char *path, struct type *st, int flags)                             \
	{                                                                                                              \
		(void)version;                                                                                         \
		return now(dir, path, st, flags);                                                                      \
	}

OLD_PATH(__xstat, stat, stat)
OLD_PATH(__xstat64, stat64, stat64)
OLD_PATH(__lxstat, lstat, stat)
OLD_PATH(__lxstat64, lstat64, stat64)
OLD_FD(__fxstat, fstat, stat)
OLD_FD(__fxstat64, fstat64, stat64)
OLD_DIR(__fxstatat, fstatat, stat)
OLD_DIR(__fxstatat64, fstatat64, stat64)

/* --- statx ----------------------------------------------------------------------------------------- */

static void statx_node(struct statx *x, int dir, const char *path, int flags)
{
	struct stat st = {
	    .st_dev = makedev(x->stx_dev_major, x->stx_dev_minor), .st_ino = x->stx_ino, .st_mode = x->stx_mode};

	at_stat(&st, dir, path, flags);
	if (st.st_mode == x->stx_mode)
		return;
	x->stx_mode = (uint16_t)st.st_mode;
	x->stx_rdev_major = major(st.st_rdev);
	x->stx_rdev_minor = minor(st.st_rdev);
	x->stx_size = x->stx_blocks = 0;
}

PUBLIC int statx(int dir, const char *path, int flags, unsigned mask, struct statx *out)
{
	char to[PATH_MAX];
	int r;

	path = place_at(dir, path, to, flags & AT_SYMLINK_NOFOLLOW ? PLACE_LINK : PLACE_LOOK);
	r = NEXT(statx)(dir, path, flags, run.on ? mask | STATX_TYPE | STATX_INO : mask, out);
	if (!r && run.on && S_ISREG(out->stx_mode))
		statx_node(out, dir, path, flags);
	return r;
}
