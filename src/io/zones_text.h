/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The text of a zones file, FILE.zones: what lies beside a FILE that is a zoned disk.
 *
 *	# dmfs zones 1
 *	# model host-managed
 *	# max-open 0
 *	# max-active 0
 *	# logical-block 512
 *	# reads-beyond-wptr zeroes
 *	  start: 0x000000000, len 0x080000, cap 0x080000, wptr 0x000000 reset:0 non-seq:0, zcond: 0(nw) [type: 1(…)]
 *	  …
 *
 * A line a zone, as `blkzone report` prints it (util-linux; numbers in sectors, wptr from the zone's start), in order,
 * from sector 0, without a gap; older ones have no cap.  So what blkzone prints of a disk is a zones file.  Comments
 * before them say what such a report lacks; each may be left out.
 *
 * What has changed since follows, a batch for each FLUSH: lines of the zones that did, then
 *
 *	# commit NUMBER SUM
 *
 * with the number of the batch, from 1, and the first 16 hexadecimal digits of the SHA-256 of all bytes of the batch,
 * up to the blank before them.  At the first batch that is not whole the file ends: it is what a crash has left of one
 * that nobody was told of.
 */
#ifndef DMFS_IO_ZONES_TEXT_H
#define DMFS_IO_ZONES_TEXT_H

#include <glib.h>

#include <dmfs/io.h>

/* Of a sequential zone sectors count from its begin; wp is its length when it is full. */
struct zones_zone {
	uint32_t wp, capacity;
	uint8_t type, condition;
};

struct zones {
	enum dm_zone_model model;
	unsigned max_open, max_active, logical_block;
	bool reads_fail;       /* beyond the write pointer; else they give zeroes */
	uint32_t zone_sectors; /* a power of two; the last zone may be shorter */
	uint64_t sectors;
	unsigned n;
	struct zones_zone *zone;
	/* Of a text that was read: how much of it holds, and what of that the zones took before any batch. */
	size_t bytes, base_bytes;
	unsigned commits;
};

#define ZONES_MIN_SECTORS 8u
#define ZONES_TEXT_MAX ((size_t)512 << 20)

static inline uint64_t zones_start(const struct zones *z, unsigned i)
{
	return (uint64_t)i * z->zone_sectors;
}

static inline uint32_t zones_length(const struct zones *z, unsigned i)
{
	uint64_t left = z->sectors - zones_start(z, i);

	return left < z->zone_sectors ? (uint32_t)left : z->zone_sectors;
}

/*
 * Reads a text into *z, which zones_clear() frees; name: of the file, for errors.  0, -EINVAL.  Zones that were open
 * are closed, or empty, as after a power cycle.
 */
int zones_parse(const char *text, size_t len, const char *name, struct zones *z, GError **err);
void zones_clear(struct zones *z);

/* Appends a zone's line, as it would be with this write pointer and condition; or the whole, comments and all. */
void zones_print_line(const struct dm_zone *zone, GString *out);
void zones_print_zone(const struct zones *z, unsigned i, struct zones_zone zone, GString *out);
void zones_print_head(const struct zones *z, GString *out);
/* What ends a batch that begins at byte `from` of out. */
void zones_print_commit(unsigned number, size_t from, GString *out);

#endif
