/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The journal's sections in memory: entries and data (layout.h), commit ids, MAC, encryption.
 *
 * A sector's commit id is one of four numbers, xor section << 32, xor the sector's place in its section.  The numbers
 * take turns: each time around the journal the next one is used, so the newest section can be told.
 *
 * A free entry has ffffffff in the upper half of its sector, as no volume's sector has.
 *
 * journal_crypt with a stream cipher: the whole journal, in pages of 4096 bytes, is xored with the cipher's stream from
 * its beginning; the four numbers are xored with the 32 bytes of the stream that follow.  With a block cipher: each
 * section is a message of its own; its IV is the section's number (u32, padded with zeroes) encrypted with an IV of zeroes.
 */
#ifndef INTEGRITY_SECTION_H
#define INTEGRITY_SECTION_H

#include "integrity.h"

#define COMMIT_IDS 4u
#define UNUSED_SECTOR 0xffffffff00000000ull

struct integrity_sections;

/* Parses journal_crypt, if there is one, and prepares what depends on the key. */
int integrity_sections_new(const struct integrity *ic, struct integrity_sections **out, GError **err);
void integrity_sections_free(struct integrity_sections *s);

static inline size_t integrity_section_bytes(const struct integrity_layout *l)
{
	return (size_t)l->section_sectors << DM_SECTOR_SHIFT;
}

/* An entry of a section, and its data. */
uint8_t *integrity_entry(const struct integrity_layout *l, uint8_t *section, unsigned n);
uint8_t *integrity_entry_data(const struct integrity_layout *l, uint8_t *section, unsigned n);
static inline uint8_t *integrity_entry_tag(const struct integrity_layout *l, uint8_t *entry)
{
	return entry + 8 + (8u << l->log2_spb);
}
/* A block into an entry's data and the ends of its sectors into the entry; and back. */
void integrity_entry_put(const struct integrity_layout *l, uint8_t *section, unsigned n, const struct iovec *iov,
			 int iovcnt, size_t at);
void integrity_entry_get(const struct integrity_layout *l, uint8_t *section, unsigned n, const struct iovec *iov,
			 int iovcnt, size_t at);

/* All entries free; the rest is not touched. */
void integrity_section_clear(const struct integrity_layout *l, uint8_t *section);
/* Commit ids everywhere, and the MAC. */
void integrity_section_seal(const struct integrity *ic, uint8_t *section, uint32_t nr, unsigned id);
/* Which of the commit ids a sector has, or -1. */
int integrity_section_id(const struct integrity *ic, const uint8_t *section, uint32_t nr, unsigned sector);
bool integrity_section_mac_right(const struct integrity *ic, uint8_t *section, uint32_t nr);
/* In place; one thread at a time. */
int integrity_section_encrypt(const struct integrity *ic, uint8_t *section, uint32_t nr);
int integrity_section_decrypt(const struct integrity *ic, uint8_t *section, uint32_t nr);

#endif
