/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * I/O statistics (stats.h).
 *
 * Counters of an area are kept once for each CPU slot, no two slots in one cache line, and summed up when printed; what
 * must be exact at a moment (bios in flight and the time since that last changed) is kept once.  An area is found by a
 * division.  Times are taken in nanoseconds; regions without precise_timestamps print milliseconds.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "stats.h"

#include <dmfs/work.h>

#define NS_PER_MS 1000000u
#define MEMORY_SHARE 4 /* of the system's memory may go to statistics: one in this many */
#define CACHE_LINE 64u

enum { READ, WRITE };

/* Of one area on one CPU slot.  The histogram's counters follow. */
struct counters {
	atomic_ullong ios[2], merges[2], sectors[2], ns[2];
	atomic_ullong io_ns[2], io_ns_total, queue_ns;
	atomic_ullong histogram[];
};

struct shared {
	atomic_int in_flight[2];
	atomic_ullong stamp_ns;
};

struct region {
	unsigned id;
	uint64_t start, end, step;
	uint64_t areas;
	bool precise;
	char *program, *aux;
	GArray *bounds; /* of uint64_t, in the region's unit; NULL: no histogram */
	size_t counters_size, slot_size, bytes;
	struct shared *shared; /* [areas] */
	char *memory;
	char *counters; /* in memory: [slots] of slot_size, each [areas] of counters_size */
};

struct last {
	atomic_ullong sector;
	atomic_int direction;
	char pad[48];
};

struct dm_stats {
	GPtrArray *regions; /* by id */
	struct last *last;  /* [slots] */
};

static atomic_ullong allocated;

/* --- counting ------------------------------------------------------------------------------ */

static struct counters *area_counters(const struct region *r, unsigned slot, uint64_t area)
{
	return (struct counters *)(void *)(r->counters + slot * r->slot_size + area * r->counters_size);
}

static void add(atomic_ullong *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

/* Accounts the time since the number in flight last changed. */
static void pass_time(struct shared *s, struct counters *c, uint64_t now)
{
	uint64_t before = atomic_exchange_explicit(&s->stamp_ns, now, memory_order_relaxed);
	int reads = atomic_load_explicit(&s->in_flight[READ], memory_order_relaxed);
	int writes = atomic_load_explicit(&s->in_flight[WRITE], memory_order_relaxed);

	if (now <= before)
		return;
	if (reads)
		add(&c->io_ns[READ], now - before);
	if (writes)
		add(&c->io_ns[WRITE], now - before);
	if (reads || writes) {
		add(&c->io_ns_total, now - before);
		add(&c->queue_ns, (uint64_t)(reads + writes) * (now - before));
	}
}

static unsigned bucket(const struct region *r, uint64_t ns)
{
	uint64_t value = r->precise ? ns : ns / NS_PER_MS;
	unsigned low = 0, high = r->bounds->len;

	while (low < high) { /* the first bound that is greater */
		unsigned mid = (low + high) / 2;

		if (value < g_array_index(r->bounds, uint64_t, mid))
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

static unsigned current_slot(void)
{
	return (unsigned)sched_getcpu() & (dm_gate_slots - 1);
}

struct sample {
	uint64_t now, ns;
	int direction;
	bool end, merged;
};

static void count_area(struct region *r, unsigned slot, uint64_t area, uint64_t sectors, const struct sample *x)
{
	struct counters *c = area_counters(r, slot, area);
	struct shared *s = &r->shared[area];
	int d = x->direction;

	pass_time(s, c, x->now);
	if (!x->end) {
		atomic_fetch_add(&s->in_flight[d], 1);
		return;
	}
	atomic_fetch_sub(&s->in_flight[d], 1);
	add(&c->ios[d], 1);
	add(&c->merges[d], x->merged);
	add(&c->sectors[d], sectors);
	add(&c->ns[d], x->ns);
	if (r->bounds)
		add(&c->histogram[bucket(r, x->ns)], 1);
}

static void count(struct dm_stats *stats, const struct dm_bio *bio, const struct sample *x)
{
	uint64_t begin = bio->sector, end = bio->sector + bio->sectors;
	unsigned slot = current_slot();

	for (unsigned i = 0; i < stats->regions->len; i++) {
		struct region *r = stats->regions->pdata[i];
		uint64_t at = MAX(begin, r->start), stop = MIN(end, r->end);

		while (at < stop) {
			uint64_t area = (at - r->start) / r->step;
			uint64_t left = r->step - (at - r->start) % r->step;
			uint64_t len = MIN(stop - at, left);

			count_area(r, slot, area, len, x);
			at += len;
		}
	}
}

bool dm_stats_start(struct dm_stats *stats, const struct dm_bio *bio, uint64_t *start_ns)
{
	struct last *last = &stats->last[current_slot()];
	struct sample x = {.now = dm_now_ns(), .direction = bio->op != DM_READ};
	bool merged;

	merged = atomic_load_explicit(&last->sector, memory_order_relaxed) == bio->sector &&
		 atomic_load_explicit(&last->direction, memory_order_relaxed) == x.direction && bio->sectors;
	atomic_store_explicit(&last->sector, bio->sector + bio->sectors, memory_order_relaxed);
	atomic_store_explicit(&last->direction, x.direction, memory_order_relaxed);
	*start_ns = x.now;
	count(stats, bio, &x);
	return merged;
}

void dm_stats_end(struct dm_stats *stats, const struct dm_bio *bio, uint64_t start_ns, bool merged)
{
	struct sample x = {.now = dm_now_ns(), .direction = bio->op != DM_READ, .end = true, .merged = merged};

	x.ns = x.now - start_ns;
	count(stats, bio, &x);
}

/* --- regions -------------------------------------------------------------------------------- */

static void region_free(gpointer p)
{
	struct region *r = p;

	atomic_fetch_sub(&allocated, r->bytes);
	g_free(r->memory);
	g_free(r->program);
	g_free(r->aux);
	if (r->bounds)
		g_array_free(r->bounds, TRUE);
	g_free(r->shared);
	g_free(r);
}

static atomic_uint devices_counted;

bool dm_stats_any(void)
{
	return atomic_load_explicit(&devices_counted, memory_order_relaxed);
}

static struct dm_stats *stats_new(void)
{
	struct dm_stats *stats = g_new0(struct dm_stats, 1);

	atomic_fetch_add(&devices_counted, 1);
	stats->regions = g_ptr_array_new_with_free_func(region_free);
	stats->last = g_new0(struct last, dm_gate_slots);
	for (unsigned i = 0; i < dm_gate_slots; i++)
		atomic_init(&stats->last[i].sector, UINT64_MAX);
	return stats;
}

void dm_stats_free(struct dm_stats *stats)
{
	if (!stats)
		return;
	atomic_fetch_sub(&devices_counted, 1);
	g_ptr_array_free(stats->regions, TRUE);
	g_free(stats->last);
	g_free(stats);
}

static int invalid(GError **err, const char *message, const char *why)
{
	return dm_fail(err, EINVAL, "stats: Invalid parameters for message %s: %s", message, why);
}

/* "-" or "START+LENGTH" */
static bool parse_range(struct dm_mapped *md, const char *s, struct region *r)
{
	const char *plus = strchr(s, '+');
	g_autofree char *first = plus ? g_strndup(s, (gsize)(plus - s)) : NULL;
	uint64_t len;

	if (!strcmp(s, "-")) {
		r->start = 0;
		r->end = dm_mapped_sectors(md);
		return r->end > 0;
	}
	return plus && dm_parse_u64(first, &r->start) && dm_parse_u64(plus + 1, &len) && len &&
	       !__builtin_add_overflow(r->start, len, &r->end);
}

/* "AREA_SIZE" or "/NUMBER" */
static bool parse_step(const char *s, struct region *r)
{
	uint64_t n, len = r->end - r->start;

	if (!dm_parse_u64(s + (*s == '/'), &n) || !n)
		return false;
	r->step = *s == '/' ? MAX(len / n + (len % n != 0), 1) : n;
	r->areas = len / r->step + (len % r->step != 0);
	return true;
}

static bool parse_histogram(const char *s, struct region *r)
{
	g_auto(GStrv) words = g_strsplit(s, ",", -1);
	uint64_t before = 0, n;

	if (r->bounds)
		return false;
	r->bounds = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	for (unsigned i = 0; words[i]; i++) {
		if (!dm_parse_u64(words[i], &n) || (i && n <= before))
			return false;
		g_array_append_val(r->bounds, n);
		before = n;
	}
	return r->bounds->len > 0;
}

static bool parse_optional(struct dm_args *as, struct region *r)
{
	unsigned n;

	if (!as->argc || !dm_parse_uint(as->argv[0], &n))
		return true; /* a program id */
	dm_shift_arg(as);
	if (n > (unsigned)as->argc)
		return false;
	while (n--) {
		const char *word = dm_shift_arg(as);

		if (!strcmp(word, "precise_timestamps"))
			r->precise = true;
		else if (!g_str_has_prefix(word, "histogram:") || !parse_histogram(word + strlen("histogram:"), r))
			return false;
	}
	return true;
}

/* The bytes of a region and of its parts; false: no number holds them. */
static bool region_bytes(struct region *r, size_t *shared, size_t *counters, uint64_t *all)
{
	uint64_t texts =
	    sizeof *r + strlen(r->program) + strlen(r->aux) + 2 + (r->bounds ? r->bounds->len * sizeof(uint64_t) : 0);

	r->counters_size = sizeof(struct counters) + (r->bounds ? (r->bounds->len + 1) * sizeof(uint64_t) : 0);
	if (r->areas == UINT64_MAX || __builtin_mul_overflow(r->areas, r->counters_size, &r->slot_size) ||
	    __builtin_add_overflow(r->slot_size, CACHE_LINE - 1, &r->slot_size))
		return false;
	r->slot_size &= ~(size_t)(CACHE_LINE - 1);
	return !__builtin_mul_overflow(r->slot_size, dm_gate_slots, counters) &&
	       !__builtin_add_overflow(*counters, CACHE_LINE - 1, counters) &&
	       !__builtin_mul_overflow(r->areas, sizeof(struct shared), shared) &&
	       !__builtin_add_overflow(*counters, *shared, all) && !__builtin_add_overflow(*all, texts, all);
}

/* Takes so many bytes from what statistics may use. */
static int charge(uint64_t bytes, GError **err)
{
	uint64_t limit = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / MEMORY_SHARE;

	if (bytes <= limit) {
		if (atomic_fetch_add(&allocated, bytes) + bytes <= limit)
			return 0;
		atomic_fetch_sub(&allocated, bytes);
	}
	return dm_fail(err, ENOMEM,
		       "stats: %" PRIu64 " bytes more is more than statistics may use (%" PRIu64 " in all)", bytes,
		       limit);
}

static int allocate(struct region *r, GError **err)
{
	size_t counters, shared;
	uint64_t all;
	int error;

	if (!region_bytes(r, &shared, &counters, &all))
		return dm_fail(err, EOVERFLOW, "stats: %" PRIu64 " areas are too many to be counted", r->areas);
	error = charge(all, err);
	if (error)
		return error;
	r->bytes = all;
	r->shared = g_try_malloc0(shared);
	r->memory = g_try_malloc0(counters);
	if (!r->shared || !r->memory)
		return dm_fail(err, ENOMEM, "stats: no memory for %" PRIu64 " areas", r->areas);
	r->counters = r->memory + (CACHE_LINE - (uintptr_t)r->memory % CACHE_LINE) % CACHE_LINE;
	return 0;
}

/* Puts a region into the lowest free id's place, while no bio is inside. */
static void insert(struct dm_mapped *md, struct region *r)
{
	struct dm_stats *stats;
	unsigned at = 0;

	dm_mapped_quiesce(md);
	stats = atomic_load(&md->stats);
	if (!stats)
		stats = stats_new();
	while (at < stats->regions->len && ((struct region *)stats->regions->pdata[at])->id == at)
		at++;
	r->id = at;
	g_ptr_array_insert(stats->regions, (gint)at, r);
	atomic_store(&md->stats, stats);
	dm_mapped_unquiesce(md);
}

/* The messages: md->stats_lock is held, and keeps regions from going away. */

static int create(struct dm_mapped *md, int argc, char **argv, GString *reply, GError **err)
{
	struct region *r = g_new0(struct region, 1);
	struct dm_args as = {argc - 1, argv + 1};
	const char *why = NULL;
	int error;

	if (as.argc < 2)
		why = "<range> <step> are missing";
	else if (!parse_range(md, dm_shift_arg(&as), r))
		why = "the range is - or START+LENGTH";
	else if (!parse_step(dm_shift_arg(&as), r))
		why = "the step is a number of sectors or /AREAS";
	else if (!parse_optional(&as, r))
		why = "options are precise_timestamps and histogram:N1,N2,... in ascending order";
	else if (as.argc > 2)
		why = "too many arguments";
	if (why) {
		region_free(r);
		return invalid(err, argv[0], why);
	}
	r->program = g_strdup(as.argc > 0 ? as.argv[0] : "-");
	r->aux = g_strdup(as.argc > 1 ? as.argv[1] : "-");
	error = allocate(r, err);
	if (error) {
		region_free(r);
		return error;
	}
	for (uint64_t i = 0; i < r->areas; i++)
		atomic_init(&r->shared[i].stamp_ns, dm_now_ns());
	insert(md, r);
	g_string_append_printf(reply, "%u", r->id);
	return 0;
}

/* The region of argv[1]. */
static struct region *find(struct dm_mapped *md, int argc, char **argv, int *error, GError **err)
{
	struct dm_stats *stats = atomic_load(&md->stats);
	unsigned id;

	if (argc < 2 || !dm_parse_uint(argv[1], &id)) {
		*error = invalid(err, argv[0], "<region_id> is missing or not a number");
		return NULL;
	}
	for (unsigned i = 0; stats && i < stats->regions->len; i++) {
		struct region *r = stats->regions->pdata[i];

		if (r->id == id)
			return r;
	}
	*error = dm_fail(err, ENOENT, "stats: there is no region %u", id);
	return NULL;
}

static int delete (struct dm_mapped *md, int argc, char **argv, GString *reply, GError **err)
{
	int error = argc == 2 ? 0 : invalid(err, argv[0], "one <region_id> is needed");
	struct region *r = error ? NULL : find(md, argc, argv, &error, err);
	struct dm_stats *stats;

	if (!r)
		return error;
	dm_mapped_quiesce(md);
	stats = atomic_load(&md->stats);
	g_ptr_array_remove(stats->regions, r);
	if (!stats->regions->len) {
		atomic_store(&md->stats, NULL);
		dm_stats_free(stats);
	}
	dm_mapped_unquiesce(md);
	return 0;
}

/* --- printing ------------------------------------------------------------------------------------ */

struct sums {
	uint64_t ios[2], merges[2], sectors[2], ns[2], io_ns[2], io_ns_total, queue_ns;
	uint64_t *histogram;
};

/* Reads a counter, and takes what was read away from it if it is to be cleared: nothing is lost between. */
static uint64_t take(atomic_ullong *counter, bool clear)
{
	return clear ? atomic_exchange(counter, 0) : atomic_load(counter);
}

static void sum_area(struct region *r, uint64_t area, bool clear, struct sums *out)
{
	unsigned buckets = r->bounds ? r->bounds->len + 1 : 0;

	for (unsigned slot = 0; slot < dm_gate_slots; slot++) {
		struct counters *c = area_counters(r, slot, area);

		for (int d = 0; d < 2; d++) {
			out->ios[d] += take(&c->ios[d], clear);
			out->merges[d] += take(&c->merges[d], clear);
			out->sectors[d] += take(&c->sectors[d], clear);
			out->ns[d] += take(&c->ns[d], clear);
			out->io_ns[d] += take(&c->io_ns[d], clear);
		}
		out->io_ns_total += take(&c->io_ns_total, clear);
		out->queue_ns += take(&c->queue_ns, clear);
		for (unsigned b = 0; b < buckets; b++)
			out->histogram[b] += take(&c->histogram[b], clear);
	}
}

static void print_area(struct region *r, uint64_t area, bool clear, GString *out)
{
	uint64_t unit = r->precise ? 1 : NS_PER_MS, start = r->start + area * r->step;
	g_autofree uint64_t *histogram = g_new0(uint64_t, r->bounds ? r->bounds->len + 1 : 1);
	struct sums s = {.histogram = histogram};
	struct shared *shared = &r->shared[area];

	sum_area(r, area, clear, &s);
	if (!out)
		return;
	g_string_append_printf(out, "%" PRIu64 "+%" PRIu64, start, r->step);
	for (int d = 0; d < 2; d++)
		g_string_append_printf(out, " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64, s.ios[d], s.merges[d],
				       s.sectors[d], s.ns[d] / unit);
	g_string_append_printf(out, " %d %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64,
			       atomic_load(&shared->in_flight[READ]) + atomic_load(&shared->in_flight[WRITE]),
			       s.io_ns_total / unit, s.queue_ns / unit, s.io_ns[READ] / unit, s.io_ns[WRITE] / unit);
	for (unsigned b = 0; r->bounds && b <= r->bounds->len; b++)
		g_string_append_printf(out, "%c%" PRIu64, b ? ':' : ' ', s.histogram[b]);
	g_string_append_c(out, '\n');
}

static int print(struct dm_mapped *md, int argc, char **argv, GString *reply, GError **err)
{
	bool clear = !strcmp(argv[0], "@stats_print_clear");
	uint64_t first = 0, lines = UINT64_MAX;
	struct region *r;
	int error = 0;

	if ((argc != 2 && argc != 4) ||
	    (argc == 4 && (!dm_parse_u64(argv[2], &first) || !dm_parse_u64(argv[3], &lines))))
		return invalid(err, argv[0], "<region_id> [<starting_line> <number_of_lines>] is what it takes");
	r = find(md, argc, argv, &error, err);
	if (!r)
		return error;
	for (uint64_t i = first; i < r->areas && i - first < lines; i++)
		print_area(r, i, clear, reply);
	return 0;
}

static int clear_region(struct dm_mapped *md, int argc, char **argv, GString *reply, GError **err)
{
	int error = argc == 2 ? 0 : invalid(err, argv[0], "one <region_id> is needed");
	struct region *r = error ? NULL : find(md, argc, argv, &error, err);

	for (uint64_t i = 0; r && i < r->areas; i++)
		print_area(r, i, true, NULL);
	return error;
}

static int set_aux(struct dm_mapped *md, int argc, char **argv, GString *reply, GError **err)
{
	int error = argc == 3 ? 0 : invalid(err, argv[0], "<region_id> <aux_data> are needed");
	struct region *r = error ? NULL : find(md, argc, argv, &error, err);

	size_t before = r ? strlen(r->aux) : 0, now = r ? strlen(argv[2]) : 0;

	if (!r)
		return error;
	error = charge(now, err);
	if (error)
		return error;
	atomic_fetch_sub(&allocated, before);
	r->bytes = r->bytes - before + now;
	g_free(r->aux);
	r->aux = g_strdup(argv[2]);
	return 0;
}

static int list(struct dm_mapped *md, int argc, char **argv, GString *reply, GError **err)
{
	struct dm_stats *stats = atomic_load(&md->stats);

	if (argc > 2)
		return invalid(err, argv[0], "[<program_id>] is what it takes");
	for (unsigned i = 0; stats && i < stats->regions->len; i++) {
		struct region *r = stats->regions->pdata[i];

		if (argc == 2 && strcmp(argv[1], r->program))
			continue;
		g_string_append_printf(reply, "%u: %" PRIu64 "+%" PRIu64 " %" PRIu64 " %s %s", r->id, r->start,
				       r->end - r->start, r->step, r->program, r->aux);
		if (r->precise)
			g_string_append(reply, " precise_timestamps");
		for (unsigned b = 0; r->bounds && b < r->bounds->len; b++)
			g_string_append_printf(reply, "%s%" PRIu64,
					       b ? "," : " histogram:", g_array_index(r->bounds, uint64_t, b));
		g_string_append_c(reply, '\n');
	}
	return 0;
}

int dm_stats_message(struct dm_mapped *md, int argc, char **argv, GString *reply, GError **err)
{
	static const struct {
		const char *name;
		int (*fn)(struct dm_mapped *, int, char **, GString *, GError **);
	} messages[] = {
	    {"@stats_create", create},	 {"@stats_delete", delete}, {"@stats_clear", clear_region},
	    {"@stats_list", list},	 {"@stats_print", print},   {"@stats_print_clear", print},
	    {"@stats_set_aux", set_aux},
	};

	for (unsigned i = 0; i < G_N_ELEMENTS(messages); i++) {
		int error;

		if (g_ascii_strcasecmp(messages[i].name, argv[0]))
			continue;
		pthread_mutex_lock(&md->stats_lock);
		error = messages[i].fn(md, argc, argv, reply, err);
		pthread_mutex_unlock(&md->stats_lock);
		return error;
	}
	return dm_fail(err, EINVAL, "Unsupported message sent to DM core: %.32s", argv[0]);
}
