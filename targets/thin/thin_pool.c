/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * thin-pool: a data device and the metadata that says who owns which of its blocks.
 *
 *   thin-pool <metadata device> <data device> <block sectors> <low water mark, blocks>
 *             [<number of features> <feature>*]
 *
 * Features: skip_block_zeroing, ignore_discard, no_discard_passdown, read_only, error_if_no_space.
 */
#include "pool.h"

#include <inttypes.h>

#include <dmfs/claim.h>

#define MIN_BLOCK_SECTORS 128u
#define MAX_BLOCK_SECTORS 2097152u
#define MAX_METADATA_SECTORS (UINT64_C(16) << 21) /* 16 GiB */
#define DELETE_BATCH 4096 /* mappings under the locks at once: a fraction of a millisecond */

/* --- construction --- */

static int parse_features(struct dm_args *as, struct pool_features *pf, GError **err)
{
	unsigned n;
	int r = dm_read_arg_group(as, 0, 4, true, "thin-pool", "number of features", &n, err);

	while (!r && n--) {
		const char *arg = dm_shift_arg(as);

		if (!g_ascii_strcasecmp(arg, "skip_block_zeroing"))
			pf->zero = false;
		else if (!g_ascii_strcasecmp(arg, "ignore_discard"))
			pf->discard = false;
		else if (!g_ascii_strcasecmp(arg, "no_discard_passdown"))
			pf->passdown = false;
		else if (!g_ascii_strcasecmp(arg, "read_only"))
			pf->mode = PM_READ_ONLY;
		else if (!g_ascii_strcasecmp(arg, "error_if_no_space"))
			pf->error_if_no_space = true;
		else
			r = dm_fail(err, EINVAL,
				    "thin-pool: feature '%s' is none of skip_block_zeroing, ignore_discard, no_discard_passdown, "
				    "read_only, error_if_no_space", arg);
	}
	return r;
}

static int read_block_size(const char *text, uint32_t *sectors, GError **err)
{
	uint64_t n;

	if (!dm_parse_u64(text, &n) || n < MIN_BLOCK_SECTORS || n > MAX_BLOCK_SECTORS || n % MIN_BLOCK_SECTORS)
		return dm_fail(err, EINVAL, "thin-pool: block size '%s' is not a multiple of %u from %u to %u sectors", text,
			       MIN_BLOCK_SECTORS, MIN_BLOCK_SECTORS, MAX_BLOCK_SECTORS);
	*sectors = n;
	return 0;
}

static void warn_if_too_big(struct dm_dev *dev)
{
	if (dm_dev_sectors(dev) > MAX_METADATA_SECTORS)
		dm_log_warn("thin-pool: metadata device of %" PRIu64 " sectors is larger than %" PRIu64
			    " sectors: excess space will not be used", dm_dev_sectors(dev), MAX_METADATA_SECTORS);
}

static int open_devices(struct dm_target *ti, struct pool_target *pt, char **argv, GError **err)
{
	enum dm_mode mode = pt->requested.mode == PM_READ_ONLY ? DM_MODE_READ : DM_MODE_RW;
	int r = dm_get_device(ti, argv[0], mode, &pt->meta_dev, err);

	if (!r)
		r = dm_claim_device(ti, pt->meta_dev, mode, "metadata device", err);
	if (r)
		return r;
	warn_if_too_big(pt->meta_dev);
	r = dm_get_device(ti, argv[1], DM_MODE_RW, &pt->data_dev, err);
	if (!r && dm_dev_same(pt->meta_dev, pt->data_dev))
		r = dm_fail(err, EINVAL, "thin-pool: metadata and data device are both '%s'", argv[0]);
	return r;
}

static int construct(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct pool_target *pt = ti->private;
	struct dm_args as = {argc - 4, argv + 4};
	uint32_t block_sectors = 0;
	bool created;
	int r;

	if (argc < 4)
		return dm_fail(err, EINVAL, "thin-pool: %d arguments, wanted <metadata dev> <data dev> <block size> "
			       "<low water mark> [<#features> <feature>*]", argc);
	r = parse_features(&as, &pt->requested, err);
	if (!r)
		r = open_devices(ti, pt, argv, err);
	if (!r)
		r = read_block_size(argv[2], &block_sectors, err);
	if (r)
		return r;
	if (!dm_parse_u64(argv[3], &pt->low_water))
		return dm_fail(err, EINVAL, "thin-pool: low water mark '%s' is not a number of blocks", argv[3]);
	r = pool_get(dm_target_mapped(ti), pt->meta_dev, pt->data_dev, block_sectors, pt->requested.mode == PM_READ_ONLY,
		     &pt->pool, &created, err);
	if (r)
		return r;
	if (created)
		atomic_store(&pt->pool->discard, pt->requested.discard);
	if (atomic_load(&pt->pool->discard) != pt->requested.discard)
		return dm_fail(err, EINVAL, "thin-pool: discard support cannot be changed once the pool is there");
	pt->adjusted = pt->requested;
	return 0;
}

static void pool_dtr(struct dm_target *ti)
{
	struct pool_target *pt = ti->private;

	if (pt->pool) {
		pool_unbind(pt->pool, pt);
		pool_put(pt->pool);
	}
	dm_put_device(ti, pt->data_dev);
	dm_put_device(ti, pt->meta_dev);
	g_free(pt);
}

static int pool_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct pool_target *pt = g_new0(struct pool_target, 1);
	int r;

	pt->ti = ti;
	pt->requested = (struct pool_features){PM_WRITE, .zero = true, .discard = true, .passdown = true};
	ti->private = pt;
	r = construct(ti, argc, argv, err);
	if (r) {
		pool_dtr(ti);
		return r;
	}
	if (pt->requested.discard && pt->requested.passdown) {
		ti->num_discard_bios = 1;
		ti->discards_supported = true;
	}
	ti->provisions = true;
	return 0;
}

/* --- bios of the pool device itself --- */

static enum dm_mapio pool_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct pool_target *pt = ti->private;

	bio->dev = pt->data_dev;
	bio->sector = bio->op == DM_FLUSH ? 0 : dm_target_offset(ti, bio->sector);
	return DM_MAPIO_REMAPPED;
}

/* --- suspend and resume --- */

static void pool_postsuspend(struct dm_target *ti)
{
	struct pool_target *pt = ti->private;

	pool_queue_flush(pt->pool);
	pool_commit(pt->pool, NULL);
}

/* Passing discards down needs a data device that takes them, a block at a time at least. */
static void adjust_passdown(struct pool_target *pt)
{
	struct dm_limits limits;
	const char *reason = NULL;

	dm_dev_limits(pt->data_dev, &limits);
	if (!pt->adjusted.passdown || !pt->adjusted.discard)
		return;
	if (!limits.max_discard_sectors)
		reason = "discard unsupported";
	else if (limits.max_discard_sectors < pt->pool->block_sectors)
		reason = "max discard sectors smaller than a block";
	if (!reason)
		return;
	dm_log_warn("thin-pool: data device: %s: disabling discard passdown", reason);
	pt->adjusted.passdown = false;
}

/* One of the two devices, and what the metadata knows of its size. */
struct growing {
	const char *what, *too_small;
	uint64_t had, blocks;
	int (*resize)(struct thin_md *meta, uint64_t blocks);
};

static int grow(struct thin_pool *pool, const struct growing *g, bool *grown, GError **err)
{
	g_autofree char *operation = g_strdup_printf("resize the %s device", g->what);
	struct thin_md_stats st;
	int r;

	if (g->blocks < g->had)
		return dm_fail(err, EINVAL, "thin-pool: %s (%" PRIu64 " blocks) too small: expected %" PRIu64, g->too_small,
			       g->blocks, g->had);
	if (g->blocks == g->had)
		return 0;
	thin_md_get_stats(pool->meta, &st);
	if (st.needs_check) {
		dm_log_err("thin-pool: unable to grow the %s device until repaired.", g->what);
		return 0;
	}
	if (g->had)
		dm_log_info("thin-pool: growing the %s device from %" PRIu64 " to %" PRIu64 " blocks", g->what, g->had, g->blocks);
	if (g->resize == thin_md_resize_meta && pool_mode(pool) == PM_OUT_OF_METADATA_SPACE)
		pool_set_mode(pool, PM_WRITE);
	r = g->resize(pool->meta, g->blocks);
	*grown |= !r;
	if (!r)
		return 0;
	pool_metadata_failed(pool, operation, r);
	return dm_fail(err, -r, "thin-pool: the %s device could not be grown to %" PRIu64 " blocks: %s", g->what, g->blocks,
		       g_strerror(-r));
}

static int pool_preresume(struct dm_target *ti, GError **err)
{
	struct pool_target *pt = ti->private;
	g_autoptr(GError) ignored = NULL;
	struct thin_md_stats st;
	bool grown = false;
	int r;

	adjust_passdown(pt);
	pool_bind(pt->pool, pt);
	thin_md_get_stats(pt->pool->meta, &st);
	r = grow(pt->pool,
		 &(struct growing){"data", "pool target", st.data_total, ti->len / pt->pool->block_sectors,
				   thin_md_resize_data}, &grown, &ignored);
	if (!r)
		r = grow(pt->pool,
			 &(struct growing){"metadata", "metadata device", st.meta_total, dm_md_dev_blocks(pt->meta_dev),
					   thin_md_resize_meta}, &grown, &ignored);
	if (!r && grown)
		pool_commit(pt->pool, NULL);
	if (!r || pool_mode(pt->pool) == PM_FAIL) /* a failed pool must resume, to fail what waits */
		return 0;
	g_propagate_error(err, g_steal_pointer(&ignored));
	return r;
}

/* As the kernel for a status, it writes though nothing has changed: so a broken metadata device is found. */
static void pool_target_commit(struct dm_target *ti)
{
	struct pool_target *pt = ti->private;

	if (dm_target_suspending(ti) || pool_mode(pt->pool) >= PM_OUT_OF_METADATA_SPACE)
		return;
	thin_md_touch(pt->pool->meta);
	pool_commit(pt->pool, NULL);
}

/* --- messages --- */

static int read_id(const char *text, uint64_t *id, GError **err)
{
	if (dm_parse_u64(text, id) && *id <= THIN_MAX_ID)
		return 0;
	return dm_fail(err, EINVAL, "thin-pool: device id '%s' is not a number up to %u", text, THIN_MAX_ID);
}

static int failed(struct thin_pool *pool, int r, const char *what, uint64_t id, GError **err)
{
	if (!r)
		return 0;
	if (thin_md_is_torn(pool->meta))
		pool_metadata_failed(pool, what, r);
	return dm_fail(err, -r, "thin-pool: %s %" PRIu64 ": %s", what, id,
		       r == -EEXIST	? "that device exists already"
		       : r == -ENODATA ? "there is no such device"
		       : r == -EBUSY	? "it is in use"
				       : g_strerror(-r));
}

static int message_create_thin(struct thin_pool *pool, char **argv, GError **err)
{
	uint64_t id;
	int r = read_id(argv[1], &id, err);

	return r ? r : failed(pool, thin_md_create(pool->meta, id), "create_thin", id, err);
}

static int message_create_snap(struct thin_pool *pool, char **argv, GError **err)
{
	uint64_t id, origin;
	int r = read_id(argv[1], &id, err);

	if (!r)
		r = read_id(argv[2], &origin, err);
	return r ? r : failed(pool, thin_md_snap(pool->meta, id, origin), "create_snap", id, err);
}

static int message_delete(struct thin_pool *pool, char **argv, GError **err)
{
	bool done = false;
	uint64_t id;
	int r = read_id(argv[1], &id, err);

	if (r)
		return r;
	while (!r && !done) { /* others go on between the batches */
		r = thin_md_delete(pool->meta, id, DELETE_BATCH, &done);
		thin_md_yield(pool->meta);
	}
	return failed(pool, r, "delete", id, err);
}

static int message_set_transaction_id(struct thin_pool *pool, char **argv, GError **err)
{
	uint64_t from, to;
	int r;

	if (!dm_parse_u64(argv[1], &from) || !dm_parse_u64(argv[2], &to))
		return dm_fail(err, EINVAL, "thin-pool: set_transaction_id: '%s' and '%s' must be numbers", argv[1], argv[2]);
	r = thin_md_set_transaction(pool->meta, from, to);
	if (r == -EINVAL)
		return dm_fail(err, EINVAL, "thin-pool: set_transaction_id: the current id is not %" PRIu64, from);
	return failed(pool, r, "set_transaction_id", to, err);
}

static int message_reserve(struct thin_pool *pool, char **argv, GError **err)
{
	int r = thin_md_hold(pool->meta);

	if (r == -EBUSY)
		return dm_fail(err, EBUSY, "thin-pool: there is a metadata snapshot already: release it before taking another");
	return failed(pool, r, "reserve_metadata_snap", 0, err);
}

static int message_release(struct thin_pool *pool, char **argv, GError **err)
{
	int r = thin_md_release(pool->meta);

	if (r == -EINVAL)
		return dm_fail(err, EINVAL, "thin-pool: there is no metadata snapshot to release");
	return failed(pool, r, "release_metadata_snap", 0, err);
}

static const struct {
	const char *name;
	int argc;
	int (*fn)(struct thin_pool *, char **argv, GError **);
} messages[] = {
	{"create_thin", 2, message_create_thin},
	{"create_snap", 3, message_create_snap},
	{"delete", 2, message_delete},
	{"set_transaction_id", 3, message_set_transaction_id},
	{"reserve_metadata_snap", 1, message_reserve},
	{"release_metadata_snap", 1, message_release},
};

static int pool_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	struct pool_target *pt = ti->private;
	struct thin_pool *pool = pt->pool;

	if (pool_mode(pool) >= PM_OUT_OF_METADATA_SPACE)
		return dm_fail(err, EOPNOTSUPP, "thin-pool: no messages are served in read-only or fail mode");
	for (unsigned i = 0; i < G_N_ELEMENTS(messages); i++) {
		int r;

		if (g_ascii_strcasecmp(argv[0], messages[i].name))
			continue;
		if (argc != messages[i].argc)
			return dm_fail(err, EINVAL, "thin-pool: message %s has %d arguments instead of %d", messages[i].name,
				       argc - 1, messages[i].argc - 1);
		r = messages[i].fn(pool, argv, err);
		if (!r)
			pool_commit(pool, NULL);
		pool_check_marks(pool);
		return r;
	}
	return dm_fail(err, EINVAL, "thin-pool: message '%s' is not known", argv[0]);
}

/* --- what it says --- */

static void print_features(const struct pool_features *pf, GString *out)
{
	unsigned n = !pf->zero + !pf->discard + !pf->passdown + (pf->mode == PM_READ_ONLY) + pf->error_if_no_space;

	g_string_append_printf(out, " %u", n);
	if (!pf->zero)
		g_string_append(out, " skip_block_zeroing");
	if (!pf->discard)
		g_string_append(out, " ignore_discard");
	if (!pf->passdown)
		g_string_append(out, " no_discard_passdown");
	if (pf->mode == PM_READ_ONLY)
		g_string_append(out, " read_only");
	if (pf->error_if_no_space)
		g_string_append(out, " error_if_no_space");
}

static void print_state(struct pool_target *pt, GString *out)
{
	struct thin_pool *pool = pt->pool;
	enum pool_mode mode = pool_mode(pool);
	struct thin_md_stats st;

	thin_md_get_stats(pool->meta, &st);
	g_string_append_printf(out, "%" PRIu64 " %" PRIu64 "/%" PRIu64 " %" PRIu64 "/%" PRIu64 " ", st.transaction,
			       st.meta_used, st.meta_total, st.data_used, st.data_total);
	if (st.held_root)
		g_string_append_printf(out, "%" PRIu64, st.held_root);
	else
		g_string_append_c(out, '-');
	g_string_append(out, mode == PM_OUT_OF_DATA_SPACE ? " out_of_data_space" : mode == PM_WRITE ? " rw" : " ro");
	g_string_append(out, !atomic_load(&pool->discard)    ? " ignore_discard"
			     : atomic_load(&pool->passdown) ? " discard_passdown"
							    : " no_discard_passdown");
	g_string_append(out, atomic_load(&pool->error_if_no_space) ? " error_if_no_space" : " queue_if_no_space");
	g_string_append(out, st.needs_check ? " needs_check" : " -");
	g_string_append_printf(out, " %" PRIu64, pool_meta_threshold(pt->meta_dev));
}

static void pool_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct pool_target *pt = ti->private;

	if (type == DM_STATUS_TABLE) {
		dm_dev_print(pt->meta_dev, out);
		g_string_append_c(out, ' ');
		dm_dev_print(pt->data_dev, out);
		g_string_append_printf(out, " %u %" PRIu64, pt->pool->block_sectors, pt->low_water);
		print_features(&pt->requested, out);
	} else if (pool_mode(pt->pool) == PM_FAIL) {
		g_string_append(out, "Fail");
	} else {
		print_state(pt, out);
	}
}

static int pool_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct pool_target *pt = ti->private;

	return fn(ti, pt->data_dev, 0, ti->len, data);
}

static int pool_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct pool_target *pt = ti->private;

	return dm_dev_extent(pt->data_dev, sector, sectors, out);
}

static uint64_t pool_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct pool_target *pt = ti->private;

	return dm_dev_provisioned(pt->data_dev, sector, sectors);
}

static void pool_io_hints(struct dm_target *ti, struct dm_limits *limits)
{
	struct pool_target *pt = ti->private;
	unsigned block = pt->pool->block_sectors * DM_SECTOR_SIZE;

	if (!limits->io_opt || limits->io_opt % block)
		limits->io_min = limits->io_opt = block;
	if (!pt->requested.discard) {
		limits->discard_granularity = 0;
		limits->max_discard_sectors = 0;
	}
}

const struct dm_target_type thin_pool_target = {
	.name = "thin-pool",
	.version = {1, 22, 0},
	.features = DM_TARGET_SINGLETON | DM_TARGET_ALWAYS_WRITEABLE | DM_TARGET_IMMUTABLE,
	.ctr = pool_ctr,
	.dtr = pool_dtr,
	.map = pool_map,
	.presuspend = pool_suspend,
	.presuspend_undo = pool_resume,
	.postsuspend = pool_postsuspend,
	.preresume = pool_preresume,
	.resume = pool_resume,
	.end_waiting = pool_end_waiting,
	.status = pool_status,
	.commit = pool_target_commit,
	.message = pool_message,
	.iterate_devices = pool_iterate_devices,
	.io_hints = pool_io_hints,
	.extent = pool_extent,
	.provisioned = pool_provisioned,
};
