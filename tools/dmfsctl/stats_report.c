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

/* What a row shows. */
struct row_object {
	const struct sample *sample;
	unsigned area;
	bool is_area;
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

static const struct area *area_of(const struct row_object *o)
{
	GPtrArray *areas = o->sample->region->areas;

	return areas && o->area < areas->len ? areas->pdata[o->area] : NULL;
}

/* What has been counted since the last round; a counter that was cleared meanwhile starts again. */
static double counted(const struct row_object *o, enum counter c)
{
	const struct area *now = area_of(o), *then = NULL;
	guint64 n = now ? now->counter[c] : 0;

	if (o->sample->last && now)
		then = o->sample->last->areas->pdata[o->area];
	if (c != IN_FLIGHT && then && then->counter[c] <= n)
		n -= then->counter[c];
	return (double)n;
}

/* A time counter in milliseconds. */
static double counted_ms(const struct row_object *o, enum counter c)
{
	return counted(o, c) / (o->sample->region->precise ? 1e6 : 1);
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

static void get_device(const void *o, struct value *v)
{
	g_string_append(v->text, ROW(o)->sample->device);
}

/* Regions are not grouped here. */
static void get_group(const void *o, struct value *v)
{
	(void)o;
	v->number = -1;
	g_string_append_c(v->text, '-');
}

static void get_region_id(const void *o, struct value *v)
{
	put_count(v, REGION(o)->id);
}

static void get_region_start(const void *o, struct value *v)
{
	put_size(v, (double)REGION(o)->start * 512);
}

static void get_region_len(const void *o, struct value *v)
{
	put_size(v, (double)REGION(o)->length * 512);
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
	put_size(v, (double)REGION(o)->step * 512);
}

static void get_area_count(const void *o, struct value *v)
{
	put_count(v, region_n_areas(REGION(o)));
}

static void get_program(const void *o, struct value *v)
{
	g_string_append(v->text, REGION(o)->program);
}

static void get_aux(const void *o, struct value *v)
{
	g_string_append(v->text, REGION(o)->aux);
}

static void get_precise(const void *o, struct value *v)
{
	put_count(v, REGION(o)->precise);
}

static void get_type(const void *o, struct value *v)
{
	g_string_append(v->text, ROW(o)->is_area ? "area" : "region");
}

/* --- histograms ------------------------------------------------------------------------------- */

static guint64 bound_ns(const struct region *r, unsigned bin)
{
	guint64 bound = bin ? g_array_index(r->bounds, guint64, bin - 1) : 0;

	return r->precise ? bound : bound * 1000000;
}

static void get_bins(const void *o, struct value *v)
{
	put_count(v, REGION(o)->bounds->len ? REGION(o)->bounds->len + 1 : 0);
}

static void get_bounds(const void *o, struct value *v)
{
	const struct region *r = REGION(o);

	for (unsigned i = 0; r->bounds->len && i <= r->bounds->len; i++) {
		if (i)
			g_string_append_c(v->text, ',');
		time_print(v->text, bound_ns(r, i));
	}
}

static void get_ranges(const void *o, struct value *v)
{
	const struct region *r = REGION(o);

	for (unsigned i = 0; r->bounds->len && i <= r->bounds->len; i++) {
		g_string_append(v->text, i == 0 ? "" : ",");
		g_string_append(v->text, i == r->bounds->len ? ">" : "");
		time_print(v->text, bound_ns(r, i));
		if (i < r->bounds->len) {
			g_string_append_c(v->text, '-');
			time_print(v->text, bound_ns(r, i + 1));
		}
	}
}

static guint64 bin_count(const struct row_object *o, unsigned bin)
{
	const struct area *now = area_of(o), *then = NULL;
	guint64 n = now && bin < now->histogram->len ? g_array_index(now->histogram, guint64, bin) : 0, old;

	if (o->sample->last && now)
		then = o->sample->last->areas->pdata[o->area];
	old = then && bin < then->histogram->len ? g_array_index(then->histogram, guint64, bin) : 0;
	return old <= n ? n - old : n;
}

static void get_histogram(const void *o, struct value *v)
{
	const struct region *r = REGION(o);

	for (unsigned i = 0; r->bounds->len && i <= r->bounds->len; i++) {
		g_autoptr(GString) bound = g_string_new(NULL);

		time_print(bound, bound_ns(r, i));
		g_string_append_printf(v->text, "%s%5s: %5" PRIu64, i ? ", " : "", bound->str, bin_count(o, i));
	}
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
	put_rate(v, ROW(o)->interval);
}

static const struct field fields[] = {
	{"name", "name", "Name", 16, FIELD_STRING, get_device, "Name of mapped device."},

	{"stats", "read_count", "#Reads", 6, FIELD_NUMBER, get_read_count, "Count of reads completed."},
	{"stats", "reads_merged_count", "#RdMrgs", 7, FIELD_NUMBER, get_reads_merged, "Count of read requests merged."},
	{"stats", "read_sector_count", "#RdSectors", 10, FIELD_NUMBER, get_read_sectors, "Count of sectors read."},
	{"stats", "read_time", "AccRdTime", 11, FIELD_NUMBER, get_read_time,
	 "Accumulated duration of all read requests (ns)."},
	{"stats", "write_count", "#Writes", 7, FIELD_NUMBER, get_write_count, "Count of writes completed."},
	{"stats", "writes_merged_count", "#WrMrgs", 7, FIELD_NUMBER, get_writes_merged,
	 "Count of write requests merged."},
	{"stats", "write_sector_count", "#WrSectors", 10, FIELD_NUMBER, get_write_sectors, "Count of sectors written."},
	{"stats", "write_time", "AccWrTime", 11, FIELD_NUMBER, get_write_time,
	 "Accumulated duration of all writes (ns)."},
	{"stats", "in_progress_count", "#InProg", 7, FIELD_NUMBER, get_in_progress,
	 "Count of requests currently in progress."},
	{"stats", "io_ticks", "IoTicks", 7, FIELD_NUMBER, get_io_ticks, "Nanoseconds spent servicing requests."},
	{"stats", "queue_ticks", "QueueTicks", 10, FIELD_NUMBER, get_queue_ticks,
	 "Total nanoseconds spent in queue."},
	{"stats", "read_ticks", "RdTicks", 7, FIELD_NUMBER, get_read_ticks, "Nanoseconds spent servicing reads."},
	{"stats", "write_ticks", "WrTicks", 7, FIELD_NUMBER, get_write_ticks, "Nanoseconds spent servicing writes."},
	{"stats", "reads_merged_per_sec", "RMrg/s", 6, FIELD_NUMBER, get_read_merges,
	 "Read requests merged per second."},
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
	{"stats", "hist_count_bounds", "Histogram Counts", 16, FIELD_STRING, get_histogram,
	 "Latency histogram counts with bin boundaries."},
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
	{"region", "precise", "Precise", 7, FIELD_STRING, get_precise,
	 "Set if nanosecond precision counters are enabled."},
	{"region", "hist_bins", "#Bins", 9, FIELD_STRING, get_bins, "The number of histogram bins configured."},
	{"region", "hist_bounds", "Histogram Bounds", 16, FIELD_STRING, get_bounds,
	 "Latency histogram bin boundaries."},
	{"region", "hist_ranges", "Histogram Ranges", 16, FIELD_STRING, get_ranges, "Latency histogram bin ranges."},
	{"region", "obj_type", "ObjType", 7, FIELD_STRING, get_type, "Type of stats object being reported."},
};

static const struct field_group groups[] = {
	{"name", "Mapped Device Name"},
	{"stats", "Mapped Device Statistics"},
	{"region", "Mapped Device Statistics Region Information"},
};

/* --- printing -------------------------------------------------------------------------------------------- */

static bool print_rows(GPtrArray *samples, bool areas, double interval, const char *defaults)
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
	struct report *r;
	enum report_made made = report_new(&type, &options, &r);

	if (made != REPORT_OK)
		exit(made == REPORT_HELPED ? 0 : 1);
	for (unsigned i = 0; i < samples->len; i++) {
		const struct sample *s = samples->pdata[i];
		unsigned n = areas ? region_n_areas(s->region) : 1;

		for (unsigned a = 0; a < n; a++)
			report_add(r, &(struct row_object){s, a, areas, interval});
	}
	report_print(r, stdout);
	report_free(r);
	return true;
}

bool samples_list(GPtrArray *samples, bool areas)
{
	if (opt.histogram)
		return print_rows(samples, areas, 0,
				  "name,group_id,region_id,obj_type,region_start,region_len,area_count,area_len,"
				  "hist_bins,hist_bounds");
	return print_rows(samples, areas, 0,
			  areas ? "name,group_id,region_id,obj_type,region_start,region_len,area_count,area_id,"
				  "area_start,area_len,program_id"
				: "name,group_id,region_id,obj_type,region_start,region_len,area_count,area_len,"
				  "program_id");
}

bool samples_report(GPtrArray *samples, double interval)
{
	return print_rows(samples, true, interval,
			  opt.histogram ? "name,group_id,region_id,obj_type,region_start,region_len,area_count,"
					  "area_len,util,await,hist_count_bounds"
					: "name,group_id,region_id,obj_type,area_id,area_start,area_len,"
					  "reads_merged_per_sec,writes_merged_per_sec,reads_per_sec,writes_per_sec,"
					  "read_size_per_sec,write_size_per_sec,avg_request_size,queue_size,util,await,"
					  "read_await,write_await");
}
