/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Dirty logs: which regions of a redundant target its legs may disagree in (dm-log.rst).
 *
 * A region is the target's unit of bookkeeping, a power of two of sectors; region r covers sectors r * size and on, the
 * last one may be shorter.  A log keeps two things of each:
 *
 *   clean     nothing is being written, all legs hold the same.  This is what
 *             a log with a memory keeps on its device.
 *   in sync   all legs are kept the same: a write to one is a write to all.
 *             Clean at activation is in sync; a region whose copy failed or
 *             which a leg missed a write to is not.
 *
 * The order that makes a log worth having is the caller's: mark, flush, then write; and what clear_region is told of is
 * durable on all legs already.
 *
 * A log may be far away, a server behind a socket that other hosts ask as well.  So its functions are of two kinds:
 *
 *   at once     in_sync without may_wait, is_clean, mark_region, clear_region, set_region_sync, sync_count, status.
 *               They look at or note something in memory, and may be called with locks held.  What they note
 *               reaches the log's device or server with the next function that may wait, in order.
 *   may wait    all else.  Only from threads that nobody waits for but those whose bios wait for the
 *               answer: a target's worker, never map() or an end().
 *
 * in_sync without may_wait, sync_count and status may be called at any time from any thread; all else by one thread
 * at a time.  Regions are below the log's `regions`; the caller checks.
 */
#ifndef DMFS_DIRTY_LOG_H
#define DMFS_DIRTY_LOG_H

#include <dmfs/target.h>

#define DM_LOG_ASK_AGAIN_MS 250

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
	/*
	 * 1 or 0.  -EWOULDBLOCK: that is not known here and now, so the worker has to ask with may_wait, and use the
	 * answer while it has the region in hand; for a log on this host, never.  A server's other errors.
	 */
	int (*in_sync)(struct dm_dirty_log *, uint64_t region, bool may_wait);
	/* Makes every mark_region() before it durable (and takes clear_region()s along). */
	int (*flush)(struct dm_dirty_log *);
	/* Is about to be written; in memory until flush. */
	void (*mark_region)(struct dm_dirty_log *, uint64_t region);
	/* Nothing is being written to it, and the legs agree durably. */
	void (*clear_region)(struct dm_dirty_log *, uint64_t region);
	/* The next region out of sync since resume, each once; false: no more. */
	bool (*get_resync_work)(struct dm_dirty_log *, uint64_t *region);
	void (*set_region_sync)(struct dm_dirty_log *, uint64_t region, bool in_sync);
	/*
	 * Whether another host is copying the region, or has copied it since it was found out of sync: who wants to
	 * write to it waits, and begins again with in_sync, after DM_LOG_ASK_AGAIN_MS.  False: it is ours until it is
	 * cleared.  May be absent: there is no other host.
	 */
	bool (*is_remote_recovering)(struct dm_dirty_log *, uint64_t region);
	/*
	 * The daemon ends, or (the target suspends) for a while: nobody waits for a server that does not answer, until
	 * go_on_waiting().  From any thread.  May be absent.
	 */
	void (*end_waiting)(struct dm_dirty_log *);
	void (*go_on_waiting)(struct dm_dirty_log *);
	/* Asks the server what sync_count and status tell from now on.  May wait.  May be absent. */
	void (*refresh)(struct dm_dirty_log *);
	/*
	 * A server that comes back after a crash gives its clients some time to mark again what they had; then it goes
	 * to others.  So what is marked counts only for a while after an answer (in_touch), and not any more once we
	 * have had to introduce ourselves to a new server: then all is to be asked about again.  At once, any thread.
	 */
	bool (*in_touch)(struct dm_dirty_log *);
	uint64_t (*introductions)(struct dm_dirty_log *);
	uint64_t (*sync_count)(struct dm_dirty_log *);
	/* INFO: "<#words> <name> ..."; TABLE: "<name> <#params> <params>". */
	void (*status)(struct dm_dirty_log *, enum dm_status_type, GString *);
};

struct dm_dirty_log {
	const struct dm_dirty_log_type *type;
	struct dm_target *ti;
	uint32_t region_sectors;
	uint64_t regions; /* of ti->len */
	char *prefix; /* of a userspace log: its UUID and [integrated_flush], as words of a table; else NULL.  g_free() */
	void *context;
};

/*
 * Makes a log of a named type ("core", "disk", "userspace") in a target's ctr, for ti->len sectors.  who: the target's
 * name, for error texts.
 */
int dm_dirty_log_new(struct dm_target *ti, const char *who, const char *type, int argc, char **argv,
		     struct dm_dirty_log **log, GError **err);
/* In dtr. */
void dm_dirty_log_free(struct dm_dirty_log *log);

/* Whether a region is known to be in sync, here and now. */
static inline bool dm_dirty_log_in_sync(struct dm_dirty_log *log, uint64_t region)
{
	return log->type->in_sync(log, region, false) == 1;
}

static inline bool dm_dirty_log_is_remote_recovering(struct dm_dirty_log *log, uint64_t region)
{
	return log->type->is_remote_recovering && log->type->is_remote_recovering(log, region);
}

static inline void dm_dirty_log_end_waiting(struct dm_dirty_log *log)
{
	if (log->type->end_waiting)
		log->type->end_waiting(log);
}

static inline void dm_dirty_log_go_on_waiting(struct dm_dirty_log *log)
{
	if (log->type->go_on_waiting)
		log->type->go_on_waiting(log);
}

/* Whether other hosts write by the same log, which then is never asked without may_wait. */
static inline bool dm_dirty_log_is_shared(const struct dm_dirty_log *log)
{
	return log->type->is_remote_recovering;
}

/*
 * Bitmaps of regions as logs keep them: bit r is bit r % 8 of byte r / 8.  Set and clear by one thread at a time, test
 * by any.
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
