/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What /proc tells of who asks: files that act at close want to know, and requests that wait. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "fs.h"

#define PF_EXITING 0x4u
#define PF_SIGNALED 0x400u

/* A text of /proc about a thread or process, or NULL. */
static char *proc_text(pid_t pid, const char *name)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/%s", (int)pid, name);
	char *text = NULL;

	return pid > 0 && g_file_get_contents(path, &text, NULL, NULL) ? text : NULL;
}

/* Its flags, 0 if it is not there. */
static unsigned proc_flags(pid_t pid)
{
	g_autofree char *text = proc_text(pid, "stat");
	const char *p = text ? strrchr(text, ')') : NULL;
	unsigned flags;

	/* ") state ppid pgrp session tty tpgid flags" */
	return p && sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 ? flags : 0;
}

bool dmfs_writer_killed(fuse_req_t req)
{
	return proc_flags(fuse_req_ctx(req)->pid) & PF_SIGNALED;
}

static uint64_t number_after(const char *text, const char *label, unsigned base)
{
	const char *p = strstr(text, label);

	return p ? g_ascii_strtoull(p + strlen(label), NULL, base) : 0;
}

pid_t dmfs_process_of(pid_t tid)
{
	g_autofree char *status = proc_text(tid, "status");

	return status ? (pid_t)number_after(status, "\nTgid:", 10) : 0;
}

static bool goes(pid_t pid, const char *status)
{
	uint64_t pending = number_after(status, "\nSigPnd:", 16) | number_after(status, "\nShdPnd:", 16);
	unsigned flags = proc_flags(pid);

	return (pending & UINT64_C(1) << (SIGKILL - 1)) || ((flags & PF_EXITING) && (flags & PF_SIGNALED));
}

bool dmfs_process_dying(pid_t tid, pid_t *tgid)
{
	g_autofree char *status = proc_text(tid, "status");
	pid_t now = status ? (pid_t)number_after(status, "\nTgid:", 10) : 0;

	if (now && (!*tgid || *tgid == now)) {
		*tgid = now;
		return goes(tid, status);
	}
	/* The thread is gone.  Its process need not be: it may have others, for whom asynchronous I/O goes on. */
	g_free(status);
	status = proc_text(*tgid, "status");
	return status && goes(*tgid, status);
}

bool dmfs_writer_has_open(fuse_req_t req, struct dmfs_handle *h)
{
	pid_t pid = fuse_req_ctx(req)->pid;
	g_autofree char *name = h->device ? dm_mapped_dup_name(h->device->md) : NULL;
	g_autofree char *end = g_strconcat(name ? "/" : "", name ? name : "", "/", h->file->name, NULL);
	g_autofree char *dir = g_strdup_printf("/proc/%d/fd", (int)pid);
	g_autoptr(GDir) fds = pid > 0 ? g_dir_open(dir, 0, NULL) : NULL;
	const char *fd;

	while (fds && (fd = g_dir_read_name(fds))) {
		g_autofree char *path = g_build_filename(dir, fd, NULL), *target = g_file_read_link(path, NULL);

		if (target && g_str_has_suffix(target, end))
			return true;
	}
	return false;
}
