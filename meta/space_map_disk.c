/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The space map of another device, of any size: its bitmaps are metadata blocks behind an index btree, shadowed when
 * they change.
 *
 * The trees as of the last commit are kept: what they call free and what is free now may be allocated.  Index entries
 * change with every bitmap, so the last used ones are kept in memory and go to the tree when they are pushed out, or at
 * a commit.
 */
#include "space_map_internal.h"
#include <dmfs/le.h>

#include <dmfs/log.h>
#include <dmfs/rounding.h>

#include <errno.h>
#include <string.h>

#define KEPT_ENTRIES 64u /* a power of two */

struct kept_entry {
	bool valid, dirty;
	uint64_t index;
	struct index_entry ie;
};

struct sm_disk {
	struct dm_sm sm;
	struct dm_tm *tm;
	struct sm_root root, old;
	struct dm_btree_info bitmaps, overflow;
	struct kept_entry kept[KEPT_ENTRIES];
	struct kept_entry old_entry; /* the last one looked up in the old tree */
	dm_block_t cursor;           /* where the allocator goes on */
	bool wrapped;
	bool (*busy)(void *context, dm_block_t b);
	void *busy_context;
	void (*freed)(void *context, dm_block_t b, dm_block_t e, bool fresh);
	void *freed_context;
};

static struct sm_disk *to_sm(struct dm_sm *sm)
{
	return (struct sm_disk *)sm;
}

/* --- index entries --- */

static int put_entry(struct sm_disk *smd, struct kept_entry *k)
{
	uint8_t le[16];
	int r;

	if (!k->valid || !k->dirty)
		return 0;
	index_entry_write(&k->ie, le);
	r = dm_btree_insert(&smd->bitmaps, smd->root.bitmap_root, &k->index, le, &smd->root.bitmap_root, NULL);
	if (!r)
		k->dirty = false;
	return r;
}

static int read_entry(struct sm_disk *smd, dm_block_t tree, uint64_t index, struct kept_entry *k)
{
	uint8_t le[16];
	int r = dm_btree_lookup(&smd->bitmaps, tree, &index, le);

	if (r)
		return r == -ENODATA ? -EILSEQ : r;
	index_entry_read(le, &k->ie);
	k->index = index;
	k->valid = true;
	k->dirty = false;
	return 0;
}

/* Valid until the next call. */
static int get_entry(struct sm_disk *smd, uint64_t index, struct kept_entry **out)
{
	struct kept_entry *k = &smd->kept[index % KEPT_ENTRIES];
	int r;

	*out = k;
	if (k->valid && k->index == index)
		return 0;
	r = put_entry(smd, k);
	if (r)
		return r;
	k->valid = false;
	return read_entry(smd, smd->root.bitmap_root, index, k);
}

/* --- counts --- */

static int overflow_count(struct sm_disk *smd, dm_block_t root, dm_block_t b, uint32_t *count)
{
	uint8_t le[4];
	int r = dm_btree_lookup(&smd->overflow, root, &b, le);

	if (!r)
		*count = get_le32(le);
	return r == -ENODATA ? -EILSEQ : r;
}

static int read_bit(struct sm_disk *smd, const struct index_entry *ie, uint32_t i, uint32_t *count)
{
	struct dm_block *block;
	int r = dm_tm_read_lock(smd->tm, ie->blocknr, &sm_bitmap_validator, &block);

	if (r)
		return r;
	*count = bitmap_get((uint8_t *)dm_block_data(block) + BITMAP_HEADER, i);
	dm_tm_unlock(smd->tm, block);
	return 0;
}

static int disk_count(struct dm_sm *sm, dm_block_t b, uint32_t *count)
{
	struct sm_disk *smd = to_sm(sm);
	struct kept_entry *k;
	int r;

	if (b >= smd->root.nr_blocks)
		return -EILSEQ;
	r = get_entry(smd, b / BITMAP_ENTRIES, &k);
	if (!r)
		r = read_bit(smd, &k->ie, b % BITMAP_ENTRIES, count);
	if (!r && *count == 3)
		r = overflow_count(smd, smd->root.ref_count_root, b, count);
	return r;
}

static int get_old_entry(struct sm_disk *smd, uint64_t index, struct index_entry **out)
{
	int r = 0;

	if (!smd->old_entry.valid || smd->old_entry.index != index) {
		smd->old_entry.valid = false;
		r = read_entry(smd, smd->old.bitmap_root, index, &smd->old_entry);
	}
	*out = &smd->old_entry.ie;
	return r;
}

static int disk_is_fresh(struct dm_sm *sm, dm_block_t b, bool *fresh)
{
	struct sm_disk *smd = to_sm(sm);
	struct index_entry *ie;
	uint32_t count = 0;
	int r = 0;

	if (b >= smd->root.nr_blocks)
		return -EILSEQ;
	if (b < smd->old.nr_blocks) {
		r = get_old_entry(smd, b / BITMAP_ENTRIES, &ie);
		if (!r)
			r = read_bit(smd, ie, b % BITMAP_ENTRIES, &count);
	}
	*fresh = !count;
	return r;
}

/* Write-locks the bitmap of an entry, which then names its shadow. */
static int shadow_bitmap(struct sm_disk *smd, struct kept_entry *k, struct dm_block **block)
{
	bool inc;
	int r = dm_tm_shadow_block(smd->tm, k->ie.blocknr, &sm_bitmap_validator, block, &inc);

	if (r)
		return r;
	k->ie.blocknr = dm_block_location(*block);
	k->dirty = true;
	return 0;
}

static int set_overflow(struct sm_disk *smd, dm_block_t b, uint32_t count)
{
	dm_block_t *root = &smd->root.ref_count_root;
	uint8_t le[4];
	int r;

	put_le32(le, count);
	if (count >= 3)
		return dm_btree_insert(&smd->overflow, *root, &b, le, root, NULL);
	r = dm_btree_remove(&smd->overflow, *root, &b, root);
	return r == -ENODATA ? -EILSEQ : r;
}

/* Changes the count of one block whose bitmap is locked. */
static int change(struct sm_disk *smd, struct kept_entry *k, uint8_t *bits, dm_block_t b, int delta)
{
	uint32_t i = b % BITMAP_ENTRIES, old = bitmap_get(bits, i), count;
	int r = 0;

	if (old == 3)
		r = overflow_count(smd, smd->root.ref_count_root, b, &old);
	if (!r && (delta < 0 ? !old : old == UINT32_MAX)) {
		dm_log_err_limit("space map: data block %" G_GUINT64_FORMAT " has %u references, %s", b, old,
				 delta < 0 ? "one more is to go" : "no more fit");
		r = -EILSEQ;
	}
	count = old + delta;
	if (!r && (old >= 3 || count >= 3))
		r = set_overflow(smd, b, count);
	if (r)
		return r;
	bitmap_set(bits, i, MIN(count, 3));
	if (!old) {
		smd->root.nr_allocated++;
		k->ie.nr_free -= k->ie.nr_free > 0;
		if (k->ie.none_free_before == i)
			k->ie.none_free_before++;
	} else if (!count) {
		smd->root.nr_allocated -= smd->root.nr_allocated > 0;
		k->ie.nr_free += k->ie.nr_free < BITMAP_ENTRIES;
		k->ie.none_free_before = MIN(k->ie.none_free_before, i);
		smd->sm.freed = true;
	}
	return 0;
}

/* Whether the blocks were free at the last commit, run by run; of one bitmap. */
static int tell_freed(struct sm_disk *smd, dm_block_t b, dm_block_t e)
{
	struct dm_block *block = NULL;
	struct index_entry *ie;
	const uint8_t *old;
	int r;

	if (!smd->freed || b == e)
		return 0;
	if (b / BITMAP_ENTRIES * BITMAP_ENTRIES >= smd->old.nr_blocks) {
		smd->freed(smd->freed_context, b, e, true);
		return 0;
	}
	r = get_old_entry(smd, b / BITMAP_ENTRIES, &ie);
	if (!r)
		r = dm_tm_read_lock(smd->tm, ie->blocknr, &sm_bitmap_validator, &block);
	if (r)
		return r;
	old = (const uint8_t *)dm_block_data(block) + BITMAP_HEADER;
	for (dm_block_t end; b < e; b = end) {
		bool fresh = !bitmap_get(old, b % BITMAP_ENTRIES);

		for (end = b + 1; end < e && fresh == !bitmap_get(old, end % BITMAP_ENTRIES);)
			end++;
		smd->freed(smd->freed_context, b, end, fresh);
	}
	dm_tm_unlock(smd->tm, block);
	return 0;
}

/* Changes the counts of blocks of one bitmap, which is locked. */
static int change_run(struct sm_disk *smd, struct kept_entry *k, uint8_t *bits, dm_block_t b, dm_block_t e, int delta)
{
	dm_block_t freed = b; /* from here to b they are */
	int r = 0;

	for (; b < e && !r; b++) {
		r = change(smd, k, bits, b, delta);
		if (r || delta > 0 || bitmap_get(bits, b % BITMAP_ENTRIES)) {
			int r2 = delta < 0 ? tell_freed(smd, freed, b) : 0;

			r = r ? r : r2;
			freed = b + 1;
		}
	}
	return r || delta > 0 ? r : tell_freed(smd, freed, e);
}

static int disk_add(struct dm_sm *sm, dm_block_t b, dm_block_t e, int delta)
{
	struct sm_disk *smd = to_sm(sm);

	if (e > smd->root.nr_blocks || b > e) {
		dm_log_err_limit("space map: blocks %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT " of a device of %" G_GUINT64_FORMAT,
				 b, e, smd->root.nr_blocks);
		return -EILSEQ;
	}
	while (b < e) {
		dm_block_t end = MIN(e, (b / BITMAP_ENTRIES + 1) * BITMAP_ENTRIES);
		struct kept_entry *k;
		struct dm_block *block;
		int r = get_entry(smd, b / BITMAP_ENTRIES, &k);

		if (!r)
			r = shadow_bitmap(smd, k, &block);
		if (r)
			return r;
		r = change_run(smd, k, dm_block_data(block) + BITMAP_HEADER, b, end, delta);
		dm_tm_unlock(smd->tm, block);
		if (r)
			return r;
		b = end;
	}
	return 0;
}

/* --- allocation --- */

/* The first entry from begin to end - 1 of a bitmap that is free now and was at the last commit; end: none. */
static int search_bitmap(struct sm_disk *smd, uint64_t index, const struct index_entry *ie, uint32_t begin,
			 uint32_t end, uint32_t *out)
{
	struct dm_block *block, *old_block = NULL;
	const uint8_t *old = NULL;
	int r = 0;

	if (index * BITMAP_ENTRIES < smd->old.nr_blocks) {
		struct index_entry *old_ie;

		r = get_old_entry(smd, index, &old_ie);
		if (!r && old_ie->blocknr != ie->blocknr) {
			r = dm_tm_read_lock(smd->tm, old_ie->blocknr, &sm_bitmap_validator, &old_block);
			if (!r)
				old = dm_block_data(old_block) + BITMAP_HEADER;
		}
	}
	if (r)
		return r;
	r = dm_tm_read_lock(smd->tm, ie->blocknr, &sm_bitmap_validator, &block);
	if (!r) {
		const uint8_t *bits = dm_block_data(block) + BITMAP_HEADER;
		dm_block_t base = index * BITMAP_ENTRIES;

		*out = bitmap_find_free(bits, old, begin, end);
		while (*out < end && smd->busy && smd->busy(smd->busy_context, base + *out))
			*out = bitmap_find_free(bits, old, *out + 1, end);
		dm_tm_unlock(smd->tm, block);
	}
	if (old_block)
		dm_tm_unlock(smd->tm, old_block);
	return r;
}

static int find_free(struct sm_disk *smd, dm_block_t begin, dm_block_t end, dm_block_t *out)
{
	while (begin < end) {
		uint64_t index = begin / BITMAP_ENTRIES;
		dm_block_t base = index * BITMAP_ENTRIES, stop = MIN(end, base + BITMAP_ENTRIES);
		struct kept_entry *k;
		uint32_t found;
		int r = get_entry(smd, index, &k);

		if (r)
			return r;
		begin = MAX(begin, base + k->ie.none_free_before);
		if (k->ie.nr_free && begin < stop) {
			r = search_bitmap(smd, index, &k->ie, begin - base, stop - base, &found);
			if (r)
				return r;
			*out = base + found;
			if (*out < stop)
				return 0;
		}
		begin = stop;
	}
	return -ENOSPC;
}

int dm_sm_disk_find_free(struct dm_sm *sm, dm_block_t *b)
{
	struct sm_disk *smd = to_sm(sm);
	int r = find_free(smd, smd->cursor, smd->root.nr_blocks, b);
	if (r == -ENOSPC && !smd->wrapped) {
		smd->wrapped = true; /* once in a transaction: what it frees stays out of reach */
		r = find_free(smd, 0, smd->cursor, b);
	}
	if (r == -ENOSPC)
		smd->cursor = smd->root.nr_blocks;
	if (!r)
		smd->cursor = *b + 1;
	return r;
}

int dm_sm_disk_find_at(struct dm_sm *sm, dm_block_t b)
{
	struct sm_disk *smd = to_sm(sm);
	dm_block_t found;
	int r = b < smd->root.nr_blocks ? find_free(smd, b, b + 1, &found) : -ENOSPC;

	if (!r)
		smd->cursor = MAX(smd->cursor, b + 1);
	return r;
}

void dm_sm_disk_rewind(struct dm_sm *sm)
{
	to_sm(sm)->cursor = 0;
	to_sm(sm)->wrapped = false;
}

static int disk_new_block(struct dm_sm *sm, dm_block_t *b)
{
	int r = dm_sm_disk_find_free(sm, b);

	return r ? r : disk_add(sm, *b, *b + 1, 1);
}

static dm_block_t disk_nr_blocks(struct dm_sm *sm)
{
	return to_sm(sm)->root.nr_blocks;
}

static dm_block_t disk_nr_free(struct dm_sm *sm)
{
	return to_sm(sm)->root.nr_blocks - to_sm(sm)->root.nr_allocated;
}

/* --- transactions --- */

static int disk_write(struct dm_sm *sm)
{
	struct sm_disk *smd = to_sm(sm);
	int r = 0;

	for (unsigned i = 0; i < KEPT_ENTRIES && !r; i++)
		r = put_entry(smd, &smd->kept[i]);
	return r;
}

static void disk_committed(struct dm_sm *sm)
{
	struct sm_disk *smd = to_sm(sm);

	smd->old = smd->root;
	smd->old_entry.valid = false;
	if (smd->sm.freed)
		smd->cursor = 0;
	smd->wrapped = false;
}

static void disk_copy_root(struct dm_sm *sm, void *root)
{
	sm_root_write(&to_sm(sm)->root, root);
}

static int disk_extend(struct dm_sm *sm, dm_block_t extra)
{
	struct sm_disk *smd = to_sm(sm);
	dm_block_t blocks = smd->root.nr_blocks + extra;
	uint64_t have = dm_div_up(smd->root.nr_blocks, BITMAP_ENTRIES);

	if (blocks < extra || blocks >> 55)
		return -EINVAL;
	for (uint64_t i = have; i < dm_div_up(blocks, BITMAP_ENTRIES); i++) {
		struct kept_entry *k = &smd->kept[i % KEPT_ENTRIES];
		struct dm_block *block;
		int r = put_entry(smd, k);

		if (!r)
			r = dm_tm_new_block(smd->tm, &sm_bitmap_validator, &block);
		if (r)
			return r;
		*k = (struct kept_entry){true, true, i, {dm_block_location(block), BITMAP_ENTRIES, 0}};
		dm_tm_unlock(smd->tm, block);
	}
	smd->cursor = MIN(smd->cursor, smd->root.nr_blocks);
	smd->root.nr_blocks = blocks;
	return 0;
}

void dm_sm_disk_set_busy(struct dm_sm *sm, bool (*busy)(void *context, dm_block_t b), void *context)
{
	to_sm(sm)->busy = busy;
	to_sm(sm)->busy_context = context;
}

void dm_sm_disk_set_freed(struct dm_sm *sm, void (*freed)(void *context, dm_block_t b, dm_block_t e, bool fresh),
			  void *context)
{
	to_sm(sm)->freed = freed;
	to_sm(sm)->freed_context = context;
}

static void disk_free(struct dm_sm *sm)
{
	dm_tm_leave(to_sm(sm)->tm, sm);
	g_free(sm);
}

static const struct dm_sm_ops disk_ops = {
	.free = disk_free,
	.nr_blocks = disk_nr_blocks,
	.nr_free = disk_nr_free,
	.extend = disk_extend,
	.count = disk_count,
	.add = disk_add,
	.new_block = disk_new_block,
	.is_fresh = disk_is_fresh,
	.write = disk_write,
	.committed = disk_committed,
	.copy_root = disk_copy_root,
};

static struct sm_disk *disk_new(struct dm_tm *tm)
{
	struct sm_disk *smd = g_new0(struct sm_disk, 1);

	smd->sm.ops = &disk_ops;
	smd->tm = tm;
	smd->bitmaps = (struct dm_btree_info){.tm = tm, .levels = 1, .vt = {.size = 16}};
	smd->overflow = (struct dm_btree_info){.tm = tm, .levels = 1, .vt = {.size = 4}};
	dm_tm_join(tm, &smd->sm);
	return smd;
}

static struct dm_sm *finish(struct sm_disk *smd, int *error)
{
	if (!*error)
		return &smd->sm;
	disk_free(&smd->sm);
	return NULL;
}

struct dm_sm *dm_sm_disk_create(struct dm_tm *tm, dm_block_t nr_blocks, int *error)
{
	struct sm_disk *smd = disk_new(tm);

	*error = dm_btree_empty(&smd->bitmaps, &smd->root.bitmap_root);
	if (!*error)
		*error = dm_btree_empty(&smd->overflow, &smd->root.ref_count_root);
	if (!*error)
		*error = disk_extend(&smd->sm, nr_blocks);
	return finish(smd, error);
}

struct dm_sm *dm_sm_disk_open(struct dm_tm *tm, const void *root, size_t len, int *error)
{
	struct sm_disk *smd = disk_new(tm);

	*error = sm_root_read(root, len, &smd->root);
	smd->old = smd->root;
	return finish(smd, error);
}
