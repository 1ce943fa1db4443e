/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The ways of bios through snapshot and snapshot-merge.
 *
 * A read costs one lock of a shard, and one more at its end if it went to the origin.  Sectors count from the device's
 * begin, as in the kernel.
 */
#include "snapshot.h"

#include <dmfs/container_of.h>
#include <dmfs/later.h>

/* The bio reads the origin, or what stands for that: nobody waits to change the chunk before it is complete. */
static void use_chunk(struct snapshot *s, struct dm_bio *bio, uint64_t chunk)
{
	struct snap_bio *sb = bio->private;

	sb->uses = dm_block_trylock(s->cow->users, &sb->use, chunk, chunk, DM_BLOCK_SHARED, NULL);
	g_assert(sb->uses);
}

enum dm_endio snapshot_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct snapshot *s = ti->private;
	struct snap_bio *sb = bio->private;

	if (bio->op == DM_DISCARD && bio->error == -EOPNOTSUPP)
		bio->error = 0; /* only a hint to the device beneath */
	if (!sb->uses)
		return DM_ENDIO_DONE;
	sb->uses = false;
	dm_block_unlock(s->cow->users, &sb->use, NULL);
	/* The origin may have changed under a read that an invalid snapshot could not protect. */
	if (!s->merging && bio->op == DM_READ && snap_state(s) != SNAP_VALID)
		bio->error = -EIO;
	return DM_ENDIO_DONE;
}

/* --- snapshot -------------------------------------------------------------------------- */

void snap_remap(struct snapshot *s, struct dm_bio *bio, uint64_t new_chunk)
{
	bio->dev = s->cow_dev;
	bio->sector = (new_chunk << s->cow->shift) + (bio->sector & (s->cow->chunk_sectors - 1));
}

/* No room for a chunk that a write to the snapshot needs. */
static void overflow(struct snapshot *s)
{
	if (!s->overflow_option) {
		snap_invalidate(s, "Unable to allocate exception");
	} else if (!atomic_exchange(&s->overflowed, true)) {
		dm_log_err("snapshot: Snapshot overflowed: Unable to allocate exception.");
		dm_target_event(s->ti, NULL, NULL);
	}
}

/* True, and the bio goes to the COW device, if the chunk has an exception. */
static bool remap_complete(struct snapshot *s, struct dm_bio *bio, uint64_t chunk)
{
	struct dm_index_entry e;

	if (!snap_find(s, chunk, &e))
		return false;
	snap_remap(s, bio, e.value);
	return true;
}

/* A write to a chunk that had no exception a moment ago. */
static enum dm_mapio write_new(struct snapshot *s, struct dm_bio *bio, uint64_t chunk)
{
	enum dm_mapio what = DM_MAPIO_SUBMITTED;
	struct to_start start;
	struct pending *pe;
	int r = pending_claim(s, chunk, bio, &pe);

	if (r < 0)
		dm_bio_end(bio, r);
	if (r)
		return DM_MAPIO_SUBMITTED;
	to_start_init(&start);
	if (remap_complete(s, bio, chunk)) {
		pending_drop(pe, &start);
		what = DM_MAPIO_REMAPPED;
	} else if (!pending_begin(pe, bio, NULL, &start)) {
		overflow(s);
		what = DM_MAPIO_KILL;
	}
	to_start_run(&start);
	return what;
}

static void own(struct snapshot *s, struct dm_bio *bio)
{
	struct snap_bio *sb = bio->private;

	sb->bio = bio;
	sb->snap = s;
	sb->uses = false;
	sb->origin = NULL;
}

enum dm_mapio snapshot_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct snapshot *s = ti->private;
	/* The second bio of discard_passdown_origin, which no exception is made for. */
	bool passed_down = bio->op == DM_DISCARD && bio->nr;
	struct dm_index_entry *e;
	struct shard *shard;
	uint64_t chunk;

	own(s, bio);
	if (bio->op == DM_FLUSH) {
		bio->dev = s->cow_dev;
		return DM_MAPIO_REMAPPED;
	}
	if (snap_state(s) != SNAP_VALID || (bio->op != DM_READ && atomic_load(&s->overflowed)))
		return DM_MAPIO_KILL;

	chunk = bio->sector >> s->cow->shift;
	shard = snap_shard(s, chunk);
	pthread_mutex_lock(&shard->lock);
	e = dm_index_find(&shard->complete, chunk);
	if (e && !passed_down) {
		snap_remap(s, bio, e->value);
	} else if (bio->op == DM_READ || passed_down) {
		bio->dev = s->origin_dev;
		if (!e)
			use_chunk(s, bio, chunk);
	}
	pthread_mutex_unlock(&shard->lock);

	if (e || bio->op == DM_READ || passed_down) {
		/* Of whole chunks; parts of them are up to the COW device. */
		if (bio->op == DM_DISCARD && !passed_down && bio->sectors == s->cow->chunk_sectors)
			bio->op = DM_WRITE_ZEROES;
		return DM_MAPIO_REMAPPED;
	}
	if (bio->op != DM_DISCARD)
		return write_new(s, bio, chunk);
	dm_bio_end(bio, 0);
	return DM_MAPIO_SUBMITTED;
}

/* --- snapshot-merge ---------------------------------------------------------------------- */

static enum dm_mapio merge_origin(struct snapshot *s, struct dm_bio *bio)
{
	bio->dev = s->origin_dev;
	if (bio->op == DM_READ)
		return DM_MAPIO_REMAPPED;
	guard_init(s->origin, bio, dm_submit);
	return origin_guard(s->origin, bio) ? DM_MAPIO_REMAPPED : DM_MAPIO_SUBMITTED;
}

static enum dm_mapio merge_rw(struct snapshot *s, struct dm_bio *bio)
{
	return remap_complete(s, bio, bio->sector >> s->cow->shift) ? DM_MAPIO_REMAPPED : merge_origin(s, bio);
}

/* The chunk is not being copied back any more. */
static void merge_go_on(struct dm_block_claim *use)
{
	struct snap_bio *sb = container_of(use, struct snap_bio, use);
	struct dm_bio_list out;

	if (merge_rw(sb->snap, sb->bio) != DM_MAPIO_REMAPPED)
		return;
	dm_bio_list_init(&out);
	dm_bio_list_add(&out, sb->bio);
	dm_submit_async(&out);
}

/*
 * Chunks with an exception are still read and written on the COW device; the origin has the rest.  Writes to a chunk
 * that is being copied back wait.
 */
enum dm_mapio merge_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct snapshot *s = ti->private;
	struct snap_bio *sb = bio->private;
	uint64_t chunk;

	own(s, bio);
	if (bio->op == DM_FLUSH) {
		bio->dev = bio->nr ? s->cow_dev : s->origin_dev;
		return DM_MAPIO_REMAPPED;
	}
	if (bio->op == DM_DISCARD) { /* has no effect once merging */
		dm_bio_end(bio, 0);
		return DM_MAPIO_SUBMITTED;
	}
	if (snap_state(s) != SNAP_VALID)
		return merge_origin(s, bio);
	if (bio->op == DM_READ)
		return merge_rw(s, bio);
	chunk = bio->sector >> s->cow->shift;
	sb->uses = true;
	if (!dm_block_lock(s->cow->users, &sb->use, chunk, chunk, DM_BLOCK_SHARED, merge_go_on))
		return DM_MAPIO_SUBMITTED;
	return merge_rw(s, bio);
}
