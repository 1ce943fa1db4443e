/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Regions of work: from dirty to clean, and to out of sync.
 *
 * Dirty to clean costs a flush of all copies and a write of the log, so it waits until nothing has written to a region
 * for one to two periods of the cleaner, and then is done for all such regions together.  After a crash a region that
 * was dirty for no reason is copied once more, which hurts nobody.
 *
 * While a copy has missed something nothing is cleaned: what it missed is in the log as dirty, and so stays what it was
 * given but may not have on its disk.
 */
#include "regions.h"

#include <dmfs/container_of.h>

#define CLEANER_PERIOD_NS 1000000000u

/* --- dirty to clean --------------------------------------------------------------------- */

void regions_arm_cleaner(struct dm_regions *rs)
{
	if (atomic_load_explicit(&rs->timer_armed, memory_order_relaxed) || atomic_load(&rs->stopped))
		return;
	if (!atomic_exchange(&rs->timer_armed, true))
		dm_timer_arm(&rs->timer, dm_now_ns() + CLEANER_PERIOD_NS);
}

void regions_clean_timer(struct dm_timer *t)
{
	struct dm_regions *rs = container_of(t, struct dm_regions, timer);

	dm_wq_queue(rs->io_wq, &rs->cleaner);
}

/* What the cleaner looks for, and found. */
struct found {
	bool all; /* even those written to a moment ago */
	GArray *idle;  /* of uint64_t: regions nobody writes to */
	bool unflushed; /* no flush has reached all copies since they were written to */
	bool more;     /* it is worth looking again */
};

static bool look_at(struct dm_regions *rs, struct dm_region_work *reg, void *data)
{
	struct found *f = data;
	bool idle = !reg->pending && (f->all || !reg->touched);
	bool flushed;

	if (reg->state != REGION_DIRTY)
		return false;
	if (reg->touched || reg->pending)
		reg->flush = atomic_load(&rs->flushes);
	flushed = atomic_load(&rs->flushed) > reg->flush;
	reg->touched = reg->pending > 0; /* those end after this */
	if (!idle || flushed || !rs->log->type->in_memory)
		f->more = true;
	if (!idle || (!flushed && !f->all && rs->log->type->in_memory)) /* in memory nothing is won by flushing */
		return false;
	g_array_append_val(f->idle, reg->nr);
	f->unflushed |= !flushed;
	return false;
}

static void look_around(struct dm_regions *rs, bool all, struct found *f)
{
	*f = (struct found){.all = all, .idle = regions_list()};
	regions_each(rs, look_at, f);
}

/*
 * A region written to after it was found idle has touched set and is passed over by the worker; so the flush here
 * covers all that was written to the others.
 */
void regions_clean_work(struct dm_work *work)
{
	struct dm_regions *rs = container_of(work, struct dm_regions, cleaner);
	bool announce, failed = false;
	struct found f;

	atomic_store(&rs->timer_armed, false);
	pthread_mutex_lock(&rs->lock);
	announce = rs->announce;
	rs->announce = false;
	pthread_mutex_unlock(&rs->lock);
	if (!announce && !rs->ops->all_sound(rs->context))
		return;
	look_around(rs, announce, &f);
	if (announce || f.unflushed)
		failed = rs->ops->flush(rs->context) != 0;
	pthread_mutex_lock(&rs->lock);
	if (!failed)
		g_array_append_vals(rs->to_clean, f.idle->data, f.idle->len);
	rs->flush_failed |= failed;
	rs->announced |= announce;
	pthread_mutex_unlock(&rs->lock);
	g_array_free(f.idle, TRUE);
	if (f.more)
		regions_arm_cleaner(rs);
	regions_wake(rs);
}

void regions_clean(struct dm_regions *rs, const GArray *regions)
{
	if (!regions->len || atomic_load(&rs->log_failure))
		return;
	for (unsigned i = 0; i < regions->len; i++) {
		uint64_t nr = g_array_index(regions, uint64_t, i);
		struct dm_region_work *reg = regions_lock(rs, nr);

		if (reg && reg->state == REGION_DIRTY && !reg->pending && !reg->touched &&
		    dm_bio_list_empty(&reg->marking)) {
			rs->log->type->clear_region(rs->log, nr);
			regions_drop(rs, reg);
		}
		regions_unlock(rs, nr);
	}
	rs->log->type->flush(rs->log); /* a log that fails says so in the status; dirty is safe */
}

static bool drop_it(struct dm_regions *rs, struct dm_region_work *reg, void *data)
{
	return true;
}

void regions_settle(struct dm_regions *rs)
{
	struct found f;

	look_around(rs, true, &f);
	if (f.idle->len && rs->ops->all_sound(rs->context)) {
		if (f.unflushed && rs->ops->flush(rs->context))
			regions_flush_failed(rs);
		else
			regions_clean(rs, f.idle);
	}
	g_array_free(f.idle, TRUE);
	regions_each(rs, drop_it, NULL);
}

/* --- out of sync ------------------------------------------------------------------------ */

/* In this order: who finds the region out of sync must see where its data is. */
static void lose_sync(struct dm_regions *rs, uint64_t nr, struct dm_region_work *reg)
{
	bool dirty = reg && reg->state == REGION_DIRTY;

	if (rs->shared ? dirty : region_in_sync(rs, nr)) {
		if (!rs->shared) /* there, it is on the first copy */
			dm_region_bit_set(rs->degraded, nr);
		rs->log->type->set_region_sync(rs->log, nr, false);
	}
	if (dirty)
		reg->state = REGION_NOSYNC;
}

static bool lose_if_dirty(struct dm_regions *rs, struct dm_region_work *reg, void *data)
{
	if (reg->state != REGION_DIRTY)
		return false;
	lose_sync(rs, reg->nr, reg);
	return !reg->pending && dm_bio_list_empty(&reg->marking);
}

static void all_lost_sync(struct dm_regions *rs)
{
	atomic_store(&rs->in_sync, false);
	regions_each(rs, lose_if_dirty, NULL);
}

void regions_flush_failed(struct dm_regions *rs)
{
	rs->ops->flush_failed(rs->context);
	all_lost_sync(rs);
}

void dm_regions_missed(struct dm_regions *rs, struct dm_region_io *io)
{
	if (!io->region) {
		all_lost_sync(rs);
		return;
	}
	atomic_store(&rs->in_sync, false);
	lose_sync(rs, io->region->nr, regions_lock(rs, io->region->nr));
	regions_unlock(rs, io->region->nr);
}

void dm_regions_mend(struct dm_regions *rs, struct dm_region_io *io)
{
	if (rs->shared ? io->region->state != REGION_DIRTY : !region_in_sync(rs, io->region->nr))
		return;
	dm_regions_missed(rs, io);
	g_array_append_val(rs->again, io->region->nr);
}
