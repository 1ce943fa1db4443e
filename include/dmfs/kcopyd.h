/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * kcopyd: copies a range of sectors from one device to one or several others
 * and tells when it is done (kcopyd.txt).
 *
 * A client is a source of jobs with its own bounded memory; jobs beyond it wait.  Callbacks run in threads of kcopyd's,
 * those of different jobs at the same time, never inside the call that started the job, and may start further jobs.
 */
#ifndef DMFS_KCOPYD_H
#define DMFS_KCOPYD_H

#include <dmfs/io.h>

#define DM_KCOPYD_MAX_REGIONS 8

enum dm_kcopyd_flags {
	DM_KCOPYD_IGNORE_ERROR = 1u << 0, /* a failed write to one destination does not stop the others */
	DM_KCOPYD_WRITE_SEQ = 1u << 1,    /* each destination is written in ascending order of sectors */
};

/*
 * How much of the time clients that share a throttle may work: 1 to 100 percent.  May be changed at any time.
 */
struct dm_kcopyd_throttle {
	_Atomic unsigned percent;
	unsigned running; /* kcopyd's own from here on; zeroed at first */
	uint64_t busy_since_ns, pause_until_ns;
};

struct dm_kcopyd_client;

/* read_error: 0 or a negative errno; write_errors: bit i is set when destination i failed. */
typedef void (*dm_kcopyd_notify)(int read_error, unsigned long write_errors, void *context);

/*
 * max_bytes: memory for the client's jobs in flight, 0 for the default (8 MiB).  throttle may be NULL; it must outlive
 * the client.
 */
struct dm_kcopyd_client *dm_kcopyd_client_new(struct dm_kcopyd_throttle *throttle, size_t max_bytes);
/* Waits for all its jobs.  Not from a callback. */
void dm_kcopyd_client_free(struct dm_kcopyd_client *kc);

/*
 * Copies from->sectors sectors to nr destinations (1 to DM_KCOPYD_MAX_REGIONS; a destination may be shorter than the
 * source, at its end).  The regions are copied, the devices must stay.  No FLUSH is implied.  dm_kcopyd_zero() writes
 * zeroes instead.
 */
void dm_kcopyd_copy(struct dm_kcopyd_client *kc, const struct dm_region *from, unsigned nr,
		    const struct dm_region *dests, unsigned flags, dm_kcopyd_notify fn, void *context);
void dm_kcopyd_zero(struct dm_kcopyd_client *kc, unsigned nr, const struct dm_region *dests, unsigned flags,
		    dm_kcopyd_notify fn, void *context);
/* Runs fn(read_error, write_errors, context) in kcopyd's thread, as if a job had ended. */
void dm_kcopyd_callback(struct dm_kcopyd_client *kc, dm_kcopyd_notify fn, void *context, int read_error,
			unsigned long write_errors);

#endif
