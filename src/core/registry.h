/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The state database: devices, their tables, and targets' own rows, in one SQLite file.
 *
 * Every call is one transaction and durable when it returns.  Any thread; one mutex, for this is
 * never on the data path.  All return 0 or a negative errno with a text.
 */
#ifndef DMFS_CORE_REGISTRY_H
#define DMFS_CORE_REGISTRY_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

/* One table of a device. */
struct dm_registry_table {
	char *text;     /* NULL: there is none */
	uint64_t id;    /* rows belong to it */
	bool readonly;
	bool secret;    /* the text lacks a key */
};

struct dm_registry_device {
	unsigned minor; /* the key: it never changes */
	char *name, *uuid;
	bool readonly;
	struct dm_registry_table live, inactive;
	unsigned image_mode, image_uid, image_gid;
};

void dm_registry_device_clear(struct dm_registry_device *d);

/*
 * Opens or creates the file and locks it against other daemons.  -EBUSY: in use; -EINVAL: no database, a foreign or a
 * newer one, or a damaged one: the file is left as it is.
 */
int dm_registry_open(const char *path, GError **err);
void dm_registry_close(void);
bool dm_registry_is_open(void);

/* Calls fn for each device, by minor; the device is fn's to clear. */
int dm_registry_each(int (*fn)(struct dm_registry_device *, void *), void *data, GError **err);
/*
 * Inserts or replaces n devices by minor, all or none; the rows of tables that a device does not have any more are
 * dropped with its drop_ids (zeroes are skipped).
 */
int dm_registry_save(const struct dm_registry_device *d, const uint64_t (*drop_ids)[2], size_t n, GError **err);
int dm_registry_remove(unsigned minor, const uint64_t drop_ids[2], GError **err);
/* The highest id of a table there is. */
int dm_registry_max_id(uint64_t *id, GError **err);

/* A target's rows: those of (table id, first sector, name). */
struct dm_registry_change {
	uint64_t key;
	const void *value; /* NULL: delete */
	size_t len;
};
int dm_registry_rows_load(uint64_t id, uint64_t begin, const char *name,
			  int (*fn)(uint64_t key, const void *value, size_t len, void *data), void *data,
			  GError **err);
/* clear: all rows go first. */
int dm_registry_rows_save(uint64_t id, uint64_t begin, const char *name, bool clear,
			  const struct dm_registry_change *changes, size_t n, GError **err);

#endif
