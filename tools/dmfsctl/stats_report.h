/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The columns of `stats list` and `stats report`: rows for areas, regions and groups, in this order for each device. */
#ifndef DMFSCTL_STATS_REPORT_H
#define DMFSCTL_STATS_REPORT_H

#include <glib.h>
#include <stdbool.h>

#include "regions.h"

struct shown {
	bool areas, regions, groups;
	bool single; /* also regions of one area */
};

GPtrArray *samples_new(void);
/* Takes the region over.  before: the last round's table, or NULL; what has been counted since is the sample's. */
void samples_add(GPtrArray *samples, const char *device, struct region *r, GHashTable *before);
/* The samples by region; takes them over. */
GHashTable *samples_table(GPtrArray *samples);
/* Prints the fields there are on stderr. */
void samples_help(void);
bool samples_list(GPtrArray *samples, const struct shown *shown, bool verbose);
bool samples_report(GPtrArray *samples, const struct shown *shown, double interval);

#endif
