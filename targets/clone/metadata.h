/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A clone's metadata: which regions are hydrated, on the disk and in memory.
 *
 * In memory it is one bit a region, read without a lock, and one bit for each 64 of those, set
 * while they differ from the disk.  A set bit never goes back.
 */
#ifndef CLONE_METADATA_H
#define CLONE_METADATA_H

#include <dmfs/io.h>

enum clone_mode { CLONE_RW, CLONE_RO, CLONE_FAIL };

struct clone_md;

/* Opens, or formats an all-zero device; a device of another size or region size is refused. */
int clone_md_open(struct dm_dev *dev, uint64_t target_sectors, uint32_t region_sectors, struct clone_md **out,
		  GError **err);
void clone_md_close(struct clone_md *meta);

uint64_t clone_md_nr_regions(struct clone_md *meta);
uint64_t clone_md_nr_hydrated(struct clone_md *meta);
/* How many are hydrated on the disk, as far as is known. */
uint64_t clone_md_nr_committed(struct clone_md *meta);
void clone_md_usage(struct clone_md *meta, uint64_t *used, uint64_t *total);
bool clone_md_hydrated(struct clone_md *meta, uint64_t region);
/* Regions [region, region + n), set or not before.  What they hold must be written, not yet durable. */
void clone_md_set(struct clone_md *meta, uint64_t region, uint64_t n);
/* The first region at or after `from`, and below `end`, that is hydrated, or not hydrated; end if there is none. */
uint64_t clone_md_next_hydrated(struct clone_md *meta, uint64_t from, uint64_t end);
uint64_t clone_md_next(struct clone_md *meta, uint64_t from, uint64_t end);
/* Whether something is not on the disk yet, or only on its way there. */
bool clone_md_dirty(struct clone_md *meta);
/*
 * Makes the bits set before the call durable: first the data (a FLUSH of dest), then the metadata.  One
 * thread at a time.  After an error of the metadata (clone_md_broken()) nothing can be committed any more.
 */
int clone_md_commit(struct clone_md *meta, struct dm_dev *dest);
bool clone_md_broken(struct clone_md *meta);
/*
 * After that: reads what the last commit has left on the disk, all of it and from the disk itself.  0: it is
 * good, and clone_md_nr_committed() what it says.  The bits in memory stay: what was written can be read.
 * Same thread as clone_md_commit().
 */
int clone_md_abort(struct clone_md *meta);
/* Frees the bits in memory; every region is hydrated, committed, and nobody else calls. */
void clone_md_release(struct clone_md *meta);

#endif
