/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * zoned's bios.  Each lies in one chunk and has its lock until it has ended, shared if it reads.
 *
 * A bio whose bitmaps are in memory goes on at once; else a thread of the queue reads them.  A write that no zone is
 * free for gives the lock back and waits until reclaim has freed one.
 */
#include <dmfs/container_of.h>

#include "zoned.h"

enum stage {
	STAGE_NEW,  /* nothing is held */
	STAGE_READ, /* chunk and lock are held, and the bio is on its way */
	STAGE_WRITE,
	STAGE_DONE,
};

struct zoned_bio {
	struct zoned *z;
	struct dm_bio *bio;
	struct dm_block_claim claim;
	struct zoned_chunk c;
	struct dm_work work;
	struct dm_commit_wait wait;
	enum stage stage;
	bool fua;
	int which; /* ZONED_DATA or ZONED_BUFFER, of a write */
	uint32_t chunk, block, blocks;
};

size_t zoned_bio_size(void)
{
	return sizeof(struct zoned_bio);
}

/* --- the end --------------------------------------------------------------------------------- */

static void committed(struct dm_commit_wait *wait, int error)
{
	struct zoned_bio *zb = container_of(wait, struct zoned_bio, wait);

	dm_bio_end(zb->bio, error);
}

static void let_go(struct zoned_bio *zb)
{
	zoned_chunk_put(zb->z->meta, &zb->c);
	dm_block_unlock(zb->z->lock, &zb->claim, NULL);
}

/* True: the bio waits for a commit, after which it ends again. */
static bool wait_for_commit(struct zoned_bio *zb)
{
	zb->stage = STAGE_DONE;
	if (!zb->fua)
		return false;
	zb->wait.done = committed;
	dm_group_commit(zb->z->commits, &zb->wait);
	return true;
}

/* Chunk and lock are held, and nothing is on its way. */
static void finish(struct zoned_bio *zb, int error)
{
	let_go(zb);
	if (error)
		zb->fua = false;
	if (!wait_for_commit(zb))
		dm_bio_end(zb->bio, error);
}

enum dm_endio zoned_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct zoned_bio *zb = bio->private;
	struct zoned *z = zb->z;

	if (zb->stage == STAGE_READ) {
		zb->stage = STAGE_DONE;
		let_go(zb);
	} else if (zb->stage == STAGE_WRITE) {
		zoned_chunk_written(z->meta, &zb->c, zb->which, zb->block, zb->blocks, bio->error);
		let_go(zb);
		dm_group_commit_soon(z->commits, zoned_meta_dirty(z->meta) ? 0 : ZONED_COMMIT_NS);
		zb->fua &= !bio->error;
		if (wait_for_commit(zb))
			return DM_ENDIO_INCOMPLETE;
	}
	return DM_ENDIO_DONE;
}

/* --- reads -------------------------------------------------------------------------------------- */

struct zoned_part {
	struct dm_parts *parts;
	struct dm_bio bio;
	struct iovec iov[];
};

static void part_done(struct dm_bio *bio)
{
	struct zoned_part *part = container_of(bio, struct zoned_part, bio);
	struct dm_parts *parts = part->parts;
	int error = bio->error;

	g_free(part);
	dm_parts_end(parts, error);
}

/* A run of blocks that lies in one place. */
static void read_run(struct dm_parts *parts, size_t offset, size_t bytes, struct dm_dev *dev, uint64_t sector)
{
	struct dm_bio *whole = parts->whole;
	struct zoned_part *part = g_malloc(sizeof *part + (size_t)whole->iovcnt * sizeof(struct iovec));

	dm_parts_add(parts);
	part->parts = parts;
	part->bio = *whole;
	part->bio.dev = dev;
	part->bio.sector = sector;
	part->bio.sectors = bytes >> DM_SECTOR_SHIFT;
	part->bio.iov = part->iov;
	part->bio.iovcnt = dm_iov_slice(whole->iov, whole->iovcnt, offset, bytes, part->iov);
	part->bio.end = part_done;
	dm_submit(&part->bio);
}

static void read_runs(struct zoned_bio *zb)
{
	struct dm_parts *parts = g_new(struct dm_parts, 1);
	struct dm_bio *bio = zb->bio;
	uint32_t done = 0, blocks = zb->blocks;
	int failed = 0, error;

	dm_parts_init(parts, bio, 1);
	while (done < blocks) {
		size_t offset = (size_t)done * ZONED_BLOCK;
		struct dm_dev *dev;
		uint64_t sector;
		uint32_t n =
		    zoned_chunk_find(zb->z->meta, &zb->c, zb->block + done, blocks - done, &dev, &sector, &error);

		if (error)
			failed = error;
		else if (dev)
			read_run(parts, offset, (size_t)n * ZONED_BLOCK, dev, sector);
		else
			dm_iov_zero(bio->iov, bio->iovcnt, offset, (size_t)n * ZONED_BLOCK);
		done += n;
	}
	dm_parts_end(parts, failed); /* ours; the bio may be gone */
}

static void read_chunk(struct zoned_bio *zb)
{
	struct dm_bio *bio = zb->bio;
	struct dm_dev *dev;
	uint64_t sector;
	int error;
	uint32_t n = zoned_chunk_find(zb->z->meta, &zb->c, zb->block, zb->blocks, &dev, &sector, &error);

	if (n < zb->blocks) {
		zb->stage = STAGE_READ;
		read_runs(zb);
	} else if (error) {
		finish(zb, error);
	} else if (!dev) {
		dm_iov_zero(bio->iov, bio->iovcnt, 0, (size_t)n * ZONED_BLOCK);
		finish(zb, 0);
	} else {
		zb->stage = STAGE_READ;
		bio->dev = dev;
		bio->sector = sector;
		dm_submit(bio);
	}
}

/* --- writes --------------------------------------------------------------------------------------- */

/* Waits for a free zone, without the chunk: reclaim may want it. */
static void starve(struct zoned_bio *zb)
{
	struct zoned *z = zb->z;
	struct dm_bio *bio = zb->bio;
	int error;

	let_go(zb);
	zb->stage = STAGE_NEW;
	error = dm_hold_add(&z->starving, bio);
	if (error) {
		zb->stage = STAGE_DONE;
		dm_bio_end(bio, error);
	}
	zoned_reclaim_now(z);
}

static void write_chunk(struct zoned_bio *zb)
{
	struct zoned *z = zb->z;
	struct dm_bio *bio = zb->bio;
	uint32_t before[2] = {zb->c.zone[0], zb->c.zone[1]};
	int which = zoned_chunk_place(z->meta, &zb->c, zb->block, zb->blocks, &bio->dev, &bio->sector);

	if (which == -EAGAIN) {
		starve(zb);
		return;
	}
	if (which < 0) {
		finish(zb, which);
		return;
	}
	if (memcmp(before, zb->c.zone, sizeof before))
		zoned_reclaim_check(z);
	zb->which = which;
	zb->stage = STAGE_WRITE;
	bio->flags &= ~(unsigned)DM_FUA; /* the commit flushes the data */
	dm_submit(bio);
}

/* --- all of them ------------------------------------------------------------------------------------ */

/* The chunk is the bio's. */
static void begin(struct zoned_bio *zb, bool may_wait)
{
	struct zoned *z = zb->z;
	int error = dm_bio_stop(zb->bio);

	if (!error)
		error = zoned_chunk_get(z->meta, zb->chunk, may_wait, &zb->c);
	if (error == -EAGAIN) {
		dm_wq_queue(z->io_wq, &zb->work);
	} else if (error) {
		zb->c = (struct zoned_chunk){0};
		finish(zb, error);
	} else if (zb->bio->op == DM_READ) {
		read_chunk(zb);
	} else if (zb->bio->op == DM_WRITE) {
		write_chunk(zb);
	} else {
		zoned_chunk_forget(z->meta, &zb->c, zb->block, zb->blocks);
		dm_group_commit_soon(z->commits, zoned_meta_dirty(z->meta) ? 0 : ZONED_COMMIT_NS);
		finish(zb, 0);
	}
}

static void begin_waiting(struct dm_work *work)
{
	begin(container_of(work, struct zoned_bio, work), true);
}

static void granted(struct dm_block_claim *claim)
{
	begin(container_of(claim, struct zoned_bio, claim), false);
}

static void take_chunk(struct zoned_bio *zb)
{
	enum dm_block_mode mode = zb->bio->op == DM_READ ? DM_BLOCK_SHARED : DM_BLOCK_EXCLUSIVE;

	if (dm_block_lock(zb->z->lock, &zb->claim, zb->chunk, zb->chunk, mode, granted))
		granted(&zb->claim);
}

void zoned_feed(struct zoned *z)
{
	struct dm_bio_list bios;
	struct dm_bio *bio;

	dm_bio_list_init(&bios);
	dm_hold_take(&z->starving, &bios);
	while ((bio = dm_bio_list_pop(&bios)))
		take_chunk(bio->private);
}

enum dm_mapio zoned_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct zoned *z = ti->private;
	struct zoned_bio *zb = bio->private;
	uint64_t offset = dm_target_offset(ti, bio->sector);

	zb->z = z;
	zb->bio = bio;
	zb->stage = STAGE_DONE;
	atomic_store_explicit(&z->last_io_ns, dm_now_ns(), memory_order_relaxed);
	if (bio->op == DM_FLUSH) {
		zb->fua = true;
		wait_for_commit(zb);
		return DM_MAPIO_SUBMITTED;
	}
	if (offset / z->g.zone_sectors >= z->chunks || (offset | bio->sectors) % ZONED_BLOCK_SECTORS)
		return DM_MAPIO_KILL;
	zb->stage = STAGE_NEW;
	zb->c = (struct zoned_chunk){0};
	zb->work = (struct dm_work){.fn = begin_waiting};
	zb->fua = bio->op != DM_READ && bio->flags & DM_FUA;
	zb->chunk = (uint32_t)(offset / z->g.zone_sectors);
	zb->block = (uint32_t)(offset % z->g.zone_sectors / ZONED_BLOCK_SECTORS);
	zb->blocks = (uint32_t)(bio->sectors / ZONED_BLOCK_SECTORS);
	take_chunk(zb);
	return DM_MAPIO_SUBMITTED;
}
