/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Devices of a mounted dmfs as the tools that are like cryptsetup's make and remove them.  Functions return 0 or a
 * negative errno and set the error.
 */
#ifndef DMFS_TOOLS_CLIENT_H
#define DMFS_TOOLS_CLIENT_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

/* The mountpoint: wanted (-m), $DMFS_MOUNT, or the only dmfs that is mounted; NULL: none. */
char *client_mount(const char *wanted, GError **err);
/* Its two steps.  wanted or $DMFS_MOUNT; NULL: neither is there (err is not set), or it is no mountpoint of a dmfs. */
char *client_named_mount(const char *wanted, GError **err);
/* The only one of a list of mountpoints; NULL: there is none, or several. */
char *client_only_mount(const GPtrArray *all, GError **err);
int client_check_name(const char *name, GError **err);

/* A file of a device; or NULL. */
char *client_read(const char *mount, const char *name, const char *file);
/* One write, so that what is in data is copied nowhere; what the device's `error` says is in the error. */
int client_write(const char *mount, const char *name, const char *file, const char *data, size_t len, GError **err);

/* Makes a device with a uuid (cut to what fits) and a table, or none. */
int client_make(const char *mount, const char *name, const char *uuid, bool readonly, const char *table, size_t len,
		GError **err);
/* Whether a tool has made it: its uuid begins so. */
int client_check_maker(const char *mount, const char *name, const char *tool, const char *prefix, GError **err);
int client_remove(const char *mount, const char *name, GError **err);

/* Splits a line at blanks; a backslash quotes the next character. */
char **client_split(const char *line);

#endif
