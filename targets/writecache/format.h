/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * writecache's layout on the cache device, the kernel's, little endian.  At start_sector:
 *
 *    0  u32 magic 0x23489321     4  u32 version 1
 *    8  u32 block size, bytes   12  u32 0
 *   16  u64 number of blocks    24  u64 sequence
 *   32  zeroes to 64
 *   64  for each block: u64 sector of the origin, u64 sequence; both all ones: it was never used, only the second: it
 *       was, and is free
 *
 * and from the next multiple of the block size on the blocks.  A block is valid if its sequence is below the
 * superblock's.  Of two valid ones for one sector that with the higher sequence counts.
 */
#ifndef WRITECACHE_FORMAT_H
#define WRITECACHE_FORMAT_H

#include <glib.h>
#include <stdint.h>

#define WC_HEAD_BYTES 64u
#define WC_ENTRY_BYTES 16u
#define WC_MIN_BLOCK 512u
#define WC_MAX_BLOCK 4096u
#define WC_MAX_BLOCKS (UINT32_MAX - 1) /* the kernel takes more, which is more memory than machines have */

struct wc_super {
	uint32_t block_bytes;
	uint64_t blocks, seq;
};

/* The most blocks that have room in so many bytes, with what describes them; -ENOSPC: none, -EFBIG: too many. */
int wc_blocks_in(uint64_t bytes, uint32_t block_bytes, uint64_t *blocks);
/* How long the superblock and the entries of so many blocks are, in whole blocks; bytes.  blocks is WC_MAX_BLOCKS at most. */
uint64_t wc_meta_bytes(uint64_t blocks, uint32_t block_bytes);

/*
 * Reads a superblock, of which buf holds WC_HEAD_BYTES, for an area of so many bytes.  0: it is one, for this block
 * size, and fits; 1: a fresh device; -EINVAL: anything else.
 */
int wc_super_read(const void *buf, uint64_t bytes, uint32_t block_bytes, struct wc_super *super, GError **err);
void wc_super_write(void *buf, const struct wc_super *super);

/* The entry of block i; meta begins with the superblock. */
void wc_entry_read(const void *meta, uint32_t i, uint64_t *sector, uint64_t *seq);
void wc_entry_write(void *meta, uint32_t i, uint64_t sector, uint64_t seq);
void wc_entry_clear(void *meta, uint32_t i);

#endif
