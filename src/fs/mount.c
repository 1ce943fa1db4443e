/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Mounting and unmounting (mount.h). */
#include <errno.h>
#include <glib.h>
#include <linux/close_range.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fs.h"
#include "io/fs_share.h"
#include "mount.h"
#include "node.h"

struct dmfs_mount dmfs_mounts[DMFS_MOUNTS] = {
	[DMFS_TREE] = {.nr = DMFS_TREE, .fd = -1},
	[DMFS_IMAGES] = {.nr = DMFS_IMAGES, .fd = -1},
};

/* --- mount points ---------------------------------------------------------------------- */

/*
 * An exec() closes the copies of our descriptors, which asks the server of each file: of one that hangs there is no
 * answer.  So those come not along.
 */
static int exec_fusermount(void *argv)
{
	char *const *args = argv;

	syscall(SYS_close_range, FS_SHARE_FAR_FDS, ~0u, CLOSE_RANGE_UNSHARE);
	execvp(args[0], args);
	_exit(127);
}

static int unmount_lazily(const char *path)
{
	char *args[] = {(char *)"fusermount3", (char *)"-u", (char *)"-q", (char *)"-z", (char *)"--", (char *)path, NULL};
	size_t stack_bytes = 64 * 1024;
	g_autofree char *stack = NULL;
	int status;
	pid_t pid;

	if (!umount2(path, MNT_DETACH))
		return 0;
	stack = g_malloc(stack_bytes);
	pid = clone(exec_fusermount, stack + stack_bytes, CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD, args);
	return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) && !WEXITSTATUS(status) ? 0 : -1;
}

int dmfs_mount_prepare(unsigned nr, const char *path)
{
	struct stat st;
	unsigned fd;
	char *real;

	if (g_str_has_prefix(path, "/dev/fd/") && dm_parse_uint(path + strlen("/dev/fd/"), &fd)) {
		dmfs_mounts[nr].fd = (int)fd;
		return 0;
	}
	if (stat(path, &st) < 0 && errno == ENOTCONN) {
		g_autofree char *absolute = g_canonicalize_filename(path, NULL);

		if (unmount_lazily(absolute)) {
			fprintf(stderr, "dmfs: %s is a dead mount and cannot be taken over\n", path);
			return -1;
		}
	}
	if (stat(path, &st) < 0) {
		fprintf(stderr, "dmfs: %s: %s\n", path, g_strerror(errno));
		return -1;
	}
	if (!S_ISDIR(st.st_mode)) {
		fprintf(stderr, "dmfs: %s is not a directory\n", path);
		return -1;
	}
	real = realpath(path, NULL);
	if (!real) {
		fprintf(stderr, "dmfs: %s: %s\n", path, g_strerror(errno));
		return -1;
	}
	dmfs_mounts[nr].path = g_strdup(real);
	free(real);
	return 0;
}

struct mounted {
	const char *point;
	dev_t st_dev;
	bool fuse;
};

/*
 * Calls fn for what is mounted, the uppermost of a mount point first, until it says true; true if it has.  That is read
 * from mountinfo: a stat(2) would keep the mount busy for a moment, and wait for workers that are not there yet.
 */
static bool find_mounted(bool (*fn)(const struct mounted *, void *context), void *context)
{
	g_autofree char *text = NULL;
	g_auto(GStrv) lines = NULL;
	bool found = false;

	if (!g_file_get_contents("/proc/self/mountinfo", &text, NULL, NULL))
		return false;
	lines = g_strsplit(text, "\n", -1);
	for (unsigned i = g_strv_length(lines); i-- > 0 && !found;) {
		/* ID PARENT MAJOR:MINOR ROOT MOUNTPOINT ... - TYPE ..., blanks in names as \040 */
		g_auto(GStrv) words = g_strsplit(lines[i], " ", 6);
		g_autofree char *point = g_strv_length(words) == 6 ? g_strcompress(words[4]) : NULL;
		unsigned major_nr, minor_nr;

		if (point && sscanf(words[2], "%u:%u", &major_nr, &minor_nr) == 2) {
			struct mounted m = {point, makedev(major_nr, minor_nr), strstr(words[5], " - fuse")};

			found = fn(&m, context);
		}
	}
	return found;
}

struct at_path {
	const char *path;
	dev_t st_dev;
};

static bool is_at_path(const struct mounted *mounted, void *context)
{
	struct at_path *at = context;

	at->st_dev = mounted->st_dev;
	return !strcmp(mounted->point, at->path);
}

/* Whether a statfs(2) there comes to us. */
static bool leads_to_us(const struct mounted *mounted, void *mount)
{
	struct dmfs_mount *m = mount;
	struct statvfs st;

	atomic_store(&dmfs_statfs_pid, 0);
	if (!mounted->fuse || statvfs(mounted->point, &st) || atomic_load(&dmfs_statfs_pid) != gettid())
		return false;
	m->path = g_strdup(mounted->point);
	m->st_dev = mounted->st_dev;
	return true;
}

void dmfs_mount_find(unsigned nr)
{
	struct dmfs_mount *m = &dmfs_mounts[nr];
	struct at_path at = {m->path, 0};

	if (m->fd >= 0 && !m->path)
		find_mounted(leads_to_us, m);
	else if (find_mounted(is_at_path, &at))
		m->st_dev = at.st_dev;
	if (m->path)
		dm_set_mountpoint(nr, m->path, m->st_dev, dmfs_find_inode);
}

/* --- options ---------------------------------------------------------------------------- */

static char *escape_option(const char *s)
{
	GString *out = g_string_new(NULL);

	for (; *s; s++) {
		if (*s == ',' || *s == '\\')
			g_string_append_c(out, '\\');
		g_string_append_c(out, *s);
	}
	return g_string_free(out, FALSE);
}

int dmfs_mount_options(unsigned nr, const struct fuse_args *args, const char *source)
{
	g_autofree char *name = escape_option(source); /* a comma would end the option */
	g_autofree char *fixed = g_strdup_printf("-osubtype=%s,fsname=%s,default_permissions%s",
						 nr == DMFS_TREE ? "dmfs" : "dmfs-images", name,
						 dmfs_options.allow_other ? ",allow_other" : "");
	struct fuse_args copy = FUSE_ARGS_INIT(0, NULL);

	fuse_opt_add_arg(&copy, args->argv[0]);
	fuse_opt_add_arg(&copy, fixed);
	for (int i = 1; i < args->argc; i++)
		fuse_opt_add_arg(&copy, args->argv[i]);
	dmfs_mounts[nr].session = fuse_session_new(&copy, nr == DMFS_TREE ? &dmfs_ops : &dmfs_images_ops, sizeof dmfs_ops,
						   &dmfs_mounts[nr]);
	fuse_opt_free_args(&copy);
	return dmfs_mounts[nr].session ? 0 : -1;
}

/* --- up and down ------------------------------------------------------------------------- */

int dmfs_mount_up(unsigned nr, unsigned threads)
{
	struct dmfs_mount *m = &dmfs_mounts[nr];
	g_autofree char *by_fd = g_strdup_printf("/dev/fd/%d", m->fd);
	int error;

	if (fuse_session_mount(m->session, m->fd >= 0 ? by_fd : m->path)) {
		dmfs_mount_free(nr);
		return -1;
	}
	if (m->path)
		dmfs_mount_find(nr);
	error = dmfs_loop_start(nr, m->session, m, threads);
	if (!error) {
		dmfs_begin_invalidations(nr);
		return 0;
	}
	fprintf(stderr, "dmfs: cannot serve requests: %s\n", g_strerror(-error));
	fuse_session_unmount(m->session);
	dmfs_mount_free(nr);
	return -1;
}

void dmfs_mount_detach(unsigned nr)
{
	struct dmfs_mount *m = &dmfs_mounts[nr];
	struct at_path at = {m->path, 0};

	/* Not libfuse's way: it leaves one whose connection was aborted, and waits for files of servers that hang. */
	if (m->session && m->path && find_mounted(is_at_path, &at) && at.st_dev == m->st_dev)
		unmount_lazily(m->path);
}

void dmfs_mount_free(unsigned nr)
{
	struct fuse_session *session = dmfs_mounts[nr].session;
	struct pollfd connection = {.events = 0};

	if (!session)
		return;
	dm_set_mountpoint(nr, NULL, 0, NULL);
	connection.fd = fuse_session_fd(session);
	/* If somebody has it open still, libfuse keeps the name of the mount point. */
	if (poll(&connection, 1, 0) == 1 && (connection.revents & POLLERR))
		fuse_session_unmount(session);
	fuse_session_destroy(session);
	dmfs_mounts[nr].session = NULL;
}
