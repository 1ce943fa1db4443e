/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Superblocks in and out of their bytes (super.h). */
#include "super.h"

#include <dmfs/le.h>

#define MAGIC 0x64526d44u
#define NEWER_FIELDS 60u /* those from here on are there if feature bit 0 is set */

#define FIELD(at, name)                                                                                                \
	{                                                                                                              \
		at, sizeof(((struct raid_super *)0)->name), offsetof(struct raid_super, name)                          \
	}

static const struct field {
	unsigned at, size;
	size_t member;
} fields[] = {
	FIELD(4, features),
	FIELD(8, disks),
	FIELD(12, index),
	FIELD(16, events),
	FIELD(24, failed.bits[0]),
	FIELD(32, recovery_offset),
	FIELD(40, resync_offset),
	FIELD(48, level),
	FIELD(52, layout),
	FIELD(56, chunk),
	FIELD(60, reshape_flags),
	FIELD(64, reshape_position),
	FIELD(72, new_level),
	FIELD(76, new_layout),
	FIELD(80, new_chunk),
	FIELD(84, delta_disks),
	FIELD(88, array_sectors),
	FIELD(96, data_offset),
	FIELD(104, new_data_offset),
	FIELD(112, dev_sectors),
	FIELD(120, failed.bits[1]),
	FIELD(128, failed.bits[2]),
	FIELD(136, failed.bits[3]),
	FIELD(144, incompatible),
	FIELD(256, mark),
};

bool raid_super_decode(const uint8_t block[RAID_SUPER_BYTES], struct raid_super *sb)
{
	bool newer = get_le32(block + 4) & 1;

	*sb = (struct raid_super){.reshape_position = RAID_NONE};
	if (get_le32(block) != MAGIC)
		return false;
	for (unsigned i = 0; i < G_N_ELEMENTS(fields); i++) {
		const struct field *f = &fields[i];
		char *to = (char *)sb + f->member;

		if (f->at >= NEWER_FIELDS && !newer)
			break;
		if (f->size == 4)
			*(uint32_t *)to = get_le32(block + f->at);
		else
			*(uint64_t *)to = get_le64(block + f->at);
	}
	if (!newer) {
		sb->new_level = sb->level;
		sb->new_layout = sb->layout;
		sb->new_chunk = sb->chunk;
	}
	if (!(sb->reshape_flags & RAID_RESHAPE_ACTIVE))
		sb->reshape_position = RAID_NONE;
	return true;
}

void raid_super_encode(const struct raid_super *sb, uint8_t block[RAID_SUPER_BYTES])
{
	memset(block, 0, RAID_SUPER_BYTES);
	put_le32(block, MAGIC);
	for (unsigned i = 0; i < G_N_ELEMENTS(fields); i++) {
		const struct field *f = &fields[i];
		const char *from = (const char *)sb + f->member;

		if (f->size == 4)
			put_le32(block + f->at, *(const uint32_t *)from);
		else
			put_le64(block + f->at, *(const uint64_t *)from);
	}
}
