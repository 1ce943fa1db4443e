/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The command line: dmsetup's options, and dmfsctl's own.
 *
 * -m is two options.  Before the command word it names the mount (as --mount does anywhere), unless its value is a
 * number; after it, and for a number, it is dmsetup's --minor.
 */
#ifndef DMFSCTL_OPTIONS_H
#define DMFSCTL_OPTIONS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum mangling { MANGLE_AUTO, MANGLE_HEX, MANGLE_NONE };

struct options {
	/* whom it is about */
	char *mount, *uuid;
	int64_t major, minor; /* -1: not given */
	/* what is loaded */
	char *table; /* --table; NULL */
	bool concise, notable, readonly, inactive, setuuid;
	int64_t uid, gid, mode; /* -1: not given */
	char *readahead;
	/* how */
	bool deferred, force, retry, noflush, nolockfs, yes;
	enum mangling mangling;
	unsigned verbose;
	/* what is shown */
	bool columns, nameprefixes, noheadings, showkeys, tree, progress;
	char *options, *sort, *select, *separator, *target, *exec, *units;
	int64_t count; /* -1: not given */
	double interval; /* seconds; 0: not given */
	/* statistics */
	bool allregions, allprograms, alldevices, clear, histogram, precise, segments, nogroup;
	bool area, region, group, relative, notimesuffix;
	int64_t regionid, groupid; /* -1: not given */
	char *areas, *areasize, *start, *length, *programid, *userdata, *bounds, *alias, *regions;
	/* the command */
	bool help, version;
	GPtrArray *words; /* the command and its arguments, NULL at the end */
};

/* False: what is wrong has been printed.  Free with options_clear() either way. */
bool options_parse(struct options *o, int argc, char **argv);
void options_clear(struct options *o);

#endif
