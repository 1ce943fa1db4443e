/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What /proc tells of the process whose close brings a FLUSH: files that act at close ask. */
#include <stdio.h>
#include <string.h>

#include "fs.h"

#define PF_SIGNALED 0x400u

bool dmfs_writer_killed(fuse_req_t req)
{
	pid_t pid = fuse_req_ctx(req)->pid;
	g_autofree char *path = g_strdup_printf("/proc/%d/stat", (int)pid);
	g_autofree char *text = NULL;
	unsigned flags;
	char *p;

	if (pid <= 0 || !g_file_get_contents(path, &text, NULL, NULL) || !(p = strrchr(text, ')')))
		return false;
	/* ") state ppid pgrp session tty tpgid flags" */
	return sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) == 1 && (flags & PF_SIGNALED);
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
