/* SPDX-License-Identifier: GPL-2.0-or-later */
/* writecache's layout (format.h), from bytes to numbers and back. */
#include <inttypes.h>

#include <dmfs/error.h>
#include <dmfs/le.h>
#include <dmfs/rounding.h>

#include "format.h"

#define MAGIC 0x23489321u
#define VERSION 1u

int wc_blocks_in(uint64_t bytes, uint32_t block_bytes, uint64_t *blocks)
{
	uint64_t n = bytes / (block_bytes + WC_ENTRY_BYTES);

	if (n > WC_MAX_BLOCKS)
		return -EFBIG;
	while (n && wc_meta_bytes(n, block_bytes) + n * block_bytes > bytes)
		n--;
	*blocks = n;
	return n ? 0 : -ENOSPC;
}

uint64_t wc_meta_bytes(uint64_t blocks, uint32_t block_bytes)
{
	return dm_round_up(WC_HEAD_BYTES + blocks * WC_ENTRY_BYTES, block_bytes);
}

int wc_super_read(const void *buf, uint64_t bytes, uint32_t block_bytes, struct wc_super *super, GError **err)
{
	const uint8_t *p = buf;
	uint32_t magic = get_le32(p), version = get_le32(p + 4);

	if (!magic && !version)
		return 1;
	super->block_bytes = get_le32(p + 8);
	super->blocks = get_le64(p + 16);
	super->seq = get_le64(p + 24);
	if (magic != MAGIC)
		return dm_fail(err, EINVAL, "writecache: Invalid magic in the superblock: 0x%08" PRIx32 ", not 0x%08x; zero "
					    "the first sector of a new cache device", magic, MAGIC);
	if (version != VERSION)
		return dm_fail(err, EINVAL, "writecache: Invalid version in the superblock: %" PRIu32 ", not %u", version,
			       VERSION);
	if (super->block_bytes != block_bytes)
		return dm_fail(err, EINVAL, "writecache: Block size does not match superblock: %" PRIu32 ", that has %" PRIu32,
			       block_bytes, super->block_bytes);
	if (!super->blocks || super->blocks > WC_MAX_BLOCKS)
		return dm_fail(err, EINVAL, "writecache: Overflow in size calculation: the superblock has %" PRIu64 " blocks, "
					    "1 to %u are possible", super->blocks, WC_MAX_BLOCKS);
	if (wc_meta_bytes(super->blocks, block_bytes) + super->blocks * block_bytes > bytes)
		return dm_fail(err, EINVAL, "writecache: Memory area is too small: %" PRIu64 " blocks of %" PRIu32 " bytes and "
					    "their metadata need more than its %" PRIu64 " bytes", super->blocks, block_bytes,
			       bytes);
	return 0;
}

void wc_super_write(void *buf, const struct wc_super *super)
{
	uint8_t *p = buf;

	memset(p, 0, WC_HEAD_BYTES);
	put_le32(p, MAGIC);
	put_le32(p + 4, VERSION);
	put_le32(p + 8, super->block_bytes);
	put_le64(p + 16, super->blocks);
	put_le64(p + 24, super->seq);
}

static size_t entry_at(uint32_t i)
{
	return WC_HEAD_BYTES + (size_t)i * WC_ENTRY_BYTES;
}

void wc_entry_read(const void *meta, uint32_t i, uint64_t *sector, uint64_t *seq)
{
	const uint8_t *p = (const uint8_t *)meta + entry_at(i);

	*sector = get_le64(p);
	*seq = get_le64(p + 8);
}

void wc_entry_write(void *meta, uint32_t i, uint64_t sector, uint64_t seq)
{
	uint8_t *p = (uint8_t *)meta + entry_at(i);

	put_le64(p, sector);
	put_le64(p + 8, seq);
}

void wc_entry_clear(void *meta, uint32_t i)
{
	put_le64((uint8_t *)meta + entry_at(i) + 8, UINT64_MAX);
}
