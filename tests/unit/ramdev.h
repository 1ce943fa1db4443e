/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A device in memory whose bios end at once; and one whose writes can be made to fail. */
#ifndef DMFS_TESTS_UNIT_RAMDEV_H
#define DMFS_TESTS_UNIT_RAMDEV_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <dmfs/io.h>

struct ramdev {
	struct dm_dev dev; /* first */
	char *data;
	uint64_t sectors;
	unsigned writes, flushes, fail_writes_after; /* 0: never */
};

static inline void ramdev_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	struct ramdev *m = (struct ramdev *)dev;
	uint64_t end;
	int error = 0;

	if (bio->op == DM_FLUSH || (bio->flags & DM_PREFLUSH))
		m->flushes++;
	if (bio->op == DM_FLUSH) {
		dm_bio_end(bio, 0);
		return;
	}
	if (__builtin_add_overflow(bio->sector, bio->sectors, &end) || end > m->sectors)
		error = -EIO;
	else if (bio->op == DM_READ)
		dm_iov_write(bio->iov, bio->iovcnt, 0, m->data + bio->sector * 512, bio->sectors * 512);
	else if (m->writes++ >= m->fail_writes_after && m->fail_writes_after)
		error = -EIO;
	else if (bio->op == DM_WRITE)
		dm_iov_read(bio->iov, bio->iovcnt, 0, m->data + bio->sector * 512, bio->sectors * 512);
	else if (bio->op != DM_PROVISION)
		memset(m->data + bio->sector * 512, 0, bio->sectors * 512);
	dm_bio_end(bio, error);
}

static inline uint64_t ramdev_sectors(struct dm_dev *dev)
{
	return ((struct ramdev *)dev)->sectors;
}

static inline void ramdev_identity(struct dm_dev *dev, uint64_t id[3])
{
	id[0] = 77;
	id[1] = (uintptr_t)dev;
	id[2] = 0;
}

static inline void ramdev_print(struct dm_dev *dev, GString *out)
{
	g_string_append(out, "memory");
}

static inline void ramdev_init(struct ramdev *m, uint64_t sectors, const void *data, size_t len)
{
	static const struct dm_dev_ops ops = {.submit = ramdev_submit,
					      .sectors = ramdev_sectors,
					      .identity = ramdev_identity,
					      .print = ramdev_print};

	*m = (struct ramdev){.dev = {.ops = &ops, .mode = DM_MODE_RW}, .sectors = sectors};
	atomic_init(&m->dev.refs, 1);
	m->data = g_malloc0(sectors * 512 + 1);
	if (len)
		memcpy(m->data, data, MIN(len, sectors * 512));
}

static inline void ramdev_clear(struct ramdev *m)
{
	g_free(m->data);
}

#endif
