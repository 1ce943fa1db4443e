/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * clone: a copy of a read-only source that can be used at once, while it is
 * made (dm-clone.rst).
 *
 *   <metadata dev> <destination dev> <source dev> <region size>
 *     [<#feature args> [no_hydration] [no_discard_passdown]
 *     [<#core args> [hydration_threshold <#regions>] [hydration_batch_size <#regions>]]]
 *
 * Metadata is committed on every FLUSH and FUA and each second: first the destination is flushed, then the bits of the
 * regions it holds are written.  When all regions are hydrated their bits in memory are freed and bios are no longer
 * split.
 */
#include <inttypes.h>

#include "clone.h"

#include <dmfs/block_manager.h>
#include <dmfs/claim.h>
#include <dmfs/container_of.h>
#include <dmfs/rounding.h>

#define MIN_REGION 8u
#define MAX_REGION (1u << 21)
#define MAX_FEATURES 2u
#define MAX_CORE 4u
#define COMMIT_NS UINT64_C(1000000000)

/* --- modes and commits -------------------------------------------------------------------- */

void clone_set_mode(struct clone *c, enum clone_mode mode)
{
	static const char *const names[] = {"read-write", "read-only", "fail"};
	enum clone_mode old = atomic_load(&c->mode);

	/* The way back is closed. */
	while (old < mode && !atomic_compare_exchange_weak(&c->mode, &old, mode))
		;
	if (old >= mode)
		return;
	dm_log_err("clone: switching metadata to %s mode", names[mode]);
	dm_target_event(c->ti, NULL, NULL);
}

/* Metadata that cannot be written is as the last commit left it; if it cannot be read either, nothing is known. */
static void abort_metadata(struct clone *c)
{
	int r;

	dm_log_err("clone: aborting current metadata transaction");
	r = clone_md_abort(c->meta);
	if (r)
		dm_log_err("clone: failed to abort metadata transaction: %s", g_strerror(-r));
	clone_set_mode(c, r ? CLONE_FAIL : CLONE_RO);
}

static int commit(struct clone *c)
{
	int r;

	if (atomic_load(&c->mode) != CLONE_RW)
		return -EIO;
	r = clone_md_commit(c->meta, c->dest);
	if (r && clone_md_dirty(c->meta)) {
		dm_log_err("clone: committing metadata: %s", g_strerror(-r));
		if (clone_md_broken(c->meta))
			abort_metadata(c);
		else
			clone_set_mode(c, CLONE_RO); /* the destination's cache may have lost what it held */
	}
	return r;
}

/* In the queue, so not beside the background hydration or a commit. */
static void release_bits(struct clone *c)
{
	bool idle;

	pthread_mutex_lock(&c->lock);
	idle = !c->hydrating && !c->reopen;
	pthread_mutex_unlock(&c->lock);
	if (idle && atomic_load(&c->complete) && !dm_gate_inside(&c->bits) && !clone_md_dirty(c->meta))
		clone_md_release(c->meta);
}

static void release_work(struct dm_work *work)
{
	release_bits(container_of(work, struct clone, release_work));
}

static int commit_all(void *context)
{
	int r = commit(context);

	release_bits(context);
	return r;
}

static void committed(struct dm_commit_wait *wait, int error)
{
	dm_bio_end(container_of(wait, struct clone_bio, commit)->bio, error);
}

/* A FLUSH, or a FUA write that has ended: it is answered when the metadata is durable. */
static void end_after_commit(struct clone *c, struct dm_bio *bio)
{
	struct clone_bio *cb = bio->private;

	cb->bio = bio;
	cb->commit.done = committed;
	dm_group_commit(c->commits, &cb->commit);
}

void clone_commit_soon(struct clone *c)
{
	dm_group_commit_soon(c->commits, COMMIT_NS);
}

/* --- the end of the hydration --------------------------------------------------------------- */

/*
 * Who looks at the bits enters their gate.  It is closed once all is hydrated, and when the last one has left them they
 * are freed, by the queue.  False: all is hydrated.
 */
static bool enter_bits(struct clone *c)
{
	return !atomic_load_explicit(&c->complete, memory_order_acquire) && dm_gate_enter(&c->bits);
}

static void leave_bits(struct clone *c)
{
	if (!atomic_load_explicit(&c->touched, memory_order_relaxed))
		atomic_store_explicit(&c->touched, true, memory_order_relaxed);
	dm_gate_exit(&c->bits);
}

static void bits_left(struct dm_gate *bits)
{
	struct clone *c = container_of(bits, struct clone, bits);

	dm_wq_queue(c->wq, &c->release_work);
}

void clone_check_complete(struct clone *c)
{
	if (clone_md_nr_hydrated(c->meta) < c->nr_regions || atomic_load(&c->complete))
		return;
	dm_gate_close(&c->bits); /* before anybody may free them; more than once does no harm */
	if (atomic_exchange(&c->complete, true))
		return;
	__atomic_store_n(&c->ti->max_io_sectors, 0, __ATOMIC_RELAXED);
	dm_target_event(c->ti, "HYDRATED", NULL);
	dm_group_commit_soon(c->commits, 0);
}

/* --- constructor -------------------------------------------------------------------------------- */

static int parse_features(struct clone *c, struct dm_args *as, GError **err)
{
	unsigned n;
	int error = dm_read_arg_group(as, 0, MAX_FEATURES, true, "clone", "feature arguments", &n, err);

	while (!error && n--) {
		const char *word = dm_shift_arg(as);

		if (!g_ascii_strcasecmp(word, "no_hydration"))
			atomic_store(&c->enabled, false);
		else if (!g_ascii_strcasecmp(word, "no_discard_passdown"))
			c->want_passdown = false;
		else
			error = dm_fail(err, EINVAL, "clone: Invalid feature argument '%s': no_hydration and "
						     "no_discard_passdown are known", word);
	}
	return error;
}

static int parse_core(struct clone *c, struct dm_args *as, GError **err)
{
	unsigned n, value;
	int error = dm_read_arg_group(as, 0, MAX_CORE, true, "clone", "core arguments", &n, err);

	if (!error && n % 2)
		error = dm_fail(err, EINVAL, "clone: Number of core arguments must be even, not %u", n);
	for (; !error && n; n -= 2) {
		const char *key = dm_shift_arg(as), *word = dm_shift_arg(as);

		error = dm_read_uint(word, 0, UINT_MAX, "clone", key, &value, err);
		if (error)
			break;
		if (!g_ascii_strcasecmp(key, "hydration_threshold"))
			atomic_store(&c->threshold, value);
		else if (!g_ascii_strcasecmp(key, "hydration_batch_size"))
			atomic_store(&c->batch, value);
		else
			error = dm_fail(err, EINVAL, "clone: Invalid core argument '%s': hydration_threshold and "
						     "hydration_batch_size are known", key);
	}
	if (!error && as->argc)
		error = dm_fail(err, EINVAL, "clone: '%s' is one argument too many", as->argv[0]);
	return error;
}

static int parse_devices(struct clone *c, char **argv, GError **err)
{
	struct dm_target *ti = c->ti;
	int error = dm_get_device(ti, argv[0], DM_MODE_RW, &c->meta_dev, err);

	if (!error)
		error = dm_claim_device(ti, c->meta_dev, DM_MODE_RW, "metadata device", err);
	if (!error)
		error = dm_get_device(ti, argv[1], DM_MODE_RW, &c->dest, err);
	if (!error)
		error = dm_get_device(ti, argv[2], DM_MODE_READ, &c->source, err);
	if (!error && (dm_dev_same(c->meta_dev, c->dest) || dm_dev_same(c->meta_dev, c->source)))
		error = dm_fail(err, EINVAL, "clone: the metadata device is the %s, too",
				dm_dev_same(c->meta_dev, c->dest) ? "destination" : "source");
	if (!error && dm_dev_sectors(c->meta_dev) < DM_META_BLOCK_SECTORS)
		error = dm_fail(err, ENOSPC, "clone: the metadata device is too small: %" PRIu64 " sectors",
				dm_dev_sectors(c->meta_dev));
	if (!error && dm_dev_sectors(c->dest) < ti->len)
		error = dm_fail(err, EINVAL, "clone: Device size larger than destination device: %" PRIu64
				" sectors, it has %" PRIu64, ti->len, dm_dev_sectors(c->dest));
	if (!error && dm_dev_sectors(c->source) < ti->len)
		error = dm_fail(err, EINVAL, "clone: Device size larger than source device: %" PRIu64
				" sectors, it has %" PRIu64, ti->len, dm_dev_sectors(c->source));
	return error;
}

static int parse_region(struct clone *c, const char *word, GError **err)
{
	unsigned n;

	if (!dm_parse_uint(word, &n) || n < MIN_REGION || n > MAX_REGION)
		return dm_fail(err, EINVAL, "clone: Invalid region size '%s': %u to %u sectors", word, MIN_REGION,
			       MAX_REGION);
	if (n && !dm_is_pow2(n))
		return dm_fail(err, EINVAL, "clone: Region size is not a power of 2: %u", n);
	c->region_sectors = n;
	c->shift = dm_log2(n);
	return 0;
}

static void clone_free(struct clone *c)
{
	if (c->kcopyd)
		dm_kcopyd_client_free(c->kcopyd); /* the end of its last copy may still be waking the queues */
	if (c->wq) {
		dm_timer_cancel_sync(&c->rest_timer);
		dm_group_commit_free(c->commits);
		dm_wq_free(c->wq);
	}
	clone_md_close(c->meta);
	dm_put_device(c->ti, c->source);
	dm_put_device(c->ti, c->dest);
	dm_put_device(c->ti, c->meta_dev);
	dm_block_lock_free(c->regions);
	pthread_mutex_destroy(&c->lock);
	pthread_cond_destroy(&c->idle);
	dm_gate_destroy(&c->bits);
	g_free(c->args);
	g_free(c);
}

static struct clone *clone_new(struct dm_target *ti)
{
	struct clone *c = g_new0(struct clone, 1);

	c->ti = ti;
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->idle, NULL);
	dm_gate_init(&c->bits);
	c->bits.drained = bits_left;
	c->regions = dm_block_lock_new(0);
	atomic_init(&c->enabled, true);
	c->want_passdown = true;
	atomic_init(&c->suspended, true);
	atomic_init(&c->threshold, 1);
	atomic_init(&c->batch, 1);
	c->hydrate_work.fn = clone_hydrate;
	c->release_work.fn = release_work;
	c->rest_timer.fn = clone_rest_over;
	return c;
}

static int clone_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct dm_args as = {argc - 4, argv + 4};
	struct clone *c;
	int error;

	if (argc < 4)
		return dm_fail(err, EINVAL, "clone: Invalid number of arguments: %d, <metadata dev> <destination dev> "
					    "<source dev> <region size> are 4", argc);
	c = clone_new(ti);
	c->args = g_strjoinv(" ", argv + 4);
	error = parse_region(c, argv[3], err);
	if (!error)
		error = parse_features(c, &as, err);
	if (!error)
		error = parse_core(c, &as, err);
	if (!error)
		error = parse_devices(c, argv, err);
	if (!error)
		error = clone_md_open(c->meta_dev, ti->len, c->region_sectors, &c->meta, err);
	if (error) {
		clone_free(c);
		return error;
	}
	c->nr_regions = clone_md_nr_regions(c->meta);
	c->reopen = dm_mapped_sectors(dm_target_mapped(ti)) > 0;
	c->kcopyd = dm_kcopyd_client_new(NULL, 0);
	c->wq = dm_wq_new("clone", 1);
	c->commits = dm_group_commit_new(c->wq, commit_all, c);
	ti->private = c;
	ti->max_io_sectors = c->region_sectors;
	ti->num_flush_bios = 1;
	ti->num_discard_bios = 1;
	ti->discards_supported = true;
	return 0;
}

static void clone_dtr(struct dm_target *ti)
{
	clone_free(ti->private);
}

/* --- bios -------------------------------------------------------------------------------------------- */

/* Regions that lie wholly inside a range of the target. */
static void whole_regions(const struct clone *c, uint64_t offset, uint64_t sectors, uint64_t *from, uint64_t *to)
{
	uint64_t end = offset + sectors;

	*from = (offset + c->region_sectors - 1) >> c->shift;
	*to = end == c->ti->len ? c->nr_regions : end >> c->shift;
	*to = MAX(*to, *from);
}

static bool is_hydrated(struct clone *c, uint64_t region)
{
	return atomic_load(&c->complete) || clone_md_hydrated(c->meta, region);
}

/*
 * Passed down are the whole regions, and what there is of a hydrated one at either end.  A region counts as hydrated
 * once the destination has discarded it: before that, or if it fails, its reads must not come from there.  A copy or
 * write that is under way at the same time may lose against the discard or win, as writes at the same time may.
 */
static enum dm_mapio map_discard(struct clone *c, struct dm_bio *bio, uint64_t offset)
{
	uint64_t end = offset + bio->sectors, from, to;
	struct clone_bio *cb = bio->private;

	cb->counted = enter_bits(c);
	if (!cb->counted) { /* all is hydrated: it is the destination's alone */
		if (!atomic_load(&c->discard_passdown)) {
			dm_bio_end(bio, 0);
			return DM_MAPIO_SUBMITTED;
		}
		bio->dev = c->dest;
		bio->sector = offset;
		return DM_MAPIO_REMAPPED;
	}
	whole_regions(c, offset, bio->sectors, &from, &to);
	if (!atomic_load(&c->discard_passdown)) {
		clone_discard_regions(c, from, to);
		dm_bio_end(bio, 0);
		return DM_MAPIO_SUBMITTED;
	}
	if (!is_hydrated(c, clone_region(c, offset)))
		offset = MIN(from << c->shift, end);
	if (offset < end && !is_hydrated(c, clone_region(c, end - 1)))
		end = MIN(to << c->shift, end);
	if (offset >= end) {
		dm_bio_end(bio, 0);
		return DM_MAPIO_SUBMITTED;
	}
	cb->from = from;
	cb->to = to;
	bio->dev = c->dest;
	bio->sector = offset;
	bio->sectors = end - offset;
	return DM_MAPIO_REMAPPED;
}

static enum dm_mapio clone_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct clone *c = ti->private;
	struct clone_bio *cb = bio->private;
	uint64_t offset = dm_target_offset(ti, bio->sector), region;

	*cb = (struct clone_bio){0};
	if (atomic_load_explicit(&c->mode, memory_order_relaxed) == CLONE_FAIL)
		return DM_MAPIO_KILL;
	if (bio->op == DM_FLUSH) {
		if (atomic_load(&c->complete) && !clone_md_dirty(c->meta)) {
			bio->dev = c->dest;
			return DM_MAPIO_REMAPPED;
		}
		end_after_commit(c, bio);
		return DM_MAPIO_SUBMITTED;
	}
	if (bio->op == DM_DISCARD)
		return map_discard(c, bio, offset);
	bio->sector = offset;
	bio->dev = c->dest;
	if (!enter_bits(c))
		return DM_MAPIO_REMAPPED;
	cb->counted = true;
	region = clone_region(c, offset);
	if (clone_md_hydrated(c->meta, region))
		return DM_MAPIO_REMAPPED;
	if (bio->op == DM_READ) {
		clone_note_read(c, region);
		bio->dev = c->source;
		return DM_MAPIO_REMAPPED;
	}
	if (atomic_load(&c->mode) != CLONE_RW) {
		/* The new region could not be remembered. */
		dm_bio_end(bio, -EIO);
		return DM_MAPIO_SUBMITTED;
	}
	clone_write_cold(c, bio, region);
	return DM_MAPIO_SUBMITTED;
}

static enum dm_endio clone_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct clone *c = ti->private;
	struct clone_bio *cb = bio->private;

	if (bio->op == DM_FLUSH)
		return DM_ENDIO_DONE;
	if (!bio->error && cb->from < cb->to)
		clone_discard_regions(c, cb->from, cb->to);
	if (cb->overwrite) {
		struct hydration *h = cb->overwrite;

		cb->overwrite = NULL;
		clone_overwrite_done(h, bio->error);
	}
	if (cb->counted)
		leave_bits(c);
	cb->counted = false;
	/* What the write stands on is durable before it is answered. */
	if (!bio->error && bio->op == DM_WRITE && (bio->flags & DM_FUA) && clone_md_dirty(c->meta)) {
		bio->flags &= ~(unsigned)DM_FUA;
		end_after_commit(c, bio);
		return DM_ENDIO_INCOMPLETE;
	}
	return DM_ENDIO_DONE;
}

/* --- suspend and resume ---------------------------------------------------------------------------------- */

static void clone_presuspend(struct dm_target *ti)
{
	struct clone *c = ti->private;

	atomic_store(&c->suspended, true);
}

/*
 * The table before may have gone on writing the same metadata since ctr read it; now it does not any more.
 */
static int clone_preresume(struct dm_target *ti, GError **err)
{
	struct clone *c = ti->private;
	struct clone_md *fresh, *old;
	int error;

	if (!c->reopen)
		return 0;
	error = clone_md_open(c->meta_dev, ti->len, c->region_sectors, &fresh, err);
	if (error)
		return error;
	pthread_mutex_lock(&c->lock);
	old = c->meta;
	c->meta = fresh;
	c->reopen = false;
	pthread_mutex_unlock(&c->lock);
	clone_md_close(old);
	return 0;
}

/* A destination that cannot discard a region is not told to. */
static void check_passdown(struct clone *c)
{
	struct dm_limits limits;
	bool can;

	if (!c->want_passdown)
		return;
	dm_dev_limits(c->dest, &limits);
	can = limits.max_discard_sectors >= c->region_sectors;
	if (!can && atomic_load(&c->discard_passdown))
		dm_log_warn("clone: the destination discards %" PRIu64 " sectors at most, a region has %" PRIu32
			    ": no discard passdown", (uint64_t)limits.max_discard_sectors, c->region_sectors);
	atomic_store(&c->discard_passdown, can);
}

static void clone_resume(struct dm_target *ti)
{
	struct clone *c = ti->private;

	check_passdown(c);
	atomic_store(&c->suspended, false);
	clone_check_complete(c);
	clone_wake(c);
}

static void clone_postsuspend(struct dm_target *ti)
{
	struct clone *c = ti->private;

	dm_wq_flush(c->wq); /* a step of the background hydration that began before it could see the suspension */
	clone_wait_hydrations(c);
	dm_timer_cancel_sync(&c->rest_timer);
	dm_group_commit_settle(c->commits);
	dm_wq_flush(c->wq);
	if (clone_md_dirty(c->meta))
		commit(c);
}

/* --- status and messages ------------------------------------------------------------------------------------ */

static void status_info(struct clone *c, GString *out)
{
	bool enabled = atomic_load(&c->enabled), passdown = atomic_load(&c->discard_passdown);
	bool rw = atomic_load(&c->mode) == CLONE_RW;
	uint64_t used, total, hydrated;
	unsigned hydrating;

	if (atomic_load(&c->mode) == CLONE_FAIL) {
		g_string_append(out, "Fail");
		return;
	}
	pthread_mutex_lock(&c->lock); /* preresume may exchange the metadata */
	clone_md_usage(c->meta, &used, &total);
	hydrated = rw ? clone_md_nr_hydrated(c->meta) : clone_md_nr_committed(c->meta);
	hydrating = c->hydrating;
	pthread_mutex_unlock(&c->lock);
	g_string_append_printf(out, "8 %" PRIu64 "/%" PRIu64 " %" PRIu32 " %" PRIu64 "/%" PRIu64 " %u %d ", used, total,
			       c->region_sectors, hydrated, c->nr_regions, hydrating,
			       !enabled + !passdown);
	if (!enabled)
		g_string_append(out, "no_hydration ");
	if (!passdown)
		g_string_append(out, "no_discard_passdown ");
	g_string_append_printf(out, "4 hydration_threshold %u hydration_batch_size %u %s",
			       atomic_load(&c->threshold), atomic_load(&c->batch),
			       rw ? "rw" : "ro");
	if (atomic_load(&c->stopped))
		g_string_append_printf(out, " hydration_stopped %u", atomic_load(&c->failures));
}

static void clone_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct clone *c = ti->private;

	if (type == DM_STATUS_INFO) {
		status_info(c, out);
		return;
	}
	dm_dev_print(c->meta_dev, out);
	g_string_append_c(out, ' ');
	dm_dev_print(c->dest, out);
	g_string_append_c(out, ' ');
	dm_dev_print(c->source, out);
	g_string_append_printf(out, " %" PRIu32, c->region_sectors);
	if (*c->args)
		g_string_append_printf(out, " %s", c->args);
}

static void clone_commit(struct dm_target *ti)
{
	struct clone *c = ti->private;

	if (atomic_load(&c->suspended) || !clone_md_dirty(c->meta))
		return;
	dm_group_commit_sync(c->commits);
}

static int clone_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	struct clone *c = ti->private;
	unsigned value;
	int error;

	if (!g_ascii_strcasecmp(argv[0], "enable_hydration")) {
		atomic_store(&c->failures, 0);
		atomic_store(&c->stopped, false);
		atomic_store(&c->enabled, true);
		clone_wake(c);
		return 0;
	}
	if (!g_ascii_strcasecmp(argv[0], "disable_hydration")) {
		atomic_store(&c->enabled, false);
		return 0;
	}
	if (argc != 2 || (g_ascii_strcasecmp(argv[0], "hydration_threshold") &&
			  g_ascii_strcasecmp(argv[0], "hydration_batch_size")))
		return dm_fail(err, EINVAL, "clone: Unsupported message '%s': enable_hydration, disable_hydration, "
					    "hydration_threshold N, hydration_batch_size N are known", argv[0]);
	error = dm_read_uint(argv[1], 0, UINT_MAX, "clone", argv[0], &value, err);
	if (error)
		return error;
	atomic_store(g_ascii_strcasecmp(argv[0], "hydration_threshold") ? &c->batch : &c->threshold, value);
	clone_wake(c);
	return 0;
}

/* --- the rest ------------------------------------------------------------------------------------------------- */

static int clone_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct clone *c = ti->private;
	int error = fn(ti, c->source, 0, ti->len, data);

	return error ? error : fn(ti, c->dest, 0, ti->len, data);
}

/* One run of regions of the same kind, looked up where their data is. */
static int clone_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct clone *c = ti->private;
	uint64_t region = clone_region(c, sector), end;
	bool hydrated;

	if (!enter_bits(c))
		return dm_dev_extent(c->dest, sector, sectors, out);
	hydrated = clone_md_hydrated(c->meta, region);
	for (end = region + 1; end < c->nr_regions && end - region < 65536; end++)
		if (clone_md_hydrated(c->meta, end) != hydrated)
			break;
	leave_bits(c);
	sectors = MIN(sectors, (end << c->shift) - sector);
	return dm_dev_extent(hydrated ? c->dest : c->source, sector, sectors, out);
}

static uint64_t clone_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct clone *c = ti->private;
	uint64_t sum = dm_dev_provisioned(c->dest, sector, sectors);

	if (!atomic_load(&c->complete))
		sum += dm_dev_provisioned(c->source, sector, sectors);
	return sum;
}

const struct dm_target_type clone_target = {
	.name = "clone",
	.version = {1, 0, 0},
	.per_bio_size = sizeof(struct clone_bio),
	.ctr = clone_ctr,
	.dtr = clone_dtr,
	.map = clone_map,
	.end_io = clone_end_io,
	.presuspend = clone_presuspend,
	.postsuspend = clone_postsuspend,
	.preresume = clone_preresume,
	.resume = clone_resume,
	.status = clone_status,
	.commit = clone_commit,
	.message = clone_message,
	.iterate_devices = clone_iterate_devices,
	.extent = clone_extent,
	.provisioned = clone_provisioned,
};
