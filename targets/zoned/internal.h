/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the files of zoned's metadata share (metadata.h): load.c, metadata.c, commit.c, move.c. */
#ifndef DMFS_ZONED_INTERNAL_H
#define DMFS_ZONED_INTERNAL_H

#include <pthread.h>

#include "metadata.h"

enum zone_flags {
	ZONE_SEQ = 1,	/* written in order; else at random */
	ZONE_CACHE = 2, /* of the regular device */
	ZONE_META = 4,
	ZONE_RESERVED = 8, /* of those kept for reclaim */
	ZONE_OFFLINE = 16, /* not used at all */
	ZONE_READONLY = 32,
	ZONE_UNSURE = 64, /* a write failed: where its write pointer is has to be asked */
	ZONE_STUCK = 128, /* reclaim has tried it in vain */
};

struct zone {
	uint32_t chunk;	     /* ZONED_UNMAPPED: none */
	uint32_t other;	     /* of a data zone its buffer, of a buffer its data zone */
	uint32_t wp, weight; /* blocks; weight: how many are valid */
	uint32_t prev, next; /* in its list */
	uint16_t list;
	uint8_t flags, dev;
};

/* Zones in a list: by kind, those used longest ago first. */
struct zone_list {
	uint32_t head, tail, n;
};

enum { LIST_NONE, FREE_CACHE, MAP_CACHE, RESERVED, PENDING, COMMITTING, LISTS };
enum { FREE_RND, MAP_RND, FREE_SEQ, MAP_SEQ, DEV_LISTS };

static inline uint16_t dev_list(unsigned dev, unsigned list)
{
	return (uint16_t)(LISTS + dev * DEV_LISTS + list);
}

/* A zone's bitmap in memory. */
struct zoned_bits {
	uint32_t zone;
	unsigned refs;
	bool dirty, kept;		/* kept: it is in the table of them; else it goes with its last user */
	struct zoned_bits *prev, *next; /* those without users, used longest ago first */
	uint8_t data[];
};

struct zoned_meta {
	struct zoned_geometry g;
	struct zoned_super super;
	uint32_t bitmap_blocks; /* of one zone */
	uint32_t set_zone[2];	/* zones where the sets begin */
	unsigned primary;
	bool write;
	pthread_mutex_t lock; /* of all that follows */
	bool broken;	      /* the sets cannot be told apart any more: nothing is written */
	struct zone *zones;
	struct zone_list *lists;
	uint8_t *map;	    /* map_blocks blocks */
	uint8_t *map_dirty; /* a byte a block */
	GHashTable *bits;
	struct zoned_bits *idle_first, *idle_last;
	size_t bits_n, bits_max, dirty_n;
	unsigned map_dirty_n;
	uint64_t freed; /* how many zones became free so far */
};

static inline const struct zone *zone_of(const struct zoned_meta *meta, uint32_t z)
{
	return &meta->zones[z];
}

static inline struct dm_dev *zone_dev(const struct zoned_meta *meta, uint32_t z)
{
	return meta->g.devs[meta->zones[z].dev].dev;
}

/* Sector of its device where a block of a zone is. */
static inline uint64_t zone_sector(const struct zoned_meta *meta, uint32_t z, uint32_t block)
{
	uint32_t first = meta->g.devs[meta->zones[z].dev].first;

	return (uint64_t)(z - first) * meta->g.zone_sectors + (uint64_t)block * ZONED_BLOCK_SECTORS;
}

/* Sector of the first device where a block of a set is. */
static inline uint64_t set_sector(const struct zoned_meta *meta, unsigned set, uint64_t block)
{
	return (uint64_t)meta->set_zone[set] * meta->g.zone_sectors + block * ZONED_BLOCK_SECTORS;
}

static inline uint64_t bits_block(const struct zoned_meta *meta, uint32_t zone)
{
	return 1 + meta->super.map_blocks + (uint64_t)zone * meta->bitmap_blocks;
}

static inline bool bit_is_set(const uint8_t *bits, uint32_t block)
{
	return bits[block / 8] & 1u << block % 8;
}

/* metadata.c; with the lock */
void zoned_list_add(struct zoned_meta *meta, uint16_t list, uint32_t z);
void zoned_list_remove(struct zoned_meta *meta, uint32_t z);
uint32_t zoned_list_pop(struct zoned_meta *meta, uint16_t list);
/* The list of zones like this one that are free, or in use. */
uint16_t zoned_free_list(const struct zoned_meta *meta, uint32_t z);
uint16_t zoned_map_list(const struct zoned_meta *meta, uint32_t z);
void zoned_set_map(struct zoned_meta *meta, uint32_t chunk, uint32_t data, uint32_t buffer);
/* A bitmap without a bit set, of a zone that was free; with a reference. */
struct zoned_bits *zoned_bits_fresh(struct zoned_meta *meta, uint32_t z);
void zoned_bits_unref(struct zoned_meta *meta, struct zoned_bits *bits);
void zoned_bits_changed(struct zoned_meta *meta, struct zoned_bits *bits);
void zoned_validate(struct zoned_meta *meta, struct zoned_bits *bits, uint32_t block, uint32_t blocks);
/* Takes a zone from its chunk: no block of it is valid.  The mapping is the caller's. */
void zoned_zone_free(struct zoned_meta *meta, struct zoned_bits *bits);

/* load.c: asks the device about a zone; may wait.  0 or a negative errno. */
int zoned_report_zone(struct zoned_meta *meta, uint32_t z, struct zone *out);
/* Reads and writes a number of blocks of a set. */
int zoned_set_read(struct zoned_meta *meta, unsigned set, uint64_t block, uint32_t blocks, void *buf);
int zoned_set_write(struct zoned_meta *meta, unsigned set, uint64_t block, uint32_t blocks, const void *buf);
/* A set's superblock, then a flush. */
int zoned_super_commit(struct zoned_meta *meta, unsigned set, uint64_t generation);

#endif
