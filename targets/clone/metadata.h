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

struct clone_meta;

/* Opens, or formats an all-zero device; a device of another size or region size is refused. */
int clone_meta_open(struct dm_dev *dev, uint64_t target_sectors, uint32_t region_sectors, struct clone_meta **out,
		    GError **err);
void clone_meta_close(struct clone_meta *meta);

uint64_t clone_meta_nr_regions(struct clone_meta *meta);
uint64_t clone_meta_nr_hydrated(struct clone_meta *meta);
/* How many are hydrated on the disk, as far as is known. */
uint64_t clone_meta_nr_committed(struct clone_meta *meta);
void clone_meta_usage(struct clone_meta *meta, uint64_t *used, uint64_t *total);
bool clone_meta_hydrated(struct clone_meta *meta, uint64_t region);
/* Regions [region, region + n), set or not before.  What they hold must be written, not yet durable. */
void clone_meta_set(struct clone_meta *meta, uint64_t region, uint64_t n);
/* The first region at or after `from`, and below `end`, that is hydrated, or not hydrated; end if there is none. */
uint64_t clone_meta_next_hydrated(struct clone_meta *meta, uint64_t from, uint64_t end);
uint64_t clone_meta_next(struct clone_meta *meta, uint64_t from, uint64_t end);
/* Whether something is not on the disk yet, or only on its way there. */
bool clone_meta_dirty(struct clone_meta *meta);
/*
 * Makes the bits set before the call durable: first the data (a FLUSH of dest), then the metadata.  One
 * thread at a time.  After an error of the metadata (clone_meta_broken()) nothing can be committed any more.
 */
int clone_meta_commit(struct clone_meta *meta, struct dm_dev *dest);
bool clone_meta_broken(struct clone_meta *meta);
/*
 * After that: reads what the last commit has left on the disk, all of it and from the disk itself.  0: it is
 * good, and clone_meta_nr_committed() what it says.  The bits in memory stay: what was written can be read.
 * Same thread as clone_meta_commit().
 */
int clone_meta_abort(struct clone_meta *meta);
/* Frees the bits in memory; every region is hydrated, committed, and nobody else calls. */
void clone_meta_release(struct clone_meta *meta);

#endif
