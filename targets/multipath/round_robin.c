/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * round-robin: one path after the other.
 *
 *   each path: [<repeat_count>]
 *
 * The repeat count is printed and has no other meaning, as in the kernel.
 */
#include <dmfs/path_selector.h>

struct round_robin_path {
	unsigned repeat_count;
};

static int round_robin_add_path(struct dm_path_selector *ps, struct dm_path *path, int argc, char **argv, GError **err)
{
	struct round_robin_path *p = path->context = g_new0(struct round_robin_path, 1);

	return dm_path_read_repeat_count("round-robin", argc, argv, 1, &p->repeat_count, err);
}

static struct dm_path *round_robin_select(struct dm_path_selector *ps, uint64_t bytes)
{
	unsigned first = dm_path_first(ps);

	for (unsigned i = 0; i < ps->paths->len; i++) {
		struct dm_path *path = dm_path_nth(ps, first, i);

		if (dm_path_usable(path)) {
			dm_path_chosen(ps, first, i);
			return path;
		}
	}
	return NULL;
}

static void round_robin_status(struct dm_path_selector *ps, struct dm_path *path, enum dm_status_type type, GString *out)
{
	if (!path)
		g_string_append(out, " 0");
	else if (type == DM_STATUS_TABLE)
		g_string_append_printf(out, " %u", ((struct round_robin_path *)path->context)->repeat_count);
}

extern const struct dm_path_selector_type dm_round_robin;
const struct dm_path_selector_type dm_round_robin = {
	.name = "round-robin",
	.table_args = 1,
	.add_path = round_robin_add_path,
	.select = round_robin_select,
	.status = round_robin_status,
};
