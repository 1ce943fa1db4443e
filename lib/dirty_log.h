/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the local dirty logs (core, disk) share. */
#ifndef DMFS_LIB_DIRTY_LOG_H
#define DMFS_LIB_DIRTY_LOG_H

#include <dmfs/dirty_log.h>

#include "dirty_log_format.h"

enum log_sync {
	LOG_DEFAULT_SYNC, /* what the log remembers */
	LOG_NOSYNC,       /* the user says that all legs are the same */
	LOG_FORCE_SYNC,   /* ... that nothing is known */
};

/* First in the context of a local log. */
struct local_log {
	enum log_sync sync;
	uint8_t *sync_bits; /* g_free() */
	atomic_uint_fast64_t sync_count;
	uint64_t search; /* next region get_resync_work looks at */
};

/* argv: <region size> [sync | nosync]. */
int dm_log_local_init(struct dm_dirty_log *log, struct local_log *l, const char *who, int argc, char **argv,
		      GError **err);
extern const struct dm_dirty_log_type dm_disk_log_type, dm_clustered_disk_log_type, dm_userspace_log_type;

int dm_log_in_sync(struct dm_dirty_log *log, uint64_t region, bool may_wait);
bool dm_log_get_resync_work(struct dm_dirty_log *log, uint64_t *region);
void dm_log_set_region_sync(struct dm_dirty_log *log, uint64_t region, bool in_sync);
uint64_t dm_log_sync_count(struct dm_dirty_log *log);
/* Appends how a table line begins: "core 1", or "userspace 3 UUID clustered-core"; params: what follows. */
void dm_log_print_type(struct dm_dirty_log *log, unsigned params, GString *out);
/* Appends " sync" or " nosync" if the table said so. */
void dm_log_print_sync(struct local_log *l, GString *out);

#endif
