/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writes that need a new mapping: to blocks not mapped yet, and to shared
 * ones.  The thread that brings the first such write of a block makes the block's cell
 * and does everything itself; later ones wait in the cell and go the ordinary way
 * when it is gone.
 *
 * Except for a block that need not be filled (skip_block_zeroing), the data
 * block is written as a whole before it is mapped: what the write leaves out of it comes from
 * the shared block, the external origin, or is zero.  Only the mapping takes
 * the metadata's lock; that the old mapping still holds is checked under it.
 */
#include "pool.h"

#define COPY_SECTORS 2048u /* the rest of a block is read and written in pieces of this */
#define ONE_WRITE_SECTORS 2048u /* blocks up to this are written with one call */

struct cell {
	struct cell *next;
	struct thin_dev *td;
	uint64_t block;
	struct dm_bio_list waiting;
};

/* --- cells --- */

void pool_cells_init(struct thin_pool *pool)
{
	for (unsigned i = 0; i < POOL_CELL_SHARDS; i++)
		pthread_mutex_init(&pool->cells[i].lock, NULL);
}

void pool_cells_destroy(struct thin_pool *pool)
{
	for (unsigned i = 0; i < POOL_CELL_SHARDS; i++)
		pthread_mutex_destroy(&pool->cells[i].lock);
}

static struct cell_shard *shard_of(struct thin_pool *pool, uint64_t block)
{
	return &pool->cells[block % POOL_CELL_SHARDS];
}

/* True: the cell is the caller's.  False: the bio waits in somebody else's. */
static bool cell_enter(struct thin *t, uint64_t block, struct dm_bio *bio, struct cell *mine)
{
	struct cell_shard *s = shard_of(t->pool, block);
	struct cell *c;

	pthread_mutex_lock(&s->lock);
	for (c = s->first; c && (c->td != t->td || c->block != block);)
		c = c->next;
	if (c) {
		dm_bio_list_add(&c->waiting, bio);
	} else {
		*mine = (struct cell){.next = s->first, .td = t->td, .block = block};
		dm_bio_list_init(&mine->waiting);
		s->first = mine;
	}
	pthread_mutex_unlock(&s->lock);
	return !c;
}

static void cell_leave(struct thin_pool *pool, struct cell *mine)
{
	struct cell_shard *s = shard_of(pool, mine->block);
	struct cell **p = &s->first;

	pthread_mutex_lock(&s->lock);
	while (*p != mine)
		p = &(*p)->next;
	*p = mine->next;
	pthread_mutex_unlock(&s->lock);
}

/* --- filling a data block --- */

/* Where the content of a block comes from that a write does not give. */
struct source {
	struct dm_dev *dev; /* NULL: zeroes */
	uint64_t sector, sectors; /* of the block on dev; what is beyond sectors is zero */
};

static const char zeroes[COPY_SECTORS * DM_SECTOR_SIZE];

static int read_source(const struct source *src, uint64_t offset, uint64_t sectors, void *buf)
{
	uint64_t have = offset < src->sectors ? MIN(src->sectors - offset, sectors) : 0;

	memset((char *)buf + have * DM_SECTOR_SIZE, 0, (sectors - have) * DM_SECTOR_SIZE);
	return have ? dm_read_sync(src->dev, src->sector + offset, have, buf, 0) : 0;
}

static int write_iov(struct dm_dev *dev, uint64_t sector, uint64_t sectors, const struct iovec *iov, int iovcnt)
{
	struct dm_region where = {dev, sector, sectors};

	return dm_io_sync(DM_WRITE, 0, 1, &where, iov, iovcnt, NULL);
}

/* A piece of the block, from the source, in steps. */
static int copy_piece(struct dm_dev *to, uint64_t sector, const struct source *src, uint64_t offset, uint64_t sectors)
{
	g_autofree char *buf = NULL;
	int r = 0;

	if (!sectors)
		return 0;
	if (!src->dev) {
		struct dm_region where = {to, sector + offset, sectors};

		return dm_io_sync(DM_WRITE_ZEROES, DM_NOUNMAP, 1, &where, NULL, 0, NULL);
	}
	buf = g_malloc(COPY_SECTORS * DM_SECTOR_SIZE);
	for (uint64_t n; sectors && !r; offset += n, sectors -= n) {
		n = MIN(sectors, COPY_SECTORS);
		r = read_source(src, offset, n, buf);
		if (!r)
			r = dm_write_sync(to, sector + offset, n, buf, 0);
	}
	return r;
}

/* The whole block with one write: before, the bio's data, after. */
static int fill_at_once(struct thin_pool *pool, uint64_t sector, const struct source *src, uint64_t offset,
			struct dm_bio *bio)
{
	g_autofree struct iovec *iov = g_new(struct iovec, bio->iovcnt + 2);
	uint64_t after = offset + bio->sectors, rest = pool->block_sectors - after;
	g_autofree char *buf = NULL;
	const char *data = zeroes;
	int n = 0;

	if (src->dev && (offset || rest)) {
		uint64_t first = offset ? 0 : after, last = rest ? pool->block_sectors : offset;
		int r;

		data = buf = g_malloc((size_t)pool->block_sectors * DM_SECTOR_SIZE);
		r = read_source(src, first, last - first, buf + first * DM_SECTOR_SIZE);
		if (r)
			return r;
	}
	if (offset)
		iov[n++] = (struct iovec){(void *)data, offset * DM_SECTOR_SIZE};
	memcpy(iov + n, bio->iov, bio->iovcnt * sizeof(*iov));
	n += bio->iovcnt;
	if (rest)
		iov[n++] = (struct iovec){(void *)(src->dev ? data + after * DM_SECTOR_SIZE : data), rest * DM_SECTOR_SIZE};
	return write_iov(pool->data_dev, sector, pool->block_sectors, iov, n);
}

static int fill_block(struct thin_pool *pool, uint64_t data_block, const struct source *src, uint64_t offset,
		      struct dm_bio *bio)
{
	uint64_t sector = data_block * pool->block_sectors, after = offset + bio->sectors;
	int r;

	if (bio->op == DM_PROVISION) /* gives no data */
		return copy_piece(pool->data_dev, sector, src, 0, pool->block_sectors);
	if (pool->block_sectors <= ONE_WRITE_SECTORS)
		return fill_at_once(pool, sector, src, offset, bio);
	r = copy_piece(pool->data_dev, sector, src, 0, offset);
	if (!r)
		r = copy_piece(pool->data_dev, sector, src, after, pool->block_sectors - after);
	return r ? r : write_iov(pool->data_dev, sector + offset, bio->sectors, bio->iov, bio->iovcnt);
}

/* --- the thread that holds the cell --- */

/* The bio's data is where it belongs, and mapped. */
static void finish_written(struct thin_pool *pool, struct dm_bio *bio)
{
	if (bio->flags & DM_FUA) {
		thin_io(bio)->state = IO_WRITTEN;
		pool_wait_for_commit(pool, bio);
	} else {
		dm_bio_end(bio, 0);
	}
}

static struct source source_of(struct thin *t, uint64_t block, const struct thin_mapping *shared)
{
	struct thin_pool *pool = t->pool;
	uint64_t sector = block * pool->block_sectors;

	if (shared)
		return (struct source){pool->data_dev, shared->block * pool->block_sectors, pool->block_sectors};
	if (t->origin && sector < t->origin_sectors)
		return (struct source){t->origin, sector, MIN(t->origin_sectors - sector, pool->block_sectors)};
	return (struct source){0};
}

/* 0: done, the bio is on its way or has ended; -EAGAIN: look again; else it has to fail. */
static int make_block(struct thin *t, struct dm_bio *bio, uint64_t block, uint64_t offset,
		      const struct thin_mapping *shared)
{
	struct source src = source_of(t, block, shared);
	struct thin_pool *pool = t->pool;
	uint64_t data_block;
	int r;

	if (!src.dev && !atomic_load(&pool->zero)) {
		r = thin_md_provision(t->td, block);
		return r ? r : -EAGAIN; /* it is mapped now */
	}
	r = thin_md_reserve(pool->md, &data_block);
	if (r)
		return r;
	r = fill_block(pool, data_block, &src, offset, bio);
	if (r) {
		dm_log_err_limit("thin: a new block could not be filled: %s", g_strerror(-r));
		thin_md_unreserve(pool->md, data_block);
		return -EREMOTEIO; /* the data's fault, not the metadata's */
	}
	r = thin_md_insert(t->td, block, shared ? shared->block : THIN_NO_BLOCK, data_block);
	if (r) {
		thin_md_unreserve(pool->md, data_block);
		return r == -ENOSPC ? -EIO : r;
	}
	finish_written(pool, bio);
	return 0;
}

/* What to do about a failed attempt: true to try again. */
static bool cope(struct thin_pool *pool, struct dm_bio *bio, int r)
{
	switch (r) {
	case -EAGAIN:
		return true;
	case -ENOSPC:
		if (pool_out_of_space(pool))
			return true;
		pool_unserviceable(pool, bio);
		return false;
	case -EREMOTEIO:
		dm_bio_end(bio, -EIO);
		return false;
	case -EPERM: /* it has turned read-only meanwhile */
		pool_unserviceable(pool, bio);
		return false;
	}
	pool_metadata_failed(pool, "map a block", r);
	dm_bio_end(bio, -EIO);
	return false;
}

/* Maps the block for the holder of its cell; then the bio is where thin_rw() would have sent it. */
static enum dm_mapio provision(struct thin *t, struct dm_bio *bio, uint64_t block, uint64_t offset)
{
	struct thin_pool *pool = t->pool;

	for (;;) {
		struct thin_mapping m;
		int r = thin_md_find(t->td, block, &m);

		if (!r && !m.shared)
			return DM_MAPIO_REMAPPED;
		if (r && r != -ENODATA) {
			dm_bio_end(bio, -EIO);
			return DM_MAPIO_SUBMITTED;
		}
		if (pool_mode(pool) != PM_WRITE) {
			pool_unserviceable(pool, bio);
			return DM_MAPIO_SUBMITTED;
		}
		r = make_block(t, bio, block, offset, r ? NULL : &m);
		if (!r || !cope(pool, bio, r))
			return DM_MAPIO_SUBMITTED;
	}
}

enum dm_mapio thin_provision(struct thin *t, struct dm_bio *bio, uint64_t block, uint64_t offset)
{
	static _Thread_local unsigned nested;
	struct thin_pool *pool = t->pool;
	enum dm_mapio what;
	struct dm_bio *next;
	struct cell cell;

	/* Earlier parts of the same bio may be in the epoch: a commit that has the metadata's lock waits for them. */
	dm_submit_queued();
	if (nested > 4 || !pool_hold(pool)) { /* the worker continues it, if need be after the resume */
		pool_defer(pool, bio);
		return DM_MAPIO_SUBMITTED;
	}
	if (!cell_enter(t, block, bio, &cell)) {
		pool_release(pool);
		return DM_MAPIO_SUBMITTED;
	}
	nested++;
	what = provision(t, bio, block, offset);
	cell_leave(pool, &cell);
	pool_check_marks(pool);
	pool_release(pool);
	while ((next = dm_bio_list_pop(&cell.waiting)))
		thin_dispatch(next);
	nested--;
	return what;
}
