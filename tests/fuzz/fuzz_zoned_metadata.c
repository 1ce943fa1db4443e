/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * zoned's metadata with damage behind good checksums: the input says which bytes of either set to change, where write
 * pointers are, and what then to do.  Whatever comes of it, nothing may crash or run for ever; and what was written and
 * committed is found again in the same place by who opens the metadata anew.
 */
#include <stdlib.h>

#include <dmfs/le.h>

#include "../../targets/zoned/metadata.h"

#define ZONE 64u
#define ZONES 24u
#define CONVENTIONAL 12u
#define SET_ZONES 4u
#define SECTORS (ZONES * ZONE)
#define CHUNKS 14u

struct disk {
	struct dm_dev dev;
	uint8_t data[SECTORS * 512];
	uint32_t wp[ZONES];
};

static struct disk disk;
static uint8_t good[sizeof disk.data];

static int do_bio(struct disk *d, struct dm_bio *bio)
{
	uint32_t z = (uint32_t)(bio->sector / ZONE), offset = (uint32_t)(bio->sector % ZONE);

	if (bio->op == DM_FLUSH)
		return 0;
	if (bio->sector > SECTORS || bio->sectors > SECTORS - bio->sector)
		return -EIO;
	if (bio->op == DM_READ)
		dm_iov_write(bio->iov, bio->iovcnt, 0, d->data + bio->sector * 512, bio->sectors * 512);
	if (bio->op == DM_ZONE_RESET)
		d->wp[z] = 0;
	if (bio->op != DM_WRITE)
		return 0;
	if (z >= CONVENTIONAL && (offset != d->wp[z] || offset + bio->sectors > ZONE))
		return -EIO;
	if (z >= CONVENTIONAL)
		d->wp[z] += (uint32_t)bio->sectors;
	dm_iov_read(bio->iov, bio->iovcnt, 0, d->data + bio->sector * 512, bio->sectors * 512);
	return 0;
}

static void submit(struct dm_dev *dev, struct dm_bio *bio)
{
	dm_bio_end(bio, do_bio((struct disk *)dev, bio));
}

static uint64_t sectors(struct dm_dev *dev)
{
	return SECTORS;
}

static void limits(struct dm_dev *dev, struct dm_limits *out)
{
	*out = (struct dm_limits){.logical_block_size = 512,
				  .zone_model = DM_ZONES_HOST_MANAGED,
				  .zone_sectors = ZONE,
				  .zone_capacity = ZONE};
}

static int report(struct dm_dev *dev, uint64_t sector, uint64_t max, dm_zone_fn fn, void *data)
{
	struct disk *d = (struct disk *)dev;
	int error = 0;

	for (uint32_t z = (uint32_t)(sector / ZONE); z < ZONES && max && !error; z++, max--) {
		struct dm_zone zone = {.type = z < CONVENTIONAL ? DM_ZONE_CONVENTIONAL : DM_ZONE_SEQUENTIAL,
				       .condition = z < CONVENTIONAL ? DM_ZONE_NOT_WP : DM_ZONE_CLOSED,
				       .start = z * ZONE,
				       .sectors = ZONE,
				       .capacity = ZONE,
				       .wp = z * ZONE + d->wp[z]};

		error = fn(&zone, data);
	}
	return error;
}

static void nothing(struct dm_dev *dev)
{
}

static void fix_super(unsigned set)
{
	uint8_t *p = disk.data + (size_t)set * SET_ZONES * ZONE * 512;

	put_le32(p + 44, zoned_super_sum(p));
}

static void make_good(void)
{
	static const struct dm_dev_ops ops = {
	    .submit = submit, .sectors = sectors, .limits = limits, .report_zones = report, .free = nothing};
	struct zoned_super sb = {.version = 2,
				 .generation = 1,
				 .reserved_seq = 2,
				 .chunks = CHUNKS,
				 .map_blocks = 1,
				 .bitmap_blocks = ZONES,
				 .set_blocks = 2 + ZONES,
				 .uuid = {1},
				 .device_uuid = {2}};

	disk.dev.ops = &ops;
	disk.dev.mode = DM_MODE_RW;
	atomic_init(&disk.dev.refs, 1);
	for (unsigned set = 0; set < 2; set++) {
		uint8_t *p = disk.data + (size_t)set * SET_ZONES * ZONE * 512;

		sb.block = set * SET_ZONES * ZONE / 8;
		zoned_super_write(&sb, p);
		memset(p + 4096, 0xff, 4096);
		for (unsigned i = 0; i < 4;
		     i++) { /* chunks 0 to 3: two in order, of which one has a buffer, and one at random */
			put_le32(p + 4096 + i * 8, i < 2 ? 14 + i : 8 + i);
			if (i == 1)
				put_le32(p + 4096 + i * 8 + 4, 9);
			p[(2 + (i < 2 ? 14 + i : 8 + i)) * 4096] = 0x0f;
		}
		p[(2 + 9) * 4096] = 0x30;
	}
	memcpy(good, disk.data, sizeof good);
}

static const uint8_t *damage(const uint8_t *data, size_t *size)
{
	unsigned changes = *data++ % 8;

	memcpy(disk.data, good, sizeof good);
	for (unsigned z = 0; z < ZONES; z++)
		disk.wp[z] = z == 14 || z == 15 ? 32 : 0;
	for (--*size; changes && *size >= 5; changes--, data += 5, *size -= 5) {
		unsigned set = data[0] & 1, block = data[0] / 2 % (2 + ZONES);
		size_t at = (size_t)set * SET_ZONES * ZONE * 512 + block * 4096 +
			    (data[1] | data[2] << 8) % (block ? 256 : 112);

		if (data[3] == 0xff)
			disk.wp[CONVENTIONAL + data[1] % (ZONES - CONVENTIONAL)] = data[4] % (ZONE + 1);
		else
			memcpy(disk.data + at, data + 3, 2);
	}
	fix_super(0);
	fix_super(1);
	return data;
}

static void write_blocks(struct zoned_meta *meta, struct zoned_chunk *c, uint32_t block, uint32_t n, uint8_t fill)
{
	uint8_t buf[8 * 4096];
	struct dm_dev *dev;
	uint64_t sector;
	int which = zoned_chunk_place(meta, c, block, n, &dev, &sector);

	if (which < 0)
		return;
	memset(buf, fill, sizeof buf);
	zoned_chunk_written(meta, c, which, block, n, dm_write_sync(dev, sector, n * 8, buf, 0));
}

static void read_blocks(struct zoned_meta *meta, struct zoned_chunk *c)
{
	for (uint32_t block = 0, n; block < ZONE / 8; block += n) {
		uint8_t buf[8 * 4096];
		struct dm_dev *dev;
		uint64_t sector;
		int error;

		n = zoned_chunk_find(meta, c, block, ZONE / 8 - block, &dev, &sector, &error);
		if (!n || n > ZONE / 8 - block)
			abort();
		if (dev && !error && dm_read_sync(dev, sector, n * 8, buf, 0))
			abort();
	}
}

static void use(struct zoned_meta *meta, const uint8_t *in)
{
	uint32_t chunk = in[0] % zoned_meta_chunks(meta), block = in[1] % 8, n = 1 + in[2] % (8 - block);
	struct zoned_chunk c;
	bool freed;

	if (in[0] / 16 % 8 == 0) {
		zoned_meta_commit(meta, &freed);
		return;
	}
	if (in[0] / 16 % 8 == 1)
		chunk = zoned_meta_victim(meta, in[1] % 3);
	if (chunk == ZONED_UNMAPPED || zoned_chunk_get(meta, chunk, true, &c))
		return;
	switch (in[0] / 16 % 8) {
	case 1:
		zoned_meta_move(meta, &c, NULL, NULL);
		break;
	case 2:
		zoned_chunk_forget(meta, &c, block, n);
		break;
	case 3:
		read_blocks(meta, &c);
		break;
	default:
		write_blocks(meta, &c, block, n, in[2]);
	}
	zoned_chunk_put(meta, &c);
}

static void ignore(const char *text, void *data)
{
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct zoned_dev one = {.dev = &disk.dev};
	struct zoned_geometry g = {.devs = &one, .n = 1};
	struct zoned_meta *meta, *again;
	unsigned found;
	GString *status, *same;
	bool freed;

	if (!disk.dev.ops)
		make_good();
	if (!size)
		return 0;
	data = damage(data, &size);
	if (zoned_geometry(&g, NULL))
		abort();
	if (zoned_meta_open(&g, true, &meta, NULL))
		return 0;
	for (unsigned n = 0; size >= 3 && n < 200; n++, data += 3, size -= 3)
		use(meta, data);
	zoned_meta_check(meta, false, ignore, NULL, &found, NULL);
	if (!zoned_meta_commit(meta, &freed)) {
		if (zoned_meta_open(&g, true, &again, NULL))
			abort(); /* what we have written can be read */
		status = g_string_new(NULL);
		same = g_string_new(NULL);
		zoned_meta_status(meta, status);
		zoned_meta_status(again, same);
		/* Zones kept for reclaim are chosen anew, and the total moves with them; that of random ones does not.
		 */
		if (strcspn(status->str, "s") != strcspn(same->str, "s"))
			abort();
		g_string_free(status, TRUE);
		g_string_free(same, TRUE);
		zoned_meta_close(again);
	}
	zoned_meta_close(meta);
	return 0;
}
