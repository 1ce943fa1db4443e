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

#define MIN_LEGS 2u
/* What fits in a bio's space. */
#define MAX_LEGS ((unsigned)((UINT16_MAX - sizeof(struct mirror_bio)) / sizeof(struct leg_bio)))

static void leave_hold(struct dm_hold *h, struct dm_bio *bio, int error)
{
	mirror_leave(bio->private, error);
}

static bool all_sound(void *context)
{
	const struct mirror *ms = context;
	unsigned stale = 0;

	for (unsigned i = 0; i < ms->nr_legs; i++)
		stale += leg_is_stale(&ms->legs[i]);
	return !stale;
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
		mirror_leave(bio->private, -EIO);
	dm_regions_presuspend(ms->regions);
}

static void mirror_presuspend_undo(struct dm_target *ti)
{
	struct mirror *ms = ti->private;

	dm_hold_close(&ms->holds);
	dm_regions_presuspend_undo(ms->regions);
}

static void mirror_postsuspend(struct dm_target *ti)
{
	struct mirror *ms = ti->private;

	dm_regions_postsuspend(ms->regions);
}

static int mirror_preresume(struct dm_target *ti, GError **err)
{
	struct mirror *ms = ti->private;

	return dm_regions_preresume(ms->regions, err);
}

static void mirror_resume(struct dm_target *ti)
{
	struct mirror *ms = ti->private;

	dm_hold_close(&ms->holds);
	dm_regions_resume(ms->regions);
}

static void mirror_end_waiting(struct dm_target *ti)
{
	struct mirror *ms = ti->private;

	dm_regions_end_waiting(ms->regions);
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

static const struct dm_regions_ops ops = {
	.write = mirror_write,
	.failed = mirror_failed,
	.log_failed = mirror_log_failed,
	.read = mirror_read,
	.leave = mirror_leave,
	.all_sound = all_sound,
	.flush = mirror_flush,
	.flush_failed = mirror_flush_failed,
	.copy = mirror_copy,
	.all_in_sync = mirror_all_in_sync,
};

static void mirror_dtr(struct dm_target *ti)
{
	struct mirror *ms = ti->private;

	if (ms->kcopyd)
		dm_kcopyd_client_free(ms->kcopyd); /* its callbacks use the regions until they return */
	if (ms->regions)
		dm_regions_free(ms->regions);
	else
		dm_dirty_log_free(ms->log);
	dm_hold_destroy(&ms->holds);
	for (unsigned i = 0; i < ms->nr_legs; i++)
		dm_put_device(ti, ms->legs[i].dev);
	g_free(ms->legs);
	g_free(ms);
}

static int mirror_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct mirror *ms = g_new0(struct mirror, 1);
	struct dm_args as = {argc, argv};
	int error;

	ti->private = ms;
	ms->ti = ti;
	dm_hold_init(&ms->holds, leave_hold, 0);
	error = parse_log(ms, &as, err);
	if (!error)
		error = parse_legs(ms, &as, err);
	if (!error)
		error = parse_features(ms, &as, err);
	if (!error)
		error = dm_regions_new(ti, ms->log, ms->handle_errors, &ops, ms, &ms->regions, err);
	if (error) {
		mirror_dtr(ti);
		return error;
	}
	ms->shared = dm_dirty_log_is_shared(ms->log);
	atomic_init(&ms->throttle.percent, 100);
	ms->kcopyd = dm_kcopyd_client_new(&ms->throttle, 0);
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
	unsigned leg = atomic_load(&ms->primary);
	uint64_t size = ms->log->region_sectors;

	sectors = MIN(sectors, size - (sector & (size - 1)));
	if (dm_regions_where(ms->regions, sector) != DM_REGION_FIRST)
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
