/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reading a log of log-writes (targets/log_writes_format.h). */
#ifndef DMFS_TOOLS_REPLAY_LOG_H
#define DMFS_TOOLS_REPLAY_LOG_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "../../targets/log_writes_format.h"

struct log {
	int fd;
	const char *name;
	uint64_t bytes, entries;
	uint32_t block;
	uint64_t next, pos; /* the next entry's number and place, in bytes */
};

struct entry {
	uint64_t number;
	uint64_t sector, sectors, flags; /* in blocks */
	uint64_t data, len;              /* where its data is in the log, in bytes */
	char *mark;                      /* of the last mark that was read; g_free() */
};

/*
 * A log is hostile input: what an entry says is held against the log's size before it is believed, so the data of one
 * that was read is all there, and its place in bytes fits an off_t.  All return 0, or a negative errno and a text that
 * says where the log is wrong.
 */
int log_open(struct log *log, const char *name, GError **err);
/* The same with an open file, which is then the log's. */
int log_open_fd(struct log *log, int fd, const char *name, GError **err);
void log_close(struct log *log);
int log_read(const struct log *log, void *buf, size_t len, uint64_t pos, GError **err);
/* Goes to the next entry: 1; 0: there is none. */
int log_next(struct log *log, struct entry *e, GError **err);

#endif
