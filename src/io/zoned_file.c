/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A file made a zoned disk by a zones file beside it (zones_text.h).
 *
 * All stores of one file share one disk: its zones are the same by whatever table or name they are reached.
 *
 * Conventional zones are the file itself.  A write to a sequential zone moves its write pointer when it is sent; how
 * far a zone is written for good is where the first write begins that has not ended.  A FLUSH notes that of all zones
 * that have changed, makes the file durable, and then has what it noted kept.  So the zones that are kept never promise
 * data that are not there, and never less than a FLUSH did.  A reset is kept before the zone may be written again; else
 * a crash could leave old zones with new data in them.
 *
 * What has to wait for the keeper (FLUSH, FUA, reset, finish) is handed to a queue, one work at a time.
 *
 * Locks: the disk's, for its zones and lists; never held during I/O.  What is kept changes in the queue alone.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include <dmfs/container_of.h>
#include <dmfs/error.h>
#include <dmfs/hold.h>
#include <dmfs/log.h>
#include <dmfs/work.h>

#include "zoned_disk.h"

#define WHOLE_AFTER ((size_t)64 << 10) /* bytes of batches; or as many as the zones themselves, if they are more */

pthread_mutex_t zoned_disks_lock = PTHREAD_MUTEX_INITIALIZER;

static struct zoned_dev *to_zoned(struct dm_dev *dev)
{
	return (struct zoned_dev *)dev;
}

static unsigned zone_of(const struct zoned_disk *d, uint64_t sector)
{
	return (unsigned)(sector / d->r.z.zone_sectors);
}

/* --- keeping; in the queue ------------------------------------------------------------------- */

static void mark_changed(struct zoned_disk *d, unsigned i)
{
	if (d->is_changed[i / 8] & 1u << i % 8)
		return;
	d->is_changed[i / 8] |= (uint8_t)(1u << i % 8);
	g_array_append_val(d->changed, i);
}

/* A zone as it may be kept: what is under way has not been written. */
static struct zones_zone as_written(const struct zoned_disk *d, unsigned i)
{
	struct zones_zone zone = d->r.z.zone[i];
	uint32_t wp = zone.wp;

	for (const struct zone_write *w = d->writes[i]; w; w = w->next)
		wp = MIN(wp, w->offset);
	if (wp == zone.wp)
		return zone;
	zone.wp = wp;
	zone.condition = wp ? DM_ZONE_CLOSED : DM_ZONE_EMPTY;
	return zone;
}

static void print_all(const struct zoned_disk *d, GString *out)
{
	for (unsigned i = 0; i < d->r.z.n; i++)
		zones_print_zone(&d->r.z, i, as_written(d, i), out);
}

/* Lines of what is to be kept now: of the zones that have changed, or of all.  The lock is held. */
static void note_zones(struct zoned_disk *d, bool all, GString *out)
{
	if (all)
		print_all(d, out);
	for (guint k = 0; k < d->changed->len; k++) {
		unsigned i = g_array_index(d->changed, unsigned, k);

		if (!all)
			zones_print_zone(&d->r.z, i, as_written(d, i), out);
		d->is_changed[i / 8] &= (uint8_t) ~(1u << i % 8);
	}
	g_array_set_size(d->changed, 0);
}

static int keep_whole(struct zoned_disk *d, const GString *lines)
{
	g_autoptr(GString) text = g_string_new(NULL);
	int error;

	zones_print_head(&d->r.z, text);
	g_string_append_len(text, lines->str, (gssize)lines->len);
	error = d->keeper->rewrite(d->keeper, text);
	if (error)
		return error;
	d->base = text->len;
	d->batches = 0;
	d->commits = 0;
	d->broken = false;
	return 0;
}

static int keep_batch(struct zoned_disk *d, const GString *lines)
{
	g_autoptr(GString) batch = NULL;
	int error;

	if (!lines->len)
		return 0;
	batch = g_string_new_len(lines->str, (gssize)lines->len);
	zones_print_commit(d->commits + 1, 0, batch);
	error = d->keeper->append(d->keeper, batch);
	if (error)
		return error;
	d->commits++;
	d->batches += batch->len;
	return 0;
}

/*
 * Lines of all zones: as the whole text, or if that cannot be, as in a directory where nothing may be made, as a batch;
 * then it is tried again when there are twice as many.
 */
static int keep_lines(struct zoned_disk *d, const GString *lines, bool all)
{
	int error = all ? keep_whole(d, lines) : -EAGAIN;

	if (!error)
		return 0;
	if (all)
		dm_log_err_limit("zoned: the zones file cannot be written anew: %s; it is added to",
				 g_strerror(-error));
	error = keep_batch(d, lines);
	if (all && !error)
		d->base = d->batches * 2;
	d->broken = error ? true : all ? false : d->broken;
	return error;
}

/* All that was written becomes durable, the data first.  anew: the zones file is to be a plain report. */
static int keep_all(struct zoned_disk *d, struct dm_dev *inner, bool anew)
{
	g_autoptr(GString) lines = g_string_new(NULL);
	bool all = anew || d->broken || d->batches > MAX(WHOLE_AFTER, d->base);
	int error;

	pthread_mutex_lock(&d->lock);
	note_zones(d, all, lines);
	pthread_mutex_unlock(&d->lock);
	error = dm_flush_sync(inner);
	if (!d->keeper)
		return error;
	if (error)
		d->broken = true; /* what was noted is forgotten, but not kept */
	else
		error = keep_lines(d, lines, all);
	return error;
}

/* Zones first to last as they are to be after a reset. */
static int keep_reset(struct zoned_disk *d, unsigned first, unsigned last)
{
	g_autoptr(GString) text = g_string_new(NULL);

	pthread_mutex_lock(&d->lock);
	for (unsigned i = first; i <= last; i++) {
		struct zones_zone zone = d->r.z.zone[i];

		if (zone_rules_may_reset(&d->r, i))
			continue;
		zone.wp = 0;
		zone.condition = DM_ZONE_EMPTY;
		zones_print_zone(&d->r.z, i, zone, text);
	}
	pthread_mutex_unlock(&d->lock);
	return keep_lines(d, text, false);
}

/* --- what waits for it ------------------------------------------------------------------------ */

/* Gives the space of sectors back, so that they read as zeroes too; where a file cannot, they stay. */
static void punch(struct zoned_dev *zd, uint64_t sector, uint64_t sectors)
{
	struct dm_region where = {zd->inner, sector, sectors};

	if (sectors)
		dm_io_sync(DM_DISCARD, 0, 1, &where, NULL, 0, NULL);
}

/* The lock is held. */
static void forget_writes(struct zoned_disk *d, unsigned i)
{
	for (struct zone_write *w = d->writes[i]; w; w = w->next)
		w->forgotten = true;
	d->writes[i] = NULL;
}

/* All may be reset that the range holds; of a single one it is said why not. */
static int reset(struct zoned_dev *zd, const struct dm_bio *bio)
{
	struct zoned_disk *d = zd->disk;
	unsigned first = zone_of(d, bio->sector), last = zone_of(d, bio->sector + bio->sectors - 1);
	int error;

	if (bio->op == DM_ZONE_RESET && zone_rules_may_reset(&d->r, first))
		return -EIO;
	error = d->broken ? keep_all(d, zd->inner, false) : 0;
	if (!error)
		error = keep_reset(d, first, last);
	for (unsigned i = first; i <= last && !error; i++) {
		uint64_t start = zones_start(&d->r.z, i);
		bool used = false;

		pthread_mutex_lock(&d->lock);
		if (!zone_rules_may_reset(&d->r, i)) {
			used = d->r.z.zone[i].wp > 0;
			forget_writes(d, i);
			zone_rules_reset(&d->r, i);
		}
		pthread_mutex_unlock(&d->lock);
		if (used)
			punch(zd, start, zones_length(&d->r.z, i));
	}
	return error;
}

/* What a finished zone has not been given reads as zeroes. */
static int finish(struct zoned_dev *zd, const struct dm_bio *bio)
{
	struct zoned_disk *d = zd->disk;
	unsigned i = zone_of(d, bio->sector);
	uint32_t wp;
	int error;

	pthread_mutex_lock(&d->lock);
	wp = d->r.z.zone[i].wp;
	error = zone_rules_finish(&d->r, i);
	if (!error)
		mark_changed(d, i);
	pthread_mutex_unlock(&d->lock);
	if (!error)
		punch(zd, bio->sector + wp, zones_length(&d->r.z, i) - wp);
	return error;
}

static void submit_write(struct zoned_dev *zd, struct dm_bio *bio);

/* One after the other; those in a row that only want all to be durable share it. */
static void do_waiting(struct dm_work *work)
{
	struct zoned_disk *d = container_of(work, struct zoned_disk, work);
	struct dm_dev *kept = NULL;
	struct dm_bio_list bios;
	struct dm_bio *bio;
	int error = 0;

	dm_bio_list_init(&bios);
	pthread_mutex_lock(&d->lock);
	dm_bio_list_take(&d->waiting, &bios);
	pthread_mutex_unlock(&d->lock);
	while ((bio = dm_bio_list_pop(&bios))) {
		struct zoned_dev *zd = to_zoned(bio->dev);

		if (bio->op == DM_ZONE_RESET || bio->op == DM_ZONE_RESET_ALL) {
			dm_bio_end(bio, reset(zd, bio));
			continue;
		}
		if (bio->op == DM_ZONE_FINISH) {
			dm_bio_end(bio, finish(zd, bio));
			continue;
		}
		if (kept != zd->inner) {
			error = keep_all(d, zd->inner, false);
			kept = zd->inner;
		}
		if (!error && (bio->flags & DM_PREFLUSH)) {
			bio->flags &= ~(unsigned)DM_PREFLUSH;
			submit_write(zd, bio);
		} else {
			dm_bio_end(bio, error);
		}
	}
}

static void wait_for_keeper(struct zoned_disk *d, struct dm_bio *bio)
{
	pthread_mutex_lock(&d->lock);
	dm_bio_list_add(&d->waiting, bio);
	pthread_mutex_unlock(&d->lock);
	dm_wq_queue(d->wq, &d->work);
}

/* --- writes -------------------------------------------------------------------------------------- */

static void write_done(struct dm_bio *clone)
{
	struct zone_write *w = container_of(clone, struct zone_write, bio), **at;
	struct zoned_disk *d = w->disk;
	struct dm_bio *whole = w->whole;
	int error = clone->error;

	pthread_mutex_lock(&d->lock);
	if (!w->forgotten) {
		for (at = &d->writes[w->zone]; *at != w;)
			at = &(*at)->next;
		*at = w->next;
		if (error && d->r.z.zone[w->zone].type == DM_ZONE_SEQUENTIAL &&
		    (d->r.z.zone[w->zone].wp == w->offset + whole->sectors ||
		     w->offset + whole->sectors == d->r.z.zone[w->zone].capacity))
			zone_rules_take_back(&d->r, w->zone, w->offset);
		mark_changed(d, w->zone);
	}
	pthread_mutex_unlock(&d->lock);
	if (whole->op == DM_ZONE_APPEND && !error)
		whole->sector += w->offset;
	g_free(w);
	if (!error && (whole->flags & DM_FUA))
		wait_for_keeper(d, whole); /* where the zone is written to is to be durable too */
	else
		dm_bio_end(whole, error);
}

/* A write within a sequential zone. */
static void write_zone(struct zoned_dev *zd, struct dm_bio *bio, unsigned i)
{
	struct zoned_disk *d = zd->disk;
	struct zone_write *w = g_new(struct zone_write, 1);
	uint64_t start = zones_start(&d->r.z, i);
	int error = 0;

	pthread_mutex_lock(&d->lock);
	if (bio->op == DM_ZONE_APPEND && bio->sector != start)
		error = -EINVAL;
	w->offset = bio->op == DM_ZONE_APPEND ? d->r.z.zone[i].wp : (uint32_t)(bio->sector - start);
	if (!error)
		error = zone_rules_write(&d->r, i, w->offset, (uint32_t)bio->sectors);
	if (!error) {
		w->zone = i;
		w->disk = d;
		w->whole = bio;
		w->forgotten = false;
		w->next = d->writes[i];
		d->writes[i] = w;
	}
	pthread_mutex_unlock(&d->lock);
	if (error) {
		g_free(w);
		dm_bio_end(bio, error);
		return;
	}
	w->bio = *bio;
	w->bio.dev = zd->inner;
	w->bio.sector = start + w->offset;
	w->bio.op = bio->op == DM_ZONE_APPEND ? DM_WRITE : bio->op;
	w->bio.flags &= ~(unsigned)(DM_FUA | DM_PREFLUSH);
	w->bio.end = write_done;
	zd->inner->ops->submit(zd->inner, &w->bio);
}

/* Whether all zones of a range are conventional. */
static bool conventional(const struct zoned_disk *d, uint64_t sector, uint64_t sectors)
{
	for (unsigned i = zone_of(d, sector); i <= zone_of(d, sector + sectors - 1); i++)
		if (d->r.z.zone[i].type != DM_ZONE_CONVENTIONAL)
			return false;
	return true;
}

static void submit_write(struct zoned_dev *zd, struct dm_bio *bio)
{
	struct zoned_disk *d = zd->disk;
	unsigned i = zone_of(d, bio->sector);

	if (!d->keeper) {
		dm_bio_end(bio, -EROFS);
	} else if (bio->flags & DM_PREFLUSH) {
		wait_for_keeper(d, bio);
	} else if (conventional(d, bio->sector, bio->sectors)) {
		if (bio->op == DM_ZONE_APPEND) {
			dm_bio_end(bio, -EIO);
			return;
		}
		bio->dev = zd->inner;
		zd->inner->ops->submit(zd->inner, bio);
	} else if (i != zone_of(d, bio->sector + bio->sectors - 1)) {
		dm_bio_end(bio, -EIO);
	} else {
		write_zone(zd, bio, i);
	}
}

/* --- reads ---------------------------------------------------------------------------------------- */

/* A part of a read, within one zone. */
struct zone_read {
	struct dm_parts *parts;
	struct dm_bio bio;
	uint64_t good; /* sectors of it that were written */
	struct iovec iov[];
};

static void read_part_done(struct dm_bio *clone)
{
	struct zone_read *part = container_of(clone, struct zone_read, bio);
	struct dm_parts *parts = part->parts;
	int error = clone->error;

	if (!error)
		dm_iov_zero(clone->iov, clone->iovcnt, part->good << DM_SECTOR_SHIFT,
			    (clone->sectors - part->good) << DM_SECTOR_SHIFT);
	g_free(part);
	dm_parts_end(parts, error);
}

/* How many sectors of a zone can be read; all of a conventional one. */
static uint32_t readable(struct zoned_disk *d, unsigned i)
{
	struct zones_zone *zone = &d->r.z.zone[i];

	if (__atomic_load_n(&zone->condition, __ATOMIC_RELAXED) == DM_ZONE_OFFLINE)
		return 0;
	return zone->type == DM_ZONE_CONVENTIONAL ? zones_length(&d->r.z, i)
						  : __atomic_load_n(&zone->wp, __ATOMIC_ACQUIRE);
}

static void read_part(struct zoned_dev *zd, struct dm_parts *parts, uint64_t sector, uint64_t sectors)
{
	struct dm_bio *whole = parts->whole;
	struct zoned_disk *d = zd->disk;
	unsigned i = zone_of(d, sector);
	uint64_t offset = sector - zones_start(&d->r.z, i), good = readable(d, i);
	struct zone_read *part;

	good = good > offset ? MIN(good - offset, sectors) : 0;
	if (d->r.z.zone[i].condition == DM_ZONE_OFFLINE || (good < sectors && d->r.z.reads_fail)) {
		dm_parts_end(parts, -EIO);
		return;
	}
	part = g_malloc(sizeof *part + (size_t)whole->iovcnt * sizeof(struct iovec));
	part->parts = parts;
	part->good = good;
	part->bio = *whole;
	part->bio.dev = zd->inner;
	part->bio.sector = sector;
	part->bio.sectors = sectors;
	part->bio.iov = part->iov;
	part->bio.iovcnt = dm_iov_slice(whole->iov, whole->iovcnt, (sector - whole->sector) << DM_SECTOR_SHIFT,
					sectors << DM_SECTOR_SHIFT, part->iov);
	part->bio.end = read_part_done;
	if (good) {
		zd->inner->ops->submit(zd->inner, &part->bio);
	} else {
		part->bio.error = 0;
		read_part_done(&part->bio);
	}
}

static void submit_read(struct zoned_dev *zd, struct dm_bio *bio)
{
	struct zoned_disk *d = zd->disk;
	unsigned i = zone_of(d, bio->sector), last = zone_of(d, bio->sector + bio->sectors - 1);
	uint64_t at = bio->sector, end = at + bio->sectors;
	struct dm_parts *parts;

	if (i == last && end - zones_start(&d->r.z, i) <= readable(d, i)) {
		bio->dev = zd->inner;
		zd->inner->ops->submit(zd->inner, bio);
		return;
	}
	parts = g_new(struct dm_parts, 1);
	dm_parts_init(parts, bio, last - i + 1);
	for (; at < end; i++) {
		uint64_t len = MIN(end, zones_start(&d->r.z, i) + zones_length(&d->r.z, i)) - at;

		read_part(zd, parts, at, len);
		at += len;
	}
}

/* --- all bios ---------------------------------------------------------------------------------------- */

/* What is done with zones needs no I/O, or waits for it. */
static void manage(struct zoned_dev *zd, struct dm_bio *bio)
{
	struct zoned_disk *d = zd->disk;
	unsigned i = zone_of(d, bio->sector);
	int error = 0;

	if (bio->sector != zones_start(&d->r.z, i) || !bio->sectors ||
	    (bio->op != DM_ZONE_RESET_ALL && bio->sectors != zones_length(&d->r.z, i)))
		error = -EINVAL;
	else if (!d->keeper)
		error = -EROFS;
	if (!error && bio->op != DM_ZONE_OPEN && bio->op != DM_ZONE_CLOSE) {
		wait_for_keeper(d, bio);
		return;
	}
	if (!error) {
		pthread_mutex_lock(&d->lock);
		error = bio->op == DM_ZONE_OPEN ? zone_rules_open(&d->r, i) : zone_rules_close(&d->r, i);
		pthread_mutex_unlock(&d->lock);
	}
	dm_bio_end(bio, error);
}

static void zoned_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	struct zoned_dev *zd = to_zoned(dev);
	uint64_t end;

	if (bio->op == DM_FLUSH) {
		wait_for_keeper(zd->disk, bio);
		return;
	}
	if (__builtin_add_overflow(bio->sector, bio->sectors, &end) || end > zd->disk->r.z.sectors) {
		dm_bio_end(bio, -EIO);
		return;
	}
	if (dm_op_manages_zones(bio->op))
		manage(zd, bio);
	else if (bio->op == DM_DISCARD)
		dm_bio_end(bio, -EOPNOTSUPP);
	else if (bio->op == DM_PROVISION || !bio->sectors)
		dm_bio_end(bio, 0);
	else if (bio->op == DM_READ)
		submit_read(zd, bio);
	else
		submit_write(zd, bio);
}

/* --- what it is ----------------------------------------------------------------------------------------- */

static uint64_t zoned_sectors(struct dm_dev *dev)
{
	return to_zoned(dev)->disk->r.z.sectors;
}

static void zoned_limits(struct dm_dev *dev, struct dm_limits *out)
{
	struct zoned_dev *zd = to_zoned(dev);
	const struct zones *z = &zd->disk->r.z;

	dm_dev_limits(zd->inner, out);
	out->logical_block_size = MAX(out->logical_block_size, z->logical_block);
	out->physical_block_size = MAX(out->physical_block_size, out->logical_block_size);
	out->max_discard_sectors = 0;
	out->zone_model = z->model;
	out->zone_sectors = z->zone_sectors;
	out->zone_capacity = z->zone_sectors;
	for (unsigned i = 0; i < z->n; i++)
		if (z->zone[i].type != DM_ZONE_CONVENTIONAL)
			out->zone_capacity = MIN(out->zone_capacity, z->zone[i].capacity);
	out->max_open_zones = z->max_open;
	out->max_active_zones = z->max_active;
	out->max_append_sectors = MIN(out->zone_capacity, 1u << 13); /* 4 MiB */
}

static int zoned_report(struct dm_dev *dev, uint64_t sector, uint64_t max, dm_zone_fn fn, void *data)
{
	struct zoned_disk *d = to_zoned(dev)->disk;
	const struct zones *z = &d->r.z;
	int error = 0;

	for (uint64_t i = sector / z->zone_sectors; i < z->n && max && !error; i++, max--) {
		struct zones_zone zone;
		struct dm_zone out;

		pthread_mutex_lock(&d->lock);
		zone = z->zone[i];
		pthread_mutex_unlock(&d->lock);
		out = (struct dm_zone){
		    .type = zone.type,
		    .condition = zone.condition,
		    .start = zones_start(z, (unsigned)i),
		    .sectors = zones_length(z, (unsigned)i),
		    .capacity = zone.capacity,
		    .wp = zones_start(z, (unsigned)i) + zone.wp,
		};
		error = fn(&out, data);
	}
	return error;
}

static int zoned_extent(struct dm_dev *dev, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct zoned_dev *zd = to_zoned(dev);
	struct zoned_disk *d = zd->disk;
	unsigned i;
	uint64_t start, good;

	*out = (struct dm_extent){.data = true, .sectors = sectors};
	if (sector >= d->r.z.sectors)
		return 0;
	i = zone_of(d, sector);
	start = zones_start(&d->r.z, i);
	good = readable(d, i);
	sectors = MIN(sectors, start + zones_length(&d->r.z, i) - sector);
	if (good <= sector - start) {
		*out = (struct dm_extent){.data = false, .sectors = sectors};
		return 0;
	}
	return dm_dev_extent(zd->inner, sector, MIN(sectors, start + good - sector), out);
}

static uint64_t zoned_provisioned(struct dm_dev *dev, uint64_t sector, uint64_t sectors)
{
	return dm_dev_provisioned(to_zoned(dev)->inner, sector, sectors);
}

static void zoned_print(struct dm_dev *dev, GString *out)
{
	dm_dev_print(to_zoned(dev)->inner, out);
}

static void zoned_identity(struct dm_dev *dev, uint64_t id[3])
{
	struct zoned_dev *zd = to_zoned(dev);

	zd->inner->ops->identity(zd->inner, id);
}

static int zoned_file(struct dm_dev *dev)
{
	struct zoned_dev *zd = to_zoned(dev);

	return zd->inner->ops->file ? zd->inner->ops->file(zd->inner) : -1;
}

/* --- disks ------------------------------------------------------------------------------------------------ */

struct zoned_disk *zoned_disk_new(struct zones *z, struct zones_keeper *keeper)
{
	struct zoned_disk *d = g_new0(struct zoned_disk, 1);

	d->refs = 1;
	pthread_mutex_init(&d->lock, NULL);
	d->r.z = *z;
	*z = (struct zones){0};
	zone_rules_init(&d->r);
	d->writes = g_new0(struct zone_write *, d->r.z.n);
	d->changed = g_array_new(FALSE, FALSE, sizeof(unsigned));
	d->is_changed = g_malloc0(d->r.z.n / 8 + 1);
	dm_bio_list_init(&d->waiting);
	d->wq = dm_wq_new("zones", 1);
	d->work.fn = do_waiting;
	d->keeper = keeper;
	d->base = d->r.z.base_bytes;
	d->batches = d->r.z.bytes - d->r.z.base_bytes;
	d->commits = d->r.z.commits;
	return d;
}

static void disk_free(struct zoned_disk *d)
{
	dm_wq_free(d->wq);
	if (d->keeper)
		d->keeper->close(d->keeper);
	zone_rules_clear(&d->r);
	g_array_free(d->changed, TRUE);
	g_free(d->is_changed);
	g_free(d->writes);
	pthread_mutex_destroy(&d->lock);
	g_free(d);
}

/* The last to close it leaves a zones file that is a plain report. */
static void close_disk(struct zoned_disk *d, struct dm_dev *inner)
{
	int error = 0;

	if (!d->keeper)
		return;
	dm_block_begin();
	dm_wq_flush(d->wq);
	if (d->changed->len || d->batches || d->broken)
		error = keep_all(d, inner, true);
	dm_block_end();
	if (error)
		dm_log_err("zoned: the zones file could not be written at the end: %s", g_strerror(-error));
}

static void zoned_free(struct dm_dev *dev)
{
	struct zoned_dev *zd = to_zoned(dev);

	pthread_mutex_lock(&zoned_disks_lock);
	if (!--zd->disk->refs) {
		close_disk(zd->disk, zd->inner);
		if (zd->disk->gone)
			zd->disk->gone(zd->disk);
		disk_free(zd->disk);
	}
	pthread_mutex_unlock(&zoned_disks_lock);
	dm_dev_put(zd->inner);
	g_free(zd);
}

static const struct dm_dev_ops zoned_ops = {
    .submit = zoned_submit,
    .sectors = zoned_sectors,
    .extent = zoned_extent,
    .provisioned = zoned_provisioned,
    .limits = zoned_limits,
    .report_zones = zoned_report,
    .print = zoned_print,
    .identity = zoned_identity,
    .file = zoned_file,
    .free = zoned_free,
};

struct dm_dev *zoned_dev_new(struct dm_dev *inner, struct zoned_disk *d)
{
	struct zoned_dev *zd = g_new0(struct zoned_dev, 1);

	zd->dev.ops = &zoned_ops;
	zd->dev.mode = inner->mode;
	atomic_init(&zd->dev.refs, 1);
	zd->inner = inner;
	zd->disk = d;
	return &zd->dev;
}

struct dm_dev *dm_zoned_new(struct dm_dev *inner, struct zones *z, struct zones_keeper *keeper)
{
	return zoned_dev_new(inner, zoned_disk_new(z, keeper));
}
