/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The commands of a tool (commands.h). */
#include <errno.h>
#include <string.h>

#include "commands.h"
#include "fail.h"

const void *find_command(const char *tool, const void *all, size_t n, size_t bytes, const char *which, int argc,
			 char **argv, GError **err)
{
	for (size_t i = 0; argc > 1 && i < n; i++) {
		const struct usage *u = (const void *)((const char *)all + i * bytes);

		if (strcmp(argv[1], u->name))
			continue;
		if (argc - 2 >= u->min && argc - 2 <= u->max)
			return u;
		fail(err, EINVAL, "usage: %s %s %s", tool, u->name, u->args);
		return NULL;
	}
	fail(err, EINVAL, "a command is needed: %s (--help for all)", which);
	return NULL;
}
