/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The regions somebody works on, and their way from clean to dirty and back.
 *
 * Clean to dirty costs a write and a flush of the log, so marks are collected: while the worker is at it, the regions
 * that come meanwhile are the next turn's.  Dirty to clean costs a flush of all legs and a write of the log, so it
 * waits until nothing has written to a region for one to two periods of the cleaner, and then is done for all such
 * regions together.  After a crash a region that was dirty for no reason is copied once more, which hurts nobody.
 *
 * While a leg is stale nothing is cleaned: what the leg missed is in the log as dirty, and so stays what it was given
 * but may not have on its disk.
 */
#include "mirror.h"

#include <dmfs/container_of.h>

#define CLEANER_PERIOD_NS 1000000000u

/* --- the hash ---------------------------------------------------------------------- */

struct region *region_make(struct mirror *ms, uint64_t nr, enum region_state state)
{
	struct region *reg = g_new0(struct region, 1);

	reg->nr = nr;
	reg->state = state;
	dm_bio_list_init(&reg->marking);
	g_hash_table_add(mirror_shard(ms, nr)->regions, reg);
	if (state == REGION_DIRTY)
		mirror_arm_cleaner(ms);
	return reg;
}

struct region *region_get(struct mirror *ms, uint64_t nr, bool make)
{
	struct region *reg = g_hash_table_lookup(mirror_shard(ms, nr)->regions, &nr);
	enum region_state state = ms->log->type->in_memory ? REGION_DIRTY : REGION_MARKING;

	if (reg || !make)
		return reg;
	return region_make(ms, nr, region_in_sync(ms, nr) ? state : REGION_NOSYNC);
}

void region_drop(struct mirror *ms, struct region *reg)
{
	g_hash_table_remove(mirror_shard(ms, reg->nr)->regions, reg);
}

void regions_each(struct mirror *ms, region_fn fn, void *data)
{
	for (unsigned i = 0; i < SHARDS; i++) {
		GHashTableIter iter;
		gpointer reg;

		pthread_mutex_lock(&ms->shards[i].lock);
		g_hash_table_iter_init(&iter, ms->shards[i].regions);
		while (g_hash_table_iter_next(&iter, &reg, NULL))
			if (fn(ms, reg, data))
				g_hash_table_iter_remove(&iter);
		pthread_mutex_unlock(&ms->shards[i].lock);
	}
}

/* --- clean to dirty ------------------------------------------------------------------- */

void region_begin_dirty(struct mirror *ms, struct region *reg)
{
	pthread_mutex_lock(&ms->lock);
	reg->next_mark = ms->to_mark;
	ms->to_mark = reg;
	pthread_mutex_unlock(&ms->lock);
	mirror_wake(ms);
}

/* The log could not be written: the region is as it was, its writes have failed. */
static void fail_marking(struct dm_bio_list *list)
{
	struct dm_bio *bio;

	while ((bio = dm_bio_list_pop(list))) {
		struct mirror_bio *b = bio->private;

		b->log_failed = true;
		mirror_failed(b);
	}
}

static void marked(struct mirror *ms, struct region *reg, bool ok)
{
	struct shard *shard = mirror_shard(ms, reg->nr);
	struct dm_bio_list go;

	dm_bio_list_init(&go);
	pthread_mutex_lock(&shard->lock);
	dm_bio_list_take(&reg->marking, &go);
	if (ok) {
		reg->state = REGION_DIRTY;
		reg->touched = true;
	} else {
		region_drop(ms, reg);
	}
	pthread_mutex_unlock(&shard->lock);
	if (ok)
		mirror_redispatch(&go);
	else
		fail_marking(&go);
}

/* With handle_errors a log that failed once is not asked again: somebody has to look at it first. */
static bool log_marks(struct mirror *ms, struct region *list)
{
	if (ms->handle_errors && atomic_load(&ms->log_failure))
		return false;
	for (struct region *reg = list; reg; reg = reg->next_mark)
		ms->log->type->mark_region(ms->log, reg->nr);
	if (!ms->log->type->flush(ms->log))
		return true;
	atomic_store(&ms->log_failure, true);
	if (!ms->handle_errors)
		return true;
	for (struct region *reg = list; reg; reg = reg->next_mark)
		ms->log->type->clear_region(ms->log, reg->nr);
	return false;
}

void regions_mark(struct mirror *ms, struct region *list)
{
	bool ok;

	if (!list)
		return;
	ok = log_marks(ms, list);
	while (list) {
		struct region *reg = list;

		list = reg->next_mark;
		marked(ms, reg, ok);
	}
	mirror_arm_cleaner(ms);
}

/* --- dirty to clean --------------------------------------------------------------------- */

void mirror_arm_cleaner(struct mirror *ms)
{
	if (atomic_load_explicit(&ms->timer_armed, memory_order_relaxed) || atomic_load(&ms->stopped))
		return;
	if (!atomic_exchange(&ms->timer_armed, true))
		dm_timer_arm(&ms->timer, dm_now_ns() + CLEANER_PERIOD_NS);
}

void mirror_flushed(struct mirror *ms, uint64_t flush)
{
	uint64_t last = atomic_load(&ms->flushed);

	while (last < flush && !atomic_compare_exchange_weak(&ms->flushed, &last, flush))
		;
	if (ms->log->type->in_memory)
		mirror_arm_cleaner(ms);
}

void mirror_clean_timer(struct dm_timer *t)
{
	struct mirror *ms = container_of(t, struct mirror, timer);

	dm_wq_queue(ms->io_wq, &ms->cleaner);
}

/* What the cleaner looks for, and found. */
struct found {
	bool all; /* even those written to a moment ago */
	GArray *idle;  /* of uint64_t: regions nobody writes to */
	bool unflushed; /* no flush has reached all legs since they were written to */
	bool more;     /* it is worth looking again */
};

static bool look_at(struct mirror *ms, struct region *reg, void *data)
{
	struct found *f = data;
	bool idle = !reg->pending && (f->all || !reg->touched);
	bool flushed;

	if (reg->state != REGION_DIRTY)
		return false;
	if (reg->touched || reg->pending)
		reg->flush = atomic_load(&ms->flushes);
	flushed = atomic_load(&ms->flushed) > reg->flush;
	reg->touched = reg->pending > 0; /* those end after this */
	if (!idle || flushed || !ms->log->type->in_memory)
		f->more = true;
	if (!idle || (!flushed && !f->all && ms->log->type->in_memory)) /* in memory nothing is won by flushing */
		return false;
	g_array_append_val(f->idle, reg->nr);
	f->unflushed |= !flushed;
	return false;
}

static void look_around(struct mirror *ms, bool all, struct found *f)
{
	*f = (struct found){.all = all, .idle = g_array_new(FALSE, FALSE, sizeof(uint64_t))};
	regions_each(ms, look_at, f);
}

static bool some_leg_is_stale(struct mirror *ms)
{
	for (unsigned i = 0; i < ms->nr_legs; i++)
		if (leg_is_stale(&ms->legs[i]))
			return true;
	return false;
}

/*
 * A region written to after it was found idle has touched set and is passed over by the worker; so the flush here
 * covers all that was written to the others.
 */
void mirror_clean_work(struct dm_work *work)
{
	struct mirror *ms = container_of(work, struct mirror, cleaner);
	bool announce, failed = false;
	struct found f;

	atomic_store(&ms->timer_armed, false);
	pthread_mutex_lock(&ms->lock);
	announce = ms->announce;
	ms->announce = false;
	pthread_mutex_unlock(&ms->lock);
	if (!announce && some_leg_is_stale(ms))
		return;
	look_around(ms, announce, &f);
	if (announce || f.unflushed)
		failed = mirror_flush_legs(ms) != 0;
	pthread_mutex_lock(&ms->lock);
	if (!failed)
		g_array_append_vals(ms->to_clean, f.idle->data, f.idle->len);
	ms->flush_failed |= failed;
	ms->announced |= announce;
	pthread_mutex_unlock(&ms->lock);
	g_array_free(f.idle, TRUE);
	if (f.more)
		mirror_arm_cleaner(ms);
	mirror_wake(ms);
}

void regions_clean(struct mirror *ms, const GArray *regions)
{
	if (!regions->len || atomic_load(&ms->log_failure))
		return;
	for (unsigned i = 0; i < regions->len; i++) {
		uint64_t nr = g_array_index(regions, uint64_t, i);
		struct shard *shard = mirror_shard(ms, nr);
		struct region *reg;

		pthread_mutex_lock(&shard->lock);
		reg = region_get(ms, nr, false);
		if (reg && reg->state == REGION_DIRTY && !reg->pending && !reg->touched &&
		    dm_bio_list_empty(&reg->marking)) {
			ms->log->type->clear_region(ms->log, nr);
			region_drop(ms, reg);
		}
		pthread_mutex_unlock(&shard->lock);
	}
	ms->log->type->flush(ms->log); /* a log that fails says so in the status; dirty is safe */
}

void regions_settle(struct mirror *ms)
{
	struct found f;

	look_around(ms, true, &f);
	if (f.idle->len && !some_leg_is_stale(ms)) {
		if (f.unflushed && mirror_flush_legs(ms))
			mirror_fail_flush(ms);
		else
			regions_clean(ms, f.idle);
	}
	g_array_free(f.idle, TRUE);
	for (unsigned i = 0; i < SHARDS; i++)
		g_hash_table_remove_all(ms->shards[i].regions);
}

/* --- out of sync ------------------------------------------------------------------------ */

/* In this order: who finds the region out of sync must see where its data is. */
static void lose_sync(struct mirror *ms, uint64_t nr, const struct region *reg)
{
	if (ms->shared ? !reg || reg->state != REGION_DIRTY : !region_in_sync(ms, nr))
		return;
	if (!ms->shared) /* there, it is on the first leg */
		dm_region_bit_set(ms->degraded, nr);
	ms->log->type->set_region_sync(ms->log, nr, false);
}

void region_lost_sync(struct mirror *ms, uint64_t nr)
{
	struct shard *shard = mirror_shard(ms, nr);
	struct region *reg;

	pthread_mutex_lock(&shard->lock);
	reg = region_get(ms, nr, false);
	lose_sync(ms, nr, reg);
	if (reg && reg->state == REGION_DIRTY)
		reg->state = REGION_NOSYNC;
	pthread_mutex_unlock(&shard->lock);
}

static bool lose(struct mirror *ms, struct region *reg, void *data)
{
	if (reg->state != REGION_DIRTY)
		return false;
	lose_sync(ms, reg->nr, reg);
	reg->state = REGION_NOSYNC;
	return !reg->pending && dm_bio_list_empty(&reg->marking);
}

void regions_lost_sync(struct mirror *ms)
{
	regions_each(ms, lose, NULL);
}
