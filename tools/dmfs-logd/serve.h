/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Connections.  Each is one client of one log: its first message is CTR, which says of which.  A thread serves all
 * clients of a log; FLUSHes that come together share a commit.  A connection that ends is a host that has ended, with
 * what it had.
 */
#ifndef DMFS_LOGD_SERVE_H
#define DMFS_LOGD_SERVE_H

#include <stdbool.h>

struct serve_options {
	bool after_crash;   /* whoever was here before did not end its logs */
	unsigned grace_ms;
};

/* Serves until stop (a descriptor) is readable.  True: some logs are still in use. */
bool serve(int listener, int stop, const struct serve_options *options);

/* To standard error, as a line. */
void say(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
