/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A device's statistics regions, as @stats_list and @stats_print tell them (statistics.rst). */
#ifndef DMFSCTL_REGIONS_H
#define DMFSCTL_REGIONS_H

#include <glib.h>
#include <stdbool.h>

enum counter {
	READS, READS_MERGED, READ_SECTORS, READ_MS, WRITES, WRITES_MERGED, WRITE_SECTORS, WRITE_MS,
	IN_FLIGHT, IO_MS, QUEUE_MS, READ_IO_MS, WRITE_IO_MS, COUNTERS,
};

struct area {
	guint64 start, length; /* sectors */
	guint64 counter[COUNTERS];
	GArray *histogram; /* of guint64; empty if there is none */
};

struct region {
	unsigned id;
	guint64 start, length, step; /* sectors */
	char *program, *aux; /* "" for "-" */
	bool precise; /* times are nanoseconds, not milliseconds */
	GArray *bounds; /* of guint64, in the same unit */
	GPtrArray *areas; /* of struct area, once region_sample() has been called */
};

/* A line of @stats_list; NULL if it is none. */
struct region *region_parse(const char *line);
/* The text of @stats_print; NULL if that is something else. */
GPtrArray *areas_parse(const char *text);
void region_free(struct region *r);
unsigned region_n_areas(const struct region *r);
/* "5", "10ms", "1s", "2us", "3ns" and so on, comma-separated, as a @stats_create argument; false: no such list. */
bool bounds_parse(const char *text, bool *precise, char **out);
/* "100", "4k", "1g" (of 1024): sectors without a unit; false: no such size. */
bool size_parse(const char *text, guint64 *sectors);
/* "0", "1.50k", "1000.00k"; units as --units takes: NULL or "h" for a fitting one, "s" sectors, "b" bytes, "k", "m", ... */
void size_print(GString *out, guint64 bytes, const char *units);
/* "10us" from nanoseconds. */
void time_print(GString *out, guint64 ns);

#endif
