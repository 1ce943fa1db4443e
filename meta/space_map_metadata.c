/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The metadata device's own space map.
 *
 * Its bitmaps are at most 1 MiB, so they are worked on in memory (each read when first needed), beside a copy as of the
 * last commit.  Allocating a block for the map itself is then no recursion; it is a bit in memory like any other.  The
 * disk sees it at a commit: counts of 3 and more go to the overflow tree, each changed bitmap and the index get new
 * places (which may change further bitmaps, each of which moves once), then all are written.
 *
 * Counts of 3 and more that changed wait in a hash; it is emptied early when it grows.
 */
#include "space_map_internal.h"
#include <dmfs/le.h>

#include <dmfs/log.h>
#include <dmfs/rounding.h>

#include <errno.h>
#include <string.h>

#define MAX_PENDING 16384 /* counts in the hash */

struct bitmap {
	struct index_entry ie;
	uint8_t *now, *old; /* NULL: not read yet */
	bool dirty;
};

struct sm_metadata {
	struct dm_sm sm;
	struct dm_tm *tm;
	struct sm_root root;
	dm_block_t superblock;
	struct bitmap *bitmaps;
	unsigned nr_bitmaps;
	struct dm_btree_info overflow;
	GHashTable *pending; /* block -> count, boxed uint64_t both */
	bool applying, index_dirty;
	dm_block_t nr_free; /* free now and at the last commit */
	dm_block_t cursor;  /* nothing free to hand out before it */
};

static struct sm_metadata *to_sm(struct dm_sm *sm)
{
	return (struct sm_metadata *)sm;
}

static unsigned bitmaps_for(dm_block_t blocks)
{
	return dm_div_up(blocks, BITMAP_ENTRIES);
}

static int load_bitmap(struct sm_metadata *smm, unsigned i, struct bitmap **out)
{
	struct bitmap *bm = &smm->bitmaps[i];
	struct dm_block *block;
	int r;

	*out = bm;
	if (bm->now)
		return 0;
	r = dm_tm_read_lock(smm->tm, bm->ie.blocknr, &sm_bitmap_validator, &block);
	if (r)
		return r;
	bm->now = g_memdup2(dm_block_data(block) + BITMAP_HEADER, BITMAP_BYTES);
	bm->old = g_memdup2(bm->now, BITMAP_BYTES);
	dm_tm_unlock(smm->tm, block);
	return 0;
}

/* --- counts --- */

static int metadata_count(struct dm_sm *sm, dm_block_t b, uint32_t *count)
{
	struct sm_metadata *smm = to_sm(sm);
	struct bitmap *bm;
	uint64_t *pending;
	uint8_t le[4];
	int r;

	if (b >= smm->root.nr_blocks)
		return -EILSEQ;
	r = load_bitmap(smm, b / BITMAP_ENTRIES, &bm);
	if (r)
		return r;
	*count = bitmap_get(bm->now, b % BITMAP_ENTRIES);
	if (*count < 3)
		return 0;
	pending = g_hash_table_lookup(smm->pending, &b);
	if (pending) {
		*count = *pending;
		return 0;
	}
	r = dm_btree_lookup(&smm->overflow, smm->root.ref_count_root, &b, le);
	if (!r)
		*count = get_le32(le);
	return r == -ENODATA ? -EILSEQ : r;
}

static int apply_pending(struct sm_metadata *smm);

static int set_count(struct sm_metadata *smm, dm_block_t b, uint32_t old, uint32_t count)
{
	uint32_t i = b % BITMAP_ENTRIES;
	struct bitmap *bm;
	int r = load_bitmap(smm, b / BITMAP_ENTRIES, &bm);

	if (r)
		return r;
	bitmap_set(bm->now, i, MIN(count, 3));
	bm->dirty = true;
	if (!old && count) {
		smm->root.nr_allocated++;
		smm->nr_free -= smm->nr_free && !bitmap_get(bm->old, i);
		bm->ie.nr_free -= bm->ie.nr_free > 0;
		if (bm->ie.none_free_before == i)
			bm->ie.none_free_before = i + 1;
	} else if (old && !count) {
		smm->root.nr_allocated -= smm->root.nr_allocated > 0;
		if (bitmap_get(bm->old, i))
			smm->sm.freed = true;
		else
			smm->nr_free++, smm->cursor = MIN(smm->cursor, b);
		bm->ie.nr_free += bm->ie.nr_free < BITMAP_ENTRIES;
		bm->ie.none_free_before = MIN(bm->ie.none_free_before, i);
	}
	if (count >= 3 || old >= 3)
		g_hash_table_insert(smm->pending, g_memdup2(&b, 8), g_memdup2(&(uint64_t){count}, 8));
	if (g_hash_table_size(smm->pending) > MAX_PENDING && !smm->applying)
		return apply_pending(smm);
	return 0;
}

static int metadata_add(struct dm_sm *sm, dm_block_t b, dm_block_t e, int delta)
{
	for (; b < e; b++) {
		uint32_t count;
		int r = metadata_count(sm, b, &count);

		if (r)
			return r;
		if (delta < 0 ? !count : count == UINT32_MAX) {
			dm_log_err_limit("space map: metadata block %" G_GUINT64_FORMAT " has %u references, %s", b, count,
					 delta < 0 ? "one more is to go" : "no more fit");
			return -EILSEQ;
		}
		r = set_count(to_sm(sm), b, count, count + delta);
		if (r)
			return r;
	}
	return 0;
}

static int metadata_is_fresh(struct dm_sm *sm, dm_block_t b, bool *fresh)
{
	struct sm_metadata *smm = to_sm(sm);
	struct bitmap *bm;
	int r;

	if (b >= smm->root.nr_blocks)
		return -EILSEQ;
	r = load_bitmap(smm, b / BITMAP_ENTRIES, &bm);
	if (!r)
		*fresh = !bitmap_get(bm->old, b % BITMAP_ENTRIES);
	return r;
}

static int metadata_new_block(struct dm_sm *sm, dm_block_t *out)
{
	struct sm_metadata *smm = to_sm(sm);

	for (unsigned i = smm->cursor / BITMAP_ENTRIES; i < smm->nr_bitmaps; i++) {
		dm_block_t base = (dm_block_t)i * BITMAP_ENTRIES, b = MAX(smm->cursor, base);
		uint32_t end = MIN(smm->root.nr_blocks - base, BITMAP_ENTRIES);
		struct bitmap *bm;
		int r = load_bitmap(smm, i, &bm);

		if (r)
			return r;
		b = MAX(b, base + bm->ie.none_free_before);
		b = base + bitmap_find_free(bm->now, bm->old, MIN(b - base, end), end);
		if (b == base + end)
			continue;
		smm->cursor = b + 1;
		*out = b;
		return set_count(smm, b, 0, 1);
	}
	smm->cursor = smm->root.nr_blocks;
	return -ENOSPC;
}

static dm_block_t metadata_nr_blocks(struct dm_sm *sm)
{
	return to_sm(sm)->root.nr_blocks;
}

static dm_block_t metadata_nr_free(struct dm_sm *sm)
{
	return to_sm(sm)->nr_free;
}

/* --- writing --- */

/* Brings the overflow tree up to date. */
static int apply_pending(struct sm_metadata *smm)
{
	int r = 0;

	smm->applying = true;
	while (!r && g_hash_table_size(smm->pending)) {
		g_autoptr(GHashTable) batch = smm->pending;
		GHashTableIter it;
		gpointer key, value;

		smm->pending = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
		g_hash_table_iter_init(&it, batch);
		while (!r && g_hash_table_iter_next(&it, &key, &value)) {
			uint64_t b = *(uint64_t *)key, count = *(uint64_t *)value;
			uint8_t le[4];

			put_le32(le, count);
			if (count >= 3)
				r = dm_btree_insert(&smm->overflow, smm->root.ref_count_root, &b, le,
						    &smm->root.ref_count_root, NULL);
			else
				r = dm_btree_remove(&smm->overflow, smm->root.ref_count_root, &b,
						    &smm->root.ref_count_root);
			if (r == -ENODATA) /* it rose above 2 and fell again meanwhile */
				r = 0;
		}
	}
	smm->applying = false;
	return r;
}

/* A place that nothing committed uses, for what is at *where now (0: nowhere). */
static int move(struct sm_metadata *smm, dm_block_t *where, bool *moved)
{
	bool fresh = false;
	dm_block_t to;
	int r = 0;

	if (*where)
		r = metadata_is_fresh(&smm->sm, *where, &fresh);
	if (r || fresh)
		return r;
	r = metadata_new_block(&smm->sm, &to);
	if (!r && *where)
		r = metadata_add(&smm->sm, *where, *where + 1, -1);
	*where = to;
	*moved = true;
	return r;
}

static int move_all(struct sm_metadata *smm)
{
	bool moved;

	do {
		int r = 0;

		moved = false;
		for (unsigned i = 0; i < smm->nr_bitmaps && !r; i++)
			if (smm->bitmaps[i].dirty)
				r = move(smm, &smm->bitmaps[i].ie.blocknr, &moved);
		if (!r)
			r = move(smm, &smm->root.bitmap_root, &moved);
		if (r)
			return r;
	} while (moved);
	return 0;
}

static int write_bitmaps(struct sm_metadata *smm)
{
	struct dm_block *block;
	int r;

	for (unsigned i = 0; i < smm->nr_bitmaps; i++) {
		struct bitmap *bm = &smm->bitmaps[i];

		if (!bm->dirty)
			continue;
		r = dm_bm_write_lock_zero(dm_tm_bm(smm->tm), bm->ie.blocknr, &sm_bitmap_validator, &block);
		if (r)
			return r;
		memcpy(dm_block_data(block) + BITMAP_HEADER, bm->now, BITMAP_BYTES);
		dm_bm_unlock(block);
	}
	r = dm_bm_write_lock_zero(dm_tm_bm(smm->tm), smm->root.bitmap_root, &sm_index_validator, &block);
	if (r)
		return r;
	for (unsigned i = 0; i < smm->nr_bitmaps; i++)
		index_entry_write(&smm->bitmaps[i].ie, dm_block_data(block) + 16 * (i + 1));
	dm_bm_unlock(block);
	return 0;
}

static int metadata_write(struct dm_sm *sm)
{
	struct sm_metadata *smm = to_sm(sm);
	bool any = smm->index_dirty;
	int r = apply_pending(smm);

	for (unsigned i = 0; i < smm->nr_bitmaps; i++)
		any = any || smm->bitmaps[i].dirty;
	if (r || !any)
		return r;
	smm->index_dirty = true;
	r = move_all(smm);
	return r ? r : write_bitmaps(smm);
}

static void metadata_committed(struct dm_sm *sm)
{
	struct sm_metadata *smm = to_sm(sm);

	for (unsigned i = 0; i < smm->nr_bitmaps; i++) {
		struct bitmap *bm = &smm->bitmaps[i];

		if (bm->dirty)
			memcpy(bm->old, bm->now, BITMAP_BYTES);
		bm->dirty = false;
	}
	smm->index_dirty = false;
	smm->nr_free = smm->root.nr_blocks - smm->root.nr_allocated;
	smm->cursor = 0;
}

static void metadata_copy_root(struct dm_sm *sm, void *root)
{
	sm_root_write(&to_sm(sm)->root, root);
}

/* --- making, growing, opening --- */

static int metadata_extend(struct dm_sm *sm, dm_block_t extra)
{
	struct sm_metadata *smm = to_sm(sm);
	dm_block_t blocks = smm->root.nr_blocks + extra;
	unsigned n;

	if (blocks < extra || blocks > DM_SM_METADATA_MAX_BLOCKS)
		return -EINVAL;
	n = bitmaps_for(blocks);
	smm->bitmaps = g_renew(struct bitmap, smm->bitmaps, n);
	for (unsigned i = smm->nr_bitmaps; i < n; i++)
		smm->bitmaps[i] = (struct bitmap){
			.ie = {.nr_free = BITMAP_ENTRIES},
			.now = g_malloc0(BITMAP_BYTES),
			.old = g_malloc0(BITMAP_BYTES),
			.dirty = true,
		};
	smm->nr_bitmaps = n;
	smm->root.nr_blocks = blocks;
	smm->nr_free += extra;
	smm->index_dirty = true;
	return 0;
}

static void metadata_free(struct dm_sm *sm)
{
	struct sm_metadata *smm = to_sm(sm);

	for (unsigned i = 0; i < smm->nr_bitmaps; i++) {
		g_free(smm->bitmaps[i].now);
		g_free(smm->bitmaps[i].old);
	}
	g_free(smm->bitmaps);
	g_hash_table_destroy(smm->pending);
	g_free(smm);
}

static const struct dm_sm_ops metadata_ops = {
	.free = metadata_free,
	.nr_blocks = metadata_nr_blocks,
	.nr_free = metadata_nr_free,
	.extend = metadata_extend,
	.count = metadata_count,
	.add = metadata_add,
	.new_block = metadata_new_block,
	.is_fresh = metadata_is_fresh,
	.write = metadata_write,
	.committed = metadata_committed,
	.copy_root = metadata_copy_root,
};

static struct sm_metadata *metadata_new(struct dm_tm *tm, dm_block_t superblock)
{
	struct sm_metadata *smm = g_new0(struct sm_metadata, 1);

	smm->sm.ops = &metadata_ops;
	smm->tm = tm;
	smm->superblock = superblock;
	smm->overflow = (struct dm_btree_info){.tm = tm, .levels = 1, .vt = {.size = 4}};
	smm->pending = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, g_free);
	return smm;
}

/* The overflow tree's first node needs the manager to know its space map already. */
static int metadata_format(struct sm_metadata *smm, dm_block_t nr_blocks)
{
	int r = metadata_extend(&smm->sm, nr_blocks);

	if (!r)
		r = metadata_add(&smm->sm, smm->superblock, smm->superblock + 1, 1);
	return r;
}

struct dm_sm *dm_sm_metadata_create(struct dm_tm *tm, dm_block_t superblock, dm_block_t nr_blocks, int *error)
{
	struct sm_metadata *smm = metadata_new(tm, superblock);

	*error = metadata_format(smm, nr_blocks);
	dm_tm_adopt(tm, &smm->sm);
	if (!*error)
		*error = dm_btree_empty(&smm->overflow, &smm->root.ref_count_root);
	return &smm->sm;
}

static int read_index(struct sm_metadata *smm)
{
	struct dm_block *block;
	int r = dm_tm_read_lock(smm->tm, smm->root.bitmap_root, &sm_index_validator, &block);

	if (r)
		return r;
	smm->nr_bitmaps = bitmaps_for(smm->root.nr_blocks);
	smm->bitmaps = g_new0(struct bitmap, smm->nr_bitmaps);
	for (unsigned i = 0; i < smm->nr_bitmaps; i++)
		index_entry_read(dm_block_data(block) + 16 * (i + 1), &smm->bitmaps[i].ie);
	dm_tm_unlock(smm->tm, block);
	return 0;
}

struct dm_sm *dm_sm_metadata_open(struct dm_tm *tm, dm_block_t superblock, const void *root, size_t len, int *error)
{
	struct sm_metadata *smm = metadata_new(tm, superblock);

	*error = sm_root_read(root, len, &smm->root);
	if (!*error && smm->root.nr_blocks > DM_SM_METADATA_MAX_BLOCKS)
		*error = -EILSEQ;
	if (*error)
		smm->root = (struct sm_root){0};
	smm->nr_free = smm->root.nr_blocks - smm->root.nr_allocated;
	if (!*error)
		*error = read_index(smm);
	return &smm->sm;
}
