/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * DOS partition tables.
 *
 * Bytes 510 and 511 are 55 AA; 440: the disk's signature, u32.  Four entries of 16 bytes from 446 on:
 *
 *     0  00, or 80 for the one to boot      8  first sector, u32
 *     4  type                              12  sectors, u32
 *
 * Types 05, 0f and 85 hold logical partitions, from number 5 on: a chain of sectors of that form, in each of which the
 * first data entry counts from that sector, and the link to the next one from the outermost container.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <dmfs/le.h>

#include "open.h"

#define TABLE 446u
#define MAX_LOGICAL 8192u

struct entry {
	uint8_t boot, type;
	uint32_t start, sectors;
};

static struct entry entry_of(const uint8_t *sector, unsigned i)
{
	const uint8_t *p = sector + TABLE + 16 * i;

	return (struct entry){p[0], p[4], get_le32(p + 8), get_le32(p + 12)};
}

static bool is_container(uint8_t type)
{
	return type == 0x05 || type == 0x0f || type == 0x85;
}

static void add(const struct src *s, const struct entry *e, uint64_t from, unsigned nr, uint32_t disk, GArray *parts,
		GPtrArray *notes)
{
	struct part p = {.nr = nr, .start = from + e->start, .sectors = e->sectors};

	p.type = g_strdup_printf("0x%02x", e->type);
	if (disk)
		p.uuid = g_strdup_printf("%08x-%02x", disk, nr);
	part_add(parts, notes, s, p);
}

/* The chain of logical partitions in a container. */
static void read_chain(const struct src *s, const struct entry *outer, unsigned *nr, uint32_t disk, GArray *parts,
		       GPtrArray *notes)
{
	g_autoptr(GHashTable) seen = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
	uint64_t at = outer->start;
	uint8_t sector[512];

	for (;;) {
		uint64_t next = 0;

		if (!g_hash_table_add(seen, g_memdup2(&at, sizeof(at)))) {
			g_ptr_array_add(notes, g_strdup_printf("MBR: the chain of logical partitions comes back to sector %" PRIu64,
							       at));
			return;
		}
		if (at > s->size / 512 || src_read(s, at * 512, sector, 512) || sector[510] != 0x55 || sector[511] != 0xaa) {
			g_ptr_array_add(notes, g_strdup_printf("MBR: the chain of logical partitions breaks at sector %" PRIu64, at));
			return;
		}
		for (unsigned i = 0; i < 4; i++) {
			struct entry e = entry_of(sector, i);

			if (!e.sectors || !e.type)
				continue;
			if (is_container(e.type)) {
				if (!next)
					next = (uint64_t)outer->start + e.start;
			} else if (i < 2) {
				add(s, &e, at, (*nr)++, disk, parts, notes);
			}
		}
		if (!next)
			return;
		if (*nr > MAX_LOGICAL) {
			g_ptr_array_add(notes, g_strdup_printf("MBR: more than %u logical partitions: the rest is left out",
							       MAX_LOGICAL));
			return;
		}
		at = next;
	}
}

int mbr_read(const struct src *s, GArray *parts, GPtrArray *notes)
{
	uint8_t sector[512];
	unsigned used = 0, logical = 5;
	uint32_t disk;

	if (src_read(s, 0, sector, 512) || sector[510] != 0x55 || sector[511] != 0xaa)
		return -ENOENT;
	for (unsigned i = 0; i < 4; i++) {
		struct entry e = entry_of(sector, i);

		if (e.boot & 0x7f)
			return -ENOENT;
		used += e.type && e.sectors;
	}
	if (!used)
		return -ENOENT;
	disk = get_le32(sector + 440);
	for (unsigned i = 0; i < 4; i++) {
		struct entry e = entry_of(sector, i);

		if (e.type && e.sectors && !is_container(e.type))
			add(s, &e, 0, i + 1, disk, parts, notes);
	}
	for (unsigned i = 0; i < 4; i++) {
		struct entry e = entry_of(sector, i);

		if (e.type && e.sectors && is_container(e.type))
			read_chain(s, &e, &logical, disk, parts, notes);
	}
	return 0;
}
