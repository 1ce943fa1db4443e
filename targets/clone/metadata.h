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
void clone_md_close(struct clone_md *md);

uint64_t clone_md_nr_regions(struct clone_md *md);
uint64_t clone_md_nr_hydrated(struct clone_md *md);
void clone_md_usage(struct clone_md *md, uint64_t *used, uint64_t *total);
bool clone_md_hydrated(struct clone_md *md, uint64_t region);
/* True if the bit was not set before.  What the region holds must be written, not yet durable. */
bool clone_md_set(struct clone_md *md, uint64_t region);
/* The first region at or after `from`, and below `end`, that is not hydrated; end if there is none. */
uint64_t clone_md_next(struct clone_md *md, uint64_t from, uint64_t end);
/* Whether something is not on the disk yet, or only on its way there. */
bool clone_md_dirty(struct clone_md *md);
/*
 * Makes the bits set before the call durable: first the data (a FLUSH of dest), then the metadata.  One
 * thread at a time.  After an error of the metadata nothing can be committed any more.
 */
int clone_md_commit(struct clone_md *md, struct dm_dev *dest);
/* Frees the bits in memory; every region is hydrated, committed, and nobody else calls. */
void clone_md_release(struct clone_md *md);

#endif
