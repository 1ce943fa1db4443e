/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The disk log: the clean bits on a device.
 *
 *   disk <#params> <log device> <region size> [sync | nosync]
 *
 * The format is in dirty_log_format.h, rounded up to the device's logical blocks.  Anything that is neither new nor a
 * log of this many regions is refused at load: a stranger's bits would call regions clean that are not.
 *
 * The whole area is kept in memory.  Changes are noted a block at a time, so a flush writes only what has changed.  A
 * mark is on the disk, flushed, before flush returns; a cleared region may reach it any time later.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "dirty_log.h"
#include "dirty_log_format.h"

#include <dmfs/claim.h>

#define BLOCK_BYTES 4096u

struct disk_log {
	struct local_log local; /* first */
	struct dm_dev *dev;
	uint8_t *area, *clean_bits; /* area + DM_LOG_BITMAP_OFFSET */
	size_t area_bytes, block_bytes;
	uint8_t *changed;      /* a bit a block */
	GArray *changed_blocks; /* of size_t, the bits set above */
	bool marked;           /* a mark is among the changes */
	_Atomic bool resumed;  /* once: the log is ours, and knows better than sync or nosync in the table */
	atomic_bool failed, flush_failed;
};

static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static GSList *open_logs; /* those made whole; open_lock */

/* --- the header ---------------------------------------------------------------------- */

/*
 * LVM writes this count into a log that has not been used: its bits are there, for however many regions there will be.
 */
#define ANY_REGIONS UINT64_MAX

/*
 * Whether the log is in use now, by another table of this device (who else could have claimed it), with regions of
 * this size: then it is the device that grows or shrinks.
 */
static bool is_resized(struct dm_dirty_log *log, uint64_t regions)
{
	struct disk_log *d = log->context;
	bool found = false;

	pthread_mutex_lock(&open_lock);
	for (GSList *l = open_logs; l && !found; l = l->next) {
		struct dm_dirty_log *other = l->data;
		struct disk_log *o = other->context;

		found = o->resumed && other->regions == regions && other->region_sectors == log->region_sectors &&
			dm_dev_same(o->dev, d->dev);
	}
	pthread_mutex_unlock(&open_lock);
	return found;
}

static int check_header(struct dm_dirty_log *log, const uint8_t *p, GError **err)
{
	struct disk_log *d = log->context;
	g_autoptr(GString) name = g_string_new(NULL);
	uint64_t regions = get_le64(p + 8);

	if (dm_log_header_is_new(p))
		return 0;
	dm_dev_print(d->dev, name);
	if (get_le32(p) != DM_LOG_MAGIC)
		return dm_fail(err, EINVAL, "%s: log device %s holds no dirty log: magic 0x%08" PRIx32 ", 0x%08x would be "
					    "right, or zeroes, or sync or nosync in the table", log->ti->type->name,
			       name->str, get_le32(p), DM_LOG_MAGIC);
	if (!dm_log_header_is_log(p))
		return dm_fail(err, EINVAL, "%s: incompatible disk log version %" PRIu32 " on %s, %u would be right",
			       log->ti->type->name, get_le32(p + 4), name->str, DM_LOG_VERSION);
	if (regions != log->regions && regions != ANY_REGIONS && !is_resized(log, regions))
		return dm_fail(err, EINVAL, "%s: the log on %s is of %" PRIu64 " regions, here there are %" PRIu64
					    " of %" PRIu32 " sectors: sync or nosync in the table begins it anew",
			       log->ti->type->name, name->str, regions, log->regions, log->region_sectors);
	return 0;
}

/* --- changes ---------------------------------------------------------------------------- */

static void note_change(struct disk_log *d, size_t offset)
{
	size_t block = offset / d->block_bytes;

	if (dm_region_bit_test(d->changed, block))
		return;
	dm_region_bit_set(d->changed, block);
	g_array_append_val(d->changed_blocks, block);
}

static int compare_blocks(gconstpointer a, gconstpointer b)
{
	size_t x = *(const size_t *)a, y = *(const size_t *)b;

	return x < y ? -1 : x > y;
}

static int write_blocks(struct disk_log *d, size_t first, size_t last)
{
	size_t begin = first * d->block_bytes, end = MIN((last + 1) * d->block_bytes, d->area_bytes);

	return dm_write_sync(d->dev, begin >> DM_SECTOR_SHIFT, (end - begin) >> DM_SECTOR_SHIFT, d->area + begin, DM_META);
}

static int write_changes(struct disk_log *d)
{
	GArray *list = d->changed_blocks;
	const size_t *blocks = (const size_t *)list->data;
	int error = 0;

	g_array_sort(list, compare_blocks);
	for (unsigned i = 0, next; i < list->len && !error; i = next) {
		for (next = i + 1; next < list->len && blocks[next] == blocks[next - 1] + 1; next++)
			;
		error = write_blocks(d, blocks[i], blocks[next - 1]);
	}
	if (error) /* what was not written is written again with the next */
		return error;
	for (unsigned i = 0; i < list->len; i++)
		dm_region_bit_clear(d->changed, blocks[i]);
	g_array_set_size(list, 0);
	return 0;
}

static void fail_device(struct dm_dirty_log *log, const char *what, int error)
{
	struct disk_log *d = log->context;
	g_autoptr(GString) name = g_string_new(NULL);

	dm_dev_print(d->dev, name);
	dm_log_err_limit("%s: failed to %s the dirty region log on %s: %s", log->ti->type->name, what, name->str,
			 g_strerror(-error));
	if (!atomic_exchange(&d->failed, true))
		dm_target_event(log->ti, NULL, NULL);
}

static int disk_flush(struct dm_dirty_log *log)
{
	struct disk_log *d = log->context;
	int error;

	if ((!d->changed_blocks->len && !d->marked) || !(dm_target_mode(log->ti) & DM_MODE_WRITE))
		return 0;
	error = write_changes(d);
	if (error) {
		fail_device(log, "write", error);
		return error;
	}
	if (!d->marked)
		return 0;
	error = dm_flush_sync(d->dev);
	if (error) {
		atomic_store(&d->flush_failed, true);
		fail_device(log, "flush", error);
		return error;
	}
	d->marked = false;
	return 0;
}

/* --- life ----------------------------------------------------------------------------------- */

static void disk_dtr(struct dm_dirty_log *log)
{
	struct disk_log *d = log->context;

	pthread_mutex_lock(&open_lock);
	open_logs = g_slist_remove(open_logs, log);
	pthread_mutex_unlock(&open_lock);
	if (d->dev)
		dm_put_device(log->ti, d->dev);
	if (d->changed_blocks)
		g_array_free(d->changed_blocks, TRUE);
	g_free(d->changed);
	free(d->area);
	g_free(d->local.sync_bits);
	g_free(d);
}

static int allocate(struct dm_dirty_log *log, GError **err)
{
	struct disk_log *d = log->context;
	struct dm_limits limits;
	size_t need = DM_LOG_BITMAP_OFFSET + dm_log_bitmap_bytes(log->regions), blocks;
	void *area = NULL;

	dm_dev_limits(d->dev, &limits);
	d->block_bytes = MAX(BLOCK_BYTES, limits.logical_block_size);
	d->area_bytes = (need + limits.logical_block_size - 1) / limits.logical_block_size * limits.logical_block_size;
	if (d->area_bytes >> DM_SECTOR_SHIFT > dm_dev_sectors(d->dev)) {
		g_autoptr(GString) name = g_string_new(NULL);

		dm_dev_print(d->dev, name);
		return dm_fail(err, EINVAL, "%s: log device %s too small: need %zu bytes for %" PRIu64
					    " regions, it has %" PRIu64, log->ti->type->name, name->str, d->area_bytes,
			       log->regions, dm_dev_sectors(d->dev) << DM_SECTOR_SHIFT);
	}
	blocks = d->area_bytes / d->block_bytes + 1;
	d->changed = g_try_malloc0(blocks / 8 + 1);
	if (!d->changed || posix_memalign(&area, BLOCK_BYTES, d->area_bytes))
		return dm_fail(err, ENOMEM, "%s: no memory for a log of %zu bytes", log->ti->type->name, d->area_bytes);
	memset(area, 0, d->area_bytes);
	d->area = area;
	d->clean_bits = d->area + DM_LOG_BITMAP_OFFSET;
	d->changed_blocks = g_array_new(FALSE, FALSE, sizeof(size_t));
	return 0;
}

/* A device that cannot be read is resume's to deal with: the target goes on without what the log knew. */
static int check_device(struct dm_dirty_log *log, GError **err)
{
	struct disk_log *d = log->context;
	struct dm_limits limits;
	void *block = NULL;
	int error = 0;

	if (d->local.sync != LOG_DEFAULT_SYNC || d->resumed)
		return 0;
	dm_dev_limits(d->dev, &limits);
	if (posix_memalign(&block, BLOCK_BYTES, limits.logical_block_size))
		return dm_fail(err, ENOMEM, "%s: no memory", log->ti->type->name);
	if (!dm_read_sync(d->dev, 0, limits.logical_block_size >> DM_SECTOR_SHIFT, block, DM_META))
		error = check_header(log, block, err);
	free(block);
	return error;
}

/* In ctr, where the log's device may be waiting for this very script to resume it. */
static int check_device_now(struct dm_dirty_log *log, GError **err)
{
	struct disk_log *d = log->context;
	struct dm_mapped *md = dm_dev_mapped(d->dev);

	if (md && dm_mapped_suspending(md))
		return 0;
	return check_device(log, err);
}

static int disk_ctr(struct dm_dirty_log *log, int argc, char **argv, GError **err)
{
	struct disk_log *d = g_new0(struct disk_log, 1);
	const char *who = log->ti->type->name;
	int error;

	log->context = d;
	if (argc < 2 || argc > 3)
		error = dm_fail(err, EINVAL, "%s: wrong number of arguments to the %s dirty region log: its device, "
					     "region size and sync or nosync would be right", who, log->type->name);
	else
		error = dm_log_local_init(log, &d->local, who, argc - 1, argv + 1, err);
	log->context = d;
	if (!error)
		error = dm_get_device(log->ti, argv[0], dm_target_mode(log->ti), &d->dev, err);
	if (!error)
		error = dm_claim_device(log->ti, d->dev, dm_target_mode(log->ti), "log device", err);
	if (!error)
		error = allocate(log, err);
	if (!error)
		error = check_device_now(log, err);
	if (error) {
		disk_dtr(log);
		return error;
	}
	pthread_mutex_lock(&open_lock);
	open_logs = g_slist_prepend(open_logs, log);
	pthread_mutex_unlock(&open_lock);
	return 0;
}

static void note_all(struct disk_log *d)
{
	for (size_t offset = 0; offset < d->area_bytes; offset += d->block_bytes)
		note_change(d, offset);
}

/* Sets or clears the bits [from, to) of the bitmap. */
static void fill_bits(uint8_t *bits, uint64_t from, uint64_t to, bool set)
{
	for (; from < to && from % 8; from++)
		set ? dm_region_bit_set(bits, from) : dm_region_bit_clear(bits, from);
	if (from < to) {
		memset(bits + from / 8, set ? 0xff : 0, (to - from) / 8);
		from += (to - from) / 8 * 8;
	}
	for (; from < to; from++)
		set ? dm_region_bit_set(bits, from) : dm_region_bit_clear(bits, from);
}

static uint64_t count_bits(const uint8_t *bits, size_t bytes)
{
	uint64_t n = 0, word;

	for (size_t i = 0; i < bytes; i += sizeof word) {
		memcpy(&word, bits + i, sizeof word);
		n += (uint64_t)__builtin_popcountll(word);
	}
	return n;
}

/*
 * Reads what the log knows and makes it what is in sync.  An unreadable log knows nothing, so all is out of sync
 * (unless the user says nosync).
 */
static int disk_resume(struct dm_dirty_log *log)
{
	struct disk_log *d = log->context;
	size_t bytes = dm_log_bitmap_bytes(log->regions);
	uint64_t known = 0;
	int error, flush_error;
	bool nosync;

	g_array_set_size(d->changed_blocks, 0);
	memset(d->changed, 0, d->area_bytes / d->block_bytes / 8 + 1);
	error = dm_read_sync(d->dev, 0, d->area_bytes >> DM_SECTOR_SHIFT, d->area, DM_META);
	if (error)
		fail_device(log, "read", error);
	else if ((d->local.sync == LOG_DEFAULT_SYNC || d->resumed) && dm_log_header_is_log(d->area))
		known = MIN(get_le64(d->area + 8), log->regions);
	if (known < log->regions)
		note_all(d);
	nosync = d->local.sync == LOG_NOSYNC && !d->resumed;
	d->resumed = true;
	note_change(d, 0);
	note_change(d, DM_LOG_BITMAP_OFFSET + bytes - 1);
	fill_bits(d->clean_bits, known, log->regions, nosync);
	fill_bits(d->clean_bits, log->regions, bytes * 8, false);
	dm_log_put_header(d->area, log->regions);
	memcpy(d->local.sync_bits, d->clean_bits, bytes);
	atomic_store(&d->local.sync_count, count_bits(d->clean_bits, bytes));
	d->local.search = 0;
	d->marked = true;
	flush_error = disk_flush(log);
	return error ? error : flush_error;
}

/* --- regions ---------------------------------------------------------------------------------- */

static bool disk_is_clean(struct dm_dirty_log *log, uint64_t region)
{
	struct disk_log *d = log->context;

	return dm_region_bit_test(d->clean_bits, region);
}

static void disk_mark_region(struct dm_dirty_log *log, uint64_t region)
{
	struct disk_log *d = log->context;

	if (!dm_region_bit_test(d->clean_bits, region))
		return;
	dm_region_bit_clear(d->clean_bits, region);
	note_change(d, DM_LOG_BITMAP_OFFSET + region / 8);
	d->marked = true;
}

static void disk_clear_region(struct dm_dirty_log *log, uint64_t region)
{
	struct disk_log *d = log->context;

	if (dm_region_bit_test(d->clean_bits, region))
		return;
	dm_region_bit_set(d->clean_bits, region);
	note_change(d, DM_LOG_BITMAP_OFFSET + region / 8);
}

static void disk_status(struct dm_dirty_log *log, enum dm_status_type type, GString *out)
{
	struct disk_log *d = log->context;

	if (type == DM_STATUS_INFO) {
		g_string_append_printf(out, "3 %s ", log->type->name);
		dm_dev_print(d->dev, out);
		g_string_append_printf(out, " %c",
				       atomic_load(&d->flush_failed) ? 'F' : atomic_load(&d->failed) ? 'D' : 'A');
		return;
	}
	dm_log_print_type(log, d->local.sync == LOG_DEFAULT_SYNC ? 2 : 3, out);
	g_string_append_c(out, ' ');
	dm_dev_print(d->dev, out);
	g_string_append_printf(out, " %" PRIu32, log->region_sectors);
	dm_log_print_sync(&d->local, out);
}

#define DISK_LOG(its_name)                                                                                            \
	{                                                                                                             \
		.name = its_name, .ctr = disk_ctr, .dtr = disk_dtr, .preresume = check_device,                        \
		.postsuspend = disk_flush, .resume = disk_resume, .is_clean = disk_is_clean,                          \
		.in_sync = dm_log_in_sync, .flush = disk_flush, .mark_region = disk_mark_region,                      \
		.clear_region = disk_clear_region, .get_resync_work = dm_log_get_resync_work,                         \
		.set_region_sync = dm_log_set_region_sync, .sync_count = dm_log_sync_count, .status = disk_status,    \
	}

const struct dm_dirty_log_type dm_disk_log_type = DISK_LOG("disk");
const struct dm_dirty_log_type dm_clustered_disk_log_type = DISK_LOG("clustered-disk");
