/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * era: linear, and a record of which blocks were written in which era (era.rst).
 *
 *   <metadata dev> <origin dev> <block size>
 *
 * A write to blocks that were not written in this era is handed to the worker, which records them, commits the metadata
 * once for all who wait, and sends the writes on.  All others pass at once.  A discard counts as a write, so do zeroes.
 *
 * Each resume begins an era, each suspension ends one.  Between them no bio is here.
 *
 * Locks: md_lock, for all that changes the metadata, held across its I/O; then wait_lock, for the list of waiting bios.
 */
#include <inttypes.h>
#include <pthread.h>
#include <strings.h>

#include <dmfs/claim.h>
#include <dmfs/container_of.h>
#include <dmfs/hold.h>
#include <dmfs/rounding.h>
#include <dmfs/target.h>
#include <dmfs/work.h>

#include "metadata.h"

#define MIN_BLOCK 8u /* sectors */

struct era {
	struct dm_target *ti;
	struct dm_dev *meta_dev, *origin;
	uint32_t block_sectors, blocks;
	struct dm_wq *wq; /* one at a time */
	struct dm_work writes, digestion;
	pthread_mutex_t md_lock;
	struct era_meta *meta; /* opened anew at each resume */
	bool stopped;      /* md_lock: no digestion */
	pthread_mutex_t wait_lock;
	struct dm_bio_list waiting;
};

struct era_bio {
	uint32_t first, last; /* blocks */
};

/* --- writes ----------------------------------------------------------------------------- */

/* Records what the bios write; 0 or a negative errno for all of them.  md_lock held. */
static int record(struct era *era, struct dm_bio_list *bios)
{
	bool any = false;
	int r = 0;

	for (struct dm_bio *bio = bios->head; bio && !r; bio = bio->next) {
		struct era_bio *eb = bio->private;

		if (era_meta_marked(era->meta, eb->first, eb->last))
			continue;
		r = era_meta_mark(era->meta, eb->first, eb->last);
		any = true;
	}
	return r || !any ? r : era_meta_commit(era->meta);
}

static void process_writes(struct dm_work *work)
{
	struct era *era = container_of(work, struct era, writes);
	struct dm_bio_list bios;
	struct dm_bio *bio;
	int r;

	dm_bio_list_init(&bios);
	pthread_mutex_lock(&era->wait_lock);
	dm_bio_list_take(&era->waiting, &bios);
	pthread_mutex_unlock(&era->wait_lock);
	if (dm_bio_list_empty(&bios))
		return;
	pthread_mutex_lock(&era->md_lock);
	r = record(era, &bios);
	pthread_mutex_unlock(&era->md_lock);
	while ((bio = dm_bio_list_pop(&bios))) {
		int stop = r ? r : dm_bio_stop(bio);

		if (stop)
			dm_bio_end(bio, stop);
		else
			dm_submit(bio);
	}
}

static enum dm_mapio era_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct era *era = ti->private;
	struct era_bio *eb = bio->private;
	uint64_t offset = dm_target_offset(ti, bio->sector);

	bio->dev = era->origin;
	bio->sector = offset;
	if (!dm_op_is_write(bio->op) || bio->op == DM_PROVISION)
		return DM_MAPIO_REMAPPED;
	eb->first = (uint32_t)(offset / era->block_sectors);
	eb->last = (uint32_t)((offset + bio->sectors - 1) / era->block_sectors);
	if (era_meta_marked(era->meta, eb->first, eb->last))
		return DM_MAPIO_REMAPPED;
	pthread_mutex_lock(&era->wait_lock);
	dm_bio_list_add(&era->waiting, bio);
	pthread_mutex_unlock(&era->wait_lock);
	dm_wq_queue(era->wq, &era->writes);
	return DM_MAPIO_SUBMITTED;
}

/* --- the digestion of old eras ------------------------------------------------------------- */

/* A step, then whoever waits for the metadata. */
static void digest(struct dm_work *work)
{
	struct era *era = container_of(work, struct era, digestion);
	bool more = false;

	pthread_mutex_lock(&era->md_lock);
	if (!era->stopped && era_meta_digest(era->meta, &more))
		more = false;
	pthread_mutex_unlock(&era->md_lock);
	if (more)
		dm_wq_queue(era->wq, &era->digestion);
}

/* --- suspend and resume ------------------------------------------------------------------------ */

/*
 * The table before this one may have changed the metadata since ctr has looked, and so has the suspension before a
 * resume of the same table; nobody uses it now.
 */
static int era_preresume(struct dm_target *ti, GError **err)
{
	struct era *era = ti->private;
	struct era_meta *fresh, *old;
	int error = era_meta_open(era->meta_dev, era->block_sectors, &fresh, err);

	if (error)
		return error;
	error = era_meta_archive(fresh); /* of an era that nobody has ended */
	if (!error && era_meta_blocks(fresh) != era->blocks)
		error = era_meta_resize(fresh, era->blocks, err);
	if (!error)
		error = era_meta_new_era(fresh);
	if (error) {
		era_meta_close(fresh);
		return err && *err ? error : dm_fail(err, -error, "era: no new era: %s", g_strerror(-error));
	}
	dm_status_pause(ti, NULL);
	pthread_mutex_lock(&era->md_lock);
	old = era->meta;
	era->meta = fresh;
	era->stopped = false;
	pthread_mutex_unlock(&era->md_lock);
	dm_status_go_on(ti, NULL);
	era_meta_close(old);
	return 0;
}

static void era_resume(struct dm_target *ti)
{
	struct era *era = ti->private;

	dm_wq_queue(era->wq, &era->digestion);
}

static void era_postsuspend(struct dm_target *ti)
{
	struct era *era = ti->private;
	int r;

	pthread_mutex_lock(&era->md_lock);
	era->stopped = true;
	r = era_meta_archive(era->meta);
	if (!r)
		r = era_meta_commit(era->meta);
	pthread_mutex_unlock(&era->md_lock);
	if (r)
		dm_log_err("era: the era could not be archived: %s; it will be at the next resume", g_strerror(-r));
	dm_wq_flush(era->wq);
}

/* --- messages and status -------------------------------------------------------------------------- */

static int checkpoint(struct era_meta *meta, GError **err)
{
	int r = era_meta_new_era(meta);

	return r ? dm_fail(err, -r, "era: no new era: %s", g_strerror(-r)) : 0;
}

static int era_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	static const struct {
		const char *name;
		int (*fn)(struct era_meta *, GError **);
	} messages[] = {
	    {"checkpoint", checkpoint},
	    {"take_metadata_snap", era_meta_take_snap},
	    {"drop_metadata_snap", era_meta_drop_snap},
	};
	struct era *era = ti->private;
	int r;

	if (argc != 1)
		return dm_fail(err, EINVAL, "era: incorrect number of message arguments: %d, one word is expected", argc);
	for (unsigned i = 0; i < G_N_ELEMENTS(messages); i++) {
		if (strcasecmp(argv[0], messages[i].name))
			continue;
		if (dm_target_suspending(ti))
			return dm_fail(err, EBUSY, "era: the device is suspended: no era is current");
		dm_block_begin();
		pthread_mutex_lock(&era->md_lock);
		r = messages[i].fn(era->meta, err);
		pthread_mutex_unlock(&era->md_lock);
		dm_block_end();
		dm_wq_queue(era->wq, &era->digestion);
		return r;
	}
	return dm_fail(err, EINVAL, "era: unsupported message '%s'; checkpoint, take_metadata_snap and drop_metadata_snap are known",
		       argv[0]);
}

static void era_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct era *era = ti->private;
	struct era_usage u;

	if (type == DM_STATUS_TABLE) {
		dm_dev_print(era->meta_dev, out);
		g_string_append_c(out, ' ');
		dm_dev_print(era->origin, out);
		g_string_append_printf(out, " %u", era->block_sectors);
		return;
	}
	era_meta_usage(era->meta, &u);
	g_string_append_printf(out, "8 %" PRIu64 "/%" PRIu64 " %u ", u.used, u.total, u.era);
	if (u.snap)
		g_string_append_printf(out, "%" PRIu64, u.snap);
	else
		g_string_append_c(out, '-');
}

/* --- the target ------------------------------------------------------------------------------------ */

static void era_dtr(struct dm_target *ti)
{
	struct era *era = ti->private;

	dm_wq_free(era->wq);
	era_meta_close(era->meta);
	if (era->origin)
		dm_put_device(ti, era->origin);
	if (era->meta_dev)
		dm_put_device(ti, era->meta_dev);
	pthread_mutex_destroy(&era->md_lock);
	pthread_mutex_destroy(&era->wait_lock);
	g_free(era);
}

static int open_devices(struct era *era, char **argv, GError **err)
{
	g_autoptr(GError) why = NULL;

	if (dm_get_device(era->ti, argv[0], DM_MODE_RW, &era->meta_dev, &why))
		return dm_fail(err, EINVAL, "era: Error opening metadata device '%s': %s", argv[0], why->message);
	if (dm_claim_device(era->ti, era->meta_dev, DM_MODE_RW, "metadata device", err))
		return -EBUSY;
	if (dm_get_device(era->ti, argv[1], dm_target_mode(era->ti), &era->origin, &why))
		return dm_fail(err, EINVAL, "era: Error opening data device '%s': %s", argv[1], why->message);
	return 0;
}

static int parse_block(struct era *era, const char *word, GError **err)
{
	uint64_t blocks;

	if (!dm_parse_uint(word, &era->block_sectors))
		return dm_fail(err, EINVAL, "era: Error parsing block size '%s': a number of sectors", word);
	if (!era->block_sectors)
		return dm_fail(err, EINVAL, "era: could not set max io len: a block size of 0");
	if (era->block_sectors % MIN_BLOCK)
		return dm_fail(err, EINVAL, "era: Invalid block size %u, it must be a multiple of %u sectors",
			       era->block_sectors, MIN_BLOCK);
	blocks = dm_div_up(era->ti->len, era->block_sectors);
	if (blocks > INT32_MAX)
		return dm_fail(err, EINVAL, "era: %" PRIu64 " blocks of %u sectors are more than %d; make them larger", blocks,
			       era->block_sectors, INT32_MAX);
	era->blocks = (uint32_t)blocks;
	return 0;
}

static int era_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct era *era;
	int error;

	if (argc != 3)
		return dm_fail(err, EINVAL, "era: Invalid argument count: %d, <metadata dev> <origin dev> <block size> are 3", argc);
	era = g_new0(struct era, 1);
	era->ti = ti;
	era->writes.fn = process_writes;
	era->digestion.fn = digest;
	era->stopped = true;
	pthread_mutex_init(&era->md_lock, NULL);
	pthread_mutex_init(&era->wait_lock, NULL);
	dm_bio_list_init(&era->waiting);
	era->wq = dm_wq_new("era", 1);
	ti->private = era;
	error = open_devices(era, argv, err);
	if (!error)
		error = parse_block(era, argv[2], err);
	if (!error)
		error = era_meta_open(era->meta_dev, era->block_sectors, &era->meta, err);
	if (error) {
		era_dtr(ti);
		return error;
	}
	ti->max_io_sectors = era->block_sectors;
	ti->num_discard_bios = 1;
	ti->provisions = true;
	ti->num_write_zeroes_bios = 1;
	return 0;
}

static int era_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct era *era = ti->private;

	return fn(ti, era->origin, 0, ti->len, data);
}

static void era_io_hints(struct dm_target *ti, struct dm_limits *limits)
{
	struct era *era = ti->private;
	uint64_t block = (uint64_t)era->block_sectors << DM_SECTOR_SHIFT;

	/* Unless what the devices wish for fits it already. */
	if (block <= UINT32_MAX && (limits->io_opt < block || limits->io_opt % block)) {
		limits->io_min = 0;
		limits->io_opt = (unsigned)block;
	}
}

static int era_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct era *era = ti->private;

	return dm_dev_extent(era->origin, sector, sectors, out);
}

static uint64_t era_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct era *era = ti->private;

	return dm_dev_provisioned(era->origin, sector, sectors);
}

const struct dm_target_type era_target = {
	.name = "era",
	.version = {1, 0, 0},
	.features = DM_TARGET_FLUSH_DEVICES,
	.per_bio_size = sizeof(struct era_bio),
	.ctr = era_ctr,
	.dtr = era_dtr,
	.map = era_map,
	.preresume = era_preresume,
	.resume = era_resume,
	.postsuspend = era_postsuspend,
	.status = era_status,
	.message = era_message,
	.iterate_devices = era_iterate_devices,
	.io_hints = era_io_hints,
	.extent = era_extent,
	.provisioned = era_provisioned,
};
