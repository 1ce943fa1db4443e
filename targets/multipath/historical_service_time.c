/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * historical-service-time: the path that would be done first, by the time its requests have taken so far.
 *
 *   the group: [<base_weight> [<threshold_multiplier>]]    0 to 1023 (972 if not given), 0
 *   each path: [<repeat_count>]
 *   its status: <historical service time> <outstanding> <stale after>
 *
 * A path's historical service time is an average in which each request counts the more, the longer ago the one before
 * it: a time of 16.8 ms (2^24 ns) weighs what was known before with base_weight / 1024, two of them with its square,
 * and so on.  Times are nanoseconds with 10 binary places.
 *
 * Two paths are told apart by their times only if one is more than threshold_multiplier times the other's; else
 * the one with fewer requests under way is taken.  What is known of a path is stale when none of its requests has ended
 * for as long as a request of each path would take.  A stale path that is idle is tried with one request, and one
 * that is busy gets no more than the others.
 */
#include <inttypes.h>
#include <pthread.h>

#include <dmfs/path_selector.h>
#include <dmfs/work.h>

#define PLACES 10
#define ONE (UINT64_C(1) << PLACES)
#define MAX_TIME (UINT64_MAX >> PLACES)
#define DEFAULT_WEIGHT 972
#define PERIOD_SHIFT 24
#define PERIODS 64

struct hst {
	uint64_t weights[PERIODS];
	unsigned base_weight, threshold;
};

struct hst_path {
	unsigned repeat_count;
	pthread_mutex_t lock; /* for what end() computes */
	_Atomic uint64_t time, stale_after_ns;
	uint64_t last_end_ns;
	_Atomic uint64_t outstanding;
};

static int hst_create(struct dm_path_selector *ps, int argc, char **argv, GError **err)
{
	struct hst *s = ps->context = g_new0(struct hst, 1);
	int error = 0;

	s->base_weight = DEFAULT_WEIGHT;
	if (argc > 2)
		return dm_fail(err, EINVAL, "multipath: historical-service-time ps: %d arguments, 2 are the most", argc);
	if (argc > 0)
		error = dm_read_uint(argv[0], 0, ONE - 1, "multipath", "historical-service-time base weight",
				     &s->base_weight, err);
	if (!error && argc > 1)
		error = dm_read_uint(argv[1], 0, UINT32_MAX, "multipath", "historical-service-time threshold multiplier",
				     &s->threshold, err);
	s->weights[0] = s->base_weight;
	for (unsigned i = 1; i < PERIODS; i++)
		s->weights[i] = (s->weights[i - 1] * s->base_weight + ONE / 2) >> PLACES;
	return error;
}

static void hst_destroy(struct dm_path_selector *ps)
{
	for (unsigned i = 0; i < ps->paths->len; i++) {
		struct hst_path *p = ((struct dm_path *)ps->paths->pdata[i])->context;

		if (p)
			pthread_mutex_destroy(&p->lock);
	}
	g_free(ps->context);
}

static int hst_add_path(struct dm_path_selector *ps, struct dm_path *path, int argc, char **argv, GError **err)
{
	struct hst_path *p = path->context = g_new0(struct hst_path, 1);

	pthread_mutex_init(&p->lock, NULL);
	return dm_path_read_repeat_count("historical-service-time", argc, argv, 1, &p->repeat_count, err);
}

struct view {
	uint64_t time, outstanding, stale_after;
};

static struct view look(struct dm_path *path)
{
	struct hst_path *p = path->context;

	return (struct view){
		.time = atomic_load_explicit(&p->time, memory_order_relaxed),
		.outstanding = atomic_load_explicit(&p->outstanding, memory_order_relaxed),
		.stale_after = atomic_load_explicit(&p->stale_after_ns, memory_order_relaxed),
	};
}

static int fewer(const struct view *a, const struct view *b)
{
	return a->outstanding < b->outstanding ? -1 : a->outstanding > b->outstanding;
}

/* Below 0 if a is the better path, above if b is. */
static int compare(const struct hst *s, const struct view *a, const struct view *b, uint64_t now)
{
	const struct view *slow = a->time > b->time ? a : b, *fast = slow == a ? b : a;
	bool a_stale = a->stale_after < now, b_stale = b->stale_after < now, b_better;
	unsigned __int128 a_time, b_time;

	if (slow->time <= (unsigned __int128)s->threshold * fast->time)
		return fewer(a, b);
	if (!a->outstanding && !b->outstanding)
		return a->stale_after < b->stale_after ? -1 : a->stale_after > b->stale_after;
	if (!a->outstanding && a_stale)
		return -1;
	if (!b->outstanding && b_stale)
		return 1;
	a_time = (unsigned __int128)(a->outstanding + 1) * a->time;
	b_time = (unsigned __int128)(b->outstanding + 1) * b->time;
	b_better = a_time > b_time;
	if (b_better ? b_stale : a_stale)
		return fewer(a, b);
	return b_better ? 1 : -1;
}

static struct dm_path *hst_select(struct dm_path_selector *ps, uint64_t bytes)
{
	unsigned first = dm_path_first(ps), chosen = 0;
	struct dm_path *best = NULL;
	uint64_t now = dm_now_ns();
	struct view best_view = {0};

	for (unsigned i = 0; i < ps->paths->len; i++) {
		struct dm_path *path = dm_path_nth(ps, first, i);
		struct view view = look(path);

		if (!dm_path_usable(path) || (best && compare(ps->context, &view, &best_view, now) >= 0))
			continue;
		best = path;
		best_view = view;
		chosen = i;
	}
	if (best)
		dm_path_chosen(ps, first, chosen);
	return best;
}

static void hst_start(struct dm_path_selector *ps, struct dm_path *path, uint64_t bytes)
{
	atomic_fetch_add_explicit(&((struct hst_path *)path->context)->outstanding, 1, memory_order_relaxed);
}

static unsigned usable_paths(struct dm_path_selector *ps)
{
	unsigned n = 0;

	for (unsigned i = 0; i < ps->paths->len; i++)
		n += dm_path_usable(ps->paths->pdata[i]);
	return n;
}

static void hst_end(struct dm_path_selector *ps, struct dm_path *path, uint64_t bytes, uint64_t start_ns)
{
	struct hst_path *p = path->context;
	const struct hst *s = ps->context;
	uint64_t now = dm_now_ns(), since, took, weight, time;

	pthread_mutex_lock(&p->lock);
	since = MAX(start_ns, p->last_end_ns);
	took = now > since ? now - since : 0;
	p->last_end_ns = now;
	weight = s->weights[MIN(took >> PERIOD_SHIFT, PERIODS - 1)];
	time = (uint64_t)(((unsigned __int128)atomic_load(&p->time) * weight +
			   (unsigned __int128)MIN(took, MAX_TIME >> PLACES) * ONE * (ONE - weight) + ONE / 2) >> PLACES);
	atomic_store(&p->time, time);
	atomic_store(&p->stale_after_ns, now + usable_paths(ps) * (time >> PLACES));
	pthread_mutex_unlock(&p->lock);
	atomic_fetch_sub_explicit(&p->outstanding, 1, memory_order_relaxed);
}

static void hst_status(struct dm_path_selector *ps, struct dm_path *path, enum dm_status_type type, GString *out)
{
	const struct hst *s = ps->context;
	struct view view;

	if (!path) {
		g_string_append_printf(out, " 2 %u %u", s->base_weight, s->threshold);
	} else if (type == DM_STATUS_TABLE) {
		g_string_append(out, " 0");
	} else {
		view = look(path);
		g_string_append_printf(out, " %" PRIu64 " %" PRIu64 " %" PRIu64, view.time, view.outstanding,
				       view.stale_after);
	}
}

extern const struct dm_path_selector_type dm_historical_service_time;
const struct dm_path_selector_type dm_historical_service_time = {
	.name = "historical-service-time",
	.table_args = 1,
	.info_args = 3,
	.timed = true,
	.create = hst_create,
	.destroy = hst_destroy,
	.add_path = hst_add_path,
	.select = hst_select,
	.start = hst_start,
	.end = hst_end,
	.status = hst_status,
};
