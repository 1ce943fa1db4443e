/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One bio as several to an array's devices.
 *
 * A bio is cut at chunks; pieces that follow each other on a device are one bio there, their data as a list.
 */
#include "raid.h"

struct piece {
	unsigned run;
	uint64_t offset, sectors; /* of the whole */
};

struct run {
	struct dm_bio bio; /* first */
	struct raid_runs *runs;
	unsigned disk, pieces;
	uint64_t end; /* the device's sector behind it */
};

struct raid_runs {
	struct raid *r;
	struct dm_bio *whole;
	struct iovec *iov; /* the data */
	int iovcnt;
	void (*done)(struct raid_runs *, void *);
	void *private;
	atomic_uint left;
	unsigned nr_pieces, nr;
	struct iovec *room;
	struct piece *pieces;
	int16_t *last; /* of each device: its last run, -1 */
	struct run runs[];
};

struct raid_runs *raid_runs_new(struct raid *r, struct dm_bio *whole, unsigned pieces,
				void (*done)(struct raid_runs *, void *), void *private)
{
	struct raid_runs *runs =
	    g_malloc(sizeof *runs + pieces * (sizeof(struct run) + sizeof(struct piece)) + r->disks * sizeof(int16_t));

	*runs = (struct raid_runs){
	    .r = r, .whole = whole, .iov = whole->iov, .iovcnt = whole->iovcnt, .done = done, .private = private};
	runs->pieces = (struct piece *)&runs->runs[pieces];
	runs->last = (int16_t *)&runs->pieces[pieces];
	memset(runs->last, 0xff, r->disks * sizeof(int16_t));
	return runs;
}

void raid_runs_free(struct raid_runs *runs)
{
	g_free(runs->room);
	g_free(runs);
}

void raid_runs_data(struct raid_runs *runs, struct iovec *iov, int iovcnt)
{
	runs->iov = iov;
	runs->iovcnt = iovcnt;
}

void raid_runs_add(struct raid_runs *runs, unsigned disk, uint64_t dev_sector, uint64_t offset, uint64_t sectors)
{
	raid_runs_add_at(runs, disk, runs->r->members[disk].data_offset + dev_sector, offset, sectors);
}

void raid_runs_add_at(struct raid_runs *runs, unsigned disk, uint64_t sector, uint64_t offset, uint64_t sectors)
{
	struct run *run = runs->last[disk] < 0 ? NULL : &runs->runs[runs->last[disk]];

	if (!run || run->end != sector || runs->nr > INT16_MAX) {
		run = &runs->runs[runs->nr];
		runs->last[disk] = (int16_t)runs->nr++;
		run->runs = runs;
		run->disk = disk;
		run->pieces = 0;
		run->end = sector;
		run->bio = (struct dm_bio){.op = runs->whole->op,
					   .flags = runs->whole->flags & ~(unsigned)DM_PREFLUSH,
					   .dev = runs->r->members[disk].data,
					   .sector = sector};
	}
	run->bio.sectors += sectors;
	run->end += sectors;
	run->pieces++;
	runs->pieces[runs->nr_pieces++] = (struct piece){(unsigned)(run - runs->runs), offset, sectors};
}

static void run_end(struct dm_bio *bio)
{
	struct raid_runs *runs = ((struct run *)bio)->runs;

	if (atomic_fetch_sub(&runs->left, 1) == 1)
		runs->done(runs, runs->private);
}

/* Gives each run its part of the data. */
static void deal_data(struct raid_runs *runs)
{
	struct iovec *at;
	size_t room = runs->nr_pieces;

	for (unsigned i = 0; i < runs->nr; i++)
		if (runs->runs[i].pieces > 1 || runs->runs[i].bio.sectors != runs->whole->sectors)
			room += runs->runs[i].pieces * (size_t)runs->iovcnt;
	at = runs->room = g_new(struct iovec, room);
	for (unsigned i = 0; i < runs->nr; i++) {
		struct run *run = &runs->runs[i];

		if (run->pieces == 1 && run->bio.sectors == runs->whole->sectors) {
			run->bio.iov = runs->iov;
			run->bio.iovcnt = runs->iovcnt;
			continue;
		}
		run->bio.iov = at;
		at += run->pieces * (size_t)runs->iovcnt;
	}
	for (unsigned i = 0; i < runs->nr_pieces; i++) {
		struct piece *p = &runs->pieces[i];
		struct dm_bio *bio = &runs->runs[p->run].bio;

		if (bio->iov != runs->iov)
			bio->iovcnt += dm_iov_slice(runs->iov, runs->iovcnt, p->offset << DM_SECTOR_SHIFT,
						    p->sectors << DM_SECTOR_SHIFT, bio->iov + bio->iovcnt);
	}
}

void raid_runs_submit(struct raid_runs *runs)
{
	unsigned nr = runs->nr;

	if (dm_op_has_data(runs->whole->op))
		deal_data(runs);
	atomic_init(&runs->left, nr + 1);
	for (unsigned i = 0; i < nr; i++) {
		runs->runs[i].bio.end = run_end;
		dm_submit(&runs->runs[i].bio);
	}
	if (atomic_fetch_sub(&runs->left, 1) == 1)
		runs->done(runs, runs->private);
}

int raid_runs_error(const struct raid_runs *runs)
{
	for (unsigned i = 0; i < runs->nr; i++)
		if (runs->runs[i].bio.error)
			return runs->runs[i].bio.error;
	return 0;
}

int raid_runs_drop_failed(struct raid_runs *runs, bool *dropped)
{
	int error = 0;

	*dropped = false;
	for (unsigned i = 0; i < runs->nr; i++) {
		struct run *run = &runs->runs[i];

		if (!run->bio.error)
			continue;
		if (raid_member_fail(runs->r, run->disk, "write to", run->bio.error))
			*dropped = true;
		else
			error = run->bio.error;
	}
	return error;
}
