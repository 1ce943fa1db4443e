/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * raid: redundant arrays of devices (dm-raid.rst).
 *
 *   <type> <#params> <chunk> [<param>]* <#devs> [<meta dev> <data dev>]+
 *
 * The target: its constructor, hooks, status and messages.  The rooms are listed in raid.h.
 *
 * An array is assembled twice: in ctr, for what is wrong with it, and again at its first resume, since another
 * table of the same array may have run until then.  Nothing is written before that.
 */
#include <inttypes.h>

#include <dmfs/rows.h>

#include "journal.h"
#include "raid.h"

/*
 * Bios are cut at rows, but at no fewer sectors than these.  Without parity a row means nothing to them: they are cut so
 * that a discard of all is not one list of pieces.
 */
#define MIN_IO_SECTORS 2048u
#define MIN_PLAIN_SECTORS 65536u
#define ROW_BEGUN 1u

/* --- assembling --------------------------------------------------------------------------------------- */

static void read_super(const struct raid_pair *pair, struct raid_found *f)
{
	uint8_t block[RAID_SUPER_BYTES];

	f->has_data = pair->data != NULL;
	f->has_meta = pair->meta != NULL;
	if (f->has_data)
		f->data_sectors = dm_dev_sectors(pair->data);
	if (!f->has_meta)
		return;
	f->readable = dm_dev_sectors(pair->meta) >= 1 && !dm_read_sync(pair->meta, 0, 1, block, DM_META);
	f->has_super = f->readable && raid_super_decode(block, &f->sb);
}

/* What the line asks for once, when it comes back from the state, has been done or begun. */
static struct raid_params effective_params(const struct raid *r)
{
	struct raid_params p = r->params;

	if (r->continued) {
		p.given &= ~(1u << RAID_SYNC | 1u << RAID_REBUILD | 1u << RAID_DELTA_DISKS | 1u << RAID_DATA_OFFSET);
		p.rebuild = (struct raid_set){0};
		p.delta_disks = 0;
		p.value[RAID_DATA_OFFSET] = 0;
	}
	return p;
}

static void make_members(struct raid *r)
{
	r->members = g_new0(struct raid_member, r->disks);
	for (unsigned i = 0; i < r->disks; i++) {
		const struct raid_member_state *ms = &r->state.m[i];
		struct raid_member *m = &r->members[i];
		uint32_t flags = 0;

		m->meta = r->params.pairs[i].meta;
		m->data = r->params.pairs[i].data;
		m->data_offset = ms->data_offset;
		m->new_data_offset = ms->new_data_offset;
		if (!m->data || (r->state.persistent && !m->meta && r->state.level))
			flags |= RAID_MISSING;
		if (ms->faulty)
			flags |= RAID_FAULTY;
		else if (ms->in_sync)
			flags |= RAID_IN_SYNC;
		if (ms->partial)
			flags |= RAID_PARTIAL;
		if (raid_set_has(&r->params.write_mostly, i))
			flags |= RAID_WRITE_MOSTLY;
		atomic_store(&m->flags, flags);
		atomic_store(&m->recovered, ms->recovered);
		atomic_store(&m->checkpoint, ms->recovered);
	}
}

static const struct raid_ops *ops_of(const struct raid *r)
{
	unsigned level = r->state.level;

	if (r->state.reshape_position != RAID_NONE)
		return &raid_reshape_ops;
	return level == 0 ? &raid0_ops : level == 5 || level == 6 ? &raid_stripes_ops : &raid_copies_ops;
}

/* raid0 has no use for a device that is not there. */
static int check_raid0(struct raid *r, GError **err)
{
	for (unsigned i = 0; i < r->disks && !r->state.level; i++)
		if (!r->members[i].data)
			return dm_fail(err, EINVAL, "raid: too few disks: device %u is missing, raid0 needs all", i);
	return 0;
}

static void set_sizes(struct raid *r)
{
	const struct raid_state *s = &r->state;
	bool reshaping = s->reshape_position != RAID_NONE;
	struct raid_geo to;

	/* in a reshape: of the side with more devices, for who counts them */
	raid_geo_init(&r->geo, s->level, s->layout,
		      reshaping && s->delta_disks < 0 ? s->disks - (unsigned)s->delta_disks : s->disks, s->chunk,
		      s->dev_sectors);
	r->state.array_sectors =
	    reshaping ? raid_reshape_now(s) : MIN(s->array_sectors, raid_geo_array_sectors(&r->geo));
	r->sync_sectors = s->level == 10 ? raid_geo_array_sectors(&r->geo) : s->dev_sectors;
	if (reshaping && s->level == 10 &&
	    raid_geo_init(&to, s->new_level, s->new_layout, s->disks, s->new_chunk, s->dev_sectors))
		r->sync_sectors = MAX(r->sync_sectors, raid_geo_array_sectors(&to));
}

/* It is set up now, in the superblocks; it runs from the next load on, as the kernel's. */
static int begin_reshape(struct raid *r, GError **err)
{
	struct raid_state *s = &r->state;

	r->reshape_waits = s->begin_reshape;
	r->reshaped = false;
	if ((s->reshape_position != RAID_NONE || s->begin_reshape) && s->level != 5 && s->level != 6 && s->level != 10)
		return dm_fail(err, EOPNOTSUPP,
			       "raid: Reshape not supported: level %u, raid4/5/6 and raid10 can be reshaped", s->level);
	if (!s->begin_reshape)
		return 0;
	s->disks += (unsigned)s->delta_disks;
	s->reshape_position = s->backwards ? raid_reshape_now(s) : 0;
	return 0;
}

static int build(struct raid *r, GError **err)
{
	g_autofree struct raid_found *found = g_new0(struct raid_found, r->params.disks);
	struct raid_params p = effective_params(r);
	uint64_t len = r->ti->len;
	int error;

	for (unsigned i = 0; i < p.disks; i++)
		read_super(&r->params.pairs[i], &found[i]);
	error = raid_without_spares(&p, raid_spares(&r->params, found), &len, err);
	r->disks = p.disks;
	if (!error)
		error = raid_assemble(&p, len, found, &r->state, err);
	if (!error)
		error = begin_reshape(r, err);
	if (error)
		return error;
	set_sizes(r);
	make_members(r);
	error = check_raid0(r, err);
	if (error)
		return error;
	atomic_store(&r->resync_offset, r->state.resync_offset);
	raid_count_degraded(r);
	r->ops = ops_of(r);
	error = r->ops->start(r, err);
	return error ? error : raid_meta_open(r, err);
}

static void unbuild(struct raid *r)
{
	r->built = false;
	if (r->ops)
		r->ops->stop(r);
	r->ops = NULL;
	r->family = NULL;
	raid_meta_close(r);
	raid_state_clear(&r->state);
	g_clear_pointer(&r->members, g_free);
}

/* --- the constructor ------------------------------------------------------------------------------------- */

static bool all_discard(const struct raid *r)
{
	for (unsigned i = 0; i < r->disks; i++) {
		struct dm_limits limits;

		if (!r->members[i].data)
			return false;
		dm_dev_limits(r->members[i].data, &limits);
		if (!limits.max_discard_sectors)
			return false;
	}
	return true;
}

static void set_target(struct raid *r)
{
	struct dm_target *ti = r->ti;
	uint64_t row;

	ti->num_flush_bios = 1;
	ti->num_discard_bios = all_discard(r) && (!r->geo.parity) ? 1 : 0;
	ti->split_discards = true;
	if (r->state.reshape_position != RAID_NONE) {
		ti->max_io_sectors = MIN(r->state.chunk, r->state.new_chunk);
		ti->num_discard_bios = 0;
		return;
	}
	if (!r->geo.chunk)
		return;
	row = (uint64_t)r->geo.chunk * (r->geo.level == 10 ? r->geo.disks : r->geo.data);
	row = dm_round_up(r->geo.parity ? MIN_IO_SECTORS : MIN_PLAIN_SECTORS, row);
	ti->max_io_sectors = (uint32_t)MIN(row, UINT32_MAX);
}

static int note_begun(uint64_t key, const void *value, size_t len, void *data)
{
	if (key == ROW_BEGUN)
		*(bool *)data = true;
	return 0;
}

static void raid_free(struct raid *r)
{
	raid_sync_close(r);
	unbuild(r);
	raid_params_clear(&r->params, r->ti);
	if (r->rows)
		dm_rows_close(r->rows);
	pthread_mutex_destroy(&r->lock);
	g_free(r);
}

static int raid_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct raid *r = g_new0(struct raid, 1);
	int error;

	r->ti = ti;
	r->writable = dm_target_mode(ti) & DM_MODE_WRITE;
	pthread_mutex_init(&r->lock, NULL);
	r->rows = dm_rows_open(ti, "begun");
	error = dm_rows_load(r->rows, note_begun, &r->continued, err);
	if (!error)
		error = raid_params_read(&r->params, ti, argc, argv, err);
	if (!error)
		error = build(r, err);
	if (error) {
		raid_free(r);
		return error;
	}
	raid_sync_open(r);
	set_target(r);
	ti->private = r;
	return 0;
}

static void raid_dtr(struct dm_target *ti)
{
	raid_free(ti->private);
}

/* --- bios --------------------------------------------------------------------------------------------------- */

static enum dm_mapio raid_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct raid *r = ti->private;
	struct raid_bio *rb = bio->private;

	rb->disk = -1;
	if (bio->op == DM_FLUSH) {
		raid_flush(r, bio);
		return DM_MAPIO_SUBMITTED;
	}
	rb->sector = dm_target_offset(ti, bio->sector);
	if (rb->sector + bio->sectors > __atomic_load_n(&r->state.array_sectors, __ATOMIC_ACQUIRE))
		return DM_MAPIO_KILL; /* what is left over when a device is rounded down to chunks */
	if (atomic_load_explicit(&r->dead, memory_order_relaxed))
		return DM_MAPIO_KILL;
	atomic_fetch_add_explicit(&r->users, 1, memory_order_relaxed);
	return r->ops->map(r, bio, rb);
}

static enum dm_endio raid_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct raid *r = ti->private;
	struct raid_bio *rb = bio->private;

	if (rb->disk < 0)
		return DM_ENDIO_DONE;
	atomic_fetch_sub_explicit(&r->members[rb->disk].reads, 1, memory_order_relaxed);
	rb->disk = -1;
	if (!bio->error) {
		bio->error = raid_read_result(r);
		return DM_ENDIO_DONE;
	}
	r->ops->reread(r, bio, rb);
	return DM_ENDIO_INCOMPLETE;
}

/* --- status ------------------------------------------------------------------------------------------ */

static char health(const struct raid *r, unsigned i, const struct raid_progress *p)
{
	uint32_t flags = atomic_load(&r->members[i].flags);

	if (!r->members[i].data)
		return '-';
	if (flags & (RAID_FAULTY | RAID_MISSING))
		return 'D';
	return p->resyncing || !(flags & RAID_IN_SYNC) ? 'a' : 'A';
}

/* Without members: it was suspended, and could not be assembled again to be resumed. */
static void print_info(struct raid *r, GString *out)
{
	const struct raid_type *t = raid_type_of(r->state.new_level, r->state.new_layout);
	struct raid_progress p;

	if (!r->members) {
		g_string_append_printf(out, "%s %u ", r->params.type->name, r->disks);
		for (unsigned i = 0; i < r->disks; i++)
			g_string_append_c(out, 'D');
		g_string_append(out, " 0/0 idle 0 0 -");
		return;
	}
	raid_sync_progress(r, &p);
	g_string_append_printf(out, "%s %u ", t->name, r->state.disks);
	for (unsigned i = 0; i < r->disks; i++)
		g_string_append_c(out, health(r, i, &p));
	for (unsigned i = r->disks; i < r->params.disks; i++) /* spares */
		g_string_append_c(out, 'a');
	g_string_append_printf(out, " %" PRIu64 "/%" PRIu64 " %s %" PRIu64 " %" PRIu64 " %c", p.done, p.total, p.action,
			       p.mismatches, r->members[0].data_offset,
			       r->journal ? raid_journal_letter(r->journal) : '-');
}

static void print_table(struct raid *r, GString *out)
{
	unsigned chunk = r->params.chunk;
	unsigned layout = r->params.layout;

	if (r->members) {
		pthread_mutex_lock(&r->lock);
		chunk = r->state.new_chunk;
		layout = r->state.layout;
		pthread_mutex_unlock(&r->lock);
	}
	raid_params_print(&r->params, chunk, layout, r->stripe_cache, out);
}

static void raid_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct raid *r = ti->private;

	if (r->kept_status[type])
		g_string_append_len(out, r->kept_status[type]->str, (gssize)r->kept_status[type]->len);
	else if (type == DM_STATUS_INFO)
		print_info(r, out);
	else
		print_table(r, out);
}

/* --- hooks ---------------------------------------------------------------------------------------------------- */

/* Members and layout are not to be looked at until show_status(): status says what it would have said now. */
static void keep_status(struct raid *r)
{
	GString *text[2] = {g_string_new(NULL), g_string_new(NULL)};

	print_info(r, text[DM_STATUS_INFO]);
	print_table(r, text[DM_STATUS_TABLE]);
	dm_status_pause(r->ti, NULL);
	memcpy(r->kept_status, text, sizeof(text));
	dm_status_go_on(r->ti, NULL);
}

static void show_status(struct raid *r)
{
	GString *text[2];

	dm_status_pause(r->ti, NULL);
	memcpy(text, r->kept_status, sizeof(text));
	memset(r->kept_status, 0, sizeof(r->kept_status));
	dm_status_go_on(r->ti, NULL);
	for (unsigned i = 0; i < G_N_ELEMENTS(text); i++)
		g_string_free(text[i], TRUE);
}

static int assemble_again(struct raid *r, GError **err)
{
	int error;

	unbuild(r);
	error = build(r, err);
	if (error)
		return error;
	set_target(r);
	if (r->writable && r->ops->replay)
		error = r->ops->replay(r, err);
	return !error && r->writable ? raid_meta_start(r, err) : error;
}

static int raid_preresume(struct dm_target *ti, GError **err)
{
	struct raid *r = ti->private;
	int error;

	if (r->started && r->built && !(r->reshaped && r->state.disks == r->disks))
		return 0;
	keep_status(r);
	error = assemble_again(r, err);
	show_status(r);
	if (error)
		return error;
	r->built = true;
	dm_rows_put(r->rows, ROW_BEGUN, "", 0);
	return dm_rows_commit(r->rows, err);
}

static void raid_resume(struct dm_target *ti)
{
	struct raid *r = ti->private;

	if (r->started && r->writable)
		raid_members_revive(r);
	r->started = r->running = true;
	raid_meta_resume(r);
	raid_sync_resume(r);
}

static void raid_presuspend(struct dm_target *ti)
{
	raid_sync_suspend(ti->private);
}

static void raid_presuspend_undo(struct dm_target *ti)
{
	raid_sync_resume(ti->private);
}

static void raid_postsuspend(struct dm_target *ti)
{
	struct raid *r = ti->private;

	if (!r->running)
		return;
	r->running = false;
	dm_block_begin();
	if (r->ops->settle)
		r->ops->settle(r);
	raid_meta_suspend(r);
	dm_block_end();
}


/* --- messages and devices ------------------------------------------------------------------------------------- */

static int raid_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	return raid_sync_message(ti->private, argc ? argv[0] : "", err);
}

static int raid_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct raid *r = ti->private;
	int error = 0;

	for (unsigned i = 0; r->members && i < r->disks && !error; i++)
		if (r->members[i].data)
			error = fn(ti, r->members[i].data, 0, r->state.dev_sectors, data);
	return error;
}

static void raid_io_hints(struct dm_target *ti, struct dm_limits *limits)
{
	struct raid *r = ti->private;
	uint64_t chunk = (uint64_t)r->geo.chunk << DM_SECTOR_SHIFT;

	limits->io_min = (unsigned)MIN(chunk, UINT32_MAX);
	limits->io_opt = (unsigned)MIN(chunk * (r->geo.disks - r->geo.parity), UINT32_MAX);
}

const struct dm_target_type raid_target = {
	.name = "raid",
	.features = DM_TARGET_HANDS_OVER,
	.version = {1, 15, 1},
	.per_bio_size = sizeof(struct raid_bio),
	.ctr = raid_ctr,
	.dtr = raid_dtr,
	.map = raid_map,
	.end_io = raid_end_io,
	.presuspend = raid_presuspend,
	.presuspend_undo = raid_presuspend_undo,
	.postsuspend = raid_postsuspend,
	.preresume = raid_preresume,
	.resume = raid_resume,
	.status = raid_status,
	.message = raid_message,
	.iterate_devices = raid_iterate_devices,
	.io_hints = raid_io_hints,
};
