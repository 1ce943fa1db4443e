/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mirror: the same data on several legs (dm-log.rst).
 *
 *   <log type> <#log params> <log params>* [block_on_error]
 *   <#legs> [<dev path> <offset>]{2,} [<#features> [handle_errors] [keep_log]]
 *
 * handle_errors (block_on_error is its first name, counted among the log's parameters): a write that a leg missed is
 * not reported done; it waits until the device is suspended, and with noflush goes to the table that comes then.
 * keep_log with it: it is reported done if one leg has it, and the log, which stays as it is, remembers the region.
 */
#include <inttypes.h>

#include "mirror.h"

#include <dmfs/container_of.h>
#include <dmfs/rounding.h>

#define MIN_LEGS 2u
#define SECTORS_SHIFT 11 /* most writes are not longer than 1 MiB */
/* What fits in a bio's space. */
#define MAX_LEGS ((unsigned)((UINT16_MAX - sizeof(struct mirror_bio)) / sizeof(struct leg_bio)))

/* --- failures --------------------------------------------------------------------- */

/*
 * The primary is the source of regions that were never in sync.  While there are such regions no other leg can take its
 * place.
 */
static void replace_primary(struct mirror *ms, unsigned leg)
{
	if (atomic_load(&ms->primary) != leg)
		return;
	if (ms->shared) {
		dm_log_err_limit("mirror: the first leg failed: with a shared log no other can take its place");
		return;
	}
	if (!atomic_load(&ms->in_sync)) {
		dm_log_err_limit("mirror: primary leg %u failed while out-of-sync: reads may fail", leg);
		return;
	}
	for (unsigned i = 0; i < ms->nr_legs; i++) {
		if (!atomic_load(&ms->legs[i].errors)) {
			atomic_store(&ms->primary, i);
			return;
		}
	}
	dm_log_warn("mirror: all legs have failed");
}

void mirror_fail_leg(struct mirror *ms, unsigned leg, enum leg_error kind)
{
	static const char *const did[] = {"flush", "write to", "synchronise", "read from"};
	g_autoptr(GString) name = NULL;
	unsigned old;

	atomic_store(&ms->leg_failure, true);
	old = atomic_fetch_or(&ms->legs[leg].errors, 1u << kind);
	if (old & 1u << kind)
		return;
	name = g_string_new(NULL);
	dm_dev_print(ms->legs[leg].dev, name);
	dm_log_err_limit("mirror: failed to %s leg %u (%s)", did[kind], leg, name->str);
	replace_primary(ms, leg);
	if (ms->handle_errors) {
		atomic_store(&ms->event_due, true);
		mirror_wake(ms);
	}
}

int mirror_flush_legs(struct mirror *ms)
{
	g_autofree struct dm_region *where = g_new0(struct dm_region, ms->nr_legs);
	g_autofree int *errors = g_new(int, ms->nr_legs);
	int error;

	for (unsigned i = 0; i < ms->nr_legs; i++)
		where[i].dev = ms->legs[i].dev;
	error = dm_io_sync(DM_FLUSH, 0, ms->nr_legs, where, NULL, 0, errors);
	for (unsigned i = 0; i < ms->nr_legs; i++)
		if (errors[i])
			atomic_store(&ms->legs[i].flush_failed, true);
	return error;
}

void mirror_fail_flush(struct mirror *ms)
{
	for (unsigned i = 0; i < ms->nr_legs; i++)
		if (atomic_exchange(&ms->legs[i].flush_failed, false))
			mirror_fail_leg(ms, i, LEG_FLUSH_ERROR);
	regions_lost_sync(ms);
	atomic_store(&ms->in_sync, false);
}

void mirror_failed(struct mirror_bio *b)
{
	struct mirror *ms = b->ms;

	pthread_mutex_lock(&ms->lock);
	dm_bio_list_add(&ms->failures, b->bio);
	pthread_mutex_unlock(&ms->lock);
	mirror_wake(ms);
}

static void release(struct dm_hold *holds, struct dm_bio *bio, int error)
{
	struct mirror_bio *b = bio->private;

	b->requeue = error != -EINTR && dm_target_noflush(b->ms->ti);
	mirror_write_end(b, error);
}

static void hold(struct mirror_bio *b)
{
	int error = dm_hold_add(&b->ms->holds, b->bio);

	if (error)
		release(&b->ms->holds, b->bio, error == -EAGAIN ? -EIO : error);
}

/* Whether some leg that missed nothing has what the bio wrote; with a shared log, whether the first leg has. */
static bool some_leg_has_it(struct mirror_bio *b)
{
	for (unsigned i = 0; i < b->nr && b->ms->shared; i++)
		if (!b->legs[i].bio.error && b->legs[i].leg == atomic_load(&b->ms->primary))
			return true;
	if (b->ms->shared)
		return false;
	for (unsigned i = 0; i < b->nr; i++)
		if (!b->legs[i].bio.error && !leg_is_stale(&b->ms->legs[b->legs[i].leg]))
			return true;
	return false;
}

static bool some_leg_is_left(struct mirror *ms)
{
	for (unsigned i = 0; i < ms->nr_legs; i++)
		if (!leg_is_stale(&ms->legs[i]))
			return true;
	return false;
}

/*
 * A discard is a wish: a leg that does not fulfil it has not failed.  But some have dropped the sectors and
 * some have not: that is mended at once.
 */
static void mend_discard(struct mirror_bio *b)
{
	struct mirror *ms = b->ms;
	uint64_t nr = b->region->nr;
	int error = 0;

	for (unsigned i = 0; i < b->nr; i++)
		error = error ? error : b->legs[i].bio.error;
	if (ms->shared ? b->region->state == REGION_DIRTY : region_in_sync(ms, nr)) {
		atomic_store(&ms->in_sync, false);
		region_lost_sync(ms, nr);
		g_array_append_val(ms->again, nr);
	}
	mirror_write_end(b, error);
}

static void legs_missed(struct mirror_bio *b)
{
	struct mirror *ms = b->ms;

	for (unsigned i = 0; i < b->nr; i++)
		if (b->legs[i].bio.error)
			mirror_fail_leg(ms, b->legs[i].leg, LEG_WRITE_ERROR);
	atomic_store(&ms->in_sync, false);
	if (b->region)
		region_lost_sync(ms, b->region->nr);
	else
		regions_lost_sync(ms);
}

static void deal_with(struct mirror_bio *b)
{
	struct mirror *ms = b->ms;
	bool sent = !b->log_failed && !b->blocked;

	if (sent && b->bio->op == DM_DISCARD) {
		mend_discard(b);
		return;
	}
	if (sent)
		legs_missed(b);
	if (sent ? !some_leg_has_it(b)
		 : !some_leg_is_left(ms) || (b->log_failed && (ms->keep_log || !ms->handle_errors)))
		mirror_write_end(b, -EIO);
	else if (ms->handle_errors && !ms->keep_log)
		hold(b);
	else
		mirror_write_end(b, 0);
}

/* --- the worker ---------------------------------------------------------------------- */

static void all_in_sync(struct mirror *ms)
{
	for (unsigned i = 0; i < ms->nr_legs; i++)
		atomic_store(&ms->legs[i].errors, 0);
	atomic_store(&ms->leg_failure, false);
	atomic_store(&ms->in_sync, true);
	mirror_arm_cleaner(ms);
	dm_target_event(ms->ti, NULL, NULL);
}

/* The cleaner has flushed the legs: now it may be said that all is in sync. */
static void announce(struct mirror *ms, bool flushed)
{
	if (flushed && ms->log->type->sync_count(ms->log) == ms->log->regions)
		all_in_sync(ms);
	/* If the legs could not be flushed it is not tried again before the next resume. */
	ms->announcing = !flushed;
}

static void check_in_sync(struct mirror *ms)
{
	if (atomic_load(&ms->in_sync) || atomic_load(&ms->stopped) || ms->announcing ||
	    ms->log->type->sync_count(ms->log) < ms->log->regions)
		return;
	ms->announcing = true;
	pthread_mutex_lock(&ms->lock);
	ms->announce = true;
	pthread_mutex_unlock(&ms->lock);
	dm_wq_queue(ms->io_wq, &ms->cleaner);
}

static void raise_event(struct mirror *ms)
{
	if (atomic_exchange(&ms->event_due, false))
		dm_target_event(ms->ti, NULL, NULL);
}

struct jobs {
	struct region *to_mark;
	struct dm_bio_list failures;
	struct run *runs;
	GArray *to_clean;
	bool flush_failed, announced;
};

static void take_jobs(struct mirror *ms, struct jobs *jobs)
{
	dm_bio_list_init(&jobs->failures);
	pthread_mutex_lock(&ms->lock);
	jobs->to_mark = ms->to_mark;
	ms->to_mark = NULL;
	dm_bio_list_take(&ms->failures, &jobs->failures);
	jobs->runs = ms->done_runs;
	ms->done_runs = NULL;
	jobs->to_clean = ms->to_clean;
	ms->to_clean = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	jobs->flush_failed = ms->flush_failed;
	jobs->announced = ms->announced;
	ms->flush_failed = ms->announced = false;
	pthread_mutex_unlock(&ms->lock);
}

static void work(struct dm_work *w)
{
	struct mirror *ms = container_of(w, struct mirror, worker);
	struct jobs jobs;
	struct dm_bio *bio;

	take_jobs(ms, &jobs);
	if (ms->shared)
		shared_work(ms);
	regions_mark(ms, jobs.to_mark);
	if (jobs.flush_failed)
		mirror_fail_flush(ms);
	while ((bio = dm_bio_list_pop(&jobs.failures)))
		deal_with(bio->private);
	runs_finish(ms, jobs.runs);
	regions_clean(ms, jobs.to_clean);
	if (jobs.announced)
		announce(ms, !jobs.flush_failed);
	raise_event(ms);
	recovery_start(ms);
	check_in_sync(ms);
	if (ms->shared)
		shared_arm(ms);
	g_array_free(jobs.to_clean, TRUE);
}

/* --- suspend and resume ----------------------------------------------------------------- */

static void mirror_presuspend(struct dm_target *ti)
{
	struct mirror *ms = ti->private;
	struct dm_bio_list held;
	struct dm_bio *bio;

	dm_bio_list_init(&held);
	dm_hold_open(&ms->holds, &held);
	while ((bio = dm_bio_list_pop(&held)))
		release(&ms->holds, bio, -EIO);
	if (ms->shared)
		shared_suspending(ms);
	recovery_stop(ms);
}

static void begin(struct mirror *ms)
{
	atomic_store(&ms->stopped, false);
	dm_hold_close(&ms->holds);
	pthread_mutex_lock(&ms->lock);
	ms->recovering = dm_target_mode(ms->ti) & DM_MODE_WRITE;
	pthread_mutex_unlock(&ms->lock);
	mirror_wake(ms);
}

static void mirror_presuspend_undo(struct dm_target *ti)
{
	struct mirror *ms = ti->private;

	if (ms->shared)
		shared_resuming(ms);
	begin(ms);
}

/*
 * The timer, the cleaner and the worker wake each other, but not once stopped is set: the first two flushes end those
 * that have not seen it.
 */
static void quiet(struct mirror *ms)
{
	atomic_store(&ms->stopped, true);
	dm_wq_flush(ms->wq);
	dm_wq_flush(ms->io_wq);
	dm_timer_cancel_sync(&ms->timer);
	dm_timer_cancel_sync(&ms->ask_timer);
	dm_wq_flush(ms->io_wq);
	dm_wq_flush(ms->wq);
	atomic_store(&ms->timer_armed, false);
}

static void mirror_postsuspend(struct dm_target *ti)
{
	struct mirror *ms = ti->private;

	dm_block_begin();
	dm_dirty_log_end_waiting(ms->log); /* nobody's I/O waits for it any more */
	quiet(ms);
	/* Not before: the worker has the log to itself. */
	if (ms->log->type->presuspend && ms->log->type->presuspend(ms->log))
		dm_log_warn("mirror: log presuspend failed");
	regions_settle(ms);
	raise_event(ms);
	if (ms->log->type->postsuspend && ms->log->type->postsuspend(ms->log))
		dm_log_warn("mirror: log postsuspend failed");
	dm_block_end();
}

static int mirror_preresume(struct dm_target *ti, GError **err)
{
	struct mirror *ms = ti->private;

	return ms->log->type->preresume ? ms->log->type->preresume(ms->log, err) : 0;
}

static void mirror_resume(struct dm_target *ti)
{
	struct mirror *ms = ti->private;

	if (ms->shared)
		shared_resuming(ms);
	if (ms->log->type->resume && ms->log->type->resume(ms->log))
		dm_log_warn("mirror: log resume failed");
	g_array_set_size(ms->again, 0);
	ms->announcing = false;
	if (ms->log->type->sync_count(ms->log) < ms->log->regions)
		atomic_store(&ms->in_sync, false);
	begin(ms);
}

static void mirror_end_waiting(struct dm_target *ti)
{
	struct mirror *ms = ti->private;

	dm_dirty_log_end_waiting(ms->log);
}

/* --- the constructor ------------------------------------------------------------------------ */

static int parse_log(struct mirror *ms, struct dm_args *as, GError **err)
{
	const char *type = dm_shift_arg(as), *count = dm_shift_arg(as);
	unsigned n, used;
	int error;

	if (!count)
		return dm_fail(err, EINVAL, "mirror: Insufficient mirror log arguments: <log type> <#log params> are the "
					    "least");
	if (!dm_parse_uint(count, &n))
		return dm_fail(err, EINVAL, "mirror: Invalid mirror log argument count '%s'", count);
	if (n > (unsigned)as->argc)
		return dm_fail(err, EINVAL, "mirror: Insufficient mirror log arguments: '%s' are said to follow, there "
					    "are %d", count, as->argc);
	used = n;
	if (n && !strcmp(as->argv[n - 1], "block_on_error")) {
		ms->handle_errors = true;
		used--;
	}
	error = dm_dirty_log_new(ms->ti, "mirror", type, (int)used, as->argv, &ms->log, err);
	as->argc -= (int)n;
	as->argv += n;
	return error;
}

static int parse_legs(struct mirror *ms, struct dm_args *as, GError **err)
{
	const char *count = dm_shift_arg(as);
	unsigned n;

	if (!count || !dm_parse_uint(count, &n) || n < MIN_LEGS || n > MAX_LEGS)
		return dm_fail(err, EINVAL, "mirror: Invalid number of mirrors '%s', %u to %u would be right",
			       count ? count : "", MIN_LEGS, MAX_LEGS);
	if ((unsigned)as->argc < 2 * n)
		return dm_fail(err, EINVAL, "mirror: Too few mirror arguments: %u legs are %u devices and offsets, there "
					    "are %d", n, 2 * n, as->argc);
	ms->legs = g_new0(struct leg, n);
	for (unsigned i = 0; i < n; i++) {
		const char *name = dm_shift_arg(as), *offset = dm_shift_arg(as);
		int error = dm_read_u64(offset, 0, UINT64_MAX, "mirror", "leg offset", &ms->legs[i].offset, err);

		if (!error)
			error = dm_get_device(ms->ti, name, dm_target_mode(ms->ti), &ms->legs[i].dev, err);
		if (error)
			return error;
		ms->nr_legs++;
	}
	return 0;
}

static int parse_features(struct mirror *ms, struct dm_args *as, GError **err)
{
	unsigned n;
	int error = dm_read_arg_group(as, 0, UINT32_MAX, true, "mirror", "features", &n, err);

	for (; !error && n; n--) {
		const char *word = dm_shift_arg(as);

		if (!strcmp(word, "handle_errors") || !strcmp(word, "block_on_error"))
			ms->handle_errors = true;
		else if (!strcmp(word, "keep_log"))
			ms->keep_log = true;
		else
			error = dm_fail(err, EINVAL, "mirror: Unrecognised feature requested: '%s', handle_errors or "
						     "keep_log would be right", word);
	}
	if (error)
		return error;
	if (ms->keep_log && !ms->handle_errors)
		return dm_fail(err, EINVAL, "mirror: keep_log feature requires the handle_errors feature");
	if (as->argc)
		return dm_fail(err, EINVAL, "mirror: Too many mirror arguments: '%s' is not expected", as->argv[0]);
	return 0;
}

static struct mirror *mirror_new(struct dm_target *ti)
{
	struct mirror *ms = g_new0(struct mirror, 1);

	ms->ti = ti;
	pthread_mutex_init(&ms->lock, NULL);
	pthread_cond_init(&ms->recovery_stopped, NULL);
	dm_bio_list_init(&ms->failures);
	dm_hold_init(&ms->holds, release, 0);
	ms->sectors = dm_block_lock_new(SECTORS_SHIFT);
	ms->to_clean = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	ms->again = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	ms->stopped = true;
	ms->worker.fn = work;
	ms->cleaner.fn = mirror_clean_work;
	ms->timer.fn = mirror_clean_timer;
	shared_init(ms);
	atomic_init(&ms->throttle.percent, 100);
	for (unsigned i = 0; i < SHARDS; i++) {
		pthread_mutex_init(&ms->shards[i].lock, NULL);
		ms->shards[i].regions = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
	}
	return ms;
}

static void mirror_free(struct mirror *ms)
{
	if (ms->wq)
		quiet(ms);
	if (ms->kcopyd)
		dm_kcopyd_client_free(ms->kcopyd);
	dm_wq_free(ms->io_wq);
	dm_wq_free(ms->wq);
	dm_block_lock_free(ms->sectors);
	dm_hold_destroy(&ms->holds);
	shared_destroy(ms);
	for (unsigned i = 0; i < SHARDS; i++) {
		g_hash_table_destroy(ms->shards[i].regions);
		pthread_mutex_destroy(&ms->shards[i].lock);
	}
	for (unsigned i = 0; i < ms->nr_legs; i++)
		dm_put_device(ms->ti, ms->legs[i].dev);
	dm_dirty_log_free(ms->log);
	g_array_free(ms->to_clean, TRUE);
	g_array_free(ms->again, TRUE);
	g_free(ms->legs);
	g_free(ms->degraded);
	pthread_mutex_destroy(&ms->lock);
	pthread_cond_destroy(&ms->recovery_stopped);
	g_free(ms);
}

static void mirror_dtr(struct dm_target *ti)
{
	mirror_free(ti->private);
}

static int mirror_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct mirror *ms = mirror_new(ti);
	struct dm_args as = {argc, argv};
	int error = parse_log(ms, &as, err);

	if (!error)
		error = parse_legs(ms, &as, err);
	if (!error)
		error = parse_features(ms, &as, err);
	if (!error) {
		ms->degraded = g_try_malloc0(ms->log->regions / 8 + 1);
		if (!ms->degraded)
			error = dm_fail(err, ENOMEM, "mirror: no memory for a bitmap of %" PRIu64 " regions",
					ms->log->regions);
	}
	if (error) {
		mirror_free(ms);
		return error;
	}
	ms->shared = dm_dirty_log_is_shared(ms->log);
	ms->region_shift = dm_log2(ms->log->region_sectors);
	ms->in_sync = ms->log->type->sync_count(ms->log) == ms->log->regions;
	ms->wq = dm_wq_new("mirror", 1);
	ms->io_wq = dm_wq_new("mirror-io", 16);
	ms->kcopyd = dm_kcopyd_client_new(&ms->throttle, 0);
	ti->private = ms;
	ti->max_io_sectors = ms->log->region_sectors;
	ti->split_discards = true;
	ti->num_discard_bios = 1;
	ti->num_write_zeroes_bios = 1;
	ti->per_bio_size = (uint32_t)(sizeof(struct mirror_bio) + ms->nr_legs * sizeof(struct leg_bio));
	return 0;
}

/* --- the rest --------------------------------------------------------------------------------- */

static char leg_letter(const struct leg *leg)
{
	unsigned errors = atomic_load(&leg->errors);

	if (!errors)
		return 'A';
	return errors & 1u << LEG_FLUSH_ERROR ? 'F'
	       : errors & 1u << LEG_WRITE_ERROR ? 'D'
	       : errors & 1u << LEG_SYNC_ERROR	? 'S'
						: 'R';
}

static void print_info(struct mirror *ms, GString *out)
{
	g_string_append_printf(out, "%u ", ms->nr_legs);
	for (unsigned i = 0; i < ms->nr_legs; i++) {
		dm_dev_print(ms->legs[i].dev, out);
		g_string_append_c(out, ' ');
	}
	g_string_append_printf(out, "%" PRIu64 "/%" PRIu64 " 1 ", ms->log->type->sync_count(ms->log), ms->log->regions);
	for (unsigned i = 0; i < ms->nr_legs; i++)
		g_string_append_c(out, leg_letter(&ms->legs[i]));
	g_string_append_c(out, ' ');
	ms->log->type->status(ms->log, DM_STATUS_INFO, out);
}

static void print_table(struct mirror *ms, GString *out)
{
	ms->log->type->status(ms->log, DM_STATUS_TABLE, out);
	g_string_append_printf(out, " %u", ms->nr_legs);
	for (unsigned i = 0; i < ms->nr_legs; i++) {
		g_string_append_c(out, ' ');
		dm_dev_print(ms->legs[i].dev, out);
		g_string_append_printf(out, " %" PRIu64, ms->legs[i].offset);
	}
	if (ms->handle_errors)
		g_string_append(out, ms->keep_log ? " 2 handle_errors keep_log" : " 1 handle_errors");
}

static void mirror_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	if (type == DM_STATUS_INFO)
		print_info(ti->private, out);
	else
		print_table(ti->private, out);
}

/* raid1_resync_throttle <percent>: the kernel has it as a module's parameter. */
static int mirror_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	struct mirror *ms = ti->private;
	unsigned percent;
	int error;

	if (argc != 2 || strcmp(argv[0], "raid1_resync_throttle"))
		return dm_fail(err, EINVAL, "mirror: Unrecognised message '%s', raid1_resync_throttle <percent> is the only "
					    "one", argc ? argv[0] : "");
	error = dm_read_uint(argv[1], 1, 100, "mirror", "resync throttle percentage", &percent, err);
	if (!error)
		atomic_store(&ms->throttle.percent, percent);
	return error;
}

static int mirror_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct mirror *ms = ti->private;
	int error = 0;

	for (unsigned i = 0; i < ms->nr_legs && !error; i++)
		error = fn(ti, ms->legs[i].dev, ms->legs[i].offset, ti->len, data);
	return error;
}

/* A discard that one leg refuses would have to be mended every time. */
static void mirror_io_hints(struct dm_target *ti, struct dm_limits *limits)
{
	struct mirror *ms = ti->private;

	for (unsigned i = 0; i < ms->nr_legs; i++) {
		struct dm_limits leg;

		dm_dev_limits(ms->legs[i].dev, &leg);
		limits->max_discard_sectors = MIN(limits->max_discard_sectors, leg.max_discard_sectors);
	}
}

static int mirror_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct mirror *ms = ti->private;
	uint64_t nr = sector >> ms->region_shift;
	unsigned leg = atomic_load(&ms->primary);

	sectors = MIN(sectors, ((nr + 1) << ms->region_shift) - sector);
	if (region_in_sync(ms, nr) || dm_region_bit_test(ms->degraded, nr))
		for (unsigned i = 0; i < ms->nr_legs && leg_is_stale(&ms->legs[leg]); i++)
			leg = i;
	return dm_dev_extent(ms->legs[leg].dev, ms->legs[leg].offset + sector, sectors, out);
}

static uint64_t mirror_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct mirror *ms = ti->private;
	uint64_t most = 0;

	for (unsigned i = 0; i < ms->nr_legs; i++) /* a leg may have zeroes where another has a hole */
		most = MAX(most, dm_dev_provisioned(ms->legs[i].dev, ms->legs[i].offset + sector, sectors));
	return most;
}

const struct dm_target_type mirror_target = {
	.name = "mirror",
	.version = {1, 14, 0},
	.features = DM_TARGET_STRAIGHT | DM_TARGET_HANDS_OVER,
	.per_bio_size = sizeof(struct mirror_bio),
	.ctr = mirror_ctr,
	.dtr = mirror_dtr,
	.map = mirror_map,
	.end_io = mirror_end_io,
	.presuspend = mirror_presuspend,
	.presuspend_undo = mirror_presuspend_undo,
	.postsuspend = mirror_postsuspend,
	.preresume = mirror_preresume,
	.resume = mirror_resume,
	.end_waiting = mirror_end_waiting,
	.status = mirror_status,
	.message = mirror_message,
	.iterate_devices = mirror_iterate_devices,
	.io_hints = mirror_io_hints,
	.extent = mirror_extent,
	.provisioned = mirror_provisioned,
};
