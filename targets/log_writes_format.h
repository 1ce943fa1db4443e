/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The log of log-writes on the log device, as the kernel and other replay programs know it.  All numbers are little
 * endian.  A block is the logical block size of the logged device ("sectorsize"), 512 bytes nearly always.
 *
 * Block 0, the super block:
 *
 *   offset  bytes
 *        0      8  magic, 0x006a736677736872
 *        8      8  version, 1
 *       16      8  number of entries
 *       24      4  sectorsize in bytes
 *
 * From block 1 on, the entries one after the other.  Each is one block
 *
 *        0      8  where it was written, in blocks of the device
 *        8      8  how much, in blocks
 *       16      8  flags
 *       24      8  length of the mark's text in bytes
 *       32         the text, for a mark; zeroes up to the end of the block
 *
 * and after it the blocks that were written.  A discard has a length, but no data follows; a flush and a mark have
 * neither.
 */
#ifndef DMFS_LOG_WRITES_FORMAT_H
#define DMFS_LOG_WRITES_FORMAT_H

#include <stdint.h>

#define LOG_WRITES_MAGIC 0x006a736677736872ull
#define LOG_WRITES_VERSION 1ull
#define LOG_WRITES_END_MARK "dm-log-writes-end"

enum log_writes_flag {
	LOG_WRITES_FLUSH = 1 << 0,
	LOG_WRITES_FUA = 1 << 1,
	LOG_WRITES_DISCARD = 1 << 2,
	LOG_WRITES_MARK = 1 << 3,
	LOG_WRITES_META = 1 << 4,
};

struct log_writes_super {
	uint64_t magic, version, entries;
	uint32_t block_size;
} __attribute__((packed));

struct log_writes_entry {
	uint64_t sector, sectors, flags, data_len;
} __attribute__((packed));

_Static_assert(sizeof(struct log_writes_super) == 28, "super block");
_Static_assert(sizeof(struct log_writes_entry) == 32, "entry");

#endif
