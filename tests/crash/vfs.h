/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef DMFS_TESTS_CRASH_VFS_H
#define DMFS_TESTS_CRASH_VFS_H

#include <glib.h>
#include <stdbool.h>

/*
 * From now on SQLite keeps the database of this path on the device "db", its journal on "journal"; lies: syncs do
 * nothing.
 */
void vfs_use(const char *path, bool lies);
/* Makes an ordinary file of what is on a device, if there is a file on it. */
int vfs_copy(const char *device, const char *path, GError **err);

#endif
