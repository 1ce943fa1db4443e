/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The arguments of a userspace log, as the mirror and the log server read them (dm-log-userspace.h):
 *
 *   <UUID> [integrated_flush] <log type> <params>*
 *
 * and of the two types that there are:
 *
 *   clustered-core [<#params>] <region size> [sync | nosync]
 *   clustered-disk [<#params>] <log device> <region size> [sync | nosync]
 */
#ifndef DMFS_LIB_USERSPACE_ARGS_H
#define DMFS_LIB_USERSPACE_ARGS_H

#include <dmfs/target.h>

#define DM_LOG_UUID_MAX 128 /* bytes */

struct dm_userspace_args {
	const char *uuid;
	bool integrated_flush;
	char *prefix; /* UUID and flag, as words of a table; g_free() */
	char *type;
	int argc; /* what follows the type, without its count */
	char **argv;
	int all_argc; /* the type and all that follows it */
	char **all_argv;
};

/* Points into argv.  -EINVAL with a text that begins with who. */
int dm_userspace_args(const char *who, int argc, char **argv, struct dm_userspace_args *out, GError **err);
/* Steps over a log type's own count of parameters, if that is what the first of them is. */
void dm_userspace_skip_count(int *argc, char ***argv);

#endif
