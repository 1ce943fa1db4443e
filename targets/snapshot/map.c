/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The ways of bios through snapshot and snapshot-merge.
 *
 * A read costs one lock of a shard, and one more at its end if it went to the
 * origin.  Sectors count from the device's begin, as in the kernel.
 */
#include "snapshot.h"

/* --- tracking ----------------------------------------------------------------------- */

void snap_track(struct shard *shard, struct dm_bio *bio, uint64_t chunk)
{
	struct tracked *t = &((struct snap_bio *)bio->private)->tracked;

	t->chunk = chunk;
	t->on = true;
	t->next = shard->tracked;
	if (t->next)
		t->next->prev = &t->next;
	t->prev = &shard->tracked;
	shard->tracked = t;
}

bool snap_chunk_tracked(struct shard *shard, uint64_t chunk)
{
	struct tracked *t = shard->tracked;

	while (t && t->chunk != chunk)
		t = t->next;
	return t;
}

static void untrack(struct tracked *t)
{
	*t->prev = t->next;
	if (t->next)
		t->next->prev = t->prev;
	t->on = false;
}

/* A write to a chunk that a merge waits for has ended. */
static void merge_drained(struct snapshot *s)
{
	pthread_mutex_lock(&s->lock);
	if (--s->merge_draining == 0)
		pthread_cond_signal(&s->merge_wake);
	pthread_mutex_unlock(&s->lock);
}

enum dm_endio snapshot_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct snapshot *s = ti->private;
	struct tracked *t = &((struct snap_bio *)bio->private)->tracked;
	struct pending *ended = NULL;
	struct dm_bio_list origin_bios;
	struct exception *e;
	struct shard *shard;
	bool drained = false;

	if (bio->op == DM_DISCARD && bio->error == -EOPNOTSUPP)
		bio->error = 0; /* only a hint to the device beneath */
	if (!t->on)
		return DM_ENDIO_DONE;
	shard = snap_shard(s, t->chunk);
	pthread_mutex_lock(&shard->lock);
	untrack(t);
	if (s->merging) {
		e = exceptions_find(&shard->complete, t->chunk);
		drained = e && e->merging && !snap_chunk_tracked(shard, t->chunk);
	} else if (shard->pending) {
		pending_drained(shard, t->chunk, &origin_bios, &ended);
	}
	pthread_mutex_unlock(&shard->lock);
	if (drained)
		merge_drained(s);
	if (ended)
		pending_end(ended, &origin_bios);
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
static void overflow(struct snapshot *s, struct to_start *start)
{
	if (!s->overflow_option) {
		snap_invalidate(s, "Unable to allocate exception", start);
	} else if (!atomic_exchange(&s->overflowed, true)) {
		dm_log_err("snapshot: Snapshot overflowed: Unable to allocate exception.");
		dm_target_event(s->ti, NULL, NULL);
	}
}

/* A write to a chunk without an exception; shard->lock held, and given up. */
static enum dm_mapio write_new(struct snapshot *s, struct shard *shard, struct dm_bio *bio, uint64_t chunk)
{
	struct pending *pe = pending_find(shard, chunk);
	struct to_start start;

	to_start_init(&start);
	if (pe) {
		dm_bio_list_add(&pe->snapshot_bios, bio);
		pthread_mutex_unlock(&shard->lock);
		return DM_MAPIO_SUBMITTED;
	}
	pe = pending_new(s, shard, chunk, &start);
	if (pe)
		pe->first = bio;
	pthread_mutex_unlock(&shard->lock);
	if (!pe)
		overflow(s, &start);
	to_start_run(&start);
	return pe ? DM_MAPIO_SUBMITTED : DM_MAPIO_KILL;
}

/* Whole chunks with an exception become zeroes; parts of them are up to the COW device; the rest stays. */
static enum dm_mapio discard(struct snapshot *s, struct shard *shard, struct dm_bio *bio, uint64_t chunk)
{
	struct exception *e = exceptions_find(&shard->complete, chunk);

	if (bio->nr) { /* the second bio of discard_passdown_origin, which no exception is made for */
		bio->dev = s->origin_dev;
		snap_track(shard, bio, chunk);
		pthread_mutex_unlock(&shard->lock);
		return DM_MAPIO_REMAPPED;
	}
	if (e)
		snap_remap(s, bio, e->new_chunk);
	pthread_mutex_unlock(&shard->lock);
	if (!e) {
		dm_bio_end(bio, 0);
		return DM_MAPIO_SUBMITTED;
	}
	if (bio->sectors == s->cow->chunk_sectors)
		bio->op = DM_WRITE_ZEROES;
	return DM_MAPIO_REMAPPED;
}

enum dm_mapio snapshot_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct snapshot *s = ti->private;
	struct exception *e;
	struct shard *shard;
	uint64_t chunk;

	((struct snap_bio *)bio->private)->tracked.on = false;
	if (bio->op == DM_FLUSH) {
		bio->dev = s->cow_dev;
		return DM_MAPIO_REMAPPED;
	}
	if (snap_state(s) != SNAP_VALID || (bio->op != DM_READ && atomic_load(&s->overflowed)))
		return DM_MAPIO_KILL;

	chunk = bio->sector >> s->cow->shift;
	shard = snap_shard(s, chunk);
	pthread_mutex_lock(&shard->lock);
	if (bio->op == DM_DISCARD)
		return discard(s, shard, bio, chunk);
	e = exceptions_find(&shard->complete, chunk);
	if (e) {
		snap_remap(s, bio, e->new_chunk);
	} else if (bio->op == DM_READ) {
		bio->dev = s->origin_dev;
		snap_track(shard, bio, chunk);
	} else {
		return write_new(s, shard, bio, chunk);
	}
	pthread_mutex_unlock(&shard->lock);
	return DM_MAPIO_REMAPPED;
}

/* --- snapshot-merge ---------------------------------------------------------------------- */

static enum dm_mapio merge_origin(struct snapshot *s, struct dm_bio *bio)
{
	bio->dev = s->origin_dev;
	if (bio->op == DM_READ)
		return DM_MAPIO_REMAPPED;
	guard_init(bio, dm_submit);
	return origin_guard(s->origin, bio) ? DM_MAPIO_REMAPPED : DM_MAPIO_SUBMITTED;
}

/*
 * Chunks with an exception are still read and written on the COW device; the
 * origin has the rest.  Writes to a chunk that is being copied back wait.
 */
enum dm_mapio merge_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct snapshot *s = ti->private;
	struct exception *e;
	struct shard *shard;
	uint64_t chunk;

	((struct snap_bio *)bio->private)->tracked.on = false;
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

	chunk = bio->sector >> s->cow->shift;
	shard = snap_shard(s, chunk);
	pthread_mutex_lock(&shard->lock);
	e = exceptions_find(&shard->complete, chunk);
	if (e && e->merging && bio->op != DM_READ) {
		pthread_mutex_lock(&s->lock);
		dm_bio_list_add(&s->wait_merge, bio);
		pthread_mutex_unlock(&s->lock);
		pthread_mutex_unlock(&shard->lock);
		return DM_MAPIO_SUBMITTED;
	}
	if (e) {
		snap_remap(s, bio, e->new_chunk);
		if (bio->op != DM_READ)
			snap_track(shard, bio, chunk);
	}
	pthread_mutex_unlock(&shard->lock);
	return e ? DM_MAPIO_REMAPPED : merge_origin(s, bio);
}
