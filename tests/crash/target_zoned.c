/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * zoned above a zoned disk that is a file: data and zones file are slices, so that power is lost at every write to
 * either.  At a crash point, beyond what the laboratory looks at, the metadata must be without an error.
 *
 * A zones file on a slice: sector 0 is its head, which says which half holds it and how long it is; each half has its
 * text from its begin on.  Adding to it writes the text and the head and then flushes, so that a crash may leave a
 * length without the text, as a file system may.  Writing it anew fills the other half, flushes, and then writes the
 * head, as a rename.
 */
#include "internal.h"
#include "io/zoned.h"
#include "targets/zoned/metadata.h"

#define ZONES 24u
#define CONVENTIONAL 12u
#define ZONE 64u /* sectors */
#define RESERVED_ZONES 2u
#define SET_ZONES 4u
#define CHUNKS (ZONES - 2 * SET_ZONES - RESERVED_ZONES)
#define SECTORS (ZONES * ZONE)
#define HALF 511u /* sectors */
#define ZF_SECTORS 1024u

struct head {
	uint64_t half, bytes;
};

struct keeper {
	struct zones_keeper keeper;
	struct dm_mapped *meta;
	struct head head;
	uint8_t *text; /* of the half */
};

static uint64_t half_sector(uint64_t half)
{
	return 1 + half * HALF;
}

static int write_head(struct keeper *k, const struct head *head)
{
	uint8_t sector[DM_SECTOR_SIZE] = {0};
	int error;

	memcpy(sector, head, sizeof *head);
	error = dm_write_sync(&k->meta->dev, 0, 1, sector, 0);
	if (!error)
		error = dm_flush_sync(&k->meta->dev);
	if (!error)
		k->head = *head;
	return error;
}

/* Writes text to bytes [at, at + len) of a half. */
static int write_text(struct keeper *k, uint64_t half, const char *text, uint64_t at, size_t len)
{
	uint64_t first = at / DM_SECTOR_SIZE, end = (at + len + DM_SECTOR_SIZE - 1) / DM_SECTOR_SIZE;

	if (end > HALF)
		return -ENOSPC;
	memcpy(k->text + at, text, len);
	return dm_write_sync(&k->meta->dev, half_sector(half) + first, end - first, k->text + first * DM_SECTOR_SIZE,
			     0);
}

static int keeper_append(struct zones_keeper *zk, const GString *batch)
{
	struct keeper *k = (struct keeper *)zk;
	struct head head = {k->head.half, k->head.bytes + batch->len};
	int error = write_text(k, k->head.half, batch->str, k->head.bytes, batch->len);

	return error ? error : write_head(k, &head);
}

static int keeper_rewrite(struct zones_keeper *zk, const GString *text)
{
	struct keeper *k = (struct keeper *)zk;
	struct head head = {!k->head.half, text->len};
	int error = write_text(k, head.half, text->str, 0, text->len);

	if (!error)
		error = dm_flush_sync(&k->meta->dev);
	return error ? error : write_head(k, &head);
}

static void keeper_close(struct zones_keeper *zk)
{
	struct keeper *k = (struct keeper *)zk;

	dm_mapped_unref(k->meta);
	g_free(k->text);
	g_free(k);
}

static struct keeper *keeper_new(GError **err)
{
	struct dm_mapped *meta = dm_find_name("zf");
	struct keeper *k;

	if (!meta) {
		dm_fail(err, ENOENT, "there is no zones file");
		return NULL;
	}
	k = g_new0(struct keeper, 1);
	k->keeper = (struct zones_keeper){keeper_append, keeper_rewrite, keeper_close};
	k->meta = meta;
	k->text = g_malloc0(HALF * DM_SECTOR_SIZE);
	return k;
}

static int keeper_read(struct keeper *k, struct zones *z, GError **err)
{
	uint8_t sector[DM_SECTOR_SIZE];
	int error = dm_read_sync(&k->meta->dev, 0, 1, sector, 0);

	memcpy(&k->head, sector, sizeof k->head);
	if (!error)
		error = dm_read_sync(&k->meta->dev, half_sector(k->head.half), HALF, k->text, 0);
	if (error)
		return dm_fail(err, -error, "the zones file cannot be read: %s", g_strerror(-error));
	error = zones_parse((char *)k->text, k->head.bytes, "zf", z, err);
	if (!error)
		k->head.bytes = z->bytes;
	return error;
}

/* "lab-zoned:": the disk. */
static int open_disk(const struct dm_opener *who, const char *uri, enum dm_mode mode, struct dm_dev **out, GError **err)
{
	struct keeper *k = keeper_new(err);
	struct dm_mapped *data;
	struct zones z;
	int error;

	if (!k)
		return -ENOENT;
	error = keeper_read(k, &z, err);
	data = error ? NULL : dm_find_name("data");
	if (!data) {
		keeper_close(&k->keeper);
		return error ? error : -ENOENT;
	}
	*out = dm_zoned_new(&data->dev, &z, &k->keeper);
	return 0;
}

static void __attribute__((constructor)) add_scheme(void)
{
	static const struct dm_store_scheme scheme = {"lab-zoned:", open_disk};

	dm_store_scheme_more = &scheme;
}

/* --- the customer ----------------------------------------------------------------------------- */

static int format_zones(GError **err)
{
	g_autoptr(GString) text = g_string_new(NULL);
	struct zones z = {
	    .model = DM_ZONES_HOST_MANAGED, .logical_block = 512, .zone_sectors = ZONE, .sectors = SECTORS, .n = ZONES};
	struct keeper *k = keeper_new(err);
	int error;

	if (!k)
		return -ENOENT;
	zones_print_head(&z, text);
	for (unsigned i = 0; i < ZONES; i++) {
		bool plain = i < CONVENTIONAL;
		struct zones_zone zone = {.capacity = ZONE,
					  .type = plain ? DM_ZONE_CONVENTIONAL : DM_ZONE_SEQUENTIAL,
					  .condition = plain ? DM_ZONE_NOT_WP : DM_ZONE_EMPTY};

		zones_print_zone(&z, i, zone, text);
	}
	error = keeper_rewrite(&k->keeper, text);
	keeper_close(&k->keeper);
	return error ? dm_fail(err, -error, "the zones file cannot be written") : 0;
}

static int format_zoned(struct lab *lab, GError **err)
{
	struct zoned_super sb = {.version = 2,
				 .generation = 1,
				 .reserved_seq = RESERVED_ZONES,
				 .chunks = CHUNKS,
				 .map_blocks = 1,
				 .bitmap_blocks = ZONES,
				 .set_blocks = 2 + ZONES,
				 .uuid = {1},
				 .device_uuid = {2}};
	g_autofree uint8_t *block = g_malloc(ZONED_BLOCK), *map = g_malloc(ZONED_BLOCK);
	int error = format_zones(err);

	memset(map, 0xff, ZONED_BLOCK);
	for (unsigned set = 0; set < 2 && !error; set++) {
		uint64_t offset = (uint64_t)set * SET_ZONES * ZONE * DM_SECTOR_SIZE;

		sb.block = offset / ZONED_BLOCK;
		zoned_super_write(&sb, block);
		error = lab_write_raw(lab, "data", offset, block, ZONED_BLOCK, err);
		if (!error)
			error = lab_write_raw(lab, "data", offset + ZONED_BLOCK, map, ZONED_BLOCK, err);
	}
	return error;
}

static int open_zoned(struct lab *lab, GError **err)
{
	int error = lab_device(lab, "disk", err, "0 1536 linear lab-zoned: 0", NULL);

	G_STATIC_ASSERT(SECTORS == 1536 && CHUNKS * ZONE == 896);
	if (!error)
		error = lab_device(lab, "vol", err, "0 896 zoned disk", NULL);
	return error ? error : lab_volume(lab, "vol", LAB_ZEROES, err);
}

static void reclaim(struct lab *lab)
{
	g_autoptr(GError) err = NULL;

	lab_ok(lab, lab_message(lab, "vol", NULL, &err, "reclaim"), &err);
}

/* Chunks in order now and then, so that there are sequential zones to be written over; and blocks of 4096 bytes
 * everywhere. */
static void use(struct lab *lab, unsigned rounds)
{
	for (unsigned i = 0; i < rounds; i++) {
		unsigned chunk = lab_random(lab, CHUNKS), block = lab_random(lab, CHUNKS * ZONE / 8);

		switch (lab_random(lab, 12)) {
		case 0:
		case 1:
			lab_write(lab, "vol", (uint64_t)chunk * ZONE, 8 * (1 + lab_random(lab, ZONE / 8)), 0);
			break;
		case 2:
			lab_flush(lab, "vol");
			break;
		case 3:
			lab_discard(lab, "vol", (uint64_t)chunk * ZONE, ZONE);
			break;
		case 4:
			lab_zero(lab, "vol", (uint64_t)block * 8, 8);
			break;
		case 5:
			reclaim(lab);
			break;
		case 6:
			lab_read(lab, "vol", (uint64_t)block * 8, 8);
			break;
		default:
			lab_write(lab, "vol", (uint64_t)block * 8, 8, lab_random(lab, 4) ? 0 : DM_FUA);
		}
	}
}

static void use_zoned(struct lab *lab)
{
	use(lab, 60);
	lab_reopen(lab);
	use(lab, 30);
}

static void use_shortly(struct lab *lab)
{
	use(lab, 14);
}

static void append_error(const char *text, void *out)
{
	g_string_append_printf(out, "%s\n", text);
}

/* What is on the disk, while nobody changes it. */
static int check_metadata(struct dm_dev *dev, GError **err)
{
	struct zoned_dev one = {.dev = dev};
	struct zoned_geometry g = {.devs = &one, .n = 1};
	g_autoptr(GString) text = g_string_new(NULL);
	struct zoned_meta *meta;
	unsigned found;
	int error = zoned_geometry(&g, err);

	if (!error)
		error = zoned_meta_open(&g, false, &meta, err);
	if (error)
		return error;
	error = zoned_meta_check(meta, false, append_error, text, &found, err);
	zoned_meta_close(meta);
	return error || !found ? error : dm_fail(err, EUCLEAN, "%s", text->str);
}

static int check_zoned(struct lab *lab, GError **err)
{
	int error = lab_suspend(lab, "vol", err), resumed;
	struct dm_mapped *meta = error ? NULL : dm_find_name("disk");

	if (!meta)
		return error ? error : -ENOENT;
	error = check_metadata(&meta->dev, err);
	dm_mapped_unref(meta);
	resumed = lab_resume(lab, "vol", error ? NULL : err);
	return error ? error : resumed;
}

LAB_CUSTOMER(zoned) = {
    .slices = {{"data", SECTORS}, {"zf", ZF_SECTORS}},
    .prepare = format_zoned,
    .open = open_zoned,
    .workload = use_zoned,
    .fault_workload = use_shortly,
    .check = check_zoned,
};
