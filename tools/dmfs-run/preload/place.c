/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where paths lead.
 *
 *	/dev/mapper/control            MOUNT/control
 *	/dev/mapper/NAME, /dev/dm-N    MOUNT/NAME/image
 *	/dev, /dev/mapper              SHADOW/dev, SHADOW/dev/mapper, to be listed
 *	/dev/X                         the disk X, or what was made there (LVM's /dev/VG/LV); else as it is
 *	/sys/block, /sys/class/block, /sys/dev/block, /sys/devices/virtual/block
 *	                               the shadow's; what is below and not ours, as it is
 *	/proc/devices, misc, partitions  the shadow's
 *	/run/cryptsetup, /run/lvm, /run/lock/lvm, /var/lock/lvm
 *	                               the shadow's: an ordinary user may write there
 *	/sys/module/dm_cache_smq, dm_cache_mq
 *	                               there: LVM looks so for the policies of the target cache
 *	/run/udev                      not there: nobody handles uevents of these devices
 *
 * Links in the shadow are relative where theirs are, so the kernel finds its way below a directory that was opened
 * here; a relative path is never changed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "run.h"

/* path is prefix, or below it: the rest, which is "" or begins with '/'; else NULL. */
static const char *below(const char *path, const char *prefix)
{
	size_t len = strlen(prefix);

	return !strncmp(path, prefix, len) && (!path[len] || path[len] == '/') ? path + len : NULL;
}

static bool exists(const char *path)
{
	struct stat st;

	return !NEXT(lstat)(path, &st);
}

static const char *const system_dirs[] = {"/sys/block", "/sys/class/block", "/sys/dev/block",
					  "/sys/devices/virtual/block", NULL};
/* The last is nowhere, as scripts look there for the keyring that cryptsetup is told is not there (opens.c). */
static const char *const whole[] = {"/proc/devices", "/proc/misc", "/proc/partitions", "/proc/sys/kernel/keys", NULL};
static const char *const own_dirs[] = {
	"/run/cryptsetup", "/run/lvm", "/run/lock/lvm", "/var/lock/lvm", "/sys/module/dm_cache_smq", "/sys/module/dm_cache_mq",
	NULL};

static bool begins(const char *path, const char *const *list)
{
	for (; *list; list++)
		if (below(path, *list))
			return true;
	return false;
}

bool place_is_virtual(const char *path)
{
	return run.on && (below(path, "/dev") || begins(path, system_dirs) || begins(path, whole) ||
			  begins(path, own_dirs) || below(path, "/run/udev") || below(path, "/var/run/udev"));
}

/* --- /dev ------------------------------------------------------------------------------------------ */

/* Those that a program opens all the time. */
static const char *const plain[] = {"null",    "zero", "full",	 "random", "urandom", "tty",	"ptmx",
				    "pts",     "shm",  "fd",	 "stdin",  "stdout",  "stderr", "fuse",
				    "console", "log",  "mqueue", "kmsg",   NULL};

static bool is_plain(const char *name)
{
	size_t len = strcspn(name, "/");

	for (const char *const *p = plain; *p; p++)
		if (strlen(*p) == len && !memcmp(*p, name, len))
			return true;
	return !strncmp(name, "tty", 3);
}

/* A link in the shadow that leads out of it: a disk, or a name of a device. */
static void follow(char out[PATH_MAX], enum place_for what)
{
	char target[PATH_MAX], *real;
	ssize_t n = NEXT(readlink)(out, target, sizeof target - 1);

	if (n <= 0 || what == PLACE_MAKE)
		return;
	target[n] = '\0';
	if (*target == '/') {
		if (!below(target, "/dev")) /* /dev itself has links to what is really there */
			strcpy(out, target);
		return;
	}
	real = what == PLACE_LOOK ? NEXT(realpath)(out, NULL) : NULL;
	if (real && strlen(real) < PATH_MAX && below(real, run.mount))
		strcpy(out, real);
	free(real);
}

/* A device is where the mount has it; other names, which mknod(2) made, are links in the shadow. */
static bool mapper(const char *name, char out[PATH_MAX], enum place_for what)
{
	if (!strcmp(name, "control"))
		return path_format(out, "%s/control", run.mount);
	if (tree_valid_name(name) && path_format(out, "%s/%s", run.mount, name) && exists(out))
		return path_format(out, "%s/%s/image", run.mount, name);
	if (!path_format(out, "%s/dev/mapper/%s", run.shadow, name))
		return false;
	follow(out, what);
	return true;
}

static bool dm_number(const char *name, char out[PATH_MAX])
{
	char device[128], *end;
	unsigned long nr;

	if (strncmp(name, "dm-", 3) || !name[3])
		return false;
	nr = strtoul(name + 3, &end, 10);
	if (*end || nr > UINT_MAX || tree_by_minor((unsigned)nr, device))
		return false;
	return path_format(out, "%s/%s/image", run.mount, device);
}

static const char *in_dev(const char *path, const char *rest, char out[PATH_MAX], enum place_for what)
{
	char top[PATH_MAX];
	const char *name;

	while (*rest == '/')
		rest++;
	if (!*rest) {
		shadow_sync();
		return path_format(out, "%s/dev", run.shadow) ? out : path;
	}
	if (is_plain(rest))
		return path;
	name = below(rest, "mapper");
	if (name) {
		while (*name == '/')
			name++;
		if (*name)
			return mapper(name, out, what) ? out : path;
		shadow_sync();
		return path_format(out, "%s/dev/mapper", run.shadow) ? out : path;
	}
	if (dm_number(rest, out))
		return out;
	if (!path_format(top, "%s/dev/%.*s", run.shadow, (int)strcspn(rest, "/"), rest) ||
	    !path_format(out, "%s/dev/%s", run.shadow, rest))
		return path;
	shadow_sync();
	if (exists(top)) {
		char target[PATH_MAX];

		if (link_read(top, target, sizeof target) && below(target, "/dev"))
			return path;
		follow(out, what);
		return out;
	}
	return what == PLACE_MAKE && !exists(path) ? out : path;
}

/* --- the others ------------------------------------------------------------------------------------ */

/* A directory of /sys itself is the shadow's; what is in it, if the shadow has it. */
static const char *in_sys(const char *path, const char *rest, char out[PATH_MAX])
{
	size_t head = (size_t)(rest - path);
	char top[PATH_MAX];

	shadow_sync();
	while (*rest == '/')
		rest++;
	if (!path_format(top, "%s%.*s/%.*s", run.shadow, (int)head, path, (int)strcspn(rest, "/"), rest) ||
	    !path_format(out, "%s%s", run.shadow, path))
		return path;
	return !*rest || exists(top) || !exists(path) ? out : path;
}

static const char *find(const char *path, char out[PATH_MAX], enum place_for what)
{
	const char *rest = below(path, "/dev");

	if (rest)
		return in_dev(path, rest, out, what);
	for (const char *const *p = system_dirs; *p; p++)
		if ((rest = below(path, *p)))
			return in_sys(path, rest, out);
	for (const char *const *p = whole; *p; p++)
		if (!strcmp(path, *p)) {
			shadow_sync();
			return path_format(out, "%s%s", run.shadow, path) ? out : path;
		}
	for (const char *const *p = own_dirs; *p; p++)
		if (below(path, *p))
			return path_format(out, "%s%s", run.shadow, path) ? out : path;
	if (below(path, "/run/udev") || below(path, "/var/run/udev"))
		return path_format(out, "%s/none%s", run.shadow, path) ? out : path;
	return path;
}

/* Collapses // and /./ of the beginning; false: nothing to do, or too long. */
static bool tidy(const char *path, char out[PATH_MAX])
{
	size_t n = 0;

	if (!strstr(path, "//") && !strstr(path, "/./"))
		return false;
	for (; *path; path++) {
		if (path[0] == '/' && path[1] == '/')
			continue;
		if (path[0] == '/' && path[1] == '.' && path[2] == '/') {
			path++;
			continue;
		}
		if (n + 1 >= PATH_MAX)
			return false;
		out[n++] = *path;
	}
	out[n] = '\0';
	return true;
}

/* Most paths are none of ours: their second byte tells, or the first few. */
static bool may_be(const char *path)
{
	switch (path[1]) {
	case 'd':
		return path[2] == 'e' && path[3] == 'v';
	case 's':
		return path[2] == 'y' && path[3] == 's';
	case 'p':
		return path[2] == 'r' && path[3] == 'o' && path[4] == 'c';
	case 'r':
		return path[2] == 'u' && path[3] == 'n';
	case 'v':
		return path[2] == 'a' && path[3] == 'r' && path[4] == '/' && (path[5] == 'l' || path[5] == 'r');
	case '/':
	case '.':
		return true;
	default:
		return false;
	}
}

const char *place(const char *path, char out[PATH_MAX], enum place_for what)
{
	char clean[PATH_MAX];
	const char *found;
	int before = errno;

	if (!run.on || !path || *path != '/' || !may_be(path))
		return path;
	if (tidy(path, clean)) {
		found = find(clean, out, what);
		found = found == clean ? path : found;
	} else {
		found = find(path, out, what);
	}
	errno = before;
	return found;
}

/* First words of relative paths that lead to a place of ours from a directory that is none. */
static const char *const steps[] = {"cryptsetup", "lvm", "mapper", "udev", "block", NULL};

const char *place_at(int dir, const char *path, char out[PATH_MAX], enum place_for what)
{
	char link[64], from[PATH_MAX], whole_path[PATH_MAX];
	const char *found;
	int before = errno;
	size_t len;

	if (!run.on || !path || *path == '/' || dir == AT_FDCWD)
		return place(path, out, what);
	len = strcspn(path, "/");
	for (const char *const *s = steps; *s; s++) {
		if (strlen(*s) != len || memcmp(*s, path, len))
			continue;
		snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
		if (!link_read(link, from, sizeof from) || !path_format(whole_path, "%s/%s", from, path))
			break;
		found = place(whole_path, out, what);
		errno = before;
		return found == whole_path ? path : found;
	}
	errno = before;
	return path;
}

void place_back(char *path)
{
	if (!run.on || strncmp(path, run.shadow, run.shadow_len) || path[run.shadow_len] != '/')
		return;
	memmove(path, path + run.shadow_len, strlen(path + run.shadow_len) + 1);
}
