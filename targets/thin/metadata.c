/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A pool's metadata as a whole: opening, formatting, transactions, sizes. */
#include "metadata.h"

#include <dmfs/le.h>
#include <dmfs/target.h>

#define SUPERBLOCK 0
#define SB_SEED 160774
#define SB_MAGIC 27022010
#define SB_VERSION 2
#define SM_ROOT_SPACE 128
#define CACHE_BYTES (24u << 20)
#define MAP_SLOTS_LOG2 18
#define MAX_RESERVE 4096

enum sb {
	SB_FLAGS = 4, SB_BLOCKNR = 8, SB_MAGIC_AT = 32, SB_VERSION_AT = 40, SB_TIME = 44, SB_TRANSACTION = 48,
	SB_HELD = 56, SB_DATA_SM = 64, SB_META_SM = 192, SB_MAPPINGS = 320, SB_DETAILS = 328, SB_BLOCK_SECTORS = 336,
	SB_META_BLOCK_SECTORS = 340, SB_META_BLOCKS = 344, SB_COMPAT_RO = 356, SB_INCOMPAT = 360,
};

static void sb_prepare(void *context, dm_block_t where, void *data, size_t size)
{
	put_le64(data + SB_BLOCKNR, where);
	put_le32(data, dm_bm_checksum(data + 4, size - 4, SB_SEED));
}

static int sb_check(void *context, dm_block_t where, const void *data, size_t size)
{
	uint32_t sum = dm_bm_checksum(data + 4, size - 4, SB_SEED);

	if (get_le64(data + SB_BLOCKNR) != where) {
		dm_log_err("thin: superblock says it is block %" G_GUINT64_FORMAT ", wanted %" G_GUINT64_FORMAT,
			   get_le64(data + SB_BLOCKNR), where);
		return -ENOTBLK;
	}
	if (get_le64(data + SB_MAGIC_AT) != SB_MAGIC) {
		dm_log_err("thin: superblock has magic %" G_GUINT64_FORMAT ", wanted %u", get_le64(data + SB_MAGIC_AT), SB_MAGIC);
		return -EILSEQ;
	}
	if (sum != get_le32(data)) {
		dm_log_err("thin: superblock has checksum %u, its content %u", get_le32(data), sum);
		return -EILSEQ;
	}
	return 0;
}

static const struct dm_validator sb_validator = {"thin superblock", sb_prepare, sb_check, NULL};

/* --- references of the trees' values --- */

static int add_data(struct thin_md *md, const void *values, unsigned n, int delta)
{
	for (unsigned i = 0, run; i < n; i += run) {
		dm_block_t b = get_le64(values + 8 * i) >> 24;
		int r;

		for (run = 1; i + run < n && get_le64(values + 8 * (i + run)) >> 24 == b + run;)
			run++;
		r = delta > 0 ? dm_sm_inc(md->data_sm, b, b + run) : dm_sm_dec(md->data_sm, b, b + run);
		if (r)
			return r;
	}
	return 0;
}

static int data_inc(void *md, const void *values, unsigned n)
{
	return add_data(md, values, n, 1);
}

static int data_dec(void *md, const void *values, unsigned n)
{
	return add_data(md, values, n, -1);
}

static void data_freed(void *context, dm_block_t b, dm_block_t e, bool fresh)
{
	struct thin_md *md = context;

	if (md->freed)
		ranges_add(md->freed, b, e);
	if (fresh)
		ranges_add(&md->quarantine, b, e);
}

static bool data_equal(void *md, const void *a, const void *b)
{
	return get_le64(a) >> 24 == get_le64(b) >> 24;
}

static int tree_inc(void *context, const void *values, unsigned n)
{
	struct thin_md *md = context;

	return dm_tm_inc_many(md->tm, values, n);
}

static int tree_dec(void *context, const void *values, unsigned n)
{
	struct thin_md *md = context;
	int r = 0;

	for (unsigned i = 0; i < n && !r; i++)
		r = dm_btree_del(&md->bottom, get_le64(values + 8 * i));
	return r;
}

static bool is_busy(void *context, dm_block_t b)
{
	struct thin_md *md = context;

	return ranges_has(&md->reserved, b) || ranges_has(&md->quarantine, b) || ranges_has(&md->discarding, b);
}

static void set_up_trees(struct thin_md *md)
{
	struct dm_btree_value_type data = {md, 8, data_inc, data_dec, data_equal};

	md->info = (struct dm_btree_info){md->tm, 2, data};
	md->bottom = (struct dm_btree_info){md->tm, 1, data};
	md->top = (struct dm_btree_info){md->tm, 1, {md, 8, tree_inc, tree_dec, NULL}};
	md->details = (struct dm_btree_info){md->tm, 1, {.size = 24}};
	dm_sm_disk_set_busy(md->data_sm, is_busy, md);
	dm_sm_disk_set_freed(md->data_sm, data_freed, md);
}

/* --- numbers for who holds no lock --- */

static void update_stats(struct thin_md *md)
{
	uint64_t set_aside = md->reserved.count, data_free = dm_sm_nr_free(md->data_sm);

	atomic_store(&md->meta_free, dm_sm_nr_free(dm_tm_sm(md->tm)));
	atomic_store(&md->meta_total, dm_sm_nr_blocks(dm_tm_sm(md->tm)));
	atomic_store(&md->data_free, data_free - MIN(data_free, set_aside));
	atomic_store(&md->data_total, dm_sm_nr_blocks(md->data_sm));
	set_aside += md->discarding.count + md->quarantine.count;
	atomic_store(&md->data_available, data_free - MIN(data_free, set_aside));
}

void thin_md_released(struct thin_md *md)
{
	atomic_fetch_add(&md->releases, 1);
	if (!md->data_sm) /* failed */
		return;
	dm_sm_disk_rewind(md->data_sm);
	update_stats(md);
}

bool thin_md_has_space(struct thin_md *md)
{
	return atomic_load(&md->data_available) && atomic_load(&md->releases) != atomic_load(&md->no_space_at);
}

uint64_t thin_md_free_meta(struct thin_md *md)
{
	uint64_t n = atomic_load(&md->meta_free);

	return n - MIN(n, md->reserve);
}

uint64_t thin_md_free_data(struct thin_md *md)
{
	return atomic_load(&md->data_free);
}

void thin_md_get_stats(struct thin_md *md, struct thin_md_stats *st)
{
	*st = (struct thin_md_stats){
		.transaction = atomic_load(&md->transaction),
		.held_root = atomic_load(&md->held_root),
		.meta_total = atomic_load(&md->meta_total),
		.data_total = atomic_load(&md->data_total),
		.needs_check = md->flags & THIN_NEEDS_CHECK,
		.failed = atomic_load(&md->failed),
	};
	st->meta_used = st->meta_total - thin_md_free_meta(md);
	st->data_used = st->data_total - thin_md_free_data(md);
}

bool thin_md_is_torn(struct thin_md *md)
{
	bool torn;

	pthread_mutex_lock(&md->change);
	torn = md->torn;
	pthread_mutex_unlock(&md->change);
	return torn;
}

uint64_t thin_md_dev_blocks(struct dm_dev *dev)
{
	return MIN(dm_dev_sectors(dev) / DM_META_BLOCK_SECTORS, DM_SM_METADATA_MAX_BLOCKS);
}

static void set_reserve(struct thin_md *md)
{
	md->reserve = MIN(dm_sm_nr_blocks(dm_tm_sm(md->tm)) / 10, MAX_RESERVE);
}

/* --- changes --- */

int thin_md_begin(struct thin_md *md)
{
	dm_block_begin();
	atomic_fetch_add(&md->waiting, 1);
	pthread_mutex_lock(&md->change);
	atomic_fetch_sub(&md->waiting, 1);
	md->served++;
	if (md->yielding)
		pthread_cond_broadcast(&md->turn);
	if (!atomic_load(&md->failed) && !md->read_only) {
		pthread_rwlock_wrlock(&md->root_lock);
		dm_block_end();
		return 0;
	}
	pthread_mutex_unlock(&md->change);
	dm_block_end();
	return atomic_load(&md->failed) ? -EINVAL : -EPERM;
}

void thin_md_end(struct thin_md *md, bool changed, int error)
{
	bool first = changed && !md->dirty;

	md->dirty |= changed;
	md->torn |= changed && error;
	update_stats(md);
	pthread_rwlock_unlock(&md->root_lock);
	pthread_mutex_unlock(&md->change);
	if (first)
		md->ops->changed(md->pool);
}

void thin_md_yield(struct thin_md *md)
{
	uint64_t until;

	pthread_mutex_lock(&md->change);
	until = md->served + atomic_load(&md->waiting);
	md->yielding++;
	while (md->served < until)
		pthread_cond_wait(&md->turn, &md->change);
	md->yielding--;
	pthread_mutex_unlock(&md->change);
}

/* --- commit --- */

static int write_details(struct thin_md *md)
{
	GHashTableIter it;
	gpointer value;

	g_hash_table_iter_init(&it, md->devices);
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
		r = dm_btree_insert(&md->details, md->details_root, &td->id, le, &md->details_root, NULL);
		if (r)
			return r;
	}
	return 0;
}

/* Only now: until it is durable, a FLUSH must wait for the commit, and an abort lose the changes with notice. */
static void forget_changes(struct thin_md *md)
{
	GHashTableIter it;
	gpointer value;

	g_hash_table_iter_init(&it, md->devices);
	while (g_hash_table_iter_next(&it, NULL, &value)) {
		struct thin_dev *td = value;

		atomic_store(&td->changed, false);
		if (!td->opens)
			g_hash_table_iter_remove(&it);
	}
}

static void fill_superblock(struct thin_md *md, uint8_t *p)
{
	put_le32(p + SB_FLAGS, md->flags);
	put_le32(p + SB_TIME, md->time);
	put_le64(p + SB_TRANSACTION, md->transaction);
	put_le64(p + SB_HELD, md->held_root);
	dm_sm_copy_root(md->data_sm, p + SB_DATA_SM);
	dm_sm_copy_root(dm_tm_sm(md->tm), p + SB_META_SM);
	put_le64(p + SB_MAPPINGS, md->root);
	put_le64(p + SB_DETAILS, md->details_root);
}

/* The part of a commit after the data is safe; `change` is held. */
static int write_transaction(struct thin_md *md)
{
	struct dm_block *sb;
	int r = write_details(md);

	if (!r)
		r = dm_tm_pre_commit(md->tm);
	if (!r)
		r = dm_bm_write_lock(md->bm, SUPERBLOCK, &sb_validator, &sb);
	if (r)
		return r;
	fill_superblock(md, dm_block_data(sb));
	put_le64(dm_block_data(sb) + SB_META_BLOCKS, dm_sm_nr_blocks(dm_tm_sm(md->tm)));
	return dm_tm_commit(md->tm, sb);
}

static int commit_locked(struct thin_md *md)
{
	int r = md->ops->flush_data(md->pool);

	if (!r && dm_sm_has_freed(md->data_sm))
		md->ops->drain(md->pool);
	if (!r)
		r = write_transaction(md);
	if (r)
		return r;
	forget_changes(md);
	ranges_clear(&md->quarantine);
	md->dirty = false;
	thin_md_released(md);
	return 0;
}

int thin_md_commit(struct thin_md *md, bool *did)
{
	int r = 0;

	if (did)
		*did = false;
	dm_block_begin();
	pthread_mutex_lock(&md->change);
	if (atomic_load(&md->failed)) {
		r = -EINVAL;
	} else if (md->dirty) {
		r = commit_locked(md);
		if (did)
			*did = !r;
	}
	pthread_mutex_unlock(&md->change);
	dm_block_end();
	return r;
}

void thin_md_touch(struct thin_md *md)
{
	dm_block_begin();
	pthread_mutex_lock(&md->change);
	md->dirty = true;
	pthread_mutex_unlock(&md->change);
	dm_block_end();
}

/* --- opening --- */

static int is_all_zeroes(struct dm_bm *bm, bool *zeroes)
{
	static const uint8_t nothing[DM_META_BLOCK_SIZE];
	struct dm_block *b;
	int r = dm_bm_read_lock(bm, SUPERBLOCK, NULL, &b);

	if (r)
		return r;
	*zeroes = !memcmp(dm_block_data(b), nothing, sizeof(nothing));
	dm_bm_unlock(b);
	return 0;
}

static int format(struct thin_md *md)
{
	uint64_t blocks = thin_md_dev_blocks(md->dev);
	struct dm_block *sb;
	uint8_t *p;
	int r = dm_tm_create(md->bm, SUPERBLOCK, blocks, &md->tm);

	if (r)
		return r;
	md->data_sm = dm_sm_disk_create(md->tm, 0, &r);
	if (r)
		return r;
	set_up_trees(md);
	r = dm_btree_empty(&md->info, &md->root);
	if (!r)
		r = dm_btree_empty(&md->details, &md->details_root);
	if (!r)
		r = dm_tm_pre_commit(md->tm);
	if (!r)
		r = dm_bm_write_lock_zero(md->bm, SUPERBLOCK, &sb_validator, &sb);
	if (r)
		return r;
	p = dm_block_data(sb);
	fill_superblock(md, p);
	put_le64(p + SB_MAGIC_AT, SB_MAGIC);
	put_le32(p + SB_VERSION_AT, SB_VERSION);
	put_le32(p + SB_BLOCK_SECTORS, md->block_sectors);
	put_le32(p + SB_META_BLOCK_SECTORS, DM_META_BLOCK_SECTORS);
	put_le64(p + SB_META_BLOCKS, blocks);
	return dm_tm_commit(md->tm, sb);
}

static int read_superblock(struct thin_md *md, const uint8_t *p, GError **err)
{
	uint32_t sectors = get_le32(p + SB_BLOCK_SECTORS);
	int r;

	if (sectors != md->block_sectors)
		return dm_fail(err, EINVAL, "thin-pool: the metadata has data blocks of %u sectors, the table says %u", sectors,
			       md->block_sectors);
	if (get_le32(p + SB_INCOMPAT) || (get_le32(p + SB_COMPAT_RO) && !md->read_only))
		return dm_fail(err, EINVAL, "thin-pool: the metadata has features %x and %x that are not known",
			       get_le32(p + SB_INCOMPAT), get_le32(p + SB_COMPAT_RO));
	r = dm_tm_open(md->bm, SUPERBLOCK, p + SB_META_SM, SM_ROOT_SPACE, &md->tm);
	if (!r)
		md->data_sm = dm_sm_disk_open(md->tm, p + SB_DATA_SM, SM_ROOT_SPACE, &r);
	if (r)
		return r;
	md->flags = get_le32(p + SB_FLAGS);
	md->time = get_le32(p + SB_TIME);
	md->transaction = get_le64(p + SB_TRANSACTION);
	md->held_root = get_le64(p + SB_HELD);
	md->root = get_le64(p + SB_MAPPINGS);
	md->details_root = get_le64(p + SB_DETAILS);
	set_up_trees(md);
	return 0;
}

static int read_metadata(struct thin_md *md, GError **err)
{
	struct dm_block *sb;
	int r = dm_bm_read_lock(md->bm, SUPERBLOCK, &sb_validator, &sb);

	if (r)
		return r;
	r = read_superblock(md, dm_block_data(sb), err);
	dm_bm_unlock(sb);
	return r;
}

static void drop(struct thin_md *md)
{
	dm_sm_free(md->data_sm);
	dm_tm_free(md->tm);
	dm_bm_free(md->bm);
	md->data_sm = NULL;
	md->tm = NULL;
	md->bm = NULL;
}

static int open_or_format(struct thin_md *md, bool may_format, GError **err)
{
	bool zeroes;
	int r;

	md->bm = dm_bm_new(md->dev, DM_META_BLOCK_SIZE, CACHE_BYTES);
	dm_bm_set_read_only(md->bm, md->read_only);
	r = is_all_zeroes(md->bm, &zeroes);
	if (!r && zeroes && !may_format)
		return dm_fail(err, EPERM, "thin-pool: the metadata device is not formatted, and read_only");
	if (!r)
		r = zeroes ? format(md) : read_metadata(md, err);
	if (r)
		return r;
	set_reserve(md);
	update_stats(md);
	return 0;
}

int thin_md_open(struct dm_dev *dev, uint32_t block_sectors, bool may_format, const struct thin_md_ops *ops, void *pool,
		 struct thin_md **out, GError **err)
{
	struct thin_md *md = g_new0(struct thin_md, 1);
	int r;

	pthread_mutex_init(&md->change, NULL);
	pthread_cond_init(&md->turn, NULL);
	pthread_rwlock_init(&md->root_lock, NULL);
	md->dev = dm_dev_get(dev);
	md->block_sectors = block_sectors;
	md->read_only = !may_format;
	md->ops = ops;
	md->pool = pool;
	md->devices = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free);
	md->cache = map_cache_new(MAP_SLOTS_LOG2);
	r = open_or_format(md, may_format, err);
	if (!r) {
		*out = md;
		return 0;
	}
	thin_md_close(md);
	if (err && *err)
		return r;
	return dm_fail(err, -r, "thin-pool: error creating metadata object: %s", g_strerror(-r));
}

void thin_md_close(struct thin_md *md)
{
	if (!md)
		return;
	drop(md);
	g_hash_table_destroy(md->devices);
	map_cache_free(md->cache);
	ranges_clear(&md->reserved);
	ranges_clear(&md->quarantine);
	ranges_clear(&md->discarding);
	dm_dev_put(md->dev);
	pthread_rwlock_destroy(&md->root_lock);
	pthread_mutex_destroy(&md->change);
	pthread_cond_destroy(&md->turn);
	g_free(md);
}

/* --- abort and flags --- */

/* What open devices knew of the lost transaction goes too. */
static int reload_device(struct thin_md *md, struct thin_dev *td)
{
	uint8_t le[24];
	int r = dm_btree_lookup(&md->details, md->details_root, &td->id, le);

	atomic_store(&td->cookie, ++md->next_cookie);
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

static int reopen(struct thin_md *md)
{
	GHashTableIter it;
	gpointer value;
	int r;

	drop(md);
	md->bm = dm_bm_new(md->dev, DM_META_BLOCK_SIZE, CACHE_BYTES);
	r = read_metadata(md, NULL);
	if (r)
		return r;
	g_hash_table_iter_init(&it, md->devices);
	while (g_hash_table_iter_next(&it, NULL, &value)) {
		struct thin_dev *td = value;

		r = reload_device(md, td);
		if (!td->opens)
			g_hash_table_iter_remove(&it);
		else if (r)
			return r;
	}
	return 0;
}

int thin_md_abort(struct thin_md *md)
{
	int r;

	pthread_mutex_lock(&md->change);
	pthread_rwlock_wrlock(&md->root_lock);
	r = atomic_load(&md->failed) ? -EINVAL : reopen(md);
	if (r)
		atomic_store(&md->failed, true);
	else
		update_stats(md);
	md->generation++;
	md->dirty = md->torn = false;
	ranges_clear(&md->quarantine); /* nothing more is allocated before the pool is repaired */
	pthread_rwlock_unlock(&md->root_lock);
	pthread_mutex_unlock(&md->change);
	return r;
}

int thin_md_set_needs_check(struct thin_md *md)
{
	struct dm_block *sb;
	int r = -EINVAL;

	pthread_mutex_lock(&md->change);
	if (!atomic_load(&md->failed)) {
		md->flags |= THIN_NEEDS_CHECK;
		dm_bm_set_read_only(md->bm, false);
		r = dm_bm_write_lock(md->bm, SUPERBLOCK, &sb_validator, &sb);
		if (!r) {
			put_le32(dm_block_data(sb) + SB_FLAGS, md->flags);
			dm_bm_unlock(sb);
			if (dm_bm_flush(md->bm))
				dm_log_err("thin: needs_check could not be written to the metadata device");
		}
		dm_bm_set_read_only(md->bm, md->read_only);
	}
	pthread_mutex_unlock(&md->change);
	return r;
}

void thin_md_set_read_only(struct thin_md *md, bool read_only)
{
	pthread_mutex_lock(&md->change);
	md->read_only = read_only;
	if (md->bm)
		dm_bm_set_read_only(md->bm, read_only);
	pthread_mutex_unlock(&md->change);
}

void thin_md_set_dev(struct thin_md *md, struct dm_dev *dev)
{
	struct dm_dev *old;

	pthread_mutex_lock(&md->change);
	pthread_rwlock_wrlock(&md->root_lock);
	old = md->dev;
	md->dev = dm_dev_get(dev);
	if (md->bm)
		dm_bm_set_dev(md->bm, dev);
	pthread_rwlock_unlock(&md->root_lock);
	pthread_mutex_unlock(&md->change);
	dm_dev_put(old);
}

/* --- sizes --- */

static int resize(struct thin_md *md, struct dm_sm *sm, uint64_t blocks)
{
	uint64_t old = dm_sm_nr_blocks(sm);

	if (blocks < old)
		return -EINVAL;
	return blocks > old ? dm_sm_extend(sm, blocks - old) : 0;
}

int thin_md_resize_data(struct thin_md *md, uint64_t blocks)
{
	int r = thin_md_begin(md);

	if (r)
		return r;
	r = resize(md, md->data_sm, blocks);
	thin_md_end(md, true, r);
	return r;
}

int thin_md_resize_meta(struct thin_md *md, uint64_t blocks)
{
	int r = thin_md_begin(md);

	if (r)
		return r;
	r = resize(md, dm_tm_sm(md->tm), blocks);
	if (!r)
		set_reserve(md);
	thin_md_end(md, true, r);
	return r;
}

/* --- the held root --- */

int thin_md_set_transaction(struct thin_md *md, uint64_t from, uint64_t to)
{
	int r = thin_md_begin(md);

	if (r)
		return r;
	if (md->transaction == from)
		md->transaction = to;
	else
		r = -EINVAL;
	thin_md_end(md, !r, r);
	return r;
}

/* A copy of the superblock as of a moment ago, which keeps its trees but no space maps. */
static int hold(struct thin_md *md)
{
	struct dm_block *sb, *copy;
	uint8_t *p;
	int r = dm_bm_read_lock(md->bm, SUPERBLOCK, &sb_validator, &sb);

	if (r)
		return r;
	r = dm_tm_new_block(md->tm, &sb_validator, &copy);
	if (r) {
		dm_bm_unlock(sb);
		return r;
	}
	p = dm_block_data(copy);
	memcpy(p, dm_block_data(sb), DM_META_BLOCK_SIZE);
	memset(p + SB_DATA_SM, 0, SB_MAPPINGS - SB_DATA_SM);
	md->held_root = dm_block_location(copy);
	r = dm_tm_inc(md->tm, get_le64(p + SB_MAPPINGS));
	if (!r)
		r = dm_tm_inc(md->tm, get_le64(p + SB_DETAILS));
	dm_tm_unlock(md->tm, copy);
	dm_bm_unlock(sb);
	return r;
}

/* The commit before it must not hold the root lock, which bios that it waits for may want. */
int thin_md_hold(struct thin_md *md)
{
	int r;

	pthread_mutex_lock(&md->change);
	r = atomic_load(&md->failed) ? -EINVAL : md->read_only ? -EPERM : md->held_root ? -EBUSY : 0;
	if (!r && md->dirty) {
		r = commit_locked(md);
		md->torn |= r;
	}
	if (r) {
		pthread_mutex_unlock(&md->change);
		return r;
	}
	pthread_rwlock_wrlock(&md->root_lock);
	r = hold(md);
	thin_md_end(md, true, r);
	return r;
}

static int release(struct thin_md *md)
{
	dm_block_t held = md->held_root, mappings, details;
	struct dm_block *copy;
	int r = dm_tm_read_lock(md->tm, held, &sb_validator, &copy);

	if (r)
		return r;
	mappings = get_le64(dm_block_data(copy) + SB_MAPPINGS);
	details = get_le64(dm_block_data(copy) + SB_DETAILS);
	dm_tm_unlock(md->tm, copy);
	md->held_root = 0;
	r = dm_btree_del(&md->info, mappings);
	if (!r)
		r = dm_btree_del(&md->details, details);
	return r ? r : dm_tm_dec(md->tm, held);
}

int thin_md_release(struct thin_md *md)
{
	bool held;
	int r = thin_md_begin(md);

	if (r)
		return r;
	held = md->held_root;
	r = held ? release(md) : -EINVAL;
	thin_md_end(md, held, r);
	return r;
}
