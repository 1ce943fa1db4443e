/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A bio's way (integrity.h).
 *
 *   read             locks its blocks shared; blocks that the journal has are copied from there, the others are read
 *                    from the data device and compared with their tags
 *   write, D and B   locks its blocks exclusively (B: sees to it that their bits are set), writes the data, then stores
 *                    the tags in memory; they are written back by a flush, or when time has passed
 *   write, J         goes into the journal; no lock
 *   discard          by a work, for it may have to wait: locks, stores fillers as tags, discards the data
 *   flush, FUA       share commits: of the journal, or the tags' write-back and a flush of the devices
 *
 * A small bio goes on as it is; a large one in pieces, so that a piece is hashed while it is in the cache, and other
 * cores take some (spread.h).
 *
 * A bio comes by end_io more than once: io->state says what is to be done there.
 */
#include <inttypes.h>

#include <dmfs/rounding.h>
#include <dmfs/spread.h>

#include "bitmap.h"
#include "journal.h"

#define SMALL_BYTES ((size_t)16 << 10)
#define PIECE_BYTES ((size_t)64 << 10)
#define ON_STACK 64

enum state {
	OVER,  /* nothing */
	TAGS,  /* the data have arrived: now the tags */
	UNLOCK /* all is done */
};

struct io {
	struct integrity *ic;
	struct dm_bio *bio;
	struct dm_block_claim claim;
	uint64_t block;
	unsigned blocks;
	enum state state;
	bool fua;
	uint8_t *above; /* the bio's tags, which go no further down; or NULL */
	union {
		struct dm_commit_wait wait;
		struct integrity_journal_write journal;
		struct dm_work work;
	};
	struct integrity_piece piece;
	uint8_t tags[]; /* a small bio's */
};

static size_t small_tags(const struct integrity *ic)
{
	return ic->internal_hash.hash ? SMALL_BYTES / integrity_block_bytes(ic) * ic->l.tag_size : 0;
}

size_t integrity_per_bio_size(const struct integrity *ic)
{
	return sizeof(struct io) + small_tags(ic);
}

static uint64_t device_sector(const struct io *io, unsigned offset_blocks)
{
	return integrity_data_sector(&io->ic->l, (io->block + offset_blocks) << io->ic->l.log2_spb);
}

/* --- the end ---------------------------------------------------------------------------------- */

static void end_over(struct io *io, int error)
{
	io->state = OVER;
	dm_bio_end(io->bio, error);
}

static void committed(struct dm_commit_wait *wait, int error)
{
	end_over(container_of(wait, struct io, wait), error);
}

/* The lock goes.  False: the bio waits for a commit; else *error is its result. */
static bool finish(struct io *io, int *error)
{
	struct integrity *ic = io->ic;
	int failed = atomic_load(&ic->failed);

	dm_block_unlock(ic->locks, &io->claim, NULL);
	io->state = OVER;
	if (!*error && failed)
		*error = failed;
	if (!dm_op_is_write(io->bio->op) || *error)
		return true;
	if (io->fua) {
		io->wait.done = committed;
		dm_group_commit(ic->flushes, &io->wait);
		return false;
	}
	dm_group_commit_soon(ic->flushes, ic->commit_ms * MS_NS);
	return true;
}

static void finish_and_end(struct io *io, int error)
{
	if (finish(io, &error))
		end_over(io, error);
}

/* Where the tags of the bio's blocks are, from one on: in the room for those made here, or above. */
static uint8_t *tags_at(const struct io *io, uint8_t *room, unsigned first)
{
	return (io->ic->internal_hash.hash ? room : io->above) + (size_t)first * io->ic->l.tag_size;
}

static void small_done(struct integrity_piece *p, int error)
{
	finish_and_end(container_of(p, struct io, piece), error);
}

enum dm_endio integrity_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct io *io = bio->private;

	if (io->state == OVER)
		return DM_ENDIO_DONE;
	if (io->state == TAGS && !bio->error) {
		integrity_piece_init(&io->piece, io->ic, bio, io->block, io->blocks, tags_at(io, io->tags, 0),
				     small_done);
		if (!integrity_piece_run(&io->piece, &bio->error))
			return DM_ENDIO_INCOMPLETE;
	}
	return finish(io, &bio->error) ? DM_ENDIO_DONE : DM_ENDIO_INCOMPLETE;
}

/* --- large bios, in pieces -------------------------------------------------------------------- */

struct part {
	struct integrity_piece piece;
	struct dm_bio bio;
	struct large *large;
	struct dm_part_data data;
	unsigned first, blocks; /* of the bio's */
};

struct large {
	struct dm_parts parts; /* first */
	struct io *io;
	bool check;
	uint8_t *tags; /* all of them, if there is a hash */
	struct part pieces[];
};

static void part_done(struct integrity_piece *p, int error)
{
	struct part *part = container_of(p, struct part, piece);
	struct dm_parts *parts = &part->large->parts;

	dm_part_data_clear(&part->data);
	dm_parts_end(parts, error);
}

/* What this thread is submitting: it is hashed here if it comes back at once, by other threads if a third one brings
 * it. */
static _Thread_local struct part *submitting;

static void part_moved(struct dm_bio *bio)
{
	struct part *part = bio->private;
	struct large *l = part->large;
	int error;

	integrity_piece_init(&part->piece, l->io->ic, bio, l->io->block + part->first, part->blocks,
			     l->check ? tags_at(l->io, l->tags, part->first) : NULL, part_done);
	if (bio->error || !l->check)
		part_done(&part->piece, bio->error);
	else if (submitting != part)
		dm_wq_queue(l->io->ic->wq, &part->piece.work);
	else if (integrity_piece_run(&part->piece, &error))
		part_done(&part->piece, error);
}

static void start_part(void *context, unsigned nr)
{
	struct large *l = context;
	struct part *part = &l->pieces[nr], *before = submitting;
	struct io *io = l->io;
	struct dm_bio *whole = io->bio;
	size_t block = integrity_block_bytes(io->ic);

	part->bio = (struct dm_bio){
	    .op = whole->op,
	    .flags = whole->flags,
	    .dev = io->ic->dev,
	    .sector = device_sector(io, part->first),
	    .sectors = (uint64_t)part->blocks << io->ic->l.log2_spb,
	    .end = part_moved,
	    .private = part,
	};
	dm_part_data_init(&part->data, &part->bio, whole, part->first * block, part->blocks * block);
	part->large = l;
	submitting = part;
	dm_submit_now(&part->bio);
	submitting = before;
}

/* A row of the bio's blocks becomes parts; returns how many there are then. */
static unsigned cut(struct large *l, unsigned n, unsigned first, unsigned blocks)
{
	unsigned most = (unsigned)(PIECE_BYTES / integrity_block_bytes(l->io->ic));

	for (; blocks; n++) {
		unsigned now = MIN(blocks, most);

		l->pieces[n].first = first;
		l->pieces[n].blocks = now;
		first += now;
		blocks -= now;
	}
	return n;
}

static struct large *large_new(struct io *io, unsigned most, bool check)
{
	struct integrity *ic = io->ic;
	size_t head = sizeof(struct large) + most * sizeof(struct part);
	size_t tags = ic->internal_hash.hash ? (size_t)io->blocks * ic->l.tag_size : 0;
	struct large *l = g_malloc(head + tags);

	l->io = io;
	l->check = check;
	l->tags = (uint8_t *)l + head;
	return l;
}

static void start_large(struct large *l, unsigned n)
{
	struct io *io = l->io;
	bool help = n > 1 && io->ic->internal_hash.hash && dm_spread_pays(io->blocks * io->ic->ns_per_block);

	dm_parts_init(&l->parts, io->bio, n);
	dm_spread_start(&(struct dm_spread_run){start_part, l, n}, help);
}

/* --- bios that have their locks --------------------------------------------------------------- */

/* Whether a read's tags are wanted at all: to be compared, or by who is above. */
static bool wants_tags(struct io *io)
{
	struct integrity *ic = io->ic;
	uint64_t end = (io->block + io->blocks) << ic->l.log2_spb;

	if (!ic->internal_hash.hash)
		return io->above;
	if (ic->mode == 'R')
		return false;
	if (io->bio->op == DM_WRITE)
		return true;
	if (atomic_load(&ic->flags) & SB_RECALCULATING && end > atomic_load(&ic->recalc))
		return false;
	return ic->mode != 'B' || !integrity_bitmap_unsure(ic, io->block, io->blocks);
}

/* To the data device.  True: bio->dev and sector are set, for it to go on; false: it is on its way. */
static bool go(struct io *io)
{
	struct integrity *ic = io->ic;
	struct dm_bio *bio = io->bio;
	bool tags = wants_tags(io);
	struct large *l;

	if (tags && bio->sectors << DM_SECTOR_SHIFT > SMALL_BYTES) {
		unsigned most = (unsigned)(PIECE_BYTES / integrity_block_bytes(ic));

		io->state = UNLOCK;
		l = large_new(io, (unsigned)dm_div_up(io->blocks, most), true);
		start_large(l, cut(l, 0, 0, io->blocks));
		return false;
	}
	io->state = tags ? TAGS : UNLOCK;
	bio->dev = ic->dev;
	bio->sector = device_sector(io, 0);
	return true;
}

/* Some of the blocks are in the journal, as entries say: copies those, reads the others. */
static void read_mixed(struct io *io, const uint64_t *entries)
{
	struct integrity *ic = io->ic;
	struct dm_bio *bio = io->bio;
	struct large *l = large_new(io, io->blocks, wants_tags(io));
	unsigned n = 0, from = 0;

	io->state = UNLOCK;
	for (unsigned i = 0; i <= io->blocks; i++) {
		if (i < io->blocks && entries[i] == NOT_IN_JOURNAL)
			continue;
		n = cut(l, n, from, i - from);
		from = i + 1;
		if (i < io->blocks)
			integrity_journal_read(ic, entries[i], bio->iov, bio->iovcnt, i * integrity_block_bytes(ic),
					       io->above ? tags_at(io, NULL, i) : NULL);
	}
	if (n) {
		start_large(l, n);
		return;
	}
	g_free(l);
	finish_and_end(io, 0);
}

/* True as go(). */
static bool read_locked(struct io *io)
{
	uint64_t few[ON_STACK], *entries = few;
	bool mixed;

	if (!io->ic->journal)
		return go(io);
	if (io->blocks > ON_STACK)
		entries = g_new(uint64_t, io->blocks);
	mixed = integrity_journal_find(io->ic, io->block, io->blocks, entries);
	if (mixed)
		read_mixed(io, entries);
	if (entries != few)
		g_free(entries);
	return !mixed && go(io);
}

static void bits_are_set(struct dm_commit_wait *wait, int error)
{
	struct io *io = container_of(wait, struct io, wait);

	if (error)
		finish_and_end(io, error);
	else if (go(io))
		dm_submit(io->bio);
}

static bool write_locked(struct io *io)
{
	if (!io->ic->bitmap)
		return go(io);
	io->wait.done = bits_are_set;
	return integrity_bitmap_may_write(io->ic, io->block, io->blocks, &io->wait) && go(io);
}

static bool locked(struct io *io)
{
	return io->bio->op == DM_READ ? read_locked(io) : write_locked(io);
}

static void lock_granted(struct dm_block_claim *claim)
{
	struct io *io = container_of(claim, struct io, claim);

	if (locked(io))
		dm_submit(io->bio);
}

/* --- works that wait -------------------------------------------------------------------------- */

void integrity_lock_sync(struct integrity *ic, struct dm_block_sync_claim *c, uint64_t first, uint64_t last)
{
	dm_block_lock_sync(ic->locks, c, first, last, DM_BLOCK_EXCLUSIVE);
}

void integrity_unlock_sync(struct integrity *ic, struct dm_block_sync_claim *c)
{
	dm_block_unlock(ic->locks, &c->claim, NULL);
}

/* Until none of the blocks is in the journal; the lock is held, and is again. */
static int leave_journal(struct integrity *ic, struct dm_block_sync_claim *c, uint64_t block, uint64_t blocks)
{
	uint64_t entries[ON_STACK];

	for (uint64_t at = 0; at < blocks; at += ON_STACK) {
		unsigned n = (unsigned)MIN(blocks - at, ON_STACK);
		int error;

		if (!integrity_journal_find(ic, block + at, n, entries))
			continue;
		integrity_unlock_sync(ic, c);
		error = dm_group_commit_sync(ic->flushes);
		if (!error)
			error = integrity_journal_write_home(ic);
		integrity_lock_sync(ic, c, block, block + blocks - 1);
		if (error)
			return error;
		at = -(uint64_t)ON_STACK; /* from the beginning */
	}
	return 0;
}

static int store_fillers(struct integrity *ic, uint64_t block, uint64_t blocks)
{
	enum { MOST = 1024 };
	g_autofree uint8_t *tags = g_malloc((size_t)MOST * ic->l.tag_size);
	int error = 0;

	memset(tags, DISCARD_FILLER, (size_t)MOST * ic->l.tag_size);
	for (uint64_t at = 0; at < blocks && !error; at += MOST)
		error = integrity_tags_io_sync(ic->tags, block + at, (unsigned)MIN(blocks - at, MOST), true, tags);
	return error;
}

static int bitmap_sync(struct integrity *ic, uint64_t block, uint64_t blocks)
{
	return ic->bitmap ? integrity_bitmap_may_write_sync(ic, block, blocks) : 0;
}

/*
 * In mode J and B the fillers are durable before the data go: a crash between them leaves blocks whose data are not
 * looked at.
 */
static void discard(struct dm_work *work)
{
	struct io *io = container_of(work, struct io, work);
	struct integrity *ic = io->ic;
	struct dm_bio *bio = io->bio;
	uint64_t blocks = bio->sectors >> ic->l.log2_spb;
	struct dm_block_sync_claim c;
	int error = 0;

	integrity_lock_sync(ic, &c, io->block, io->block + blocks - 1);
	if (ic->journal)
		error = leave_journal(ic, &c, io->block, blocks);
	if (!error)
		error = bitmap_sync(ic, io->block, blocks);
	if (!error)
		error = store_fillers(ic, io->block, blocks);
	if (!error && ic->mode != 'D') {
		error = integrity_tags_write_back(ic->tags);
		if (!error)
			error = dm_flush_sync(ic->meta);
	}
	if (!error) {
		struct dm_region where = {ic->dev, device_sector(io, 0), bio->sectors};

		error = dm_io_sync(DM_DISCARD, bio->flags & ~(unsigned)DM_FUA, 1, &where, NULL, 0, NULL);
	}
	integrity_unlock_sync(ic, &c);
	if (!error && ic->mode == 'D')
		dm_group_commit_soon(ic->flushes, ic->commit_ms * MS_NS);
	end_over(io, error);
}

/* --- map -------------------------------------------------------------------------------------- */

static void in_journal(struct integrity_journal_write *w, int error)
{
	struct io *io = container_of(w, struct io, journal);

	if (error || !io->fua) {
		end_over(io, error);
		return;
	}
	io->wait.done = committed;
	dm_group_commit(io->ic->flushes, &io->wait);
}

static void write_to_journal(struct io *io)
{
	io->journal.bio = io->bio;
	io->journal.tags = io->above;
	io->journal.block = io->block;
	io->journal.blocks = io->blocks;
	io->journal.done = in_journal;
	integrity_journal_write(io->ic, &io->journal);
}

static enum dm_mapio map_discard(struct io *io)
{
	io->work = (struct dm_work){.fn = discard};
	dm_wq_queue(io->ic->slow_wq, &io->work);
	return DM_MAPIO_SUBMITTED;
}

/* A read that no tags are wanted for, and no journal may have. */
static bool plain(const struct io *io)
{
	const struct integrity *ic = io->ic;

	return io->bio->op == DM_READ && !ic->journal && (ic->mode == 'R' || !ic->internal_hash.hash) && !io->above;
}

enum dm_mapio integrity_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct integrity *ic = ti->private;
	struct io *io = bio->private;
	uint64_t sector = dm_target_offset(ti, bio->sector);
	int failed = atomic_load_explicit(&ic->failed, memory_order_relaxed);
	enum dm_block_mode mode = bio->op == DM_READ ? DM_BLOCK_SHARED : DM_BLOCK_EXCLUSIVE;

	io->ic = ic;
	io->bio = bio;
	io->state = OVER;
	if (failed) {
		dm_bio_end(bio, failed);
		return DM_MAPIO_SUBMITTED;
	}
	if (bio->op == DM_FLUSH) {
		io->wait.done = committed;
		dm_group_commit(ic->flushes, &io->wait);
		return DM_MAPIO_SUBMITTED;
	}
	if ((sector | bio->sectors) & ((1u << ic->l.log2_spb) - 1) || (dm_op_is_write(bio->op) && !ic->writes))
		return DM_MAPIO_KILL;
	io->block = integrity_block_of(ic, sector);
	io->blocks = (unsigned)integrity_block_of(ic, bio->sectors);
	if (bio->op == DM_DISCARD)
		return map_discard(io);
	io->fua = bio->op == DM_WRITE && bio->flags & DM_FUA;
	bio->flags &= ~(unsigned)DM_FUA;
	io->above = bio->tags.data;
	bio->tags.data = NULL;
	if (plain(io)) {
		bio->dev = ic->dev;
		bio->sector = device_sector(io, 0);
		return DM_MAPIO_REMAPPED;
	}
	if (ic->journal && bio->op == DM_WRITE) {
		write_to_journal(io);
		return DM_MAPIO_SUBMITTED;
	}
	if (!dm_block_lock(ic->locks, &io->claim, io->block, io->block + io->blocks - 1, mode, lock_granted))
		return DM_MAPIO_SUBMITTED;
	return locked(io) ? DM_MAPIO_REMAPPED : DM_MAPIO_SUBMITTED;
}
