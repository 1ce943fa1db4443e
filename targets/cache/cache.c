/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * cache: a fast device before a slow one (cache.rst, cache-policies.rst).
 *
 *   <metadata dev> <cache dev> <origin dev> <block size>
 *     <#feature args> [writeback | writethrough | passthrough] [metadata2] [no_discard_passdown]
 *     <policy> <#policy args> [<key> <value>]*
 *
 * What the parts of it are, and in which order things get to the disk: cache.h.  Here are the table line, the modes,
 * the commits, suspend and resume.
 */
#include <inttypes.h>

#include "cache.h"

#include <dmfs/block_manager.h>
#include <dmfs/claim.h>
#include <dmfs/rounding.h>

#define MIN_BLOCK 64u
#define MAX_BLOCK (1u << 21)
#define MAX_FEATURES 3u
#define MAX_POLICY_ARGS 1024u
#define MAX_CBLOCKS (UINT32_MAX - 1)
#define DEFAULT_THRESHOLD 2048u

const char *const cache_io_modes[] = {
    [CACHE_WRITEBACK_MODE] = "writeback", [CACHE_WRITETHROUGH] = "writethrough", [CACHE_PASSTHROUGH] = "passthrough"};

/* --- modes and commits ---------------------------------------------------------------------- */

void cache_set_mode(struct cache *c, enum cache_mode mode)
{
	static const char *const names[] = {"write", "read-only", "fail"};
	enum cache_mode old = atomic_load(&c->mode);

	/* The way back is closed. */
	while (old < mode && !atomic_compare_exchange_weak(&c->mode, &old, mode))
		;
	if (old >= mode)
		return;
	dm_log_err("cache: switching cache to %s mode", names[mode]);
	dm_target_event(c->ti, NULL, NULL);
}

int cache_meta_result(struct cache *c, int r)
{
	if (!r)
		return 0;
	dm_log_err("cache: a metadata operation failed: %s; aborting current metadata transaction", g_strerror(-r));
	atomic_store(&c->lost, true);
	cache_set_mode(c, cache_meta_abort(c->meta) ? CACHE_FAIL : CACHE_RO);
	return r;
}

void cache_commit_soon(struct cache *c)
{
	dm_group_commit_soon(c->commits, CACHE_COMMIT_NS);
}

struct flushes {
	int fast, origin;
};

static struct flushes flush_devices(struct cache *c)
{
	const struct dm_region where[] = {{c->fast, 0, 0}, {c->origin, 0, 0}};
	int errors[2] = {0};

	dm_io_sync(DM_FLUSH, 0, 2, where, NULL, 0, errors);
	if (errors[1])
		atomic_fetch_add(&c->origin_failures, 1);
	return (struct flushes){errors[0], errors[1]};
}

static void save_counters(struct cache *c)
{
	struct cache_meta_counters n = c->base;

	n.read_hits += (uint32_t)cache_sum(c, READ_HITS);
	n.read_misses += (uint32_t)cache_sum(c, READ_MISSES);
	n.write_hits += (uint32_t)cache_sum(c, WRITE_HITS);
	n.write_misses += (uint32_t)cache_sum(c, WRITE_MISSES);
	cache_meta_set_counters(c->meta, &n);
}

/*
 * meta_lock is held: nothing changes the metadata after the flush, and before it is written.  What the metadata says of
 * the origin is true without a flush of it: what was written back has been flushed since.
 */
static int commit(struct cache *c, bool clean)
{
	struct flushes r = flush_devices(c);
	int error;

	if (!cache_is_rw(c))
		return atomic_load(&c->lost) ? -EIO : r.fast ? r.fast : r.origin;
	if (!clean && !cache_meta_changed(c->meta))
		return r.fast ? r.fast : r.origin;
	if (r.fast) /* what the metadata is to speak of may be gone */
		return cache_meta_result(c, r.fast);
	if (r.origin && clean)
		return r.origin;
	save_counters(c);
	error = cache_meta_result(c, cache_meta_commit(c->meta, clean));
	return error ? error : r.origin;
}

static int commit_all(void *context)
{
	struct cache *c = context;
	int r;

	pthread_mutex_lock(&c->meta_lock);
	r = commit(c, false);
	pthread_mutex_unlock(&c->meta_lock);
	return r;
}

static int flush_origin(void *context)
{
	struct cache *c = context;
	int r = dm_flush_sync(c->origin);

	if (r)
		atomic_fetch_add(&c->origin_failures, 1);
	return r;
}

/* --- constructor ------------------------------------------------------------------------------- */

static int parse_features(struct cache *c, struct dm_args *as, GError **err)
{
	unsigned n, modes = 0;
	int error = dm_read_arg_group(as, 0, MAX_FEATURES, false, "cache", "cache feature arguments", &n, err);

	while (!error && n--) {
		const char *word = dm_shift_arg(as);
		bool known = false;

		for (unsigned i = 0; i < G_N_ELEMENTS(cache_io_modes); i++)
			if (!g_ascii_strcasecmp(word, cache_io_modes[i])) {
				c->io_mode = i;
				known = true;
				modes++;
			}
		if (known)
			continue;
		if (!g_ascii_strcasecmp(word, "metadata2"))
			c->meta_version = 2;
		else if (!g_ascii_strcasecmp(word, "no_discard_passdown"))
			c->want_passdown = false;
		else
			error = dm_fail(err, EINVAL,
					"cache: Unrecognised cache feature requested: '%s'; writeback, "
					"writethrough, passthrough, metadata2 and no_discard_passdown are known",
					word);
	}
	if (!error && modes > 1)
		error =
		    dm_fail(err, EINVAL, "cache: Duplicate cache io_mode features requested: %u, at most one", modes);
	return error;
}

int cache_set_value(struct cache *c, void *policy, const char *key, const char *value)
{
	uint64_t n;
	int r;

	if (!g_ascii_strcasecmp(key, "migration_threshold")) {
		if (!dm_parse_u64(value, &n))
			return -EINVAL;
		atomic_store(&c->migration_threshold, n);
		return 0;
	}
	if (!c->type->set)
		return -EINVAL;
	pthread_mutex_lock(&c->policy_lock);
	r = c->type->set(policy, key, value);
	pthread_mutex_unlock(&c->policy_lock);
	return r;
}

static int parse_policy(struct cache *c, struct dm_args *as, GError **err)
{
	const char *name = dm_shift_arg(as);
	unsigned n;
	int error;

	if (!name)
		return dm_fail(err, EINVAL, "cache: Insufficient args: a policy is missing");
	error = dm_read_arg_group(as, 0, MAX_POLICY_ARGS, false, "cache", "policy arguments", &n, err);
	if (error)
		return error;
	c->type = cache_policy_find(name);
	if (!c->type)
		return dm_fail(err, EINVAL,
			       "cache: Error creating cache's policy: '%s' is unknown; smq, default, mq and "
			       "cleaner are known",
			       name);
	if (n % 2)
		return dm_fail(err, EINVAL,
			       "cache: Error setting cache policy's config values: their number must be even, "
			       "not %u",
			       n);
	c->policy_args = g_new0(char *, n + 1);
	for (unsigned i = 0; i < n; i++)
		c->policy_args[i] = g_strdup(dm_shift_arg(as));
	return 0;
}

static int open_one(struct cache *c, const char *name, const char *what, struct dm_dev **dev, GError **err)
{
	g_autoptr(GError) why = NULL;

	if (!dm_get_device(c->ti, name, DM_MODE_RW, dev, &why))
		return 0;
	return dm_fail(err, why->code == ELOOP ? ELOOP : ENODEV, "cache: Error opening %s device '%s': %s", what, name,
		       why->message);
}

static int open_devices(struct cache *c, char **argv, GError **err)
{
	int error = open_one(c, argv[0], "metadata", &c->meta_dev, err);

	if (!error)
		error = dm_claim_device(c->ti, c->meta_dev, DM_MODE_RW, "metadata device", err);
	if (!error)
		error = open_one(c, argv[1], "cache", &c->fast, err);
	if (!error)
		error = dm_claim_device(c->ti, c->fast, DM_MODE_RW, "cache device", err);
	if (!error)
		error = open_one(c, argv[2], "origin", &c->origin, err);
	if (!error && (dm_dev_same(c->meta_dev, c->origin) || dm_dev_same(c->meta_dev, c->fast) ||
		       dm_dev_same(c->fast, c->origin)))
		error = dm_fail(err, EINVAL, "cache: the metadata, cache and origin devices must be three");
	if (!error && dm_dev_sectors(c->meta_dev) < DM_META_BLOCK_SECTORS)
		error = dm_fail(err, ENOSPC, "cache: the metadata device is too small: %" PRIu64 " sectors",
				dm_dev_sectors(c->meta_dev));
	if (!error && dm_dev_sectors(c->origin) < c->ti->len)
		error = dm_fail(err, EINVAL,
				"cache: Device size larger than cached device: %" PRIu64 " sectors, it has %" PRIu64,
				c->ti->len, dm_dev_sectors(c->origin));
	return error;
}

static int parse_block(struct cache *c, const char *word, GError **err)
{
	uint64_t fast = dm_dev_sectors(c->fast);
	unsigned n;

	if (!dm_parse_uint(word, &n) || n < MIN_BLOCK || n > MAX_BLOCK || n % MIN_BLOCK)
		return dm_fail(err, EINVAL, "cache: Invalid data block size '%s': a multiple of %u sectors, up to %u",
			       word, MIN_BLOCK, MAX_BLOCK);
	if (n > fast)
		return dm_fail(err, EINVAL,
			       "cache: Data block size is larger than the cache device: %u sectors, it has %" PRIu64, n,
			       fast);
	if (fast / n > MAX_CBLOCKS)
		return dm_fail(err, EINVAL, "cache: %" PRIu64 " blocks of the cache are more than %u; make them larger",
			       fast / n, MAX_CBLOCKS);
	if (c->ti->len / n > CACHE_MD_MAX_OBLOCK)
		return dm_fail(err, EINVAL, "cache: %" PRIu64 " blocks of the origin are too many; make them larger",
			       c->ti->len / n);
	c->block_sectors = n;
	c->cblocks = (uint32_t)(fast / n);
	c->oblocks = c->ti->len / n;
	return 0;
}

/* What there is of a cache in memory, but for discards. */
struct state {
	struct cache_meta *meta;
	struct resident *resident;
	void *policy;
};

static void free_state(struct cache *c, struct state *s)
{
	cache_meta_close(s->meta);
	resident_free(s->resident);
	if (s->policy)
		c->type->destroy(s->policy);
}

/* Of an empty cache.  After an error it is to be freed as well. */
static int make_state(struct cache *c, struct state *s, GError **err)
{
	s->resident = resident_new(c->cblocks);
	s->policy = c->type->create(c->cblocks, c->oblocks, c->block_sectors);
	if (!s->resident || !s->policy)
		return dm_fail(err, ENOMEM, "cache: no memory for %u blocks", c->cblocks);
	for (char **word = c->policy_args; word[0]; word += 2)
		if (cache_set_value(c, s->policy, word[0], word[1]))
			return dm_fail(err, EINVAL, "cache: Error setting cache policy's config values: '%s %s'",
				       word[0], word[1]);
	return cache_meta_open(c->meta_dev, c->block_sectors, c->meta_version, &s->meta, err);
}

/* Takes the place of what there was, which goes. */
static void use_state(struct cache *c, struct state *s)
{
	struct state old = {c->meta, c->resident, c->policy};

	dm_status_pause(c->ti, NULL);
	c->meta = s->meta;
	c->resident = s->resident;
	c->policy = s->policy;
	dm_status_go_on(c->ti, NULL);
	free_state(c, &old);
}

static struct cache *cache_new(struct dm_target *ti)
{
	struct cache *c = g_new0(struct cache, 1);

	c->ti = ti;
	c->meta_version = 1;
	c->want_passdown = true;
	atomic_init(&c->suspended, true);
	atomic_init(&c->migration_threshold, DEFAULT_THRESHOLD);
	pthread_mutex_init(&c->meta_lock, NULL);
	pthread_mutex_init(&c->policy_lock, NULL);
	pthread_mutex_init(&c->wait_lock, NULL);
	pthread_mutex_init(&c->hold_lock, NULL);
	pthread_cond_init(&c->none_under_way, NULL);
	c->locks = dm_block_lock_new(1);
	c->wq = dm_wq_new("cache", 1);
	c->flush_wq = dm_wq_new("cache flush", 1);
	c->kcopyd = dm_kcopyd_client_new(&c->throttle, 0);
	c->commits = dm_group_commit_new(c->wq, commit_all, c);
	c->origin_flushes = dm_group_commit_new(c->flush_wq, flush_origin, c);
	cache_migrate_init(c);
	return c;
}

static void cache_dtr(struct dm_target *ti)
{
	struct cache *c = ti->private;

	dm_kcopyd_client_free(c->kcopyd);
	dm_timer_cancel_sync(&c->timer);
	dm_group_commit_free(c->origin_flushes);
	dm_group_commit_free(c->commits);
	dm_wq_free(c->flush_wq);
	dm_wq_free(c->wq);
	free_state(c, &(struct state){c->meta, c->resident, c->policy});
	dm_block_lock_free(c->locks);
	if (c->origin)
		dm_put_device(ti, c->origin);
	if (c->fast)
		dm_put_device(ti, c->fast);
	if (c->meta_dev)
		dm_put_device(ti, c->meta_dev);
	pthread_mutex_destroy(&c->meta_lock);
	pthread_mutex_destroy(&c->policy_lock);
	pthread_mutex_destroy(&c->wait_lock);
	pthread_mutex_destroy(&c->hold_lock);
	pthread_cond_destroy(&c->none_under_way);
	g_strfreev(c->policy_args);
	g_free((void *)c->discards);
	g_free(c->args);
	g_free(c);
}

static int cache_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct dm_args as = {argc - 4, argv + 4};
	struct state state = {0};
	struct cache *c;
	int error;

	if (argc < 4)
		return dm_fail(err, EINVAL,
			       "cache: Insufficient args: %d, <metadata dev> <cache dev> <origin dev> <block size> "
			       "<#feature args> <policy> <#policy args> are the least",
			       argc);
	c = cache_new(ti);
	ti->private = c;
	c->args = g_strjoinv(" ", argv + 4);
	error = open_devices(c, argv, err);
	if (!error)
		error = parse_block(c, argv[3], err);
	if (!error)
		error = parse_features(c, &as, err);
	if (!error)
		error = parse_policy(c, &as, err);
	if (!error && cache_discards_init(c))
		error = dm_fail(err, ENOMEM, "cache: no memory for discards");
	if (!error)
		error = make_state(c, &state, err);
	if (error) {
		free_state(c, &state);
		cache_dtr(ti);
		return error;
	}
	use_state(c, &state);
	ti->max_io_sectors = c->block_sectors;
	ti->num_flush_bios = 1;
	ti->num_discard_bios = 1;
	ti->discards_supported = true;
	return 0;
}

/* --- resume ------------------------------------------------------------------------------------------ */

struct loading {
	struct cache *c;
	struct state *state;
	GArray *gone; /* cache blocks to be dropped: what they hold is beyond the origin's end, and clean */
	GError **err;
};

static int load_block(void *context, uint32_t cblock, uint64_t oblock, bool dirty, const void *hint)
{
	struct loading *l = context;
	struct cache *c = l->c;

	if (cblock >= c->cblocks || oblock >= c->oblocks) {
		if (dirty)
			return dm_fail(l->err, EINVAL,
				       "cache: the %s is too short: cache block %u is dirty, with block %" PRIu64
				       " of the origin; they have %u and %" PRIu64 " blocks",
				       cblock >= c->cblocks ? "cache device" : "origin", cblock, oblock, c->cblocks,
				       c->oblocks);
		if (cblock < c->cblocks)
			g_array_append_val(l->gone, cblock);
		return 0;
	}
	if (!resident_load(l->state->resident, oblock, cblock))
		return dm_fail(l->err, EILSEQ, "cache: the metadata has block %" PRIu64 " of the origin twice", oblock);
	resident_set_dirty(l->state->resident, cblock, dirty);
	c->type->load(l->state->policy, cblock, dirty, hint);
	return 0;
}

static void load_discard(void *context, uint64_t sector, uint64_t sectors)
{
	cache_set_discarded(context, sector, sectors);
}

static struct cache_meta_policy policy_of(const struct cache *c)
{
	struct cache_meta_policy p = {.hint_bytes = c->type->hint_bytes};

	g_strlcpy(p.name, c->type->name, sizeof p.name);
	for (unsigned i = 0; i < 3; i++)
		p.version[i] = c->type->version[i];
	return p;
}

/* New blocks, and those that may go. */
static int fit_metadata(struct cache *c, struct cache_meta *meta, GArray *gone)
{
	int r = 0;

	if (!gone->len && cache_meta_blocks(meta) == c->cblocks)
		return 0;
	if (!cache_is_rw(c))
		return cache_meta_blocks(meta) < c->cblocks ? -EROFS : 0;
	for (guint i = 0; i < gone->len && !r; i++)
		r = cache_meta_remove(meta, g_array_index(gone, uint32_t, i));
	if (!r && cache_meta_blocks(meta) != c->cblocks)
		r = cache_meta_resize(meta, c->cblocks);
	return r;
}

static int load_state(struct cache *c, struct state *s, GError **err)
{
	g_autoptr(GArray) gone = g_array_new(FALSE, FALSE, 4);
	struct loading loading = {c, s, gone, err};
	struct cache_meta_policy policy = policy_of(c);
	uint32_t dirty;
	int r;

	if (cache_meta_needs_check(s->meta)) {
		dm_log_err("cache: unable to switch cache to write mode until repaired");
		cache_set_mode(c, CACHE_RO);
	}
	r = cache_meta_load(s->meta, &policy, load_block, &loading);
	dirty = resident_nr_dirty(s->resident);
	if (!r && c->io_mode == CACHE_PASSTHROUGH && dirty)
		return dm_fail(err, EBUSY,
			       "cache: cannot enter passthrough mode unless all blocks are clean: %u of %u are dirty",
			       dirty, resident_count(s->resident));
	if (!r)
		r = cache_meta_load_discards(s->meta, load_discard, c);
	if (!r)
		r = fit_metadata(c, s->meta, gone);
	if (r)
		return err && *err ? r : dm_fail(err, -r, "cache: could not load cache mappings: %s", g_strerror(-r));
	if (c->type->loaded)
		c->type->loaded(s->policy);
	return 0;
}

/* The table before may have gone on writing the same metadata since ctr read it; now it does not any more. */
static int load_anew(struct cache *c, GError **err)
{
	struct state s = {0};
	int r = make_state(c, &s, err);

	if (!r)
		r = load_state(c, &s, err);
	if (r) {
		free_state(c, &s);
		return r;
	}
	cache_meta_counters(s.meta, &c->base);
	use_state(c, &s);
	return 0;
}

static int cache_preresume(struct dm_target *ti, GError **err)
{
	struct cache *c = ti->private;
	uint64_t fast = dm_dev_sectors(c->fast);
	int r = 0;

	if (fast / c->block_sectors < c->cblocks)
		return dm_fail(err, EINVAL,
			       "cache: the cache device has become too short: %" PRIu64 " sectors, %u blocks of %u "
			       "are used; load the table again",
			       fast, c->cblocks, c->block_sectors);
	if (!c->loaded)
		r = load_anew(c, err);
	if (r)
		return r;
	/* From now on what is clean may become dirty. */
	pthread_mutex_lock(&c->meta_lock);
	if (cache_is_rw(c) && (cache_meta_clean(c->meta) || cache_meta_changed(c->meta))) {
		r = cache_meta_commit(c->meta, false);
		if (r && c->loaded) { /* what is in memory is still right */
			cache_meta_result(c, r);
			r = 0;
		}
	}
	pthread_mutex_unlock(&c->meta_lock);
	if (r)
		return dm_fail(err, -r, "cache: the metadata cannot be written: %s", g_strerror(-r));
	c->loaded = true;
	return 0;
}

/* An origin that cannot discard a block is not told to. */
static void check_passdown(struct cache *c)
{
	struct dm_limits limits;
	bool can;

	if (!c->want_passdown)
		return;
	dm_dev_limits(c->origin, &limits);
	can = limits.max_discard_sectors >= c->block_sectors;
	if (!can)
		dm_log_warn("cache: the origin discards %" PRIu64
			    " sectors at most, a block has %u: disabling discard passdown",
			    (uint64_t)limits.max_discard_sectors, c->block_sectors);
	atomic_store(&c->passdown, can);
}

static void cache_resume(struct dm_target *ti)
{
	struct cache *c = ti->private;

	check_passdown(c);
	atomic_store(&c->suspended, false);
	cache_note_activity(c);
	cache_wake(c);
}

/* --- suspend ------------------------------------------------------------------------------------------ */

static void cache_presuspend(struct dm_target *ti)
{
	struct cache *c = ti->private;

	atomic_store(&c->suspended, true);
}

static void cache_presuspend_undo(struct dm_target *ti)
{
	struct cache *c = ti->private;

	atomic_store(&c->suspended, false);
	cache_note_activity(c);
	cache_wake(c);
}

static bool give_dirty(void *context, uint32_t cblock)
{
	struct cache *c = context;

	return resident_dirty(c->resident, cblock);
}

static bool give_discarded(void *context, uint32_t dblock)
{
	return cache_discard_bit(context, dblock);
}

static void give_hint(void *context, uint32_t cblock, void *out)
{
	struct cache *c = context;

	c->type->hint(c->policy, cblock, out);
}

/* meta_lock is held. */
static int write_all(struct cache *c)
{
	struct cache_meta_policy policy = policy_of(c);
	int r = cache_meta_write_dirty(c->meta, give_dirty, c);

	if (!r)
		r = cache_meta_write_discards(c->meta, (uint64_t)c->dblock_blocks * c->block_sectors, c->dblocks,
					      give_discarded, c);
	if (!r)
		r = cache_meta_write_hints(c->meta, &policy, give_hint, c);
	return r ? cache_meta_result(c, r) : commit(c, true);
}

static void cache_postsuspend(struct dm_target *ti)
{
	struct cache *c = ti->private;

	dm_timer_cancel_sync(&c->timer);
	dm_wq_flush(c->wq); /* a tick or a look for work that began before it could see the suspension */
	cache_wait_migrations(c, 0);
	dm_group_commit_settle(c->origin_flushes);
	dm_group_commit_settle(c->commits);
	dm_wq_flush(c->wq);
	dm_timer_cancel_sync(&c->timer);
	atomic_store(&c->ticking, false);
	if (!c->loaded || !cache_is_rw(c))
		return;
	pthread_mutex_lock(&c->meta_lock);
	if (write_all(c))
		dm_log_err("cache: no clean end: every cached block will count as dirty");
	pthread_mutex_unlock(&c->meta_lock);
}

/* --- the rest --------------------------------------------------------------------------------------------------- */

static int cache_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct cache *c = ti->private;
	int error = fn(ti, c->fast, 0, (uint64_t)c->cblocks * c->block_sectors, data);

	return error ? error : fn(ti, c->origin, 0, ti->len, data);
}

static void cache_io_hints(struct dm_target *ti, struct dm_limits *limits)
{
	struct cache *c = ti->private;
	uint64_t block = (uint64_t)c->block_sectors << DM_SECTOR_SHIFT;

	/* Unless what the devices wish for fits it already. */
	if (block <= UINT32_MAX && (limits->io_opt < block || limits->io_opt % block))
		limits->io_min = limits->io_opt = (unsigned)block;
}

/* What is in the cache is data; else it is as in the origin. */
static int cache_extent(struct dm_target *ti, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	struct cache *c = ti->private;
	uint64_t oblock = sector / c->block_sectors, first = oblock, end;
	uint32_t cblock;
	bool cached = oblock < c->oblocks && resident_find(c->resident, oblock, &cblock);

	do
		end = ++oblock * c->block_sectors;
	while (end < sector + sectors && oblock - first < 65536 &&
	       (oblock < c->oblocks && resident_find(c->resident, oblock, &cblock)) == cached);
	sectors = MIN(sectors, end - sector);
	if (!cached)
		return dm_dev_extent(c->origin, sector, sectors, out);
	*out = (struct dm_extent){.data = true, .sectors = sectors};
	return 0;
}

static uint64_t cache_provisioned(struct dm_target *ti, uint64_t sector, uint64_t sectors)
{
	struct cache *c = ti->private;
	uint64_t origin = dm_dev_provisioned(c->origin, sector, sectors);
	uint64_t cached = (uint64_t)resident_count(c->resident) * c->block_sectors;

	return MIN(origin + cached, sectors);
}

const struct dm_target_type cache_target = {
    .name = "cache",
    .features = DM_TARGET_HANDS_OVER,
    .version = {2, 3, 0},
    .per_bio_size = sizeof(struct cache_bio),
    .ctr = cache_ctr,
    .dtr = cache_dtr,
    .map = cache_map,
    .end_io = cache_end_io,
    .presuspend = cache_presuspend,
    .presuspend_undo = cache_presuspend_undo,
    .postsuspend = cache_postsuspend,
    .preresume = cache_preresume,
    .resume = cache_resume,
    .status = cache_status,
    .commit = cache_commit,
    .message = cache_message,
    .iterate_devices = cache_iterate_devices,
    .io_hints = cache_io_hints,
    .extent = cache_extent,
    .provisioned = cache_provisioned,
};
