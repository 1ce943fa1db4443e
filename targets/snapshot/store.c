/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The COW store, in the kernel's format (snapshot.rst; little endian).
 *
 *   chunk 0              header: u32 magic 0x70416e53 ("SnAp"), u32 valid (1 or 0), u32 version 1,
 *                        u32 sectors a chunk; zeroes
 *   chunk 1              area 0: exceptions, two u64 each: chunk of the origin, chunk of this device
 *   chunks 2 ... N+1     data, N being how many exceptions fit into a chunk
 *   chunk N+2            area 1, and so on every N+1 chunks
 *
 * The exceptions end at the first whose second number is 0; an area that is full is followed by another.  So before an
 * area gets full the next one has to be zeroes, durably, which the FLUSH before every write of an area takes care of,
 * as it does for the data of the chunks.
 *
 * A store without persistence has no metadata, its chunks are all data.
 *
 * Commits: `given` has the chunks given out, in order.  Whoever makes one ready and finds no commit under way takes the
 * ready ones at the head as a batch, enters them into the area and sends the write.  Its end takes the next batch.  An
 * exception's data was written before it became ready, and so precedes the FLUSH of its batch.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>

#include "store.h"

#include <dmfs/rounding.h>

#define MAGIC 0x70416e53u
#define VERSION 1u
#define HEADER_CHUNKS 1u
#define DEFAULT_CHUNK_SECTORS 32u
#define MAX_CHUNK_SECTORS (1u << 21)
#define DIRTY_UNIT 4096u /* areas are written in units of this */
#define SEEN_BITS 4096u

struct disk_header {
	uint32_t magic, valid, version, chunk_sectors;
};

struct disk_exception {
	uint64_t old_chunk, new_chunk;
};

struct snap_store {
	enum snap_store_kind kind;
	struct dm_dev *dev;
	uint32_t chunk_sectors, per_area; /* exceptions */
	unsigned shift;
	size_t block; /* bytes: the device's logical block */

	pthread_mutex_t lock;
	pthread_cond_t idle;
	uint64_t next_free;
	uint64_t chunks;  /* of the device when it was asked last */
	uint64_t entries; /* exceptions that have or will get a place */
	uint64_t area_nr;
	uint32_t in_area; /* exceptions in it that are durable */
	bool failed; /* once failed, order does not matter: all of them fail */
	struct snap_commit *given, **given_tail;

	/* Whose batch is under way has these. */
	bool busy;
	struct disk_exception *area;
	bool write_all; /* the area's copy on disk has remains behind its end */
	GPtrArray *batch;
	struct dm_bio io;
	struct iovec iov;

	char *header; /* one block */
};

static void take_batch(struct snap_store *st);

/* --- places ---------------------------------------------------------------------- */

static uint64_t area_chunk(const struct snap_store *st, uint64_t area)
{
	return HEADER_CHUNKS + ((uint64_t)st->per_area + 1) * area;
}

static bool is_area(const struct snap_store *st, uint64_t chunk)
{
	return chunk % ((uint64_t)st->per_area + 1) == HEADER_CHUNKS;
}

/* Whole chunks that the device has now. */
static uint64_t device_chunks(const struct snap_store *st)
{
	return dm_dev_sectors(st->dev) >> st->shift;
}

uint32_t snap_chunk_sectors(const struct snap_store *st)
{
	return st->chunk_sectors;
}

/* --- life -------------------------------------------------------------------------- */

struct snap_store *snap_store_new(enum snap_store_kind kind, struct dm_dev *dev)
{
	struct snap_store *st = g_new0(struct snap_store, 1);
	struct dm_limits limits;

	st->kind = kind;
	st->dev = dev;
	dm_dev_limits(dev, &limits);
	st->block = MAX(limits.logical_block_size, DM_SECTOR_SIZE);
	pthread_mutex_init(&st->lock, NULL);
	pthread_cond_init(&st->idle, NULL);
	st->given_tail = &st->given;
	st->batch = g_ptr_array_new();
	return st;
}

void snap_store_wait(struct snap_store *st)
{
	pthread_mutex_lock(&st->lock);
	while (st->busy)
		pthread_cond_wait(&st->idle, &st->lock);
	pthread_mutex_unlock(&st->lock);
}

void snap_store_free(struct snap_store *st)
{
	if (!st)
		return;
	snap_store_wait(st);
	g_ptr_array_free(st->batch, TRUE);
	g_free(st->area);
	g_free(st->header);
	pthread_mutex_destroy(&st->lock);
	pthread_cond_destroy(&st->idle);
	g_free(st);
}

void snap_store_set_dev(struct snap_store *st, struct dm_dev *dev)
{
	st->dev = dev;
}

/* --- opening -------------------------------------------------------------------------- */

static int set_chunk(struct snap_store *st, uint32_t sectors, const char *whose, const struct snap_reader *rd,
		     GError **err)
{
	if (!dm_is_pow2(sectors))
		return dm_fail(err, EINVAL, "snapshot: %s chunk size %" PRIu32 " is not a power of 2", whose, sectors);
	if (sectors > MAX_CHUNK_SECTORS)
		return dm_fail(err, EINVAL, "snapshot: %s chunk size %" PRIu32 " is too high, %u sectors are the most",
			       whose, sectors, MAX_CHUNK_SECTORS);
	st->chunk_sectors = sectors;
	st->shift = dm_log2(sectors);
	st->per_area = (uint32_t)(((size_t)sectors << DM_SECTOR_SHIFT) / sizeof(struct disk_exception));
	return rd->check ? rd->check(rd->context, sectors, err) : 0;
}

static int check_room(struct snap_store *st, GError **err)
{
	uint64_t need = 2 * (uint64_t)st->chunk_sectors, have = dm_dev_sectors(st->dev);

	if (have < need)
		return dm_fail(err, EINVAL,
			       "snapshot: the COW device is too small: it has %" PRIu64
			       " sectors, a header and one metadata area take %" PRIu64,
			       have, need);
	st->area = g_try_malloc0((gsize)st->chunk_sectors << DM_SECTOR_SHIFT);
	if (!st->area)
		return dm_fail(err, ENOMEM, "snapshot: no memory for a chunk of %" PRIu32 " sectors",
			       st->chunk_sectors);
	return 0;
}

static int write_header(struct snap_store *st, bool valid)
{
	struct disk_header h = {
		.magic = GUINT32_TO_LE(MAGIC),
		.valid = GUINT32_TO_LE(valid),
		.version = GUINT32_TO_LE(VERSION),
		.chunk_sectors = GUINT32_TO_LE(st->chunk_sectors),
	};

	memset(st->header, 0, st->block);
	memcpy(st->header, &h, sizeof h);
	return dm_write_sync(st->dev, 0, st->block >> DM_SECTOR_SHIFT, st->header, DM_META | DM_FUA);
}

/* An empty area first, the header that makes a store of it after that. */
static int make_store(struct snap_store *st, GError **err)
{
	struct dm_region both = {st->dev, 0, 2 * (uint64_t)st->chunk_sectors};
	int error = dm_io_sync(DM_WRITE_ZEROES, DM_META | DM_NOUNMAP, 1, &both, NULL, 0, NULL);

	if (!error)
		error = dm_flush_sync(st->dev);
	if (!error)
		error = write_header(st, true);
	if (error)
		return dm_fail(err, -error, "snapshot: cannot write a new exception store: %s", g_strerror(-error));
	st->next_free = HEADER_CHUNKS + 1;
	return 0;
}

/* Chunks of the store that an exception was seen of: bitmaps by chunk / SEEN_BITS. */
struct seen {
	GHashTable *pages;
	uint64_t *page; /* the last one: its key, then the bits */
	uint64_t chunks; /* of the device, asked once: it may be a system call */
};

static bool see(struct seen *seen, uint64_t chunk)
{
	uint64_t key = chunk / SEEN_BITS, bit = chunk % SEEN_BITS, *bits;
	bool was;

	if (!seen->page || seen->page[0] != key) {
		seen->page = g_hash_table_lookup(seen->pages, &key);
		if (!seen->page) {
			seen->page = g_malloc0(8 + SEEN_BITS / 8);
			seen->page[0] = key;
			g_hash_table_add(seen->pages, seen->page);
		}
	}
	bits = seen->page + 1;
	was = bits[bit / 64] >> bit % 64 & 1;
	bits[bit / 64] |= 1ull << bit % 64;
	return !was;
}

static int take_exception(struct snap_store *st, const struct snap_reader *rd, struct seen *seen, uint64_t old_chunk,
			  uint64_t new_chunk, uint64_t nr, GError **err)
{
	uint64_t old_chunks = (rd->origin_sectors >> st->shift) + !!(rd->origin_sectors & (st->chunk_sectors - 1));
	int error;

	if (old_chunk >= old_chunks)
		return dm_fail(err, EINVAL,
			       "snapshot: exception %" PRIu64 " is of chunk %" PRIu64 ", the origin has %" PRIu64, nr,
			       old_chunk, old_chunks);
	if (new_chunk >= seen->chunks)
		return dm_fail(err, EINVAL,
			       "snapshot: exception %" PRIu64 " points to chunk %" PRIu64
			       ", the COW device has %" PRIu64,
			       nr, new_chunk, seen->chunks);
	if (is_area(st, new_chunk))
		return dm_fail(err, EINVAL, "snapshot: exception %" PRIu64 " points to chunk %" PRIu64 ", which is metadata",
			       nr, new_chunk);
	if (!see(seen, new_chunk))
		return dm_fail(err, EINVAL, "snapshot: exception %" PRIu64 " points to chunk %" PRIu64
			       ", which another has already",
			       nr, new_chunk);
	st->next_free = MAX(st->next_free, new_chunk + 1);
	error = rd->add(rd->context, old_chunk, new_chunk);
	if (error)
		return dm_fail(err, EINVAL, "snapshot: exception %" PRIu64 " is of chunk %" PRIu64 "%s", nr, old_chunk,
			       error == -EEXIST ? ", which has one already" : ", which was refused");
	return 0;
}

/* Takes the exceptions of the area in memory; fewer than per_area mean that it is the last. */
static int take_area(struct snap_store *st, const struct snap_reader *rd, struct seen *seen, GError **err)
{
	for (st->in_area = 0; st->in_area < st->per_area; st->in_area++) {
		const struct disk_exception *e = &st->area[st->in_area];
		uint64_t new_chunk = GUINT64_FROM_LE(e->new_chunk);
		int error;

		if (!new_chunk)
			break;
		error = take_exception(st, rd, seen, GUINT64_FROM_LE(e->old_chunk), new_chunk, st->entries, err);
		if (error)
			return error;
		st->entries++;
	}
	return 0;
}

/* A write of the area that power loss tore may have left its later sectors but not the earlier: they do not count. */
static void clear_remains(struct snap_store *st)
{
	for (uint32_t i = st->in_area; i < st->per_area; i++)
		st->write_all |= st->area[i].old_chunk || st->area[i].new_chunk;
	memset(st->area + st->in_area, 0, (st->per_area - st->in_area) * sizeof st->area[0]);
}

static int read_area(struct snap_store *st, uint64_t area, GError **err)
{
	uint64_t chunk = area_chunk(st, area);
	int error;

	if (chunk >= device_chunks(st))
		return dm_fail(err, EINVAL,
			       "snapshot: the COW device is cut short: metadata area %" PRIu64 " is chunk %" PRIu64
			       ", it has %" PRIu64,
			       area, chunk, device_chunks(st));
	error = dm_read_sync(st->dev, chunk << st->shift, st->chunk_sectors, st->area, DM_META);
	return error ? dm_fail(err, -error, "snapshot: cannot read metadata area %" PRIu64 ": %s", area,
			       g_strerror(-error))
		     : 0;
}

static int read_exceptions(struct snap_store *st, const struct snap_reader *rd, GError **err)
{
	g_autoptr(GHashTable) pages = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
	struct seen seen = {pages, NULL, device_chunks(st)};
	int error;

	st->next_free = HEADER_CHUNKS + 1;
	for (st->area_nr = 0;; st->area_nr++) {
		error = read_area(st, st->area_nr, err);
		if (!error)
			error = take_area(st, rd, &seen, err);
		if (error)
			return error;
		if (st->in_area < st->per_area)
			break;
	}
	clear_remains(st);
	if (is_area(st, st->next_free))
		st->next_free++;
	return 0;
}

/* Reads the header into h; a device without one has zeroes there. */
static int read_header(struct snap_store *st, struct disk_header *h, GError **err)
{
	uint64_t have = dm_dev_sectors(st->dev);
	int error;

	if (have < st->block >> DM_SECTOR_SHIFT)
		return dm_fail(err, EINVAL, "snapshot: the COW device is too small: it has %" PRIu64 " sectors", have);
	error = dm_read_sync(st->dev, 0, st->block >> DM_SECTOR_SHIFT, st->header, DM_META);
	if (error)
		return dm_fail(err, -error, "snapshot: cannot read the COW device: %s", g_strerror(-error));
	memcpy(h, st->header, sizeof *h);
	h->magic = GUINT32_FROM_LE(h->magic);
	h->valid = GUINT32_FROM_LE(h->valid);
	h->version = GUINT32_FROM_LE(h->version);
	h->chunk_sectors = GUINT32_FROM_LE(h->chunk_sectors);
	if (h->magic && h->magic != MAGIC)
		return dm_fail(err, ENXIO,
			       "snapshot: Invalid or corrupt snapshot: the COW device begins with %08" PRIx32
			       ", a store begins with %08x, a device to make one on with zeroes",
			       h->magic, MAGIC);
	if (h->magic && h->version != VERSION)
		return dm_fail(err, EINVAL, "snapshot: unable to handle snapshot disk version %" PRIu32 ", only %u",
			       h->version, VERSION);
	return 0;
}

static int open_persistent(struct snap_store *st, uint32_t chunk_sectors, const struct snap_reader *rd, GError **err)
{
	uint32_t wanted = chunk_sectors ? chunk_sectors
					: MAX(DEFAULT_CHUNK_SECTORS, (uint32_t)(st->block >> DM_SECTOR_SHIFT));
	struct disk_header h;
	int error;

	st->header = g_malloc0(st->block);
	error = read_header(st, &h, err);
	if (error)
		return error;
	if (h.magic && chunk_sectors && h.chunk_sectors != chunk_sectors)
		dm_log_warn("snapshot: chunk size %" PRIu32 " in the store overrides the table's %" PRIu32,
			    h.chunk_sectors, chunk_sectors);
	error = h.magic ? set_chunk(st, h.chunk_sectors, "on-disk", rd, err) : set_chunk(st, wanted, "table's", rd, err);
	if (!error)
		error = check_room(st, err);
	if (error)
		return error;
	if (!h.magic)
		return make_store(st, err);
	if (!h.valid) {
		dm_log_warn("snapshot: Snapshot is marked invalid.");
		return 1;
	}
	return read_exceptions(st, rd, err);
}

int snap_store_open(struct snap_store *st, uint32_t chunk_sectors, const struct snap_reader *rd, GError **err)
{
	if (st->kind == SNAP_PERSISTENT)
		return open_persistent(st, chunk_sectors, rd, err);
	if (!chunk_sectors)
		return dm_fail(err, EINVAL, "snapshot: Chunk size not set: a store of type N has no default for 0");
	return set_chunk(st, chunk_sectors, "table's", rd, err);
}

/* --- chunks --------------------------------------------------------------------------- */

/* Whether there is room for an exception.  One that fills an area needs the next area to have a place. */
static bool has_room(const struct snap_store *st)
{
	uint64_t entries = st->entries + 1;

	if (st->next_free >= st->chunks)
		return false;
	return st->kind == SNAP_TRANSIENT || entries % st->per_area ||
	       area_chunk(st, entries / st->per_area) < st->chunks;
}

static void give(struct snap_store *st, struct snap_commit *c)
{
	c->ready = false;
	c->next = NULL;
	c->prev = st->given_tail;
	*st->given_tail = c;
	st->given_tail = &c->next;
}

static void ungive(struct snap_store *st, struct snap_commit *c)
{
	*c->prev = c->next;
	if (c->next)
		c->next->prev = c->prev;
	else
		st->given_tail = c->prev;
}

int snap_alloc(struct snap_store *st, struct snap_commit *c)
{
	bool ok;

	pthread_mutex_lock(&st->lock);
	if (!has_room(st))
		st->chunks = device_chunks(st); /* it may have grown */
	ok = has_room(st);
	if (ok) {
		c->new_chunk = st->next_free++;
		st->entries++;
	}
	if (ok && st->kind == SNAP_PERSISTENT) {
		give(st, c);
		if (is_area(st, st->next_free))
			st->next_free++;
	}
	pthread_mutex_unlock(&st->lock);
	return ok ? 0 : -ENOSPC;
}

void snap_usage(struct snap_store *st, uint64_t *allocated, uint64_t *total, uint64_t *metadata)
{
	pthread_mutex_lock(&st->lock);
	*allocated = st->next_free << st->shift;
	*metadata = st->kind == SNAP_PERSISTENT ? (st->area_nr + 1 + HEADER_CHUNKS) << st->shift : 0;
	pthread_mutex_unlock(&st->lock);
	*total = dm_dev_sectors(st->dev);
}

/* --- commits ---------------------------------------------------------------------------- */

/* The next exception to commit, if it is ready; once failed, any that is. */
static struct snap_commit *next_ready(struct snap_store *st)
{
	struct snap_commit *c = st->given;

	while (st->failed && c && !c->ready)
		c = c->next;
	return c && c->ready ? c : NULL;
}

/* Tells a batch's owners; takes the next if there is one. */
static void finish_batch(struct snap_store *st, bool ok)
{
	bool more;

	pthread_mutex_lock(&st->lock);
	st->failed |= !ok;
	st->in_area += st->batch->len;
	if (st->in_area == st->per_area) {
		st->in_area = 0;
		st->area_nr++;
		st->write_all = false;
		memset(st->area, 0, (size_t)st->chunk_sectors << DM_SECTOR_SHIFT);
	}
	ok = !st->failed;
	pthread_mutex_unlock(&st->lock);

	for (guint i = 0; i < st->batch->len; i++) {
		struct snap_commit *c = st->batch->pdata[i];

		c->done(c, ok);
	}
	g_ptr_array_set_size(st->batch, 0);

	pthread_mutex_lock(&st->lock);
	more = next_ready(st);
	if (!more) {
		st->busy = false;
		pthread_cond_broadcast(&st->idle);
	}
	pthread_mutex_unlock(&st->lock);
	if (more)
		take_batch(st);
}

static void area_written(struct dm_bio *bio)
{
	struct snap_store *st = bio->private;

	st->write_all = false;
	finish_batch(st, !bio->error);
}

/* The sectors of the area that hold exceptions [from, to), in whole units; all of it after remains. */
static struct dm_bio area_bio(struct snap_store *st, uint32_t from, uint32_t to)
{
	size_t unit = MAX(DIRTY_UNIT, st->block), size = (size_t)st->chunk_sectors << DM_SECTOR_SHIFT;
	size_t begin = from * sizeof st->area[0] / unit * unit;
	size_t end = MIN(size, dm_round_up(to * sizeof st->area[0], unit));

	if (st->write_all) {
		begin = 0;
		end = size;
	}
	st->iov = (struct iovec){(char *)st->area + begin, end - begin};
	return (struct dm_bio){
		.op = DM_WRITE,
		.flags = DM_META | DM_PREFLUSH | DM_FUA,
		.dev = st->dev,
		.sector = (area_chunk(st, st->area_nr) << st->shift) + (begin >> DM_SECTOR_SHIFT),
		.sectors = (end - begin) >> DM_SECTOR_SHIFT,
		.iov = &st->iov,
		.iovcnt = 1,
	};
}

static void send(struct snap_store *st, struct dm_bio bio, void (*end)(struct dm_bio *))
{
	st->io = bio;
	st->io.private = st;
	st->io.end = end;
	dm_submit(&st->io);
}

static void write_area(struct snap_store *st)
{
	send(st, area_bio(st, st->in_area, st->in_area + st->batch->len), area_written);
}

static void next_area_zeroed(struct dm_bio *bio)
{
	struct snap_store *st = bio->private;

	if (bio->error)
		finish_batch(st, false);
	else
		write_area(st);
}

static void zero_next_area(struct snap_store *st)
{
	struct dm_bio bio = {
		.op = DM_WRITE_ZEROES,
		.flags = DM_META | DM_NOUNMAP,
		.dev = st->dev,
		.sector = area_chunk(st, st->area_nr + 1) << st->shift,
		.sectors = st->chunk_sectors,
	};

	send(st, bio, next_area_zeroed);
}

/* Makes a batch of what is ready and fits into the area; st->busy is set and the caller's. */
static void take_batch(struct snap_store *st)
{
	struct snap_commit *c;
	bool failed;

	pthread_mutex_lock(&st->lock);
	while (st->in_area + st->batch->len < st->per_area && (c = next_ready(st))) {
		ungive(st, c);
		st->area[st->in_area + st->batch->len] = (struct disk_exception){
			.old_chunk = GUINT64_TO_LE(c->old_chunk),
			.new_chunk = GUINT64_TO_LE(c->new_chunk),
		};
		g_ptr_array_add(st->batch, c);
	}
	failed = st->failed;
	pthread_mutex_unlock(&st->lock);
	if (failed)
		finish_batch(st, false);
	else if (st->in_area + st->batch->len == st->per_area)
		zero_next_area(st);
	else
		write_area(st);
}

/* Takes a batch if there is one and none is under way.  st->lock is held, and given up. */
static void kick(struct snap_store *st)
{
	bool mine = !st->busy && next_ready(st);

	st->busy |= mine;
	pthread_mutex_unlock(&st->lock);
	if (mine)
		take_batch(st);
}

void snap_commit(struct snap_store *st, struct snap_commit *c)
{
	if (st->kind == SNAP_TRANSIENT) {
		c->done(c, true);
		return;
	}
	pthread_mutex_lock(&st->lock);
	c->ready = true;
	kick(st);
}

void snap_abort(struct snap_store *st, struct snap_commit *c)
{
	pthread_mutex_lock(&st->lock);
	if (st->kind == SNAP_PERSISTENT)
		ungive(st, c);
	pthread_mutex_unlock(&st->lock);
	snap_store_fail(st);
}

/* --- the end of a store --------------------------------------------------------------------- */

void snap_store_fail(struct snap_store *st)
{
	pthread_mutex_lock(&st->lock);
	st->failed = true;
	kick(st);
}

int snap_store_mark(struct snap_store *st)
{
	return st->kind == SNAP_PERSISTENT ? write_header(st, false) : 0;
}

/* --- merging ------------------------------------------------------------------------------------ */

int snap_merge_last(struct snap_store *st, struct snap_pair *out, unsigned max)
{
	unsigned n;
	int error;

	if (!st->in_area) {
		if (!st->area_nr)
			return 0;
		error = read_area(st, st->area_nr - 1, NULL);
		if (error)
			return error;
		pthread_mutex_lock(&st->lock);
		st->area_nr--;
		st->in_area = st->per_area;
		st->write_all = false;
		pthread_mutex_unlock(&st->lock);
	}
	n = MIN(max, st->in_area);
	for (unsigned i = 0; i < n; i++) {
		const struct disk_exception *e = &st->area[st->in_area - n + i];

		out[i] = (struct snap_pair){GUINT64_FROM_LE(e->old_chunk), GUINT64_FROM_LE(e->new_chunk)};
	}
	return (int)n;
}

int snap_merge_forget(struct snap_store *st, unsigned n)
{
	struct dm_bio bio;
	int error;

	memset(st->area + st->in_area - n, 0, n * sizeof st->area[0]);
	bio = area_bio(st, st->in_area - n, st->in_area);
	error = dm_write_sync(st->dev, bio.sector, bio.sectors, st->iov.iov_base, bio.flags);
	if (error)
		return error;
	pthread_mutex_lock(&st->lock);
	st->write_all = false;
	st->in_area -= n;
	st->entries -= n;
	/* As if all had been committed in the order of their chunks: only the usage looks at it from now on. */
	st->next_free = area_chunk(st, st->area_nr) + st->in_area + 1;
	pthread_mutex_unlock(&st->lock);
	return 0;
}
