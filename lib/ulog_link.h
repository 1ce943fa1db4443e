/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A log's connection to its server: one request at a time, and its answer.
 *
 * An answer belongs to the last request if seq, type, luid and uuid are the request's.  Whatever else comes is told of
 * in the log and dropped: nonsense, and what comes twice or too late, but for one kind that the owner may ask for
 * (late).
 *
 * The connection is never given up while the server has it: a server takes its end for the end of this host.
 *
 * One thread at a time, but for ulog_link_hurry().
 */
#ifndef DMFS_LIB_ULOG_LINK_H
#define DMFS_LIB_ULOG_LINK_H

#include "ulog.h"

struct ulog_link;

/* path: the server's socket; uuid: DM_UUID_LEN - 1 bytes at most; timeout_ms: how long an answer may take. */
struct ulog_link *ulog_link_new(const char *path, const char *uuid, unsigned timeout_ms);
void ulog_link_free(struct ulog_link *l);

/* An answer to a request of this type that had been given up: what it says counts for the server. */
void ulog_link_set_late(struct ulog_link *l, unsigned type, void (*fn)(void *context, const struct ulog *answer),
			void *context);

/* 0, or a negative errno of connect(2). */
int ulog_link_connect(struct ulog_link *l);
bool ulog_link_connected(const struct ulog_link *l);
/*
 * Sends a request and waits for its answer, which points into the link until the next.  0, or the answer's error;
 * -ENOTCONN: there is no connection (any more); -ETIMEDOUT: no answer in time; the server may have it nevertheless.
 */
int ulog_link_request(struct ulog_link *l, unsigned type, const void *data, size_t size, struct ulog *answer);
/* Waits, at most so long, until somebody is in a hurry. */
void ulog_link_pause(struct ulog_link *l, unsigned ms);

/*
 * In a hurry (any thread): nobody waits for a server that is not there, nor again for one that has once been silent for
 * longer than ULOG_HURRY_MS; those that wait do no more.
 */
#define ULOG_HURRY_MS 2000
void ulog_link_hurry(struct ulog_link *l, bool hurry);
bool ulog_link_in_hurry(struct ulog_link *l);

#endif
