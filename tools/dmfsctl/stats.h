/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What `stats` and `top` share: a device's regions, read and sampled through messages; and the groups of `stats`. */
#ifndef DMFSCTL_STATS_H
#define DMFSCTL_STATS_H

#include <stdint.h>

#include "regions.h"

/* Sends a @stats message.  0 and *reply (g_free()), or a negative errno. */
int stats_message(const char *device, char **reply, const char *format, ...) G_GNUC_PRINTF(3, 4);
/* Says that one failed; false. */
bool stats_message_failed(const char *device, int error);
/* The regions of a program (NULL: of all), of struct region; NULL and a negative errno in *error. */
GPtrArray *stats_regions(const char *device, const char *program, int *error);
/* Whose regions --programid and --allprograms ask for; NULL: all. */
const char *stats_program(void);
/*
 * Runs a function for the devices that are named, until it fails, or, if `all` or --alldevices allows that and none is
 * named, for all of them.  what: the ioctl that is said to fail for one that is not there; NULL: "Device does not
 * exist."
 */
bool stats_each_device(char **argv, bool all, const char *what, bool (*fn)(const char *));
/* Reads a region's areas; 0 or a negative errno. */
int stats_sample(const char *device, struct region *r);
/* Sleeps until the n-th interval after it was called first is over; false if a signal ended it. */
bool stats_interval(double seconds);

/* --- groups (stats_groups.c) ------------------------------------------------------------ */

/* Whether a group may be so called (NULL: not at all); else it has been said why not. */
bool stats_alias_good(const char *alias);
/* Groups regions, "1,3-5", of those of a program (NULL: of any); the group's number, or -1, having said why. */
gint64 stats_group_regions(const char *device, const char *list, const char *alias, const char *program);
/* Takes a region that is not its first out of its group; false: it has been said why not. */
bool stats_leave_group(const char *device, const struct region *r);
/* Deletes --groupid with its regions. */
bool stats_delete_group(const char *device);
bool stats_group(int argc, char **argv);
bool stats_ungroup(int argc, char **argv);

#endif
