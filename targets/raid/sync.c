/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Resynchronisation, recovery, check and repair: what goes through an array in the background, one of them at a time.
 *
 * It goes in windows, a few of them at once; the dispatcher starts the next when one is done, or later, when it goes
 * faster than max_recovery_rate allows, or when users' bios came meanwhile and it is not slower than min_recovery_rate.
 * All before sync_done is done.
 *
 * Every sixteenth of the way, or every few seconds, the data devices are flushed and the
 * superblocks say how far it got; it goes on from there after a crash or a suspend.
 */
#include <inttypes.h>

#include "raid.h"

#define WINDOW_SECTORS 1024u
#define LEAST_WINDOW 128u
#define DEFAULT_MIN_RATE 1000u /* KiB/s of each device */
#define CHECKPOINT_NS 5000000000ull
#define RATE_NS 3000000000ull /* the rate is that of so much time */
#define PAUSE_TIMES 3u	      /* with users about, a pause is so many times a window's time */
#define LEAST_PAUSE_NS 500000ull
#define MOST_PAUSE_NS 50000000ull

/* --- what there is to do ----------------------------------------------------------------------- */

static bool behind(const struct raid_member *m)
{
	return raid_member_alive(m) && !(atomic_load(&m->flags) & RAID_IN_SYNC);
}

static bool some_behind(const struct raid *r, uint64_t *from)
{
	bool some = false;

	*from = UINT64_MAX;
	for (unsigned i = 0; i < r->geo.disks; i++) {
		if (!behind(&r->members[i]))
			continue;
		some = true;
		*from = MIN(*from, atomic_load(&r->members[i].recovered));
	}
	return some;
}

static bool some_needed(const struct raid *r)
{
	for (uint64_t i = 0; r->bitmap && i < r->bitmap->regions; i++)
		if (raid_region_needed(r->bitmap, i))
			return true;
	return false;
}

static bool can_resync(const struct raid *r)
{
	unsigned degraded = atomic_load(&r->degraded);

	return r->geo.level != 0 && !(r->geo.level == 5 && degraded) && !(r->geo.level == 6 && degraded > 1);
}

static bool reshaping(const struct raid *r)
{
	return r->state.reshape_position != RAID_NONE;
}

static enum raid_action to_do(struct raid *r, uint64_t *from)
{
	uint64_t offset = atomic_load(&r->resync_offset), total;

	if (!r->geo.level || !r->writable)
		return RAID_IDLE;
	if (reshaping(r)) {
		raid_reshape_where(r, from, &total);
		return r->reshape_waits || r->sync_error ? RAID_IDLE : RAID_RESHAPE;
	}
	if (r->reshaped) /* the next resume sees to what is left */
		return RAID_IDLE;
	if (!r->sync_error && some_behind(r, from))
		return RAID_RECOVER;
	if (offset != RAID_NONE && r->geo.parity && atomic_load(&r->degraded) >= r->geo.parity) {
		/* nothing can be done about it: the devices that are left are what the data is */
		atomic_store(&r->resync_offset, RAID_NONE);
		offset = RAID_NONE;
		r->super_stale = true;
		dm_wq_queue(r->meta_wq, &r->meta_work);
	}
	*from = 0;
	if (r->requested != RAID_IDLE)
		return r->requested;
	if (r->sync_error || !can_resync(r) || (offset == RAID_NONE && !some_needed(r)))
		return RAID_IDLE;
	*from = offset == RAID_NONE ? 0 : offset;
	return RAID_RESYNC;
}

static uint64_t end_of(struct raid *r, enum raid_action action)
{
	uint64_t done, total;

	if (action == RAID_RESHAPE) {
		raid_reshape_where(r, &done, &total);
		return total;
	}
	return action == RAID_RECOVER ? r->geo.dev_sectors : r->sync_sectors;
}

static void start(struct raid *r, enum raid_action action, uint64_t from)
{
	r->action = action;
	r->requested = RAID_IDLE;
	r->sync_stop = false;
	r->sync_end = end_of(r, action);
	if (r->bitmap && action != RAID_RECOVER && action != RAID_RESHAPE)
		from = dm_round_down(from, 1ull << r->bitmap->shift);
	r->sync_from = r->sync_next = r->sync_done = r->checkpoint_at = r->rate_from = MIN(from, r->sync_end);
	r->rate_since_ns = r->checkpoint_ns = dm_now_ns();
	r->last_was_check = action == RAID_CHECK;
	if (action == RAID_CHECK || action == RAID_REPAIR)
		atomic_store(&r->mismatches, 0);
	if (action == RAID_CHECK && atomic_load(&r->degraded) && r->geo.level >= 5)
		r->sync_next = r->sync_done = r->sync_end; /* nothing to compare with */
	dm_wq_queue(r->dispatch_wq, &r->sync_work);
}

/* Under lock. */
static void look(struct raid *r)
{
	enum raid_action action;
	uint64_t from;

	if (!r->may_sync || r->frozen || r->halting || r->action != RAID_IDLE)
		return;
	action = to_do(r, &from);
	if (action != RAID_IDLE)
		start(r, action, from);
}

void raid_sync_look(struct raid *r)
{
	pthread_mutex_lock(&r->lock);
	look(r);
	pthread_mutex_unlock(&r->lock);
}

/* --- how fast ------------------------------------------------------------------------------------ */

static uint64_t window_sectors(const struct raid *r)
{
	unsigned max = r->params.value[RAID_MAX_RATE];
	uint64_t n = max ? dm_round_down(MIN(max / 2, WINDOW_SECTORS), LEAST_WINDOW) : WINDOW_SECTORS;

	return MAX(n, LEAST_WINDOW);
}

/* The time before which no window may begin, or 0.  Under lock. */
static uint64_t not_before(struct raid *r, bool *yield)
{
	unsigned max = r->params.value[RAID_MAX_RATE], min = r->params.value[RAID_MIN_RATE];
	unsigned users = atomic_load(&r->users);
	uint64_t now = dm_now_ns(), elapsed = now - r->rate_since_ns, kib = (r->sync_next - r->rate_from) / 2;
	uint64_t rate = kib * 1000000000ull / MAX(elapsed, 1);

	*yield = users != r->last_users;
	if (elapsed > RATE_NS && !(max && rate > max)) {
		r->rate_from = r->sync_next;
		r->rate_since_ns = now;
	}
	if (max && rate > max)
		return r->rate_since_ns + kib * 1000000000ull / max;
	r->last_users = users;
	if (*yield && rate > (min ? min : DEFAULT_MIN_RATE))
		return now + CLAMP(PAUSE_TIMES * r->window_ns, LEAST_PAUSE_NS, MOST_PAUSE_NS);
	return 0;
}

/* --- the dispatcher -------------------------------------------------------------------------------- */

static unsigned busy(const struct raid *r)
{
	unsigned n = 0;

	for (unsigned i = 0; i < RAID_WINDOWS; i++)
		n += r->windows[i].busy;
	return n;
}

/* Whether a region is to be gone through. */
static bool wanted(const struct raid *r, uint64_t region)
{
	uint32_t word = atomic_load(&r->bitmap->words[region]);

	return r->action == RAID_RESYNC ? word & RAID_REGION_NEEDED : word & (RAID_REGION_NEEDED | RAID_REGION_DURABLE);
}

/* Whether all that are behind are so only where the bitmap says. */
static bool all_partial(const struct raid *r)
{
	for (unsigned i = 0; i < r->geo.disks; i++)
		if (behind(&r->members[i]) && !(atomic_load(&r->members[i].flags) & RAID_PARTIAL))
			return false;
	return raid_has_bitmap(r) && r->geo.level != 10;
}

static bool by_bitmap(const struct raid *r)
{
	return r->bitmap && (r->action == RAID_RESYNC || (r->action == RAID_RECOVER && all_partial(r)));
}

/* Passes over what needs nothing. */
static void skip(struct raid *r)
{
	while (by_bitmap(r) && r->sync_next < r->sync_end) {
		uint64_t region = r->sync_next >> r->bitmap->shift;

		if (wanted(r, region))
			break;
		r->sync_next = MIN((region + 1) << r->bitmap->shift, r->sync_end);
	}
}

/* The end of a window that begins at sync_next and is not longer than n: where something needs nothing. */
static uint64_t window_end(const struct raid *r, uint64_t n)
{
	uint64_t end = MIN(r->sync_next + n - r->sync_next % n, r->sync_end);

	if (!by_bitmap(r))
		return end;
	for (uint64_t region = (r->sync_next >> r->bitmap->shift) + 1; region << r->bitmap->shift < end; region++)
		if (!wanted(r, region))
			return region << r->bitmap->shift;
	return end;
}

/* Whether bringing one device up to date leaves nothing in a region that could differ still. */
static bool recovery_is_resync(const struct raid *r)
{
	return r->geo.level == 5 || (r->geo.level == 1 && r->geo.disks == 2);
}

/*
 * What has been gone through needs nothing more.  Not so where a recovery has not been, as it went on from where an
 * earlier one had come to: writes that a power loss cut off there are still to be resynchronised.
 */
static void regions_passed(struct raid *r, uint64_t done)
{
	uint64_t from = r->bitmap ? dm_round_up(r->sync_from, 1ull << r->bitmap->shift) : 0;

	if (r->action == RAID_RESYNC || r->action == RAID_REPAIR || raid_reshape_syncs(r) ||
	    (r->action == RAID_RECOVER && recovery_is_resync(r)))
		raid_regions_synced(r, MAX(r->sync_done, from), done);
}

static void update_done(struct raid *r)
{
	uint64_t done = r->sync_next;

	for (unsigned i = 0; i < RAID_WINDOWS; i++)
		if (r->windows[i].busy)
			done = MIN(done, r->windows[i].sector);
	if (done <= r->sync_done || r->sync_error)
		return;
	regions_passed(r, done);
	r->sync_done = done;
	for (unsigned i = 0; i < r->geo.disks && r->action == RAID_RECOVER; i++)
		if (behind(&r->members[i]) && atomic_load(&r->members[i].recovered) < done)
			atomic_store(&r->members[i].recovered, done);
}

/* Makes known how far it got.  Without the lock, by the dispatcher alone. */
static void checkpoint(struct raid *r)
{
	uint64_t done, was;

	pthread_mutex_lock(&r->lock);
	done = r->sync_done;
	r->checkpoint_at = done;
	r->checkpoint_ns = dm_now_ns();
	pthread_mutex_unlock(&r->lock);
	if ((r->action != RAID_RESYNC && r->action != RAID_RECOVER) || raid_members_flush(r))
		return;
	was = atomic_load(&r->resync_offset);
	/* a device that fails meanwhile may make it none */
	while (r->action == RAID_RESYNC && was != RAID_NONE)
		if (atomic_compare_exchange_weak(&r->resync_offset, &was, done))
			break;
	for (unsigned i = 0; i < r->geo.disks && r->action == RAID_RECOVER; i++)
		if (behind(&r->members[i]))
			atomic_store(&r->members[i].checkpoint, done);
	raid_save(r, NULL);
}

static bool checkpoint_due(const struct raid *r)
{
	uint64_t way = r->sync_done - r->checkpoint_at;

	return way && (way >= MAX(r->sync_end / 16, WINDOW_SECTORS) || dm_now_ns() - r->checkpoint_ns > CHECKPOINT_NS);
}

static void recovered(struct raid *r)
{
	for (unsigned i = 0; i < r->geo.disks; i++) {
		struct raid_member *m = &r->members[i];

		if (!behind(m) || atomic_load(&m->recovered) < r->sync_end)
			continue;
		atomic_store(&m->checkpoint, RAID_NONE);
		atomic_store(&m->recovered, RAID_NONE);
		atomic_fetch_or(&m->flags, RAID_IN_SYNC);
		atomic_fetch_and(&m->flags, ~(uint32_t)RAID_PARTIAL);
	}
	raid_count_degraded(r);
	raid_regions_synced(r, 0, 0); /* the cleaner may begin */
}

static void finish(struct raid *r)
{
	bool whole = !r->sync_stop && !r->sync_error && r->sync_next >= r->sync_end;
	enum raid_action action = r->action;

	if (action == RAID_RESYNC || action == RAID_RECOVER)
		checkpoint(r);
	if (whole && action == RAID_RESHAPE)
		raid_reshape_finish(r);
	pthread_mutex_lock(&r->lock);
	if (whole && action == RAID_RECOVER)
		recovered(r);
	if (whole && action == RAID_RESYNC)
		atomic_store(&r->resync_offset, RAID_NONE);
	pthread_mutex_unlock(&r->lock);
	if (action == RAID_RESYNC || action == RAID_RECOVER)
		raid_save(r, NULL);
	if (action == RAID_RESHAPE)
		raid_save_sync(r); /* before anybody loads it anew */
	pthread_mutex_lock(&r->lock);
	r->action = RAID_IDLE;
	pthread_cond_broadcast(&r->sync_ended);
	look(r); /* at once: nobody sees it idle while there is more to do */
	pthread_mutex_unlock(&r->lock);
	dm_target_event(r->ti, NULL, NULL);
}

static struct raid_window *free_window(struct raid *r)
{
	for (unsigned i = 0; i < RAID_WINDOWS; i++)
		if (!r->windows[i].busy)
			return &r->windows[i];
	return NULL;
}

/* Starts what may be started; false: it is all over. */
static bool dispatch(struct raid *r)
{
	for (;;) {
		struct raid_window *w = free_window(r);
		uint64_t when, n = window_sectors(r);
		bool yield;

		if (!r->sync_stop && !r->sync_error)
			skip(r);
		update_done(r);
		if (r->sync_stop || r->sync_error || r->sync_next >= r->sync_end)
			return busy(r) > 0;
		if (!w || (r->action == RAID_RESHAPE && busy(r)))
			return true;
		when = not_before(r, &yield);
		if (when && !r->paused) {
			r->paused = true;
			dm_timer_arm(&r->sync_timer, when);
		}
		if (r->paused || (yield && busy(r)))
			return true;
		*w = (struct raid_window){.r = r,
					  .sector = r->sync_next,
					  .busy = true,
					  .action = r->action,
					  .work.fn = w->work.fn,
					  .started_ns = dm_now_ns()};
		w->sectors = r->action == RAID_RESHAPE ? raid_reshape_window(r, r->sync_next) :
							 window_end(r, n) - r->sync_next;
		r->sync_next += w->sectors;
		dm_wq_queue(r->sync_wq, &w->work);
	}
}

static void sync_work(struct dm_work *work)
{
	struct raid *r = container_of(work, struct raid, sync_work);
	bool more, due;

	pthread_mutex_lock(&r->lock);
	if (r->action == RAID_IDLE) {
		pthread_mutex_unlock(&r->lock);
		return;
	}
	more = dispatch(r);
	due = more && checkpoint_due(r);
	pthread_mutex_unlock(&r->lock);
	if (due)
		checkpoint(r);
	if (!more)
		finish(r);
}

static void sync_timer(struct dm_timer *t)
{
	struct raid *r = container_of(t, struct raid, sync_timer);

	pthread_mutex_lock(&r->lock);
	r->paused = false;
	pthread_mutex_unlock(&r->lock);
	dm_wq_queue(r->dispatch_wq, &r->sync_work);
}

static void window_work(struct dm_work *work)
{
	struct raid_window *w = container_of(work, struct raid_window, work);
	struct raid *r = w->r;

	r->ops->sync(w);
	atomic_fetch_add(&r->mismatches, w->mismatches);
	pthread_mutex_lock(&r->lock);
	r->window_ns = dm_now_ns() - w->started_ns;
	if (w->error && !r->sync_error) {
		r->sync_error = true;
		dm_log_err("raid: %s stopped at sector %" PRIu64 ": %s",
			   w->action == RAID_RECOVER   ? "recovery"
			   : w->action == RAID_RESHAPE ? "reshape"
						       : "resynchronisation",
			   w->sector, g_strerror(-w->error));
	}
	w->busy = false;
	pthread_mutex_unlock(&r->lock);
	dm_wq_queue(r->dispatch_wq, &r->sync_work);
}

/* --- from outside -------------------------------------------------------------------------------------- */

void raid_sync_open(struct raid *r)
{
	pthread_cond_init(&r->sync_ended, NULL);
	r->dispatch_wq = dm_wq_new("raid-dispatch", 1); /* it must never run twice at once */
	r->sync_wq = dm_wq_new("raid-sync", RAID_WINDOWS);
	r->slow_wq = dm_wq_new("raid-slow", 2);
	r->sync_work.fn = sync_work;
	r->sync_timer.fn = sync_timer;
	for (unsigned i = 0; i < RAID_WINDOWS; i++)
		r->windows[i].work.fn = window_work;
}

/* Stops what goes on and waits for its end. */
static void halt(struct raid *r)
{
	dm_block_begin();
	pthread_mutex_lock(&r->lock);
	r->halting++;
	while (r->action != RAID_IDLE) {
		r->sync_stop = true;
		dm_wq_queue(r->dispatch_wq, &r->sync_work);
		pthread_cond_wait(&r->sync_ended, &r->lock);
	}
	r->requested = RAID_IDLE;
	pthread_mutex_unlock(&r->lock);
	dm_timer_cancel_sync(&r->sync_timer);
	pthread_mutex_lock(&r->lock);
	r->halting--;
	r->paused = false;
	pthread_mutex_unlock(&r->lock);
	dm_block_end();
}

void raid_sync_close(struct raid *r)
{
	if (!r->sync_wq)
		return;
	raid_sync_suspend(r);
	dm_wq_free(r->dispatch_wq);
	dm_wq_free(r->sync_wq);
	dm_wq_free(r->slow_wq);
	pthread_cond_destroy(&r->sync_ended);
}

void raid_sync_resume(struct raid *r)
{
	pthread_mutex_lock(&r->lock);
	r->may_sync = true;
	r->sync_error = false;
	pthread_mutex_unlock(&r->lock);
	raid_sync_look(r);
}

void raid_sync_suspend(struct raid *r)
{
	pthread_mutex_lock(&r->lock);
	r->may_sync = false;
	pthread_mutex_unlock(&r->lock);
	halt(r);
	dm_wq_flush(r->sync_wq);
	dm_wq_flush(r->dispatch_wq);
	dm_wq_flush(r->slow_wq);
}

int raid_sync_message(struct raid *r, const char *word, GError **err)
{
	bool frozen = !g_ascii_strcasecmp(word, "frozen"), idle = !g_ascii_strcasecmp(word, "idle");
	enum raid_action want = RAID_IDLE;
	bool busy;

	if (!r->geo.level)
		return dm_fail(err, EINVAL, "raid: raid0 has nothing to synchronise: '%s'", word);
	pthread_mutex_lock(&r->lock);
	busy = r->action != RAID_IDLE;
	if (frozen || idle || !busy)
		r->frozen = frozen;
	pthread_mutex_unlock(&r->lock);
	if (frozen || idle) {
		halt(r);
		raid_sync_look(r);
		return 0;
	}
	if (busy)
		return dm_fail(err, EBUSY, "raid: '%s' while another action runs: send idle or frozen first", word);
	if (!g_ascii_strcasecmp(word, "check"))
		want = RAID_CHECK;
	else if (!g_ascii_strcasecmp(word, "repair"))
		want = RAID_REPAIR;
	else if (g_ascii_strcasecmp(word, "resync") && g_ascii_strcasecmp(word, "recover"))
		return dm_fail(err, EINVAL,
			       "raid: unrecognised message '%s', idle, frozen, resync, recover, check or repair "
			       "would be right",
			       word);
	pthread_mutex_lock(&r->lock);
	r->requested = want;
	r->sync_error = false;
	pthread_mutex_unlock(&r->lock);
	raid_sync_look(r);
	return 0;
}

void raid_sync_progress(struct raid *r, struct raid_progress *p)
{
	static const char *const names[] = {"idle", "resync", "recover", "check", "repair", "reshape"};
	uint64_t offset = atomic_load(&r->resync_offset);

	pthread_mutex_lock(&r->lock);
	*p = (struct raid_progress){.total = r->sync_sectors, .action = r->frozen ? "frozen" : names[r->action]};
	if (!r->geo.level || (r->action == RAID_IDLE && !r->frozen))
		p->done = offset;
	else
		p->done = r->sync_done;
	p->done = MIN(p->done, p->total);
	p->mismatches = r->last_was_check ? atomic_load(&r->mismatches) : 0;
	if (reshaping(r)) {
		raid_reshape_progress(r, p);
		if (r->frozen)
			p->action = "frozen";
	}
	p->done = MIN(p->done, p->total);
	p->resyncing = reshaping(r) || r->action == RAID_RESYNC || r->action == RAID_RESHAPE ||
		       (r->action == RAID_IDLE && offset != RAID_NONE && !r->frozen);
	pthread_mutex_unlock(&r->lock);
}
