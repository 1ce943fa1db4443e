/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The columns of `stats list` and `stats report`: one row for a region, or for each of its areas. */
#ifndef DMFSCTL_STATS_REPORT_H
#define DMFSCTL_STATS_REPORT_H

#include <glib.h>
#include <stdbool.h>

#include "regions.h"

GPtrArray *samples_new(void);
/* Takes the region over.  before: the last round's table, or NULL; what has been counted since is the sample's. */
void samples_add(GPtrArray *samples, const char *device, struct region *r, GHashTable *before);
/* The samples by region; takes them over. */
GHashTable *samples_table(GPtrArray *samples);
bool samples_list(GPtrArray *samples, bool areas);
bool samples_report(GPtrArray *samples, double interval);

#endif
