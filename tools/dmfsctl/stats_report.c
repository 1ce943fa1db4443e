/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The columns of `stats list` and `stats report` (stats_report.h). */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "dmfsctl.h"
#include "report.h"
#include "stats_report.h"

struct sample {
	char *device;
	struct region *region;
	struct region *last; /* the same region's last sample, or NULL: the last round's */
};

/* What a row shows: an area of a region, a region with all its areas, or a group with all its regions. */
struct row_object {
	enum { AREA, REGION, GROUP } type;
	const struct sample *const *samples;
	unsigned n_samples;	     /* 1, but for a group */
	const struct sample *sample; /* the first of them */
	unsigned area;		     /* of an area */
	double interval;
};

/* --- samples --------------------------------------------------------------------------- */

static void free_sample(gpointer data)
{
	struct sample *s = data;

	g_free(s->device);
	region_free(s->region);
	g_free(s);
}

GPtrArray *samples_new(void)
{
	return g_ptr_array_new_with_free_func(free_sample);
}

static char *sample_key(const char *device, const struct region *r)
{
	return g_strdup_printf("%u %s", r->id, device);
}

void samples_add(GPtrArray *samples, const char *device, struct region *r, GHashTable *before)
{
	struct sample *s = g_new0(struct sample, 1);
	g_autofree char *key = sample_key(device, r);
	struct sample *last = before ? g_hash_table_lookup(before, key) : NULL;

	s->device = g_strdup(device);
	s->region = r;
	if (last && last->region->length == r->length && last->region->step == r->step &&
	    last->region->start == r->start && last->region->areas && r->areas &&
	    last->region->areas->len == r->areas->len)
		s->last = last->region;
	g_ptr_array_add(samples, s);
}

GHashTable *samples_table(GPtrArray *samples)
{
	GHashTable *table = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, free_sample);

	for (unsigned i = 0; i < samples->len; i++) {
		struct sample *s = samples->pdata[i];

		s->last = NULL;
		g_hash_table_insert(table, sample_key(s->device, s->region), s);
	}
	g_ptr_array_set_free_func(samples, NULL);
	g_ptr_array_free(samples, TRUE);
	return table;
}

/* --- values -------------------------------------------------------------------------------- */

/* Adds a function of the row's areas up: it gets the area now, and as it was in the last round or NULL. */
static double add_up(const struct row_object *o,
		     double (*of)(const struct sample *, const struct area *now, const struct area *then,
				  unsigned what),
		     unsigned what)
{
	double sum = 0;

	for (unsigned i = 0; i < o->n_samples; i++) {
		const struct sample *s = o->samples[i];
		unsigned n = s->region->areas ? s->region->areas->len : 0;
		unsigned first = o->type == AREA ? MIN(o->area, n) : 0, end = o->type == AREA ? MIN(o->area + 1, n) : n;

		for (unsigned a = first; a < end; a++)
			sum += of(s, s->region->areas->pdata[a], s->last ? s->last->areas->pdata[a] : NULL, what);
	}
	return sum;
}

/* What has been counted since the last round; a counter that was cleared meanwhile starts again. */
static double count_area(const struct sample *s, const struct area *now, const struct area *then, unsigned what)
{
	guint64 n = now->counter[what];

	(void)s;
	if (what != IN_FLIGHT && then && then->counter[what] <= n)
		n -= then->counter[what];
	return (double)n;
}

static double counted(const struct row_object *o, enum counter c)
{
	return add_up(o, count_area, c);
}

/* Regions of a group may be precise or not. */
static double count_area_ms(const struct sample *s, const struct area *now, const struct area *then, unsigned what)
{
	return count_area(s, now, then, what) / (s->region->precise ? 1e6 : 1);
}

/* A time counter in milliseconds. */
static double counted_ms(const struct row_object *o, enum counter c)
{
	return add_up(o, count_area_ms, c);
}

static void put_count(struct value *v, double n)
{
	v->number = n;
	g_string_append_printf(v->text, "%.0f", n);
}

static void put_rate(struct value *v, double n)
{
	v->number = n;
	g_string_append_printf(v->text, "%.2f", n);
}

static void put_size(struct value *v, double bytes)
{
	v->number = bytes / 512;
	size_print(v->text, (guint64)bytes, opt.units);
}

static double per(double n, double of)
{
	return of > 0 ? n / of : 0;
}

#define ROW(o) ((const struct row_object *)(o))
#define REGION(o) (ROW(o)->sample->region)

/* --- what is counted ----------------------------------------------------------------------- */

static void get_device(const void *o, struct value *v)
{
	g_autofree char *name = tree_shown_name(ROW(o)->sample->device);

	g_string_append(v->text, name);
}

static void get_unmangled_device(const void *o, struct value *v)
{
	g_string_append(v->text, ROW(o)->sample->device);
}

static void get_mangled_device(const void *o, struct value *v)
{
	g_autofree char *name = mangle(ROW(o)->sample->device);

	g_string_append(v->text, name);
}

static char *device_uuid(const void *o)
{
	int error;
	struct device *d = device_get(ROW(o)->sample->device, &error);
	char *uuid = g_strdup(d ? d->uuid : "");

	device_free(d);
	return uuid;
}

static void get_uuid(const void *o, struct value *v)
{
	g_autofree char *uuid = device_uuid(o);

	g_string_append(v->text, uuid);
}

static void get_mangled_uuid(const void *o, struct value *v)
{
	g_autofree char *uuid = device_uuid(o), *text = mangle(uuid);

	g_string_append(v->text, text);
}

static void get_read_ahead(const void *o, struct value *v)
{
	int error;
	struct device *d = device_get(ROW(o)->sample->device, &error);

	v->number = d ? d->read_ahead : 0;
	g_string_append_printf(v->text, "%.0f", v->number);
	device_free(d);
}

/* A group's alias, or the device's name. */
static void get_stats_name(const void *o, struct value *v)
{
	const char *alias = REGION(o)->group_alias;

	g_string_append(v->text, alias && *alias ? alias : ROW(o)->sample->device);
}

static void get_group(const void *o, struct value *v)
{
	v->number = (double)REGION(o)->group;
	if (REGION(o)->group >= 0)
		g_string_append_printf(v->text, "%" PRId64, REGION(o)->group);
	else
		g_string_append_c(v->text, '-');
}

static void get_region_id(const void *o, struct value *v)
{
	v->number = REGION(o)->id;
	if (ROW(o)->type == GROUP)
		g_string_append(v->text, REGION(o)->members);
	else
		g_string_append_printf(v->text, "%u", REGION(o)->id);
}

static void get_region_start(const void *o, struct value *v)
{
	put_size(v, (double)REGION(o)->start * 512);
}

static double length_bytes(const struct row_object *o)
{
	guint64 sectors = 0;

	for (unsigned i = 0; i < o->n_samples; i++)
		sectors += o->samples[i]->region->length;
	return (double)sectors * 512;
}

static void get_region_len(const void *o, struct value *v)
{
	put_size(v, length_bytes(o));
}

static void get_area_id(const void *o, struct value *v)
{
	put_count(v, ROW(o)->area);
}

static guint64 area_offset(const struct row_object *o)
{
	return o->area * o->sample->region->step;
}

static void get_area_start(const void *o, struct value *v)
{
	put_size(v, (double)(REGION(o)->start + area_offset(o)) * 512);
}

static void get_area_offset(const void *o, struct value *v)
{
	put_size(v, (double)area_offset(o) * 512);
}

static void get_area_len(const void *o, struct value *v)
{
	put_size(v, ROW(o)->type == GROUP ? length_bytes(o) : (double)REGION(o)->step * 512);
}

static void get_area_count(const void *o, struct value *v)
{
	put_count(v, ROW(o)->type == GROUP ? 1 : region_n_areas(REGION(o)));
}

static void get_program(const void *o, struct value *v)
{
	g_string_append(v->text, REGION(o)->program);
}

static void get_aux(const void *o, struct value *v)
{
	g_string_append(v->text, ROW(o)->type == GROUP ? "" : REGION(o)->aux);
}

static void get_precise(const void *o, struct value *v)
{
	put_count(v, REGION(o)->precise);
}

static void get_type(const void *o, struct value *v)
{
	static const char *const names[] = {"area", "region", "group"};

	g_string_append(v->text, names[ROW(o)->type]);
}

/* --- histograms ------------------------------------------------------------------------------- */

static guint64 bound_ns(const struct region *r, unsigned bin)
{
	guint64 bound = bin ? g_array_index(r->bounds, guint64, bin - 1) : 0;

	return r->precise ? bound : bound * 1000000;
}

static void bound_print(const struct region *r, unsigned bin, GString *out)
{
	time_print(out, bound_ns(r, bin), !opt.notimesuffix);
}

/* "0s-10ms", and of the last bin ">20ms" */
static void range_print(const struct region *r, unsigned bin, GString *out)
{
	if (bin == r->bounds->len)
		g_string_append_c(out, '>');
	bound_print(r, bin, out);
	if (bin < r->bounds->len) {
		g_string_append_c(out, '-');
		bound_print(r, bin + 1, out);
	}
}

static unsigned n_bins(const struct region *r)
{
	return r->bounds->len ? r->bounds->len + 1 : 0;
}

static void get_bins(const void *o, struct value *v)
{
	put_count(v, n_bins(REGION(o)));
}

static void list_bins(const struct region *r, void (*print)(const struct region *, unsigned, GString *), GString *out)
{
	for (unsigned i = 0; i < n_bins(r); i++) {
		if (i)
			g_string_append_c(out, ',');
		print(r, i, out);
	}
}

static void get_bounds(const void *o, struct value *v)
{
	list_bins(REGION(o), bound_print, v->text);
}

static void get_ranges(const void *o, struct value *v)
{
	list_bins(REGION(o), range_print, v->text);
}

static double count_bin(const struct sample *s, const struct area *now, const struct area *then, unsigned bin)
{
	guint64 n = bin < now->histogram->len ? g_array_index(now->histogram, guint64, bin) : 0;
	guint64 old = then && bin < then->histogram->len ? g_array_index(then->histogram, guint64, bin) : 0;

	(void)s;
	return (double)(old <= n ? n - old : n);
}

/* Values in columns are as wide as dmstats makes them; others have no blanks, for programs to read. */
static bool in_columns(void)
{
	return !opt.noheadings && !opt.nameprefixes && !opt.separator;
}

/* The bins' counts or percentages, with what `label` prints of a bin before each. */
static void print_histogram(const struct row_object *o, bool percent,
			    void (*label)(const struct region *, unsigned, GString *), GString *out)
{
	const struct region *r = o->sample->region;
	int label_width = label ? 6 : -1, width = percent ? 7 : 6;
	double total = 0;

	for (unsigned i = 0; i < n_bins(r); i++)
		total += add_up(o, count_bin, i);
	for (unsigned i = 0; i < n_bins(r); i++) {
		g_autoptr(GString) text = g_string_new(NULL), value = g_string_new(NULL);
		double n = add_up(o, count_bin, i);
		int used;

		if (label) {
			label(r, i, text);
			g_string_append_c(text, ':');
		}
		if (percent)
			g_string_printf(value, "%.2f%%", per(n * 100, total));
		else
			g_string_printf(value, "%.0f", n);
		if (!in_columns()) {
			g_string_append_printf(out, "%s%s%s", i ? ":" : "", text->str, value->str);
			continue;
		}
		used = MAX((int)text->len, label_width + 1);
		g_string_append_printf(out, "%s%*s%*s", i && label ? "," : "", label_width + 1, text->str,
				       MAX(0, label_width + 1 + width - used), value->str);
	}
}

static void get_histogram(const void *o, struct value *v)
{
	print_histogram(o, false, NULL, v->text);
}

static void get_histogram_bounds(const void *o, struct value *v)
{
	print_histogram(o, false, bound_print, v->text);
}

static void get_histogram_ranges(const void *o, struct value *v)
{
	print_histogram(o, false, range_print, v->text);
}

static void get_percent(const void *o, struct value *v)
{
	print_histogram(o, true, NULL, v->text);
}

static void get_percent_bounds(const void *o, struct value *v)
{
	print_histogram(o, true, bound_print, v->text);
}

static void get_percent_ranges(const void *o, struct value *v)
{
	print_histogram(o, true, range_print, v->text);
}

/* --- counters and rates ---------------------------------------------------------------------------- */

#define COUNT_FIELD(name, counter)                                                                                   \
	static void get_##name(const void *o, struct value *v)                                                       \
	{                                                                                                            \
		put_count(v, counted(o, counter));                                                                   \
	}
#define NS_FIELD(name, counter)                                                                                      \
	static void get_##name(const void *o, struct value *v)                                                       \
	{                                                                                                            \
		put_count(v, counted_ms(o, counter) * 1e6);                                                          \
	}
#define RATE_FIELD(name, rate)                                                                                       \
	static void get_##name(const void *o, struct value *v)                                                       \
	{                                                                                                            \
		put_rate(v, rate);                                                                                   \
	}

COUNT_FIELD(read_count, READS)
COUNT_FIELD(reads_merged, READS_MERGED)
COUNT_FIELD(read_sectors, READ_SECTORS)
NS_FIELD(read_time, READ_MS)
COUNT_FIELD(write_count, WRITES)
COUNT_FIELD(writes_merged, WRITES_MERGED)
COUNT_FIELD(write_sectors, WRITE_SECTORS)
NS_FIELD(write_time, WRITE_MS)
COUNT_FIELD(in_progress, IN_FLIGHT)
NS_FIELD(io_ticks, IO_MS)
NS_FIELD(queue_ticks, QUEUE_MS)
NS_FIELD(read_ticks, READ_IO_MS)
NS_FIELD(write_ticks, WRITE_IO_MS)
RATE_FIELD(read_merges, per(counted(o, READS_MERGED), ROW(o)->interval))
RATE_FIELD(write_merges, per(counted(o, WRITES_MERGED), ROW(o)->interval))
RATE_FIELD(reads, per(counted(o, READS), ROW(o)->interval))
RATE_FIELD(writes, per(counted(o, WRITES), ROW(o)->interval))
RATE_FIELD(queue_size, per(counted_ms(o, QUEUE_MS), ROW(o)->interval * 1000))
RATE_FIELD(util, MIN(100, per(counted_ms(o, IO_MS), ROW(o)->interval * 10)))
RATE_FIELD(await, per(counted_ms(o, READ_MS) + counted_ms(o, WRITE_MS), counted(o, READS) + counted(o, WRITES)))
RATE_FIELD(read_await, per(counted_ms(o, READ_MS), counted(o, READS)))
RATE_FIELD(write_await, per(counted_ms(o, WRITE_MS), counted(o, WRITES)))
RATE_FIELD(throughput, per(counted(o, READS) + counted(o, WRITES), ROW(o)->interval))
RATE_FIELD(service_time, per(counted_ms(o, IO_MS), counted(o, READS) + counted(o, WRITES)))

static void get_read_size(const void *o, struct value *v)
{
	put_size(v, per(counted(o, READ_SECTORS) * 512, ROW(o)->interval));
}

static void get_write_size(const void *o, struct value *v)
{
	put_size(v, per(counted(o, WRITE_SECTORS) * 512, ROW(o)->interval));
}

static void get_request_size(const void *o, struct value *v)
{
	put_size(v, per((counted(o, READ_SECTORS) + counted(o, WRITE_SECTORS)) * 512,
			counted(o, READS) + counted(o, WRITES)));
}

static void get_interval(const void *o, struct value *v)
{
	v->number = ROW(o)->interval;
	g_string_append_printf(v->text, "%f", v->number);
}

static void get_interval_ns(const void *o, struct value *v)
{
	put_count(v, ROW(o)->interval * 1e9);
}

static const struct field fields[] = {
	{"name", "name", "Name", 16, FIELD_STRING, get_device, "Name of mapped device."},
	{"name", "mangled_name", "MangledName", 16, FIELD_STRING, get_mangled_device, "Mangled name of mapped device."},
	{"name", "unmangled_name", "UnmangledName", 16, FIELD_STRING, get_unmangled_device, "Unmangled name of mapped device."},
	{"name", "uuid", "UUID", 32, FIELD_STRING, get_uuid, "Unique (optional) identifier for mapped device."},
	{"name", "mangled_uuid", "MangledUUID", 32, FIELD_STRING, get_mangled_uuid,
	 "Mangled unique (optional) identifier for mapped device."},
	{"name", "unmangled_uuid", "UnmangledUUID", 32, FIELD_STRING, get_uuid,
	 "Unmangled unique (optional) identifier for mapped device."},
	{"name", "read_ahead", "RAhead", 6, FIELD_NUMBER, get_read_ahead, "Read ahead value."},

	{"stats", "read_count", "#Reads", 6, FIELD_NUMBER, get_read_count, "Count of reads completed."},
	{"stats", "reads_merged_count", "#RdMrgs", 7, FIELD_NUMBER, get_reads_merged, "Count of read requests merged."},
	{"stats", "read_sector_count", "#RdSectors", 10, FIELD_NUMBER, get_read_sectors, "Count of sectors read."},
	{"stats", "read_time", "AccRdTime", 11, FIELD_NUMBER, get_read_time,
	 "Accumulated duration of all read requests (ns)."},
	{"stats", "write_count", "#Writes", 7, FIELD_NUMBER, get_write_count, "Count of writes completed."},
	{"stats", "writes_merged_count", "#WrMrgs", 7, FIELD_NUMBER, get_writes_merged, "Count of write requests merged."},
	{"stats", "write_sector_count", "#WrSectors", 10, FIELD_NUMBER, get_write_sectors, "Count of sectors written."},
	{"stats", "write_time", "AccWrTime", 11, FIELD_NUMBER, get_write_time, "Accumulated duration of all writes (ns)."},
	{"stats", "in_progress_count", "#InProg", 7, FIELD_NUMBER, get_in_progress,
	 "Count of requests currently in progress."},
	{"stats", "io_ticks", "IoTicks", 7, FIELD_NUMBER, get_io_ticks, "Nanoseconds spent servicing requests."},
	{"stats", "queue_ticks", "QueueTicks", 10, FIELD_NUMBER, get_queue_ticks, "Total nanoseconds spent in queue."},
	{"stats", "read_ticks", "RdTicks", 7, FIELD_NUMBER, get_read_ticks, "Nanoseconds spent servicing reads."},
	{"stats", "write_ticks", "WrTicks", 7, FIELD_NUMBER, get_write_ticks, "Nanoseconds spent servicing writes."},
	{"stats", "reads_merged_per_sec", "RMrg/s", 6, FIELD_NUMBER, get_read_merges, "Read requests merged per second."},
	{"stats", "writes_merged_per_sec", "WMrg/s", 6, FIELD_NUMBER, get_write_merges,
	 "Write requests merged per second."},
	{"stats", "reads_per_sec", "R/s", 4, FIELD_NUMBER, get_reads, "Reads per second."},
	{"stats", "writes_per_sec", "W/s", 4, FIELD_NUMBER, get_writes, "Writes per second."},
	{"stats", "read_size_per_sec", "RSz/s", 5, FIELD_NUMBER, get_read_size, "Size of data read per second."},
	{"stats", "write_size_per_sec", "WSz/s", 5, FIELD_NUMBER, get_write_size, "Size of data written per second."},
	{"stats", "avg_request_size", "AvgRqSz", 7, FIELD_NUMBER, get_request_size, "Average request size."},
	{"stats", "queue_size", "QSize", 5, FIELD_NUMBER, get_queue_size, "Average queue size."},
	{"stats", "await", "AWait", 5, FIELD_NUMBER, get_await, "Average wait time."},
	{"stats", "read_await", "RdAWait", 7, FIELD_NUMBER, get_read_await, "Average read wait time."},
	{"stats", "write_await", "WrAWait", 7, FIELD_NUMBER, get_write_await, "Average write wait time."},
	{"stats", "throughput", "Throughput", 10, FIELD_NUMBER, get_throughput, "Throughput."},
	{"stats", "service_time", "SvcTm", 5, FIELD_NUMBER, get_service_time, "Service time."},
	{"stats", "util", "Util%", 5, FIELD_NUMBER, get_util, "Utilization."},
	{"stats", "hist_count", "Histogram Counts", 16, FIELD_STRING, get_histogram, "Latency histogram counts."},
	{"stats", "hist_count_bounds", "Histogram Counts", 16, FIELD_STRING, get_histogram_bounds,
	 "Latency histogram counts with bin boundaries."},
	{"stats", "hist_count_ranges", "Histogram Counts", 16, FIELD_STRING, get_histogram_ranges,
	 "Latency histogram counts with bin ranges."},
	{"stats", "hist_percent", "Histogram%", 10, FIELD_STRING, get_percent, "Relative latency histogram."},
	{"stats", "hist_percent_bounds", "Histogram%", 10, FIELD_STRING, get_percent_bounds,
	 "Relative latency histogram with bin boundaries."},
	{"stats", "hist_percent_ranges", "Histogram%", 10, FIELD_STRING, get_percent_ranges,
	 "Relative latency histogram with bin ranges."},
	{"stats", "interval_ns", "IntervalNs", 10, FIELD_NUMBER, get_interval_ns, "Sampling interval in nanoseconds."},
	{"stats", "interval", "Interval", 8, FIELD_NUMBER, get_interval, "Sampling interval."},

	{"region", "region_id", "RgID", 4, FIELD_NUMBER, get_region_id, "Region ID."},
	{"region", "region_start", "RgStart", 7, FIELD_NUMBER, get_region_start, "Region start."},
	{"region", "region_len", "RgSize", 6, FIELD_NUMBER, get_region_len, "Region length."},
	{"region", "area_id", "ArID", 4, FIELD_NUMBER, get_area_id, "Area ID."},
	{"region", "area_start", "ArStart", 7, FIELD_NUMBER, get_area_start, "Area offset from start of device."},
	{"region", "area_len", "ArSize", 6, FIELD_NUMBER, get_area_len, "Area length."},
	{"region", "area_offset", "ArOff", 5, FIELD_NUMBER, get_area_offset, "Area offset from start of region."},
	{"region", "area_count", "#Areas", 6, FIELD_NUMBER, get_area_count, "Area count."},
	{"region", "group_id", "GrpID", 5, FIELD_NUMBER, get_group, "Group ID."},
	{"region", "program_id", "ProgID", 6, FIELD_STRING, get_program, "Program ID."},
	{"region", "user_data", "UserData", 8, FIELD_STRING, get_aux, "Auxiliary data."},
	{"region", "precise", "Precise", 7, FIELD_STRING, get_precise, "Set if nanosecond precision counters are enabled."},
	{"region", "hist_bins", "#Bins", 9, FIELD_STRING, get_bins, "The number of histogram bins configured."},
	{"region", "hist_bounds", "Histogram Bounds", 16, FIELD_STRING, get_bounds, "Latency histogram bin boundaries."},
	{"region", "hist_ranges", "Histogram Ranges", 16, FIELD_STRING, get_ranges, "Latency histogram bin ranges."},
	{"region", "stats_name", "Name", 16, FIELD_STRING, get_stats_name, "Stats name of current object."},
	{"region", "obj_type", "ObjType", 7, FIELD_STRING, get_type, "Type of stats object being reported."},
};

static const struct field_group groups[] = {
	{"name", "Mapped Device Name"},
	{"stats", "Mapped Device Statistics"},
	{"region", "Mapped Device Statistics Region Information"},
};

/* --- printing -------------------------------------------------------------------------------------------- */

void samples_help(void)
{
	struct report_type type = {fields, G_N_ELEMENTS(fields), groups, G_N_ELEMENTS(groups), NULL};

	report_help(&type, true, false, stderr);
}

static void add_areas(struct report *r, const struct sample *const *samples, unsigned n, double interval)
{
	for (unsigned i = 0; i < n; i++)
		for (unsigned a = 0; a < region_n_areas(samples[i]->region); a++)
			report_add(r, &(struct row_object){AREA, samples + i, 1, samples[i], a, interval});
}

static void add_regions(struct report *r, const struct sample *const *samples, unsigned n, bool single, double interval)
{
	for (unsigned i = 0; i < n; i++)
		if (single || region_n_areas(samples[i]->region) > 1)
			report_add(r, &(struct row_object){REGION, samples + i, 1, samples[i], 0, interval});
}

/* A group is where its first region is; it has those of its regions that are being shown. */
static void add_groups(struct report *r, const struct sample *const *samples, unsigned n, double interval)
{
	for (unsigned i = 0; i < n; i++) {
		const struct region *leader = samples[i]->region;
		g_autoptr(GPtrArray) members = g_ptr_array_new();

		for (unsigned j = 0; leader->members && j < n; j++)
			if (samples[j]->region->group == leader->id)
				g_ptr_array_add(members, (gpointer)samples[j]);
		if (members->len)
			report_add(r, &(struct row_object){GROUP, (const struct sample *const *)members->pdata,
							   members->len, samples[i], 0, interval});
	}
}

static bool print_rows(GPtrArray *samples, const struct shown *shown, double interval, const char *defaults)
{
	struct report_type type = {fields, G_N_ELEMENTS(fields), groups, G_N_ELEMENTS(groups), defaults};
	struct report_options options = {
		.fields = opt.options,
		.sort = opt.sort,
		.select = opt.select,
		.separator = opt.separator,
		.noheadings = opt.noheadings,
		.nameprefixes = opt.nameprefixes,
	};
	const struct sample *const *all = (const struct sample *const *)samples->pdata;
	struct report *r;
	enum report_made made = report_new(&type, &options, &r);

	if (made != REPORT_OK)
		exit(made == REPORT_HELPED ? 0 : 1);
	for (unsigned i = 0, n; i < samples->len; i += n) { /* a device at a time */
		for (n = 1; i + n < samples->len && !strcmp(all[i]->device, all[i + n]->device);)
			n++;
		if (shown->areas)
			add_areas(r, all + i, n, interval);
		if (shown->regions)
			add_regions(r, all + i, n, shown->single, interval);
		if (shown->groups)
			add_groups(r, all + i, n, interval);
	}
	report_print(r, stdout);
	report_free(r);
	return true;
}

bool samples_list(GPtrArray *samples, const struct shown *shown, bool verbose)
{
	if (opt.histogram)
		return print_rows(samples, shown, 0,
				  "stats_name,group_id,region_id,obj_type,region_start,region_len,area_count,area_len,"
				  "hist_bins,hist_bounds");
	return print_rows(samples, shown, 0,
			  verbose
			      ? "stats_name,group_id,region_id,obj_type,region_start,region_len,area_count,area_id,"
				"area_start,area_len,program_id"
			      : "stats_name,group_id,region_id,obj_type,region_start,region_len,area_count,area_len,"
				"program_id");
}

bool samples_report(GPtrArray *samples, const struct shown *shown, double interval)
{
	if (opt.histogram && opt.relative)
		return print_rows(
		    samples, shown, interval,
		    "stats_name,group_id,region_id,obj_type,region_start,region_len,area_count,area_len,util,"
		    "await,hist_percent_bounds");
	return print_rows(samples, shown, interval,
			  opt.histogram ? "stats_name,group_id,region_id,obj_type,region_start,region_len,area_count,"
					  "area_len,util,await,hist_count_bounds"
					: "stats_name,group_id,region_id,obj_type,area_id,area_start,area_len,"
					  "reads_merged_per_sec,writes_merged_per_sec,reads_per_sec,writes_per_sec,"
					  "read_size_per_sec,write_size_per_sec,avg_request_size,queue_size,util,await,"
					  "read_await,write_await");
}
