/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where everything lies on an integrity volume, in sectors of 512 bytes (dm-integrity.rst).
 *
 *   START              superblock, 8 sectors
 *   START + 8          journal: sections; in bitmap mode it holds the bitmap
 *   START + initial    runs, each of them tags (`run` sectors) and then data (2^log2_interleave sectors)
 *
 * With a metadata device of its own the data are the whole data device, from its sector 0, and one run of tags follows
 * the journal on the metadata device.
 *
 * A journal section: 8 sectors of entries, then the data of each entry, a block.  Entries are dealt out to the 8 sectors
 * one by one: entry n is number n / 8 of sector n % 8.
 *
 *   entry                              sector of entries            sector of data
 *   0    u64 sector of the volume      0    entries                 0    the block's first 504 bytes
 *   8    the last 8 bytes of each      496  8 bytes of the MAC,     504  u64 commit id
 *        of the block's sectors             if there is one
 *   +    tag, padded to 8 bytes        504  u64 commit id
 *
 * All numbers come from a table line or from a disk: nothing here trusts them.
 */
#ifndef INTEGRITY_LAYOUT_H
#define INTEGRITY_LAYOUT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#define SB_SECTORS 8u
#define SECTION_HEAD 8u        /* sectors of entries */
#define SECTOR_DATA 504u       /* bytes of a journal sector before its commit id */
#define SECTOR_MAC 8u          /* bytes of the MAC in a sector of entries */
#define MAX_TAG 255u           /* bytes */
#define MAX_SPB 8u             /* sectors of a block */
#define DEFAULT_INTERLEAVE 32768u
#define MIN_LOG2_INTERLEAVE 3u
#define MAX_LOG2_INTERLEAVE 31u
#define DEFAULT_MAX_JOURNAL 131072u /* sectors */
#define BITMAP_BLOCK 4096u     /* bytes of the bitmap that are written at once */
#define MAX_LOG2_BUFFER 22u

struct integrity_layout {
	/* What is known: */
	uint64_t start;                       /* sectors before the superblock */
	uint64_t data_sectors, meta_sectors;  /* of the devices; the same if there is one */
	bool separate;                        /* a metadata device of its own */
	bool journal_mac, fix_padding;
	unsigned tag_size;                    /* bytes, 1 to MAX_TAG */
	unsigned log2_spb;                    /* sectors of a block, 0 to 3 */
	unsigned log2_interleave;
	uint32_t sections;                    /* of the journal */
	unsigned log2_buffer;                 /* sectors of a tag buffer; may become less */
	/* What follows: */
	unsigned entry_size;                  /* bytes */
	unsigned section_entries, section_sectors;
	uint64_t entries;                     /* of the whole journal */
	uint64_t initial;                     /* sectors of superblock and journal */
	uint64_t run;                         /* sectors of a run's tags */
	uint64_t provided;                    /* sectors of the volume */
	unsigned log2_bit;                    /* sectors of a bit of the bitmap */
	uint64_t bits;
};

/* The journal's geometry, of tag_size, log2_spb, journal_mac and sections. */
void integrity_layout_section(struct integrity_layout *l);
/*
 * A device that is formatted now: chooses sections, interleave and the sectors provided.  journal_sectors 0: the
 * default.  -EINVAL: it is too small.
 */
int integrity_layout_format(struct integrity_layout *l, unsigned journal_sectors, unsigned interleave, GError **err);
/* A device whose superblock said sections and interleave: what it provides now.  -EINVAL: it is too small. */
int integrity_layout_open(struct integrity_layout *l, GError **err);
/* The bitmap: bits of at least a block and about 2^log2_bit sectors, made larger until they fit into the journal. */
void integrity_layout_bitmap(struct integrity_layout *l, unsigned log2_bit);
unsigned integrity_layout_bitmap_blocks(const struct integrity_layout *l);

/* Where a sector of the volume lies on the data device. */
uint64_t integrity_data_sector(const struct integrity_layout *l, uint64_t sector);
/* Where a block's tag lies, in bytes from START + initial. */
uint64_t integrity_tag_at(const struct integrity_layout *l, uint64_t block);
/* How many blocks from this one on have their tags, and their data, in a row: to the end of its run. */
uint64_t integrity_run_left(const struct integrity_layout *l, uint64_t block);

#endif
