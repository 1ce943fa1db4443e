/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * writecache: writes go to a fast device first, and to the origin later (writecache.rst).
 *
 *   <s|p> <origin dev> <cache dev> <block size> <#optional> [start_sector <sector>] [high_watermark <%>]
 *     [low_watermark <%>] [writeback_jobs <#blocks>] [autocommit_blocks <#blocks>] [autocommit_time <ms>] [max_age
 * <ms>] [cleaner] [fua|nofua] [metadata_only] [pause_writeback <ms>]
 *
 * The index is read from the cache device at each resume, and forgotten at each suspension.
 */
#include "writecache.h"

#include <inttypes.h>

#include <dmfs/claim.h>
#include <dmfs/rounding.h>

#define MEM_THREADS 4u

/* --- suspend and resume ----------------------------------------------------------------------- */

static int wc_preresume(struct dm_target *ti, GError **err)
{
	struct writecache *wc = ti->private;

	atomic_store(&wc->stopping, false);
	return wc_load(wc, err);
}

static void wc_resume(struct dm_target *ti)
{
	struct writecache *wc = ti->private;

	wc_check_free(wc);
	if (atomic_load(&wc->draining))
		dm_wq_queue(wc->wb_wq, &wc->wb_work);
	if (wc->opt.max_age_ms != UINT_MAX)
		wc_age_timer(&wc->age_timer);
}

static void wc_postsuspend(struct dm_target *ti)
{
	struct writecache *wc = ti->private;

	if (!atomic_load(&wc->loaded))
		return;
	dm_group_commit_sync(wc->commits);
	if (atomic_exchange(&wc->flush_on_suspend, false))
		wc_writeback_all(wc);
	atomic_store(&wc->stopping, true);
	dm_timer_cancel_sync(&wc->age_timer);
	dm_wq_flush(wc->wb_wq);
	dm_timer_cancel_sync(&wc->wb_timer);
	wc_wait_writeback(wc);
	dm_wq_flush(wc->done_wq);
	dm_group_commit_settle(wc->commits);
	dm_wq_flush(wc->wq);
	dm_wq_flush(wc->wb_wq);
	wc_unload(wc);
	atomic_store(&wc->draining, false);
}

/* --- status and messages -------------------------------------------------------------------------- */

static void status_info(struct writecache *wc, GString *out)
{
	uint32_t free;

	pthread_rwlock_rdlock(&wc->ix_lock);
	free = wc->ix ? wc_n_free(wc->ix) : wc->last_free;
	pthread_rwlock_unlock(&wc->ix_lock);
	g_string_append_printf(out, "%d %" PRIu32 " %" PRIu32 " %" PRIu64, atomic_load(&wc->error), wc->n_blocks, free,
			       atomic_load(&wc->n_writeback));
	for (unsigned what = 0; what < WC_COUNTS; what++) {
		uint64_t sum = 0;

		for (unsigned i = 0; i < WC_COUNT_SLOTS; i++)
			sum += atomic_load_explicit(&wc->counts[i].n[what], memory_order_relaxed);
		g_string_append_printf(out, " %" PRIu64, sum);
	}
}

static void wc_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct writecache *wc = ti->private;

	if (type == DM_STATUS_INFO) {
		status_info(wc, out);
		return;
	}
	g_string_append(out, wc->pmem ? "p " : "s ");
	dm_dev_print(wc->origin, out);
	g_string_append_c(out, ' ');
	dm_dev_print(wc->cache, out);
	g_string_append_printf(out, " %u ", wc->block_bytes);
	wc_options_print(&wc->opt, out);
}

static int message_flush(struct writecache *wc, GError **err)
{
	int error;

	if (!atomic_load(&wc->loaded) || dm_target_suspending(wc->ti))
		return dm_fail(err, EBUSY, "writecache: the device is suspended, nothing can be flushed");
	error = wc_failed(wc) ? -EIO : wc_writeback_all(wc);
	return error ? dm_fail(err, -error, "writecache: not flushed: error %d, see log", atomic_load(&wc->error)) : 0;
}

static int message_flush_on_suspend(struct writecache *wc, GError **err)
{
	atomic_store(&wc->flush_on_suspend, true);
	return 0;
}

static int message_cleaner(struct writecache *wc, GError **err)
{
	atomic_store(&wc->flush_on_suspend, true);
	atomic_store(&wc->cleaner, true);
	dm_wq_queue(wc->wb_wq, &wc->wb_work);
	return 0;
}

static int message_clear_stats(struct writecache *wc, GError **err)
{
	for (unsigned i = 0; i < WC_COUNT_SLOTS; i++)
		for (unsigned what = 0; what < WC_COUNTS; what++)
			atomic_store(&wc->counts[i].n[what], 0);
	return 0;
}

static int wc_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	static const struct {
		const char *name;
		int (*fn)(struct writecache *, GError **);
	} messages[] = {
	    {"flush", message_flush},
	    {"flush_on_suspend", message_flush_on_suspend},
	    {"cleaner", message_cleaner},
	    {"clear_stats", message_clear_stats},
	};

	for (unsigned i = 0; i < G_N_ELEMENTS(messages); i++) {
		if (g_ascii_strcasecmp(argv[0], messages[i].name))
			continue;
		if (argc != 1)
			return dm_fail(err, EINVAL, "writecache: message %s takes no arguments, not '%s'", argv[0],
				       argv[1]);
		return messages[i].fn(ti->private, err);
	}
	return dm_fail(err, EINVAL,
		       "writecache: unrecognised message received: '%s'; flush, flush_on_suspend, cleaner and "
		       "clear_stats are known",
		       argv[0]);
}

/* --- life ------------------------------------------------------------------------------------------- */

static void wc_dtr(struct dm_target *ti)
{
	struct writecache *wc = ti->private;

	dm_timer_cancel_sync(&wc->wb_timer);
	dm_timer_cancel_sync(&wc->age_timer);
	dm_wq_free(wc->wb_wq);
	if (wc->kcopyd)
		dm_kcopyd_client_free(wc->kcopyd);
	dm_wq_free(wc->done_wq);
	dm_group_commit_free(wc->commits);
	dm_wq_free(wc->wq);
	dm_wq_free(wc->mem_wq);
	wc_unload(wc);
	wc_mem_close(wc->mem);
	if (wc->cache)
		dm_put_device(ti, wc->cache);
	if (wc->origin)
		dm_put_device(ti, wc->origin);
	g_array_unref(wc->committing);
	g_array_unref(wc->freed);
	dm_hold_destroy(&wc->blocked);
	pthread_cond_destroy(&wc->changed);
	pthread_mutex_destroy(&wc->lock);
	pthread_rwlock_destroy(&wc->ix_lock);
	free(wc);
}

static struct writecache *wc_new(struct dm_target *ti)
{
	struct writecache *wc = aligned_alloc(_Alignof(struct writecache), sizeof *wc);

	g_assert(wc);
	memset(wc, 0, sizeof *wc);
	wc->ti = ti;
	pthread_rwlock_init(&wc->ix_lock, NULL);
	pthread_mutex_init(&wc->lock, NULL);
	pthread_cond_init(&wc->changed, NULL);
	dm_bio_list_init(&wc->discards);
	dm_hold_init(&wc->blocked, wc_hold_fail, DM_HOLD_GOES_ON);
	dm_hold_close(&wc->blocked);
	wc->committing = g_array_new(FALSE, FALSE, sizeof(uint32_t));
	wc->freed = g_array_new(FALSE, FALSE, sizeof(uint32_t));
	wc->discard_work.fn = wc_discard;
	wc->blocked_work.fn = wc_retry_blocked;
	wc->wb_work.fn = wc_writeback;
	wc->done_work.fn = wc_writeback_done;
	wc->wb_timer.fn = wc_wake_timer;
	wc->age_timer.fn = wc_age_timer;
	wc->wq = dm_wq_new("writecache", 1);
	wc->commits = dm_group_commit_new(wc->wq, wc_commit, wc);
	wc->wb_wq = dm_wq_new("writeback", 1);
	wc->done_wq = dm_wq_new("written back", 1);
	wc->mem_wq = dm_wq_new("writecache p", MEM_THREADS);
	return wc;
}

static int open_devices(struct writecache *wc, char **argv, GError **err)
{
	g_autoptr(GError) why = NULL;
	int error = dm_get_device(wc->ti, argv[1], DM_MODE_RW, &wc->origin, &why);

	if (error)
		return dm_fail(err, -error, "writecache: Origin data device lookup failed: '%s': %s", argv[1],
			       why->message);
	error = dm_get_device(wc->ti, argv[2], DM_MODE_RW, &wc->cache, &why);
	if (error)
		return dm_fail(err, -error, "writecache: Cache data device lookup failed: '%s': %s", argv[2],
			       why->message);
	return 0;
}

static int parse_block(struct writecache *wc, const char *word, GError **err)
{
	struct dm_limits limits[2];

	if (!dm_parse_uint(word, &wc->block_bytes) || wc->block_bytes < WC_MIN_BLOCK ||
	    wc->block_bytes > WC_MAX_BLOCK || !dm_is_pow2(wc->block_bytes))
		return dm_fail(err, EINVAL, "writecache: Invalid block size '%s': 512, 1024, 2048 or 4096 bytes", word);
	dm_dev_limits(wc->origin, &limits[0]);
	dm_dev_limits(wc->cache, &limits[1]);
	for (unsigned i = 0; i < 2; i++)
		if (wc->block_bytes < limits[i].logical_block_size)
			return dm_fail(err, EINVAL,
				       "writecache: Block size is smaller than device logical block size: %u, the %s "
				       "has %u",
				       wc->block_bytes, i ? "cache" : "origin", limits[i].logical_block_size);
	wc->block_shift = dm_log2(wc->block_bytes) - DM_SECTOR_SHIFT;
	return 0;
}

/* The superblock, which is made where there is none. */
static int read_super(struct writecache *wc, struct wc_super *super, GError **err)
{
	uint64_t sectors = dm_dev_sectors(wc->cache) - wc->opt.start_sector, bytes = sectors << DM_SECTOR_SHIFT;
	uint8_t buf[WC_MAX_BLOCK];
	int error, fresh = 0;

	for (unsigned tries = 0; tries < 2; tries++) {
		if (sectors < wc->block_bytes >> DM_SECTOR_SHIFT)
			return dm_fail(err, ENOSPC,
				       "writecache: Invalid device size: %" PRIu64 " sectors from start_sector on",
				       sectors);
		error = dm_read_sync(wc->cache, wc->opt.start_sector, wc->block_bytes >> DM_SECTOR_SHIFT, buf, DM_META);
		if (error)
			return dm_fail(err, -error, "writecache: Unable to read first block of metadata: %s",
				       g_strerror(-error));
		fresh = wc_super_read(buf, bytes, wc->block_bytes, super, err);
		if (fresh <= 0)
			return fresh;
		error = wc_format(wc, err);
		if (error)
			return error;
	}
	return dm_fail(err, EIO, "writecache: Unable to initialize device: the superblock does not stay");
}

static int open_cache(struct writecache *wc, GError **err)
{
	uint64_t sectors = dm_dev_sectors(wc->cache), most;
	struct wc_super super;
	int error;

	if (dm_dev_same(wc->origin, wc->cache) && wc->opt.start_sector < wc->ti->len)
		return dm_fail(err, EINVAL, "writecache: the cache device is the origin, too");
	error = dm_claim_range(wc->ti, wc->cache, wc->opt.start_sector, sectors - wc->opt.start_sector, DM_MODE_RW,
			       "cache device", err);
	if (error)
		return error;
	error = wc_blocks_in((sectors - wc->opt.start_sector) << DM_SECTOR_SHIFT, wc->block_bytes, &most);
	if (error)
		return dm_fail(err, -error,
			       "writecache: Invalid device size: %" PRIu64 " sectors from start_sector on, for "
			       "blocks of %u bytes",
			       sectors - wc->opt.start_sector, wc->block_bytes);
	if (wc->pmem)
		error = wc_mem_open(wc->cache, sectors << DM_SECTOR_SHIFT, &wc->mem, err);
	if (!error)
		error = read_super(wc, &super, err);
	if (error)
		return error;
	wc->n_blocks = (uint32_t)super.blocks;
	wc->meta_bytes = wc_meta_bytes(super.blocks, wc->block_bytes);
	wc->data_sector = wc->opt.start_sector + (wc->meta_bytes >> DM_SECTOR_SHIFT);
	wc->high_free = (super.blocks * (100 - wc->opt.high) + 50) / 100;
	wc->low_free = (super.blocks * (100 - wc->opt.low) + 50) / 100;
	return 0;
}

static int wc_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct dm_args as = {argc - 4, argv + 4};
	struct writecache *wc;
	int error;

	if (argc < 4 || (g_ascii_strcasecmp(argv[0], "s") && g_ascii_strcasecmp(argv[0], "p")))
		return dm_fail(err, EINVAL,
			       "writecache: Bad arguments: <s|p> <origin dev> <cache dev> <block size> are needed, "
			       "not %d that begin with '%s'",
			       argc, argc ? argv[0] : "");
	wc = wc_new(ti);
	ti->private = wc;
	wc->pmem = !g_ascii_strcasecmp(argv[0], "p");
	error = open_devices(wc, argv, err);
	if (!error)
		error = parse_block(wc, argv[3], err);
	if (!error)
		error = wc_options_parse(&wc->opt, &as, wc->pmem, dm_dev_sectors(wc->cache), err);
	if (!error)
		error = open_cache(wc, err);
	if (error) {
		wc_dtr(ti);
		return error;
	}
	atomic_store(&wc->cleaner, wc->opt.cleaner);
	atomic_store(&wc->flush_on_suspend, wc->opt.cleaner);
	wc->kcopyd = dm_kcopyd_client_new(NULL, 0);
	ti->num_flush_bios = wc->pmem ? 1 : 2;
	ti->num_discard_bios = 1;
	return 0;
}

/* --- the rest ----------------------------------------------------------------------------------------- */

static int wc_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct writecache *wc = ti->private;

	return fn(ti, wc->origin, 0, ti->len, data);
}

static void wc_io_hints(struct dm_target *ti, struct dm_limits *limits)
{
	struct writecache *wc = ti->private;

	limits->logical_block_size = MAX(limits->logical_block_size, wc->block_bytes);
	limits->physical_block_size = MAX(limits->physical_block_size, wc->block_bytes);
	limits->io_min = MAX(limits->io_min, wc->block_bytes);
	limits->discard_granularity = MAX(limits->discard_granularity, wc->block_bytes);
	limits->discard_zeroes = false;
}

/* Whether the cache has a version of a block.  ix_lock held. */
static bool is_cached(struct writecache *wc, uint64_t block)
{
	struct wc_shard *s = wc_shard_of(wc->ix, block);
	bool cached;

	if (!atomic_load(&s->count))
		return false;
	pthread_mutex_lock(&s->lock);
	cached = wc_find(wc->ix, s, block) != WC_NONE;
	pthread_mutex_unlock(&s->lock);
	return cached;
}

/* What is in the cache is data; between that, what the origin says. */
static int wc_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct writecache *wc = ti->private;
	uint64_t first = sector >> wc->block_shift, last = (sector + sectors - 1) >> wc->block_shift, block;
	bool cached, none;

	last = MIN(last, first + 65535);
	pthread_rwlock_rdlock(&wc->ix_lock);
	none = !wc->ix;
	cached = !none && is_cached(wc, first);
	for (block = first + 1; !none && block <= last && is_cached(wc, block) == cached;)
		block++;
	pthread_rwlock_unlock(&wc->ix_lock);
	if (none) {
		*out = (struct dm_extent){.data = true, .sectors = sectors};
		return 0;
	}
	sectors = MIN(sectors, (block << wc->block_shift) - sector);
	if (!cached)
		return dm_dev_extent(wc->origin, sector, sectors, out);
	*out = (struct dm_extent){.data = true, .sectors = sectors};
	return 0;
}

static uint64_t wc_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct writecache *wc = ti->private;
	uint64_t cached = 0;

	pthread_rwlock_rdlock(&wc->ix_lock);
	for (unsigned i = 0; wc->ix && i < WC_SHARDS; i++)
		cached += atomic_load(&wc->ix->shards[i].count);
	if (!wc->ix)
		cached = wc->n_blocks;
	pthread_rwlock_unlock(&wc->ix_lock);
	return dm_dev_provisioned(wc->origin, sector, sectors) + (cached << wc->block_shift);
}

const struct dm_target_type writecache_target = {
    .name = "writecache",
    .features = DM_TARGET_HANDS_OVER,
    .version = {1, 6, 0},
    .per_bio_size = sizeof(struct wc_io),
    .ctr = wc_ctr,
    .dtr = wc_dtr,
    .map = wc_map,
    .end_io = wc_end_io,
    .preresume = wc_preresume,
    .resume = wc_resume,
    .postsuspend = wc_postsuspend,
    .status = wc_status,
    .message = wc_message,
    .iterate_devices = wc_iterate_devices,
    .io_hints = wc_io_hints,
    .extent = wc_extent,
    .provisioned = wc_provisioned,
};
