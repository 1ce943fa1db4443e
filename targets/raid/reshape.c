/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reshape: raid4/5/6, or a near or offset raid10, with another layout, chunk or number of devices, while it is used.
 *
 * The array's sectors move, a window at a time, from their old places (the old geometry at data_offset)
 * to their new ones (the new geometry at new_data_offset).  The position divides
 * them: forwards all below it has moved, backwards all above.
 *
 * A window is moved under an exclusive claim for its sectors; users' bios have shared ones and go
 * to the side they belong to.  The order makes it safe at any moment:
 *
 *   read the old places, write the new ones, flush all devices, write the position to the superblocks
 *
 * and only then the claim goes.  After a crash the window is moved again, so what it writes never touches the old
 * places of what is not known to have moved: that is what the space between the two offsets is for, and it bounds the
 * window.
 *
 * raid4/5/6 grow on the way: the position goes to where the array will end.  raid10's goes to where it ends now, as the
 * kernel's; what is behind becomes zeroes then, from the beginning again after a crash.  Its users' writes have
 * exclusive claims, so that all copies get the same (reshape10.c).
 */
#include "reshape.h"

#include <inttypes.h>

#include "stripe.h"

#define LOCK_SHIFT 11u

/* --- geometry ---------------------------------------------------------------------------------------- */

static bool make_geos(struct raid *r, struct reshape *rs)
{
	const struct raid_state *s = &r->state;
	unsigned before = s->disks - (unsigned)s->delta_disks;

	if ((s->level == 10) != (s->new_level == 10) || !s->new_level || s->new_level == 1)
		return false;
	return raid_geo_init(&rs->from_geo, s->level, s->layout, before, s->chunk, s->dev_sectors) &&
	       raid_geo_init(&rs->to_geo, s->new_level, s->new_layout, s->disks, s->new_chunk, s->dev_sectors);
}

/* How far apart the two sides begin on a device. */
static uint64_t gap(const struct raid *r)
{
	const struct raid_member *m = &r->members[0];

	return m->data_offset > m->new_data_offset ? m->data_offset - m->new_data_offset
						   : m->new_data_offset - m->data_offset;
}

static uint64_t row_sectors(const struct raid_geo *g)
{
	return (uint64_t)g->chunk * g->data;
}

/* The position is always at rows of the new number of devices and the larger chunk, where the kernel looks for it too.
 */
static uint64_t step_sectors(const struct reshape *rs)
{
	return (uint64_t)MAX(rs->from_geo.chunk, rs->to_geo.chunk) * rs->to_geo.data;
}

/* A window is whole steps, and not more than the gap has room for. */
static uint64_t window_of(const struct raid *r, const struct reshape *rs)
{
	uint64_t step = step_sectors(rs), steps = gap(r) / MAX(rs->from_geo.chunk, rs->to_geo.chunk);

	return step * CLAMP(RAID_RESHAPE_MOST / step, 1, MAX(steps, 1));
}

/* Whether the new places of sectors begin to end are old places of some that are not known to have moved before. */
static bool hits_old(const struct raid *r, const struct reshape *rs, uint64_t begin, uint64_t end)
{
	const struct raid_member *m = &r->members[0];
	uint64_t from_row, to_row;

	if (raid_is_raid10(rs))
		return raid10_hits_old(r, rs, begin, end);
	from_row = row_sectors(&rs->from_geo);
	to_row = row_sectors(&rs->to_geo);
	if (!r->state.backwards)
		return m->new_data_offset + dm_div_up(end, to_row) * rs->to_geo.chunk >
		       m->data_offset + begin / from_row * rs->from_geo.chunk;
	return m->new_data_offset + begin / to_row * rs->to_geo.chunk <
	       m->data_offset + dm_div_up(end, from_row) * rs->from_geo.chunk;
}

/* --- begin and end -------------------------------------------------------------------------------------- */

/* The least room there must be between the two sides. */
static uint64_t least_gap(const struct reshape *rs)
{
	return MAX((uint64_t)rs->from_geo.chunk * MAX(rs->from_geo.far, 1),
		   (uint64_t)rs->to_geo.chunk * MAX(rs->to_geo.far, 1));
}

static bool has_far(const struct raid_geo *g)
{
	return g->far > 1 && !(g->layout & RAID10_OFFSET);
}

static int check_shapes(struct raid *r, const struct reshape *rs, GError **err)
{
	const struct raid_state *s = &r->state;

	if (has_far(&rs->from_geo) || has_far(&rs->to_geo) || rs->from_geo.copies != rs->to_geo.copies)
		return dm_fail(err, EINVAL,
			       "raid: Reshape check failed: raid10 with layout 0x%x cannot get layout 0x%x: near and "
			       "offset with as many copies would be right",
			       s->layout, s->new_layout);
	if (s->dev_sectors % s->new_chunk)
		return dm_fail(err, EINVAL,
			       "raid: Reshape check failed: %" PRIu64 " sectors of a device are no multiple of the "
			       "new chunk of %u",
			       s->dev_sectors, s->new_chunk);
	if (gap(r) < least_gap(rs) || s->backwards != (r->members[0].new_data_offset > r->members[0].data_offset) ||
	    (r->reshape_waits && raid_is_raid10(rs) && !raid10_has_way(r, rs)))
		return dm_fail(err, ENOSPC,
			       "raid: No space for %s reshape: data offset %" PRIu64 ", new data offset %" PRIu64
			       ", chunks of %u and %u",
			       s->backwards ? "backward" : "forward", r->members[0].data_offset,
			       r->members[0].new_data_offset, s->chunk, s->new_chunk);
	return 0;
}

static int check_position(const struct raid *r, const struct reshape *rs, uint64_t *position, GError **err)
{
	uint64_t step = raid_is_raid10(rs) ? 1 : step_sectors(rs), most = raid_is_raid10(rs) ? rs->moves : rs->sectors;

	*position = r->state.reshape_position;
	if (raid_is_raid10(rs) && r->state.backwards) /* the kernel begins where the new shape would end */
		*position = MIN(*position, most);
	if (*position > most || *position % step)
		return dm_fail(err, EINVAL,
			       "raid: reshape_position %" PRIu64 " is not at a step of %" PRIu64
			       " sectors below %" PRIu64,
			       *position, step, most);
	return 0;
}

static void set_sectors(const struct raid *r, struct reshape *rs)
{
	uint64_t before = raid_geo_array_sectors(&rs->from_geo), after = raid_geo_array_sectors(&rs->to_geo);

	/* forwards to where the array will end: behind what it has now it becomes zeroes */
	rs->sectors = raid_is_raid10(rs) && r->state.backwards ? MIN(before, after) : after;
	rs->moves = MIN(before, rs->sectors);
}

static int reshape_start(struct raid *r, GError **err)
{
	struct reshape *rs = g_new0(struct reshape, 1);
	bool stripes = r->state.level != 10;
	int error = stripes ? raid_stripes_check(r, err) : 0;
	uint64_t position;

	r->family = rs;
	if (error)
		return error;
	if (!make_geos(r, rs))
		return dm_fail(err, EINVAL,
			       "raid: Reshape check failed: level %u, layout 0x%x, chunks of %u to level %u, "
			       "layout 0x%x, chunks of %u",
			       r->state.level, r->state.layout, r->state.chunk, r->state.new_level, r->state.new_layout,
			       r->state.new_chunk);
	set_sectors(r, rs);
	error = check_position(r, rs, &position, err);
	if (!error)
		error = check_shapes(r, rs, err);
	if (error)
		return error;
	atomic_store(&rs->position, position);
	rs->lock = dm_block_lock_new(LOCK_SHIFT);
	if (stripes) {
		rs->from = raid_stripes_new(r, &rs->from_geo, false);
		rs->to = raid_stripes_new(r, &rs->to_geo, true);
	}
	return 0;
}

static void reshape_stop(struct raid *r)
{
	struct reshape *rs = r->family;

	if (!rs)
		return;
	raid_stripes_free(rs->from);
	raid_stripes_free(rs->to);
	if (rs->lock)
		dm_block_lock_free(rs->lock);
	g_free(rs);
}

/* --- users' bios ------------------------------------------------------------------------------------------ */

struct moved_bio {
	struct dm_block_claim claim;
	struct raid *r;
	struct dm_bio *bio;
	uint64_t sector;
};

static void user_end(void *private, int error)
{
	struct moved_bio *mb = private;
	struct reshape *rs = mb->r->family;
	struct dm_bio *bio = mb->bio;

	dm_block_unlock(rs->lock, &mb->claim, NULL);
	g_free(mb);
	dm_bio_end(bio, error);
}

static void user_done(struct raid_request *req)
{
	struct moved_bio *mb = req->private;
	int error = raid_request_finish(req);

	g_free(req);
	user_end(mb, error);
}

static void user_granted(struct dm_block_claim *claim)
{
	struct moved_bio *mb = container_of(claim, struct moved_bio, claim);
	struct reshape *rs = mb->r->family;
	uint64_t position = atomic_load(&rs->position);

	if (raid_is_raid10(rs))
		raid10_bio(mb->r, mb->bio, mb->sector, position, user_end, mb);
	else
		raid_stripes_bio((mb->sector < position) != mb->r->state.backwards ? rs->to : rs->from, mb->bio,
				 mb->sector, user_done, mb);
}

/* Bios lie within a chunk of either geometry (raid.c); raid4/5/6's position is where both have a chunk's begin. */
static enum dm_mapio reshape_map(struct raid *r, struct dm_bio *bio, struct raid_bio *rb)
{
	struct reshape *rs = r->family;
	bool alone = raid_is_raid10(rs) && bio->op != DM_READ;
	struct moved_bio *mb;

	if (!dm_op_has_data(bio->op))
		return DM_MAPIO_KILL;
	mb = g_new0(struct moved_bio, 1);
	mb->r = r;
	mb->bio = bio;
	mb->sector = rb->sector;
	if (dm_block_lock(rs->lock, &mb->claim, rb->sector, rb->sector + bio->sectors - 1,
			  alone ? DM_BLOCK_EXCLUSIVE : DM_BLOCK_SHARED, user_granted))
		user_granted(&mb->claim);
	return DM_MAPIO_SUBMITTED;
}

/* --- moving ------------------------------------------------------------------------------------------------ */

/*
 * What is known durably is the position that counts.  Once any superblock may say the new one it must be the
 * position here too: what is written to the other side from then on would be lost at the next start.  If none is
 * known to have taken it, the old one is written again while the claim is held; if that fails as well, no write is
 * reported done before it has been (unsaved).
 */
static int advance(struct raid *r, struct reshape *rs, uint64_t position)
{
	uint64_t before = r->state.reshape_position;
	int error = raid_members_flush(r);

	if (error)
		return error;
	if (raid_is_raid10(rs) && position > rs->moves) { /* the kernel knows no such position */
		atomic_store(&rs->position, position);
		return 0;
	}
	atomic_store(&r->state.reshape_position, position);
	error = raid_save_sync(r);
	if (error) {
		atomic_store(&r->state.reshape_position, before);
		raid_save_sync(r);
		return error;
	}
	atomic_store(&rs->position, position);
	return 0;
}

static int read_old(struct raid *r, struct reshape *rs, uint64_t sector, uint64_t sectors, void *data)
{
	if (raid_is_raid10(rs))
		return raid10_io(r, DM_READ, sector, sectors, raid_all_old(r), data);
	return raid_stripes_read(rs->from, sector, sectors, data);
}

static int write_new(struct raid *r, struct reshape *rs, uint64_t sector, uint64_t sectors, void *data)
{
	if (raid_is_raid10(rs))
		return raid10_io(r, DM_WRITE, sector, sectors, raid_all_new(r), data);
	return raid_stripes_write(rs->to, sector, sectors, data);
}

static void reshape_sync(struct raid_window *w)
{
	struct raid *r = w->r;
	struct reshape *rs = r->family;
	uint64_t begin, end, has;
	struct dm_block_sync_claim hold;
	g_autofree char *data = g_malloc(w->sectors * DM_SECTOR_SIZE);

	begin = r->state.backwards ? rs->sectors - w->sector - w->sectors : w->sector;
	end = begin + w->sectors;
	if (hits_old(r, rs, begin, end)) {
		w->error = -ENOSPC;
		return;
	}
	dm_block_lock_sync(rs->lock, &hold, begin, end - 1, DM_BLOCK_EXCLUSIVE);
	has = MIN(end, MAX(begin, rs->moves)) - begin;
	memset(data + has * DM_SECTOR_SIZE, 0, (w->sectors - has) * DM_SECTOR_SIZE);
	w->error = has ? read_old(r, rs, begin, has, data) : 0;
	if (!w->error)
		w->error = write_new(r, rs, begin, w->sectors, data);
	if (!w->error)
		w->error = advance(r, rs, r->state.backwards ? begin : end);
	dm_block_unlock(rs->lock, &hold.claim, NULL);
}

/* --- for sync.c -------------------------------------------------------------------------------------------- */

void raid_reshape_where(struct raid *r, uint64_t *done, uint64_t *total)
{
	struct reshape *rs = r->family;
	uint64_t position = atomic_load(&rs->position);

	*total = rs->sectors;
	*done = r->state.backwards ? rs->sectors - position : position;
}

/* raid4/5/6 in sectors of a device; raid10 of the array that moves, then of what it becomes. */
void raid_reshape_progress(struct raid *r, struct raid_progress *p)
{
	struct reshape *rs = r->family;
	uint64_t done, total;

	raid_reshape_where(r, &done, &total);
	p->action = "reshape";
	if (!raid_is_raid10(rs)) {
		p->done = done / MAX(total / p->total, 1);
		return;
	}
	p->done = done;
	p->total = rs->moves;
	if (done >= rs->moves && rs->moves < total) {
		p->action = "resync";
		p->total = total;
	}
}

bool raid_reshape_syncs(const struct raid *r)
{
	return r->action == RAID_RESHAPE && raid_is_raid10(r->family) && !r->state.backwards;
}

uint64_t raid_reshape_window(struct raid *r, uint64_t done)
{
	struct reshape *rs = r->family;
	uint64_t n, position = rs->sectors - done;

	if (raid_is_raid10(rs))
		return raid10_window(r, rs, r->state.backwards ? position : done);
	n = window_of(r, rs);
	/* backwards the first may be shorter, so that the others begin at its multiples */
	if (r->state.backwards)
		return position % n ? position % n : n;
	return MIN(n - done % n, rs->sectors - done);
}

uint64_t raid_reshape_now(const struct raid_state *s)
{
	struct raid_geo from, to;
	uint64_t a, b;

	if (!raid_geo_init(&from, s->level, s->layout, s->disks - (unsigned)s->delta_disks, s->chunk, s->dev_sectors) ||
	    !raid_geo_init(&to, s->new_level, s->new_layout, s->disks, s->new_chunk, s->dev_sectors))
		return 0;
	a = raid_geo_array_sectors(&from);
	b = raid_geo_array_sectors(&to);
	return MIN(a, b);
}

/* The bios that come go to the new side alone, until the next resume makes an array like any other of it. */
void raid_reshape_finish(struct raid *r)
{
	struct reshape *rs = r->family;
	struct raid_state *s = &r->state;

	for (unsigned i = 0; i < r->disks; i++) {
		r->members[i].data_offset = r->members[i].new_data_offset;
		if (i >= s->disks)
			atomic_fetch_or(&r->members[i].flags, RAID_MISSING);
	}
	atomic_store(&rs->position, s->backwards ? 0 : UINT64_MAX);
	pthread_mutex_lock(&r->lock);
	s->level = s->new_level;
	s->layout = s->new_layout;
	s->chunk = s->new_chunk;
	s->delta_disks = 0;
	s->reshape_position = RAID_NONE;
	r->geo = rs->to_geo;
	pthread_mutex_unlock(&r->lock);
	__atomic_store_n(&s->array_sectors, rs->sectors, __ATOMIC_RELEASE);
	raid_count_degraded(r);
	r->reshaped = true;
}

const struct raid_ops raid_reshape_ops = {
	.start = reshape_start,
	.stop = reshape_stop,
	.map = reshape_map,
	.sync = reshape_sync,
};
