/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the mount was told that targets want to know (dmfs -o …).  Set before the first table is loaded, then constant. */
#ifndef DMFS_OPTIONS_H
#define DMFS_OPTIONS_H

struct dm_options {
	unsigned path_check_seconds; /* multipath: how long after a failure a path is looked at again; 0: never */
};

extern struct dm_options dm_options;

#endif
