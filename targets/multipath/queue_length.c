/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * queue-length: the path with the least requests in flight (dm-queue-length.rst).
 *
 *   each path: [<repeat_count>]
 *   its status: <in-flight>
 *
 * Paths with equally many take turns.
 */
#include <dmfs/path_selector.h>

struct queue_length_path {
	unsigned repeat_count;
	atomic_uint in_flight;
};

static unsigned in_flight(struct dm_path *path)
{
	return atomic_load_explicit(&((struct queue_length_path *)path->context)->in_flight, memory_order_relaxed);
}

static int queue_length_add_path(struct dm_path_selector *ps, struct dm_path *path, int argc, char **argv, GError **err)
{
	struct queue_length_path *p = path->context = g_new0(struct queue_length_path, 1);

	return dm_path_read_repeat_count("queue-length", argc, argv, 1, &p->repeat_count, err);
}

static struct dm_path *queue_length_select(struct dm_path_selector *ps, uint64_t bytes)
{
	unsigned first = dm_path_first(ps), chosen = 0, least = 0;
	struct dm_path *best = NULL;

	for (unsigned i = 0; i < ps->paths->len; i++) {
		struct dm_path *path = dm_path_nth(ps, first, i);
		unsigned n = in_flight(path);

		if (!dm_path_usable(path) || (best && n >= least))
			continue;
		best = path;
		chosen = i;
		least = n;
		if (!n)
			break;
	}
	if (best)
		dm_path_chosen(ps, first, chosen);
	return best;
}

static void queue_length_start(struct dm_path_selector *ps, struct dm_path *path, uint64_t bytes)
{
	atomic_fetch_add_explicit(&((struct queue_length_path *)path->context)->in_flight, 1, memory_order_relaxed);
}

static void queue_length_end(struct dm_path_selector *ps, struct dm_path *path, uint64_t bytes, uint64_t start_ns)
{
	atomic_fetch_sub_explicit(&((struct queue_length_path *)path->context)->in_flight, 1, memory_order_relaxed);
}

static void queue_length_status(struct dm_path_selector *ps, struct dm_path *path, enum dm_status_type type, GString *out)
{
	if (!path)
		g_string_append(out, " 0");
	else if (type == DM_STATUS_TABLE)
		g_string_append_printf(out, " %u", ((struct queue_length_path *)path->context)->repeat_count);
	else
		g_string_append_printf(out, " %u", in_flight(path));
}

extern const struct dm_path_selector_type dm_queue_length;
const struct dm_path_selector_type dm_queue_length = {
	.name = "queue-length",
	.table_args = 1,
	.info_args = 1,
	.add_path = queue_length_add_path,
	.select = queue_length_select,
	.start = queue_length_start,
	.end = queue_length_end,
	.status = queue_length_status,
};
