/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin: a volume of a pool.
 *
 *   thin <pool device> <device id> [<external origin>]
 *
 * A provision is mapped as a write to the blocks would be, and then goes on to the data device.
 *
 * Status: <mapped sectors> <highest mapped sector>, "-" for the latter if there is none; "Fail" if the pool has failed.
 */
#include "pool.h"

#include <inttypes.h>

#include <dmfs/container_of.h>

/* --- bios --- */

static void send_to(struct dm_bio *bio, struct dm_dev *dev, uint64_t sector)
{
	bio->dev = dev;
	bio->sector = sector;
}

/* A read across the end of the origin: the part before it. */
struct head {
	struct dm_parts parts;
	struct dm_bio io;
	struct iovec iov[];
};

static void head_read(struct dm_bio *io)
{
	dm_parts_end(&container_of(io, struct head, io)->parts, io->error);
}

static void read_head(struct thin *t, struct dm_bio *bio, uint64_t sector, uint64_t sectors)
{
	struct head *head = g_malloc(sizeof(*head) + (size_t)bio->iovcnt * sizeof(head->iov[0]));

	dm_parts_init(&head->parts, bio, 1);
	head->io = (struct dm_bio){
		.op = DM_READ,
		.dev = t->origin,
		.sector = sector,
		.sectors = sectors,
		.iov = head->iov,
		.iovcnt = dm_iov_slice(bio->iov, bio->iovcnt, 0, sectors * DM_SECTOR_SIZE, head->iov),
		.origin = bio->origin,
		.end = head_read,
	};
	dm_submit(&head->io);
}

/* Beyond the origin's end it is all zeroes. */
static enum dm_mapio read_origin(struct thin *t, struct dm_bio *bio)
{
	uint64_t sector = dm_target_offset(t->ti, bio->sector), have;

	if (sector + bio->sectors <= t->origin_sectors) {
		send_to(bio, t->origin, sector);
		return DM_MAPIO_REMAPPED;
	}
	have = sector < t->origin_sectors ? t->origin_sectors - sector : 0;
	dm_iov_zero(bio->iov, bio->iovcnt, have * DM_SECTOR_SIZE, (bio->sectors - have) * DM_SECTOR_SIZE);
	if (have)
		read_head(t, bio, sector, have);
	else
		dm_bio_end(bio, 0);
	return DM_MAPIO_SUBMITTED;
}

static enum dm_mapio read_unmapped(struct thin *t, struct dm_bio *bio)
{
	if (t->origin)
		return read_origin(t, bio);
	dm_iov_zero(bio->iov, bio->iovcnt, 0, bio->sectors * DM_SECTOR_SIZE);
	dm_bio_end(bio, 0);
	return DM_MAPIO_SUBMITTED;
}

/* Enters the pool's epoch with a bio; false: the pool is suspended. */
static bool enter(struct thin *t, struct dm_bio *bio)
{
	struct dm_gate *epoch = thin_epoch_enter(&t->pool->epoch);

	if (!atomic_load(&t->pool->suspended)) {
		thin_io(bio)->epoch = epoch;
		return true;
	}
	dm_gate_exit(epoch);
	return false;
}

static void leave(struct dm_bio *bio)
{
	struct dm_gate *epoch = thin_io(bio)->epoch;

	thin_io(bio)->epoch = NULL;
	if (epoch)
		dm_gate_exit(epoch);
}

static void log_lookup(struct thin *t, int error)
{
	g_autoptr(GString) name = g_string_new(NULL);

	dm_log_err_limit("thin: %s: dm_thin_find_block() failed: error = %d", pool_name(t->pool, name), error);
}

enum verdict {
	SETTLED,   /* what map() returns says the rest; inside the epoch if it is remapped */
	PARKED,    /* the pool is suspended */
	UNKNOWN,   /* in map(): only the mapper can tell */
	NEEDS_ONE, /* a new mapping */
};

/* What to do about a read, write or FLUSH.  m->block is THIN_NO_BLOCK if it is not mapped. */
static enum verdict judge(struct thin *t, struct dm_bio *bio, uint64_t block, uint64_t offset, struct thin_mapping *m,
			  enum dm_mapio *what)
{
	int r;

	*what = DM_MAPIO_KILL;
	if (pool_mode(t->pool) == PM_FAIL)
		return SETTLED;
	if (!enter(t, bio))
		return PARKED;
	if (bio->op == DM_FLUSH) {
		send_to(bio, t->pool->data_dev, 0);
		*what = DM_MAPIO_REMAPPED;
		return SETTLED;
	}
	r = thin_md_find(t->td, block, m);
	if (!r && (bio->op == DM_READ || !m->shared)) {
		send_to(bio, t->pool->data_dev, m->block * t->pool->block_sectors + offset);
		*what = DM_MAPIO_REMAPPED;
		return SETTLED;
	}
	leave(bio);
	if (r == -EINPROGRESS && !dm_may_wait())
		return UNKNOWN;
	if (r && r != -ENODATA) {
		log_lookup(t, r);
		return SETTLED;
	}
	if (r && bio->op == DM_READ) {
		*what = read_unmapped(t, bio);
		return SETTLED;
	}
	if (r)
		m->block = THIN_NO_BLOCK;
	return NEEDS_ONE;
}

static enum dm_mapio map(struct thin *t, struct dm_bio *bio)
{
	uint64_t offset, block = pool_block(t->pool, dm_target_offset(t->ti, bio->sector), &offset);
	struct thin_mapping m;
	enum dm_mapio what;

	if (judge(t, bio, block, offset, &m, &what) == SETTLED)
		return what;
	pool_defer(t->pool, bio);
	return DM_MAPIO_SUBMITTED;
}

/* --- the mapper --- */

static enum dm_mapio dispatch(struct thin *t, struct dm_bio *bio, struct dm_bio_list *out)
{
	uint64_t offset, block = pool_block(t->pool, dm_target_offset(t->ti, bio->sector), &offset);
	struct thin_mapping m;
	enum dm_mapio what;
	enum verdict verdict = judge(t, bio, block, offset, &m, &what);

	if (verdict == SETTLED)
		return what;
	if (verdict == PARKED)
		pool_keep(t->pool, &t->pool->parked, bio);
	else
		thin_provision(t, bio, block, offset, m.block == THIN_NO_BLOCK ? NULL : &m, out);
	return DM_MAPIO_SUBMITTED;
}

static enum dm_mapio dispatch_discard(struct thin_pool *pool, struct dm_bio *bio)
{
	pool_keep(pool, &pool->discards, bio);
	dm_wq_queue(pool->discard_wq, &pool->discard_work);
	pool_fail_parked(pool);
	return DM_MAPIO_SUBMITTED;
}

void thin_dispatch(struct dm_bio *bio, struct dm_bio_list *out)
{
	struct thin *t = thin_io(bio)->thin;
	enum dm_mapio what;

	if (atomic_load(&t->requeue))
		what = DM_MAPIO_REQUEUE;
	else if (bio->op == DM_DISCARD)
		what = dispatch_discard(t->pool, bio);
	else
		what = dispatch(t, bio, out);
	if (what == DM_MAPIO_REMAPPED)
		dm_bio_list_add(out, bio);
	else if (what == DM_MAPIO_KILL)
		dm_bio_end(bio, -EIO);
	else if (what == DM_MAPIO_REQUEUE)
		dm_bio_requeue(bio);
}

/* --- map and end_io --- */

/* Whether what a bio of this thread has seen of the mappings may not be durable yet, or never will be. */
static bool needs_commit(struct thin *t)
{
	return atomic_load(&t->td->changed) || atomic_load(&t->td->aborted);
}

static enum dm_mapio thin_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct thin *t = ti->private;

	*thin_io(bio) = (struct thin_io){.thin = t, .bio = bio};
	if (atomic_load_explicit(&t->requeue, memory_order_relaxed))
		return DM_MAPIO_REQUEUE;
	if (pool_mode(t->pool) == PM_FAIL)
		return DM_MAPIO_KILL;
	if (bio->op == DM_DISCARD) {
		pool_defer(t->pool, bio);
		return DM_MAPIO_SUBMITTED;
	}
	if (bio->op == DM_FLUSH && needs_commit(t)) {
		pool_wait_for_commit(t->pool, bio);
		return DM_MAPIO_SUBMITTED;
	}
	return map(t, bio);
}

static enum dm_endio thin_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct thin *t = ti->private;

	leave(bio);
	/* Only now: the mapping it went by may have been made when it was on its way here already. */
	if (bio->flags & DM_FUA && dm_op_is_write(bio->op) && !bio->error && !thin_io(bio)->written &&
	    needs_commit(t)) {
		thin_io(bio)->written = true;
		pool_wait_for_commit(t->pool, bio);
		return DM_ENDIO_INCOMPLETE;
	}
	return DM_ENDIO_DONE;
}

/* Provisioned or not; counts from the target's begin. */
static int thin_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct thin *t = ti->private;
	uint64_t size = t->pool->block_sectors, offset, block = pool_block(t->pool, sector, &offset), first, run, end;
	int r = thin_md_find_run(t->td, block, &first, &run);

	if (r && r != -ENODATA)
		return r;
	out->data = !r && first == block;
	end = r ? UINT64_MAX : out->data ? block + run : first;
	out->sectors = end > (sector + sectors) / size ? sectors : MIN(sectors, end * size - sector);
	if (out->data || !t->origin || sector >= t->origin_sectors)
		return 0;
	return dm_dev_extent(t->origin, sector, MIN(out->sectors, t->origin_sectors - sector), out);
}

static uint64_t thin_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct thin *t = ti->private;
	uint64_t sum = MIN(atomic_load(&t->td->mapped) * t->pool->block_sectors, sectors);

	if (t->origin && sector < t->origin_sectors)
		sum += dm_dev_provisioned(t->origin, sector, MIN(sectors, t->origin_sectors - sector));
	return sum;
}

/* --- construction --- */

static void thin_dtr(struct dm_target *ti)
{
	struct thin *t = ti->private;

	if (t->listed)
		pool_remove_thin(t->pool, t);
	if (t->td)
		thin_md_close_device(t->td);
	if (t->pool)
		pool_put(t->pool);
	dm_put_device(ti, t->origin);
	dm_put_device(ti, t->pool_dev);
	g_free(t);
}

static int open_thin(struct thin *t, const char *id_text, GError **err)
{
	struct dm_mapped *mapped = dm_dev_mapped(t->pool_dev);
	uint64_t id;
	int r;

	if (!dm_parse_u64(id_text, &id) || id > THIN_MAX_ID)
		return dm_fail(err, EINVAL, "thin: device id '%s' is not a number up to %u", id_text, THIN_MAX_ID);
	t->pool = mapped ? pool_find(mapped) : NULL;
	if (!t->pool)
		return dm_fail(err, EINVAL, "thin: the pool device is not a thin-pool");
	if (pool_mode(t->pool) == PM_FAIL)
		return dm_fail(err, EINVAL, "thin: couldn't open device %" PRIu64 ", the pool is in fail mode", id);
	t->listed = !pool_add_thin(t->pool, t);
	if (!t->listed)
		return dm_fail(err, EINVAL, "thin: unable to activate device %" PRIu64 " while the pool is suspended", id);
	r = thin_md_open_device(t->pool->meta, id, &t->td);
	if (r)
		return dm_fail(err, -r, "thin: couldn't open device %" PRIu64 " of the pool: %s", id,
			       r == -ENODATA ? "there is none" : g_strerror(-r));
	return 0;
}

static int construct(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct thin *t = ti->private;
	int r;

	if (argc != 2 && argc != 3)
		return dm_fail(err, EINVAL, "thin: %d arguments, wanted <pool dev> <dev id> [<external origin dev>]", argc);
	if (argc == 3) {
		if (!strcmp(argv[0], argv[2]))
			return dm_fail(err, EINVAL, "thin: the external origin '%s' is the pool itself", argv[2]);
		r = dm_get_device(ti, argv[2], DM_MODE_READ, &t->origin, err);
		if (r)
			return r;
	}
	r = dm_get_device(ti, argv[0], dm_target_mode(ti), &t->pool_dev, err);
	return r ? r : open_thin(t, argv[1], err);
}

static int thin_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct thin *t = g_new0(struct thin, 1);
	int r;

	t->ti = ti;
	ti->private = t;
	r = construct(ti, argc, argv, err);
	if (r) {
		thin_dtr(ti);
		return r;
	}
	if (t->origin)
		t->origin_sectors = dm_dev_sectors(t->origin);
	ti->max_io_sectors = t->pool->block_sectors;
	ti->provisions = true;
	if (atomic_load(&t->pool->discard)) {
		ti->num_discard_bios = 1;
		ti->discards_supported = true;
	}
	return 0;
}

/* --- suspend and resume --- */

static void thin_presuspend(struct dm_target *ti)
{
	struct thin *t = ti->private;

	if (!dm_target_noflush(ti))
		return;
	atomic_store(&t->requeue, true);
	pool_requeue_thin(t);
}

static void thin_suspend_over(struct dm_target *ti)
{
	struct thin *t = ti->private;

	atomic_store(&t->requeue, false);
}

static int thin_preresume(struct dm_target *ti, GError **err)
{
	struct thin *t = ti->private;

	if (t->origin)
		t->origin_sectors = dm_dev_sectors(t->origin);
	return 0;
}

/* --- what it says --- */

static void thin_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct thin *t = ti->private;
	uint64_t highest;
	int r;

	if (type == DM_STATUS_TABLE) {
		dm_dev_print(t->pool_dev, out);
		g_string_append_printf(out, " %" PRIu64, t->td->id);
		if (t->origin) {
			g_string_append_c(out, ' ');
			dm_dev_print(t->origin, out);
		}
		return;
	}
	if (pool_mode(t->pool) == PM_FAIL) {
		g_string_append(out, "Fail");
		return;
	}
	r = thin_md_highest(t->td, &highest);
	if (r && r != -ENODATA) {
		g_string_append(out, "Error");
		return;
	}
	g_string_append_printf(out, "%" PRIu64 " ", atomic_load(&t->td->mapped) * t->pool->block_sectors);
	if (r)
		g_string_append_c(out, '-');
	else
		g_string_append_printf(out, "%" PRIu64, (highest + 1) * t->pool->block_sectors - 1);
}

static int thin_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct thin *t = ti->private;
	uint64_t sectors = dm_dev_sectors(t->pool_dev);

	sectors -= sectors % t->pool->block_sectors;
	return sectors ? fn(ti, t->pool_dev, 0, sectors, data) : 0;
}

static void thin_io_hints(struct dm_target *ti, struct dm_limits *limits)
{
	struct thin *t = ti->private;

	if (!atomic_load(&t->pool->discard))
		return;
	limits->discard_granularity = t->pool->block_sectors * DM_SECTOR_SIZE;
	limits->max_discard_sectors = UINT64_C(1) << 25; /* 16 GiB */
	limits->discard_zeroes = false; /* parts of blocks stay as they are */
}

const struct dm_target_type thin_target = {
	.name = "thin",
	.version = {1, 22, 0},
	.per_bio_size = sizeof(struct thin_io),
	.ctr = thin_ctr,
	.dtr = thin_dtr,
	.map = thin_map,
	.end_io = thin_end_io,
	.presuspend = thin_presuspend,
	.presuspend_undo = thin_suspend_over,
	.postsuspend = thin_suspend_over,
	.preresume = thin_preresume,
	.status = thin_status,
	.iterate_devices = thin_iterate_devices,
	.io_hints = thin_io_hints,
	.extent = thin_extent,
	.provisioned = thin_provisioned,
};
