/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the kernel would print.  The last messages are read from the root's file `log`; never put a key or a user's data
 * into one.
 */
#ifndef DMFS_LOG_H
#define DMFS_LOG_H

#include <glib.h>

/* Each call is one line, without a newline; written as "device-mapper: " and the text. */
void dm_log_err(const char *fmt, ...) G_GNUC_PRINTF(1, 2);
void dm_log_warn(const char *fmt, ...) G_GNUC_PRINTF(1, 2);
void dm_log_info(const char *fmt, ...) G_GNUC_PRINTF(1, 2);
/* The same, at most a few a second from one place (for I/O errors). */
#define dm_log_err_limit(...)                                       \
	do {                                                        \
		static struct dm_log_limit limit_;                  \
		if (dm_log_allowed(&limit_))                        \
			dm_log_err(__VA_ARGS__);                    \
	} while (0)

struct dm_log_limit {
	_Atomic guint64 second, count;
};
gboolean dm_log_allowed(struct dm_log_limit *limit);

/* Appends the kept lines to out, oldest first.  Any thread. */
void dm_log_read(GString *out);

#endif
