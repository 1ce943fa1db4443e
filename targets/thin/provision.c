/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Writes that need a new mapping: to blocks not mapped yet, and to shared ones.  The mapper sets a data block aside,
 * has it filled, and maps it when that is done.  While a block is being filled others that want it are parked with it,
 * and come back to the mapper after that.
 *
 * Except for a block that need not be filled (skip_block_zeroing), the data block is written as a whole before it is
 * mapped: what the write leaves out of it comes from the shared block, the external origin, or is zero.  Only the
 * mapping takes the metadata's lock; that the old mapping still holds is checked under it.
 *
 * Large blocks are left to kcopyd and its bounded memory, except for what the write gives; and no more than
 * POOL_MAX_FILLS are under way, the others wait in pool->to_fill.
 */
#include "pool.h"

#include <dmfs/container_of.h>
#include <dmfs/later.h>

#define SMALL_SECTORS 128u      /* blocks up to this are copied in memory */
#define ONE_WRITE_SECTORS 2048u /* those of zeroes up to this are written with one call */

static char zeroes[ONE_WRITE_SECTORS * DM_SECTOR_SIZE]; /* never written to */

/* --- filling a data block --- */

static void fill_done(struct fill *f, int error)
{
	f->error = error;
	pool_filled(f->thin->pool, f);
}

static void written(struct dm_bio *io)
{
	fill_done(container_of(io, struct fill, io), io->error);
}

/* An I/O of f->iov; -EINTR of it is one of the whole. */
static void fill_io(struct fill *f, enum dm_op op, struct dm_dev *dev, uint64_t sector, uint64_t sectors, int iovcnt,
		    void (*end)(struct dm_bio *))
{
	f->io = (struct dm_bio){
		.op = op,
		.dev = dev,
		.sector = sector,
		.sectors = sectors,
		.iov = f->iov,
		.iovcnt = iovcnt,
		.origin = f->bio->origin,
		.end = end,
	};
}

static uint64_t data_sector(const struct fill *f)
{
	return f->data_block * f->thin->pool->block_sectors;
}

/* The whole block with one write: before, the bio's data, after. */
static void prepare_write(struct fill *f)
{
	struct thin_pool *pool = f->thin->pool;
	struct dm_bio *bio = f->bio;
	uint64_t after = f->offset + f->given, rest = pool->block_sectors - after;
	char *data = f->buffer ? f->buffer : zeroes;
	int n = 0;

	if (f->offset)
		f->iov[n++] = (struct iovec){data, f->offset * DM_SECTOR_SIZE};
	for (int i = 0; i < bio->iovcnt; i++) /* none of a provision */
		f->iov[n++] = bio->iov[i];
	if (rest)
		f->iov[n++] = (struct iovec){f->buffer ? data + after * DM_SECTOR_SIZE : data, rest * DM_SECTOR_SIZE};
	fill_io(f, DM_WRITE, pool->data_dev, data_sector(f), pool->block_sectors, n, written);
}

static void source_read(struct dm_bio *io)
{
	struct fill *f = container_of(io, struct fill, io);

	if (io->error) {
		fill_done(f, io->error);
		return;
	}
	prepare_write(f);
	dm_submit(&f->io);
}

/* Reads what the write does not give into the buffer: one range, or all of it if that lies in the middle. */
static void prepare_read(struct fill *f)
{
	uint64_t size = f->thin->pool->block_sectors, after = f->offset + f->given;
	uint64_t first = f->offset ? 0 : after, last = after < size ? size : f->offset;
	uint64_t have = f->src.sectors > first ? MIN(f->src.sectors, last) - first : 0;
	char *buffer = f->buffer = g_malloc(size * DM_SECTOR_SIZE);

	memset(buffer + (first + have) * DM_SECTOR_SIZE, 0, (last - first - have) * DM_SECTOR_SIZE);
	if (!have) {
		prepare_write(f);
		return;
	}
	f->iov[0] = (struct iovec){buffer + first * DM_SECTOR_SIZE, have * DM_SECTOR_SIZE};
	fill_io(f, DM_READ, f->src.dev, f->src.sector + first, have, 1, source_read);
}

static void next_piece(struct fill *f);

static void piece_done(int read_error, unsigned long write_errors, void *context)
{
	struct fill *f = context;

	if (read_error || write_errors)
		fill_done(f, read_error ? read_error : -EIO);
	else
		next_piece(f);
}

/* Large blocks: what lies before the write, what after it, each as far as there is a source and beyond; the write. */
static void next_piece(struct fill *f)
{
	struct thin_pool *pool = f->thin->pool;
	uint64_t after = f->offset + f->given, have = f->src.dev ? f->src.sectors : 0;
	struct dm_bio_list out;

	while (f->step < 4) {
		bool copies = f->step % 2 == 0;
		uint64_t begin = f->step < 2 ? 0 : after, end = f->step < 2 ? f->offset : pool->block_sectors;
		struct dm_region from, to;

		f->step++;
		if (copies)
			end = MIN(end, have);
		else
			begin = MAX(begin, have);
		if (begin >= end)
			continue;
		from = (struct dm_region){f->src.dev, f->src.sector + begin, end - begin};
		to = (struct dm_region){pool->data_dev, data_sector(f) + begin, end - begin};
		if (copies)
			dm_kcopyd_copy(pool->kcopyd, &from, 1, &to, 0, piece_done, f);
		else
			dm_kcopyd_zero(pool->kcopyd, 1, &to, 0, piece_done, f);
		return;
	}
	if (!f->given) {
		fill_done(f, 0);
		return;
	}
	memcpy(f->iov, f->bio->iov, (size_t)f->bio->iovcnt * sizeof(*f->iov));
	fill_io(f, DM_WRITE, pool->data_dev, data_sector(f) + f->offset, f->given, f->bio->iovcnt, written);
	dm_bio_list_init(&out);
	dm_bio_list_add(&out, &f->io);
	dm_submit_async(&out);
}

static void start(struct fill *f, struct dm_bio_list *out)
{
	uint32_t size = f->thin->pool->block_sectors;

	if (f->given < size && size > (f->src.dev ? SMALL_SECTORS : ONE_WRITE_SECTORS)) {
		next_piece(f);
		return;
	}
	if (f->src.dev && f->given < size)
		prepare_read(f);
	else
		prepare_write(f);
	dm_bio_list_add(out, &f->io);
}

/* --- the mapper --- */

static struct fill_source source_of(struct thin *t, uint64_t block, const struct thin_mapping *shared)
{
	struct thin_pool *pool = t->pool;
	uint64_t sector = block * pool->block_sectors;

	if (shared)
		return (struct fill_source){pool->data_dev, shared->block * pool->block_sectors, pool->block_sectors};
	if (t->origin && sector < t->origin_sectors)
		return (struct fill_source){t->origin, sector, MIN(t->origin_sectors - sector, pool->block_sectors)};
	return (struct fill_source){0};
}

/* What to do about a failed attempt. */
static void cope(struct thin_pool *pool, struct dm_bio *bio, int r)
{
	switch (r) {
	case -EAGAIN:
		pool_defer(pool, bio);
		return;
	case -ENOSPC:
		if (pool_out_of_space(pool))
			pool_defer(pool, bio);
		else
			pool_unserviceable(pool, bio);
		return;
	case -EPERM: /* it has turned read-only meanwhile */
		pool_unserviceable(pool, bio);
		return;
	}
	pool_metadata_failed(pool, "map a block", r);
	dm_bio_end(bio, -EIO);
}

/* The bio's data is where it belongs, and mapped. */
static void finish_written(struct thin_pool *pool, struct dm_bio *bio)
{
	if (bio->flags & DM_FUA) {
		thin_io(bio)->written = true;
		pool_wait_for_commit(pool, bio);
	} else {
		dm_bio_end(bio, 0);
	}
}

static int map_filled(struct fill *f)
{
	struct thin_pool *pool = f->thin->pool;
	int r = f->error;

	if (!r)
		r = thin_md_insert(f->thin->td, f->block, f->expected, f->data_block);
	if (!r)
		return 0;
	thin_md_unreserve(pool->meta, f->data_block);
	return !f->error && r == -ENOSPC ? -EIO : r;
}

void thin_map_filled(struct fill *f)
{
	struct thin_pool *pool = f->thin->pool;
	struct dm_bio_list parked;
	int r = map_filled(f);

	dm_bio_list_init(&parked);
	dm_block_unlock(pool->blocks, &f->claim, &parked);
	pool_defer_all(pool, &parked);
	if (!r) {
		finish_written(pool, f->bio);
	} else if (f->error) { /* the data's fault, not the metadata's */
		if (r != -EINTR)
			dm_log_err_limit("thin: a new block could not be filled: %s", g_strerror(-r));
		dm_bio_end(f->bio, r == -EINTR ? r : -EIO);
	} else {
		cope(pool, f->bio, r);
	}
	pool->fills--;
	pool->mapped_some = true;
	g_free(f->buffer);
	g_free(f);
	dm_gate_exit(&pool->changes);
}

/* Where the block is being filled the bio is parked; it may be another device's block, which does no harm. */
static bool claim(struct fill *f)
{
	uint64_t key = f->block ^ f->thin->td->id << 40;
	int r = dm_block_lock_or_park(f->thin->pool->blocks, &f->claim, key, f->bio);

	if (r < 0)
		dm_bio_end(f->bio, r);
	return !r;
}

static struct fill *fill_new(struct thin *t, struct dm_bio *bio, uint64_t block, uint64_t offset,
			     const struct thin_mapping *shared, const struct fill_source *src)
{
	struct fill *f = g_malloc(sizeof(*f) + ((size_t)bio->iovcnt + 2) * sizeof(f->iov[0]));

	f->thin = t;
	f->bio = bio;
	f->block = block;
	f->given = dm_op_has_data(bio->op) ? bio->sectors : 0;
	f->offset = f->given ? offset : 0;
	f->expected = shared ? shared->block : THIN_NO_BLOCK;
	f->src = *src;
	f->step = 0;
	f->buffer = NULL;
	return f;
}

/* Begins to fill a block, or has the bio wait for that; pool->changes is entered for it. */
static void begin_fill(struct fill *f, struct dm_bio_list *out)
{
	struct thin_pool *pool = f->thin->pool;
	struct dm_bio_list parked;
	int r;

	if (!claim(f)) {
		g_free(f);
		dm_gate_exit(&pool->changes);
		return;
	}
	r = thin_md_reserve(f->thin->td, f->block, &f->data_block);
	if (!r) {
		pool->fills++;
		start(f, out);
		return;
	}
	dm_bio_list_init(&parked);
	dm_block_unlock(pool->blocks, &f->claim, &parked);
	pool_defer_all(pool, &parked);
	cope(pool, f->bio, r);
	g_free(f);
	dm_gate_exit(&pool->changes);
}

/* First come, first served: who comes later does not get before those who wait for their turn. */
static bool must_queue(struct thin_pool *pool, struct dm_bio *bio)
{
	return pool->fills >= POOL_MAX_FILLS || (!thin_io(bio)->turn && dm_hold_count(&pool->to_fill));
}

void thin_provision(struct thin *t, struct dm_bio *bio, uint64_t block, uint64_t offset,
		    const struct thin_mapping *shared, struct dm_bio_list *out)
{
	struct fill_source src = source_of(t, block, shared);
	struct thin_pool *pool = t->pool;
	int r;

	if (pool_mode(pool) != PM_WRITE) {
		pool_unserviceable(pool, bio);
	} else if (must_queue(pool, bio) || !dm_gate_enter(&pool->changes)) {
		thin_io(bio)->turn = false;
		pool_keep(pool, &pool->to_fill, bio);
		pool_fail_parked(pool);
	} else if (!src.dev && !atomic_load(&pool->zero)) {
		r = thin_md_provision(t->td, block);
		pool->mapped_some = true;
		if (r)
			cope(pool, bio, r);
		else
			thin_dispatch(bio, out); /* it is mapped now */
		dm_gate_exit(&pool->changes);
	} else {
		begin_fill(fill_new(t, bio, block, offset, shared, &src), out);
	}
}
