/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An array block, little endian; the btree's key of block i is i:
 *
 *   u32 checksum (of all after it)   u32 most values   u32 values   u32 bytes of a value   u64 own block number
 *   values
 *
 * All blocks but the last are full.
 */
#include <dmfs/array.h>
#include <dmfs/log.h>

#include <dmfs/le.h>

#include <errno.h>

#define ARRAY_HEADER 24
#define ARRAY_SEED 595846735

static uint32_t max_values(uint32_t value_size)
{
	return (DM_META_BLOCK_SIZE - ARRAY_HEADER) / value_size;
}

static void array_prepare(void *context, dm_block_t where, void *data, size_t size)
{
	put_le64(data + 16, where);
	put_le32(data, dm_bm_checksum(data + 4, size - 4, ARRAY_SEED));
}

static int array_check(void *context, dm_block_t where, const void *data, size_t size)
{
	uint32_t max = get_le32(data + 4), nr = get_le32(data + 8), value_size = get_le32(data + 12);

	if (get_le64(data + 16) != where) {
		dm_log_err_limit("array: block %" G_GUINT64_FORMAT " says it is block %" G_GUINT64_FORMAT, where,
				 get_le64(data + 16));
		return -ENOTBLK;
	}
	if (get_le32(data) != dm_bm_checksum(data + 4, size - 4, ARRAY_SEED)) {
		dm_log_err_limit("array: block %" G_GUINT64_FORMAT ": the checksum is not that of its content", where);
		return -EILSEQ;
	}
	if (!value_size || max != max_values(value_size) || nr > max) {
		dm_log_err_limit("array: block %" G_GUINT64_FORMAT ": %u of %u values of %u bytes cannot be", where, nr, max,
				 value_size);
		return -EILSEQ;
	}
	return 0;
}

static const struct dm_validator array_validator = {"array block", array_prepare, array_check, NULL};

static uint8_t *value_at(struct dm_array_info *info, struct dm_block *block, uint32_t i)
{
	return (uint8_t *)dm_block_data(block) + ARRAY_HEADER + (size_t)info->vt.size * i;
}

static uint32_t block_nr(struct dm_block *block)
{
	return get_le32(dm_block_data(block) + 8);
}

static void set_block_nr(struct dm_block *block, uint32_t nr)
{
	put_le32(dm_block_data(block) + 8, nr);
}

static int check_size(struct dm_array_info *info, struct dm_block *block)
{
	return get_le32(dm_block_data(block) + 12) == info->vt.size ? 0 : -EILSEQ;
}

static int read_block(struct dm_array_info *info, dm_block_t b, struct dm_block **block)
{
	int r = dm_tm_read_lock(info->tm, b, &array_validator, block);

	if (r)
		return r;
	r = check_size(info, *block);
	if (r)
		dm_tm_unlock(info->tm, *block);
	return r;
}

static int new_block(struct dm_array_info *info, struct dm_block **block)
{
	int r = dm_tm_new_block(info->tm, &array_validator, block);

	if (r)
		return r;
	put_le32(dm_block_data(*block) + 4, max_values(info->vt.size));
	put_le32(dm_block_data(*block) + 12, info->vt.size);
	return 0;
}

static int inc_values(struct dm_array_info *info, const void *values, uint32_t n)
{
	return info->vt.inc && n ? info->vt.inc(info->vt.context, values, n) : 0;
}

static int dec_values(struct dm_array_info *info, const void *values, uint32_t n)
{
	return info->vt.dec && n ? info->vt.dec(info->vt.context, values, n) : 0;
}

/* --- the btree's values: references to array blocks --- */

static int blocks_inc(void *context, const void *values, unsigned n)
{
	struct dm_array_info *info = context;

	return dm_tm_inc_many(info->tm, values, n);
}

static int block_dec(struct dm_array_info *info, dm_block_t b)
{
	struct dm_block *block;
	uint32_t count;
	int r = dm_tm_ref(info->tm, b, &count);

	if (!r && count == 1) {
		r = read_block(info, b, &block);
		if (r)
			return r;
		r = dec_values(info, value_at(info, block, 0), block_nr(block));
		dm_tm_unlock(info->tm, block);
	}
	return r ? r : dm_tm_dec(info->tm, b);
}

static int blocks_dec(void *context, const void *values, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		int r = block_dec(context, get_le64(values + 8 * i));

		if (r)
			return r;
	}
	return 0;
}

static bool blocks_equal(void *context, const void *a, const void *b)
{
	return !memcmp(a, b, 8);
}

void dm_array_info_init(struct dm_array_info *info, struct dm_tm *tm, const struct dm_btree_value_type *vt)
{
	info->tm = tm;
	info->vt = *vt;
	info->btree = (struct dm_btree_info){
		.tm = tm, .levels = 1, .vt = {info, 8, blocks_inc, blocks_dec, blocks_equal}};
}

/* --- blocks of an array --- */

static int lookup_block(struct dm_array_info *info, dm_block_t root, uint64_t index, dm_block_t *b)
{
	uint8_t le[8];
	int r = dm_btree_lookup(&info->btree, root, &index, le);

	if (!r)
		*b = get_le64(le);
	return r;
}

static int link_block(struct dm_array_info *info, dm_block_t *root, uint64_t index, dm_block_t b)
{
	uint64_t le = GUINT64_TO_LE(b);

	return dm_btree_insert(&info->btree, *root, &index, &le, root, NULL);
}

/* Write-locks block index of the array, shadowed. */
static int shadow_block(struct dm_array_info *info, dm_block_t *root, uint64_t index, struct dm_block **block)
{
	dm_block_t b;
	bool inc;
	int r = lookup_block(info, *root, index, &b);

	if (!r)
		r = link_block(info, root, index, b); /* changes nothing, but the leaf is our own from now on */
	if (!r)
		r = dm_tm_shadow_block(info->tm, b, &array_validator, block, &inc);
	if (r)
		return r;
	r = check_size(info, *block);
	if (!r && inc)
		r = inc_values(info, value_at(info, *block, 0), block_nr(*block));
	if (!r && dm_block_location(*block) != b) {
		/* The shadow has taken over b's reference, and the btree's value must not drop it again. */
		uint64_t le = GUINT64_TO_LE(dm_block_location(*block));
		struct dm_btree_info plain = {.tm = info->tm, .levels = 1, .vt = {.size = 8}};

		r = dm_btree_insert(&plain, *root, &index, &le, root, NULL);
	}
	if (r)
		dm_tm_unlock(info->tm, *block);
	return r;
}

int dm_array_empty(struct dm_array_info *info, dm_block_t *root)
{
	return dm_btree_empty(&info->btree, root);
}

int dm_array_new(struct dm_array_info *info, dm_block_t *root, uint32_t size,
		 int (*fn)(void *context, uint32_t index, void *value), void *context)
{
	uint32_t max = max_values(info->vt.size);
	int r = dm_array_empty(info, root);

	for (uint32_t at = 0; at < size && !r;) {
		uint32_t n = MIN(size - at, max), i;
		struct dm_block *block;

		r = new_block(info, &block);
		if (r)
			return r;
		for (i = 0; i < n && !r; i++)
			r = fn(context, at + i, value_at(info, block, i));
		set_block_nr(block, n);
		dm_tm_unlock(info->tm, block);
		if (!r)
			r = link_block(info, root, at / max, dm_block_location(block));
		at += n;
	}
	return r;
}

static int fill(struct dm_array_info *info, struct dm_block *block, uint32_t nr, const void *value)
{
	for (uint32_t i = block_nr(block); i < nr; i++) {
		int r = inc_values(info, value, 1);

		if (r)
			return r;
		memcpy(value_at(info, block, i), value, info->vt.size);
	}
	set_block_nr(block, nr);
	return 0;
}

static int grow(struct dm_array_info *info, dm_block_t *root, uint32_t old_size, uint32_t new_size, const void *value)
{
	uint32_t max = max_values(info->vt.size);
	int r = 0;

	for (uint32_t at = old_size; at < new_size && !r;) {
		uint32_t index = at / max, n = MIN(new_size - index * max, max);
		struct dm_block *block;

		r = at % max ? shadow_block(info, root, index, &block) : new_block(info, &block);
		if (r)
			return r;
		if (block_nr(block) != at % max)
			r = -EILSEQ;
		if (!r)
			r = fill(info, block, n, value);
		dm_tm_unlock(info->tm, block);
		if (!r && !(at % max))
			r = link_block(info, root, index, dm_block_location(block));
		at = index * max + n;
	}
	return r;
}

static int shrink(struct dm_array_info *info, dm_block_t *root, uint32_t new_size)
{
	uint32_t max = max_values(info->vt.size), nr = new_size % max;
	uint64_t first = (new_size + (uint64_t)max - 1) / max, removed;
	struct dm_block *block;
	int r = dm_btree_remove_range(&info->btree, *root, &first, UINT64_MAX, UINT64_MAX, root, &removed);

	if (r || !nr)
		return r;
	r = shadow_block(info, root, new_size / max, &block);
	if (r)
		return r;
	if (block_nr(block) < nr)
		r = -EILSEQ;
	if (!r)
		r = dec_values(info, value_at(info, block, nr), block_nr(block) - nr);
	if (!r)
		set_block_nr(block, nr);
	dm_tm_unlock(info->tm, block);
	return r;
}

int dm_array_resize(struct dm_array_info *info, dm_block_t root, uint32_t old_size, uint32_t new_size,
		    const void *value, dm_block_t *new_root)
{
	*new_root = root;
	if (new_size > old_size)
		return grow(info, new_root, old_size, new_size, value);
	return new_size < old_size ? shrink(info, new_root, new_size) : 0;
}

int dm_array_del(struct dm_array_info *info, dm_block_t root)
{
	return dm_btree_del(&info->btree, root);
}

int dm_array_get(struct dm_array_info *info, dm_block_t root, uint32_t index, void *value)
{
	uint32_t max = max_values(info->vt.size);
	struct dm_block *block;
	dm_block_t b;
	int r = lookup_block(info, root, index / max, &b);

	if (!r)
		r = read_block(info, b, &block);
	if (r)
		return r;
	if (index % max < block_nr(block))
		memcpy(value, value_at(info, block, index % max), info->vt.size);
	else
		r = -ENODATA;
	dm_tm_unlock(info->tm, block);
	return r;
}

int dm_array_set_run(struct dm_array_info *info, dm_block_t root, uint32_t index, uint32_t n, const void *values,
		     dm_block_t *new_root)
{
	uint32_t max = max_values(info->vt.size), here;
	uint8_t *old, ignored[DM_BTREE_MAX_VALUE];
	const uint8_t *value = values;
	struct dm_block *block;
	int r = 0;

	*new_root = root;
	for (; n && !r; n -= here, index += here) {
		here = MIN(n, max - index % max);
		r = dm_array_get(info, *new_root, index + here - 1, ignored); /* then those before it are there, too */
		if (!r)
			r = shadow_block(info, new_root, index / max, &block);
		if (r)
			return r;
		for (uint32_t i = 0; i < here && !r; i++, value += info->vt.size) {
			old = value_at(info, block, index % max + i);
			if (info->vt.dec && !(info->vt.equal && info->vt.equal(info->vt.context, old, value)))
				r = info->vt.dec(info->vt.context, old, 1);
			if (!r)
				memcpy(old, value, info->vt.size);
		}
		dm_tm_unlock(info->tm, block);
	}
	return r;
}

int dm_array_set(struct dm_array_info *info, dm_block_t root, uint32_t index, const void *value,
		 dm_block_t *new_root)
{
	return dm_array_set_run(info, root, index, 1, value, new_root);
}

/* --- cursor and walk --- */

#define AHEAD 64u /* blocks that are asked for before they are needed */

/* Asks for the blocks after the one the cursor has come to, in runs of neighbours, as far as its leaf tells of them. */
static void read_ahead(struct dm_array_cursor *c)
{
	const struct dm_btree_cursor *b = &c->blocks;
	unsigned end = MIN(b->at + 1 + AHEAD, b->n), run;

	if (c->ahead > b->at + 1 + AHEAD / 2 || c->ahead >= b->n) /* again when half of them are used up */
		return;
	for (unsigned i = MAX(c->ahead, b->at + 1); i < end; i += run) {
		dm_block_t first = get_le64(b->values + 8 * (size_t)i);

		for (run = 1; i + run < end && get_le64(b->values + 8 * (size_t)(i + run)) == first + run;)
			run++;
		dm_bm_prefetch(dm_tm_bm(c->info->tm), first, run);
	}
	c->ahead = end;
}

static int next_block(struct dm_array_cursor *c)
{
	unsigned before = c->blocks.at;
	int r = dm_btree_cursor_next(&c->blocks);

	if (c->blocks.at <= before) /* another leaf */
		c->ahead = 0;
	return r;
}

/* Takes the values of the block that the btree's cursor is at, which must be number nr. */
static int take_block(struct dm_array_cursor *c, uint32_t nr)
{
	uint32_t max = max_values(c->info->vt.size);
	struct dm_block *block;
	const void *value;
	int r = dm_btree_cursor_get(&c->blocks, &value) == nr ? 0 : -EILSEQ;

	if (r)
		return r;
	read_ahead(c);
	r = read_block(c->info, get_le64(value), &block);
	if (r)
		return r;
	c->n = block_nr(block);
	memcpy(c->values, value_at(c->info, block, 0), (size_t)c->n * c->info->vt.size);
	dm_tm_unlock(c->info->tm, block);
	return c->n < MIN(max, c->size - nr * max) ? -EILSEQ : 0;
}

/* Goes to an index below the size. */
static int go_to(struct dm_array_cursor *c, uint32_t index)
{
	uint32_t max = max_values(c->info->vt.size), nr = index / max;
	int r;

	if (c->begun && nr == c->index / max) {
		r = 0;
	} else if (c->begun && nr == c->index / max + 1) {
		r = next_block(c);
		r = r ? r : take_block(c, nr);
	} else {
		c->ahead = 0;
		r = dm_btree_cursor_begin(&c->info->btree, c->root, nr, &c->blocks);
		r = r ? r : take_block(c, nr);
		c->begun = true;
	}
	c->index = index;
	c->at = index % max;
	return r == -ENODATA ? -EILSEQ : r;
}

int dm_array_cursor_begin(struct dm_array_info *info, dm_block_t root, uint32_t size, struct dm_array_cursor *c)
{
	c->info = info;
	c->root = root;
	c->index = 0;
	c->size = size;
	c->begun = false;
	return size ? go_to(c, 0) : -ENODATA;
}

int dm_array_cursor_skip(struct dm_array_cursor *c, uint32_t n)
{
	if (n >= c->size - c->index) {
		c->index = c->size;
		return -ENODATA;
	}
	if (n < c->n - c->at) {
		c->index += n;
		c->at += n;
		return 0;
	}
	return go_to(c, c->index + n);
}

int dm_array_cursor_next(struct dm_array_cursor *c)
{
	return dm_array_cursor_skip(c, 1);
}

static int walk_block(struct dm_array_info *info, uint64_t key, dm_block_t b,
		      int (*fn)(void *context, uint32_t index, const void *value), void *context)
{
	uint32_t max = max_values(info->vt.size);
	struct dm_block *block;
	int r = key > UINT32_MAX / max ? -EILSEQ : read_block(info, b, &block);

	if (r)
		return r;
	for (uint32_t i = 0; i < block_nr(block) && !r; i++)
		r = fn(context, key * max + i, value_at(info, block, i));
	dm_tm_unlock(info->tm, block);
	return r;
}

int dm_array_walk(struct dm_array_info *info, dm_block_t root,
		  int (*fn)(void *context, uint32_t index, const void *value), void *context)
{
	g_autofree struct dm_array_cursor *c = g_new(struct dm_array_cursor, 1);
	int r = dm_btree_cursor_begin(&info->btree, root, 0, &c->blocks);

	c->info = info;
	c->ahead = 0;
	while (!r) {
		const void *value;
		uint64_t key = dm_btree_cursor_get(&c->blocks, &value);

		read_ahead(c);
		r = walk_block(info, key, get_le64(value), fn, context);
		if (!r)
			r = next_block(c);
	}
	return r == -ENODATA ? 0 : r;
}
