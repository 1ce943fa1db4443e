/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * service-time: the path that would be done first, were all bytes in flight and the new request's served at the path's
 * relative throughput (dm-service-time.rst).
 *
 *   each path: [<repeat_count> [<relative_throughput>]]    0 to 100, 1 if not given
 *   its status: <in-flight-size> <relative_throughput>
 *
 * A path of throughput 0 is for when no other is left.  Equally good paths take turns.
 */
#include <inttypes.h>

#include <dmfs/counter.h>
#include <dmfs/path_selector.h>

#define MAX_THROUGHPUT 100

struct service_time_path {
	unsigned repeat_count, throughput;
	struct dm_counter in_flight; /* bytes */
};

static int service_time_add_path(struct dm_path_selector *ps, struct dm_path *path, int argc, char **argv, GError **err)
{
	struct service_time_path *p = path->context = g_new0(struct service_time_path, 1);
	int error = dm_path_read_repeat_count("service-time", argc, argv, 2, &p->repeat_count, err);

	p->throughput = 1;
	if (!error && argc > 1 && (!dm_parse_uint(argv[1], &p->throughput) || p->throughput > MAX_THROUGHPUT))
		return dm_fail(err, EINVAL, "multipath: service-time ps: invalid relative_throughput value '%s', 0 to %d",
			       argv[1], MAX_THROUGHPUT);
	return error;
}

/* Below 0 if path a, with so many bytes in flight, is the better one for bytes more; above if b is. */
static int compare(const struct service_time_path *a, uint64_t a_bytes, const struct service_time_path *b,
		   uint64_t b_bytes, uint64_t bytes)
{
	int faster = (int)b->throughput - (int)a->throughput;
	unsigned __int128 a_time, b_time;

	if (!faster)
		return a_bytes < b_bytes ? -1 : a_bytes > b_bytes;
	if (a_bytes == b_bytes || !a->throughput || !b->throughput)
		return faster;
	a_time = (unsigned __int128)(a_bytes + bytes) * b->throughput;
	b_time = (unsigned __int128)(b_bytes + bytes) * a->throughput;
	return a_time < b_time ? -1 : a_time > b_time ? 1 : faster;
}

static struct dm_path *service_time_select(struct dm_path_selector *ps, uint64_t bytes)
{
	unsigned first = dm_path_first(ps), chosen = 0;
	struct dm_path *best = NULL;
	uint64_t best_bytes = 0;

	if (dm_path_only(ps, &best))
		return best;
	for (unsigned i = 0; i < ps->paths->len; i++) {
		struct dm_path *path = dm_path_nth(ps, first, i);
		struct service_time_path *p = path->context;
		uint64_t in_flight = dm_counter_sum(&p->in_flight);

		if (!dm_path_usable(path) || (best && compare(p, in_flight, best->context, best_bytes, bytes) >= 0))
			continue;
		best = path;
		best_bytes = in_flight;
		chosen = i;
	}
	if (best)
		dm_path_chosen(ps, first, chosen);
	return best;
}

static void service_time_start(struct dm_path_selector *ps, struct dm_path *path, uint64_t bytes)
{
	dm_counter_add(&((struct service_time_path *)path->context)->in_flight, (int64_t)bytes);
}

static void service_time_end(struct dm_path_selector *ps, struct dm_path *path, uint64_t bytes, uint64_t start_ns)
{
	dm_counter_add(&((struct service_time_path *)path->context)->in_flight, -(int64_t)bytes);
}

static void service_time_status(struct dm_path_selector *ps, struct dm_path *path, enum dm_status_type type, GString *out)
{
	struct service_time_path *p = path ? path->context : NULL;

	if (!p)
		g_string_append(out, " 0");
	else if (type == DM_STATUS_TABLE)
		g_string_append_printf(out, " %u %u", p->repeat_count, p->throughput);
	else
		g_string_append_printf(out, " %" PRIu64 " %u", dm_counter_sum(&p->in_flight), p->throughput);
}

extern const struct dm_path_selector_type dm_service_time;
const struct dm_path_selector_type dm_service_time = {
	.name = "service-time",
	.table_args = 2,
	.info_args = 2,
	.add_path = service_time_add_path,
	.select = service_time_select,
	.start = service_time_start,
	.end = service_time_end,
	.status = service_time_status,
};
