/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The metadata worker: the only one who writes superblocks and bitmaps.
 *
 * Whoever needs something durable leaves a wait with it and goes away.  Each turn the worker takes all that came
 * meanwhile and writes once for all of it: to every device the bitmap's changed sectors, then, if something changed
 * there, the superblock, each with FUA.  The bitmap's head carries the new event count before the superblock does: a
 * bitmap older than its superblock would be taken for stale.
 *
 * A device that cannot be written is out if others could.  Where none could (their files are on one full disk) nothing
 * is gained by that: who waits gets the error, and all that can be read still is.
 *
 * Bits are cleared by the same worker, daemon_sleep after they were last needed at the
 * earliest: it flushes the data devices first, and clears nothing while a device is out or behind.
 */
#include <inttypes.h>

#include <dmfs/le.h>

#include "raid.h"

#define NS_PER_MS 1000000ull
#define DEFAULT_SLEEP_MS 5000u
#define MAX_REGIONS (1u << 24)

static void wake(struct raid *r)
{
	dm_wq_queue(r->meta_wq, &r->meta_work);
}

static void arm_cleaner(struct raid *r)
{
	if (!raid_has_bitmap(r) || atomic_load(&r->meta_stopped) || atomic_load(&r->degraded))
		return;
	if (!atomic_exchange(&r->clean_armed, true))
		dm_timer_arm(&r->clean_timer, dm_now_ns() + r->daemon_sleep_ms * NS_PER_MS);
}

/* --- marks ------------------------------------------------------------------------------------------ */

bool raid_mark(struct raid *r, uint64_t sector, uint64_t sectors, struct raid_wait *wait)
{
	struct raid_bitmap *b = r->bitmap;
	bool go = true;

	if (!b)
		return true;
	wait->first = sector >> b->shift;
	wait->last = (sector + sectors - 1) >> b->shift;
	for (uint64_t region = wait->first; region <= wait->last; region++)
		go &= raid_region_begin(b, region);
	if (go || !raid_has_bitmap(r))
		return true;
	pthread_mutex_lock(&r->lock);
	wait->next = r->marks;
	r->marks = wait;
	pthread_mutex_unlock(&r->lock);
	wake(r);
	return false;
}

void raid_unmark(struct raid *r, const struct raid_wait *wait)
{
	if (!r->bitmap)
		return;
	for (uint64_t region = wait->first; region <= wait->last; region++)
		raid_region_end(r->bitmap, region);
}

void raid_regions_need(struct raid *r, const struct raid_wait *wait)
{
	for (uint64_t region = wait->first; r->bitmap && region <= wait->last; region++)
		atomic_fetch_or(&r->bitmap->words[region], RAID_REGION_NEEDED);
}

void raid_regions_synced(struct raid *r, uint64_t sector, uint64_t end)
{
	struct raid_bitmap *b = r->bitmap;

	if (!b)
		return;
	for (uint64_t region = sector >> b->shift; region < b->regions; region++) {
		if (MIN((region + 1) << b->shift, b->sectors) > end)
			break;
		atomic_fetch_and(&b->words[region], ~RAID_REGION_NEEDED);
	}
	arm_cleaner(r);
}

void raid_save(struct raid *r, struct raid_wait *wait)
{
	pthread_mutex_lock(&r->lock);
	r->super_stale = true;
	if (wait) {
		wait->next = r->super_waiters;
		r->super_waiters = wait;
	}
	pthread_mutex_unlock(&r->lock);
	wake(r);
}

static void nothing_more(struct raid_wait *wait)
{
}

int raid_save_sync(struct raid *r)
{
	struct raid_wait wait = {.fn = nothing_more};

	raid_save(r, &wait);
	dm_block_begin();
	dm_wq_flush(r->meta_wq);
	dm_block_end();
	return wait.error;
}

/* --- writing ------------------------------------------------------------------------------------------ */

static bool has_meta(const struct raid *r, unsigned i)
{
	return r->members[i].meta && raid_member_alive(&r->members[i]);
}

/* Calls write() for every device that has metadata; false: none took it. */
static bool write_all(struct raid *r, int (*write)(struct raid *, unsigned, const void *), const void *what,
		      const char *name)
{
	g_autofree int *errors = g_new0(int, r->disks);
	bool some = false;

	for (unsigned i = 0; i < r->disks; i++) {
		if (!has_meta(r, i))
			continue;
		errors[i] = write(r, i, what);
		some |= !errors[i];
	}
	for (unsigned i = 0; i < r->disks; i++) {
		if (errors[i] && some)
			raid_member_fail(r, i, name, errors[i]);
		else if (errors[i])
			dm_log_err_limit("raid: failed to %s any device, also of #%u: %s", name, i,
					 g_strerror(-errors[i]));
	}
	return some;
}

struct range {
	size_t first, end; /* sectors of the bitmap */
};

static int write_range(struct raid *r, unsigned i, const void *what)
{
	const struct range *range = what;

	return dm_write_sync(r->members[i].meta, RAID_BITMAP_START / 512 + range->first, range->end - range->first,
			     r->bitmap->image + range->first * 512, DM_FUA | DM_META);
}

static int write_bitmap(struct raid *r)
{
	struct raid_bitmap *b = r->bitmap;
	size_t sectors = b ? b->bytes / 512 : 0;
	int error = 0;

	if (!raid_has_bitmap(r) || !r->writable)
		return 0;
	for (size_t first = 0, end; first < sectors; first = end) {
		end = first + 1;
		if (!b->stale[first])
			continue;
		while (end < sectors && b->stale[end])
			end++;
		if (write_all(r, write_range, &(struct range){first, end}, "write the bitmap of"))
			memset(b->stale + first, 0, end - first);
		else
			error = -EIO;
	}
	return error;
}

static void put_head(struct raid *r)
{
	struct raid_bitmap *b = r->bitmap;
	struct raid_bitmap_head head = {
	    .events = r->events,
	    .events_cleared = r->events_cleared,
	    .sectors = r->sync_sectors,
	    .region_bytes = b ? 512u << b->shift : 0,
	    .daemon_sleep_s = MAX(r->daemon_sleep_ms / 1000, 1),
	    .write_behind = r->params.value[RAID_WRITE_BEHIND] / 2,
	};

	if (b)
		raid_bitmap_put_head(b, &head);
}

static void make_super(struct raid *r, unsigned i, struct raid_super *sb)
{
	const struct raid_state *s = &r->state;
	struct raid_member *m = &r->members[i];
	bool reshaping = s->reshape_position != RAID_NONE;

	*sb = (struct raid_super){
	    .features = 1,
	    .disks = s->disks,
	    .index = i,
	    .events = r->events,
	    .recovery_offset = atomic_load(&m->flags) & RAID_IN_SYNC ? RAID_NONE : atomic_load(&m->checkpoint),
	    .level = s->level,
	    .layout = s->layout,
	    .chunk = s->chunk,
	    .reshape_flags = reshaping ? RAID_RESHAPE_ACTIVE | (s->backwards ? RAID_RESHAPE_BACKWARDS : 0) : 0,
	    .reshape_position = s->reshape_position,
	    .new_level = s->new_level,
	    .new_layout = s->new_layout,
	    .new_chunk = s->new_chunk,
	    .delta_disks = s->delta_disks,
	    .array_sectors = s->array_sectors,
	    .data_offset = m->data_offset,
	    .new_data_offset = m->new_data_offset,
	    .dev_sectors = s->dev_sectors,
	    .mark = r->params.journal ? RAID_MARK : 0,
	};
	if (reshaping && !s->backwards) /* as the kernel has it on the way */
		sb->dev_sectors += m->data_offset - m->new_data_offset;
	pthread_mutex_lock(&r->lock); /* who is out, and what that means for the resync, go together */
	sb->resync_offset = atomic_load(&r->resync_offset);
	/* in a reshape also those that are removed by it: what they miss now is needed still */
	for (unsigned k = 0; k < (reshaping ? r->disks : MIN(r->disks, s->disks)); k++)
		if (!raid_member_alive(&r->members[k]))
			raid_set_add(&sb->failed, k);
	pthread_mutex_unlock(&r->lock);
}

static int write_super(struct raid *r, unsigned i, const void *nothing)
{
	g_autofree uint8_t *block = NULL;
	struct dm_limits limits;
	struct raid_super sb;
	unsigned bytes;

	dm_dev_limits(r->members[i].meta, &limits);
	bytes = MAX(limits.logical_block_size, RAID_SUPER_BYTES);
	block = g_malloc0(bytes);
	make_super(r, i, &sb);
	raid_super_encode(&sb, block);
	return dm_write_sync(r->members[i].meta, 0, bytes / 512, block, DM_FUA | DM_META);
}

static int write_supers(struct raid *r)
{
	unsigned failures;
	bool some;

	pthread_mutex_lock(&r->lock);
	failures = r->failures;
	pthread_mutex_unlock(&r->lock);
	some = write_all(r, write_super, NULL, "write the superblock of");
	pthread_mutex_lock(&r->lock);
	if (!some)
		atomic_store(&r->unsaved, true);
	else if (failures == r->failures) /* else one has failed meanwhile, and the next turn says so */
		atomic_store(&r->unsaved, false);
	pthread_mutex_unlock(&r->lock);
	return some ? 0 : -EIO;
}

/* --- cleaning ------------------------------------------------------------------------------------------- */

struct found {
	GArray *clean; /* of uint64_t */
	bool more;     /* it is worth looking again */
};

/* all: even what was written to a moment ago. */
static void look_around(struct raid *r, bool all, struct found *f)
{
	struct raid_bitmap *b = r->bitmap;

	for (uint64_t region = 0; region < b->regions; region++) {
		uint32_t word = atomic_load(&b->words[region]);

		if (!(word & RAID_REGION_DURABLE) || word & RAID_REGION_NEEDED)
			continue;
		f->more = true;
		if (word & RAID_REGION_TOUCHED) {
			atomic_fetch_and(&b->words[region], ~RAID_REGION_TOUCHED);
			if (!all)
				continue;
		}
		if (!(word & RAID_REGION_WRITES))
			g_array_append_val(f->clean, region);
	}
}

static void clean(struct raid *r, bool all)
{
	struct found f = {.clean = NULL};

	if (!raid_has_bitmap(r) || !r->writable || atomic_load(&r->degraded))
		return;
	f.clean = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	look_around(r, all, &f);
	if (f.clean->len && !raid_members_flush(r) && !atomic_load(&r->degraded)) {
		for (unsigned i = 0; i < f.clean->len; i++) {
			uint64_t region = g_array_index(f.clean, uint64_t, i);
			uint32_t word = RAID_REGION_DURABLE;

			if (atomic_compare_exchange_strong(&r->bitmap->words[region], &word, 0))
				raid_bitmap_set(r->bitmap, region, false);
		}
		r->events_cleared = r->events;
		put_head(r);
	}
	g_array_free(f.clean, TRUE);
	if (f.more)
		arm_cleaner(r);
}

static void clean_timer(struct dm_timer *t)
{
	struct raid *r = container_of(t, struct raid, clean_timer);

	atomic_store(&r->clean_armed, false);
	pthread_mutex_lock(&r->lock);
	r->clean_due = true;
	pthread_mutex_unlock(&r->lock);
	wake(r);
}

/* --- the worker -------------------------------------------------------------------------------------------- */

struct jobs {
	struct raid_wait *marks, *supers;
	bool super, clean, all;
};

static bool take_jobs(struct raid *r, struct jobs *j)
{
	pthread_mutex_lock(&r->lock);
	*j = (struct jobs){r->marks, r->super_waiters, r->super_stale || r->super_waiters, r->clean_due, r->clean_all};
	r->marks = r->super_waiters = NULL;
	r->super_stale = r->clean_due = r->clean_all = false;
	pthread_mutex_unlock(&r->lock);
	return j->marks || j->supers || j->super || j->clean;
}

static void answer(struct raid_wait *list)
{
	while (list) {
		struct raid_wait *wait = list;

		list = wait->next;
		wait->fn(wait);
	}
}

static void set_marks(struct raid *r, struct raid_wait *list)
{
	for (; list; list = list->next)
		for (uint64_t region = list->first; region <= list->last; region++)
			raid_bitmap_set(r->bitmap, region, true);
}

static void marks_durable(struct raid *r, struct raid_wait *list, int error)
{
	for (; list; list = list->next) {
		list->error = error;
		for (uint64_t region = list->first; region <= list->last && !error; region++)
			atomic_fetch_or(&r->bitmap->words[region], RAID_REGION_DURABLE);
	}
}

static void do_jobs(struct raid *r, const struct jobs *j)
{
	int error;

	if (j->clean)
		clean(r, j->all);
	set_marks(r, j->marks);
	if (j->super) {
		r->events++;
		put_head(r);
	}
	error = write_bitmap(r);
	if (j->super && r->state.persistent && r->writable && write_supers(r))
		error = -EIO;
	if (!r->state.persistent && atomic_load(&r->unsaved)) /* fail_stop */
		error = -EIO;
	for (struct raid_wait *wait = j->supers; wait; wait = wait->next)
		wait->error = error;
	marks_durable(r, j->marks, error);
	if (j->marks)
		arm_cleaner(r);
}

static void meta_work(struct dm_work *work)
{
	struct raid *r = container_of(work, struct raid, meta_work);
	struct jobs j;

	while (take_jobs(r, &j)) {
		do_jobs(r, &j);
		/* a device that failed just now goes into the superblocks before anybody hears of it */
		for (;;) {
			struct jobs again = {.supers = j.supers};

			pthread_mutex_lock(&r->lock);
			again.super = r->super_stale;
			r->super_stale = false;
			pthread_mutex_unlock(&r->lock);
			if (!again.super)
				break;
			do_jobs(r, &again);
		}
		answer(j.marks);
		answer(j.supers);
	}
}

/* --- reading ---------------------------------------------------------------------------------------------- */

/* The first device whose bitmap counts, or -1. */
static int bitmap_source(const struct raid *r)
{
	for (unsigned i = 0; i < r->disks; i++)
		if (has_meta(r, i) && atomic_load(&r->members[i].flags) & RAID_IN_SYNC)
			return (int)i;
	return -1;
}

static int check_room(struct raid *r, GError **err)
{
	uint64_t need = RAID_SUPER_BYTES;

	if (raid_has_bitmap(r))
		need = RAID_BITMAP_START + raid_bitmap_bytes(r->sync_sectors, r->params.region_sectors);
	for (unsigned i = 0; i < r->disks; i++) {
		uint64_t have;

		if (!has_meta(r, i))
			continue;
		have = dm_dev_sectors(r->members[i].meta);
		if (have < need / 512)
			return dm_fail(err, EINVAL,
				       "raid: bitmap cut short: metadata device %u has %" PRIu64 " sectors, %" PRIu64
				       " are needed",
				       i, have, need / 512);
	}
	return 0;
}

static int read_image(struct raid *r, unsigned i, uint8_t **image, size_t *len, struct raid_bitmap_head *head,
		      GError **err)
{
	uint64_t have = dm_dev_sectors(r->members[i].meta);
	uint8_t first[512];
	int error = 0;

	if (have <= RAID_BITMAP_START / 512)
		return dm_fail(err, EINVAL, "raid: bitmap cut short: metadata device %u has %" PRIu64 " sectors", i,
			       have);
	have -= RAID_BITMAP_START / 512;
	error = dm_read_sync(r->members[i].meta, RAID_BITMAP_START / 512, 1, first, DM_META);
	if (error)
		return dm_fail(err, -error, "raid: the bitmap of metadata device %u cannot be read: %s", i,
			       g_strerror(-error));
	error = raid_bitmap_get_head(first, MIN(have * 512, 1ull << 40), head, err);
	if (!error && dm_div_up(r->sync_sectors, head->region_bytes / 512) > MAX_REGIONS)
		error = dm_fail(err, EINVAL,
				"raid: invalid bitmap file superblock: regions of %u bytes are too small for "
				"%" PRIu64 " sectors",
				head->region_bytes, r->sync_sectors);
	if (error)
		return error;
	*len = raid_bitmap_bytes(head->sectors, head->region_bytes / 512);
	if (*len > MAX_REGIONS)
		return dm_fail(err, EINVAL,
			       "raid: invalid bitmap file superblock: %" PRIu64 " sectors in regions of %u "
			       "bytes",
			       head->sectors, head->region_bytes);
	*image = g_malloc(*len);
	error = dm_read_sync(r->members[i].meta, RAID_BITMAP_START / 512, *len / 512, *image, DM_META);
	return error ? dm_fail(err, -error, "raid: the bitmap of metadata device %u cannot be read: %s", i,
			       g_strerror(-error))
		     : 0;
}

/* What the array has grown by may share a region with what was clean. */
static void unsynced_needed(struct raid *r)
{
	struct raid_bitmap *b = r->bitmap;
	uint64_t from = atomic_load(&r->resync_offset);

	for (uint64_t i = from >> b->shift; from != RAID_NONE && i < b->regions; i++) {
		atomic_store(&b->words[i], RAID_REGION_DURABLE | RAID_REGION_NEEDED);
		raid_bitmap_set(b, i, true);
	}
}

static int read_bitmap(struct raid *r, GError **err)
{
	g_autofree uint8_t *image = NULL;
	struct raid_bitmap_head head;
	int source = bitmap_source(r), error;
	size_t len = 0;

	if (source < 0)
		return dm_fail(err, EINVAL, "raid: no device in sync has a bitmap");
	error = read_image(r, (unsigned)source, &image, &len, &head, err);
	if (error)
		return error;
	if (!raid_given(&r->params, RAID_REGION_SIZE) || !r->params.value[RAID_REGION_SIZE])
		r->params.region_sectors = head.region_bytes / 512;
	error = check_room(r, err);
	if (error)
		return error;
	r->bitmap = raid_bitmap_new(r->sync_sectors, r->params.region_sectors);
	r->events_cleared = head.events_cleared;
	if (head.events < r->state.events)
		dm_log_warn("raid: bitmap file is out of date (%" PRIu64 " < %" PRIu64 ") -- forcing full recovery",
			    head.events, r->state.events);
	else
		raid_bitmap_load(r->bitmap, image, len, &head);
	unsynced_needed(r);
	if (!raid_given(&r->params, RAID_DAEMON_SLEEP))
		r->daemon_sleep_ms = head.daemon_sleep_s * 1000;
	return 0;
}

int raid_meta_open(struct raid *r, GError **err)
{
	r->meta_wq = dm_wq_new("raid-meta", 1);
	r->meta_work.fn = meta_work;
	r->clean_timer.fn = clean_timer;
	atomic_store(&r->meta_stopped, true);
	r->daemon_sleep_ms = r->params.value[RAID_DAEMON_SLEEP] ? r->params.value[RAID_DAEMON_SLEEP] : DEFAULT_SLEEP_MS;
	r->events = r->state.events ? r->state.events - 1 : 0;
	if (!r->geo.level)
		return r->state.persistent ? check_room(r, err) : 0;
	if (raid_has_bitmap(r) && !r->state.new_bitmap)
		return read_bitmap(r, err);
	if (r->state.persistent) {
		int error = check_room(r, err);

		if (error)
			return error;
	}
	r->bitmap = raid_bitmap_new(r->sync_sectors, r->params.region_sectors);
	return 0;
}

/* Regions whose bits are set but that no device needs: clean once the cleaner has been there. */
static void nothing_needed(struct raid *r)
{
	for (uint64_t i = 0; r->bitmap && i < r->bitmap->regions; i++)
		atomic_fetch_and(&r->bitmap->words[i], ~RAID_REGION_NEEDED);
}

/* The first metadata of a new array: all of it must be there, else there is no array. */
static int write_first(struct raid *r, GError **err)
{
	r->events = 1;
	put_head(r);
	for (unsigned i = 0; i < r->disks; i++) {
		int error = 0;

		if (!has_meta(r, i))
			continue;
		if (raid_has_bitmap(r))
			error = dm_write_sync(r->members[i].meta, RAID_BITMAP_START / 512, r->bitmap->bytes / 512,
					      r->bitmap->image, DM_FUA | DM_META);
		if (!error)
			error = write_super(r, i, NULL);
		if (error)
			return dm_fail(err, -error, "raid: metadata device %u cannot be written: %s", i,
				       g_strerror(-error));
	}
	return 0;
}

int raid_meta_start(struct raid *r, GError **err)
{
	if ((r->state.new_bitmap || !raid_has_bitmap(r)) && atomic_load(&r->resync_offset) == RAID_NONE)
		nothing_needed(r);
	/*
	 * Twice: with the old event count, so that no device is more than one behind if a crash comes in between.  A
	 * new array's first count is 1: not yet an array (assemble.c).
	 */
	if (r->state.events || !r->state.persistent) {
		raid_save_sync(r);
	} else {
		int error = write_first(r, err);

		if (error)
			return error;
	}
	raid_save_sync(r);
	/* what has not changed may be read at least */
	if (r->state.save && atomic_load(&r->unsaved))
		return dm_fail(err, EIO, "raid: no superblock of %u devices can be written: the array stays what it was",
			       r->disks);
	return 0;
}

void raid_meta_resume(struct raid *r)
{
	atomic_store(&r->meta_stopped, false);
	arm_cleaner(r);
}

void raid_meta_suspend(struct raid *r)
{
	atomic_store(&r->meta_stopped, true);
	dm_wq_flush(r->meta_wq);
	dm_timer_cancel_sync(&r->clean_timer);
	atomic_store(&r->clean_armed, false);
	pthread_mutex_lock(&r->lock);
	r->clean_due = r->clean_all = true;
	pthread_mutex_unlock(&r->lock);
	wake(r);
	dm_wq_flush(r->meta_wq);
}

void raid_meta_close(struct raid *r)
{
	if (r->meta_wq) {
		atomic_store(&r->meta_stopped, true);
		dm_wq_flush(r->meta_wq);
		dm_timer_cancel_sync(&r->clean_timer);
		dm_wq_free(r->meta_wq);
		r->meta_wq = NULL;
	}
	g_clear_pointer(&r->bitmap, raid_bitmap_free);
}
