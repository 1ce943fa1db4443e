/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * multipath: what its files share.
 *
 * A priority group is a set of paths and a selector that chooses among them.  One group is current; another becomes it
 * when no path of the current one is left, or by a message.
 *
 * Threads: the paths, groups and selectors are made in ctr and stay.  I/O reads `current`, a path's `failed` and the
 * selector, without a lock.  What changes them holds `lock`, which is short and never held across I/O, an event or the
 * end of a bio.
 */
#ifndef MULTIPATH_H
#define MULTIPATH_H

#include <pthread.h>

#include <dmfs/hold.h>
#include <dmfs/path_selector.h>
#include <dmfs/work.h>

#define MULTIPATH_DEFAULT_DELAY UINT32_MAX /* pg_init_delay_msecs was not given */

struct group;

struct path {
	struct dm_path p; /* first */
	struct group *group;
	unsigned fails;          /* lock */
	atomic_bool unflushed;   /* a write has ended here since its last FLUSH began */
	struct path_check *check; /* check.c's, of a failed path; NULL: none is under way */
};

struct group {
	struct multipath *m;
	struct dm_path_selector ps;
	unsigned number; /* from 1 */
	bool bypassed;   /* lock */
};

enum queue_mode { QUEUE_MODE_RQ, QUEUE_MODE_BIO };

struct multipath {
	struct dm_target *ti;
	GPtrArray *groups, *paths; /* of struct group, and of all struct path */
	_Atomic(struct group *) current; /* NULL: to be chosen, with lock */
	atomic_uint valid_paths;
	atomic_bool queue_io; /* no I/O was sent yet */

	pthread_mutex_t lock; /* for all below, and changes above */
	struct group *next;   /* to become current with the next I/O */
	bool queue_if_no_path, saved_queue_if_no_path, ending;
	struct dm_hold held;     /* bios that wait for a path; always closed */
	struct dm_work retry;    /* sends them */
	struct dm_timer check_timer;
	struct dm_work check_work;
	pthread_cond_t checked;

	unsigned pg_init_retries, pg_init_delay_ms; /* no meaning here: kept for `table` */
	bool retain_attached_hw_handler;
	enum queue_mode queue_mode;
	char *hw_handler; /* NULL: none */
};

struct multipath_bio {
	struct path *path; /* where it was sent; NULL: nowhere */
	uint64_t sector;   /* of the target */
	uint64_t start_ns; /* for a selector that is timed */
};

/* params.c: reads the table line into m, whose lists are empty; what was read stays on an error. */
int multipath_parse(struct multipath *m, int argc, char **argv, GError **err);

/* io.c */
enum dm_mapio multipath_map(struct dm_target *ti, struct dm_bio *bio);
enum dm_endio multipath_end_io(struct dm_target *ti, struct dm_bio *bio);
/* Sends what is held, or fails it: a path was reinstated, or nobody is to wait any more. */
void multipath_retry(struct multipath *m);
void multipath_retry_work(struct dm_work *work);
/* Marks a path failed or good; nothing happens if it is.  Any thread. */
void multipath_fail_path(struct multipath *m, struct path *path);
void multipath_reinstate_path(struct multipath *m, struct path *path);

/* check.c: -o path-check */
void multipath_check_start(struct multipath *m);
/* Waits for the checks under way; none is begun any more. */
void multipath_check_end(struct multipath *m);
void multipath_check_timer(struct dm_timer *timer);
void multipath_check_work(struct dm_work *work);

extern struct dm_wq *multipath_wq;

#endif
