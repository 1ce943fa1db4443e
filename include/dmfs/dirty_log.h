/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Dirty logs: which regions of a redundant target its legs may disagree in
 * (dm-log.rst).
 *
 * A region is the target's unit of bookkeeping, a power of two of sectors;
 * region r covers sectors r * size and on, the last one may be shorter.  A log keeps
 * two things of each:
 *
 *   clean     nothing is being written, all legs hold the same.  This is what
 *             a log with a memory keeps on its device.
 *   in sync   all legs are kept the same: a write to one is a write to all.
 *             Clean at activation is in sync; a region whose copy failed or
 *             which a leg missed a write to is not.
 *
 * The order that makes a log worth having is the caller's: mark, flush, then
 * write; and what clear_region is told of is durable on all legs already.
 *
 * Threads: in_sync, sync_count and status may be called at any time from any
 * thread; all else by one thread at a time.  Regions are below the log's
 * `regions`; the caller checks.
 */
#ifndef DMFS_DIRTY_LOG_H
#define DMFS_DIRTY_LOG_H

#include <dmfs/target.h>

struct dm_dirty_log;

struct dm_dirty_log_type {
	const char *name;
	bool in_memory; /* nothing survives: who writes need not mark and flush first */

	/* Sets log->region_sectors and log->regions; argv is what follows the number of log parameters. */
	int (*ctr)(struct dm_dirty_log *, int argc, char **argv, GError **);
	void (*dtr)(struct dm_dirty_log *);
	/* Before the first resume: refuses a device that holds something else.  May be absent. */
	int (*preresume)(struct dm_dirty_log *, GError **);
	/* At the target's suspend and resume; a negative errno when the log's device fails.  May be absent. */
	int (*presuspend)(struct dm_dirty_log *);
	int (*postsuspend)(struct dm_dirty_log *);
	int (*resume)(struct dm_dirty_log *);

	bool (*is_clean)(struct dm_dirty_log *, uint64_t region);
	bool (*in_sync)(struct dm_dirty_log *, uint64_t region);
	/* Makes every mark_region() before it durable (and takes clear_region()s along).  May block on I/O. */
	int (*flush)(struct dm_dirty_log *);
	/* Is about to be written; in memory until flush. */
	void (*mark_region)(struct dm_dirty_log *, uint64_t region);
	/* Nothing is being written to it, and the legs agree durably. */
	void (*clear_region)(struct dm_dirty_log *, uint64_t region);
	/* The next region out of sync since resume, each once; false: no more. */
	bool (*get_resync_work)(struct dm_dirty_log *, uint64_t *region);
	void (*set_region_sync)(struct dm_dirty_log *, uint64_t region, bool in_sync);
	uint64_t (*sync_count)(struct dm_dirty_log *);
	/* INFO: "<#words> <name> ..."; TABLE: "<name> <#params> <params>". */
	void (*status)(struct dm_dirty_log *, enum dm_status_type, GString *);
};

struct dm_dirty_log {
	const struct dm_dirty_log_type *type;
	struct dm_target *ti;
	uint32_t region_sectors;
	uint64_t regions; /* of ti->len */
	void *context;
};

/*
 * Makes a log of a named type ("core", "disk") in a target's ctr, for ti->len
 * sectors.  who: the target's name, for error texts.
 */
int dm_dirty_log_new(struct dm_target *ti, const char *who, const char *type, int argc, char **argv,
		     struct dm_dirty_log **log, GError **err);
/* In dtr. */
void dm_dirty_log_free(struct dm_dirty_log *log);

/*
 * Bitmaps of regions as logs keep them: bit r is bit r % 8 of byte r / 8.  Set
 * and clear by one thread at a time, test by any.
 */
static inline bool dm_region_bit_test(const uint8_t *bits, uint64_t r)
{
	return __atomic_load_n(&bits[r / 8], __ATOMIC_ACQUIRE) >> (r % 8) & 1;
}

static inline void dm_region_bit_set(uint8_t *bits, uint64_t r)
{
	__atomic_store_n(&bits[r / 8], (uint8_t)(bits[r / 8] | 1u << (r % 8)), __ATOMIC_RELEASE);
}

static inline void dm_region_bit_clear(uint8_t *bits, uint64_t r)
{
	__atomic_store_n(&bits[r / 8], (uint8_t)(bits[r / 8] & ~(1u << (r % 8))), __ATOMIC_RELEASE);
}

#endif
