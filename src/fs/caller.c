/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who waits for a request that may take long, and whether he is dying.
 *
 * FUSE tells of the first signal he gets, once, whatever it is; killed later, he waits for the answer and nothing more
 * is told.  And what it tells may be lost: libfuse gives an INTERRUPT that overtakes its request back to the kernel, but
 * by the wrong one of several descriptors.  Only a fatal signal ends what he has asked for: programs that get others all
 * the time (Go's get SIGURG) would never see the end of it.  So /proc is looked at now and then.
 */
#include <stdio.h>
#include <string.h>

#include "caller.h"

#include <dmfs/container_of.h>
#include <dmfs/work.h>

#define LOOK_NS 100000000u
#define KILLED (1ull << 8) /* SIGKILL in a mask of signals */

struct dmfs_caller {
	struct dm_origin origin;
	fuse_req_t req;
	pid_t tid;
	struct dm_timer timer;
};

/* A fatal signal of any kind is a pending SIGKILL of each thread, until it has ended. */
static bool is_killed(pid_t tid)
{
	g_autofree char *path = g_strdup_printf("/proc/%d/status", (int)tid), *text = NULL;
	const char *line;
	unsigned long long pending;

	if (!g_file_get_contents(path, &text, NULL, NULL))
		return false;
	line = strstr(text, "\nSigPnd:");
	return line && sscanf(line, " SigPnd: %llx", &pending) == 1 && (pending & KILLED);
}

static void look(struct dm_timer *timer)
{
	struct dmfs_caller *c = container_of(timer, struct dmfs_caller, timer);

	/* One in another PID namespace cannot be seen from here. */
	if (c->tid > 0 ? is_killed(c->tid) : fuse_req_interrupted(c->req))
		atomic_store(&c->origin.cancelled, true);
	else
		dm_timer_arm(timer, dm_now_ns() + LOOK_NS);
}

struct dmfs_caller *dmfs_caller_new(fuse_req_t req)
{
	struct dmfs_caller *c = g_new0(struct dmfs_caller, 1);

	dm_origin_init(&c->origin);
	c->req = req;
	c->tid = fuse_req_ctx(req)->pid;
	c->timer.fn = look;
	dm_timer_arm(&c->timer, dm_now_ns() + LOOK_NS);
	return c;
}

struct dm_origin *dmfs_caller_origin(struct dmfs_caller *c)
{
	return &c->origin;
}

void dmfs_caller_free(struct dmfs_caller *c)
{
	if (!c)
		return;
	dm_timer_cancel_sync(&c->timer);
	dm_origin_destroy(&c->origin);
	g_free(c);
}
