/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The superblock, 8 sectors of which the first 64 bytes are used, little-endian:
 *
 *    0  "integrt\0"                      28  u8 log2 of a block's sectors
 *    8  u8 version                       29  u8 log2 of a bitmap bit's blocks
 *    9  u8 log2 of the interleave        32  u64 sector up to which tags were recalculated
 *   10  u16 bytes of a tag               48  salt, 16 bytes, with fix_hmac
 *   12  u32 sections of the journal     512 - n  with fix_hmac and a journal MAC of n bytes, that MAC of what is before
 *   16  u64 sectors provided
 *   24  u32 flags
 *
 * The version says which of the flags are in use, and is found anew whenever the superblock is written.
 */
#ifndef INTEGRITY_SUPER_H
#define INTEGRITY_SUPER_H

#include <dmfs/bio.h>
#include <dmfs/hash.h>
#include <dmfs/io.h>

#include "layout.h"

#define SB_BYTES (SB_SECTORS * DM_SECTOR_SIZE)
#define SALT_BYTES 16u
#define SB_MAX_VERSION 5u

enum integrity_flags {
	SB_JOURNAL_MAC = 1,
	SB_RECALCULATING = 2,
	SB_DIRTY_BITMAP = 4,
	SB_FIXED_PADDING = 8,
	SB_FIXED_HMAC = 16,
};

struct integrity_super {
	unsigned version, log2_interleave, tag_size, log2_spb, log2_blocks_per_bit;
	uint32_t sections, flags;
	uint64_t provided, recalc;
	uint8_t salt[SALT_BYTES];
};

enum integrity_found { SUPER_NONE, SUPER_ZEROES, SUPER_FOUND };

/* What the 8 sectors hold.  Says nothing of whether it makes sense. */
enum integrity_found integrity_super_parse(const uint8_t *bytes, struct integrity_super *sb);
/* Into 8 sectors.  mac: of the journal, NULL if there is none; bitmap_mode: of the table in use. */
void integrity_super_print(struct integrity_super *sb, struct dm_hash *mac, bool bitmap_mode, bool separate,
			   uint8_t *bytes);
/* Whether the MAC in the first sector is right; a superblock without one is right. */
bool integrity_super_mac_right(const struct integrity_super *sb, struct dm_hash *mac, const uint8_t *bytes);
/* Whether a superblock can be one of this layout (tag size, block size, metadata device, MAC); the reason if not. */
int integrity_super_check(const struct integrity_super *sb, const struct integrity_layout *l, GError **err);
/* Takes over what the superblock says. */
void integrity_super_to_layout(const struct integrity_super *sb, struct integrity_layout *l);

#endif
