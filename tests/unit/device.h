/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dmfs devices without a mount, on files in memory. */
#ifndef DMFS_TESTS_DEVICE_H
#define DMFS_TESTS_DEVICE_H

#include "unit.h"

#include "core/devices.h"
#include "core/message.h"
#include "core/type.h"

/* A sparse file in memory; its path, which lives until unit_files_close(). */
const char *unit_file(uint64_t sectors);
void unit_files_close(void);

/*
 * Any device, for tables to name as unit:NAME; they hold references of their own.  unit_stores_forget() lets go of
 * the names.
 */
void unit_store(const char *name, struct dm_dev *dev);
void unit_stores_forget(void);

/* Loads a table, "\n" between its lines, and makes it live. */
int unit_load(struct dm_mapped *md, const char *table, GError **err);
int unit_load_inactive(struct dm_mapped *md, const char *table, GError **err);
/* A new device with this table (printf); it must load. */
struct dm_mapped *unit_device(const char *name, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
void unit_remove(struct dm_mapped *md);

/* Its status or table, one allocation for g_free(). */
char *unit_status(struct dm_mapped *md, enum dm_status_type type);
/* Sends a message; the reply, if wanted, for g_free(). */
int unit_message(struct dm_mapped *md, const char *text, char **reply);

#endif
