/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * All dmfs devices: names, uuids, minors, and who uses whom.
 *
 * "The topology" is what one lock guards: these, and the edges between tables and devices.  It is held for moments
 * only, never across I/O or a target's function.
 */
#ifndef DMFS_CORE_DEVICES_H
#define DMFS_CORE_DEVICES_H

#include "mapped.h"

#define DM_NAME_MAX 127
#define DM_UUID_MAX 128
#define DM_MINOR_MAX ((1u << 20) - 1)

void dm_topology_lock(void);
void dm_topology_unlock(void);
void dm_topology_assert(void);

/*
 * Creates a device without a table; minor -1: the lowest free one.  The caller gets a reference.
 * -EEXIST, -ENAMETOOLONG, -EINVAL (empty, '/', begins with '.'), -EBUSY (minor taken).
 */
int dm_create(const char *name, int minor, struct dm_mapped **out, GError **err);
/* -EBUSY while its image is open or a table uses it; -ENXIO if it is gone already. */
int dm_remove(struct dm_mapped *md, GError **err);
/*
 * The same, but one in use is only marked, and removed when it is used no more, be that by the end of another removal
 * (which then returns after this one) or later by another thread.  The mark does not outlive the daemon.
 */
int dm_remove_deferred(struct dm_mapped *md, GError **err);
/* Takes the mark away. */
int dm_cancel_deferred_remove(struct dm_mapped *md, GError **err);
/* Waits for the removals that have begun.  At the end of the daemon, when nobody begins another one. */
void dm_end_removals(void);
/* Under the topology lock, after one of its users has gone: starts the removal that was to wait for that. */
void dm_mapped_let_go(struct dm_mapped *md);
int dm_rename(struct dm_mapped *md, const char *name, GError **err);
/* Once; unique; up to DM_UUID_MAX bytes. */
int dm_set_uuid(struct dm_mapped *md, const char *uuid, GError **err);
/* With a reference, or NULL. */
struct dm_mapped *dm_find_name(const char *name);
struct dm_mapped *dm_find_minor(unsigned minor);
/* All, each with a reference, by minor. */
GPtrArray *dm_list_devices(void);
bool dm_mapped_removed(struct dm_mapped *md);
/* A name and uuid to keep; g_free(). */
char *dm_mapped_dup_name(struct dm_mapped *md);
char *dm_mapped_dup_uuid(struct dm_mapped *md);

/* An image is opened or closed; -ENXIO if the device is removed. */
int dm_mapped_open(struct dm_mapped *md);
void dm_mapped_close(struct dm_mapped *md);

/* Names a device may not have, because the root has files so named; NULL at the end. */
void dm_reserve_names(const char *const *names);
/*
 * Where the tree is mounted, or a directory of images (nr tells them apart), for names like MOUNTPOINT/NAME, and its
 * st_dev; finds the device an inode belongs to.  path NULL: it is not, any more.
 */
#define DM_MOUNTPOINTS 2
void dm_set_mountpoint(unsigned nr, const char *path, dev_t st_dev, struct dm_mapped *(*find_inode)(ino_t));
/*
 * Resolves a device name of a table of self's for its opener.  The caller gets a reference.  -ELOOP: it is self's own
 * name and no file's.
 */
int dm_resolve(const struct dm_opener *who, const struct dm_mapped *self, const char *name, enum dm_mode mode,
	       struct dm_dev **out, GError **err);

/*
 * For the end of the daemon, before its workers are waited for: what waits for a suspended device fails with EIO, what
 * a target holds back (delay, a full pool, a mirror without its log) goes on or fails.  Any of it may be the bio of a
 * device above that a worker, or the removal of that device, waits for.
 */
void dm_end_waiting(void);
/* Removes everything, users before what they use.  For the end of the daemon. */
void dm_remove_all(void);

#endif
