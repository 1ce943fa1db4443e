/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Thin devices and their mappings in a pool's metadata. */
#include "metadata.h"

#include <dmfs/le.h>
#include <dmfs/target.h>

#define NEAR_SECTORS 131072u /* 64 MiB: what may be on its way from one who writes in order */
#define RUN 64u /* mappings read at once by thin_md_find_run() */

/* --- devices --- */

/* The device in core, loaded if need be; `change` is held, and root for writing. */
struct thin_dev *thin_md_get(struct thin_md *meta, uint64_t id, bool create, int *error)
{
	struct thin_dev *td = g_hash_table_lookup(meta->devices, &id);
	uint8_t le[24] = {0};

	*error = create && td ? -EEXIST : 0;
	if (td || *error)
		return *error ? NULL : td;
	*error = dm_btree_lookup(&meta->details, meta->details_root, &id, le);
	if (create && *error == -ENODATA) {
		put_le64(le + 8, meta->transaction);
		put_le32(le + 16, meta->time);
		put_le32(le + 20, meta->time);
		*error = 0;
	} else if (create && !*error) {
		*error = -EEXIST;
	}
	if (*error)
		return NULL;
	td = g_new0(struct thin_dev, 1);
	td->meta = meta;
	td->id = id;
	td->cookie = ++meta->next_cookie;
	td->mapped = get_le64(le);
	td->transaction = get_le64(le + 8);
	td->created = get_le32(le + 16);
	td->snapshotted = get_le32(le + 20);
	td->changed = create;
	g_hash_table_insert(meta->devices, &td->id, td);
	return td;
}

static void forget_unused(struct thin_md *meta, struct thin_dev *td)
{
	if (!td->opens && !atomic_load(&td->changed))
		g_hash_table_remove(meta->devices, &td->id);
}

void thin_md_read_top(struct thin_dev *td)
{
	struct thin_md *meta = td->meta;
	uint64_t highest;
	uint8_t le[8];
	int r = dm_btree_lookup(&meta->top, meta->root, &td->id, le);

	if (!r)
		r = dm_btree_highest(&meta->bottom, get_le64(le), &highest);
	atomic_store(&td->top, !r ? highest + 1 : r == -ENODATA ? 0 : THIN_NO_BLOCK);
}

int thin_md_open_device(struct thin_md *meta, uint64_t id, struct thin_dev **out)
{
	struct thin_dev *td;
	int r = 0;

	pthread_mutex_lock(&meta->change);
	if (atomic_load(&meta->failed)) {
		r = -EINVAL;
	} else {
		pthread_rwlock_wrlock(&meta->root_lock);
		td = thin_md_get(meta, id, false, &r);
		if (td) {
			if (!td->opens++)
				thin_md_read_top(td);
			*out = td;
		}
		pthread_rwlock_unlock(&meta->root_lock);
	}
	pthread_mutex_unlock(&meta->change);
	return r;
}

void thin_md_close_device(struct thin_dev *td)
{
	struct thin_md *meta = td->meta;

	pthread_mutex_lock(&meta->change);
	td->opens--;
	forget_unused(meta, td);
	pthread_mutex_unlock(&meta->change);
}

/* Gives a device a mapping tree, using up a reference to it. */
static int link_tree(struct thin_md *meta, uint64_t id, dm_block_t tree)
{
	uint64_t le = GUINT64_TO_LE(tree);

	return dm_btree_insert(&meta->top, meta->root, &id, &le, &meta->root, NULL);
}

/* Reads the way to it in both trees too: where that is damaged, nothing has been changed yet. */
static int check_unused(struct thin_md *meta, uint64_t id)
{
	uint8_t le[24];
	int r;

	if (g_hash_table_contains(meta->devices, &id))
		return -EEXIST;
	r = dm_btree_lookup(&meta->details, meta->details_root, &id, le);
	if (r != -ENODATA)
		return r ? r : -EEXIST;
	r = dm_btree_lookup(&meta->top, meta->root, &id, le);
	return r == -ENODATA ? 0 : r;
}

int thin_md_create(struct thin_md *meta, uint64_t id)
{
	bool changed = false;
	dm_block_t tree;
	int r = thin_md_begin(meta);

	if (r)
		return r;
	r = check_unused(meta, id);
	if (!r) {
		changed = true;
		r = dm_btree_empty(&meta->bottom, &tree);
	}
	if (changed && !r)
		r = link_tree(meta, id, tree);
	if (changed && !r)
		thin_md_get(meta, id, true, &r);
	return thin_md_end(meta, changed, r);
}

static int snap(struct thin_md *meta, uint64_t id, uint64_t origin, dm_block_t tree)
{
	struct thin_dev *from, *to;
	int r = dm_tm_inc(meta->md.tm, tree);

	if (!r)
		r = link_tree(meta, id, tree);
	if (r)
		return r;
	from = thin_md_get(meta, origin, false, &r);
	if (!from)
		return r;
	to = thin_md_get(meta, id, true, &r);
	if (!to)
		return r;
	meta->time++;
	from->snapshotted = to->snapshotted = meta->time;
	to->created = meta->time;
	to->mapped = from->mapped;
	atomic_store(&from->changed, true);
	return 0;
}

int thin_md_snap(struct thin_md *meta, uint64_t id, uint64_t origin)
{
	bool changed = false;
	uint8_t le[8];
	int r = thin_md_begin(meta);

	if (r)
		return r;
	r = check_unused(meta, id);
	if (!r)
		r = dm_btree_lookup(&meta->top, meta->root, &origin, le);
	if (!r) {
		changed = true;
		r = snap(meta, id, origin, get_le64(le));
	}
	return thin_md_end(meta, changed, r);
}

static int delete_all(struct thin_md *meta, struct thin_dev *td)
{
	uint64_t id = td->id;
	int r;

	g_hash_table_remove(meta->devices, &id);
	r = dm_btree_remove(&meta->details, meta->details_root, &id, &meta->details_root);
	if (r == -ENODATA) /* created in this transaction */
		r = 0;
	return r ? r : dm_btree_remove(&meta->top, meta->root, &id, &meta->root);
}

/* Whether another device has the very same tree: then there is nothing to take apart. */
static int has_shared_tree(struct thin_md *meta, struct thin_dev *td, bool *shared)
{
	uint32_t count = 0;
	uint8_t le[8];
	int r = dm_btree_lookup(&meta->top, meta->root, &td->id, le);

	if (!r)
		r = dm_tm_ref(meta->md.tm, get_le64(le), &count);
	*shared = count > 1;
	return r;
}

static int delete_some(struct thin_md *meta, struct thin_dev *td, uint64_t max, bool *done)
{
	uint64_t keys[2] = {td->id, 0}, removed;
	int r = dm_btree_remove_range(&meta->info, meta->root, keys, UINT64_MAX, max, &meta->root, &removed);

	atomic_store(&td->changed, true);
	td->mapped -= MIN(removed, td->mapped);
	if (r || removed == max)
		return r;
	*done = true;
	return delete_all(meta, td);
}

int thin_md_delete(struct thin_md *meta, uint64_t id, uint64_t max, bool *done)
{
	bool shared, changed = false;
	struct thin_dev *td;
	int r = thin_md_begin(meta);

	*done = false;
	if (r)
		return r;
	td = thin_md_get(meta, id, false, &r);
	if (td && td->opens)
		r = -EBUSY;
	if (!r)
		r = has_shared_tree(meta, td, &shared);
	if (!r) {
		changed = true;
		if (shared || atomic_load(&td->mapped) <= max) {
			*done = true;
			r = delete_all(meta, td);
		} else {
			r = delete_some(meta, td, max, done);
		}
	}
	return thin_md_end(meta, changed, r);
}

/* --- lookups --- */

static void unpack(struct thin_dev *td, uint64_t value, struct thin_mapping *out)
{
	out->block = value >> 24;
	out->shared = atomic_load_explicit(&td->snapshotted, memory_order_relaxed) > (value & 0xffffff);
}

/* False: the caller must not wait, and would have to. */
static bool lock_root(struct thin_md *meta)
{
	if (!pthread_rwlock_tryrdlock(&meta->root_lock))
		return true;
	if (!dm_may_wait())
		return false;
	dm_block_begin();
	pthread_rwlock_rdlock(&meta->root_lock);
	dm_block_end();
	return true;
}

static int find_slow(struct thin_dev *td, uint64_t block, struct thin_mapping *out)
{
	struct thin_md *meta = td->meta;
	uint64_t keys[2] = {td->id, block};
	uint8_t le[8];
	int r;

	if (!lock_root(meta))
		return -EINPROGRESS;
	r = atomic_load(&meta->failed) ? -EINVAL : dm_btree_lookup(&meta->info, meta->root, keys, le);
	if (!r && get_le64(le) >> 24 >= atomic_load(&meta->data_total))
		r = -EILSEQ;
	if (!r) {
		map_cache_set(meta->cache, atomic_load(&td->cookie), block, get_le64(le));
		unpack(td, get_le64(le), out);
	}
	pthread_rwlock_unlock(&meta->root_lock);
	return r;
}

int thin_md_find(struct thin_dev *td, uint64_t block, struct thin_mapping *out)
{
	uint64_t cookie = atomic_load_explicit(&td->cookie, memory_order_acquire), value;

	if (!map_cache_get(td->meta->cache, cookie, block, &value))
		return find_slow(td, block, out);
	unpack(td, value, out);
	return 0;
}

int thin_md_find_run(struct thin_dev *td, uint64_t block, uint64_t *first, uint64_t *run)
{
	uint64_t keys[2] = {td->id, block}, found[RUN];
	struct thin_md *meta = td->meta;
	uint8_t values[8 * RUN];
	int r;

	if (!lock_root(meta))
		return -EINPROGRESS;
	r = atomic_load(&meta->failed) ? -EINVAL
				     : dm_btree_lookup_run(&meta->info, meta->root, keys, RUN, found, values);
	pthread_rwlock_unlock(&meta->root_lock);
	if (r < 0)
		return r;
	*first = found[0];
	for (*run = 1; (int)*run < r && found[*run] == found[0] + *run;)
		++*run;
	return 0;
}

int thin_md_highest(struct thin_dev *td, uint64_t *block)
{
	uint64_t top = atomic_load(&td->top);

	if (atomic_load(&td->meta->failed) || top == THIN_NO_BLOCK)
		return -EINVAL;
	*block = top - 1;
	return top ? 0 : -ENODATA;
}

/* --- mapping --- */

/*
 * What is written in order comes in parallel, and a bit out of it.  So near the last block that the volume was given a
 * data block for, the next one lies as far from that one's data block as the blocks are apart: what has
 * been passed over is there for who comes late.
 */
static int find_near(struct thin_dev *td, uint64_t block, uint64_t *data_block)
{
	struct thin_md *meta = td->meta;
	uint64_t window = MAX(NEAR_SECTORS / meta->block_sectors, 1);

	*data_block = td->last_data + (block - td->last_block); /* unsigned: below 0 is beyond the end */
	if (!td->has_last || (block - td->last_block > window && td->last_block - block > window))
		return -ENOSPC;
	return dm_sm_disk_find_at(meta->data_sm, *data_block);
}

/* A free data block for a block; `change` is held. */
static int find_free(struct thin_dev *td, uint64_t block, uint64_t *data_block)
{
	struct thin_md *meta = td->meta;
	int r = find_near(td, block, data_block);

	if (r == -ENOSPC)
		r = dm_sm_disk_find_free(meta->data_sm, data_block);
	if (r == -ENOSPC)
		atomic_store(&meta->no_space_at, atomic_load(&meta->releases));
	if (r)
		return r;
	td->has_last = true;
	td->last_block = block;
	td->last_data = *data_block;
	return 0;
}

int thin_md_reserve(struct thin_dev *td, uint64_t block, uint64_t *data_block)
{
	struct thin_md *meta = td->meta;
	int r = thin_md_begin(meta);

	if (r)
		return r;
	r = find_free(td, block, data_block);
	if (!r)
		dm_ranges_add(&meta->reserved, *data_block, *data_block + 1);
	return thin_md_end(meta, false, r);
}

void thin_md_unreserve(struct thin_md *meta, uint64_t data_block)
{
	pthread_mutex_lock(&meta->change);
	dm_ranges_remove(&meta->reserved, data_block, data_block + 1);
	thin_md_released(meta);
	pthread_mutex_unlock(&meta->change);
}

/* -EAGAIN unless the block is mapped to expected. */
static int check_expected(struct thin_md *meta, const uint64_t *keys, uint64_t expected)
{
	uint8_t le[8];
	int r = dm_btree_lookup(&meta->info, meta->root, keys, le);

	if (r == -ENODATA)
		return expected == THIN_NO_BLOCK ? 0 : -EAGAIN;
	return r ? r : get_le64(le) >> 24 == expected ? 0 : -EAGAIN;
}

static int map_block(struct thin_dev *td, const uint64_t *keys, uint64_t data_block)
{
	struct thin_md *meta = td->meta;
	uint64_t value = data_block << 24 | (meta->time & 0xffffff), le = GUINT64_TO_LE(value);
	bool inserted;
	int r = dm_sm_inc(meta->data_sm, data_block, data_block + 1);

	if (!r)
		r = dm_btree_insert(&meta->info, meta->root, keys, &le, &meta->root, &inserted);
	if (r)
		return r;
	atomic_fetch_add(&td->mapped, inserted);
	if (atomic_load(&td->top) != THIN_NO_BLOCK)
		atomic_store(&td->top, MAX(atomic_load(&td->top), keys[1] + 1));
	atomic_store(&td->changed, true);
	map_cache_set(meta->cache, td->cookie, keys[1], value);
	return 0;
}

int thin_md_insert(struct thin_dev *td, uint64_t block, uint64_t expected, uint64_t data_block)
{
	uint64_t keys[2] = {td->id, block};
	struct thin_md *meta = td->meta;
	bool changed = false;
	int r = thin_md_begin(meta);

	if (r)
		return r;
	r = check_expected(meta, keys, expected);
	if (!r) {
		changed = true;
		dm_ranges_remove(&meta->reserved, data_block, data_block + 1);
		r = map_block(td, keys, data_block);
		if (r)
			dm_ranges_add(&meta->reserved, data_block, data_block + 1);
	}
	return thin_md_end(meta, changed, r);
}

int thin_md_provision(struct thin_dev *td, uint64_t block)
{
	uint64_t keys[2] = {td->id, block}, data_block;
	struct thin_md *meta = td->meta;
	bool changed = false;
	int r = thin_md_begin(meta);

	if (r)
		return r;
	r = check_expected(meta, keys, THIN_NO_BLOCK);
	if (!r)
		r = find_free(td, block, &data_block);
	if (!r) {
		changed = true;
		r = map_block(td, keys, data_block);
		if (r == -ENOSPC) /* of the metadata: the transaction is lost */
			r = -EIO;
	}
	return thin_md_end(meta, changed, r);
}

/* --- unmapping --- */

static void forget_range(struct thin_dev *td, uint64_t begin, uint64_t end)
{
	struct thin_md *meta = td->meta;

	if (end - begin > 64) {
		atomic_store(&td->cookie, ++meta->next_cookie);
		return;
	}
	for (uint64_t b = begin; b < end; b++)
		map_cache_forget(meta->cache, td->cookie, b);
}

int thin_md_remove(struct thin_dev *td, uint64_t begin, uint64_t end, uint64_t max, struct dm_ranges *freed, bool *more)
{
	uint64_t keys[2] = {td->id, begin}, removed;
	struct thin_md *meta = td->meta;
	struct dm_ranges batch = {0};
	int r = thin_md_begin(meta);

	*more = false;
	if (r)
		return r;
	meta->freed = freed ? &batch : NULL;
	r = dm_btree_remove_range(&meta->info, meta->root, keys, end, max, &meta->root, &removed);
	meta->freed = NULL;
	if (removed) {
		td->mapped -= MIN(removed, td->mapped);
		if (atomic_load(&td->top) > begin && atomic_load(&td->top) <= end)
			thin_md_read_top(td);
		atomic_store(&td->changed, true);
		forget_range(td, begin, end);
	}
	for (unsigned i = 0; i < dm_ranges_n(&batch); i++) {
		dm_ranges_add(&meta->discarding, dm_ranges_at(&batch, i)->begin, dm_ranges_at(&batch, i)->end);
		dm_ranges_add(freed, dm_ranges_at(&batch, i)->begin, dm_ranges_at(&batch, i)->end);
	}
	dm_ranges_clear(&batch);
	*more = !r && removed == max;
	return thin_md_end(meta, removed || r, r);
}

void thin_md_discarded(struct thin_md *meta, struct dm_ranges *freed)
{
	pthread_mutex_lock(&meta->change);
	for (unsigned i = 0; i < dm_ranges_n(freed); i++)
		dm_ranges_remove(&meta->discarding, dm_ranges_at(freed, i)->begin, dm_ranges_at(freed, i)->end);
	thin_md_released(meta);
	pthread_mutex_unlock(&meta->change);
	dm_ranges_clear(freed);
}
