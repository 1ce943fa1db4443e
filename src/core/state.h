/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Keeping devices in the state database (registry.h), and bringing them
 * back.
 *
 * A device's row holds its tables as text, in which dmfs devices stand as 0:MINOR, so that renaming
 * one changes no other's row.  Keys are printed as zeroes there as
 * everywhere; such a table is marked and not loaded at the start.
 */
#ifndef DMFS_CORE_STATE_H
#define DMFS_CORE_STATE_H

#include "mapped.h"

/* Opens the database and brings its devices back.  Before there is any other device. */
int dm_state_open(const char *path, GError **err);
/* From now on nothing is stored. */
void dm_state_close(void);
/* Makes what a device is durable; nothing if it is removed.  0 if there is no state.  md->control need not be held. */
int dm_state_save(struct dm_mapped *md, GError **err);
/*
 * All of these devices at once, or none of them (NULL: there are none).  Between the two calls this thread stores no
 * device; after the second it does again.  Devices that have been removed are left out.
 */
void dm_state_hold(void);
int dm_state_save_held(GPtrArray *devices, GError **err);
int dm_state_remove(struct dm_mapped *md, GError **err);

/* Whether dm_dev_print() calls dmfs devices 0:MINOR, in this thread. */
extern _Thread_local bool dm_print_minors;

#endif
