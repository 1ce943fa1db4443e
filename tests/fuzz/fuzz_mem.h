/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A small device in memory for fuzzers of metadata: SECTORS, defined before, is its size. */
#ifndef DMFS_FUZZ_MEM_H
#define DMFS_FUZZ_MEM_H

#include <errno.h>
#include <string.h>

#include <dmfs/block_manager.h>
#include <dmfs/io.h>
#include <dmfs/le.h>

struct mem {
	struct dm_dev dev;
	uint8_t data[SECTORS * 512];
};

static void mem_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	struct mem *m = (struct mem *)dev;
	size_t len = bio->sectors * 512;

	if (bio->op != DM_FLUSH && (bio->sector > SECTORS || bio->sectors > SECTORS - bio->sector)) {
		dm_bio_end(bio, -EIO);
		return;
	}
	if (bio->op == DM_READ)
		dm_iov_write(bio->iov, bio->iovcnt, 0, m->data + bio->sector * 512, len);
	else if (bio->op == DM_WRITE)
		dm_iov_read(bio->iov, bio->iovcnt, 0, m->data + bio->sector * 512, len);
	dm_bio_end(bio, 0);
}

static uint64_t mem_sectors(struct dm_dev *dev)
{
	return SECTORS;
}

static void mem_free(struct dm_dev *dev)
{
}

static const struct dm_dev_ops mem_ops = {.submit = mem_submit, .sectors = mem_sectors, .free = mem_free};

/*
 * Changes up to 7 places as the input says, each in a block whose checksum is made good again; seed_of tells
 * a block's.  The input moves on behind them; it must have a byte at least.
 */
static inline void mem_damage(struct mem *m, const uint8_t **data, size_t *size, uint32_t (*seed_of)(unsigned block))
{
	unsigned changes = *(*data)++ % 8;

	for (--*size; changes && *size >= 12; changes--, *data += 12, *size -= 12) {
		const uint8_t *in = *data;
		unsigned b = in[0] % (SECTORS / 8), at = 4 + (in[1] | in[2] << 8) % 4084;
		uint8_t *p = m->data + b * 4096;

		memcpy(p + at, in + 4, 1u << in[3] % 4);
		put_le32(p, dm_bm_checksum(p + 4, 4092, seed_of(b)));
	}
}

#endif
