/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * log-writes: passes everything on to one device and keeps a log of all writes on another (log-writes.rst).
 *
 *   <dev_path> <log_dev_path>
 *
 * The log tells what was on the disk, not in its cache: a write that has completed is numbered and only remembered
 * (`unflushed`), until a FLUSH that was sent after its completion has completed too; then the writes up to the number
 * there was when it was sent are queued for the log, in the order they completed, and the FLUSH behind them.  A FUA
 * write is queued when it completes, a mark when it is sent, and discards go the way of writes.  One work takes entries
 * from `queued` and writes them, so the log grows strictly in order.
 *
 * As in the kernel: sectors are the device's own, the target's begin is not taken off; extra arguments are not looked
 * at; a log that is full or fails is left as it is and I/O goes on without it.  Beyond the kernel: the super block is
 * rewritten after a FLUSH too, not only after FUA writes and marks, so the log of a process that was killed can be read
 * up to its last FLUSH.
 */
#include <endian.h>
#include <inttypes.h>
#include <pthread.h>

#include <dmfs/claim.h>
#include <dmfs/container_of.h>
#include <dmfs/target.h>
#include <dmfs/work.h>

#include "log_writes_format.h"

struct entry {
	struct entry *next;
	uint64_t sector, sectors; /* 512 bytes each */
	uint64_t flags;
	size_t len; /* of data: what was written, or a mark's text */
	uint64_t number; /* of the completion; a FLUSH: of the last one before it was sent */
	char data[];
};

struct entries {
	struct entry *first, *last;
};

struct log_writes {
	struct dm_dev *dev, *log;
	unsigned block_size;
	bool passes_discards;
	struct dm_wq *wq;
	struct dm_work work;
	atomic_bool enabled;
	pthread_mutex_t lock; /* what follows */
	struct entries unflushed, queued;
	uint64_t completed;           /* writes so far */
	uint64_t logged, next_sector; /* entries, and the log's first free sector */
};

struct per_bio {
	struct entry *entry;
};

static void entries_add(struct entries *list, struct entry *e)
{
	e->next = NULL;
	if (list->first)
		list->last->next = e;
	else
		list->first = e;
	list->last = e;
}

static struct entry *entries_take(struct entries *list)
{
	struct entry *e = list->first;

	if (e)
		list->first = e->next;
	return e;
}

/* Queues remembered writes up to a number.  The lock is held. */
static void queue_unflushed(struct log_writes *lw, uint64_t number)
{
	while (lw->unflushed.first && lw->unflushed.first->number <= number)
		entries_add(&lw->queued, entries_take(&lw->unflushed));
}

/* --- writing the log ------------------------------------------------------------- */

static int write_super(struct log_writes *lw, uint64_t entries)
{
	g_autofree char *block = g_malloc0(lw->block_size);
	struct log_writes_super super = {
		.magic = htole64(LOG_WRITES_MAGIC),
		.version = htole64(LOG_WRITES_VERSION),
		.entries = htole64(entries),
		.block_size = htole32(lw->block_size),
	};

	memcpy(block, &super, sizeof super);
	return dm_write_sync(lw->log, 0, lw->block_size >> DM_SECTOR_SHIFT, block, 0);
}

static int write_entry(struct log_writes *lw, const struct entry *e, uint64_t sector)
{
	unsigned shift = (unsigned)g_bit_nth_lsf(lw->block_size, -1) - DM_SECTOR_SHIFT;
	bool mark = e->flags & LOG_WRITES_MARK;
	g_autofree char *block = g_malloc0(lw->block_size);
	struct log_writes_entry head = {
		.sector = htole64(e->sector >> shift),
		.sectors = htole64(e->sectors >> shift),
		.flags = htole64(e->flags),
		.data_len = htole64(mark ? e->len : 0),
	};
	struct iovec iov[2] = {{block, lw->block_size}, {(void *)e->data, e->len}};
	bool two = !mark && e->len;
	struct dm_region where = {lw->log, sector, (lw->block_size + (two ? e->len : 0)) >> DM_SECTOR_SHIFT};

	memcpy(block, &head, sizeof head);
	if (mark)
		memcpy(block + sizeof head, e->data, e->len);
	return dm_io_sync(DM_WRITE, 0, 1, &where, iov, two ? 2 : 1, NULL);
}

/* Takes the next entry and its place in the log; false when there is none. */
static bool take_entry(struct log_writes *lw, struct entry **out, uint64_t *sector, uint64_t *number)
{
	struct entry *e;

	*out = NULL;
	pthread_mutex_lock(&lw->lock);
	e = entries_take(&lw->queued);
	if (e && atomic_load(&lw->enabled)) {
		*sector = lw->next_sector;
		lw->next_sector += lw->block_size >> DM_SECTOR_SHIFT;
		if (!(e->flags & LOG_WRITES_DISCARD))
			lw->next_sector += e->sectors;
		if (lw->next_sector >= dm_dev_sectors(lw->log)) {
			dm_log_err("log-writes: Ran out of space on the logdev");
			atomic_store(&lw->enabled, false);
		} else {
			*number = ++lw->logged;
		}
	}
	pthread_mutex_unlock(&lw->lock);
	*out = e;
	return e;
}

static void write_log(struct dm_work *work)
{
	struct log_writes *lw = container_of(work, struct log_writes, work);
	uint64_t sector = 0, number = 0;
	struct entry *e;

	while (take_entry(lw, &e, &sector, &number)) {
		int error = 0;

		if (atomic_load(&lw->enabled)) {
			error = write_entry(lw, e, sector);
			if (!error && (e->flags & (LOG_WRITES_FLUSH | LOG_WRITES_FUA | LOG_WRITES_MARK)))
				error = write_super(lw, number);
		}
		if (error) {
			dm_log_err("log-writes: Error writing log block, error=%d", error);
			atomic_store(&lw->enabled, false);
		}
		g_free(e);
	}
}

/* --- bios -------------------------------------------------------------------------- */

static struct entry *entry_of(struct dm_bio *bio)
{
	size_t len = bio->op == DM_WRITE ? bio->sectors << DM_SECTOR_SHIFT : 0;
	struct entry *e = g_malloc(sizeof *e + len);

	*e = (struct entry){.sector = bio->op == DM_FLUSH ? 0 : bio->sector, .sectors = bio->sectors, .len = len};
	if (len)
		dm_iov_read(bio->iov, bio->iovcnt, 0, e->data, len);
	if (bio->op == DM_FLUSH)
		e->flags |= LOG_WRITES_FLUSH;
	if (bio->flags & DM_FUA)
		e->flags |= LOG_WRITES_FUA;
	if (bio->op == DM_DISCARD)
		e->flags |= LOG_WRITES_DISCARD;
	if (bio->flags & DM_META)
		e->flags |= LOG_WRITES_META;
	return e;
}

static enum dm_mapio log_writes_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct log_writes *lw = ti->private;
	struct per_bio *pb = bio->private;

	pb->entry = NULL;
	bio->dev = lw->dev;
	if (bio->op == DM_READ || !atomic_load_explicit(&lw->enabled, memory_order_relaxed))
		return DM_MAPIO_REMAPPED;
	pb->entry = entry_of(bio);
	if (bio->op == DM_FLUSH) {
		pthread_mutex_lock(&lw->lock);
		pb->entry->number = lw->completed;
		pthread_mutex_unlock(&lw->lock);
	} else if (bio->op == DM_DISCARD && !lw->passes_discards) {
		dm_bio_end(bio, 0); /* logged all the same */
		return DM_MAPIO_SUBMITTED;
	}
	return DM_MAPIO_REMAPPED;
}

static enum dm_endio log_writes_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct log_writes *lw = ti->private;
	struct entry *e = ((struct per_bio *)bio->private)->entry;
	bool now;

	if (!e)
		return DM_ENDIO_DONE;
	now = e->flags & (LOG_WRITES_FLUSH | LOG_WRITES_FUA);
	pthread_mutex_lock(&lw->lock);
	if (e->flags & LOG_WRITES_FLUSH)
		queue_unflushed(lw, e->number);
	else
		e->number = ++lw->completed;
	entries_add(now ? &lw->queued : &lw->unflushed, e);
	pthread_mutex_unlock(&lw->lock);
	if (now)
		dm_wq_queue(lw->wq, &lw->work);
	return DM_ENDIO_DONE;
}

/* A mark; longer texts are cut, as the block is all the room there is. */
static void add_mark(struct log_writes *lw, const char *text)
{
	size_t len = strnlen(text, lw->block_size - sizeof(struct log_writes_entry) - 1);
	struct entry *e = g_malloc(sizeof *e + len);

	*e = (struct entry){.flags = LOG_WRITES_MARK, .len = len};
	memcpy(e->data, text, len);
	pthread_mutex_lock(&lw->lock);
	entries_add(&lw->queued, e);
	pthread_mutex_unlock(&lw->lock);
	dm_wq_queue(lw->wq, &lw->work);
}

/* --- the target ---------------------------------------------------------------------- */

static int log_writes_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct dm_limits limits;
	struct log_writes *lw;
	int error;

	if (argc < 2)
		return dm_fail(err, EINVAL,
			       "log-writes: Invalid argument count: %d, <dev_path> <log_dev_path> are 2", argc);
	lw = g_new0(struct log_writes, 1);
	error = dm_get_device(ti, argv[0], dm_target_mode(ti), &lw->dev, err);
	if (error) {
		g_free(lw);
		return error;
	}
	error = dm_get_device(ti, argv[1], dm_target_mode(ti), &lw->log, err);
	if (!error) {
		error = dm_claim_device(ti, lw->log, dm_target_mode(ti), "log device", err);
		if (error)
			dm_put_device(ti, lw->log);
	}
	if (error) {
		dm_put_device(ti, lw->dev);
		g_free(lw);
		return error;
	}
	dm_dev_limits(lw->dev, &limits);
	lw->block_size = limits.logical_block_size;
	lw->passes_discards = limits.max_discard_sectors;
	lw->next_sector = lw->block_size >> DM_SECTOR_SHIFT;
	lw->wq = dm_wq_new("log-writes", 1);
	lw->work.fn = write_log;
	atomic_init(&lw->enabled, true);
	pthread_mutex_init(&lw->lock, NULL);
	ti->private = lw;
	ti->num_discard_bios = 1;
	ti->discards_supported = true;
	return 0;
}

static void log_writes_dtr(struct dm_target *ti)
{
	struct log_writes *lw = ti->private;

	pthread_mutex_lock(&lw->lock);
	queue_unflushed(lw, UINT64_MAX);
	pthread_mutex_unlock(&lw->lock);
	add_mark(lw, LOG_WRITES_END_MARK);
	dm_wq_free(lw->wq);
	dm_put_device(ti, lw->dev);
	dm_put_device(ti, lw->log);
	pthread_mutex_destroy(&lw->lock);
	g_free(lw);
}

static void log_writes_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct log_writes *lw = ti->private;

	if (type == DM_STATUS_INFO) {
		pthread_mutex_lock(&lw->lock);
		g_string_append_printf(out, "%" PRIu64 " %" PRIu64, lw->logged, lw->next_sector - 1);
		pthread_mutex_unlock(&lw->lock);
		if (!atomic_load(&lw->enabled))
			g_string_append(out, " logging_disabled");
		return;
	}
	dm_dev_print(lw->dev, out);
	g_string_append_c(out, ' ');
	dm_dev_print(lw->log, out);
}

/* mark <text>; the mark is in the log when this returns. */
static int log_writes_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	struct log_writes *lw = ti->private;

	if (argc != 2)
		return dm_fail(err, EINVAL, "log-writes: Invalid message arguments: %d words, 'mark <text>' are 2",
			       argc);
	if (g_ascii_strcasecmp(argv[0], "mark"))
		return dm_fail(err, EINVAL, "log-writes: Unrecognised message '%.64s', there is 'mark <text>' only",
			       argv[0]);
	add_mark(lw, argv[1]);
	dm_wq_flush(lw->wq);
	return 0;
}

static int log_writes_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct log_writes *lw = ti->private;

	return fn(ti, lw->dev, 0, ti->len, data);
}

static void log_writes_io_hints(struct dm_target *ti, struct dm_limits *limits)
{
	struct log_writes *lw = ti->private;

	if (!lw->passes_discards) {
		limits->discard_granularity = lw->block_size;
		limits->max_discard_sectors = UINT32_MAX >> DM_SECTOR_SHIFT;
	}
	limits->io_min = limits->physical_block_size;
}

static int log_writes_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct log_writes *lw = ti->private;

	return dm_dev_extent(lw->dev, ti->begin + sector, sectors, out);
}

static uint64_t log_writes_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct log_writes *lw = ti->private;

	return dm_dev_provisioned(lw->dev, ti->begin + sector, sectors);
}

const struct dm_target_type log_writes_target = {
	.name = "log-writes",
	.version = {1, 1, 0},
	.features = DM_TARGET_STRAIGHT,
	.per_bio_size = sizeof(struct per_bio),
	.ctr = log_writes_ctr,
	.dtr = log_writes_dtr,
	.map = log_writes_map,
	.end_io = log_writes_end_io,
	.status = log_writes_status,
	.message = log_writes_message,
	.iterate_devices = log_writes_iterate_devices,
	.io_hints = log_writes_io_hints,
	.extent = log_writes_extent,
	.provisioned = log_writes_provisioned,
};
