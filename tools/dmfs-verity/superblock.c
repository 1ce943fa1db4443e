/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * veritysetup's superblock, 512 bytes, little-endian (DMVerity in cryptsetup's wiki):
 *
 *     0  "verity" and two zero bytes       64  data block size, u32
 *     8  version, u32, 1                   68  hash block size, u32
 *    12  hash type, u32, 0 or 1            72  data blocks, u64
 *    16  uuid, 16 bytes                    80  salt size, u16, up to 256
 *    32  hash, a string of 31 characters   88  salt
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <dmfs/le.h>

#include "verity.h"

#define MAX_SALT 256

static void print_uuid(const uint8_t *bytes, char *out)
{
	for (int i = 0; i < 16; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*out++ = '-';
		g_snprintf(out, 3, "%02x", bytes[i]);
		out += 2;
	}
}

static bool is_power_of_two(unsigned n)
{
	return n && !(n & (n - 1));
}

int superblock_parse(const uint8_t *p, struct superblock *out, GError **err)
{
	unsigned version = get_le32(p + 8);
	size_t len = strnlen((const char *)p + 32, 32);

	*out = (struct superblock){.type = get_le32(p + 12)};
	if (memcmp(p, "verity\0", 8))
		return fail(err, EINVAL, "there is no verity superblock");
	if (version != 1)
		return fail(err, EINVAL, "the superblock's version is %u, 1 is known", version);
	if (out->type > 1)
		return fail(err, EINVAL, "the superblock's hash type is %u, 0 and 1 are known", out->type);
	out->data_block = get_le32(p + 64);
	out->hash_block = get_le32(p + 68);
	if (!is_power_of_two(out->data_block) || out->data_block < 512 || out->data_block > 4096)
		return fail(err, EINVAL, "the superblock's data block size is %u, a power of two from 512 to 4096 is needed",
			    out->data_block);
	if (!is_power_of_two(out->hash_block) || out->hash_block < 512 || out->hash_block > 1u << 30)
		return fail(err, EINVAL, "the superblock's hash block size is %u, a power of two from 512 to 2^30 is needed",
			    out->hash_block);
	out->data_blocks = get_le64(p + 72);
	if (!out->data_blocks || out->data_blocks > (uint64_t)INT64_MAX / out->data_block)
		return fail(err, EINVAL, "the superblock's %" PRIu64 " data blocks of %u bytes cannot be", out->data_blocks,
			    out->data_block);
	out->salt_size = get_le16(p + 80);
	if (out->salt_size > MAX_SALT)
		return fail(err, EINVAL, "the superblock's salt has %u bytes, %u are the most", out->salt_size, MAX_SALT);
	if (!len || len == 32)
		return fail(err, EINVAL, "the superblock's hash has no name");
	for (size_t i = 0; i < len; i++)
		if (!g_ascii_isgraph(p[32 + i]))
			return fail(err, EINVAL, "the superblock's hash has no name that can be one");
	memcpy(out->hash, p + 32, len);
	memcpy(out->salt, p + 88, out->salt_size);
	print_uuid(p + 16, out->uuid);
	return 0;
}
