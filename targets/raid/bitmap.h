/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The write-intent bitmap: in which regions the devices may disagree.
 *
 * On each metadata device from byte 4096 on, md's format (numbers little-endian):
 *
 *    0 "bitm"                          48 u32 state 0
 *    4 u32 version 4                   52 u32 bytes of a region
 *    8 uuid, zeroes                    56 u32 daemon sleep in seconds
 *   24 u64 events                      60 u32 write-behind
 *   32 u64 events when last cleared    64 .. zeroes
 *   40 u64 sectors it is about        256 the bits, region 0 is bit 0 of byte 0
 *
 * It is about the sectors of a device; raid10's of the array.  Bits past the last region are ones, as the kernel leaves
 * them, up to the end of the last sector.
 *
 * In memory each region has a word:
 *
 *   the writes under way       low bits
 *   DURABLE    the bit is set on the devices: a write may go on at once
 *   TOUCHED    written to since the cleaner last looked
 *   NEEDED     out of sync: to be resynchronised before it can be called clean
 *
 * Who writes adds one to the count; if it was not DURABLE he waits until the bit is (meta.c).  The cleaner takes
 * DURABLE away only from a word that is nothing else, with one atomic exchange, so no write slips between.
 *
 * Threads: raid_region_*() any; the rest by the metadata worker, or before it starts.
 */
#ifndef DMFS_TARGETS_RAID_BITMAP_H
#define DMFS_TARGETS_RAID_BITMAP_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define RAID_BITMAP_START 4096u /* bytes */
#define RAID_BITMAP_HEAD 256u

#define RAID_REGION_DURABLE (1u << 31)
#define RAID_REGION_TOUCHED (1u << 30)
#define RAID_REGION_NEEDED (1u << 29)
#define RAID_REGION_WRITES (RAID_REGION_NEEDED - 1)

struct raid_bitmap {
	uint64_t sectors; /* it is about */
	unsigned shift;	  /* a region is 2^shift sectors */
	uint64_t regions;
	_Atomic uint32_t *words;
	/* What is on the devices, in whole sectors; and which of those sectors must be written. */
	uint8_t *image;
	size_t bytes;
	uint8_t *stale;
};

struct raid_bitmap_head {
	uint64_t events, events_cleared, sectors;
	uint32_t region_bytes, daemon_sleep_s, write_behind;
};

/* With all bits and all of the image set. */
struct raid_bitmap *raid_bitmap_new(uint64_t sectors, uint64_t region_sectors);
void raid_bitmap_free(struct raid_bitmap *b);
/* Bytes of the image for so many sectors in such regions. */
size_t raid_bitmap_bytes(uint64_t sectors, uint64_t region_sectors);

void raid_bitmap_put_head(struct raid_bitmap *b, const struct raid_bitmap_head *head);
/* -EINVAL with a text for what is no bitmap of these sectors.  len: bytes there are. */
int raid_bitmap_get_head(const uint8_t *image, size_t len, struct raid_bitmap_head *head, GError **err);
/* Sets the words and bits as an image says whose regions may have another size; len bytes of it are there. */
void raid_bitmap_load(struct raid_bitmap *b, const uint8_t *image, size_t len, const struct raid_bitmap_head *head);

/* The bit of the image; true if it changes. */
bool raid_bitmap_set(struct raid_bitmap *b, uint64_t region, bool on);

/* A write to a region begins: true if it may go on now.  Else who asked waits until DURABLE. */
static inline bool raid_region_begin(struct raid_bitmap *b, uint64_t region)
{
	return atomic_fetch_add(&b->words[region], 1) & RAID_REGION_DURABLE;
}

static inline void raid_region_end(struct raid_bitmap *b, uint64_t region)
{
	atomic_fetch_or(&b->words[region], RAID_REGION_TOUCHED);
	atomic_fetch_sub(&b->words[region], 1);
}

static inline bool raid_region_needed(struct raid_bitmap *b, uint64_t region)
{
	return atomic_load(&b->words[region]) & RAID_REGION_NEEDED;
}

#endif
