/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * zoned's metadata in memory: zones, the mapping of chunks to zones, and which blocks are valid.
 *
 * Who works on a chunk holds its lock (zoned.c), shared to read and exclusive to change it.  struct zoned_chunk is a
 * chunk in work: the zones it is mapped to, with their bitmaps, which stay in memory for that long.
 *
 * Changes are made in memory; zoned_meta_commit() makes all of them durable, or none.  A zone that is freed is not used
 * again before the commit that says so: until then the old metadata are true.  A sequential one is reset then.
 *
 * The mutex inside is held for no I/O.
 */
#ifndef DMFS_ZONED_METADATA_H
#define DMFS_ZONED_METADATA_H

#include <dmfs/target.h>

#include "format.h"

struct zoned_meta;
struct zoned_bits;

/* A device of the line. */
struct zoned_dev {
	struct dm_dev *dev;
	bool regular;	       /* it has no zones */
	uint32_t first, zones; /* numbers of its zones */
};

/* What the devices are together. */
struct zoned_geometry {
	struct zoned_dev *devs;
	unsigned n;
	uint32_t zone_sectors, zone_blocks, zones;
};

/* Fills in all but the devices themselves.  0 or -EINVAL. */
int zoned_geometry(struct zoned_geometry *g, GError **err);

/*
 * Reads the metadata.  write: also repairs a set that is older, broken, or differs.  0 or a negative errno.  The
 * geometry stays the caller's.
 */
int zoned_meta_open(const struct zoned_geometry *g, bool write, struct zoned_meta **out, GError **err);
void zoned_meta_close(struct zoned_meta *meta);
void zoned_meta_super(const struct zoned_meta *meta, struct zoned_super *out);
uint32_t zoned_meta_chunks(const struct zoned_meta *meta);
void zoned_meta_status(struct zoned_meta *meta, GString *out);
size_t zoned_meta_bytes(struct zoned_meta *meta); /* what it takes of memory */

/* A chunk in work: data zone and buffer zone, ZONED_UNMAPPED for none. */
struct zoned_chunk {
	uint32_t chunk, zone[2];
	struct zoned_bits *bits[2];
};

enum { ZONED_DATA, ZONED_BUFFER };

/* 0, -EAGAIN: it would have to wait for I/O and may not; or another negative errno. */
int zoned_chunk_get(struct zoned_meta *meta, uint32_t chunk, bool may_wait, struct zoned_chunk *c);
void zoned_chunk_put(struct zoned_meta *meta, struct zoned_chunk *c);

/* Where blocks of a chunk are: how many in a row from this one on, up to max, are at *dev, *sector.  *dev is NULL:
 * nowhere, they are zeroes. */
uint32_t zoned_chunk_find(struct zoned_meta *meta, const struct zoned_chunk *c, uint32_t block, uint32_t max,
			  struct dm_dev **dev, uint64_t *sector, int *error);
/*
 * Where blocks of a chunk are to be written, all of them: ZONED_DATA or ZONED_BUFFER, and *dev, *sector.  Zones are
 * taken as they are needed.  -EAGAIN: there is no free one; -EIO.  zoned_chunk_written() says how it went.
 */
int zoned_chunk_place(struct zoned_meta *meta, struct zoned_chunk *c, uint32_t block, uint32_t blocks,
		      struct dm_dev **dev, uint64_t *sector);
void zoned_chunk_written(struct zoned_meta *meta, struct zoned_chunk *c, int which, uint32_t block, uint32_t blocks,
			 int error);
/* The blocks are zeroes. */
void zoned_chunk_forget(struct zoned_meta *meta, struct zoned_chunk *c, uint32_t block, uint32_t blocks);

/* May wait; one at a time.  *freed: whether zones became free. */
int zoned_meta_commit(struct zoned_meta *meta, bool *freed);
/* Whether so much has changed that it should be committed soon; whether zones wait for a commit to be free. */
bool zoned_meta_dirty(struct zoned_meta *meta);
uint64_t zoned_meta_freed(struct zoned_meta *meta); /* how many became free since it was opened */
bool zoned_meta_pending(struct zoned_meta *meta);
bool zoned_meta_mapped(struct zoned_meta *meta, uint32_t chunk);

/* Is told of each thing that is wrong. */
typedef void (*zoned_tell)(const char *text, void *data);
/* Of metadata just opened that nobody uses; repair: and mends it.  How many were found; 0 or a negative errno. */
int zoned_meta_check(struct zoned_meta *meta, bool repair, zoned_tell tell, void *data, unsigned *found, GError **err);

/* --- reclaim: one thread ----------------------------------------------------------------------- */

/* Whether a write that needs a zone for random writes finds one now. */
bool zoned_meta_has_random(struct zoned_meta *meta);
/* How much of the zones for random writes is free, in percent; 0: none is, or one. */
unsigned zoned_meta_free_percent(struct zoned_meta *meta);
/* Whether any chunk is mapped to a zone for random writes. */
bool zoned_meta_reclaimable(struct zoned_meta *meta);
/*
 * The chunk that is best freed of its zone for random writes: the nth of those that were not used for the longest time.
 * ZONED_UNMAPPED: there are fewer.
 */
uint32_t zoned_meta_victim(struct zoned_meta *meta, unsigned nth);
/*
 * Moves a chunk, whose lock the caller holds exclusively: its buffer into its sequential zone if that can be, else the
 * other way round, or its random zone into a sequential one.  0, -ENOSPC there is no zone to move it to, or another
 * negative errno.
 */
int zoned_meta_move(struct zoned_meta *meta, struct zoned_chunk *c, bool (*stop)(void *), void *context);

#endif
