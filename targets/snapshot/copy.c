/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pending exceptions: a chunk's way from the origin to the COW store.
 *
 * The steps are bios whose ends start the next one, so over files all of it happens in the thread of the write that
 * began it: read what the write does not cover, write the chunk (the write's own data with it), commit, end the write.
 * Chunks above SMALL_SECTORS are left to kcopyd and its bounded memory; the write follows the commit then.
 *
 * When the exception is durable:
 *   - the write that made it ends, writes to the snapshot that wait go to the COW device;
 *   - reads that still are on their way to the origin are waited for (draining);
 *   - writes to the origin are looked at again.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "snapshot.h"

#include <dmfs/container_of.h>

#define SMALL_SECTORS 128u
#define BUFFER_ALIGN 4096u

static void copied(struct pending *pe, int error);

void to_start_init(struct to_start *start)
{
	*start = (struct to_start){.tail = &start->copies};
	dm_bio_list_init(&start->again);
	dm_bio_list_init(&start->dead);
}

/* --- the copy ------------------------------------------------------------------------- */

static uint64_t chunk_sector(const struct pending *pe)
{
	return pe->commit.old_chunk << pe->snap->cow->shift;
}

static void send(struct pending *pe, enum dm_op op, struct dm_dev *dev, uint64_t sector, uint64_t sectors, int iovcnt,
		 void (*end)(struct dm_bio *))
{
	/* A persistent store's commit flushes anyway. */
	bool fua = op == DM_WRITE && pe->first && pe->snap->kind == SNAP_TRANSIENT;

	pe->io = (struct dm_bio){
		.op = op,
		.flags = fua ? pe->first->flags & DM_FUA : 0,
		.dev = dev,
		.sector = sector,
		.sectors = sectors,
		.iov = pe->iov,
		.iovcnt = iovcnt,
		.end = end,
		.private = pe,
	};
	dm_submit(&pe->io);
}

static void chunk_written(struct dm_bio *bio)
{
	copied(bio->private, bio->error);
}

static void write_chunk(struct pending *pe, uint64_t sectors, int iovcnt)
{
	send(pe, DM_WRITE, pe->snap->cow_dev, pe->commit.new_chunk << pe->snap->cow->shift, sectors, iovcnt, chunk_written);
}

/* What the first write does not have of the chunk is in the buffer: one write of both. */
static void write_around(struct pending *pe)
{
	int n = 0;

	if (pe->before)
		pe->iov[n++] = (struct iovec){pe->buffer, pe->before << DM_SECTOR_SHIFT};
	for (int i = 0; pe->first && i < pe->first->iovcnt; i++)
		pe->iov[n++] = pe->first->iov[i];
	if (pe->after < pe->sectors)
		pe->iov[n++] = (struct iovec){pe->buffer + (pe->after << DM_SECTOR_SHIFT),
					      (pe->sectors - pe->after) << DM_SECTOR_SHIFT};
	write_chunk(pe, pe->sectors, n);
}

static void origin_read(struct dm_bio *bio)
{
	if (bio->error)
		copied(bio->private, bio->error);
	else
		write_around(bio->private);
}

/* Reads what the first write does not have of the chunk: one range, or all of it if that lies in the middle. */
static void read_origin(struct pending *pe)
{
	struct snapshot *s = pe->snap;
	uint64_t from = pe->before ? 0 : pe->after, to = pe->before && pe->after == pe->sectors ? pe->before : pe->sectors;

	pe->buffer = aligned_alloc(BUFFER_ALIGN, (size_t)MAX(s->cow->chunk_sectors, BUFFER_ALIGN >> DM_SECTOR_SHIFT)
							 << DM_SECTOR_SHIFT);
	if (!pe->buffer) {
		copied(pe, -ENOMEM);
		return;
	}
	pe->iov[0] = (struct iovec){pe->buffer + (from << DM_SECTOR_SHIFT), (to - from) << DM_SECTOR_SHIFT};
	if (to == from) /* the end of the origin: all of its last chunk is being written */
		write_around(pe);
	else
		send(pe, DM_READ, s->origin_dev, chunk_sector(pe) + from, to - from, 1, origin_read);
}

static void kcopyd_done(int read_error, unsigned long write_errors, void *context)
{
	copied(context, read_error ? read_error : write_errors ? -EIO : 0);
}

static void start_copy(struct pending *pe)
{
	struct snapshot *s = pe->snap;
	uint64_t size = s->cow->chunk_sectors, start = chunk_sector(pe), end = s->origin_sectors;

	if (pe->first && pe->first->sectors == size) {
		pe->iov = g_memdup2(pe->first->iov, (gsize)pe->first->iovcnt * sizeof *pe->iov);
		write_chunk(pe, size, pe->first->iovcnt);
		return;
	}
	if (start + size > end) { /* its last chunk, perhaps not a whole one */
		end = dm_dev_sectors(s->origin_dev);
		size = start < end ? MIN(size, end - start) : 0;
	}
	pe->sectors = pe->before = pe->after = size;
	if (pe->first) {
		pe->before = pe->first->sector - start;
		pe->after = pe->before + pe->first->sectors;
	}
	if (!size || pe->after > size) {
		copied(pe, -EIO); /* the origin was cut short beneath us */
		return;
	}
	if (size <= SMALL_SECTORS) {
		pe->iov = g_new(struct iovec, (pe->first ? pe->first->iovcnt : 0) + 2);
		read_origin(pe);
		return;
	}
	pe->follows = true;
	dm_kcopyd_copy(s->cow->kcopyd, &(struct dm_region){s->origin_dev, start, size}, 1,
		       &(struct dm_region){s->cow_dev, pe->commit.new_chunk << s->cow->shift, size}, 0, kcopyd_done,
		       pe);
}

void run_parked(struct dm_bio_list *bios)
{
	struct dm_bio *bio;

	while ((bio = dm_bio_list_pop(bios))) {
		struct snap_bio *sb = bio->private;
		enum dm_mapio what;

		if (sb->origin) {
			if (origin_guard(sb->origin, bio))
				sb->go(bio);
			continue;
		}
		what = snapshot_map(sb->snap->ti, bio);
		if (what == DM_MAPIO_REMAPPED)
			dm_submit(bio);
		else if (what == DM_MAPIO_KILL)
			dm_bio_end(bio, -EIO);
	}
}

void to_start_run(struct to_start *start)
{
	struct pending *pe = start->copies, *next;

	for (; pe; pe = next) {
		next = pe->next_start;
		start_copy(pe);
	}
	dm_bio_list_end(&start->dead, -EINTR);
	run_parked(&start->again);
}

/* --- the end of it ------------------------------------------------------------------------- */

/* Who waited for it looks at the chunk again. */
static void pending_over(struct pending *pe)
{
	struct snapshot *s = pe->snap;
	struct dm_bio_list parked;

	dm_bio_list_init(&parked);
	dm_block_unlock(s->cow->copies, &pe->claim, &parked);
	free(pe->buffer);
	g_free(pe->iov);
	g_free(pe);
	dm_under_way_end(&s->users);
	/* What these bios are of stays until they have ended. */
	run_parked(&parked);
}

/* No read of the origin is under way any more that began before the exception was there. */
static void drained(struct dm_block_claim *drain)
{
	struct pending *pe = container_of(drain, struct pending, drain);
	struct snapshot *s = pe->snap;
	struct shard *shard = snap_shard(s, pe->commit.old_chunk);

	dm_block_unlock(s->cow->users, drain, NULL);
	pthread_mutex_lock(&shard->lock);
	dm_index_find(&shard->complete, pe->commit.old_chunk)->flag = false;
	pthread_mutex_unlock(&shard->lock);
	pending_over(pe);
}

static void add_exception(struct snapshot *s, const struct snap_commit *c)
{
	struct shard *shard = snap_shard(s, c->old_chunk);

	pthread_mutex_lock(&shard->lock);
	dm_index_add(&shard->complete, c->old_chunk, c->new_chunk);
	dm_index_find(&shard->complete, c->old_chunk)->flag = true;
	pthread_mutex_unlock(&shard->lock);
}

/* The write that the copy was made for. */
static void end_first(struct pending *pe, bool ok)
{
	struct dm_bio *first = pe->first;

	if (first && ok && pe->follows) {
		snap_remap(pe->snap, first, pe->commit.new_chunk);
		dm_submit(first);
	} else if (first) {
		dm_bio_end(first, ok ? 0 : -EIO);
	}
}

/* The exception is durable, or nothing became of it. */
static void committed(struct snap_commit *c, bool ok)
{
	struct pending *pe = (struct pending *)c;
	struct snapshot *s = pe->snap;
	uint64_t chunk = c->old_chunk;

	if (!ok)
		snap_invalidate(s, "Error reading/writing");
	ok = ok && snap_state(s) == SNAP_VALID;
	if (ok)
		add_exception(s, c);
	end_first(pe, ok);
	if (!ok)
		pending_over(pe);
	else if (dm_block_lock(s->cow->users, &pe->drain, chunk, chunk, DM_BLOCK_EXCLUSIVE, drained))
		drained(&pe->drain);
}

static void copied(struct pending *pe, int error)
{
	if (error) {
		/* A chunk that cannot be copied cannot be saved from the origin's writes. */
		dm_log_err_limit("snapshot: cannot copy chunk %" PRIu64 ": %s", pe->commit.old_chunk,
				 g_strerror(-error));
		snap_abort(pe->snap->cow->store, &pe->commit);
		committed(&pe->commit, false);
		return;
	}
	snap_commit(pe->snap->cow->store, &pe->commit);
}

/* --- the beginning --------------------------------------------------------------------------- */

int pending_claim(struct snapshot *s, uint64_t chunk, struct dm_bio *bio, struct pending **out)
{
	struct pending *pe = g_new0(struct pending, 1);
	int r = dm_block_lock_or_park(s->cow->copies, &pe->claim, chunk, bio);

	if (r) {
		g_free(pe);
		return r;
	}
	pe->snap = s;
	pe->commit.old_chunk = chunk;
	pe->commit.done = committed;
	*out = pe;
	return 0;
}

void pending_drop(struct pending *pe, struct to_start *start)
{
	dm_block_unlock(pe->snap->cow->copies, &pe->claim, &start->again);
	g_free(pe);
}

bool pending_begin(struct pending *pe, struct dm_bio *first, struct dm_bio *waits, struct to_start *start)
{
	struct snapshot *s = pe->snap;
	struct dm_block_claim unused;

	if (snap_alloc(s->cow->store, &pe->commit)) {
		pending_drop(pe, start);
		return false;
	}
	dm_under_way_add(&s->users, 1);
	pe->first = first;
	if (waits && dm_block_lock_or_park(s->cow->copies, &unused, pe->commit.old_chunk, waits) < 0)
		dm_bio_list_add(&start->dead, waits);
	*start->tail = pe;
	start->tail = &pe->next_start;
	return true;
}
