/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs-open reading what should be partition tables; checksums are made right, so that what is behind them is reached.
 */
#include "fuzz_open.h"

#include "../../tools/dmfs-open/gpt.c"
#include "../../tools/dmfs-open/mbr.c"
#include "../../tools/dmfs-open/src.c"

static void check(const GArray *parts, uint64_t sectors)
{
	for (unsigned i = 0; i < parts->len; i++) {
		const struct part *p = &g_array_index(parts, struct part, i);

		if (!p->sectors || p->start >= sectors || p->sectors > sectors - p->start)
			abort();
		if (i && p[-1].start + p[-1].sectors > p->start)
			abort();
	}
}

/* The entries and the header at a sector, if there is one. */
static void mend(uint8_t *disk, size_t size, uint64_t sector, unsigned bytes)
{
	uint64_t at, total;
	uint8_t *h;
	uint32_t len;

	if ((sector + 1) * bytes > size)
		return;
	h = disk + sector * bytes;
	if (memcmp(h, "EFI PART", 8))
		return;
	at = get_le64(h + 72);
	total = (uint64_t)get_le32(h + 80) * get_le32(h + 84);
	if (at < size / bytes && total <= size - at * bytes)
		fuzz_put_crc32(disk + at * bytes, total, h + 88);
	len = get_le32(h + 12);
	memset(h + 16, 0, 4);
	put_le64(h + 24, sector);
	if (len <= bytes) {
		uint8_t crc[4];

		fuzz_put_crc32(h, len, crc);
		memcpy(h + 16, crc, 4);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autofree uint8_t *disk = g_memdup2(data, size);
	struct src s = fuzz_src(disk, size);

	if (size > 1 << 20)
		return 0;
	for (int k = 0; k < 3; k++) {
		g_autoptr(GPtrArray) notes = fuzz_notes();
		g_autoptr(GArray) parts = part_array();

		if (k) {
			mend(disk, size, 1, k == 1 ? 512 : 4096);
			if (size >= 4096 * 3)
				mend(disk, size, size / 512 - 1, 512);
		}
		if (gpt_read(&s, parts, notes) && k == 0)
			mbr_read(&s, parts, notes);
		check(parts, size / 512);
	}
	return 0;
}
