/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Whether metadata say what can be (zoned_meta_check()).  What cannot be read at all, or is mapped where it cannot be,
 * has been refused when they were opened.  Beyond that: the two sets are the same; a block is valid in one zone only,
 * and not beyond a write pointer; zones of no chunk have no valid block.
 */
#include <inttypes.h>

#include "internal.h"

struct check {
	struct zoned_meta *meta;
	bool repair;
	zoned_tell tell;
	void *data;
	unsigned found; /* errors */
};

static void G_GNUC_PRINTF(2, 3) tell(struct check *c, const char *fmt, ...)
{
	g_autofree char *text = NULL;
	va_list ap;

	va_start(ap, fmt);
	text = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	c->tell(text, c->data);
	c->found++;
}

static size_t bitmap_bytes(const struct zoned_meta *meta)
{
	return (size_t)meta->bitmap_blocks * ZONED_BLOCK;
}

/* The sets' superblocks are the loader's to look at, and repair has made them equal. */
static int check_sets(struct check *c, GError **err)
{
	struct zoned_meta *meta = c->meta;
	g_autofree uint8_t *a = g_malloc(ZONED_BLOCK), *b = g_malloc(ZONED_BLOCK);
	uint32_t differ = 0, blocks = meta->super.set_blocks;
	struct zoned_super first = {0}, second = {0};
	int r = 0;

	for (uint32_t block = 0; block < blocks && !r; block++) {
		r = zoned_set_read(meta, 0, block, 1, a);
		if (!r)
			r = zoned_set_read(meta, 1, block, 1, b);
		if (!r && !block &&
		    (!zoned_super_read(&first, a) || !zoned_super_read(&second, b) ||
		     first.generation != second.generation))
			tell(c, "the superblocks are not both good and of one generation");
		else if (!r && block)
			differ += memcmp(a, b, ZONED_BLOCK) != 0;
	}
	if (r)
		return dm_fail(err, -r, "zoned: the metadata cannot be read: %s", g_strerror(-r));
	if (differ)
		tell(c, "the sets differ in %" PRIu32 " blocks", differ);
	for (uint32_t block = 1; block < blocks && differ && c->repair && !r; block++) {
		r = zoned_set_read(meta, meta->primary, block, 1, a);
		if (!r)
			r = zoned_set_write(meta, !meta->primary, block, 1, a);
	}
	return r ? dm_fail(err, -r, "zoned: the metadata cannot be written: %s", g_strerror(-r)) : 0;
}

/* A zone's bitmap with the bits that cannot be taken away; how many there were. */
static uint32_t clear_bits(uint8_t *bits, uint32_t from, uint32_t to, const uint8_t *taken)
{
	uint32_t n = 0;

	for (uint32_t b = from; b < to; b++)
		if (bit_is_set(bits, b) && (!taken || bit_is_set(taken, b))) {
			bits[b / 8] &= (uint8_t) ~(1u << b % 8);
			n++;
		}
	return n;
}

static int check_zone(struct check *c, uint32_t z, uint8_t *bits, uint8_t *other, GError **err)
{
	struct zoned_meta *meta = c->meta;
	const struct zone *zone = &meta->zones[z];
	uint32_t blocks = meta->g.zone_blocks, wrong = 0, n;
	int r = zoned_set_read(meta, meta->primary, bits_block(meta, z), meta->bitmap_blocks, bits);

	if (r)
		return dm_fail(err, -r, "zoned: the bitmap of zone %" PRIu32 " cannot be read: %s", z, g_strerror(-r));
	if (zone->chunk == ZONED_UNMAPPED && (n = clear_bits(bits, 0, blocks, NULL))) {
		tell(c, "zone %" PRIu32 " of no chunk has %" PRIu32 " valid blocks", z, n);
		wrong += n;
	}
	if (zone->flags & ZONE_SEQ && zone->wp < blocks && (n = clear_bits(bits, zone->wp, blocks, NULL))) {
		tell(c, "zone %" PRIu32 " has %" PRIu32 " valid blocks beyond its write pointer at block %" PRIu32, z,
		     n, zone->wp);
		wrong += n;
	}
	/* Of a data zone with a buffer; what the buffer has is newer. */
	if (zone->chunk != ZONED_UNMAPPED && zone->flags & ZONE_SEQ && zone->other != ZONED_UNMAPPED) {
		r = zoned_set_read(meta, meta->primary, bits_block(meta, zone->other), meta->bitmap_blocks, other);
		if (r)
			return dm_fail(err, -r, "zoned: the bitmap of zone %" PRIu32 " cannot be read: %s", zone->other,
				       g_strerror(-r));
		if ((n = clear_bits(bits, 0, blocks, other)))
			tell(c,
			     "chunk %" PRIu32 " has %" PRIu32 " blocks valid in zone %" PRIu32
			     " and in its buffer %" PRIu32,
			     zone->chunk, n, z, zone->other);
		wrong += n;
	}
	for (unsigned set = 0; set < 2 && wrong && c->repair && !r; set++)
		r = zoned_set_write(meta, !meta->primary ^ set, bits_block(meta, z), meta->bitmap_blocks, bits);
	return r ? dm_fail(err, -r, "zoned: the bitmap of zone %" PRIu32 " cannot be written: %s", z, g_strerror(-r))
		 : 0;
}

static int check_all(struct check *c, GError **err)
{
	g_autofree uint8_t *bits = g_malloc(bitmap_bytes(c->meta)), *other = g_malloc(bitmap_bytes(c->meta));
	int r = check_sets(c, err);

	for (uint32_t z = 0; z < c->meta->g.zones && !r; z++)
		r = check_zone(c, z, bits, other, err);
	for (unsigned d = 0; d < c->meta->g.n && c->repair && !r; d++)
		r = dm_flush_sync(c->meta->g.devs[d].dev);
	return r;
}

int zoned_meta_check(struct zoned_meta *meta, bool repair, zoned_tell tell, void *data, unsigned *found, GError **err)
{
	struct check c = {.meta = meta, .repair = repair, .tell = tell, .data = data};
	int r = check_all(&c, err);

	*found = c.found;
	return r;
}
