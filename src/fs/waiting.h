/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Requests that wait, and whoever asked for them, who may be dying.
 *
 * A process that is killed while the kernel waits for our answer stays until it comes.  The kernel tells (INTERRUPT),
 * but of any signal, once for a request, and not at all of asynchronous ones.  So those that wait are listed here, and
 * looked at when it tells and every half second: if the thread that asked has SIGKILL pending, or its process is on its
 * way out by a signal, nobody will take the answer, and the request is given up.
 *
 * What giving up means (request.c, rmw.c):
 *   - what is held (by a suspended device, delay, a queueing pool, a mirror without its log, ...) has changed nothing:
 *     it ends with EINTR where it is held (dm_origin_cancel());
 *   - a read or a FLUSH that is under way is answered with EINTR at once; its buffer stays with us until it ends;
 *   - a write, discard or the like that is under way is answered when it has ended, and is neither broken off nor
 *     repeated: if it were answered before, it could still change what others write after the asker is gone.
 */
#ifndef DMFS_FS_WAITING_H
#define DMFS_FS_WAITING_H

#include <fuse_lowlevel.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

/* Embedded in a request, and its life: with the last reference it is freed. */
struct dmfs_waiting {
	atomic_uint refs;
	pid_t tid, tgid; /* tgid 0: not known yet */
	/*
	 * Of an asker in another PID namespace (tid 0), for what any signal may end: the request, which must be taken
	 * out of the list before it is answered.  Else NULL.
	 */
	fuse_req_t unseen;
	/* The asker is dying; any thread, no locks held, at most once. */
	void (*give_up)(struct dmfs_waiting *);
	void (*free)(struct dmfs_waiting *);
	/* Under the list's lock. */
	struct dmfs_waiting *next, **prev; /* prev NULL: not listed */
};

/* With one reference.  tid 0: nobody who could die. */
void dmfs_waiting_init(struct dmfs_waiting *w, pid_t tid, void (*give_up)(struct dmfs_waiting *),
		       void (*free)(struct dmfs_waiting *));
void dmfs_waiting_get(struct dmfs_waiting *w);
void dmfs_waiting_put(struct dmfs_waiting *w);

/* Lists it.  Whoever has the last reference takes it out. */
void dmfs_waiting_list(struct dmfs_waiting *w);
/* Takes it out, if it is listed; from now on nobody else gets a reference. */
void dmfs_waiting_unlist(struct dmfs_waiting *w);
/* The kernel tells of a signal: looks at all, soon. */
void dmfs_waiting_look(void);

#endif
