/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Copying regions that are out of sync.
 *
 * Small regions next to each other are copied as one run.  A run claims its sectors; when the writes that were there
 * before have ended it is copied, by kcopyd, from a leg that has the data to all others.  If the copy of several
 * regions fails each is copied again by itself, so that a bad sector costs one region; the run's claim stands until all
 * of them are through.
 */
#include "mirror.h"

#include <dmfs/container_of.h>

#define RUN_SECTORS 2048u /* a run is one region or as many as fit in this */
#define MAX_RUNS 4u

struct run {
	struct mirror *ms;
	uint64_t first;
	unsigned count;
	unsigned source;
	unsigned next_leg; /* the next that is not copied to yet */
	unsigned group[DM_KCOPYD_MAX_REGIONS]; /* the legs being copied to */
	unsigned group_size;
	bool failed;
	bool later; /* it was not begun: the log has to be asked first */
	struct dm_block_claim claim;
	struct run *whole; /* it is one region of this, which has failed */
	unsigned parts;    /* such ones that are not through; the worker's */
	struct run *next;
};

static void copy_group(struct run *run);

/* --- the copy ---------------------------------------------------------------------- */

static void run_done(struct run *run)
{
	struct mirror *ms = run->ms;

	pthread_mutex_lock(&ms->lock);
	run->next = ms->done_runs;
	ms->done_runs = run;
	pthread_mutex_unlock(&ms->lock);
	mirror_wake(ms);
}

static void group_copied(int read_error, unsigned long write_errors, void *context)
{
	struct run *run = context;
	struct mirror *ms = run->ms;

	if (read_error) {
		dm_log_err_limit("mirror: unable to read leg %u during recovery: %s", run->source,
				 g_strerror(-read_error));
		mirror_fail_leg(ms, run->source, LEG_SYNC_ERROR);
	}
	for (unsigned i = 0; i < run->group_size; i++) {
		if (!(write_errors >> i & 1))
			continue;
		dm_log_err_limit("mirror: write error on leg %u during recovery", run->group[i]);
		mirror_fail_leg(ms, run->group[i], LEG_SYNC_ERROR);
	}
	if (read_error || write_errors)
		run->failed = true;
	if (run->failed || run->next_leg >= ms->nr_legs)
		run_done(run);
	else
		copy_group(run);
}

static void copy_group(struct run *run)
{
	struct mirror *ms = run->ms;
	uint64_t sector = run->first << ms->region_shift;
	uint64_t sectors = MIN((uint64_t)run->count << ms->region_shift, ms->ti->len - sector);
	struct dm_region from, dests[DM_KCOPYD_MAX_REGIONS];

	from = (struct dm_region){ms->legs[run->source].dev, ms->legs[run->source].offset + sector, sectors};
	run->group_size = 0;
	for (; run->next_leg < ms->nr_legs && run->group_size < DM_KCOPYD_MAX_REGIONS; run->next_leg++) {
		struct leg *leg = &ms->legs[run->next_leg];

		if (run->next_leg == run->source)
			continue;
		dests[run->group_size] = (struct dm_region){leg->dev, leg->offset + sector, sectors};
		run->group[run->group_size++] = run->next_leg;
	}
	if (!run->group_size) /* the source was the last */
		run_done(run);
	else
		dm_kcopyd_copy(ms->kcopyd, &from, run->group_size, dests, DM_KCOPYD_IGNORE_ERROR, group_copied, run);
}

/* A leg that has the region's data, or -1. */
static int find_source(struct mirror *ms, uint64_t nr)
{
	unsigned primary = atomic_load(&ms->primary);

	if (!dm_region_bit_test(ms->degraded, nr) || !leg_is_stale(&ms->legs[primary]))
		return (int)primary;
	for (unsigned i = 0; i < ms->nr_legs; i++)
		if (!leg_is_stale(&ms->legs[i]))
			return (int)i;
	return -1;
}

static void copy(struct run *run)
{
	int source = find_source(run->ms, run->first);

	run->later = run->ms->shared && !shared_in_touch(run->ms);
	run->failed = source < 0;
	run->next_leg = 0;
	if (source < 0 || run->later) {
		run_done(run);
		return;
	}
	run->source = (unsigned)source;
	copy_group(run);
}

static void run_quiesced(struct dm_block_claim *claim)
{
	copy(container_of(claim, struct run, claim));
}

/* --- making runs ------------------------------------------------------------------------ */

/* again: it is from the worker's own list, so it may have become another host's. */
static bool needs_copy(struct mirror *ms, uint64_t nr, bool again)
{
	struct shard *shard = mirror_shard(ms, nr);
	struct region *reg;
	bool copying;

	pthread_mutex_lock(&shard->lock);
	reg = region_get(ms, nr, false);
	copying = reg && reg->state == REGION_RECOVERING;
	pthread_mutex_unlock(&shard->lock);
	if (copying || !ms->shared)
		return !copying && !region_in_sync(ms, nr);
	if (ms->log->type->in_sync(ms->log, nr, true) == 0 && (!again || !dm_dirty_log_is_remote_recovering(ms->log, nr)))
		return true;
	if (!reg)
		ms->log->type->clear_region(ms->log, nr); /* a server that gave it to us for nothing has it back */
	return false;
}

/* The next region to copy; the worker's own list first. */
static bool next_region(struct mirror *ms, uint64_t *nr)
{
	for (;;) {
		bool again = ms->again->len;

		if (again) {
			*nr = g_array_index(ms->again, uint64_t, ms->again->len - 1);
			g_array_set_size(ms->again, ms->again->len - 1);
		} else if (!ms->log->type->get_resync_work(ms->log, nr)) {
			return false;
		}
		if (needs_copy(ms, *nr, again))
			return true;
		if (ms->shared) /* it may say so for ever */
			return false;
	}
}

static struct run *run_new(struct mirror *ms, uint64_t first)
{
	struct run *run = g_new0(struct run, 1);

	run->ms = ms;
	run->first = first;
	run->count = 1;
	return run;
}

static struct run *make_run(struct mirror *ms)
{
	uint64_t max = MAX(RUN_SECTORS >> ms->region_shift, 1), nr;
	struct run *run;

	if (!next_region(ms, &nr))
		return NULL;
	run = run_new(ms, nr);
	while (run->count < max && next_region(ms, &nr)) {
		if (nr != run->first + run->count ||
		    dm_region_bit_test(ms->degraded, nr) != dm_region_bit_test(ms->degraded, run->first)) {
			g_array_append_val(ms->again, nr);
			break;
		}
		run->count++;
	}
	return run;
}

static void quiesce(struct run *run)
{
	struct mirror *ms = run->ms;
	uint64_t first = run->first << ms->region_shift, sectors = (uint64_t)run->count << ms->region_shift;

	for (uint64_t nr = run->first; nr < run->first + run->count; nr++) {
		struct shard *shard = mirror_shard(ms, nr);

		pthread_mutex_lock(&shard->lock);
		region_get(ms, nr, true)->state = REGION_RECOVERING;
		pthread_mutex_unlock(&shard->lock);
	}
	if (dm_block_lock(ms->sectors, &run->claim, first, first + sectors - 1, DM_BLOCK_EXCLUSIVE, run_quiesced))
		copy(run);
}

void recovery_start(struct mirror *ms)
{
	for (;;) {
		struct run *run = NULL;
		bool may;

		pthread_mutex_lock(&ms->lock);
		may = ms->recovering && ms->runs < MAX_RUNS;
		if (may)
			ms->runs++;
		pthread_mutex_unlock(&ms->lock);
		if (may)
			run = make_run(ms);
		if (run) {
			quiesce(run);
			continue;
		}
		if (may) {
			pthread_mutex_lock(&ms->lock);
			if (!--ms->runs)
				pthread_cond_broadcast(&ms->recovery_stopped);
			pthread_mutex_unlock(&ms->lock);
		}
		return;
	}
}

void recovery_stop(struct mirror *ms)
{
	dm_block_begin();
	pthread_mutex_lock(&ms->lock);
	ms->recovering = false;
	while (ms->runs)
		pthread_cond_wait(&ms->recovery_stopped, &ms->lock);
	pthread_mutex_unlock(&ms->lock);
	dm_block_end();
}

/* --- the end of a run ---------------------------------------------------------------------- */

static void region_recovered(struct mirror *ms, uint64_t nr, bool ok)
{
	struct shard *shard = mirror_shard(ms, nr);
	struct region *reg;

	pthread_mutex_lock(&shard->lock);
	reg = region_get(ms, nr, false);
	if (reg->state == REGION_LOST) {
		if (!reg->pending)
			region_drop(ms, reg);
	} else if (ok) {
		ms->log->type->set_region_sync(ms->log, nr, true);
		dm_region_bit_clear(ms->degraded, nr);
		reg->state = REGION_DIRTY; /* as the log has it; the cleaner comes */
		reg->touched = false;
		reg->flush = atomic_load(&ms->flushes);
	} else {
		if (ms->shared)
			ms->log->type->set_region_sync(ms->log, nr, false);
		region_drop(ms, reg); /* the log has it as out of sync */
	}
	pthread_mutex_unlock(&shard->lock);
}

/* Each region of a failed run by itself; the run's own place counts for the first. */
static void split(struct run *run)
{
	struct mirror *ms = run->ms;

	pthread_mutex_lock(&ms->lock);
	ms->runs += run->count - 1;
	pthread_mutex_unlock(&ms->lock);
	run->parts = run->count;
	for (unsigned i = 0; i < run->count; i++) {
		struct run *one = run_new(ms, run->first + i);

		one->whole = run;
		copy(one);
	}
}

/* Its regions are the worker's to begin with again; what there is to say to the log is said then. */
static void put_off(struct run *run)
{
	struct mirror *ms = run->ms;

	for (uint64_t nr = run->first; nr < run->first + run->count; nr++) {
		struct shard *shard = mirror_shard(ms, nr);
		struct region *reg;

		pthread_mutex_lock(&shard->lock);
		reg = region_get(ms, nr, false);
		if (reg->pending)
			reg->state = REGION_LOST;
		else
			region_drop(ms, reg);
		pthread_mutex_unlock(&shard->lock);
		g_array_append_val(ms->again, nr);
	}
}

/* Lets the writes go on that wait for the run, or for what it is a part of. */
static void run_over(struct run *run)
{
	struct run *whole = run->whole ? run->whole : run;

	if (run->whole)
		g_free(run);
	if (whole->parts && --whole->parts)
		return;
	dm_block_unlock(whole->ms->sectors, &whole->claim, NULL);
	g_free(whole);
}

void runs_finish(struct mirror *ms, struct run *list)
{
	while (list) {
		struct run *run = list;

		list = run->next;
		if (run->failed && run->count > 1 && !run->later) {
			split(run);
			continue;
		}
		if (run->later)
			put_off(run);
		for (unsigned i = 0; i < run->count && !run->later; i++)
			region_recovered(ms, run->first + i, !run->failed);
		mirror_arm_cleaner(ms);
		run_over(run);
		pthread_mutex_lock(&ms->lock);
		if (!--ms->runs)
			pthread_cond_broadcast(&ms->recovery_stopped);
		pthread_mutex_unlock(&ms->lock);
	}
}
