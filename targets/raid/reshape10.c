/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * raid10 on the way to another shape: its I/O at two sets of places, and how far a window may go (reshape.c).
 *
 * Near and offset layouts alone have one: there the places of later sectors are never before those of earlier ones by
 * more than a row.  The kernel moves less than a chunk at a time, so the position may be inside one: a bio there is
 * cut.
 *
 * Writes mark the bitmap, which is about sectors of the array and so about both shapes.
 */
#include <dmfs/completion.h>

#include "copies.h"
#include "reshape.h"

struct raid10_request {
	struct raid_wait mark; /* and for the superblocks */
	struct dm_work work;
	struct raid *r;
	struct dm_bio *bio;
	uint64_t sector, boundary;
	int error;
	bool need; /* copies differ */
	void (*done)(void *, int);
	void *private;
};

/* --- places ------------------------------------------------------------------------------------------ */

struct part {
	const struct raid_geo *geo;
	bool moved;
	uint64_t sectors; /* that lie together */
};

static struct part part_of(const struct raid10_request *q, uint64_t sector)
{
	const struct reshape *rs = q->r->family;
	bool below = sector < q->boundary, moved = below != q->r->state.backwards;
	struct part p = {.geo = moved ? &rs->to_geo : &rs->from_geo, .moved = moved};

	p.sectors = MIN(q->sector + q->bio->sectors - sector, raid_geo_run(p.geo, sector));
	if (below)
		p.sectors = MIN(p.sectors, q->boundary - sector);
	return p;
}

static unsigned most_pieces(const struct raid10_request *q)
{
	const struct reshape *rs = q->r->family;

	return (unsigned)(q->bio->sectors / MIN(rs->from_geo.chunk, rs->to_geo.chunk)) + 4;
}

static void finish(struct raid10_request *q)
{
	void (*done)(void *, int) = q->done;
	void *private = q->private;
	int error = q->error;

	g_free(q);
	done(private, error);
}

/* --- reads -------------------------------------------------------------------------------------------- */

static void slow_read(struct dm_work *work)
{
	struct raid10_request *q = container_of(work, struct raid10_request, work);
	uint64_t sector = q->sector, end = sector + q->bio->sectors;
	g_autofree uint8_t *buf = g_malloc(RAID_RESHAPE_MOST * DM_SECTOR_SIZE);

	while (sector < end && !q->error) {
		struct part p = part_of(q, sector);
		uint64_t n = MIN(p.sectors, RAID_RESHAPE_MOST);

		q->error = raid_copies_read(q->r, p.geo, p.moved, sector, n, buf);
		if (!q->error)
			dm_iov_write(q->bio->iov, q->bio->iovcnt, (sector - q->sector) * DM_SECTOR_SIZE, buf,
				     n * DM_SECTOR_SIZE);
		sector += n;
	}
	finish(q);
}

static void read_done(struct raid_runs *runs, void *private)
{
	struct raid10_request *q = private;
	int error = raid_runs_error(runs);

	raid_runs_free(runs);
	if (error)
		dm_wq_queue(q->r->slow_wq, &q->work);
	else
		finish(q);
}

static void read_places(struct raid10_request *q)
{
	struct raid *r = q->r;
	struct raid_copy copies[RAID_MAX_DISKS];
	struct raid_runs *runs = raid_runs_new(r, q->bio, most_pieces(q), read_done, q);
	uint64_t sector = q->sector, end = sector + q->bio->sectors;

	while (sector < end) {
		struct part p = part_of(q, sector);
		int best = raid_copies_choose(r, p.geo, sector, p.sectors, copies);
		struct raid_member *m;

		if (best < 0) {
			raid_runs_free(runs);
			q->error = -EIO;
			finish(q);
			return;
		}
		m = &r->members[copies[best].disk];
		atomic_store_explicit(&m->next_read, copies[best].sector + p.sectors, memory_order_relaxed);
		raid_runs_add_at(runs, copies[best].disk, raid_data_offset(m, p.moved) + copies[best].sector,
				 sector - q->sector, p.sectors);
		sector += p.sectors;
	}
	raid_runs_submit(runs);
}

/* --- writes ------------------------------------------------------------------------------------------- */

static void write_answer(struct raid_wait *wait)
{
	struct raid10_request *q = container_of(wait, struct raid10_request, mark);

	if (!q->error)
		q->error = wait->error;
	if (q->need || wait->error)
		raid_regions_need(q->r, &q->mark);
	raid_unmark(q->r, &q->mark);
	finish(q);
}

static void write_done(struct raid_runs *runs, void *private)
{
	struct raid10_request *q = private;
	bool dropped = false;

	q->error = raid_runs_drop_failed(runs, &dropped);
	q->need = q->error != 0;
	raid_runs_free(runs);
	if (dropped || atomic_load(&q->r->unsaved)) {
		q->mark.fn = write_answer;
		raid_save(q->r, &q->mark);
	} else {
		write_answer(&q->mark);
	}
}

static void write_marked(struct raid_wait *wait)
{
	struct raid10_request *q = container_of(wait, struct raid10_request, mark);
	struct reshape *rs = q->r->family;
	struct raid_copy copies[RAID_MAX_DISKS];
	uint64_t sector = q->sector, end = sector + q->bio->sectors;
	struct raid_runs *runs;

	if (wait->error) {
		write_answer(wait);
		return;
	}
	runs = raid_runs_new(q->r, q->bio, most_pieces(q) * rs->to_geo.copies, write_done, q);
	while (sector < end) {
		struct part p = part_of(q, sector);

		raid_copies(p.geo, sector, copies);
		for (unsigned i = 0; i < p.geo->copies; i++) {
			struct raid_member *m = &q->r->members[copies[i].disk];

			if (raid_member_alive(m))
				raid_runs_add_at(runs, copies[i].disk, raid_data_offset(m, p.moved) + copies[i].sector,
						 sector - q->sector, p.sectors);
		}
		sector += p.sectors;
	}
	raid_runs_submit(runs);
}

void raid10_bio(struct raid *r, struct dm_bio *bio, uint64_t sector, uint64_t boundary, void (*done)(void *, int),
		void *private)
{
	struct raid10_request *q = g_new0(struct raid10_request, 1);

	*q = (struct raid10_request){.r = r,
				     .bio = bio,
				     .sector = sector,
				     .boundary = boundary,
				     .mark.fn = write_marked,
				     .work.fn = slow_read,
				     .done = done,
				     .private = private};
	if (bio->op == DM_READ)
		read_places(q);
	else if (raid_mark(r, sector, bio->sectors, &q->mark))
		write_marked(&q->mark);
}

/* --- with a wait ---------------------------------------------------------------------------------------- */

struct waited {
	struct dm_completion done;
	int error;
};

static void waited_done(void *private, int error)
{
	struct waited *w = private;

	w->error = error;
	dm_complete(&w->done);
}

int raid10_io(struct raid *r, enum dm_op op, uint64_t sector, uint64_t sectors, uint64_t boundary, void *data)
{
	struct iovec iov = {data, sectors * DM_SECTOR_SIZE};
	struct dm_bio bio = {.op = op, .sectors = sectors, .iov = &iov, .iovcnt = 1};
	struct waited w = {.done = DM_COMPLETION_INIT};

	raid10_bio(r, &bio, sector, boundary, waited_done, &w);
	dm_completion_wait(&w.done);
	return w.error;
}

/* --- windows ---------------------------------------------------------------------------------------------- */

/* How far a window that begins (backwards: ends) at the position may go, if whole rows are reckoned with. */
static uint64_t safe_end(const struct raid *r, const struct reshape *rs, uint64_t position)
{
	const struct raid_member *m = &r->members[0];
	uint64_t old;

	if (!r->state.backwards) {
		old = m->data_offset + raid_copies_first(&rs->from_geo, position);
		return old < m->new_data_offset ? 0 : raid_copies_below(&rs->to_geo, old - m->new_data_offset);
	}
	old = m->data_offset + raid_copies_end(&rs->from_geo, position);
	return old < m->new_data_offset ? 0 : raid_copies_above(&rs->to_geo, old - m->new_data_offset);
}

/* Whole chunks of both shapes; one, if that is more than is safe: then it depends on which device is where. */
uint64_t raid10_window(const struct raid *r, const struct reshape *rs, uint64_t position)
{
	uint64_t unit = MAX(rs->from_geo.chunk, rs->to_geo.chunk), most = MAX(RAID_RESHAPE_MOST, unit), end, limit;

	if (r->state.backwards) {
		uint64_t begin = MAX(safe_end(r, rs, position), position - MIN(position, most));

		begin = dm_round_up(begin, unit);
		return position - MIN(begin, dm_round_down(position - 1, unit));
	}
	limit = position < rs->moves ? rs->moves : rs->sectors;
	end = position + most;
	if (position < rs->moves) /* else there is nothing left to run into */
		end = MIN(end, safe_end(r, rs, position));
	end = MAX(dm_round_down(end, unit), dm_round_down(position, unit) + unit);
	return MIN(end, limit) - position;
}

/* Whether a device's sectors hold some of the array's that count still. */
static bool holds_old(const struct raid *r, const struct reshape *rs, unsigned disk, uint64_t at, uint64_t sectors,
		      uint64_t begin, uint64_t end)
{
	const struct raid_geo *g = &rs->from_geo;
	uint64_t offset = r->members[disk].data_offset, stop = at + sectors, sector;

	if (disk >= g->disks)
		return false;
	at = MAX(at, offset);
	for (uint64_t n; at < stop; at += n) {
		n = MIN(stop - at, raid_geo_run(g, at - offset));
		if (!raid_copy_of(g, disk, at - offset, &sector))
			continue;
		if (sector < rs->moves && (r->state.backwards ? sector < end : sector + n > begin))
			return true;
	}
	return false;
}

bool raid10_hits_old(const struct raid *r, const struct reshape *rs, uint64_t begin, uint64_t end)
{
	struct raid_copy copies[RAID_MAX_DISKS];
	const struct raid_geo *g = &rs->to_geo;

	if (begin >= rs->moves)
		return false;
	if (r->state.backwards ? safe_end(r, rs, end) <= begin : safe_end(r, rs, begin) >= end)
		return false;
	for (uint64_t n, sector = begin; sector < end; sector += n) {
		n = MIN(end - sector, raid_geo_run(g, sector));
		raid_copies(g, sector, copies);
		for (unsigned i = 0; i < g->copies; i++)
			if (holds_old(r, rs, copies[i].disk,
				      r->members[copies[i].disk].new_data_offset + copies[i].sector, n, begin, end))
				return true;
	}
	return false;
}

static uint64_t common_multiple(uint64_t a, uint64_t b)
{
	uint64_t x = a, y = b;

	while (y) {
		uint64_t rest = x % y;

		x = y;
		y = rest;
	}
	return a / x * b;
}

/*
 * After so many chunks both shapes begin anew on the first device.  With more devices the new places fall back behind
 * the old ones, so what follows has more room, else as much.
 */
bool raid10_has_way(const struct raid *r, const struct reshape *rs)
{
	uint64_t period =
	    common_multiple(rs->from_geo.disks, rs->to_geo.disks) * MAX(rs->from_geo.chunk, rs->to_geo.chunk);
	uint64_t left = MIN(rs->moves, period), position = r->state.backwards ? rs->moves : 0, n;

	for (; left; left -= MIN(left, n)) {
		n = raid10_window(r, rs, position);
		if (r->state.backwards ? raid10_hits_old(r, rs, position - n, position)
				       : raid10_hits_old(r, rs, position, position + n))
			return false;
		position = r->state.backwards ? position - n : position + n;
	}
	return true;
}
