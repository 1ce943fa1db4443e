/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Hashing blocks, and the tree's layout (format.h). */
#include "format.h"

#include <inttypes.h>

#include <dmfs/target.h>

#define MAX_SECTORS ((uint64_t)INT64_MAX >> DM_SECTOR_SHIFT)

static unsigned log2_of(uint64_t n)
{
	return 63 - (unsigned)__builtin_clzll(n);
}

static int lay_out(struct verity_format *f, GError **err)
{
	uint64_t at = f->hash_start, max = MAX_SECTORS >> (f->hash_bits - DM_SECTOR_SHIFT);
	unsigned bits = f->per_block_bits;

	f->levels = 0;
	while (f->levels * bits < 64 && (f->data_blocks - 1) >> (f->levels * bits))
		f->levels++;
	for (unsigned i = f->levels; i-- > 0;) {
		unsigned shift = (i + 1) * bits;

		f->level_start[i] = at;
		f->level_blocks[i] = shift < 64 ? ((f->data_blocks - 1) >> shift) + 1 : 1;
		if (f->level_blocks[i] > max || at > max - f->level_blocks[i])
			return dm_fail(err, E2BIG,
				       "Hash device offset overflow: the tree of %" PRIu64 " data blocks from hash block %" PRIu64
				       " on reaches beyond 2^63 bytes",
				       f->data_blocks, f->hash_start);
		at += f->level_blocks[i];
	}
	f->hash_end = at;
	return 0;
}

int verity_format_prepare(struct verity_format *f, GError **err)
{
	f->data_bits = log2_of(f->data_block);
	f->hash_bits = log2_of(f->hash_block);
	if (f->data_blocks > MAX_SECTORS >> (f->data_bits - DM_SECTOR_SHIFT))
		return dm_fail(err, EINVAL, "Invalid data blocks: %" PRIu64 " of %u bytes are more than 2^63 bytes",
			       f->data_blocks, f->data_block);
	if (!f->data_blocks)
		return dm_fail(err, EINVAL, "Invalid data blocks: there are none");
	if (f->hash_start > MAX_SECTORS >> (f->hash_bits - DM_SECTOR_SHIFT))
		return dm_fail(err, EINVAL, "Invalid hash start: block %" PRIu64 " of %u bytes is beyond 2^63 bytes",
			       f->hash_start, f->hash_block);
	f->digest_size = dm_hash_size(f->hash);
	if (f->hash_block < f->digest_size * 2)
		return dm_fail(err, EINVAL, "Digest size too big: two of %u bytes do not fit in a hash block of %u",
			       f->digest_size, f->hash_block);
	f->per_block_bits = log2_of(f->hash_block / f->digest_size);
	f->digest_step = f->version ? 1u << (f->hash_bits - f->per_block_bits) : f->digest_size;
	return lay_out(f, err);
}

void verity_format_clear(struct verity_format *f)
{
	dm_hash_free(f->hash);
	g_free(f->salt);
	f->hash = NULL;
	f->salt = NULL;
}

ssize_t verity_parse_hex(const char *hex, uint8_t *out)
{
	size_t digits = strlen(hex);

	if (digits % 2)
		return -1;
	for (size_t i = 0; i < digits; i += 2) {
		int hi = g_ascii_xdigit_value(hex[i]), lo = g_ascii_xdigit_value(hex[i + 1]);

		if (hi < 0 || lo < 0)
			return -1;
		if (out)
			out[i / 2] = (uint8_t)(hi << 4 | lo);
	}
	return (ssize_t)(digits / 2);
}

int verity_format_set_salt(struct verity_format *f, const char *hex, GError **err)
{
	ssize_t size = strcmp(hex, "-") ? verity_parse_hex(hex, NULL) : 0;

	if (size < 0)
		return dm_fail(err, EINVAL,
			       "Invalid salt '%.64s': an even number of hexadecimal digits is needed, or - for none", hex);
	g_free(f->salt);
	f->salt = g_malloc((size_t)size + 1);
	f->salt_size = (size_t)size;
	if (size)
		verity_parse_hex(hex, f->salt);
	return 0;
}

void verity_hash_pieces(const struct verity_format *f, const struct iovec *iov, int iovcnt, uint8_t *digest)
{
	struct iovec all[VERITY_MAX_PIECES + 1];
	struct iovec salt = {f->salt, f->salt_size};
	int n = 0;

	g_assert(iovcnt <= VERITY_MAX_PIECES);
	if (f->version && f->salt_size)
		all[n++] = salt;
	for (int i = 0; i < iovcnt; i++)
		all[n++] = iov[i];
	if (!f->version && f->salt_size)
		all[n++] = salt;
	dm_hash_iov(f->hash, all, n, digest);
}

void verity_hash_block(const struct verity_format *f, const void *data, size_t len, uint8_t *digest)
{
	struct iovec piece = {(void *)data, len};

	verity_hash_pieces(f, &piece, 1, digest);
}

void verity_hash_many(const struct verity_format *f, const void *const *data, size_t len, unsigned n, uint8_t *digests)
{
	const struct iovec salt = {f->salt, f->salt_size}, nothing = {f->salt, 0};

	dm_hash_many(f->hash, f->version ? &salt : &nothing, data, len, f->version ? &nothing : &salt, n, digests);
}

void verity_digest_place(const struct verity_format *f, unsigned level, uint64_t index, uint64_t *hash_block,
			 size_t *offset)
{
	*hash_block = f->level_start[level] + (index >> f->per_block_bits);
	*offset = (size_t)(index & ((1ull << f->per_block_bits) - 1)) * f->digest_step;
}

bool verity_hash_block_level(const struct verity_format *f, uint64_t hash_block, unsigned *level, uint64_t *index)
{
	for (unsigned i = 0; i < f->levels; i++)
		if (hash_block >= f->level_start[i] && hash_block - f->level_start[i] < f->level_blocks[i]) {
			*level = i;
			*index = hash_block - f->level_start[i];
			return true;
		}
	return false;
}
