/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Regions of work: copying those that are out of sync.
 *
 * Small regions next to each other are copied as one run.  A run claims its sectors; when the writes that were there
 * before have ended the target copies it from where the data is to all other copies.  If the copy of several regions
 * fails each is copied again by itself, so that a bad sector costs one region; the run's claim stands until all of them
 * are through.
 */
#include "regions.h"

#include <dmfs/container_of.h>

#define RUN_SECTORS 2048u /* a run is one region or as many as fit in this */
#define MAX_RUNS 4u

struct run {
	struct dm_region_run regions; /* first */
	struct dm_regions *rs;
	bool failed;
	bool later; /* it was not begun: the log has to be asked first */
	struct dm_block_claim claim;
	struct run *whole; /* it is one region of this, which has failed */
	unsigned parts;    /* such ones that are not through; the worker's */
	struct run *next;
};

/* --- the copy ---------------------------------------------------------------------- */

static void run_done(struct run *run)
{
	struct dm_regions *rs = run->rs;

	pthread_mutex_lock(&rs->lock);
	run->next = rs->done_runs;
	rs->done_runs = run;
	regions_wake(rs);
	pthread_mutex_unlock(&rs->lock);
}

void dm_regions_copied(struct dm_regions *rs, struct dm_region_run *regions, bool ok)
{
	struct run *run = (struct run *)regions;

	run->failed = !ok;
	run_done(run);
}

static void copy(struct run *run)
{
	struct dm_regions *rs = run->rs;
	struct dm_region_run *r = &run->regions;

	r->sector = r->first << rs->shift;
	r->sectors = MIN((uint64_t)r->count << rs->shift, rs->ti->len - r->sector);
	run->later = rs->shared && !shared_in_touch(rs);
	if (run->later)
		run_done(run);
	else
		rs->ops->copy(rs->context, r);
}

static void run_quiesced(struct dm_block_claim *claim)
{
	copy(container_of(claim, struct run, claim));
}

/* --- making runs ------------------------------------------------------------------------ */

/* again: it is from the worker's own list, so it may have become another host's. */
static bool needs_copy(struct dm_regions *rs, uint64_t nr, bool again)
{
	struct dm_region_work *reg = regions_lock(rs, nr);
	bool copying = reg && reg->state == REGION_RECOVERING;

	regions_unlock(rs, nr);
	if (copying || !rs->shared)
		return !copying && !region_in_sync(rs, nr);
	if (rs->log->type->in_sync(rs->log, nr, true) == 0 && (!again || !dm_dirty_log_is_remote_recovering(rs->log, nr)))
		return true;
	if (!reg)
		rs->log->type->clear_region(rs->log, nr); /* a server that gave it to us for nothing has it back */
	return false;
}

/* The next region to copy; the worker's own list first. */
static bool next_region(struct dm_regions *rs, uint64_t *nr)
{
	for (;;) {
		bool again = rs->again->len;

		if (again) {
			*nr = g_array_index(rs->again, uint64_t, rs->again->len - 1);
			g_array_set_size(rs->again, rs->again->len - 1);
		} else if (!rs->log->type->get_resync_work(rs->log, nr)) {
			return false;
		}
		if (needs_copy(rs, *nr, again))
			return true;
		if (rs->shared) /* it may say so for ever */
			return false;
	}
}

static struct run *run_new(struct dm_regions *rs, uint64_t first)
{
	struct run *run = g_new0(struct run, 1);

	run->rs = rs;
	run->regions.first = first;
	run->regions.count = 1;
	return run;
}

static struct run *make_run(struct dm_regions *rs)
{
	uint64_t max = MAX(RUN_SECTORS >> rs->shift, 1), nr;
	struct dm_region_run *r;
	struct run *run;

	if (!next_region(rs, &nr))
		return NULL;
	run = run_new(rs, nr);
	for (r = &run->regions; r->count < max && next_region(rs, &nr); r->count++) {
		if (nr != r->first + r->count ||
		    dm_region_bit_test(rs->degraded, nr) != dm_region_bit_test(rs->degraded, r->first)) {
			g_array_append_val(rs->again, nr);
			break;
		}
	}
	return run;
}

static void quiesce(struct run *run)
{
	struct dm_regions *rs = run->rs;
	uint64_t first = run->regions.first, end = first + run->regions.count;

	for (uint64_t nr = first; nr < end; nr++) {
		struct dm_region_work *reg = regions_lock(rs, nr);

		(reg ? reg : regions_make(rs, nr))->state = REGION_RECOVERING;
		regions_unlock(rs, nr);
	}
	if (dm_block_lock(rs->sectors, &run->claim, first << rs->shift, (end << rs->shift) - 1, DM_BLOCK_EXCLUSIVE,
			  run_quiesced))
		copy(run);
}

void regions_recover(struct dm_regions *rs)
{
	while (dm_under_way_try(&rs->runs, MAX_RUNS)) {
		struct run *run = atomic_load(&rs->recovering) ? make_run(rs) : NULL;

		if (!run) {
			dm_under_way_end(&rs->runs);
			return;
		}
		quiesce(run);
	}
}

/* --- the end of a run ---------------------------------------------------------------------- */

static void region_recovered(struct dm_regions *rs, uint64_t nr, bool ok)
{
	struct dm_region_work *reg = regions_lock(rs, nr);

	if (reg->state == REGION_LOST) {
		if (!reg->pending)
			regions_drop(rs, reg);
	} else if (ok) {
		rs->log->type->set_region_sync(rs->log, nr, true);
		dm_region_bit_clear(rs->degraded, nr);
		reg->state = REGION_DIRTY; /* as the log has it; the cleaner comes */
		reg->touched = false;
		reg->flush = atomic_load(&rs->flushes);
	} else {
		if (rs->shared)
			rs->log->type->set_region_sync(rs->log, nr, false);
		regions_drop(rs, reg); /* the log has it as out of sync */
	}
	regions_unlock(rs, nr);
}

/* Each region of a failed run by itself; the run's own place counts for the first. */
static void split(struct run *run)
{
	run->parts = run->regions.count;
	dm_under_way_add(&run->rs->runs, run->parts - 1);
	for (unsigned i = 0; i < run->regions.count; i++) {
		struct run *one = run_new(run->rs, run->regions.first + i);

		one->whole = run;
		copy(one);
	}
}

/* The region is the worker's to begin with again; what there is to say to the log is said then. */
static void put_off(struct dm_regions *rs, uint64_t nr)
{
	struct dm_region_work *reg = regions_lock(rs, nr);

	if (reg->pending)
		reg->state = REGION_LOST;
	else
		regions_drop(rs, reg);
	regions_unlock(rs, nr);
	g_array_append_val(rs->again, nr);
}

/* Lets the writes go on that wait for the run, or for what it is a part of. */
static void run_over(struct run *run)
{
	struct run *whole = run->whole ? run->whole : run;

	if (run->whole)
		g_free(run);
	if (whole->parts && --whole->parts)
		return;
	dm_block_unlock(whole->rs->sectors, &whole->claim, NULL);
	g_free(whole);
}

void regions_runs_finish(struct dm_regions *rs, struct run *list)
{
	while (list) {
		struct run *run = list;
		const struct dm_region_run *r = &run->regions;

		list = run->next;
		if (run->failed && r->count > 1 && !run->later) {
			split(run);
			continue;
		}
		for (uint64_t nr = r->first; nr < r->first + r->count; nr++) {
			if (run->later)
				put_off(rs, nr);
			else
				region_recovered(rs, nr, !run->failed);
		}
		regions_arm_cleaner(rs);
		run_over(run);
		dm_under_way_end(&rs->runs);
	}
}
