/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * queue-length: the path with the least requests in flight (dm-queue-length.rst).
 *
 *   each path: [<repeat_count>]
 *   its status: <in-flight>
 *
 * Paths with equally many take turns.
 */
#include <inttypes.h>

#include <dmfs/counter.h>
#include <dmfs/path_selector.h>

struct queue_length_path {
	unsigned repeat_count;
	struct dm_counter in_flight;
};

static uint64_t in_flight(struct dm_path *path)
{
	return dm_counter_sum(&((struct queue_length_path *)path->context)->in_flight);
}

static int queue_length_add_path(struct dm_path_selector *ps, struct dm_path *path, int argc, char **argv, GError **err)
{
	struct queue_length_path *p = path->context = g_new0(struct queue_length_path, 1);

	return dm_path_read_repeat_count("queue-length", argc, argv, 1, &p->repeat_count, err);
}

static struct dm_path *queue_length_select(struct dm_path_selector *ps, uint64_t bytes)
{
	unsigned first = dm_path_first(ps), chosen = 0;
	struct dm_path *best = NULL;
	uint64_t least = 0;

	if (dm_path_only(ps, &best))
		return best;
	for (unsigned i = 0; i < ps->paths->len; i++) {
		struct dm_path *path = dm_path_nth(ps, first, i);
		uint64_t n = in_flight(path);

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
	dm_counter_add(&((struct queue_length_path *)path->context)->in_flight, 1);
}

static void queue_length_end(struct dm_path_selector *ps, struct dm_path *path, uint64_t bytes, uint64_t start_ns)
{
	dm_counter_add(&((struct queue_length_path *)path->context)->in_flight, -1);
}

static void queue_length_status(struct dm_path_selector *ps, struct dm_path *path, enum dm_status_type type, GString *out)
{
	if (!path)
		g_string_append(out, " 0");
	else if (type == DM_STATUS_TABLE)
		g_string_append_printf(out, " %u", ((struct queue_length_path *)path->context)->repeat_count);
	else
		g_string_append_printf(out, " %" PRIu64, in_flight(path));
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
