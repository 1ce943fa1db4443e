/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * `control`: the first device-mapper's /proc interface.
 *
 *   create NAME [MINOR]
 *   remove NAME [deferred]
 *   rename OLD NEW
 *
 * A write holds whole commands, one a line; they are done in order until one fails.
 */
#include <errno.h>
#include <string.h>

#include "files.h"

static struct dm_mapped *find(const char *name, GError **err)
{
	struct dm_mapped *md = dm_find_name(name);

	if (!md)
		dm_fail(err, ENXIO, "there is no device '%s'", name);
	return md;
}

static int create(char **args, unsigned n, GError **err)
{
	struct dm_mapped *md;
	unsigned minor_nr = 0;
	int error;

	if (n == 2) {
		error = dm_read_uint(args[1], 0, DM_MINOR_MAX, "create", "minor", &minor_nr, err);
		if (error)
			return error;
	}
	error = dm_create(args[0], n == 2 ? (int)minor_nr : -1, &md, err);
	if (!error)
		dm_mapped_unref(md);
	return error;
}

static int remove_device(char **args, unsigned n, GError **err)
{
	struct dm_mapped *md;
	int error = -ENXIO;

	if (n == 2 && strcmp(args[1], "deferred"))
		return dm_fail(err, EINVAL, "remove takes a name and perhaps 'deferred', not '%.32s'", args[1]);
	md = find(args[0], err);
	if (md)
		error = n == 2 ? dmfs_remove_deferred(md, err) : dmfs_remove(md, err);
	dm_mapped_unref(md);
	return error;
}

static int rename_device(char **args, unsigned n, GError **err)
{
	struct dm_mapped *md = find(args[0], err);
	int error = md ? dm_rename(md, args[1], err) : -ENXIO;

	dm_mapped_unref(md);
	return error;
}

static const struct command {
	const char *name, *usage;
	unsigned min, max;
	int (*fn)(char **args, unsigned n, GError **err);
} commands[] = {
	{"create", "create NAME [MINOR]", 1, 2, create},
	{"remove", "remove NAME [deferred]", 1, 2, remove_device},
	{"rename", "rename OLD NEW", 2, 2, rename_device},
};

static int run(char *line, GError **err)
{
	g_autoptr(GPtrArray) words = dm_split_words(line);
	char **w = (char **)words->pdata;
	unsigned n = words->len - 1;

	if (!n || w[0][0] == '#')
		return 0;
	for (unsigned i = 0; i < G_N_ELEMENTS(commands); i++) {
		const struct command *c = &commands[i];

		if (strcmp(c->name, w[0]))
			continue;
		if (n - 1 < c->min || n - 1 > c->max)
			return dm_fail(err, EINVAL, "usage: %s", c->usage);
		return c->fn(w + 1, n - 1, err);
	}
	return dm_fail(err, EINVAL, "'%.32s' is none of create, remove, rename", w[0]);
}

static int control_write(struct dmfs_handle *h, fuse_req_t req, char *text, size_t len, GError **err)
{
	int error = 0;

	while (!error && *text) {
		char *end = text;
		bool last;

		while (*end && *end != '\n') /* a quoted newline is one of a name */
			end += 1 + (*end == '\\' && end[1]);
		last = !*end;
		*end = '\0';
		error = run(text, err);
		text = end + !last;
	}
	return error;
}

static int control_text(struct dmfs_handle *h, GString *out)
{
	for (unsigned i = 0; i < G_N_ELEMENTS(commands); i++)
		g_string_append_printf(out, "%s\n", commands[i].usage);
	return 0;
}

const struct dmfs_file dmfs_control_file = {
	.name = "control",
	.mode = 0600,
	.read_text = control_text,
	.write_text = control_write,
};
