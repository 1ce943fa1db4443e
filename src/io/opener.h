/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef DMFS_IO_OPENER_H
#define DMFS_IO_OPENER_H

#include "store.h"

struct dm_opener_saved {
	bool assumed;
	int n;
	gid_t *groups;
};

/*
 * Makes this thread open files as the opener would, until restored.  Does nothing unless the daemon is root.  False:
 * the daemon, although root, may not change to this user and these groups, and nothing may be opened for them.
 */
bool dm_opener_assume(const struct dm_opener *who, struct dm_opener_saved *saved);
void dm_opener_restore(struct dm_opener_saved *saved);

#endif
