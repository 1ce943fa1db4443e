/* SPDX-License-Identifier: GPL-2.0-or-later */
/* zoned's superblock (format.h). */
#include <pthread.h>
#include <string.h>

#include <dmfs/le.h>

#include "format.h"

#define POLYNOMIAL 0xedb88320u /* 0x04c11db7, bits reflected */

static uint32_t table[256];

static void fill_table(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		table[i] = i;
		for (unsigned bit = 0; bit < 8; bit++)
			table[i] = table[i] >> 1 ^ (table[i] & 1 ? POLYNOMIAL : 0);
	}
}

uint32_t zoned_super_sum(const uint8_t *data)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	uint32_t crc = (uint32_t)get_le64(data + 8);

	pthread_once(&once, fill_table);
	for (unsigned i = 0; i < ZONED_BLOCK; i++) {
		uint8_t byte = i >= 44 && i < 48 ? 0 : data[i];

		crc = crc >> 8 ^ table[(crc ^ byte) & 0xff];
	}
	return crc;
}

void zoned_super_write(const struct zoned_super *sb, uint8_t *data)
{
	memset(data, 0, ZONED_BLOCK);
	put_le32(data, ZONED_MAGIC);
	put_le32(data + 4, sb->version);
	put_le64(data + 8, sb->generation);
	put_le64(data + 16, sb->block);
	put_le32(data + 24, sb->set_blocks);
	put_le32(data + 28, sb->reserved_seq);
	put_le32(data + 32, sb->chunks);
	put_le32(data + 36, sb->map_blocks);
	put_le32(data + 40, sb->bitmap_blocks);
	if (sb->version > 1) {
		memcpy(data + 48, sb->label, ZONED_LABEL);
		memcpy(data + 80, sb->uuid, ZONED_UUID);
		memcpy(data + 96, sb->device_uuid, ZONED_UUID);
	}
	put_le32(data + 44, zoned_super_sum(data));
}

bool zoned_super_read(struct zoned_super *sb, const uint8_t *data)
{
	if (get_le32(data) != ZONED_MAGIC || get_le32(data + 44) != zoned_super_sum(data))
		return false;
	*sb = (struct zoned_super){
	    .version = get_le32(data + 4),
	    .generation = get_le64(data + 8),
	    .block = get_le64(data + 16),
	    .set_blocks = get_le32(data + 24),
	    .reserved_seq = get_le32(data + 28),
	    .chunks = get_le32(data + 32),
	    .map_blocks = get_le32(data + 36),
	    .bitmap_blocks = get_le32(data + 40),
	};
	memcpy(sb->label, data + 48, ZONED_LABEL);
	memcpy(sb->uuid, data + 80, ZONED_UUID);
	memcpy(sb->device_uuid, data + 96, ZONED_UUID);
	return true;
}
