/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The arithmetic of layout.h. */
#include <errno.h>
#include <inttypes.h>

#include <dmfs/bio.h>
#include <dmfs/error.h>
#include <dmfs/rounding.h>

#include "layout.h"

#define ENTRY_ROUND 8u
#define TAIL 8u /* sectors beyond superblock and journal that there must be at least */
#define PADDING_FIXED 4096u
#define PADDING_OLD 131072u
#define DEFAULT_JOURNAL_SHIFT 7 /* a 128th of the device */
#define BITS_PER_BITMAP_BLOCK (BITMAP_BLOCK * 8u)

void integrity_layout_section(struct integrity_layout *l)
{
	unsigned space = SECTOR_DATA - (l->journal_mac ? SECTOR_MAC : 0);

	l->entry_size = (unsigned)dm_round_up(8 + (8u << l->log2_spb) + l->tag_size, ENTRY_ROUND);
	l->section_entries = space / l->entry_size * SECTION_HEAD;
	l->section_sectors = SECTION_HEAD + (l->section_entries << l->log2_spb);
	l->entries = (uint64_t)l->section_entries * l->sections;
	l->initial = SB_SECTORS + (uint64_t)l->section_sectors * l->sections;
}

/* --- where things are ------------------------------------------------------------------------- */

uint64_t integrity_data_sector(const struct integrity_layout *l, uint64_t sector)
{
	uint64_t area = sector >> l->log2_interleave;

	if (l->separate)
		return sector;
	return l->start + l->initial + (area + 1) * l->run + sector;
}

uint64_t integrity_tag_at(const struct integrity_layout *l, uint64_t block)
{
	uint64_t area, in_area;

	if (l->separate)
		return block * l->tag_size;
	area = block >> (l->log2_interleave - l->log2_spb);
	in_area = block - (area << (l->log2_interleave - l->log2_spb));
	return area * ((l->run + (1ull << l->log2_interleave)) << DM_SECTOR_SHIFT) + in_area * l->tag_size;
}

uint64_t integrity_run_left(const struct integrity_layout *l, uint64_t block)
{
	uint64_t run = 1ull << (l->log2_interleave - l->log2_spb);

	return l->separate ? UINT64_MAX - block : run - block % run;
}

/* --- what fits -------------------------------------------------------------------------------- */

static bool journal_fits(const struct integrity_layout *l)
{
	return l->initial <= UINT32_MAX && l->initial + TAIL < l->meta_sectors;
}

/* A run of tags, then so many sectors in runs of data: the last one lies on the device. */
static bool interleaved_fits(struct integrity_layout *l, uint64_t provided)
{
	uint64_t padding = l->fix_padding ? PADDING_FIXED : PADDING_OLD, areas, tags, end;

	l->run = dm_round_up((uint64_t)l->tag_size << (l->log2_interleave - l->log2_spb), padding) >> DM_SECTOR_SHIFT;
	areas = dm_div_up(provided, 1ull << l->log2_interleave);
	return !__builtin_mul_overflow(areas, l->run, &tags) && !__builtin_add_overflow(tags, provided, &end) &&
	       !__builtin_add_overflow(end, l->initial, &end) && !__builtin_add_overflow(end, l->start, &end) &&
	       end <= l->meta_sectors;
}

/* All tags, in whole buffers, which become smaller if only that helps. */
static bool separate_fits(struct integrity_layout *l)
{
	uint64_t bytes, end;

	l->run = 0;
	if (__builtin_mul_overflow(l->provided >> l->log2_spb, (uint64_t)l->tag_size, &bytes))
		return false;
	for (;; l->log2_buffer--) {
		uint64_t buffer = 1ull << l->log2_buffer;

		end = dm_round_up(dm_div_up(bytes, DM_SECTOR_SIZE), buffer);
		if (!__builtin_add_overflow(end, l->initial, &end) && !__builtin_add_overflow(end, l->start, &end) &&
		    end <= l->meta_sectors)
			return true;
		if (l->log2_buffer <= 3)
			return false;
	}
}

/* The most sectors that fit, a multiple of 8, found bit by bit. */
static uint64_t most_interleaved(struct integrity_layout *l)
{
	uint64_t most = 0;

	if (!l->meta_sectors || !journal_fits(l))
		return 0;
	for (int bit = (int)dm_log2(l->meta_sectors); bit >= 3; bit--)
		if (interleaved_fits(l, most | 1ull << bit))
			most |= 1ull << bit;
	return most;
}

static int too_small(const struct integrity_layout *l, GError **err)
{
	return dm_fail(err, EINVAL,
		       "integrity: The device is too small: %" PRIu64 " sectors, of which %" PRIu64
		       " are reserved; a superblock and a journal of %u sections take %" PRIu64 ", tags and data follow",
		       l->meta_sectors, l->start, l->sections, l->initial);
}

int integrity_layout_open(struct integrity_layout *l, GError **err)
{
	integrity_layout_section(l);
	if (!journal_fits(l))
		return too_small(l, err);
	if (l->separate) {
		l->provided = dm_round_down(l->data_sectors, 1u << l->log2_spb);
		return l->provided && separate_fits(l) ? 0 : too_small(l, err);
	}
	l->provided = most_interleaved(l);
	if (!l->provided)
		return too_small(l, err);
	/* Tags are read and written in buffers that neither span two runs of tags nor reach into data. */
	l->log2_buffer = MIN(l->log2_buffer, (unsigned)__builtin_ctzll(l->run));
	l->log2_buffer = MIN(l->log2_buffer, l->log2_interleave);
	return 0;
}

/* With a metadata device: as many sections, up to those wished for, as leave room for the tags. */
static void most_sections(struct integrity_layout *l, uint32_t wished)
{
	unsigned buffer = l->log2_buffer;
	uint32_t most = 0;

	for (int bit = (int)dm_log2(wished); bit >= 0; bit--) {
		if ((most | 1u << bit) > wished)
			continue;
		l->sections = most | 1u << bit;
		l->log2_buffer = buffer;
		integrity_layout_section(l);
		if (journal_fits(l) && separate_fits(l) && l->log2_buffer == buffer)
			most = l->sections;
	}
	l->sections = most;
	l->log2_buffer = buffer;
}

int integrity_layout_format(struct integrity_layout *l, unsigned journal_sectors, unsigned interleave, GError **err)
{
	uint64_t sectors = journal_sectors ? journal_sectors
					   : MIN((uint64_t)DEFAULT_MAX_JOURNAL, l->data_sectors >> DEFAULT_JOURNAL_SHIFT);
	uint32_t wished;

	integrity_layout_section(l);
	wished = (uint32_t)MAX(sectors / l->section_sectors, 1);
	l->log2_interleave = 0;
	l->sections = wished;
	if (!l->separate) {
		interleave = interleave ? interleave : DEFAULT_INTERLEAVE;
		l->log2_interleave = CLAMP((unsigned)dm_log2(interleave), MIN_LOG2_INTERLEAVE, MAX_LOG2_INTERLEAVE);
		return integrity_layout_open(l, err);
	}
	l->provided = dm_round_down(l->data_sectors, 1u << l->log2_spb);
	for (most_sections(l, wished); !l->sections && l->log2_buffer > 3; most_sections(l, wished))
		l->log2_buffer--;
	if (!l->sections)
		l->sections = 1;
	return integrity_layout_open(l, err);
}

/* --- the bitmap ------------------------------------------------------------------------------- */

void integrity_layout_bitmap(struct integrity_layout *l, unsigned log2_bit)
{
	uint64_t room = MIN((l->initial - SB_SECTORS) << (DM_SECTOR_SHIFT + 3), (uint64_t)UINT32_MAX);

	l->log2_bit = MAX(log2_bit, l->log2_spb);
	while (l->log2_bit < 63 && room < dm_div_up(l->provided, 1ull << l->log2_bit))
		l->log2_bit++;
	l->bits = dm_div_up(l->provided, 1ull << l->log2_bit);
}

unsigned integrity_layout_bitmap_blocks(const struct integrity_layout *l)
{
	return (unsigned)dm_div_up(l->bits, BITS_PER_BITMAP_BLOCK);
}
