/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Pending exceptions: a chunk's way from the origin to the COW store.
 *
 * The steps are bios whose ends start the next one, so over files all of it
 * happens in the thread of the write that began it: read what the write does
 * not cover, write the chunk (the write's own data with it), commit, end the
 * write.  Chunks above SMALL_SECTORS are left to kcopyd and its bounded memory; the write follows
 * the commit then.
 *
 * When the exception is durable:
 *   - the write that made it ends, writes to the snapshot that wait go to the COW device;
 *   - reads that still are on their way to the origin are waited for (draining);
 *   - writes to the origin are looked at again.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "snapshot.h"

#define SMALL_SECTORS 128u
#define BUFFER_ALIGN 4096u

static void copied(struct pending *pe, int error);

/* --- shards' lists --------------------------------------------------------------- */

struct pending *pending_find(struct shard *shard, uint64_t chunk)
{
	struct pending *pe = shard->pending;

	while (pe && pe->commit.old_chunk != chunk)
		pe = pe->next;
	return pe;
}

static void unlink_pending(struct pending *pe)
{
	*pe->prev = pe->next;
	if (pe->next)
		pe->next->prev = pe->prev;
}

/* --- what to do after the locks ----------------------------------------------------- */

void to_start_init(struct to_start *start)
{
	*start = (struct to_start){NULL, &start->copies, NULL};
}

/* --- the copy ------------------------------------------------------------------------- */

static uint64_t chunk_sector(const struct pending *pe)
{
	return pe->commit.old_chunk << pe->snap->cow->shift;
}

static void io_init(struct pending *pe, enum dm_op op, struct dm_dev *dev, uint64_t sector, uint64_t sectors, int iovcnt,
		    void (*end)(struct dm_bio *))
{
	pe->io = (struct dm_bio){
		.op = op,
		.dev = dev,
		.sector = sector,
		.sectors = sectors,
		.iov = pe->iov,
		.iovcnt = iovcnt,
		.end = end,
		.private = pe,
	};
}

static void chunk_written(struct dm_bio *bio)
{
	copied(bio->private, bio->error);
}

static void write_chunk(struct pending *pe, uint64_t sectors, int iovcnt)
{
	struct snapshot *s = pe->snap;

	io_init(pe, DM_WRITE, s->cow_dev, pe->commit.new_chunk << s->cow->shift, sectors, iovcnt, chunk_written);
	/* A persistent store's commit flushes anyway. */
	if (pe->first && s->kind == SNAP_TRANSIENT)
		pe->io.flags |= pe->first->flags & DM_FUA;
	dm_submit(&pe->io);
}

/* The whole chunk is in the buffer, but for what the first write has: one write of both. */
static void origin_read(struct dm_bio *bio)
{
	struct pending *pe = bio->private;
	struct dm_bio *first = pe->first;
	uint64_t sectors = pe->sectors;
	int n = 0;

	if (bio->error) {
		copied(pe, bio->error);
		return;
	}
	if (first) {
		uint64_t before = first->sector - chunk_sector(pe), after = before + first->sectors;

		if (before)
			pe->iov[n++] = (struct iovec){pe->buffer, before << DM_SECTOR_SHIFT};
		for (int i = 0; i < first->iovcnt; i++)
			pe->iov[n++] = first->iov[i];
		if (after < sectors)
			pe->iov[n++] = (struct iovec){pe->buffer + (after << DM_SECTOR_SHIFT),
						      (sectors - after) << DM_SECTOR_SHIFT};
	} else {
		pe->iov[n++] = (struct iovec){pe->buffer, sectors << DM_SECTOR_SHIFT};
	}
	write_chunk(pe, sectors, n);
}

/* Reads what the first write does not have of the chunk: one range, or all of it if that lies in the middle. */
static void read_origin(struct pending *pe)
{
	struct snapshot *s = pe->snap;
	uint64_t from = 0, to = pe->sectors, start = chunk_sector(pe);

	if (pe->first) {
		uint64_t before = pe->first->sector - start, after = before + pe->first->sectors;

		if (!before)
			from = after;
		else if (after == pe->sectors)
			to = before;
	}
	pe->buffer = aligned_alloc(BUFFER_ALIGN, (size_t)MAX(s->cow->chunk_sectors, BUFFER_ALIGN >> DM_SECTOR_SHIFT)
							 << DM_SECTOR_SHIFT);
	if (!pe->buffer) {
		copied(pe, -ENOMEM);
		return;
	}
	pe->iov[0] = (struct iovec){pe->buffer + (from << DM_SECTOR_SHIFT), (to - from) << DM_SECTOR_SHIFT};
	io_init(pe, DM_READ, s->origin_dev, start + from, to - from, 1, origin_read);
	if (to == from) /* the end of the origin: all of its last chunk is being written */
		origin_read(&pe->io);
	else
		dm_submit(&pe->io);
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
	if (!size || (pe->first && pe->first->sector + pe->first->sectors > start + size)) {
		copied(pe, -EIO); /* the origin was cut short beneath us */
		return;
	}
	if (size <= SMALL_SECTORS) {
		pe->sectors = size;
		pe->iov = g_new(struct iovec, (pe->first ? pe->first->iovcnt : 0) + 2);
		read_origin(pe);
		return;
	}
	if (pe->first) { /* follows when the chunk is there, before any that waits already */
		struct shard *shard = snap_shard(s, pe->commit.old_chunk);

		pthread_mutex_lock(&shard->lock);
		pe->first->next = pe->snapshot_bios.head;
		if (!pe->snapshot_bios.head)
			pe->snapshot_bios.tail = &pe->first->next;
		pe->snapshot_bios.head = pe->first;
		pthread_mutex_unlock(&shard->lock);
		pe->first = NULL;
	}
	dm_kcopyd_copy(s->cow->kcopyd, &(struct dm_region){s->origin_dev, start, size}, 1,
		       &(struct dm_region){s->cow_dev, pe->commit.new_chunk << s->cow->shift, size}, 0, kcopyd_done,
		       pe);
}

void to_start_run(struct to_start *start)
{
	struct pending *pe = start->copies, *next;

	for (; pe; pe = next) {
		next = pe->next_start;
		start_copy(pe);
	}
	while (start->drops) {
		struct snapshot *s = start->drops->data;

		start->drops = g_slist_delete_link(start->drops, start->drops);
		snap_mark_dropped(s);
	}
}

/* --- the end of it ------------------------------------------------------------------------- */

static void fail_bios(struct dm_bio *first, struct dm_bio_list *bios)
{
	struct dm_bio *bio;

	if (first)
		dm_bio_end(first, -EIO);
	while ((bio = dm_bio_list_pop(bios)))
		dm_bio_end(bio, -EIO);
}

static struct dm_bio_list take_list(struct dm_bio_list *from)
{
	struct dm_bio_list to = *from;

	dm_bio_list_init(from);
	return to;
}

void pending_end(struct pending *pe, struct dm_bio_list *origin_bios)
{
	struct snapshot *s = pe->snap;
	struct origin *o = s->origin;

	free(pe->buffer);
	g_free(pe->iov);
	g_free(pe);
	snap_release(s);
	/* Whoever sends these bios keeps the origin. */
	origin_retry(o, origin_bios);
}

void pending_drained(struct shard *shard, uint64_t chunk, struct dm_bio_list *origin_bios, struct pending **ended)
{
	struct pending *pe = pending_find(shard, chunk);

	*ended = NULL;
	if (!pe || !pe->draining || snap_chunk_tracked(shard, chunk))
		return;
	unlink_pending(pe);
	dm_bio_list_init(origin_bios);
	if (pe->origin_bios.head)
		*origin_bios = pe->origin_bios;
	*ended = pe;
}

/* The exception is durable, or nothing became of it. */
static void committed(struct snap_commit *c, bool ok)
{
	struct pending *pe = (struct pending *)c, *ended = NULL;
	struct snapshot *s = pe->snap;
	struct shard *shard = snap_shard(s, c->old_chunk);
	struct dm_bio_list snapshot_bios, origin_bios;
	struct dm_bio *first = pe->first, *bio;
	uint64_t new_chunk = c->new_chunk;
	struct to_start start;

	to_start_init(&start);
	if (!ok)
		snap_invalidate(s, "Error reading/writing", &start);
	ok = ok && snap_state(s) == SNAP_VALID;

	snap_hold(s); /* until the bios are on their way */
	pthread_mutex_lock(&shard->lock);
	if (ok)
		exceptions_add(&shard->complete, c->old_chunk, c->new_chunk);
	dm_bio_list_init(&snapshot_bios);
	if (pe->snapshot_bios.head)
		snapshot_bios = take_list(&pe->snapshot_bios);
	pe->draining = true;
	pe->first = NULL;
	/* pe may be gone from here on, unless it is ours to end */
	if (ok) {
		pending_drained(shard, c->old_chunk, &origin_bios, &ended);
	} else {
		unlink_pending(pe);
		dm_bio_list_init(&origin_bios);
		if (pe->origin_bios.head)
			origin_bios = pe->origin_bios;
		ended = pe;
	}
	pthread_mutex_unlock(&shard->lock);

	if (!ok) {
		fail_bios(first, &snapshot_bios);
	} else {
		if (first)
			dm_bio_end(first, 0);
		while ((bio = dm_bio_list_pop(&snapshot_bios))) {
			snap_remap(s, bio, new_chunk);
			dm_submit(bio);
		}
	}
	to_start_run(&start);
	if (ended)
		pending_end(ended, &origin_bios);
	snap_release(s);
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

struct pending *pending_new(struct snapshot *s, struct shard *shard, uint64_t chunk, struct to_start *start)
{
	struct pending *pe = g_new0(struct pending, 1);

	pe->commit.old_chunk = chunk;
	pe->commit.done = committed;
	if (snap_alloc(s->cow->store, &pe->commit)) {
		g_free(pe);
		return NULL;
	}
	snap_hold(s);
	pe->snap = s;
	dm_bio_list_init(&pe->origin_bios);
	dm_bio_list_init(&pe->snapshot_bios);
	pe->next = shard->pending;
	if (pe->next)
		pe->next->prev = &pe->next;
	pe->prev = &shard->pending;
	shard->pending = pe;
	*start->tail = pe;
	start->tail = &pe->next_start;
	return pe;
}
