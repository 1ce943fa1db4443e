/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What `stats` and `top` share: a device's regions, read and sampled through messages. */
#ifndef DMFSCTL_STATS_H
#define DMFSCTL_STATS_H

#include "regions.h"

/* Sends a @stats message.  0 and *reply (g_free()), or a negative errno. */
int stats_message(const char *device, char **reply, const char *format, ...) G_GNUC_PRINTF(3, 4);
/* The regions of a program (NULL: of all), of struct region; NULL and a negative errno in *error. */
GPtrArray *stats_regions(const char *device, const char *program, int *error);
/* Reads a region's areas; 0 or a negative errno. */
int stats_sample(const char *device, struct region *r);
/* Sleeps until the n-th interval after it was called first is over; false if a signal ended it. */
bool stats_interval(double seconds);

#endif
