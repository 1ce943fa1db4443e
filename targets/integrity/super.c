/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Superblocks (super.h), to and from bytes. */
#include <errno.h>
#include <inttypes.h>

#include <dmfs/error.h>
#include <dmfs/le.h>

#include "super.h"

static const char magic[8] = "integrt";

static bool all_zero(const uint8_t *bytes, size_t n)
{
	return !bytes[0] && !memcmp(bytes, bytes + 1, n - 1);
}

enum integrity_found integrity_super_parse(const uint8_t *bytes, struct integrity_super *sb)
{
	if (memcmp(bytes, magic, sizeof magic))
		return all_zero(bytes, SB_BYTES) ? SUPER_ZEROES : SUPER_NONE;
	*sb = (struct integrity_super){
		.version = bytes[8],
		.log2_interleave = bytes[9],
		.tag_size = get_le16(bytes + 10),
		.sections = get_le32(bytes + 12),
		.provided = get_le64(bytes + 16),
		.flags = get_le32(bytes + 24),
		.log2_spb = bytes[28],
		.log2_blocks_per_bit = bytes[29],
		.recalc = get_le64(bytes + 32),
	};
	memcpy(sb->salt, bytes + 48, SALT_BYTES);
	return SUPER_FOUND;
}

static unsigned version_of(const struct integrity_super *sb, bool bitmap_mode, bool separate)
{
	if (sb->flags & SB_FIXED_HMAC)
		return 5;
	if (sb->flags & SB_FIXED_PADDING)
		return 4;
	if (bitmap_mode || sb->flags & SB_DIRTY_BITMAP)
		return 3;
	return separate || sb->flags & SB_RECALCULATING ? 2 : 1;
}

void integrity_super_print(struct integrity_super *sb, struct dm_hash *mac, bool bitmap_mode, bool separate,
			   uint8_t *bytes)
{
	sb->version = version_of(sb, bitmap_mode, separate);
	memset(bytes, 0, SB_BYTES);
	memcpy(bytes, magic, sizeof magic);
	bytes[8] = (uint8_t)sb->version;
	bytes[9] = (uint8_t)sb->log2_interleave;
	put_le16(bytes + 10, (uint16_t)sb->tag_size);
	put_le32(bytes + 12, sb->sections);
	put_le64(bytes + 16, sb->provided);
	put_le32(bytes + 24, sb->flags);
	bytes[28] = (uint8_t)sb->log2_spb;
	bytes[29] = (uint8_t)sb->log2_blocks_per_bit;
	put_le64(bytes + 32, sb->recalc);
	memcpy(bytes + 48, sb->salt, SALT_BYTES);
	if (mac && sb->flags & SB_FIXED_HMAC) {
		size_t before = DM_SECTOR_SIZE - dm_hash_size(mac);

		dm_hash_buffer(mac, bytes, before, bytes + before);
	}
}

bool integrity_super_mac_right(const struct integrity_super *sb, struct dm_hash *mac, const uint8_t *bytes)
{
	uint8_t is[DM_HASH_MAX_SIZE];
	size_t before;

	if (!mac || !(sb->flags & SB_FIXED_HMAC))
		return true;
	before = DM_SECTOR_SIZE - dm_hash_size(mac);
	dm_hash_buffer(mac, bytes, before, is);
	return !memcmp(is, bytes + before, dm_hash_size(mac));
}

int integrity_super_check(const struct integrity_super *sb, const struct integrity_layout *l, GError **err)
{
	if (!sb->version || sb->version > SB_MAX_VERSION)
		return dm_fail(err, EINVAL, "integrity: Unknown version %u of the superblock; 1 to %u are known",
			       sb->version, SB_MAX_VERSION);
	if (sb->tag_size != l->tag_size)
		return dm_fail(err, EINVAL,
			       "integrity: Tag size doesn't match the information in superblock: %u in the table, %u on the "
			       "device", l->tag_size, sb->tag_size);
	if (sb->log2_spb != l->log2_spb)
		return dm_fail(err, EINVAL,
			       "integrity: Block size doesn't match the information in superblock: %u in the table, %" PRIu64
			       " on the device", DM_SECTOR_SIZE << l->log2_spb,
			       sb->log2_spb < 32 ? (uint64_t)DM_SECTOR_SIZE << sb->log2_spb : 0);
	if (!sb->sections)
		return dm_fail(err, EINVAL, "integrity: Corrupted superblock, journal_sections is 0");
	if (l->separate ? sb->log2_interleave != 0
			: sb->log2_interleave < MIN_LOG2_INTERLEAVE || sb->log2_interleave > MAX_LOG2_INTERLEAVE)
		return dm_fail(err, EINVAL,
			       "integrity: Invalid interleave_sectors in the superblock: 2^%u; %s", sb->log2_interleave,
			       l->separate ? "with a metadata device it is 2^0" : "2^3 to 2^31, or a metadata device is missing");
	if (!!(sb->flags & SB_JOURNAL_MAC) != l->journal_mac)
		return dm_fail(err, EINVAL, "integrity: Journal mac mismatch: the device was formatted with%s journal_mac",
			       l->journal_mac ? "out" : "");
	return 0;
}

void integrity_super_to_layout(const struct integrity_super *sb, struct integrity_layout *l)
{
	l->sections = sb->sections;
	l->log2_interleave = sb->log2_interleave;
	l->fix_padding = sb->flags & SB_FIXED_PADDING;
}
