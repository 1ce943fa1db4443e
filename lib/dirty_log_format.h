/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The dirty log on a disk.  The format is the kernel's, all numbers little-endian:
 *
 *   bytes 0 to 3     magic 0x4d695272
 *   bytes 4 to 7     version, 2 (1 was the same)
 *   bytes 8 to 15    number of regions
 *   bytes 16 to 1023 not used; kept as found
 *   from byte 1024   a bit a region, bit r % 8 of byte r / 8: set means clean;
 *                    zero bits up to a multiple of 64
 *
 * Sixteen zero bytes at the beginning are a new log.
 */
#ifndef DMFS_LIB_DIRTY_LOG_FORMAT_H
#define DMFS_LIB_DIRTY_LOG_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include <dmfs/le.h>

#define DM_LOG_MAGIC 0x4d695272u
#define DM_LOG_VERSION 2u
#define DM_LOG_BITMAP_OFFSET 1024u
#define DM_LOG_HEADER_BYTES 16u

static inline void dm_log_put_header(uint8_t *p, uint64_t regions)
{
	put_le32(p, DM_LOG_MAGIC);
	put_le32(p + 4, DM_LOG_VERSION);
	put_le64(p + 8, regions);
}

static inline bool dm_log_header_is_new(const uint8_t *p)
{
	static const uint8_t zeroes[DM_LOG_HEADER_BYTES];

	return !memcmp(p, zeroes, DM_LOG_HEADER_BYTES);
}

static inline bool dm_log_header_is_log(const uint8_t *p)
{
	uint32_t version = get_le32(p + 4);

	return get_le32(p) == DM_LOG_MAGIC && version >= 1 && version <= DM_LOG_VERSION;
}

static inline uint64_t dm_log_header_regions(const uint8_t *p)
{
	return get_le64(p + 8);
}

/* Of a bitmap, in memory and on disk: whole 64-bit words. */
static inline size_t dm_log_bitmap_bytes(uint64_t regions)
{
	return (regions + 63) / 64 * 8;
}

#endif
