/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bios of the levels whose chunks lie in rows: raid0, raid4/5/6.
 *
 * raid0's go to the devices, what follows each other there as one bio.  Reads of raid4/5/6 do the same where the
 * devices they need can be read; all else is cut into pieces of stripes.
 */
#include "journal.h"
#include "stripe.h"

#include <dmfs/completion.h>

/* How many chunks a bio touches. */
static unsigned chunks(const struct raid *r, uint64_t sector, uint64_t sectors)
{
	return (unsigned)((sector + sectors - 1) / r->geo.chunk - sector / r->geo.chunk + 1);
}

static struct raid_runs *make_runs(struct raid *r, struct dm_bio *bio, uint64_t first,
				   void (*done)(struct raid_runs *, void *), void *private)
{
	struct raid_runs *runs = raid_runs_new(r, bio, chunks(r, first, bio->sectors), done, private);
	uint64_t sector = first, end = first + bio->sectors, at;

	for (uint64_t n; sector < end; sector += n) {
		unsigned disk = raid_row_map(&r->geo, sector, &at);

		n = MIN(end - sector, raid_geo_run(&r->geo, sector));
		raid_runs_add(runs, disk, at, sector - first, n);
	}
	return runs;
}

/* --- raid0 -------------------------------------------------------------------------------------------- */

static int raid0_start(struct raid *r, GError **err)
{
	return 0;
}

static void raid0_stop(struct raid *r)
{
}

static void raid0_done(struct raid_runs *runs, void *private)
{
	struct dm_bio *bio = private;
	int error = raid_runs_error(runs);

	raid_runs_free(runs);
	dm_bio_end(bio, error);
}

static enum dm_mapio raid0_map(struct raid *r, struct dm_bio *bio, struct raid_bio *rb)
{
	uint64_t at;

	if (raid_geo_run(&r->geo, rb->sector) >= bio->sectors) {
		struct raid_member *m = &r->members[raid_row_map(&r->geo, rb->sector, &at)];

		bio->dev = m->data;
		bio->sector = m->data_offset + at;
		return DM_MAPIO_REMAPPED;
	}
	raid_runs_submit(make_runs(r, bio, rb->sector, raid0_done, bio));
	return DM_MAPIO_SUBMITTED;
}

const struct raid_ops raid0_ops = {
	.start = raid0_start,
	.stop = raid0_stop,
	.map = raid0_map,
};

/* --- pieces of stripes ---------------------------------------------------------------------------------- */

int raid_request_finish(struct raid_request *req)
{
	if (req->kind == RAID_REQ_WRITE) {
		if (atomic_load(&req->need))
			raid_regions_need(req->r, &req->mark);
		raid_unmark(req->r, &req->mark);
	}
	if (req->kind == RAID_REQ_READ && !atomic_load(&req->error))
		return raid_read_result(req->r);
	return atomic_load(&req->error);
}

static void request_done(struct raid_request *req)
{
	struct dm_bio *bio = req->bio;
	int error = raid_request_finish(req);

	g_free(req);
	dm_bio_end(bio, error);
}

static struct raid_request *make_request(struct raid_stripes *c, struct dm_bio *bio, uint64_t first)
{
	const struct raid_geo *g = &c->geo;
	unsigned most = (unsigned)((first + bio->sectors - 1) / g->chunk - first / g->chunk + 1) +
			(unsigned)(bio->sectors / c->sectors) + 1;
	struct raid_request *req = raid_request_new(c, bio->op == DM_READ ? RAID_REQ_READ : RAID_REQ_WRITE, most);
	uint64_t sector = first, end = first + bio->sectors, at;

	req->bio = bio;
	for (uint64_t n; sector < end; sector += n) {
		unsigned disk = raid_row_map(g, sector, &at);

		n = MIN(end - sector, c->sectors - at % c->sectors);
		req->piece[req->pieces++] = (struct raid_piece){.nr = at / c->sectors,
								.disk = disk,
								.first = (unsigned)(at % c->sectors),
								.sectors = (unsigned)n,
								.offset = sector - first};
	}
	return req;
}

static void write_marked(struct raid_wait *wait)
{
	struct raid_request *req = container_of(wait, struct raid_request, mark);

	if (wait->error) {
		atomic_store(&req->error, wait->error);
		req->done(req);
	} else {
		raid_stripes_submit(req);
	}
}

void raid_stripes_bio(struct raid_stripes *c, struct dm_bio *bio, uint64_t sector, void (*done)(struct raid_request *),
		      void *private)
{
	struct raid_request *req = make_request(c, bio, sector);
	uint64_t first = req->piece[0].nr, last = first;

	req->done = done;
	req->private = private;
	if (bio->op == DM_READ) {
		raid_stripes_submit(req);
		return;
	}
	req->mark.fn = write_marked;
	for (unsigned i = 0; i < req->pieces; i++) {
		first = MIN(first, req->piece[i].nr);
		last = MAX(last, req->piece[i].nr);
	}
	if (raid_mark(c->r, first * c->sectors, (last + 1 - first) * c->sectors, &req->mark))
		write_marked(&req->mark);
}

/* --- with a wait ------------------------------------------------------------------------------------------- */

struct waited {
	struct dm_completion done;
	int error;
};

static void waited_done(struct raid_request *req)
{
	struct waited *w = req->private;
	int error = raid_request_finish(req);

	g_free(req);
	w->error = error;
	dm_complete(&w->done);
}

static int bio_wait(struct raid_stripes *c, enum dm_op op, uint64_t sector, uint64_t sectors, void *data)
{
	struct iovec iov = {data, sectors * DM_SECTOR_SIZE};
	struct dm_bio bio = {.op = op, .sectors = sectors, .iov = &iov, .iovcnt = 1};
	struct waited w = {.done = DM_COMPLETION_INIT};

	raid_stripes_bio(c, &bio, sector, waited_done, &w);
	dm_completion_wait(&w.done);
	return w.error;
}

int raid_stripes_read(struct raid_stripes *c, uint64_t sector, uint64_t sectors, void *data)
{
	return bio_wait(c, DM_READ, sector, sectors, data);
}

int raid_stripes_write(struct raid_stripes *c, uint64_t sector, uint64_t sectors, const void *data)
{
	return bio_wait(c, DM_WRITE, sector, sectors, (void *)data);
}

/* --- raid4/5/6: reads -------------------------------------------------------------------------------------- */

struct direct {
	struct raid *r;
	struct dm_bio *bio;
	uint64_t sector;
};

static void read_stripes(struct raid *r, struct dm_bio *bio, uint64_t sector)
{
	raid_stripes_bio(r->family, bio, sector, request_done, NULL);
}

static void stripes_reread(struct raid *r, struct dm_bio *bio, struct raid_bio *rb)
{
	read_stripes(r, bio, rb->sector);
}

static void direct_done(struct raid_runs *runs, void *private)
{
	struct direct d = *(struct direct *)private;
	int error = raid_runs_error(runs);

	g_free(private);
	raid_runs_free(runs);
	if (error)
		read_stripes(d.r, d.bio, d.sector);
	else
		dm_bio_end(d.bio, raid_read_result(d.r));
}

static bool all_readable(struct raid *r, uint64_t sector, uint64_t sectors)
{
	uint64_t end = sector + sectors, at;
	bool ahead = r->journal && r->params.write_back; /* answered writes may be in stripes alone */

	if (!ahead && !atomic_load_explicit(&r->degraded, memory_order_relaxed))
		return true;
	for (uint64_t n; sector < end; sector += n) {
		unsigned disk = raid_row_map(&r->geo, sector, &at);

		n = MIN(end - sector, raid_geo_run(&r->geo, sector));
		if (!raid_member_readable(&r->members[disk], at + n) || (ahead && raid_stripes_busy(r->family, at, n)))
			return false;
	}
	return true;
}

static enum dm_mapio map_read(struct raid *r, struct dm_bio *bio, struct raid_bio *rb)
{
	struct direct *d;
	uint64_t at;

	if (!all_readable(r, rb->sector, bio->sectors)) {
		read_stripes(r, bio, rb->sector);
		return DM_MAPIO_SUBMITTED;
	}
	if (raid_geo_run(&r->geo, rb->sector) >= bio->sectors) {
		rb->disk = (int)raid_row_map(&r->geo, rb->sector, &at);
		atomic_fetch_add_explicit(&r->members[rb->disk].reads, 1, memory_order_relaxed);
		bio->dev = r->members[rb->disk].data;
		bio->sector = r->members[rb->disk].data_offset + at;
		return DM_MAPIO_REMAPPED;
	}
	d = g_new(struct direct, 1);
	*d = (struct direct){r, bio, rb->sector};
	raid_runs_submit(make_runs(r, bio, rb->sector, direct_done, d));
	return DM_MAPIO_SUBMITTED;
}

/* --- raid4/5/6: writes -------------------------------------------------------------------------------------- */

static enum dm_mapio stripes_map(struct raid *r, struct dm_bio *bio, struct raid_bio *rb)
{
	if (bio->op == DM_READ)
		return map_read(r, bio, rb);
	if (bio->op != DM_WRITE)
		return DM_MAPIO_KILL;
	raid_stripes_bio(r->family, bio, rb->sector, request_done, NULL);
	return DM_MAPIO_SUBMITTED;
}

static int stripes_start(struct raid *r, GError **err)
{
	int error = raid_stripes_check(r, err);

	if (!error && r->params.journal) {
		r->journal = raid_journal_open(r, err);
		error = r->journal ? 0 : -EINVAL;
	}
	if (!error)
		r->family = raid_stripes_new(r, &r->geo, false);
	return error;
}

static void stripes_stop(struct raid *r)
{
	if (r->family)
		raid_stripes_settle(r->family);
	raid_journal_close(r->journal);
	r->journal = NULL;
	raid_stripes_free(r->family);
}

/* What is in the journal goes to the devices, and from now on all goes through it. */
static int stripes_replay(struct raid *r, GError **err)
{
	int error = r->journal ? raid_journal_start(r->journal, err) : 0;

	raid_stripes_set_journal(r->family, r->journal);
	return error;
}

static void stripes_settle(struct raid *r)
{
	raid_stripes_settle(r->family);
	if (r->journal)
		raid_journal_settle(r->journal);
}

const struct raid_ops raid_stripes_ops = {
	.start = stripes_start,
	.stop = stripes_stop,
	.map = stripes_map,
	.reread = stripes_reread,
	.sync = raid_stripes_sync,
	.replay = stripes_replay,
	.settle = stripes_settle,
};
