/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * verity's format (verity.rst): how blocks are hashed, and where digests lie.
 *
 * The tree's levels are counted from the data: the hash blocks of level 0 hold the digests of data
 * blocks, those of level 1 the digests of level 0's blocks, up to the root block, whose digest is
 * the root hash.  They lie from hash_start on, the root first, level 0 last.  A device of one data
 * block has no levels: its digest is the root hash.
 *
 *   version   hashed          digests in a hash block
 *   0         block, salt     one behind the other, the rest of the block is zeroes
 *   1         salt, block     each padded with zeroes to a power of two
 *
 * A hash block holds as many digests as the largest power of two that fits.
 */
#ifndef DMFS_VERITY_FORMAT_H
#define DMFS_VERITY_FORMAT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include <dmfs/hash.h>

#define VERITY_MAX_LEVELS 22 /* 512-byte hash blocks hold 8 digests of 64 bytes: 2^63 blocks need 21 */
#define VERITY_MIN_BLOCK 512u
#define VERITY_MAX_DATA_BLOCK 4096u       /* bytes */
#define VERITY_MAX_HASH_BLOCK (1u << 30)

struct verity_format {
	/* Filled in before verity_format_prepare(). */
	unsigned version;                /* 0 or 1 */
	unsigned data_block, hash_block; /* bytes, powers of two in the ranges above */
	uint64_t data_blocks, hash_start; /* hash_start in hash blocks */
	struct dm_hash *hash;            /* the format's from now on */
	uint8_t *salt;                   /* the same */
	size_t salt_size;
	uint8_t root[DM_HASH_MAX_SIZE];
	/* What follows from it. */
	unsigned data_bits, hash_bits; /* log2 of bytes */
	unsigned digest_size, digest_step;
	unsigned per_block_bits; /* log2 of the digests in a hash block */
	unsigned levels;
	uint64_t level_start[VERITY_MAX_LEVELS], level_blocks[VERITY_MAX_LEVELS];
	uint64_t hash_end; /* the hash block behind the tree */
};

/*
 * Computes what follows; no sector of either area is beyond 2^63 bytes.  -EINVAL, -E2BIG; texts do not begin with anybody's
 * name.
 */
int verity_format_prepare(struct verity_format *f, GError **err);
void verity_format_clear(struct verity_format *f);

/* Two hexadecimal digits a byte, of any case: the number of bytes, or -1.  out NULL: only checks. */
ssize_t verity_parse_hex(const char *hex, uint8_t *out);
/* "-" is no salt.  -EINVAL. */
int verity_format_set_salt(struct verity_format *f, const char *hex, GError **err);

/* The digest of a block that lies in pieces (block_bytes in all), salted. */
#define VERITY_MAX_PIECES 14
void verity_hash_pieces(const struct verity_format *f, const struct iovec *iov, int iovcnt, uint8_t *digest);
void verity_hash_block(const struct verity_format *f, const void *data, size_t len, uint8_t *digest);
/* Of n blocks of one length, to digests one behind the other. */
void verity_hash_many(const struct verity_format *f, const void *const *data, size_t len, unsigned n, uint8_t *digests);

/*
 * Where the digest of a block is: of data block `index` in level 0, of block `index` of level - 1 in level.
 * *hash_block counts from the hash device's start, *offset in bytes within it.
 */
void verity_digest_place(const struct verity_format *f, unsigned level, uint64_t index, uint64_t *hash_block,
			 size_t *offset);
/* The level of a hash block of the tree, and which of that level it is. */
bool verity_hash_block_level(const struct verity_format *f, uint64_t hash_block, unsigned *level, uint64_t *index);

#endif
