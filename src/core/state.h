/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Keeping devices in the state database (registry.h), and bringing them back.
 *
 * A device's row holds its tables as text, in which dmfs devices stand as 0:MINOR, so that renaming one changes no
 * other's row.  Keys are printed as zeroes there as everywhere; such a table is marked and not loaded at the start.
 */
#ifndef DMFS_CORE_STATE_H
#define DMFS_CORE_STATE_H

#include "mapped.h"

/* Opens the database and brings its devices back.  Before there is any other device. */
int dm_state_open(const char *path, GError **err);
/* From now on nothing is stored. */
void dm_state_close(void);

/*
 * A change of a device: stored first, then published.
 *
 * dm_state_change() writes what the device will be; when that is durable it calls publish(), which makes it so in
 * memory and cannot fail.  An error means that nothing has changed, in memory or after a restart; a power loss before
 * the return may leave either.  Changes are made one at a time, of whatever devices: what one stores the next one sees.
 * publish() runs under the lock that sees to this; it may take the topology's and md->lock.  Without a state, or while
 * it is read, a change is only published.  -ENXIO: the device is removed.
 */
enum dm_change_what {
	DM_CHANGE_LIVE = 1u << 0,     /* NULL: none */
	DM_CHANGE_INACTIVE = 1u << 1, /* the same */
	DM_CHANGE_NAME = 1u << 2,
	DM_CHANGE_UUID = 1u << 3,
	DM_CHANGE_READONLY = 1u << 4,
	DM_CHANGE_MODE = 1u << 5, /* of the image, as its uid and gid */
	DM_CHANGE_UID = 1u << 6,
	DM_CHANGE_GID = 1u << 7,
	DM_CHANGE_KEYS = 1u << 8, /* of the live table, by a message that is over */
};

struct dm_change {
	struct dm_mapped *md;
	unsigned what; /* 0: a new device */
	struct dm_table *live, *inactive;
	const char *name, *uuid;
	bool readonly;
	struct dm_owner image;
	void (*publish)(struct dm_change *);
	void *data; /* publish()'s */
	/*
	 * DM_CHANGE_LIVE: what stood in for a table that could not be brought back.  To be put when the new one runs.
	 */
	struct dm_table *stand_in;
};

int dm_state_change(struct dm_change *c, GError **err);

/*
 * All of these devices at once, or none of them (NULL: there are none).  Between the two calls this thread stores no
 * change, and what others change of devices that it has made meanwhile waits for the second call too; after it the
 * thread stores again.  Devices that have been removed are left out.
 */
void dm_state_hold(void);
int dm_state_save_held(GPtrArray *devices, GError **err);
int dm_state_remove(struct dm_mapped *md, GError **err);
/* The end of a device: nothing stands in for its table any more. */
void dm_state_forget(struct dm_mapped *md);

/* Whether dm_dev_print() calls dmfs devices 0:MINOR, in this thread. */
extern _Thread_local bool dm_print_minors;

#endif
