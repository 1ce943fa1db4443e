/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The calls that take paths, as libc names them: one table, each call with all of its names.
 *
 * A call becomes the same call with the path that place() gives; calls that tell what a file is, open one, or work on a
 * descriptor are in opens.c, stats.c and runs.c.  Names with 64 and those that only old programs have (__xstat) are in
 * the table, too.  On 64-bit machines both kinds have one type.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/time.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <utime.h>

#include "run.h"

#define PUBLIC __attribute__((visibility("default")))

/* ret NAME(args): path is led to where it is, then libc's NAME(pass). */
#define CALL(ret, name, what, args, pass)                                                                              \
	PUBLIC ret name args                                                                                           \
	{                                                                                                              \
		char to[PATH_MAX];                                                                                     \
                                                                                                                       \
		path = place(path, to, what);                                                                          \
		return NEXT(name) pass;                                                                                \
	}

/* The same with the descriptor of a directory, dir. */
#define CALL_AT(ret, name, what, args, pass)                                                                           \
	PUBLIC ret name args                                                                                           \
	{                                                                                                              \
		char to[PATH_MAX];                                                                                     \
                                                                                                                       \
		path = place_at(dir, path, to, what);                                                                  \
		return NEXT(name) pass;                                                                                \
	}

#define LOOK PLACE_LOOK
#define MAKE PLACE_MAKE

CALL(int, access, LOOK, (const char *path, int mode), (path, mode))
CALL(int, eaccess, LOOK, (const char *path, int mode), (path, mode))
CALL(int, euidaccess, LOOK, (const char *path, int mode), (path, mode))
CALL_AT(int, faccessat, LOOK, (int dir, const char *path, int mode, int flags), (dir, path, mode, flags))
CALL(int, chdir, LOOK, (const char *path), (path))
CALL(int, chmod, LOOK, (const char *path, mode_t mode), (path, mode))
CALL_AT(int, fchmodat, LOOK, (int dir, const char *path, mode_t mode, int flags), (dir, path, mode, flags))
CALL(int, mkdir, MAKE, (const char *path, mode_t mode), (path, mode))
CALL_AT(int, mkdirat, MAKE, (int dir, const char *path, mode_t mode), (dir, path, mode))
CALL(int, rmdir, MAKE, (const char *path), (path))
CALL(int, mkfifo, MAKE, (const char *path, mode_t mode), (path, mode))
CALL(int, utime, LOOK, (const char *path, const struct utimbuf *t), (path, t))
CALL(int, utimes, LOOK, (const char *path, const struct timeval t[2]), (path, t))
CALL_AT(int, utimensat, LOOK, (int dir, const char *path, const struct timespec t[2], int flags), (dir, path, t, flags))
CALL(int, statfs, LOOK, (const char *path, struct statfs *out), (path, out))
CALL(int, statfs64, LOOK, (const char *path, struct statfs64 *out), (path, out))
CALL(int, statvfs, LOOK, (const char *path, struct statvfs *out), (path, out))
CALL(int, statvfs64, LOOK, (const char *path, struct statvfs64 *out), (path, out))
CALL(long, pathconf, LOOK, (const char *path, int name), (path, name))
CALL(DIR *, opendir, LOOK, (const char *path), (path))
CALL(ssize_t, readlink, PLACE_LINK, (const char *path, char *buf, size_t size), (path, buf, size))
CALL_AT(ssize_t, readlinkat, PLACE_LINK, (int dir, const char *path, char *buf, size_t size), (dir, path, buf, size))
CALL(ssize_t, getxattr, LOOK, (const char *path, const char *name, void *v, size_t n), (path, name, v, n))
CALL(ssize_t, lgetxattr, LOOK, (const char *path, const char *name, void *v, size_t n), (path, name, v, n))
CALL(ssize_t, listxattr, LOOK, (const char *path, char *list, size_t n), (path, list, n))
CALL(ssize_t, llistxattr, LOOK, (const char *path, char *list, size_t n), (path, list, n))
CALL(int, inotify_add_watch, LOOK, (int fd, const char *path, uint32_t mask), (fd, path, mask))
CALL(int, scandir, LOOK,
     (const char *path, struct dirent ***list, int (*filter)(const struct dirent *),
      int (*compare)(const struct dirent **, const struct dirent **)),
     (path, list, filter, compare))
CALL(int, scandir64, LOOK,
     (const char *path, struct dirent64 ***list, int (*filter)(const struct dirent64 *),
      int (*compare)(const struct dirent64 **, const struct dirent64 **)),
     (path, list, filter, compare))

/* --- what removes and makes names ------------------------------------------------------------------ */

/* A device's name in /dev goes with the device, not by unlink(2), which the device mapper's library calls after it. */
static bool names_device(const char *path)
{
	struct stat st;
	unsigned nr;

	return run.on && !strncmp(path, run.mount, run.mount_len) && !NEXT(lstat)(path, &st) &&
	       node_find(&st, -1, path, &nr) == NODE_MAPPED;
}

PUBLIC int unlink(const char *path)
{
	char to[PATH_MAX];
	const char *real = place(path, to, MAKE);

	return real != path && names_device(real) ? 0 : NEXT(unlink)(real);
}

PUBLIC int unlinkat(int dir, const char *path, int flags)
{
	char to[PATH_MAX];
	const char *real = place_at(dir, path, to, MAKE);

	return real != path && names_device(real) ? 0 : NEXT(unlinkat)(dir, real, flags);
}

#define GROUP_DISK 6 /* Debian's */

/*
 * The device mapper's library gives each name that it makes to root, and to the group root or disk.  Here the name's
 * device has the owner it has; whoever cannot change that does not need to, as root alone would.
 */
static int give(int dir, const char *path, uid_t uid, gid_t gid, int flags)
{
	char to[PATH_MAX];
	const char *real = place_at(dir, path, to, LOOK);
	int before = errno;

	if (!NEXT(fchownat)(dir, real, uid, gid, flags))
		return 0;
	if (errno != EPERM || real == path || uid || (gid && gid != GROUP_DISK))
		return -1;
	errno = before;
	return 0;
}

PUBLIC int chown(const char *path, uid_t uid, gid_t gid)
{
	return give(AT_FDCWD, path, uid, gid, 0);
}

PUBLIC int lchown(const char *path, uid_t uid, gid_t gid)
{
	return give(AT_FDCWD, path, uid, gid, AT_SYMLINK_NOFOLLOW);
}

PUBLIC int fchownat(int dir, const char *path, uid_t uid, gid_t gid, int flags)
{
	return give(dir, path, uid, gid, flags);
}

/* A block device of a number of ours is one more name of the device. */
static int make_node(const char *real, dev_t dev)
{
	char name[128], target[PATH_MAX];
	struct disk d;
	struct stat st;

	if (!NEXT(lstat)(real, &st)) {
		errno = EEXIST;
		return -1;
	}
	if (major(dev) == run.dm_major && !tree_by_minor(minor(dev), name)) {
		path_format(target, "%s/%s/image", run.mount, name);
		return NEXT(symlink)(target, real);
	}
	if (major(dev) == run.disk_major && disk_by_minor(minor(dev), &d))
		return NEXT(symlink)(d.target, real);
	errno = EPERM;
	return -1;
}

static int make_any(int dir, const char *path, mode_t mode, dev_t dev)
{
	char to[PATH_MAX];
	const char *real = place_at(dir, path, to, MAKE);

	return real != path && S_ISBLK(mode) ? make_node(real, dev) : NEXT(mknodat)(dir, real, mode, dev);
}

PUBLIC int mknod(const char *path, mode_t mode, dev_t dev)
{
	return make_any(AT_FDCWD, path, mode, dev);
}

PUBLIC int mknodat(int dir, const char *path, mode_t mode, dev_t dev)
{
	return make_any(dir, path, mode, dev);
}

/* Nor do the names in /dev of a device that has another name already. */
static int rename_any(int from_dir, const char *from, int dir, const char *path, unsigned flags)
{
	char a[PATH_MAX], b[PATH_MAX];
	const char *real_from = place_at(from_dir, from, a, MAKE), *real = place_at(dir, path, b, MAKE);

	if (real_from != from && real != path && names_device(real)) {
		NEXT(unlink)(real_from);
		return 0;
	}
	return flags ? NEXT(renameat2)(from_dir, real_from, dir, real, flags)
		     : NEXT(renameat)(from_dir, real_from, dir, real);
}

PUBLIC int rename(const char *from, const char *path)
{
	return rename_any(AT_FDCWD, from, AT_FDCWD, path, 0);
}

PUBLIC int renameat(int from_dir, const char *from, int dir, const char *path)
{
	return rename_any(from_dir, from, dir, path, 0);
}

PUBLIC int renameat2(int from_dir, const char *from, int dir, const char *path, unsigned flags)
{
	return rename_any(from_dir, from, dir, path, flags);
}

PUBLIC int link(const char *from, const char *path)
{
	char a[PATH_MAX], b[PATH_MAX];

	return NEXT(link)(place(from, a, LOOK), place(path, b, MAKE));
}

PUBLIC int linkat(int from_dir, const char *from, int dir, const char *path, int flags)
{
	char a[PATH_MAX], b[PATH_MAX];

	return NEXT(linkat)(from_dir, place(from, a, LOOK), dir, place(path, b, MAKE), flags);
}

/* A link in the shadow's /dev to something in /dev is made relative, so that it leads there in the shadow. */
static const char *link_target(const char *target, const char *real, char out[PATH_MAX])
{
	size_t n = 0, up = 0;

	if (strncmp(target, "/dev/", 5) || strncmp(real, run.shadow, run.shadow_len) ||
	    strncmp(real + run.shadow_len, "/dev/", 5))
		return target;
	for (const char *p = real + run.shadow_len + 5; *p; p++)
		up += *p == '/';
	if (3 * up + strlen(target) >= PATH_MAX)
		return target;
	for (; up; up--, n += 3)
		memcpy(out + n, "../", 3);
	strcpy(out + n, target + 5);
	return out;
}

PUBLIC int symlink(const char *target, const char *path)
{
	char to[PATH_MAX], relative[PATH_MAX];
	const char *real = place(path, to, MAKE);

	return NEXT(symlink)(real == path ? target : link_target(target, real, relative), real);
}

PUBLIC int symlinkat(const char *target, int dir, const char *path)
{
	char to[PATH_MAX], relative[PATH_MAX];
	const char *real = place(path, to, MAKE);

	return NEXT(symlinkat)(real == path ? target : link_target(target, real, relative), dir, real);
}

/* --- back ------------------------------------------------------------------------------------------ */

/* A path that leads into the mount or to a disk is its own real path; one in the shadow is told without it. */
static char *real_path(const char *path, char *resolved)
{
	char to[PATH_MAX], plain[PATH_MAX], *found;
	const char *real = place(path, to, PLACE_LOOK);
	struct stat st;
	unsigned nr = 0;

	if (real == path)
		return NEXT(realpath)(path, resolved);
	if (!strncmp(real, run.shadow, run.shadow_len)) {
		found = NEXT(realpath)(real, resolved);
		if (found)
			place_back(found);
		return found;
	}
	if (NEXT(stat)(real, &st))
		return NULL;
	if (node_find(&st, -1, real, &nr) == NODE_MAPPED && !strncmp(path, "/dev/", 5)) {
		char name[128];

		/* another name, such as /dev/VG/LV, is a link to this one */
		if (strncmp(path, "/dev/mapper/", 12) && strncmp(path, "/dev/dm-", 8) && !tree_by_minor(nr, name) &&
		    path_format(plain, "/dev/mapper/%s", name))
			path = plain;
	}
	if (strlen(path) >= PATH_MAX) {
		errno = ENAMETOOLONG;
		return NULL;
	}
	return resolved ? strcpy(resolved, path) : strdup(path);
}

PUBLIC char *realpath(const char *path, char *resolved)
{
	return real_path(path, resolved);
}

PUBLIC char *__realpath_chk(const char *path, char *resolved, size_t size);
PUBLIC char *__realpath_chk(const char *path, char *resolved, size_t size)
{
	if (resolved && size < PATH_MAX)
		abort();
	return real_path(path, resolved);
}

PUBLIC char *canonicalize_file_name(const char *path)
{
	return real_path(path, NULL);
}

PUBLIC char *getcwd(char *buf, size_t size)
{
	char *cwd = NEXT(getcwd)(buf, size);

	if (cwd)
		place_back(cwd);
	return cwd;
}

PUBLIC char *get_current_dir_name(void)
{
	char *cwd = NEXT(get_current_dir_name)();

	if (cwd)
		place_back(cwd);
	return cwd;
}
