/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the parts of the userspace log (dirty_log_userspace.c) share: its state, and requests to a server that may go
 * and come again (userspace_request.c).
 *
 * All of it is used by one caller at a time (dirty_log.h), but for what is atomic or under the lock.
 */
#ifndef DMFS_USERSPACE_LOG_H
#define DMFS_USERSPACE_LOG_H

#include "dirty_log.h"
#include "ulog_link.h"
#include "userspace_args.h"

struct far_log {
	struct dm_dirty_log *log;
	struct dm_userspace_args args;
	GString *words, *ctr_words; /* the type and what follows it, as in a table; with the length before it */
	unsigned words_count;
	struct ulog_link *link;
	struct dm_dev *dev; /* which the server names */
	bool known, resumed; /* this server has had our CTR; we have been resumed */
	bool complained;
	GHashTable *marks, *lost; /* sets of regions: see above; those we have said are out of sync */
	GHashTable *pending;      /* region to GINT: DM_ULOG_MARK_REGION or DM_ULOG_CLEAR_REGION */
	GArray *syncs;            /* of struct ulog_sync, to be sent */
	GArray *late_work;        /* of uint64_t: regions to copy, of answers that came too late */
	bool flush_due;           /* clears have been sent without a FLUSH */
	bool no_work;             /* until the next refresh */
	atomic_bool failing;      /* the last refresh had no answer */
	atomic_uint_fast64_t contact_ns; /* when the last request was sent that was answered */
	atomic_uint_fast64_t introductions;
	atomic_uint_fast64_t sync_count;
	pthread_mutex_t lock; /* the text */
	char *status;
};

/* A region in a hash. */
static inline void *far_key(uint64_t region)
{
	return GSIZE_TO_POINTER(region);
}

/* For bios, as long as it takes; for anything else only if the server is there. */
enum patience { ONCE, HOLD };

/*
 * A request to the server, which is found, and told who we are, where that is needed.  0; an error far_is_gone() knows:
 * there was no answer; or the server's own.
 */
int far_request(struct far_log *f, enum patience patience, unsigned type, const void *data, size_t size,
		struct ulog *answer);
/* The same of a server that is connected to but need not know us: no second attempt. */
int far_ask(struct far_log *f, unsigned type, const void *data, size_t size, struct ulog *answer);
bool far_is_gone(int error);
/* Says that an answer is none; -EPROTO. */
int far_nonsense(struct far_log *f, unsigned type, const char *what);
/* For the status. */
void far_set_failing(struct far_log *f, bool failing);

#endif
