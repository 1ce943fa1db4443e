/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A log and its clients' requests (lib/ulog.h), without sockets: what CTR asks for, and the answer to all else.
 *
 * One thread at a time for a log.
 */
#ifndef DMFS_LOGD_LOG_H
#define DMFS_LOGD_LOG_H

#include "lib/ulog.h"
#include "state.h"
#include "store.h"

/* What CTR says: "<sectors> clustered-core|clustered-disk [<#params>] [<device>] <region size> [sync | nosync]" */
struct log_shape {
	uint64_t sectors, regions;
	uint32_t region_sectors;
	char *device; /* NULL: clustered-core */
	enum { SHAPE_KNOWN, SHAPE_SYNC, SHAPE_NOSYNC } sync;
};

/* -EINVAL with a text.  g_free() of device. */
int log_shape_parse(const uint8_t *data, size_t size, struct log_shape *out, GError **err);

struct log;

/*
 * after_crash: it may have been another server's a moment ago, so it is in its time of grace, and what the table says
 * of sync is not to be trusted: what is not on a disk is not known.  Takes the shape's device.
 */
struct log *log_new(struct log_shape *shape, bool after_crash, GError **err);
void log_free(struct log *log);
/* Whether it is the one a later CTR means; but for sync and nosync, which count at the beginning. */
int log_same_shape(const struct log *log, const struct log_shape *shape, GError **err);
struct log_state *log_state_of(struct log *log);

/* The time of grace is over. */
void log_end_grace(struct log *log);

/*
 * A request of a client that has joined, but for CTR and DTR (that is the caller's): the answer's error and data, of at
 * most ULOG_MAX_DATA bytes.  True: only after the next log_commit(), with its error, for its marks are to be on the
 * disk.
 */
bool log_request(struct log *log, struct log_client *c, const struct ulog *in, struct ulog *out,
		 uint8_t data[ULOG_MAX_DATA]);
/* CTR's answer: the log's device. */
void log_answer_ctr(struct log *log, struct ulog *out, uint8_t data[ULOG_MAX_DATA]);
int log_commit(struct log *log);

#endif
