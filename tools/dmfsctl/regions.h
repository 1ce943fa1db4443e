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
	char *program, *aux;	     /* "" for "-"; of aux without the group */
	/* As dmstats keeps it, with the first of a group's regions: the group's regions, and its alias ("": none). */
	char *members, *alias; /* NULL: it is not the first of a group */
	bool precise; /* times are nanoseconds, not milliseconds */
	GArray *bounds; /* of guint64, in the same unit */
	GPtrArray *areas; /* of struct area, once region_sample() has been called */
	/* regions_group()'s: the number of the group it is in, which is that of the group's first region, or -1; its
	 * alias */
	gint64 group;
	char *group_alias;
};

/* A line of @stats_list; NULL if it is none. */
struct region *region_parse(const char *line);
/* The text of @stats_print; NULL if that is something else. */
GPtrArray *areas_parse(const char *text);
void region_free(struct region *r);
unsigned region_n_areas(const struct region *r);
/* A number above all of the device's regions'. */
guint regions_most(GPtrArray *list);
/* Finds each region's group; the list is all regions of one device. */
void regions_group(GPtrArray *list);
/* The list's region of that number, or NULL. */
struct region *regions_find(GPtrArray *list, guint64 id);
/*
 * "1,3-5": ascending numbers, each once, as array of guint64; NULL: no such list.  Of a range to `most` or beyond only
 * the last number is told.  id_list_print() is the other way, with ranges.
 */
GArray *id_list_parse(const char *text, guint most);
char *id_list_print(const GArray *ids);
/* The aux text of a region with this group (members NULL: none) and user data. */
char *aux_print(const char *members, const char *alias, const char *userdata);
/* "5", "10ms", "1s", "2us", "3ns" and so on, comma-separated, as a @stats_create argument; false: no such list. */
bool bounds_parse(const char *text, bool *precise, char **out);
/*
 * "100", "4k", "4kb", "512b", "8s": sectors without a unit; k, m, g, t, p, e of 1024 and K, M, ... of 1000; rounded
 * down to sectors.  False: no such size, or it is no whole sector.
 */
bool size_parse(const char *text, guint64 *sectors);
/*
 * units as --units takes: NULL or "h" for a fitting one ("0", "1.50k", "1000.00k"), "H" for one of 1000; else without a
 * suffix: "s" sectors, "b" bytes, "k", "K", ...; or some of these, "3M".
 */
void size_print(GString *out, guint64 bytes, const char *units);
bool units_valid(const char *units);
/* "10us" from nanoseconds, or without the suffix nanoseconds. */
void time_print(GString *out, guint64 ns, bool suffix);

#endif
