/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The space maps' format, little endian (persistent-data.rst and the tools' pdata_tools say the rest):
 *
 *   root            u64 blocks, u64 allocated, u64 bitmap root, u64 overflow root
 *   bitmap block    u32 checksum (of all after it), u32 0, u64 own number; then two bits a block: 0, 1, 2
 *                   references, 3: see the overflow tree.  Of a pair the lower bit is the higher digit.
 *   index entry     u64 bitmap block, u32 free blocks in it, u32 no free block before this
 *   overflow tree   btree: block -> u32 references (3 or more)
 *
 *   metadata        bitmap root is an index block: u32 checksum (of all after it), u32 0, u64 own number, 255 entries
 *   disk            bitmap root is a btree: number of the bitmap -> index entry
 */
#ifndef DMFS_SPACE_MAP_INTERNAL_H
#define DMFS_SPACE_MAP_INTERNAL_H

#include <dmfs/btree.h>

#define BITMAP_HEADER 16
#define BITMAP_BYTES (DM_META_BLOCK_SIZE - BITMAP_HEADER)
#define BITMAP_ENTRIES (BITMAP_BYTES * 4)

struct sm_root {
	uint64_t nr_blocks, nr_allocated, bitmap_root, ref_count_root;
};

struct index_entry {
	uint64_t blocknr;
	uint32_t nr_free, none_free_before;
};

extern const struct dm_validator sm_bitmap_validator, sm_index_validator;

int sm_root_read(const void *root, size_t len, struct sm_root *out);
void sm_root_write(const struct sm_root *in, void *root);
void index_entry_read(const void *le, struct index_entry *out);
void index_entry_write(const struct index_entry *in, void *le);

/* The pair of bits of entry i, as a number 0 to 3; bits follow the header. */
static inline unsigned bitmap_get(const uint8_t *bits, uint32_t i)
{
	unsigned pair = bits[i / 4] >> i % 4 * 2 & 3;

	return (pair & 1) << 1 | pair >> 1;
}

static inline void bitmap_set(uint8_t *bits, uint32_t i, unsigned value)
{
	unsigned pair = (value & 1) << 1 | value >> 1;

	bits[i / 4] = (bits[i / 4] & ~(3u << i % 4 * 2)) | pair << i % 4 * 2;
}

/* The first entry from begin to end - 1 that is 0 in both (old may be NULL), or end. */
uint32_t bitmap_find_free(const uint8_t *bits, const uint8_t *old, uint32_t begin, uint32_t end);

/* Always give a space map to free, with *error set if it cannot be used. */
struct dm_sm *dm_sm_metadata_create(struct dm_tm *tm, dm_block_t superblock, dm_block_t nr_blocks, int *error);
struct dm_sm *dm_sm_metadata_open(struct dm_tm *tm, dm_block_t superblock, const void *root, size_t len, int *error);

/* Tells a manager its space map before the map is complete. */
void dm_tm_adopt(struct dm_tm *tm, struct dm_sm *sm);

/* Adds delta to the counts of n blocks, consecutive ones together. */
int dm_sm_add_runs(struct dm_sm *sm, const uint64_t *le_blocks, unsigned n, int delta);

#endif
