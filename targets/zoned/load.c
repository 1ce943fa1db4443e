/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reading zoned's metadata: which set is true, making the other like it, and what of all it says can be.
 *
 * The set of the higher generation is true; the first one if both have the same.  If the second is true it is copied to
 * the first, which stays older until all of it is there.  A commit that a crash has cut off leaves a second set in
 * which some blocks are of a future that never came, and nothing tells: so the sets are compared and made equal.
 */
#include <inttypes.h>
#include <stdio.h>

#include <dmfs/le.h>
#include <dmfs/rounding.h>

#include "internal.h"

#define COPY_BLOCKS 256u

/* --- the devices --------------------------------------------------------------------------- */

int zoned_geometry(struct zoned_geometry *g, GError **err)
{
	struct dm_limits limits;
	uint64_t zones = 0;

	g->zone_sectors = 0;
	for (unsigned d = 0; d < g->n; d++) {
		dm_dev_limits(g->devs[d].dev, &limits);
		g->devs[d].regular = limits.zone_model == DM_ZONES_NONE;
		if (g->devs[d].regular != (d == 0 && g->n > 1))
			return dm_fail(
			    err, EINVAL,
			    g->n == 1 ? "zoned: Invalid regular device: one device alone must have zones"
			    : d	      ? "zoned: Invalid regular device: the devices after the first must have zones"
				      : "zoned: First device must be a regular device, without zones");
		if (g->devs[d].regular)
			continue;
		if (g->zone_sectors && limits.zone_sectors != g->zone_sectors)
			return dm_fail(err, EINVAL, "zoned: Zone nr sectors mismatch: %u and %u sectors",
				       g->zone_sectors, limits.zone_sectors);
		g->zone_sectors = limits.zone_sectors;
		if (limits.zone_capacity != limits.zone_sectors)
			return dm_fail(err, EINVAL,
				       "zoned: zones of %u sectors with a capacity of %u are not supported",
				       limits.zone_sectors, limits.zone_capacity);
	}
	if (!dm_is_pow2(g->zone_sectors) || g->zone_sectors < ZONED_BLOCK_SECTORS * 8)
		return dm_fail(err, EINVAL, "zoned: zones of %u sectors: a power of two from %u is needed",
			       g->zone_sectors, ZONED_BLOCK_SECTORS * 8);
	for (unsigned d = 0; d < g->n; d++) {
		uint64_t n = dm_div_up(dm_dev_sectors(g->devs[d].dev), g->zone_sectors);

		if (!n || zones + n > INT32_MAX)
			return dm_fail(err, EINVAL, "zoned: %" PRIu64 " zones are none, or too many", zones + n);
		g->devs[d].first = (uint32_t)zones;
		g->devs[d].zones = (uint32_t)n;
		zones += n;
	}
	g->zones = (uint32_t)zones;
	g->zone_blocks = g->zone_sectors / ZONED_BLOCK_SECTORS;
	return 0;
}

struct report {
	struct zoned_meta *meta;
	unsigned dev;
	uint32_t next;
	struct zone *out; /* of the first zone told of */
};

/* Write pointers count in blocks; one amid a block is at the next, which is the first that can be written as a whole.
 */
static int take_zone(const struct dm_zone *from, void *data)
{
	struct report *r = data;
	struct zone *zone = r->out++;
	uint64_t wp = from->condition == DM_ZONE_FULL ? from->sectors : from->wp - from->start;

	*zone = (struct zone){.chunk = ZONED_UNMAPPED, .other = ZONED_UNMAPPED, .dev = (uint8_t)r->dev};
	if (from->type != DM_ZONE_CONVENTIONAL) {
		zone->flags |= ZONE_SEQ;
		zone->wp = (uint32_t)dm_div_up(wp, ZONED_BLOCK_SECTORS);
	}
	if (from->condition == DM_ZONE_OFFLINE || from->sectors != r->meta->g.zone_sectors)
		zone->flags |= ZONE_OFFLINE;
	if (from->condition == DM_ZONE_READONLY)
		zone->flags |= ZONE_READONLY;
	r->next++;
	return 0;
}

int zoned_report_zone(struct zoned_meta *meta, uint32_t z, struct zone *out)
{
	struct report r = {.meta = meta, .dev = meta->zones[z].dev, .out = out};
	int error = dm_dev_report_zones(zone_dev(meta, z), zone_sector(meta, z, 0), 1, take_zone, &r);

	return error ? error : r.next ? 0 : -EIO;
}

static int find_zones(struct zoned_meta *meta, GError **err)
{
	for (unsigned d = 0; d < meta->g.n; d++) {
		const struct zoned_dev *dev = &meta->g.devs[d];
		struct report r = {.meta = meta, .dev = d, .out = &meta->zones[dev->first]};
		int error = 0;

		for (uint32_t z = dev->first; dev->regular && z < dev->first + dev->zones; z++)
			meta->zones[z] =
			    (struct zone){.chunk = ZONED_UNMAPPED, .other = ZONED_UNMAPPED, .flags = ZONE_CACHE};
		if (dev->regular && dm_dev_sectors(dev->dev) % meta->g.zone_sectors)
			meta->zones[dev->first + dev->zones - 1].flags |= ZONE_OFFLINE;
		if (!dev->regular)
			error = dm_dev_report_zones(dev->dev, 0, dev->zones, take_zone, &r);
		if (!error && !dev->regular && r.next != dev->zones)
			error = -EIO;
		if (error)
			return dm_fail(err, -error, "zoned: the zones cannot be told: %s", g_strerror(-error));
	}
	return 0;
}

/* --- sets ------------------------------------------------------------------------------------ */

int zoned_set_read(struct zoned_meta *meta, unsigned set, uint64_t block, uint32_t blocks, void *buf)
{
	return dm_read_sync(meta->g.devs[0].dev, set_sector(meta, set, block), (uint64_t)blocks * ZONED_BLOCK_SECTORS,
			    buf, DM_META);
}

int zoned_set_write(struct zoned_meta *meta, unsigned set, uint64_t block, uint32_t blocks, const void *buf)
{
	return dm_write_sync(meta->g.devs[0].dev, set_sector(meta, set, block), (uint64_t)blocks * ZONED_BLOCK_SECTORS,
			     buf, DM_META);
}

int zoned_super_commit(struct zoned_meta *meta, unsigned set, uint64_t generation)
{
	g_autofree uint8_t *data = g_malloc(ZONED_BLOCK);
	struct zoned_super sb = meta->super;
	int error;

	sb.generation = generation;
	sb.block = (uint64_t)meta->set_zone[set] * meta->g.zone_blocks;
	zoned_super_write(&sb, data);
	error = zoned_set_write(meta, set, 0, 1, data);
	return error ? error : dm_flush_sync(meta->g.devs[0].dev);
}

static uint32_t set_zones(const struct zoned_meta *meta, const struct zoned_super *sb)
{
	return (uint32_t)dm_div_up(sb->set_blocks, meta->g.zone_blocks);
}

static uint32_t count_usable(const struct zoned_meta *meta, bool random_of_first)
{
	uint32_t n = 0;

	for (uint32_t z = 0; z < meta->g.zones; z++) {
		const struct zone *zone = &meta->zones[z];

		if (zone->flags & (ZONE_OFFLINE | ZONE_READONLY))
			continue;
		n += !random_of_first || (zone->dev == 0 && !(zone->flags & ZONE_SEQ));
	}
	return n;
}

/* What a superblock says must be possible with these devices. */
static int check_numbers(const struct zoned_meta *meta, const struct zoned_super *sb, uint32_t zone, GError **err)
{
	uint64_t usable = count_usable(meta, false), used;
	uint64_t needed = 1 + (uint64_t)sb->map_blocks + (uint64_t)meta->g.zones * meta->bitmap_blocks;

	if (sb->version < 1 || sb->version > 2)
		return dm_fail(err, EINVAL, "zoned: Invalid meta version %" PRIu32 ", 1 and 2 are known", sb->version);
	if (sb->version == 1 && meta->g.n > 1)
		return dm_fail(err, EINVAL, "zoned: metadata of version 1 are for one device, not for %u", meta->g.n);
	if (sb->block != (uint64_t)zone * meta->g.zone_blocks)
		return dm_fail(err, EINVAL,
			       "zoned: Invalid superblock position: it says block %" PRIu64 " and is at %" PRIu64,
			       sb->block, (uint64_t)zone * meta->g.zone_blocks);
	if (!sb->chunks || sb->map_blocks < zoned_map_blocks(sb->chunks) || sb->set_blocks < needed ||
	    sb->bitmap_blocks != (uint64_t)meta->g.zones * meta->bitmap_blocks)
		return dm_fail(err, EINVAL,
			       "zoned: Invalid number of metadata blocks: %" PRIu32 " of the mapping of %" PRIu32
			       " chunks, %" PRIu32 " of bitmaps of %" PRIu32 " zones, %" PRIu32 " in all",
			       sb->map_blocks, sb->chunks, sb->bitmap_blocks, meta->g.zones, sb->set_blocks);
	used = (uint64_t)set_zones(meta, sb) * 2 + sb->reserved_seq;
	if (set_zones(meta, sb) >= count_usable(meta, true))
		return dm_fail(err, EINVAL, "zoned: Invalid number of metadata blocks %" PRIu32, sb->set_blocks);
	if (!sb->reserved_seq || used >= usable || sb->chunks > usable - used)
		return dm_fail(err, EINVAL,
			       "zoned: Invalid number of chunks %" PRIu32 " or of reserved sequential zones %" PRIu32
			       ": there are %" PRIu64 " usable zones",
			       sb->chunks, sb->reserved_seq, usable);
	return 0;
}

/* The superblock at a zone's begin: 0, or why it is none. */
static int read_super(struct zoned_meta *meta, uint32_t zone, struct zoned_super *sb, GError **err)
{
	g_autofree uint8_t *data = g_malloc(ZONED_BLOCK);
	int error = dm_read_sync(zone_dev(meta, zone), zone_sector(meta, zone, 0), ZONED_BLOCK_SECTORS, data, DM_META);

	if (error)
		return dm_fail(err, -error, "zoned: the superblock in zone %" PRIu32 " cannot be read: %s", zone,
			       g_strerror(-error));
	if (get_le32(data) != ZONED_MAGIC)
		return dm_fail(err, ENXIO,
			       "zoned: Invalid meta magic 0x%08" PRIx32 " in zone %" PRIu32 ", needed 0x%08x",
			       get_le32(data), zone, ZONED_MAGIC);
	if (!zoned_super_read(sb, data))
		return dm_fail(err, ENXIO, "zoned: Invalid checksum of the superblock in zone %" PRIu32, zone);
	return 0;
}

static int check_set(struct zoned_meta *meta, uint32_t zone, struct zoned_super *sb, GError **err)
{
	int error = read_super(meta, zone, sb, err);

	return error ? error : check_numbers(meta, sb, zone, err);
}

/* The first superblock is of no use: where the second one lies only looking tells. */
static bool find_second(struct zoned_meta *meta, struct zoned_super *sb)
{
	const struct zoned_dev *first = &meta->g.devs[0];

	for (uint32_t z = meta->set_zone[0] + 1; z < first->first + first->zones; z++) {
		if (meta->zones[z].flags & ZONE_SEQ)
			return false;
		if (!check_set(meta, z, sb, NULL) && z == meta->set_zone[0] + set_zones(meta, sb)) {
			meta->set_zone[1] = z;
			return true;
		}
	}
	return false;
}

static int find_sets(struct zoned_meta *meta, struct zoned_super sb[2], bool good[2], GError **err)
{
	const struct zoned_dev *first = &meta->g.devs[0];
	uint32_t z = first->first;

	while (z < first->first + first->zones && meta->zones[z].flags & (ZONE_SEQ | ZONE_OFFLINE | ZONE_READONLY))
		z++;
	if (z == first->first + first->zones)
		return dm_fail(err, ENXIO, "zoned: there is no conventional zone for metadata");
	meta->set_zone[0] = z;
	good[0] = !check_set(meta, z, &sb[0], err);
	if (good[0]) {
		meta->set_zone[1] = z + set_zones(meta, &sb[0]);
		good[1] = meta->set_zone[1] < first->first + first->zones &&
			  !check_set(meta, meta->set_zone[1], &sb[1], NULL);
	} else {
		good[1] = find_second(meta, &sb[1]);
	}
	if (!good[0] && !good[1])
		return -EINVAL; /* what was wrong with the first */
	g_clear_error(err);
	if (good[0] && good[1] && memcmp(sb[0].uuid, sb[1].uuid, ZONED_UUID))
		return dm_fail(err, EINVAL, "zoned: the two sets of metadata are of different disks");
	return 0;
}

/* Version 2: each zoned device after the first says that it belongs here, in this place. */
static int check_members(struct zoned_meta *meta, GError **err)
{
	for (unsigned d = 1; d < meta->g.n; d++) {
		struct zoned_super sb;
		int error = read_super(meta, meta->g.devs[d].first, &sb, err);

		if (error)
			return error;
		if (sb.block != (uint64_t)meta->g.devs[d].first * meta->g.zone_blocks)
			return dm_fail(
			    err, EINVAL,
			    "zoned: device %u is in a wrong place: it says that it begins with block %" PRIu64
			    ", not %" PRIu64,
			    d, sb.block, (uint64_t)meta->g.devs[d].first * meta->g.zone_blocks);
		if (memcmp(sb.uuid, meta->super.uuid, ZONED_UUID))
			return dm_fail(err, EINVAL, "zoned: device %u belongs to another disk", d);
		meta->zones[meta->g.devs[d].first].flags |= ZONE_META;
	}
	return 0;
}

/* --- making sets equal -------------------------------------------------------------------------- */

/* Whether blocks of a set are known to be zeroes, which most are of a large disk that is a sparse file. */
static bool are_holes(struct zoned_meta *meta, unsigned set, uint64_t block, uint32_t blocks)
{
	uint64_t sectors = (uint64_t)blocks * ZONED_BLOCK_SECTORS;
	struct dm_extent extent;

	return !dm_dev_extent(meta->g.devs[0].dev, set_sector(meta, set, block), sectors, &extent) && !extent.data &&
	       extent.sectors >= sectors;
}

/* Copies what differs of a run of blocks. */
static int equal_blocks(struct zoned_meta *meta, unsigned from, uint64_t block, uint64_t blocks, uint64_t *copied)
{
	g_autofree uint8_t *good = g_malloc(COPY_BLOCKS * ZONED_BLOCK), *other = g_malloc(COPY_BLOCKS * ZONED_BLOCK);
	int error = 0;

	for (uint32_t n; blocks && !error; block += n, blocks -= n) {
		n = (uint32_t)MIN(blocks, COPY_BLOCKS);
		if (are_holes(meta, from, block, n) && are_holes(meta, !from, block, n))
			continue;
		error = zoned_set_read(meta, from, block, n, good);
		if (!error && zoned_set_read(meta, !from, block, n, other))
			for (size_t i = 0; i < (size_t)n * ZONED_BLOCK; i += ZONED_BLOCK)
				other[i] = (uint8_t)~good[i]; /* cannot be read: written anew */
		for (uint32_t i = 0; i < n && !error; i++) {
			uint8_t *data = good + (size_t)i * ZONED_BLOCK;

			if (!memcmp(data, other + (size_t)i * ZONED_BLOCK, ZONED_BLOCK))
				continue;
			error = zoned_set_write(meta, !from, block + i, 1, data);
			++*copied;
		}
	}
	return error;
}

/* Makes the other set like the one that is true, then true itself. */
static int copy_set(struct zoned_meta *meta, unsigned from, GError **err)
{
	uint64_t copied = 0;
	int error = equal_blocks(meta, from, 1, meta->super.set_blocks - 1, &copied);

	if (!error)
		error = dm_flush_sync(meta->g.devs[0].dev);
	if (!error)
		error = zoned_super_commit(meta, !from, meta->super.generation);
	if (error)
		return dm_fail(err, -error, "zoned: set %u of the metadata cannot be recovered: %s", !from,
			       g_strerror(-error));
	dm_log_warn("zoned: metadata set %u invalid: recovered from the other, %" PRIu64 " blocks differed", !from,
		    copied);
	return 0;
}

/* Both have one generation: the first is true. */
static int compare_sets(struct zoned_meta *meta, GError **err)
{
	uint64_t copied = 0;
	int error = equal_blocks(meta, 0, 1, meta->super.set_blocks - 1, &copied);

	if (!error && copied)
		error = dm_flush_sync(meta->g.devs[0].dev);
	if (!error && copied)
		dm_log_warn("zoned: %" PRIu64 " blocks of metadata set 1 were of a commit that was cut off: recovered",
			    copied);
	return error ? dm_fail(err, -error, "zoned: the metadata cannot be compared: %s", g_strerror(-error)) : 0;
}

/* --- the mapping ----------------------------------------------------------------------------------- */

static int mark_sets(struct zoned_meta *meta, GError **err)
{
	uint32_t n = set_zones(meta, &meta->super) * 2, z = meta->set_zone[0];

	for (uint32_t i = 0; i < n; i++) {
		if (z + i >= meta->g.devs[0].zones ||
		    meta->zones[z + i].flags & (ZONE_SEQ | ZONE_OFFLINE | ZONE_READONLY))
			return dm_fail(err, EINVAL, "zoned: metadata zone %" PRIu32 " is not random", z + i);
		meta->zones[z + i].flags |= ZONE_META;
	}
	return 0;
}

static int check_mapped(struct zoned_meta *meta, uint32_t chunk, uint32_t z, bool buffer, GError **err)
{
	const char *what = buffer ? "buffer" : "data";

	if (z >= meta->g.zones)
		return dm_fail(err, EINVAL, "zoned: Chunk %" PRIu32 " mapping: invalid %s zone ID %" PRIu32, chunk,
			       what, z);
	if (meta->zones[z].flags & ZONE_META || meta->zones[z].chunk != ZONED_UNMAPPED)
		return dm_fail(err, EINVAL, "zoned: Chunk %" PRIu32 " mapping: %s zone %" PRIu32 " %s", chunk, what, z,
			       meta->zones[z].flags & ZONE_META ? "holds metadata" : "is another chunk's");
	if (buffer && meta->zones[z].flags & ZONE_SEQ)
		return dm_fail(err, EINVAL, "zoned: Chunk %" PRIu32 " mapping: invalid buffer zone %" PRIu32, chunk, z);
	return 0;
}

static int load_mapping(struct zoned_meta *meta, GError **err)
{
	int error = zoned_set_read(meta, meta->primary, 1, meta->super.map_blocks, meta->map);

	if (error)
		return dm_fail(err, -error, "zoned: the mapping cannot be read: %s", g_strerror(-error));
	for (uint32_t chunk = 0; chunk < meta->super.chunks && !error; chunk++) {
		uint32_t data = get_le32(meta->map + (size_t)chunk * 8),
			 buffer = get_le32(meta->map + (size_t)chunk * 8 + 4);

		if (data == ZONED_UNMAPPED && buffer != ZONED_UNMAPPED)
			return dm_fail(err, EINVAL,
				       "zoned: Chunk %" PRIu32 " mapping: buffer zone %" PRIu32 " and no data zone",
				       chunk, buffer);
		if (data != ZONED_UNMAPPED && !(error = check_mapped(meta, chunk, data, false, err)))
			meta->zones[data].chunk = chunk;
		if (!error && buffer != ZONED_UNMAPPED && !(error = check_mapped(meta, chunk, buffer, true, err)))
			meta->zones[buffer].chunk = chunk;
		if (!error && data != ZONED_UNMAPPED)
			zoned_set_map(meta, chunk, data, buffer);
	}
	memset(meta->map_dirty, 0, meta->super.map_blocks);
	meta->map_dirty_n = 0;
	return error;
}

static uint32_t count_bits(const uint8_t *bits, uint32_t blocks, uint32_t *last)
{
	uint32_t n = 0;

	*last = 0;
	for (uint32_t b = 0; b < blocks; b += 64) {
		uint64_t word = get_le64(bits + b / 8);

		n += (uint32_t)__builtin_popcountll(word);
		if (word)
			*last = b + 63 - (uint32_t)__builtin_clzll(word);
	}
	return n;
}

static int load_weights(struct zoned_meta *meta, GError **err)
{
	g_autofree uint8_t *bits = g_malloc((size_t)meta->bitmap_blocks * ZONED_BLOCK);
	int error = 0;

	for (uint32_t z = 0; z < meta->g.zones && !error; z++) {
		struct zone *zone = &meta->zones[z];
		uint32_t last;

		if (zone->chunk == ZONED_UNMAPPED)
			continue;
		error = zoned_set_read(meta, meta->primary, bits_block(meta, z), meta->bitmap_blocks, bits);
		if (error)
			return dm_fail(err, -error, "zoned: a bitmap cannot be read: %s", g_strerror(-error));
		zone->weight = count_bits(bits, meta->g.zone_blocks, &last);
		if (zone->flags & ZONE_SEQ && zone->weight && last >= zone->wp)
			dm_log_err("zoned: zone %" PRIu32 ": the write pointer is at block %" PRIu32
				   ", and blocks up to %" PRIu32 " should be there: they are lost",
				   z, zone->wp, last);
	}
	return error;
}

/* What no chunk has is free; sequential zones that were written to have to be reset first. */
static void collect_free(struct zoned_meta *meta)
{
	uint32_t reserved = 0;

	for (uint32_t z = 0; z < meta->g.zones; z++) {
		struct zone *zone = &meta->zones[z];

		if (zone->chunk != ZONED_UNMAPPED || zone->flags & (ZONE_META | ZONE_OFFLINE | ZONE_READONLY))
			continue;
		if (zone->flags & ZONE_SEQ && reserved < meta->super.reserved_seq) {
			zone->flags |= ZONE_RESERVED;
			reserved++;
		}
		zoned_list_add(meta, zone->flags & ZONE_SEQ && zone->wp ? PENDING : zoned_free_list(meta, z), z);
	}
}

/* --- all of it -------------------------------------------------------------------------------------- */

static int choose_set(struct zoned_meta *meta, GError **err)
{
	struct zoned_super sb[2];
	bool good[2] = {false, false};
	int error = find_sets(meta, sb, good, err);

	if (error)
		return error;
	meta->primary = !good[0] || (good[1] && sb[1].generation > sb[0].generation);
	meta->super = sb[meta->primary];
	error = meta->super.version > 1 ? check_members(meta, err) : 0;
	if (!error)
		error = mark_sets(meta, err);
	if (error || !meta->write || (good[0] && good[1] && sb[0].generation == sb[1].generation))
		return error;
	error = copy_set(meta, meta->primary, err);
	meta->primary = 0;
	return error;
}

static struct zoned_meta *meta_new(const struct zoned_geometry *g, bool write)
{
	struct zoned_meta *meta = g_new0(struct zoned_meta, 1);

	meta->g = *g;
	meta->write = write;
	meta->bitmap_blocks = zoned_zone_bitmap_blocks(g->zone_blocks);
	pthread_mutex_init(&meta->lock, NULL);
	meta->zones = g_new0(struct zone, g->zones);
	meta->lists = g_new(struct zone_list, LISTS + g->n * DEV_LISTS);
	for (unsigned i = 0; i < LISTS + g->n * DEV_LISTS; i++)
		meta->lists[i] = (struct zone_list){ZONED_UNMAPPED, ZONED_UNMAPPED, 0};
	meta->bits = g_hash_table_new(g_int_hash, g_int_equal);
	meta->bits_max = MAX(16, (1u << 20) / (meta->bitmap_blocks * ZONED_BLOCK));
	return meta;
}

int zoned_meta_open(const struct zoned_geometry *g, bool write, struct zoned_meta **out, GError **err)
{
	struct zoned_meta *meta = meta_new(g, write);
	int error = find_zones(meta, err);

	if (!error)
		error = choose_set(meta, err);
	if (!error) {
		meta->map = g_malloc((size_t)meta->super.map_blocks * ZONED_BLOCK);
		meta->map_dirty = g_malloc0(meta->super.map_blocks);
		pthread_mutex_lock(&meta->lock);
		error = load_mapping(meta, err);
		pthread_mutex_unlock(&meta->lock);
	}
	if (!error && write && !meta->primary)
		error = compare_sets(meta, err);
	if (!error)
		error = load_weights(meta, err);
	if (error) {
		zoned_meta_close(meta);
		return error;
	}
	collect_free(meta);
	*out = meta;
	return 0;
}

static void free_bits(gpointer key, gpointer value, gpointer unused)
{
	g_free(value);
}

void zoned_meta_close(struct zoned_meta *meta)
{
	if (!meta)
		return;
	g_hash_table_foreach(meta->bits, free_bits, NULL);
	g_hash_table_destroy(meta->bits);
	g_free(meta->map);
	g_free(meta->map_dirty);
	g_free(meta->lists);
	g_free(meta->zones);
	pthread_mutex_destroy(&meta->lock);
	g_free(meta);
}
