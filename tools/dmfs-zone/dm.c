/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dmfs-zone dm-format: the metadata of the target zoned, as dmzadm makes them (targets/zoned/format.h). */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <dmfs/rounding.h>

#include "../common/fail.h"
#include "dm.h"
#include "io/store.h"

#define RESERVED_SEQ 16u
#define PIECE_BLOCKS 256u

static int open_one(const char *name, bool write, struct dm_dev **out, GError **err)
{
	struct dm_opener self = dm_opener_self();
	g_autofree char *path = dm_opener_absolute(&self, name, err);
	struct dm_store_path found;
	int r = path ? dm_store_find(&self, path, &found, err) : -ENOENT;

	if (r)
		return r;
	r = dm_store_open(&self, &found, write ? DM_MODE_RW : DM_MODE_READ, out, err);
	dm_store_path_clear(&found);
	return r;
}

int devices_open(char **names, unsigned n, bool write, struct zoned_geometry *g, GError **err)
{
	int r = 0;

	*g = (struct zoned_geometry){.devs = g_new0(struct zoned_dev, n), .n = n};
	for (unsigned d = 0; d < n && !r; d++)
		r = open_one(names[d], write, &g->devs[d].dev, err);
	return r ? r : zoned_geometry(g, err);
}

void devices_close(struct zoned_geometry *g)
{
	for (unsigned d = 0; d < g->n; d++)
		dm_dev_put(g->devs[d].dev);
	g_clear_pointer(&g->devs, g_free);
}

/* --- where it all goes ------------------------------------------------------------------------ */

struct count {
	uint32_t next, usable, random, first, last, row; /* first: the first random zone; row: how many follow on it */
	bool regular, found;
};

static int count_zone(const struct dm_zone *zone, void *data)
{
	struct count *c = data;
	uint32_t z = c->next++;
	bool random = zone->type == DM_ZONE_CONVENTIONAL;

	if (zone->condition == DM_ZONE_READONLY || zone->condition == DM_ZONE_OFFLINE)
		return 0;
	c->usable++;
	if (!random || c->regular)
		return 0;
	if (!c->found) {
		c->first = z;
		c->found = true;
	}
	if (c->first + c->row == z)
		c->row++;
	c->random++;
	return 0;
}

static int count_zones(const struct zoned_geometry *g, struct count *c, GError **err)
{
	*c = (struct count){.regular = g->devs[0].regular};
	for (unsigned d = 0; d < g->n; d++) {
		int r;

		if (g->devs[d].regular) {
			c->next = g->devs[d].zones;
			c->usable = c->random = c->row = (uint32_t)(dm_dev_sectors(g->devs[d].dev) / g->zone_sectors);
			continue;
		}
		r = dm_dev_report_zones(g->devs[d].dev, 0, g->devs[d].zones, count_zone, c);
		if (r)
			return fail(err, -r, "the zones cannot be told: %s", g_strerror(-r));
	}
	return 0;
}

static uint32_t set_zones(const struct zoned_geometry *g, const struct zoned_super *sb)
{
	return (uint32_t)dm_div_up(sb->set_blocks, g->zone_blocks);
}

static void fill_blocks(struct zoned_super *sb, uint32_t chunks)
{
	sb->chunks = chunks;
	sb->map_blocks = zoned_map_blocks(chunks);
	sb->set_blocks = 1 + sb->map_blocks + sb->bitmap_blocks;
}

/* First as many chunks as there would be without metadata, for how many zones those take; then what is left. */
static int plan(const struct zoned_geometry *g, const struct options *o, struct zoned_super *sb, uint32_t *first,
		GError **err)
{
	uint32_t bitmap_zones;
	struct count c;
	int r = count_zones(g, &c, err);

	if (r)
		return r;
	if (c.random < 3)
		return fail(err, ENOSPC, "%u zones for random writes: 3 are needed, 2 of them for metadata", c.random);
	sb->reserved_seq = o->reserved_seq ? (uint32_t)o->reserved_seq : RESERVED_SEQ;
	if (sb->reserved_seq > c.random)
		sb->reserved_seq = c.random - 1;
	sb->bitmap_blocks = g->zones * zoned_zone_bitmap_blocks(g->zone_blocks);
	bitmap_zones = (uint32_t)dm_div_up(sb->bitmap_blocks, g->zone_blocks);
	if (bitmap_zones + sb->reserved_seq >= c.usable)
		return fail(err, ENOSPC, "%u usable zones are not enough", c.usable);
	fill_blocks(sb, c.usable - bitmap_zones - sb->reserved_seq);
	if (set_zones(g, sb) * 2 >= c.row || set_zones(g, sb) * 2 + sb->reserved_seq >= c.usable)
		return fail(err, ENOSPC,
			    "%u zones for random writes in a row: %u are needed for metadata, and one more", c.row,
			    set_zones(g, sb) * 2);
	fill_blocks(sb, c.usable - set_zones(g, sb) * 2 - sb->reserved_seq);
	*first = c.first;
	return 0;
}

/* --- writing -------------------------------------------------------------------------------------- */

static void random_uuid(uint8_t out[ZONED_UUID])
{
	g_autofree char *text = g_uuid_string_random();
	unsigned n = 0;

	for (const char *p = text; *p && n < ZONED_UUID; p++)
		if (*p != '-') {
			out[n++] = (uint8_t)(g_ascii_xdigit_value(p[0]) << 4 | g_ascii_xdigit_value(p[1]));
			p++;
		}
}

static int write_super(const struct zoned_geometry *g, const struct zoned_super *sb, unsigned dev, uint32_t zone,
		       uint64_t generation)
{
	g_autofree uint8_t *data = g_malloc(ZONED_BLOCK);
	struct zoned_super own = *sb;

	own.generation = generation;
	own.block = (uint64_t)zone * g->zone_blocks;
	if (dev)
		random_uuid(own.device_uuid);
	zoned_super_write(&own, data);
	return dm_write_sync(g->devs[dev].dev, (uint64_t)(zone - g->devs[dev].first) * g->zone_sectors,
			     ZONED_BLOCK_SECTORS, data, 0);
}

/* Blocks of one byte over and over; zeroes take no space where they can. */
static int fill(struct dm_dev *dev, uint64_t sector, uint64_t blocks, int byte)
{
	g_autofree uint8_t *data = g_malloc(PIECE_BLOCKS * ZONED_BLOCK);
	struct dm_region where = {dev, sector, blocks * ZONED_BLOCK_SECTORS};
	int r = byte ? -EOPNOTSUPP : dm_io_sync(DM_WRITE_ZEROES, 0, 1, &where, NULL, 0, NULL);

	if (r != -EOPNOTSUPP)
		return r;
	r = 0;
	memset(data, byte, PIECE_BLOCKS * ZONED_BLOCK);
	while (blocks && !r) {
		uint64_t n = MIN(blocks, PIECE_BLOCKS);

		r = dm_write_sync(dev, sector, n * ZONED_BLOCK_SECTORS, data, 0);
		sector += n * ZONED_BLOCK_SECTORS;
		blocks -= n;
	}
	return r;
}

static int write_set(const struct zoned_geometry *g, const struct zoned_super *sb, uint32_t zone)
{
	struct dm_dev *dev = g->devs[0].dev;
	uint64_t at = (uint64_t)zone * g->zone_sectors + ZONED_BLOCK_SECTORS;
	int r = fill(dev, at, sb->map_blocks, 0xff);

	if (!r)
		r = fill(dev, at + (uint64_t)sb->map_blocks * ZONED_BLOCK_SECTORS, sb->bitmap_blocks, 0);
	if (!r)
		r = dm_flush_sync(dev);
	return r ? r : write_super(g, sb, 0, zone, 1);
}

static int write_all(const struct zoned_geometry *g, const struct zoned_super *sb, uint32_t first)
{
	int r = 0;

	for (unsigned d = 0; d < g->n && !r; d++) {
		struct dm_region all = {g->devs[d].dev, 0, dm_dev_sectors(g->devs[d].dev)};

		if (!g->devs[d].regular)
			r = dm_io_sync(DM_ZONE_RESET_ALL, 0, 1, &all, NULL, 0, NULL);
	}
	if (!r)
		r = write_set(g, sb, first);
	if (!r)
		r = write_set(g, sb, first + set_zones(g, sb));
	for (unsigned d = 1; d < g->n && !r; d++)
		r = write_super(g, sb, d, g->devs[d].first, 0);
	for (unsigned d = 0; d < g->n && !r; d++)
		r = dm_flush_sync(g->devs[d].dev);
	return r;
}

static int check_options(const struct options *o, unsigned n, GError **err)
{
	if (o->version < 0 || o->version > 2)
		return fail(err, EINVAL, "--dm-version=%d: 1 or 2", o->version);
	if (o->version == 1 && n > 1)
		return fail(err, EINVAL, "--dm-version=1: several devices need version 2");
	if (o->version == 1 && o->label)
		return fail(err, EINVAL, "--label: version 1 has none");
	if (o->label && strlen(o->label) >= ZONED_LABEL)
		return fail(err, EINVAL, "--label=%s: up to %u bytes", o->label, ZONED_LABEL - 1);
	if (o->reserved_seq < 0)
		return fail(err, EINVAL, "--seq=%d: a number of zones", o->reserved_seq);
	return 0;
}

int dm_format(char **names, unsigned n, const struct options *o, GError **err)
{
	struct zoned_super sb = {.version = o->version ? (uint32_t)o->version : 2};
	struct zoned_geometry g;
	uint32_t first = 0;
	int r = check_options(o, n, err);

	if (r)
		return r;
	r = devices_open(names, n, true, &g, err);
	if (!r)
		r = plan(&g, o, &sb, &first, err);
	if (!r) {
		g_autofree char *base = g_path_get_basename(names[0]), *label = g_strconcat("dmz-", base, NULL);

		g_strlcpy((char *)sb.label, o->label ? o->label : label, ZONED_LABEL);
		random_uuid(sb.uuid);
		random_uuid(sb.device_uuid);
		r = write_all(&g, &sb, first);
		if (r)
			fail(err, -r, "the metadata cannot be written: %s", g_strerror(-r));
	}
	if (!r)
		printf("%" PRIu64 "\n", (uint64_t)sb.chunks * g.zone_sectors);
	devices_close(&g);
	return r;
}
