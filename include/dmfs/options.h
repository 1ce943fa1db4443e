/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the mount was told that targets want to know (dmfs -o …).  Set before the first table is loaded, then constant.
 */
#ifndef DMFS_OPTIONS_H
#define DMFS_OPTIONS_H

#include <stdbool.h>

struct dm_options {
	bool wait_for_missing; /* at the start: an origin is not loaded while one of its snapshots cannot be */
	char *log_server; /* the socket that userspace dirty logs speak to, an absolute path; NULL: there is none */
	unsigned log_timeout_ms; /* how long an answer of it may take */
	unsigned path_check_seconds; /* multipath: how long after a failure a path is looked at again; 0: never */
};

extern struct dm_options dm_options;

#endif
