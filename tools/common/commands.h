/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The commands of a tool that is like cryptsetup's: TOOL COMMAND ARGUMENT... */
#ifndef DMFS_COMMANDS_H
#define DMFS_COMMANDS_H

#include <glib.h>

/* How a command is called: the first member of what a tool knows of each. */
struct usage {
	const char *name, *args; /* "open", "FILE NAME" */
	int min, max;		 /* so many arguments */
};

/*
 * That which argv[1] names, of an array of n of so many bytes each, beginning with a struct usage; NULL: there is none
 * (which: those there are, for the text), or its arguments are not so many.
 */
const void *find_command(const char *tool, const void *all, size_t n, size_t bytes, const char *which, int argc,
			 char **argv, GError **err);

#endif
