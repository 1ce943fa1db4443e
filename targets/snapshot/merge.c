/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Merging: a snapshot's chunks go back into its origin, the last exceptions first, a batch of one metadata area at a
 * time.
 *
 *   1. Other snapshots of the origin save what they still share with it.
 *   2. The batch's chunks are claimed: writes to them wait from now on, those under way to the COW device are
 *      waited for.
 *   3. The chunks are copied, neighbours in one go, and the origin is flushed.
 *   4. The exceptions are taken off the store, durably, and out of memory: the
 *      origin has these chunks, and the writes that waited go there.
 *
 * Interrupted anywhere, the exceptions that are still on the store are merged again.  A merge is one work with a queue
 * of its own, which waits for each step; an error ends it, and I/O goes on as before.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "snapshot.h"

#include <dmfs/container_of.h>

#define BATCH_BYTES (4u << 20)
#define SMALL_SECTORS 128u
#define SLOW_NS 200000u
#define BATCH_RUNS 64u /* writes to a batch wait while so many places are written */

struct batch {
	struct snapshot *s;
	unsigned n, n_runs;
	struct snap_pair *pairs; /* by old chunk */
	struct run {
		uint64_t old_chunk, new_chunk, chunks;
		struct dm_bio guard; /* asks for the origin's sectors; never sent */
		struct snap_bio guard_bio;
		struct dm_block_claim claim;
		struct batch *batch;
	} *runs;
	struct dm_under_way steps; /* of what is being waited for */
	atomic_bool failed;
};

/* --- a batch --------------------------------------------------------------------------- */

static bool adjacent(const struct snap_pair *a, const struct snap_pair *b)
{
	return b->old_chunk == a->old_chunk + 1 && b->new_chunk == a->new_chunk + 1;
}

static int by_old_chunk(const void *a, const void *b)
{
	const struct snap_pair *x = a, *y = b;

	return (x->old_chunk > y->old_chunk) - (x->old_chunk < y->old_chunk);
}

/* Leaves the last pairs that are not too many places. */
static void limit_runs(struct batch *b)
{
	unsigned runs = 1, from = b->n - 1;

	for (; from > 0; from--)
		if (!adjacent(&b->pairs[from - 1], &b->pairs[from]) && ++runs > BATCH_RUNS)
			break;
	b->n -= from;
	memmove(b->pairs, b->pairs + from, b->n * sizeof *b->pairs);
}

static void find_runs(struct batch *b)
{
	qsort(b->pairs, b->n, sizeof *b->pairs, by_old_chunk);
	b->runs = g_new0(struct run, b->n);
	for (unsigned i = 0; i < b->n; i++) {
		if (i && adjacent(&b->pairs[i - 1], &b->pairs[i]))
			b->runs[b->n_runs - 1].chunks++;
		else
			b->runs[b->n_runs++] = (struct run){
				.old_chunk = b->pairs[i].old_chunk, .new_chunk = b->pairs[i].new_chunk, .chunks = 1,
				.batch = b};
	}
}

/* The store as it is read now must say what it said when it was opened. */
static bool known(struct snapshot *s, const struct snap_pair *p)
{
	struct dm_index_entry e;

	if (snap_find(s, p->old_chunk, &e) && e.value == p->new_chunk)
		return true;
	dm_log_err("snapshot: Corruption detected: exception for chunk %" PRIu64 " is on disk but not in memory",
		   p->old_chunk);
	return false;
}

/* How many there are, 0: none are left; or a negative errno. */
static int take_batch(struct batch *b)
{
	unsigned max = MAX(1u, BATCH_BYTES / (b->s->cow->chunk_sectors << DM_SECTOR_SHIFT));
	int n;

	b->pairs = g_new(struct snap_pair, max);
	n = snap_merge_last(b->s->cow->store, b->pairs, max);
	if (n <= 0)
		return n;
	b->n = (unsigned)n;
	limit_runs(b);
	for (unsigned i = 0; i < b->n; i++)
		if (!known(b->s, &b->pairs[i]))
			return -EIO;
	find_runs(b);
	return n;
}

/* --- its steps ----------------------------------------------------------------------------- */

static struct dm_region run_region(struct snapshot *s, const struct run *r)
{
	uint64_t sector = r->old_chunk << s->cow->shift, sectors = r->chunks << s->cow->shift;
	uint64_t end = dm_dev_sectors(s->origin_dev);

	return (struct dm_region){s->origin_dev, sector, sector < end ? MIN(sectors, end - sector) : 0};
}

static void guarded(struct dm_bio *bio)
{
	struct run *r = container_of(bio, struct run, guard);

	dm_under_way_end(&r->batch->steps);
}

/* What another snapshot misses by it could not be kept. */
static void guard_failed(struct dm_bio *bio)
{
	struct run *r = container_of(bio, struct run, guard);

	atomic_store(&r->batch->failed, true);
	guarded(bio);
}

/* The other snapshots need copies of their own before the origin changes. */
static void guard_runs(struct batch *b)
{
	struct snapshot *s = b->s;

	dm_under_way_add(&b->steps, b->n_runs);
	for (unsigned i = 0; i < b->n_runs; i++) {
		struct run *r = &b->runs[i];
		struct dm_region where = run_region(s, r);

		r->guard = (struct dm_bio){
			.op = DM_WRITE,
			.dev = s->origin_dev,
			.sector = where.sector,
			.sectors = where.sectors,
			.end = guard_failed,
			.private = &r->guard_bio,
		};
		guard_init(s->origin, &r->guard, guarded);
		if (origin_guard(s->origin, &r->guard))
			guarded(&r->guard);
	}
	dm_under_way_wait(&b->steps);
}

static void claim_granted(struct dm_block_claim *claim)
{
	dm_under_way_end(&container_of(claim, struct run, claim)->batch->steps);
}

static void claim_runs(struct batch *b)
{
	struct snapshot *s = b->s;

	dm_under_way_add(&b->steps, b->n_runs);
	for (unsigned i = 0; i < b->n_runs; i++) {
		struct run *r = &b->runs[i];

		if (dm_block_lock(s->cow->users, &r->claim, r->old_chunk, r->old_chunk + r->chunks - 1, DM_BLOCK_EXCLUSIVE,
				  claim_granted))
			dm_under_way_end(&b->steps);
	}
	dm_under_way_wait(&b->steps);
}

/* Writes that waited for the batch go where its chunks are now. */
static void release_runs(struct batch *b)
{
	for (unsigned i = 0; i < b->n_runs; i++)
		dm_block_unlock(b->s->cow->users, &b->runs[i].claim, NULL);
}

static bool shut_down(const char *why)
{
	dm_log_err("snapshot: %s: shutting down merge.", why);
	return false;
}

static void run_copied(int read_error, unsigned long write_errors, void *context)
{
	struct batch *b = context;

	if (read_error || write_errors) {
		shut_down(read_error ? "Read error" : "Write error");
		atomic_store(&b->failed, true);
	}
	dm_under_way_end(&b->steps);
}

/* Copies a few sectors right here; true if that was quick. */
static bool copy_here(struct batch *b, const struct dm_region *from, const struct dm_region *to, void *buffer)
{
	uint64_t began = dm_now_ns();
	int read_error = dm_read_sync(from->dev, from->sector, from->sectors, buffer, DM_BACKGROUND), write_error = 0;

	if (!read_error)
		write_error = dm_write_sync(to->dev, to->sector, to->sectors, buffer, DM_BACKGROUND);
	run_copied(read_error, write_error ? 1 : 0, b);
	return dm_now_ns() - began < SLOW_NS;
}

/*
 * Small runs over devices that answer at once are copied by this thread: to hand each over would cost more than
 * the copy.  As soon as one takes its time, kcopyd has the others under way together.
 */
static bool copy_runs(struct batch *b)
{
	struct snapshot *s = b->s;
	g_autofree char *buffer = g_malloc(SMALL_SECTORS << DM_SECTOR_SHIFT);
	bool quick = true;

	dm_under_way_add(&b->steps, b->n_runs);
	for (unsigned i = 0; i < b->n_runs; i++) {
		struct run *r = &b->runs[i];
		struct dm_region to = run_region(s, r);
		struct dm_region from = {s->cow_dev, r->new_chunk << s->cow->shift, to.sectors};

		if (quick && to.sectors <= SMALL_SECTORS)
			quick = copy_here(b, &from, &to, buffer);
		else
			dm_kcopyd_copy(s->cow->kcopyd, &from, 1, &to, 0, run_copied, b);
	}
	dm_under_way_wait(&b->steps);
	return !atomic_load(&b->failed);
}

static void forget(struct batch *b)
{
	for (unsigned i = 0; i < b->n; i++) {
		struct shard *shard = snap_shard(b->s, b->pairs[i].old_chunk);

		pthread_mutex_lock(&shard->lock);
		dm_index_remove(&shard->complete, b->pairs[i].old_chunk);
		pthread_mutex_unlock(&shard->lock);
	}
}

static bool merge_batch(struct batch *b)
{
	struct snapshot *s = b->s;
	bool ok;

	guard_runs(b);
	claim_runs(b);
	ok = !atomic_load(&b->failed) && copy_runs(b);
	if (ok && dm_flush_sync(s->origin_dev))
		ok = shut_down("Flush after merge failed");
	if (ok && snap_merge_forget(s->cow->store, b->n))
		ok = shut_down("Write error in exception store");
	if (ok)
		forget(b);
	release_runs(b);
	return ok;
}

/* --- the merge -------------------------------------------------------------------------------- */

static void merge_run(struct dm_work *work)
{
	struct snapshot *s = container_of(work, struct snapshot, merge_work);
	int r = 1;

	if (snap_state(s) != SNAP_VALID || !s->cow) {
		dm_log_err("snapshot: Snapshot is invalid: can't merge.");
		r = 0;
	}
	while (r > 0 && !atomic_load(&s->merge_stop)) {
		struct batch b = {.s = s};

		dm_under_way_init(&b.steps);
		r = take_batch(&b);
		if (r > 0 && !merge_batch(&b))
			r = -EIO;
		g_free(b.pairs);
		g_free(b.runs);
		dm_under_way_destroy(&b.steps);
		if (r < 0) {
			dm_log_err("snapshot: merge failed: %s", g_strerror(-r));
			atomic_store(&s->merge_failed, true);
		}
		if (r <= 0)
			dm_target_event(s->ti, NULL, NULL); /* it is over, one way or the other */
	}
	atomic_store(&s->merge_running, false);
}

void merge_init(struct snapshot *s)
{
	s->merge_work.fn = merge_run;
	if (s->merging)
		s->merge_wq = dm_wq_new("snapshot-merge", 1);
}

void merge_start(struct snapshot *s)
{
	atomic_store(&s->merge_stop, false);
	if (!atomic_exchange(&s->merge_running, true))
		dm_wq_queue(s->merge_wq, &s->merge_work);
}

void merge_stop(struct snapshot *s)
{
	atomic_store(&s->merge_stop, true);
	dm_wq_flush(s->merge_wq);
}
