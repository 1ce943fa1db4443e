/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The metadata of zoned on the disk (dm-zoned.rst; the kernel's dm-zoned, versions 1 and 2).  Numbers are
 * little-endian, blocks have 4096 bytes, zones are numbered through all devices, in the order of the table's line.
 *
 * A set of metadata lies at the begin of a zone that can be written at random, the second set in the next zone that the
 * first leaves free: block 0 the superblock, then the mapping, then a bitmap of each zone there is, metadata zones and
 * all.
 *
 *   superblock
 *     0  "DBZD"
 *     4  version: 1 or 2
 *     8  generation, 64 bits: the set with the higher one is newer
 *    16  its own block, 64 bits, counted through all devices
 *    24  number of blocks of a set
 *    28  number of sequential zones kept for reclaim
 *    32  number of chunks
 *    36  number of blocks of the mapping
 *    40  number of blocks of the bitmaps
 *    44  CRC-32 of the block with this field 0: bits reflected, begun with the generation's low 32 bits, not inverted
 *    48  label, 32 bytes; 80 uuid; 96 the device's uuid (version 2)
 *   mapping: for each chunk the zones of its data and of its buffer, 32 bits each; all ones: none.  Unused: all ones.
 *   bitmap: a bit a block of the zone, the lowest first: it is valid.  At least a block for a zone.
 *
 * With several devices the first is a regular one, all of whose zones can be written at random; each zoned one begins
 * with a zone whose first block is a superblock of generation 0 and this device's uuid, and which holds nothing else.
 */
#ifndef DMFS_ZONED_FORMAT_H
#define DMFS_ZONED_FORMAT_H

#include <stdbool.h>
#include <stdint.h>

#define ZONED_MAGIC 0x445a4244u
#define ZONED_BLOCK 4096u
#define ZONED_BLOCK_SECTORS 8u
#define ZONED_BLOCK_BITS (ZONED_BLOCK * 8)
#define ZONED_MAP_ENTRIES (ZONED_BLOCK / 8)
#define ZONED_UNMAPPED UINT32_MAX
#define ZONED_LABEL 32u
#define ZONED_UUID 16u

struct zoned_super {
	uint32_t version;
	uint64_t generation, block;
	uint32_t set_blocks, reserved_seq, chunks, map_blocks, bitmap_blocks;
	uint8_t label[ZONED_LABEL], uuid[ZONED_UUID], device_uuid[ZONED_UUID];
};

/* data has a block.  read: false if magic or checksum are wrong. */
void zoned_super_write(const struct zoned_super *sb, uint8_t *data);
bool zoned_super_read(struct zoned_super *sb, const uint8_t *data);
/* The checksum that a superblock should have. */
uint32_t zoned_super_sum(const uint8_t *data);

static inline uint32_t zoned_map_blocks(uint32_t chunks)
{
	return (chunks + ZONED_MAP_ENTRIES - 1) / ZONED_MAP_ENTRIES;
}

/* Blocks of one zone's bitmap. */
static inline uint32_t zoned_zone_bitmap_blocks(uint32_t zone_blocks)
{
	return zone_blocks > ZONED_BLOCK_BITS ? zone_blocks / ZONED_BLOCK_BITS : 1;
}

#endif
