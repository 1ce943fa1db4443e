/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What LVM2 has on a physical volume.  Numbers are little-endian; a CRC begins with 0xf597a6cf and is not inverted.
 *
 * Label, in one of the first four sectors:
 *      0  "LABELONE"                    16  CRC of the bytes from 20 to the sector's end
 *      8  its sector, u64               20  where the header of the volume is, from the label on, u32
 *                                       24  "LVM2 001"
 * Header of the volume:
 *      0  its id, 32 characters         40  places {offset, bytes; u64} of data areas, a pair of zeroes behind them,
 *     32  bytes of the device, u64          then those of metadata areas, a pair of zeroes behind them
 * Metadata area, 512 bytes:
 *      0  CRC of the bytes from 4 on    24  its own place on the device, u64
 *      4  " LVM2 x[5A%r0N*>"            32  bytes of the area, u64
 *     20  version, 1                    40  the text: place in the area, bytes, u64; CRC, flags (1: ignore it), u32
 * The area is used around: behind its end the text goes on behind these 512 bytes.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <dmfs/le.h>

#include "open.h"

#define SECTOR 512u
#define LABEL_SECTORS 4u
#define MAX_AREAS 64u
#define MAX_TEXT (256u << 20)

static const char mda_magic[] = " LVM2 x[5A%r0N*>";

static uint32_t lvm_crc(const uint8_t *p, size_t len)
{
	static uint32_t table[256];
	static gsize ready;
	uint32_t crc = 0xf597a6cfu;

	if (g_once_init_enter(&ready)) {
		for (uint32_t i = 0; i < 256; i++) {
			uint32_t v = i;

			for (int k = 0; k < 8; k++)
				v = v >> 1 ^ (v & 1 ? 0xedb88320u : 0);
			table[i] = v;
		}
		g_once_init_leave(&ready, 1);
	}
	while (len--)
		crc = crc >> 8 ^ table[(crc ^ *p++) & 0xff];
	return crc;
}

static void add_note(GPtrArray *notes, const char *fmt, ...) G_GNUC_PRINTF(2, 3);
static void add_note(GPtrArray *notes, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	g_ptr_array_add(notes, g_strdup_vprintf(fmt, ap));
	va_end(ap);
}

/* --- metadata areas ---------------------------------------------------------------------------------- */

/* The number behind "seqno = " of a text whose checksum was right. */
static uint64_t seqno_of(const char *text, size_t len)
{
	const char *at = g_strstr_len(text, (gssize)len, "seqno = ");

	return at ? g_ascii_strtoull(at + 8, NULL, 10) : 0; /* a zero byte is behind the text */
}

static char *text_of(const struct src *s, uint64_t start, uint64_t size, const uint8_t *where, size_t *len, GPtrArray *notes)
{
	uint64_t at = get_le64(where), bytes = get_le64(where + 8), first;
	g_autofree char *text = NULL;

	if (at < SECTOR || at >= size || !bytes || bytes > size - SECTOR || bytes > MAX_TEXT) {
		add_note(notes, "LVM: metadata of %" PRIu64 " bytes at %" PRIu64 " of an area of %" PRIu64 " cannot be", bytes, at, size);
		return NULL;
	}
	text = g_malloc0(bytes + 1);
	first = MIN(bytes, size - at);
	if (src_read(s, start + at, text, first) || src_read(s, start + SECTOR, text + first, bytes - first)) {
		add_note(notes, "LVM: the metadata cannot be read");
		return NULL;
	}
	if (lvm_crc((uint8_t *)text, bytes) != get_le32(where + 16)) {
		add_note(notes, "LVM: the metadata at byte %" PRIu64 " is damaged: its checksum differs", start + at);
		return NULL;
	}
	*len = bytes;
	return g_steal_pointer(&text);
}

static void area_read(const struct src *s, uint64_t start, uint64_t bytes, struct lvm_pv *pv, GPtrArray *notes)
{
	uint8_t header[SECTOR];
	char *text;
	size_t len;

	if (bytes < 2 * SECTOR || start > s->size || bytes > s->size - start || src_read(s, start, header, SECTOR)) {
		add_note(notes, "LVM: a metadata area of %" PRIu64 " bytes at %" PRIu64 " is not on the disk", bytes, start);
		return;
	}
	if (memcmp(header + 4, mda_magic, 16) || lvm_crc(header + 4, SECTOR - 4) != get_le32(header) ||
	    get_le32(header + 20) != 1 || get_le64(header + 24) != start || get_le64(header + 32) != bytes) {
		add_note(notes, "LVM: the metadata area at byte %" PRIu64 " is damaged", start);
		return;
	}
	if (!get_le64(header + 40) || get_le32(header + 60) & 1)
		return; /* of no group, or switched off */
	text = text_of(s, start, bytes, header + 40, &len, notes);
	if (text && (!pv->text || seqno_of(text, len) > seqno_of(pv->text, pv->len))) {
		g_free(pv->text);
		pv->text = text;
		pv->len = len;
	} else {
		g_free(text);
	}
}

/* --- the label ------------------------------------------------------------------------------------------ */

/* 32 characters with dashes, as the metadata has them. */
static bool id_text(const uint8_t *in, char *out)
{
	static const int groups[] = {6, 4, 4, 4, 4, 4, 6};

	for (size_t g = 0; g < G_N_ELEMENTS(groups); g++) {
		for (int i = 0; i < groups[g]; i++) {
			if (!g_ascii_isalnum(*in) && !strchr("!#", *in))
				return false;
			*out++ = (char)*in++;
		}
		*out++ = g + 1 < G_N_ELEMENTS(groups) ? '-' : 0;
	}
	return true;
}

static int header_read(const struct src *s, const uint8_t *sector, size_t at, struct lvm_pv *pv, GPtrArray *notes)
{
	unsigned pairs = 0, list = 0;

	if (at > SECTOR - 56 || !id_text(sector + at, pv->id)) {
		add_note(notes, "LVM: the label's header of the volume is damaged");
		return -EINVAL;
	}
	pv->bytes = get_le64(sector + at + 32);
	for (at += 40; list < 2; at += 16) {
		uint64_t start, bytes;

		if (at > SECTOR - 16 || ++pairs > MAX_AREAS) {
			add_note(notes, "LVM: the label's list of areas does not end");
			return 0;
		}
		start = get_le64(sector + at);
		bytes = get_le64(sector + at + 8);
		if (!start)
			list++;
		else if (list == 1)
			area_read(s, start, bytes, pv, notes);
	}
	return 0;
}

int lvm_pv_read(const struct src *s, struct lvm_pv *pv, GPtrArray *notes)
{
	uint8_t sector[SECTOR];

	*pv = (struct lvm_pv){0};
	for (unsigned i = 0; i < LABEL_SECTORS; i++) {
		if (src_read(s, i * SECTOR, sector, SECTOR))
			return -ENOENT;
		if (memcmp(sector, "LABELONE", 8) || memcmp(sector + 24, "LVM2 001", 8))
			continue;
		if (get_le64(sector + 8) != i || lvm_crc(sector + 20, SECTOR - 20) != get_le32(sector + 16)) {
			add_note(notes, "LVM: the label in sector %u is damaged", i);
			continue;
		}
		return header_read(s, sector, get_le32(sector + 20), pv, notes);
	}
	return -ENOENT;
}

void lvm_pv_clear(struct lvm_pv *pv)
{
	g_free(pv->text);
	pv->text = NULL;
}
