/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The arguments of a userspace log (userspace_args.h). */
#include <strings.h>

#include "userspace_args.h"

/*
 * Some write the count, some do not.  What could be both, "clustered-core 2 nosync", has no region size that is one if
 * it is taken for the wrong one, since a count is followed by as many words and a region size by one that is no number.
 */
void dm_userspace_skip_count(int *argc, char ***argv)
{
	unsigned n;

	if (*argc < 2 || !dm_parse_uint((*argv)[0], &n) || n != (unsigned)*argc - 1)
		return;
	if (n == 1 && (!strcmp((*argv)[1], "sync") || !strcmp((*argv)[1], "nosync")))
		return; /* a region size, though a wrong one */
	--*argc;
	++*argv;
}

int dm_userspace_args(const char *who, int argc, char **argv, struct dm_userspace_args *out, GError **err)
{
	GString *prefix;

	if (argc < 3)
		return dm_fail(err, EINVAL, "%s: Too few arguments to userspace dirty log: there are %d, <UUID> "
					    "[integrated_flush] <log type> <region size> would be right", who, argc);
	if (strlen(argv[0]) > DM_LOG_UUID_MAX)
		return dm_fail(err, EINVAL, "%s: UUID argument too long: '%.32s...' has %zu bytes, %d is the most", who, argv[0],
			       strlen(argv[0]), DM_LOG_UUID_MAX);
	*out = (struct dm_userspace_args){.uuid = argv[0], .integrated_flush = !strcasecmp(argv[1], "integrated_flush")};
	out->all_argc = argc - 1 - out->integrated_flush;
	out->all_argv = argv + 1 + out->integrated_flush;
	out->type = out->all_argv[0];
	out->argc = out->all_argc - 1;
	out->argv = out->all_argv + 1;
	dm_userspace_skip_count(&out->argc, &out->argv);
	prefix = g_string_new(NULL);
	dm_quote_word(out->uuid, prefix);
	if (out->integrated_flush)
		g_string_append(prefix, " integrated_flush");
	out->prefix = g_string_free(prefix, FALSE);
	return 0;
}
