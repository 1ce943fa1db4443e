/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * snapshot: an origin as it was, and what has been written to it since
 * (snapshot.rst).
 *
 *   <origin> <COW device> <P|PO|N> <chunksize> [<#feature args> [discard_zeroes_cow] [discard_passdown_origin]]
 *
 * snapshot-merge: the same line; an origin into which such a snapshot goes back.
 *
 * Only one target at a time has a COW store's exceptions.  A second one for
 * the same origin and COW device, in a table that is not live yet, waits for a
 * handover: it takes them when it is resumed, while the first is suspended.
 * Joining an origin stops the writes to it for that moment.
 */
#include <inttypes.h>
#include <malloc.h>

#include "snapshot.h"

#include <dmfs/claim.h>
#include <dmfs/rounding.h>

static void wait_idle(struct snapshot *s)
{
	dm_under_way_wait(&s->users);
	if (!s->cow)
		return;
	dm_block_begin();
	snap_store_wait(s->cow->store);
	dm_block_end();
}

/* --- exceptions and their store ---------------------------------------------------------- */

static struct cow *cow_new(struct snapshot *s)
{
	struct cow *cow = aligned_alloc(64, sizeof *cow);

	g_assert(cow);
	*cow = (struct cow){.store = snap_store_new(s->kind, s->cow_dev), .kcopyd = dm_kcopyd_client_new(NULL, 0)};
	cow->copies = dm_block_lock_new(0);
	cow->users = dm_block_lock_new(0);
	for (unsigned i = 0; i < SHARDS; i++)
		pthread_mutex_init(&cow->shards[i].lock, NULL);
	return cow;
}

static void cow_free(struct cow *cow)
{
	if (!cow)
		return;
	dm_kcopyd_client_free(cow->kcopyd);
	snap_store_free(cow->store);
	dm_block_lock_free(cow->copies);
	dm_block_lock_free(cow->users);
	for (unsigned i = 0; i < SHARDS; i++) {
		dm_index_clear(&cow->shards[i].complete);
		pthread_mutex_destroy(&cow->shards[i].lock);
	}
	free(cow);
}

static int check_chunk(void *context, uint32_t chunk_sectors, GError **err)
{
	struct snapshot *s = context;

	for (unsigned i = 0; i < 2; i++) {
		struct dm_limits limits;

		dm_dev_limits(i ? s->origin_dev : s->cow_dev, &limits);
		if (((uint64_t)chunk_sectors << DM_SECTOR_SHIFT) % limits.logical_block_size)
			return dm_fail(err, EINVAL,
				       "snapshot: chunk size %" PRIu32 " is not a multiple of device blocksize: %u bytes of "
				       "the %s", chunk_sectors, limits.logical_block_size, i ? "origin" : "COW device");
	}
	return 0;
}

static int add_exception(void *context, uint64_t old_chunk, uint64_t new_chunk)
{
	struct snapshot *s = context;

	return dm_index_add(&snap_shard(s, old_chunk)->complete, old_chunk, new_chunk) ? 0 : -EEXIST;
}

static int open_store(struct snapshot *s, GError **err)
{
	struct snap_reader rd = {s->origin_sectors, check_chunk, add_exception, s};
	int r;

	s->cow = cow_new(s);
	dm_block_begin();
	r = snap_store_open(s->cow->store, s->wanted_chunk_sectors, &rd, err);
#ifdef __GLIBC__
	malloc_trim(0); /* what the sets of a large store grew out of */
#endif
	dm_block_end();
	if (r < 0)
		return r;
	s->cow->chunk_sectors = s->wanted_chunk_sectors = snap_chunk_sectors(s->cow->store);
	s->cow->shift = dm_log2(s->cow->chunk_sectors);
	s->ti->max_io_sectors = s->cow->chunk_sectors;
	if (r)
		atomic_store(&s->state, SNAP_INVALID);
	return 0;
}

/* --- who shares an origin and a COW device; origin->control held ---------------------------- */

struct sharers {
	unsigned n;
	struct snapshot *from, *to; /* the active one, and the one that waits for a handover */
	struct snapshot *merging;   /* of the origin, whatever its COW device */
};

static struct sharers find_sharers(struct snapshot *s)
{
	struct sharers sh = {0};

	for (guint i = 0; i < s->origin->snapshots->len; i++) {
		struct snapshot *other = s->origin->snapshots->pdata[i];

		if (other->merging)
			sh.merging = other;
		if (!dm_dev_same(other->cow_dev, s->cow_dev))
			continue;
		sh.n++;
		if (other->active)
			sh.from = other;
		else
			sh.to = other;
	}
	return sh;
}

/* 1: it will get its exceptions by a handover; 0: it reads them itself. */
static int check_handover(struct snapshot *s, GError **err)
{
	struct sharers sh = find_sharers(s);

	if (sh.n == 2 || sh.to)
		return dm_fail(err, EINVAL,
			       "snapshot: Snapshot cow pairing for exception table handover failed: another table waits "
			       "for this COW device's exceptions already");
	if (!sh.from)
		return 0;
	if (s->merging && sh.merging)
		return dm_fail(err, EINVAL, "snapshot-merge: A snapshot is already merging into this origin.");
	if (s->merging && sh.from->kind != SNAP_PERSISTENT)
		return dm_fail(err, EINVAL,
			       "snapshot-merge: Snapshot exception store does not support snapshot-merge: only type P does");
	return 1;
}

static void leave_origin(struct snapshot *s)
{
	struct sharers sh;

	pthread_mutex_lock(&s->origin->control);
	sh = find_sharers(s);
	if (sh.from == s && sh.to) {
		dm_log_err("snapshot: Cancelling snapshot handover.");
		atomic_store(&sh.to->state, SNAP_INVALID);
	}
	origin_lock_all(s->origin);
	g_ptr_array_remove(s->origin->snapshots, s);
	origin_unlock_all(s->origin);
	pthread_mutex_unlock(&s->origin->control);
}

/* --- the line ---------------------------------------------------------------------------------- */

static int parse_features(struct snapshot *s, int argc, char **argv, GError **err)
{
	struct dm_args as = {argc, argv};
	unsigned n;
	int error = dm_read_arg_group(&as, 0, 2, true, s->ti->type->name, "feature arguments", &n, err);

	for (; !error && n; n--) {
		const char *arg = dm_shift_arg(&as);

		if (!g_ascii_strcasecmp(arg, "discard_zeroes_cow"))
			s->discard_zeroes_cow = true;
		else if (!g_ascii_strcasecmp(arg, "discard_passdown_origin"))
			s->discard_passdown_origin = true;
		else
			error = dm_fail(err, EINVAL,
					"%s: Unrecognised feature requested: '%s', there are discard_zeroes_cow and "
					"discard_passdown_origin",
					s->ti->type->name, arg);
	}
	if (!error && s->discard_passdown_origin && !s->discard_zeroes_cow)
		error = dm_fail(err, EINVAL, "%s: discard_passdown_origin feature depends on discard_zeroes_cow",
				s->ti->type->name);
	return error;
}

static int parse_store(struct snapshot *s, const char *type, const char *chunk, GError **err)
{
	const char *who = s->ti->type->name;
	unsigned sectors;
	int error;

	switch (g_ascii_toupper(type[0])) {
	case 'P':
		s->kind = SNAP_PERSISTENT;
		s->overflow_option = g_ascii_toupper(type[1]) == 'O';
		if (type[1] && !s->overflow_option)
			return dm_fail(err, EINVAL, "%s: Unsupported persistent store option '%s', there is O", who,
				       type + 1);
		break;
	case 'N':
		s->kind = SNAP_TRANSIENT;
		break;
	default:
		return dm_fail(err, EINVAL, "%s: Exception store type '%s' is not P or N", who, type);
	}
	if (s->merging && s->kind != SNAP_PERSISTENT)
		return dm_fail(err, EINVAL, "%s: Snapshot exception store does not support snapshot-merge: only type P does",
			       who);
	/* as the kernel reads it: a '+' may stand before the number */
	error = dm_read_uint(chunk + (*chunk == '+'), 0, UINT_MAX, who, "chunk size", &sectors, err);
	if (error)
		return error;
	if (sectors && !dm_is_pow2(sectors))
		return dm_fail(err, EINVAL, "%s: Chunk size %u is not a power of 2", who, sectors);
	if (sectors > INT_MAX >> DM_SECTOR_SHIFT)
		return dm_fail(err, EINVAL, "%s: Chunk size %u is too high, %u sectors are the most", who, sectors, 1u << 21);
	s->wanted_chunk_sectors = sectors;
	return sectors ? check_chunk(s, sectors, err) : 0;
}

/*
 * The COW device is written by writes to the origin even if the snapshot itself is read-only.  Only where that is not
 * possible is it opened for reading.
 */
static int open_cow(struct snapshot *s, const char *name, GError **err)
{
	if (dm_target_mode(s->ti) == DM_MODE_READ && !dm_get_device(s->ti, name, DM_MODE_RW, &s->cow_dev, NULL))
		return 0;
	return dm_get_device(s->ti, name, dm_target_mode(s->ti), &s->cow_dev, err);
}

static int open_devices(struct snapshot *s, char **argv, GError **err)
{
	enum dm_mode mode = s->merging || s->discard_passdown_origin ? DM_MODE_RW : DM_MODE_READ;
	int error = dm_get_device(s->ti, argv[0], mode, &s->origin_dev, err);

	if (!error)
		error = open_cow(s, argv[1], err);
	if (!error && dm_dev_same(s->origin_dev, s->cow_dev))
		error = dm_fail(err, EINVAL, "%s: COW device cannot be the same as origin device: '%s'",
				s->ti->type->name, argv[1]);
	return error;
}

static void snapshot_free(struct snapshot *s)
{
	dm_wq_free(s->merge_wq);
	cow_free(s->cow);
	dm_rows_close(s->rows);
	if (s->origin)
		origin_put(s->origin);
	dm_put_device(s->ti, s->cow_dev);
	dm_put_device(s->ti, s->origin_dev);
	pthread_mutex_destroy(&s->lock);
	dm_under_way_destroy(&s->users);
	g_free(s);
}

static int register_and_read(struct snapshot *s, GError **err)
{
	struct dm_target *active;
	int r;

	/* of an origin that waits for its first resume, as much as the table says */
	s->origin_sectors = MAX(dm_dev_sectors(s->origin_dev), s->ti->len);
	s->origin = origin_get(s->origin_dev);
	pthread_mutex_lock(&s->origin->control);
	r = check_handover(s, err);
	active = r > 0 ? find_sharers(s).from->ti : NULL;
	if (r >= 0)
		r = dm_claim_with(s->ti, s->cow_dev, s->cow_dev->mode, "COW device", active, err);
	if (!r && !active) {
		r = open_store(s, err);
		if (!r)
			r = snap_invalid_known(s, absent_missed(s->origin, dm_target_mapped(s->ti)), err);
	}
	if (!r) {
		origin_lock_all(s->origin);
		g_ptr_array_add(s->origin->snapshots, s);
		origin_unlock_all(s->origin);
	}
	pthread_mutex_unlock(&s->origin->control);
	return r;
}

static int snapshot_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct snapshot *s;
	int error;

	if (argc < 4)
		return dm_fail(err, EINVAL,
			       "%s: requires 4 or more arguments: <origin> <COW device> <P|PO|N> <chunksize>, there are %d",
			       ti->type->name, argc);
	s = g_new0(struct snapshot, 1);
	s->ti = ti;
	s->merging = ti->type == &snapshot_merge_target;
	pthread_mutex_init(&s->lock, NULL);
	dm_under_way_init(&s->users);
	dm_bio_list_init(&s->wait_invalid);
	merge_init(s);
	snap_invalid_init(s);
	ti->private = s;
	error = parse_features(s, argc - 4, argv + 4, err);
	if (!error)
		error = open_devices(s, argv, err);
	if (!error)
		error = parse_store(s, argv[2], argv[3], err);
	if (!error)
		error = register_and_read(s, err);
	if (error) {
		snapshot_free(s);
		return error;
	}
	ti->num_flush_bios = s->merging ? 2 : 1;
	if (s->discard_zeroes_cow) {
		ti->num_discard_bios = s->discard_passdown_origin ? 2 : 1;
		ti->discards_supported = true;
		ti->split_discards = true;
	}
	return 0;
}

static void snapshot_dtr(struct dm_target *ti)
{
	struct snapshot *s = ti->private;

	if (s->merging)
		merge_stop(s);
	leave_origin(s);
	wait_idle(s);
	snap_invalid_end(s);
	snapshot_free(s);
}

/* --- joining, handover ------------------------------------------------------------------------------ */

static int snapshot_preresume(struct dm_target *ti, GError **err)
{
	struct snapshot *s = ti->private;
	struct sharers sh;
	int error = 0;

	pthread_mutex_lock(&s->origin->control);
	sh = find_sharers(s);
	if (sh.from && sh.to && sh.from == s)
		error = dm_fail(err, EINVAL, "%s: Unable to resume snapshot source until handover completes", ti->type->name);
	else if (sh.from && sh.to && !dm_target_suspending(sh.from->ti))
		error = dm_fail(err, EINVAL, "%s: Unable to perform snapshot handover until source is suspended",
				ti->type->name);
	pthread_mutex_unlock(&s->origin->control);
	return error;
}

/* Every lock of the origin is held and nobody writes to it; `from` is suspended; nobody asks for a status. */
static void hand_over(struct snapshot *from, struct snapshot *to)
{
	to->cow = from->cow;
	from->cow = NULL;
	to->kind = from->kind;
	atomic_store(&to->state, snap_state(from));
	atomic_store(&to->overflowed, atomic_load(&from->overflowed));
	atomic_store(&from->state, SNAP_INVALID);
	if (!to->cow)
		return;
	snap_store_set_dev(to->cow->store, to->cow_dev);
	to->wanted_chunk_sectors = to->cow->chunk_sectors;
	to->ti->max_io_sectors = to->cow->chunk_sectors;
}

/* Stops all writes to the origin, but not those of the caller's own device, which is suspended; control is held. */
static GPtrArray *stop_origin(struct snapshot *s, struct snapshot *merging)
{
	GPtrArray *stopped = g_ptr_array_new();
	struct dm_mapped *own = dm_target_mapped(s->ti);

	for (guint i = 0; i < s->origin->targets->len; i++)
		g_ptr_array_add(stopped, dm_target_mapped(s->origin->targets->pdata[i]));
	if (merging && merging != s && merging->active)
		g_ptr_array_add(stopped, dm_target_mapped(merging->ti));
	while (g_ptr_array_remove(stopped, own))
		;
	for (guint i = 0; i < stopped->len; i++)
		dm_mapped_quiesce(stopped->pdata[i]);
	return stopped;
}

static void snapshot_resume(struct dm_target *ti)
{
	struct snapshot *s = ti->private, *merging;
	struct origin *o = s->origin;
	g_autoptr(GPtrArray) stopped = NULL;
	bool restart = false, handover;
	struct sharers sh;

	if (s->active) {
		snap_invalid_begin(s);
		return;
	}
	dm_block_begin();
	pthread_mutex_lock(&o->control);
	sh = find_sharers(s);
	merging = sh.merging == s ? NULL : sh.merging;
	stopped = stop_origin(s, merging);
	if (merging && atomic_load(&merging->merge_running)) {
		merge_stop(merging);
		restart = true;
	}
	handover = sh.from && sh.to == s;
	if (handover) {
		wait_idle(sh.from);
		snap_invalid_end(sh.from);
		dm_status_pause(sh.from->ti, ti);
	}
	origin_lock_all(o);
	if (handover)
		hand_over(sh.from, s);
	s->active = true;
	origin_unlock_all(o);
	if (handover)
		dm_status_go_on(sh.from->ti, ti);
	if (restart)
		merge_start(merging);
	for (guint i = 0; i < stopped->len; i++)
		dm_mapped_unquiesce(stopped->pdata[i]);
	pthread_mutex_unlock(&o->control);
	snap_invalid_begin(s);
	dm_block_end();
}

static void snapshot_postsuspend(struct dm_target *ti)
{
	snap_invalid_end(ti->private);
}

static bool merge_misses(struct dm_target *ti, GString *who)
{
	struct snapshot *s = ti->private;

	return absent_names(s->origin, who);
}

static void merge_resume(struct dm_target *ti)
{
	snapshot_resume(ti);
	merge_start(ti->private);
}

static void merge_presuspend(struct dm_target *ti)
{
	merge_stop(ti->private);
}

static void merge_presuspend_undo(struct dm_target *ti)
{
	merge_start(ti->private);
}

/* --- what it says ------------------------------------------------------------------------------------- */

static void print_usage(struct snapshot *s, GString *out)
{
	uint64_t allocated = 0, total = dm_dev_sectors(s->cow_dev), metadata = 0;

	if (s->cow)
		snap_usage(s->cow->store, &allocated, &total, &metadata);
	g_string_append_printf(out, "%" PRIu64 "/%" PRIu64 " %" PRIu64, allocated, total, metadata);
}

static void snapshot_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct snapshot *s = ti->private;

	if (type == DM_STATUS_INFO) {
		if (snap_state(s) != SNAP_VALID)
			g_string_append(out, "Invalid");
		else if (atomic_load(&s->merge_failed))
			g_string_append(out, "Merge failed");
		else if (atomic_load(&s->overflowed))
			g_string_append(out, "Overflow");
		else
			print_usage(s, out);
		return;
	}
	dm_dev_print(s->origin_dev, out);
	g_string_append_c(out, ' ');
	dm_dev_print(s->cow_dev, out);
	g_string_append_printf(out, " %s %" PRIu32,
			       s->kind == SNAP_TRANSIENT ? "N" : s->overflow_option ? "PO" : "P",
			       s->wanted_chunk_sectors);
	if (s->discard_zeroes_cow)
		g_string_append_printf(out, " %d discard_zeroes_cow%s", 1 + s->discard_passdown_origin,
				       s->discard_passdown_origin ? " discard_passdown_origin" : "");
}

static int snapshot_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct snapshot *s = ti->private;
	int error = fn(ti, s->origin_dev, ti->begin, ti->len, data);

	return error ? error : fn(ti, s->cow_dev, 0, dm_dev_sectors(s->cow_dev), data);
}

static void snapshot_io_hints(struct dm_target *ti, struct dm_limits *limits)
{
	struct snapshot *s = ti->private;
	uint32_t chunk_sectors = s->wanted_chunk_sectors;
	struct sharers sh;

	if (!s->discard_zeroes_cow)
		return;
	pthread_mutex_lock(&s->origin->control);
	sh = find_sharers(s);
	if (sh.to == s && sh.from)
		chunk_sectors = sh.from->wanted_chunk_sectors;
	pthread_mutex_unlock(&s->origin->control);
	/* The engine splits discards at chunks, so there is no limit to their length. */
	limits->discard_granularity = chunk_sectors << DM_SECTOR_SHIFT;
}

#define BOTH                                                                                                          \
	.per_bio_size = sizeof(struct snap_bio), .ctr = snapshot_ctr, .dtr = snapshot_dtr, .end_io = snapshot_end_io,  \
	.postsuspend = snapshot_postsuspend, .preresume = snapshot_preresume, .status = snapshot_status,               \
	.iterate_devices = snapshot_iterate_devices, .io_hints = snapshot_io_hints, .extent = snapshot_extent,         \
	.provisioned = snapshot_provisioned

const struct dm_target_type snapshot_target = {
	BOTH,
	.name = "snapshot",
	.version = {1, 16, 0},
	.map = snapshot_map,
	.resume = snapshot_resume,
	.absent = &snapshot_absent,
};

const struct dm_target_type snapshot_merge_target = {
	BOTH,
	.name = "snapshot-merge",
	.version = {1, 5, 0},
	.map = merge_map,
	.presuspend = merge_presuspend,
	.presuspend_undo = merge_presuspend_undo,
	.resume = merge_resume,
	.misses = merge_misses,
};
