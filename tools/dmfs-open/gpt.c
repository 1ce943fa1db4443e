/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * GUID partition tables (UEFI specification, chapter 5), and what all partitions are checked for.
 *
 * The header is at sector 1 and once more at the last one; a sector has 512 or 4096 bytes.  All numbers are
 * little-endian.
 *
 *      0  "EFI PART"                       40  first usable sector, u64
 *      8  revision, u32                    48  last usable sector, u64
 *     12  size of the header, u32          56  the disk's GUID
 *     16  its CRC-32, this field as 0      72  where the entries begin, sector, u64
 *     24  its own sector, u64              80  how many, u32
 *     32  the other header's, u64          84  bytes of one, u32, 128 times a power of two
 *                                          88  CRC-32 of all entries
 *
 * An entry: 0 type GUID (zeroes: unused), 16 its own GUID, 32 first sector, 40 last one, 48 attributes,
 * 56 name, 36 UTF-16 units.  The copy at the end counts where the first is damaged.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include <dmfs/le.h>

#include "open.h"

#define HEADER_BYTES 92u
#define ENTRY_BYTES 128u
#define MAX_ENTRIES_BYTES (4u << 20)

/* --- what all partitions are checked for ----------------------------------------------------------- */

static void part_clear(gpointer p)
{
	struct part *part = p;

	g_free(part->type);
	g_free(part->uuid);
	g_free(part->name);
}

GArray *part_array(void)
{
	GArray *parts = g_array_new(FALSE, TRUE, sizeof(struct part));

	g_array_set_clear_func(parts, part_clear);
	return parts;
}

/* The parts are in order of their starts: where p belongs, and in *over what lies where p would, or NULL. */
static unsigned place_of(const GArray *parts, const struct part *p, const struct part **over)
{
	const struct part *all = (const struct part *)(const void *)parts->data;
	unsigned low = 0, high = parts->len;

	while (low < high) {
		unsigned mid = low + (high - low) / 2;

		if (all[mid].start <= p->start)
			low = mid + 1;
		else
			high = mid;
	}
	*over = NULL;
	if (low && all[low - 1].start + all[low - 1].sectors > p->start)
		*over = &all[low - 1];
	else if (low < parts->len && p->start + p->sectors > all[low].start)
		*over = &all[low];
	return low;
}

void part_add(GArray *parts, GPtrArray *notes, const struct src *s, struct part p)
{
	uint64_t end = s->size / 512, sum;
	const struct part *other;
	unsigned place = 0;
	char *why = NULL;

	if (__builtin_add_overflow(p.start, p.sectors, &sum) || !p.sectors || p.start >= end) {
		why = g_strdup_printf("partition %u: %" PRIu64 " sectors from %" PRIu64 " on are not within the disk's %" PRIu64,
				      p.nr, p.sectors, p.start, end);
	} else {
		if (sum > end) {
			g_ptr_array_add(notes, g_strdup_printf("partition %u: ends at sector %" PRIu64
							       ", the disk at %" PRIu64 ": its end is missing",
							       p.nr, sum, end));
			p.sectors = end - p.start;
		}
		place = place_of(parts, &p, &other);
		if (other)
			why = g_strdup_printf("partition %u: sectors %" PRIu64 " to %" PRIu64 " lie over partition %u", p.nr,
					      p.start, p.start + p.sectors - 1, other->nr);
	}
	if (why) {
		g_ptr_array_add(notes, why);
		part_clear(&p);
	} else {
		g_array_insert_val(parts, place, p);
	}
}

/* --- the table -------------------------------------------------------------------------------------- */

static uint32_t crc32_of(const uint8_t *p, size_t len)
{
	uint32_t crc = ~0u;

	while (len--) {
		crc ^= *p++;
		for (int i = 0; i < 8; i++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
	}
	return ~crc;
}

static char *guid_text(const uint8_t *g)
{
	return g_strdup_printf("%08x-%04x-%04x-%02x%02x-%02x%02x%02x%02x%02x%02x", get_le32(g), get_le16(g + 4),
			       get_le16(g + 6), g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]);
}

static char *name_text(const uint8_t *p)
{
	gunichar2 units[36];
	long len = 0;

	while (len < 36 && (units[len] = get_le16(p + 2 * len)))
		len++;
	return len ? g_utf16_to_utf8(units, len, NULL, NULL, NULL) : NULL;
}

/* The header at a sector, checked; -ENOENT: there is none. */
static int header_at(const struct src *s, uint64_t sector, unsigned bytes, uint8_t *out, GPtrArray *notes)
{
	uint8_t copy[4096];
	uint32_t len;

	if (sector > s->size / bytes || src_read(s, sector * bytes, copy, 512) || memcmp(copy, "EFI PART", 8))
		return -ENOENT;
	len = get_le32(copy + 12);
	memcpy(out, copy, HEADER_BYTES);
	if (len >= HEADER_BYTES && len <= bytes && !src_read(s, sector * bytes, copy, len)) {
		memset(copy + 16, 0, 4);
		if (crc32_of(copy, len) == get_le32(out + 16) && get_le64(out + 24) == sector)
			return 0;
	}
	g_ptr_array_add(notes, g_strdup_printf("GPT: the header at sector %" PRIu64 " is damaged", sector));
	return -EINVAL;
}

/* The entries that a header speaks of; NULL: a note says why not. */
static uint8_t *entries_of(const struct src *s, const uint8_t *header, unsigned bytes, uint32_t *count, uint32_t *each,
			   GPtrArray *notes)
{
	uint64_t at = get_le64(header + 72), total;
	uint8_t *all;

	*count = get_le32(header + 80);
	*each = get_le32(header + 84);
	total = (uint64_t)*count * *each;
	if (*each < ENTRY_BYTES || *each > 4096 || *each & (*each - 1) || total > MAX_ENTRIES_BYTES ||
	    at > s->size / bytes || total > s->size - at * bytes) {
		g_ptr_array_add(notes, g_strdup_printf("GPT: %u entries of %u bytes at sector %" PRIu64 " cannot be", *count,
						       *each, at));
		return NULL;
	}
	all = g_malloc(total + 1);
	if (src_read(s, at * bytes, all, total)) {
		g_ptr_array_add(notes, g_strdup("GPT: the entries cannot be read"));
	} else if (crc32_of(all, total) != get_le32(header + 88)) {
		g_ptr_array_add(notes, g_strdup_printf("GPT: the entries at sector %" PRIu64 " are damaged", at));
	} else {
		return all;
	}
	g_free(all);
	return NULL;
}

static void add_entry(const struct src *s, const uint8_t *e, unsigned nr, unsigned bytes, GArray *parts, GPtrArray *notes)
{
	static const uint8_t unused[16];
	uint64_t first = get_le64(e + 32), last = get_le64(e + 40), scale = bytes / 512;
	struct part p = {.nr = nr};

	if (!memcmp(e, unused, 16))
		return;
	/* what is refused for its place is named by part_add() */
	if (last >= first && last < UINT64_MAX / scale - 1) {
		p.start = first * scale;
		p.sectors = (last - first + 1) * scale;
	}
	p.type = guid_text(e);
	p.uuid = guid_text(e + 16);
	p.name = name_text(e + 56);
	part_add(parts, notes, s, p);
}

static int table_at(const struct src *s, uint64_t sector, unsigned bytes, GArray *parts, GPtrArray *notes)
{
	g_autofree uint8_t *all = NULL;
	uint8_t header[HEADER_BYTES];
	uint32_t count, each;
	int r = header_at(s, sector, bytes, header, notes);

	if (r)
		return r;
	all = entries_of(s, header, bytes, &count, &each, notes);
	if (!all)
		return -EINVAL;
	for (uint32_t i = 0; i < count; i++)
		add_entry(s, all + (size_t)i * each, i + 1, bytes, parts, notes);
	return 0;
}

int gpt_read(const struct src *s, GArray *parts, GPtrArray *notes)
{
	static const unsigned sizes[] = {512, 4096};
	bool seen = false;

	for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
		int r = table_at(s, 1, sizes[i], parts, notes);

		if (!r)
			return 0;
		seen |= r != -ENOENT;
	}
	for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
		if (s->size / sizes[i] < 3)
			continue;
		if (!table_at(s, s->size / sizes[i] - 1, sizes[i], parts, notes)) {
			g_ptr_array_add(notes, g_strdup("GPT: only the copy at the end of the disk is good"));
			return 0;
		}
	}
	return seen ? -EINVAL : -ENOENT;
}
