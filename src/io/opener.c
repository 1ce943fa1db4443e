/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Opening files as somebody else: the file system user, group and supplementary groups are attributes of a thread, so
 * they are changed around the call, in this thread alone.  Changing them away from root drops the capabilities that
 * override permissions, and returning restores them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "opener.h"

#include <dmfs/error.h>

struct dm_opener dm_opener_self(void)
{
	return (struct dm_opener){0, geteuid(), getegid()};
}

char *dm_opener_absolute(const struct dm_opener *who, const char *name, GError **err)
{
	g_autofree char *link = NULL, *cwd = NULL;

	if (name[0] == '/')
		return g_strdup(name);
	link = who->pid ? g_strdup_printf("/proc/%d/cwd", (int)who->pid) : g_strdup("/proc/self/cwd");
	cwd = g_file_read_link(link, NULL);
	if (!cwd || cwd[0] != '/') {
		dm_fail(err, ENOENT, "'%s' is relative and the writer's working directory cannot be read", name);
		return NULL;
	}
	return g_build_filename(cwd, name, NULL);
}

/* The supplementary groups of a process, from /proc/PID/status; NULL if unknown. */
static gid_t *groups_of(pid_t pid, size_t *n)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/status", (int)pid);
	g_autofree char *text = NULL;
	GArray *groups;
	char *p;

	*n = 0;
	if (!pid || !g_file_get_contents(path, &text, NULL, NULL) || !(p = strstr(text, "\nGroups:")))
		return NULL;
	groups = g_array_new(FALSE, FALSE, sizeof(gid_t));
	for (p += strlen("\nGroups:"); *p && *p != '\n';) {
		char *end;
		gid_t gid = (gid_t)strtoul(p, &end, 10);

		if (end == p) {
			p++;
			continue;
		}
		g_array_append_val(groups, gid);
		p = end;
	}
	*n = groups->len;
	return (gid_t *)(void *)g_array_free(groups, FALSE);
}

bool dm_opener_assume(const struct dm_opener *who, struct dm_opener_saved *saved)
{
	g_autofree gid_t *groups = NULL;
	size_t n;

	memset(saved, 0, sizeof *saved);
	if (geteuid() != 0 || who->uid == 0)
		return true;
	saved->n = getgroups(0, NULL);
	saved->groups = g_new(gid_t, MAX(saved->n, 1));
	if ((saved->n = getgroups(saved->n, saved->groups)) < 0)
		saved->n = 0;
	groups = groups_of(who->pid, &n);
	saved->assumed = true;
	if (syscall(SYS_setgroups, n, groups))
		return false;
	setfsgid(who->gid);
	setfsuid(who->uid);
	return setfsgid((gid_t)-1) == (int)who->gid && setfsuid((uid_t)-1) == (int)who->uid;
}

void dm_opener_restore(struct dm_opener_saved *saved)
{
	if (saved->assumed) {
		setfsuid(geteuid());
		setfsgid(getegid());
		syscall(SYS_setgroups, saved->n, saved->groups);
	}
	g_clear_pointer(&saved->groups, g_free);
}
