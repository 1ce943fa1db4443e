/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A pool's metadata as a whole: opening, formatting, transactions, sizes. */
#include "metadata.h"

#include <dmfs/container_of.h>
#include <dmfs/le.h>
#include <dmfs/target.h>

#define VERSION 2
#define MAP_SLOTS_LOG2 18
#define MAX_RESERVE 4096

enum sb {
	SB_TIME = 44, SB_TRANSACTION = 48, SB_HELD = 56, SB_DATA_SM = 64, SB_META_SM = 192, SB_MAPPINGS = 320,
	SB_DETAILS = 328, SB_BLOCK_SECTORS = 336, SB_META_BLOCK_SECTORS = 340, SB_META_BLOCKS = 344, SB_COMPAT_RO = 356,
	SB_INCOMPAT = 360,
};

/* --- references of the trees' values --- */

static int add_data(struct thin_md *meta, const void *values, unsigned n, int delta)
{
	for (unsigned i = 0, run; i < n; i += run) {
		dm_block_t b = get_le64(values + 8 * i) >> 24;
		int r;

		for (run = 1; i + run < n && get_le64(values + 8 * (i + run)) >> 24 == b + run;)
			run++;
		r = delta > 0 ? dm_sm_inc(meta->data_sm, b, b + run) : dm_sm_dec(meta->data_sm, b, b + run);
		if (r)
			return r;
	}
	return 0;
}

static int data_inc(void *meta, const void *values, unsigned n)
{
	return add_data(meta, values, n, 1);
}

static int data_dec(void *meta, const void *values, unsigned n)
{
	return add_data(meta, values, n, -1);
}

static void data_freed(void *context, dm_block_t b, dm_block_t e, bool fresh)
{
	struct thin_md *meta = context;

	if (meta->freed)
		dm_ranges_add(meta->freed, b, e);
	if (fresh)
		dm_ranges_add(&meta->quarantine, b, e);
}

static bool data_equal(void *meta, const void *a, const void *b)
{
	return get_le64(a) >> 24 == get_le64(b) >> 24;
}

static int tree_inc(void *context, const void *values, unsigned n)
{
	struct thin_md *meta = context;

	return dm_tm_inc_many(meta->md.tm, values, n);
}

static int tree_dec(void *context, const void *values, unsigned n)
{
	struct thin_md *meta = context;
	int r = 0;

	for (unsigned i = 0; i < n && !r; i++)
		r = dm_btree_del(&meta->bottom, get_le64(values + 8 * i));
	return r;
}

static bool is_busy(void *context, dm_block_t b)
{
	struct thin_md *meta = context;

	return dm_ranges_has(&meta->reserved, b) || dm_ranges_has(&meta->quarantine, b) || dm_ranges_has(&meta->discarding, b);
}

static void set_up_trees(struct thin_md *meta)
{
	struct dm_btree_value_type data = {meta, 8, data_inc, data_dec, data_equal};

	meta->info = (struct dm_btree_info){meta->md.tm, 2, data};
	meta->bottom = (struct dm_btree_info){meta->md.tm, 1, data};
	meta->top = (struct dm_btree_info){meta->md.tm, 1, {meta, 8, tree_inc, tree_dec, NULL}};
	meta->details = (struct dm_btree_info){meta->md.tm, 1, {.size = 24}};
	dm_sm_disk_set_busy(meta->data_sm, is_busy, meta);
	dm_sm_disk_set_freed(meta->data_sm, data_freed, meta);
}

/* --- numbers for who holds no lock --- */

static void update_stats(struct thin_md *meta)
{
	uint64_t set_aside = meta->reserved.count, data_free = dm_sm_nr_free(meta->data_sm);

	atomic_store(&meta->meta_free, dm_sm_nr_free(dm_tm_sm(meta->md.tm)));
	atomic_store(&meta->meta_total, dm_sm_nr_blocks(dm_tm_sm(meta->md.tm)));
	atomic_store(&meta->data_free, data_free - MIN(data_free, set_aside));
	atomic_store(&meta->data_total, dm_sm_nr_blocks(meta->data_sm));
	set_aside += meta->discarding.count + meta->quarantine.count;
	atomic_store(&meta->data_available, data_free - MIN(data_free, set_aside));
}

void thin_md_released(struct thin_md *meta)
{
	atomic_fetch_add(&meta->releases, 1);
	if (!meta->data_sm) /* failed */
		return;
	dm_sm_disk_rewind(meta->data_sm);
	update_stats(meta);
}

bool thin_md_has_space(struct thin_md *meta)
{
	return atomic_load(&meta->data_available) && atomic_load(&meta->releases) != atomic_load(&meta->no_space_at);
}

uint64_t thin_md_free_meta(struct thin_md *meta)
{
	uint64_t n = atomic_load(&meta->meta_free);

	return n - MIN(n, meta->reserve);
}

uint64_t thin_md_free_data(struct thin_md *meta)
{
	return atomic_load(&meta->data_free);
}

void thin_md_get_stats(struct thin_md *meta, struct thin_md_stats *st)
{
	*st = (struct thin_md_stats){
		.transaction = atomic_load(&meta->transaction),
		.held_root = atomic_load(&meta->held_root),
		.meta_total = atomic_load(&meta->meta_total),
		.data_total = atomic_load(&meta->data_total),
		.needs_check = meta->md.flags & THIN_NEEDS_CHECK,
		.failed = atomic_load(&meta->failed),
	};
	st->meta_used = st->meta_total - thin_md_free_meta(meta);
	st->data_used = st->data_total - thin_md_free_data(meta);
}

bool thin_md_is_torn(struct thin_md *meta)
{
	bool torn;

	pthread_mutex_lock(&meta->change);
	torn = meta->torn;
	pthread_mutex_unlock(&meta->change);
	return torn;
}

static void set_reserve(struct thin_md *meta)
{
	meta->reserve = MIN(dm_sm_nr_blocks(dm_tm_sm(meta->md.tm)) / 10, MAX_RESERVE);
}

/* --- changes --- */

int thin_md_begin(struct thin_md *meta)
{
	dm_block_begin();
	atomic_fetch_add(&meta->waiting, 1);
	pthread_mutex_lock(&meta->change);
	atomic_fetch_sub(&meta->waiting, 1);
	meta->served++;
	if (meta->yielding)
		pthread_cond_broadcast(&meta->turn);
	if (!atomic_load(&meta->failed) && !meta->read_only) {
		pthread_rwlock_wrlock(&meta->root_lock);
		dm_block_end();
		return 0;
	}
	pthread_mutex_unlock(&meta->change);
	dm_block_end();
	return atomic_load(&meta->failed) ? -EINVAL : -EPERM;
}

int thin_md_end(struct thin_md *meta, bool changed, int error)
{
	bool first = changed && !meta->dirty;

	meta->dirty |= changed;
	meta->torn |= changed && error;
	update_stats(meta);
	pthread_rwlock_unlock(&meta->root_lock);
	pthread_mutex_unlock(&meta->change);
	if (first)
		meta->ops->changed(meta->pool);
	return error;
}

void thin_md_yield(struct thin_md *meta)
{
	uint64_t until;

	pthread_mutex_lock(&meta->change);
	until = meta->served + atomic_load(&meta->waiting);
	meta->yielding++;
	while (meta->served < until)
		pthread_cond_wait(&meta->turn, &meta->change);
	meta->yielding--;
	pthread_mutex_unlock(&meta->change);
}

/* --- commit --- */

/* Only now: until it is durable, a FLUSH must wait for the commit, and an abort lose the changes with notice. */
static void forget_changes(struct thin_md *meta)
{
	GHashTableIter it;
	gpointer value;

	g_hash_table_iter_init(&it, meta->devices);
	while (g_hash_table_iter_next(&it, NULL, &value)) {
		struct thin_dev *td = value;

		atomic_store(&td->changed, false);
		if (!td->opens)
			g_hash_table_iter_remove(&it);
	}
}

static int commit_locked(struct thin_md *meta)
{
	int r = meta->ops->flush_data(meta->pool);

	if (!r && dm_sm_has_freed(meta->data_sm))
		meta->ops->drain(meta->pool);
	if (!r)
		r = dm_md_commit(&meta->md);
	if (r)
		return r;
	forget_changes(meta);
	dm_ranges_clear(&meta->quarantine);
	meta->dirty = false;
	thin_md_released(meta);
	return 0;
}

int thin_md_commit(struct thin_md *meta, bool *did)
{
	int r = 0;

	if (did)
		*did = false;
	dm_block_begin();
	pthread_mutex_lock(&meta->change);
	if (atomic_load(&meta->failed)) {
		r = -EINVAL;
	} else if (meta->dirty) {
		r = commit_locked(meta);
		if (did)
			*did = !r;
	}
	pthread_mutex_unlock(&meta->change);
	dm_block_end();
	return r;
}

void thin_md_touch(struct thin_md *meta)
{
	dm_block_begin();
	pthread_mutex_lock(&meta->change);
	meta->dirty = true;
	pthread_mutex_unlock(&meta->change);
	dm_block_end();
}

/* --- opening --- */

static int read_superblock(struct dm_md *md, const uint8_t *p, GError **err)
{
	struct thin_md *meta = container_of(md, struct thin_md, md);
	uint32_t sectors = get_le32(p + SB_BLOCK_SECTORS);

	if (sectors != meta->block_sectors)
		return dm_fail(err, EINVAL, "thin-pool: the metadata has data blocks of %u sectors, the table says %u", sectors,
			       meta->block_sectors);
	if (get_le32(p + SB_INCOMPAT) || (get_le32(p + SB_COMPAT_RO) && !meta->read_only))
		return dm_fail(err, EINVAL, "thin-pool: the metadata has features %x and %x that are not known",
			       get_le32(p + SB_INCOMPAT), get_le32(p + SB_COMPAT_RO));
	meta->time = get_le32(p + SB_TIME);
	meta->transaction = get_le64(p + SB_TRANSACTION);
	meta->held_root = get_le64(p + SB_HELD);
	meta->root = get_le64(p + SB_MAPPINGS);
	meta->details_root = get_le64(p + SB_DETAILS);
	return 0;
}

static int begin(struct dm_md *md, const uint8_t *sb)
{
	struct thin_md *meta = container_of(md, struct thin_md, md);
	int r;

	meta->data_sm = sb ? dm_sm_disk_open(md->tm, sb + SB_DATA_SM, DM_SM_ROOT_SIZE, &r) :
			     dm_sm_disk_create(md->tm, 0, &r);
	if (r)
		return r;
	set_up_trees(meta);
	if (!sb)
		r = dm_btree_empty(&meta->info, &meta->root);
	if (!sb && !r)
		r = dm_btree_empty(&meta->details, &meta->details_root);
	return r;
}

/* The details of devices that have changed. */
static int prepare(struct dm_md *md)
{
	struct thin_md *meta = container_of(md, struct thin_md, md);
	GHashTableIter it;
	gpointer value;

	g_hash_table_iter_init(&it, meta->devices);
	while (g_hash_table_iter_next(&it, NULL, &value)) {
		struct thin_dev *td = value;
		uint8_t le[24];
		int r;

		if (!atomic_load(&td->changed))
			continue;
		put_le64(le, td->mapped);
		put_le64(le + 8, td->transaction);
		put_le32(le + 16, td->created);
		put_le32(le + 20, td->snapshotted);
		r = dm_btree_insert(&meta->details, meta->details_root, &td->id, le, &meta->details_root, NULL);
		if (r)
			return r;
	}
	return 0;
}

static void fill_superblock(struct dm_md *md, uint8_t *p)
{
	struct thin_md *meta = container_of(md, struct thin_md, md);

	put_le32(p + SB_TIME, meta->time);
	put_le64(p + SB_TRANSACTION, meta->transaction);
	put_le64(p + SB_HELD, meta->held_root);
	dm_sm_copy_root(meta->data_sm, p + SB_DATA_SM);
	put_le64(p + SB_MAPPINGS, meta->root);
	put_le64(p + SB_DETAILS, meta->details_root);
	put_le32(p + SB_BLOCK_SECTORS, meta->block_sectors);
	put_le32(p + SB_META_BLOCK_SECTORS, DM_META_BLOCK_SECTORS);
	put_le64(p + SB_META_BLOCKS, dm_sm_nr_blocks(dm_tm_sm(md->tm)));
}

static const struct dm_md_format format = {
	.name = "thin",
	.magic = 27022010,
	.seed = 160774,
	.sm_root = SB_META_SM,
	.cache_bytes = 24u << 20,
	.read = read_superblock,
	.begin = begin,
	.prepare = prepare,
	.fill = fill_superblock,
};

static void drop(struct thin_md *meta)
{
	dm_sm_free(meta->data_sm);
	meta->data_sm = NULL;
	dm_md_close(&meta->md);
}

int thin_md_open(struct dm_dev *dev, uint32_t block_sectors, bool may_format, const struct thin_md_ops *ops, void *pool,
		 struct thin_md **out, GError **err)
{
	struct thin_md *meta = g_new0(struct thin_md, 1);
	bool fresh;
	int r;

	pthread_mutex_init(&meta->change, NULL);
	pthread_cond_init(&meta->turn, NULL);
	pthread_rwlock_init(&meta->root_lock, NULL);
	dm_md_init(&meta->md, &format, dm_dev_get(dev), VERSION);
	dm_bm_set_read_only(meta->md.bm, !may_format);
	meta->block_sectors = block_sectors;
	meta->read_only = !may_format;
	meta->ops = ops;
	meta->pool = pool;
	meta->devices = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free);
	meta->cache = map_cache_new(MAP_SLOTS_LOG2);
	r = dm_md_open(&meta->md, may_format, &fresh, err);
	if (!r) {
		set_reserve(meta);
		update_stats(meta);
		*out = meta;
		return 0;
	}
	thin_md_close(meta);
	if (fresh && !may_format)
		return dm_fail(err, EPERM, "thin-pool: the metadata device is not formatted, and read_only");
	return dm_fail(err, -r, "thin-pool: error creating metadata object: %s", g_strerror(-r));
}

void thin_md_close(struct thin_md *meta)
{
	if (!meta)
		return;
	drop(meta);
	g_hash_table_destroy(meta->devices);
	map_cache_free(meta->cache);
	dm_ranges_clear(&meta->reserved);
	dm_ranges_clear(&meta->quarantine);
	dm_ranges_clear(&meta->discarding);
	dm_dev_put(meta->md.dev);
	pthread_rwlock_destroy(&meta->root_lock);
	pthread_mutex_destroy(&meta->change);
	pthread_cond_destroy(&meta->turn);
	g_free(meta);
}

/* --- abort and flags --- */

/* What open devices knew of the lost transaction goes too. */
static int reload_device(struct thin_md *meta, struct thin_dev *td)
{
	uint8_t le[24];
	int r = dm_btree_lookup(&meta->details, meta->details_root, &td->id, le);

	atomic_store(&td->cookie, ++meta->next_cookie);
	if (atomic_load(&td->changed))
		atomic_store(&td->aborted, true);
	atomic_store(&td->changed, false);
	if (r)
		return r;
	atomic_store(&td->mapped, get_le64(le));
	atomic_store(&td->snapshotted, get_le32(le + 20));
	if (td->opens)
		thin_md_read_top(td);
	return 0;
}

static int reopen(struct thin_md *meta)
{
	GHashTableIter it;
	gpointer value;
	int r;

	drop(meta);
	dm_md_init(&meta->md, &format, meta->md.dev, VERSION);
	r = dm_md_load(&meta->md, NULL);
	if (r)
		return r;
	g_hash_table_iter_init(&it, meta->devices);
	while (g_hash_table_iter_next(&it, NULL, &value)) {
		struct thin_dev *td = value;

		r = reload_device(meta, td);
		if (!td->opens)
			g_hash_table_iter_remove(&it);
		else if (r)
			return r;
	}
	return 0;
}

int thin_md_abort(struct thin_md *meta)
{
	int r;

	pthread_mutex_lock(&meta->change);
	pthread_rwlock_wrlock(&meta->root_lock);
	r = atomic_load(&meta->failed) ? -EINVAL : reopen(meta);
	if (r)
		atomic_store(&meta->failed, true);
	else
		update_stats(meta);
	meta->generation++;
	meta->dirty = meta->torn = false;
	dm_ranges_clear(&meta->quarantine); /* nothing more is allocated before the pool is repaired */
	pthread_rwlock_unlock(&meta->root_lock);
	pthread_mutex_unlock(&meta->change);
	return r;
}

int thin_md_set_needs_check(struct thin_md *meta)
{
	struct dm_block *sb;
	int r = -EINVAL;

	pthread_mutex_lock(&meta->change);
	if (!atomic_load(&meta->failed)) {
		meta->md.flags |= THIN_NEEDS_CHECK;
		dm_bm_set_read_only(meta->md.bm, false);
		r = dm_bm_write_lock(meta->md.bm, DM_MD_SUPERBLOCK, &meta->md.validator, &sb);
		if (!r) {
			put_le32(dm_block_data(sb) + DM_MD_FLAGS, meta->md.flags);
			dm_bm_unlock(sb);
			if (dm_bm_flush(meta->md.bm))
				dm_log_err("thin: needs_check could not be written to the metadata device");
		}
		dm_bm_set_read_only(meta->md.bm, meta->read_only);
	}
	pthread_mutex_unlock(&meta->change);
	return r;
}

void thin_md_set_read_only(struct thin_md *meta, bool read_only)
{
	pthread_mutex_lock(&meta->change);
	meta->read_only = read_only;
	if (meta->md.bm)
		dm_bm_set_read_only(meta->md.bm, read_only);
	pthread_mutex_unlock(&meta->change);
}

void thin_md_set_dev(struct thin_md *meta, struct dm_dev *dev)
{
	struct dm_dev *old;

	pthread_mutex_lock(&meta->change);
	pthread_rwlock_wrlock(&meta->root_lock);
	old = meta->md.dev;
	meta->md.dev = dm_dev_get(dev);
	if (meta->md.bm)
		dm_bm_set_dev(meta->md.bm, dev);
	pthread_rwlock_unlock(&meta->root_lock);
	pthread_mutex_unlock(&meta->change);
	dm_dev_put(old);
}

/* --- sizes --- */

static int resize(struct thin_md *meta, struct dm_sm *sm, uint64_t blocks)
{
	uint64_t old = dm_sm_nr_blocks(sm);

	if (blocks < old)
		return -EINVAL;
	return blocks > old ? dm_sm_extend(sm, blocks - old) : 0;
}

int thin_md_resize_data(struct thin_md *meta, uint64_t blocks)
{
	int r = thin_md_begin(meta);

	if (r)
		return r;
	r = resize(meta, meta->data_sm, blocks);
	return thin_md_end(meta, true, r);
}

int thin_md_resize_meta(struct thin_md *meta, uint64_t blocks)
{
	int r = thin_md_begin(meta);

	if (r)
		return r;
	r = resize(meta, dm_tm_sm(meta->md.tm), blocks);
	if (!r)
		set_reserve(meta);
	return thin_md_end(meta, true, r);
}

/* --- the held root --- */

int thin_md_set_transaction(struct thin_md *meta, uint64_t from, uint64_t to)
{
	int r = thin_md_begin(meta);

	if (r)
		return r;
	if (meta->transaction == from)
		meta->transaction = to;
	else
		r = -EINVAL;
	return thin_md_end(meta, !r, r);
}

/* The copy keeps its trees but no space maps. */
static void edit_copy(uint8_t *sb)
{
	memset(sb + SB_DATA_SM, 0, SB_MAPPINGS - SB_DATA_SM);
}

/* Takes a metadata snapshot, or releases the one there is. */
static int change_held(struct thin_md *meta, bool hold)
{
	const struct dm_md_root roots[] = {{SB_MAPPINGS, &meta->info}, {SB_DETAILS, &meta->details}};
	dm_block_t held = meta->held_root;
	int r = hold ? dm_md_hold(&meta->md, roots, G_N_ELEMENTS(roots), edit_copy, &held) :
		       dm_md_release(&meta->md, roots, G_N_ELEMENTS(roots), &held);

	meta->held_root = held;
	return r;
}

/* The commit before it must not hold the root lock, which bios that it waits for may want. */
int thin_md_hold(struct thin_md *meta)
{
	int r;

	pthread_mutex_lock(&meta->change);
	r = atomic_load(&meta->failed) ? -EINVAL : meta->read_only ? -EPERM : meta->held_root ? -EBUSY : 0;
	if (!r && meta->dirty) {
		r = commit_locked(meta);
		meta->torn |= r;
	}
	if (r) {
		pthread_mutex_unlock(&meta->change);
		return r;
	}
	pthread_rwlock_wrlock(&meta->root_lock);
	r = change_held(meta, true);
	return thin_md_end(meta, true, r);
}

int thin_md_release(struct thin_md *meta)
{
	bool held;
	int r = thin_md_begin(meta);

	if (r)
		return r;
	held = meta->held_root;
	r = held ? change_held(meta, false) : -EINVAL;
	return thin_md_end(meta, held, r);
}
