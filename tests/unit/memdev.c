/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "memdev.h"

#include <errno.h>
#include <string.h>

static void forget_log(struct memdev *m)
{
	if (!m->log)
		return;
	for (guint i = 0; i < m->log->len; i++)
		g_free(g_array_index(m->log, struct memdev_write, i).data);
	g_array_free(m->log, TRUE);
	m->log = NULL;
}

void memdev_record(struct memdev *m, bool on)
{
	forget_log(m);
	if (on)
		m->log = g_array_new(FALSE, FALSE, sizeof(struct memdev_write));
}

static void record(struct memdev *m, struct dm_bio *bio)
{
	struct memdev_write w = {bio->op, bio->sector, bio->sectors, NULL};

	if (!m->log || bio->op == DM_READ)
		return;
	if (bio->op != DM_WRITE) {
		g_array_append_val(m->log, w);
		return;
	}
	for (uint64_t done = 0; done < bio->sectors; done += w.sectors) { /* power may fail between any two blocks */
		w.sector = bio->sector + done;
		w.sectors = MIN(bio->sectors - done, 8);
		w.data = g_memdup2(m->data + w.sector * 512, w.sectors * 512);
		g_array_append_val(m->log, w);
	}
}

/* Moves a bio's tags; its blocks must be whole. */
static int move_tags(struct memdev *m, struct dm_bio *bio)
{
	unsigned block = m->tag_block / 512;
	uint8_t *at;
	size_t len;

	if (!bio->tags.data)
		return 0;
	if (!block || bio->tags.block_sectors != block || bio->tags.bytes != m->tag_bytes || bio->sector % block ||
	    bio->sectors % block || !dm_op_has_data(bio->op))
		return -EINVAL;
	at = m->tags + bio->sector / block * m->tag_bytes;
	len = bio->sectors / block * m->tag_bytes;
	if (bio->op == DM_READ)
		memcpy(bio->tags.data, at, len);
	else
		memcpy(at, bio->tags.data, len);
	return 0;
}

static int carry_out(struct memdev *m, struct dm_bio *bio)
{
	uint8_t *at = m->data + bio->sector * 512;
	size_t len = bio->sectors * 512;

	if (m->fail_at && !(m->fail_writes_only && bio->op == DM_READ) && (m->fail_at == 1 || !--m->fail_at)) {
		m->fail_at = 1;
		return m->fail_error;
	}
	if (bio->op != DM_FLUSH && (bio->sector > m->sectors || bio->sectors > m->sectors - bio->sector))
		return -EIO;
	if (move_tags(m, bio))
		return -EINVAL;
	switch (bio->op) {
	case DM_READ:
		m->reads++;
		dm_iov_write(bio->iov, bio->iovcnt, 0, at, len);
		break;
	case DM_WRITE:
		m->writes++;
		dm_iov_read(bio->iov, bio->iovcnt, 0, at, len);
		break;
	case DM_FLUSH:
		m->flushes++;
		break;
	case DM_DISCARD:
		m->discards++;
		/* fall through */
	case DM_WRITE_ZEROES:
		memset(at, 0, len);
		break;
	case DM_PROVISION:
		return 0;
	default:
		return -EOPNOTSUPP;
	}
	record(m, bio);
	return 0;
}

static void mem_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	struct memdev *m = (struct memdev *)dev;
	int r;

	pthread_mutex_lock(&m->lock);
	r = carry_out(m, bio);
	pthread_mutex_unlock(&m->lock);
	dm_bio_end(bio, r);
}

static uint64_t mem_sectors(struct dm_dev *dev)
{
	return ((struct memdev *)dev)->sectors;
}

static void mem_limits(struct dm_dev *dev, struct dm_limits *l)
{
	struct memdev *m = (struct memdev *)dev;

	*l = (struct dm_limits){.logical_block_size = MAX(m->tag_block, 512), .physical_block_size = 512,
				.max_discard_sectors = UINT64_MAX >> 9, .discard_granularity = 512, .discard_zeroes = true,
				.tag_bytes = m->tag_bytes, .tag_block = m->tag_block};
}

static void mem_print(struct dm_dev *dev, GString *out)
{
	g_string_append_printf(out, "/memory/%p", (void *)dev);
}

static void mem_identity(struct dm_dev *dev, uint64_t id[3])
{
	id[0] = id[1] = 0;
	id[2] = (uintptr_t)dev;
}

static void mem_free(struct dm_dev *dev)
{
	struct memdev *m = (struct memdev *)dev;

	forget_log(m);
	g_free(m->tags);
	g_free(m->data);
	pthread_mutex_destroy(&m->lock);
	g_free(m);
}

static const struct dm_dev_ops mem_ops = {
	.submit = mem_submit,
	.sectors = mem_sectors,
	.limits = mem_limits,
	.print = mem_print,
	.identity = mem_identity,
	.free = mem_free,
};

struct memdev *memdev_new(uint64_t sectors)
{
	struct memdev *m = g_new0(struct memdev, 1);

	m->dev.ops = &mem_ops;
	atomic_init(&m->dev.refs, 1);
	m->dev.mode = DM_MODE_RW;
	m->data = g_malloc0(sectors * 512);
	m->sectors = sectors;
	m->fail_error = -EIO;
	pthread_mutex_init(&m->lock, NULL);
	return m;
}

void memdev_tags(struct memdev *m, unsigned bytes, unsigned block)
{
	m->tag_bytes = bytes;
	m->tag_block = block;
	m->tags = g_malloc0(m->sectors * 512 / block * bytes);
}

struct memdev *memdev_replay(struct memdev *m, const uint8_t *image, size_t n, uint64_t lost)
{
	struct memdev *copy = memdev_new(m->sectors);
	size_t flushed = 0;

	memcpy(copy->data, image, m->sectors * 512);
	for (size_t i = 0; i < n; i++)
		if (g_array_index(m->log, struct memdev_write, i).op == DM_FLUSH)
			flushed = i;
	for (size_t i = 0; i < n; i++) {
		struct memdev_write *w = &g_array_index(m->log, struct memdev_write, i);

		if (i > flushed && lost >> i % 64 & 1)
			continue;
		if (w->data)
			memcpy(copy->data + w->sector * 512, w->data, w->sectors * 512);
		else if (w->op != DM_FLUSH)
			memset(copy->data + w->sector * 512, 0, w->sectors * 512);
	}
	return copy;
}
