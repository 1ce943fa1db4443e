/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Large bios in pieces, spread over the cores.
 *
 * A run is a number of pieces.  The thread that has it works on one after the other, and so do helpers from a queue's
 * threads, as soon as they get there.  Nobody waits: a helper that comes too late finds nothing to do.  It is one
 * facility for the whole process: helpers are for cores that are idle.
 */
#ifndef DMFS_SPREAD_H
#define DMFS_SPREAD_H

#include <stdbool.h>
#include <stddef.h>

struct dm_spread_run {
	/* Called once for each nr below pieces, from any thread, several at a time. */
	void (*piece)(void *context, unsigned nr);
	void *context; /* not looked at any more once every piece() was called */
	unsigned pieces;
};

/* Whether helpers are worth it, now, for a run that would keep one core busy for so many nanoseconds. */
bool dm_spread_pays(size_t ns);
/*
 * Calls piece() for all, in this thread and, if asked, in helpers, who may still be at theirs when it returns.  Any
 * thread.
 */
void dm_spread_start(const struct dm_spread_run *run, bool help);

#endif
