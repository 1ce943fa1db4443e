/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An array's superblocks: one on each metadata device, in its first sector (dm-raid's, as Linux 6.1 writes them).
 *
 * Numbers are little-endian; what follows the last field is zero:
 *
 *     0 u32 magic "DmRd"            56 u32 chunk sectors
 *     4 u32 features: 1, the        60 u32 reshape: 1 active, 2 backwards
 *           fields from 60 on exist 64 u64 reshape position, array sectors
 *     8 u32 devices of the array    72 u32 new level
 *    12 u32 index of this one       76 u32 new layout
 *    16 u64 events                  80 u32 new chunk sectors
 *    24 u64 failed devices 0-63     84 i32 devices added
 *    32 u64 recovery offset of      88 u64 array sectors
 *           this device             96 u64 data offset on this device
 *    40 u64 resync offset of the   104 u64 new data offset
 *           array                  112 u64 sectors of this device
 *    48 u32 level                  120 u64 failed devices 64-127, 128-191, 192-255
 *    52 u32 layout                 144 u32 features nobody may ignore: 0
 *
 * dmfs puts a mark of its own at 256 where there is a journal, which the kernel writes zeroes over: so it is known
 * whether the kernel has had the array since (journal.c).
 *
 * Offsets of all ones: recovered, in sync, not reshaping.
 */
#ifndef DMFS_TARGETS_RAID_SUPER_H
#define DMFS_TARGETS_RAID_SUPER_H

#include <stdbool.h>
#include <stdint.h>

#include "params.h"

#define RAID_NONE UINT64_MAX /* an offset of all ones */
#define RAID_SPARE UINT32_MAX /* the index of a device that is none of the array's yet */
#define RAID_SUPER_BYTES 512u

enum raid_reshape_flags { RAID_RESHAPE_ACTIVE = 1, RAID_RESHAPE_BACKWARDS = 2 };

struct raid_super {
	uint32_t features, disks, index;
	uint64_t events;
	struct raid_set failed;
	uint64_t recovery_offset, resync_offset;
	uint32_t level, layout, chunk, reshape_flags;
	uint64_t reshape_position;
	uint32_t new_level, new_layout, new_chunk;
	int32_t delta_disks;
	uint64_t array_sectors, data_offset, new_data_offset, dev_sectors;
	uint32_t incompatible;
	uint64_t mark;
};

#define RAID_MARK 0x6c6e726a73666d64ull /* "dmfsjrnl" */

/* False: there is none, the magic is another.  Without the newer fields these are as at rest. */
bool raid_super_decode(const uint8_t block[RAID_SUPER_BYTES], struct raid_super *sb);
void raid_super_encode(const struct raid_super *sb, uint8_t block[RAID_SUPER_BYTES]);

#endif
