/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * I/O statistics of regions of a device (statistics.rst).
 *
 * A device without regions has no struct dm_stats, and a bio costs one load of a pointer.  The set of regions changes
 * only while no bio is inside the device (dm_mapped_quiesce()), so bios use it without a lock and without counting
 * references.
 */
#ifndef DMFS_CORE_STATS_H
#define DMFS_CORE_STATS_H

#include "mapped.h"

/* Messages that begin with "@stats_". */
int dm_stats_message(struct dm_mapped *md, int argc, char **argv, GString *reply, GError **err);
void dm_stats_free(struct dm_stats *stats);
/* Whether any device has a region: then what is counted matters.  Any thread, cheap. */
bool dm_stats_any(void);

/* A bio begins: true if it goes on where the last one on this CPU ended (merged).  Sets *start_ns. */
bool dm_stats_start(struct dm_stats *stats, const struct dm_bio *bio, uint64_t *start_ns);
void dm_stats_end(struct dm_stats *stats, const struct dm_bio *bio, uint64_t start_ns, bool merged);

#endif
