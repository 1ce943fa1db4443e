/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A cache's metadata (metadata.h).
 *
 * Block 0, little endian:
 *
 *     0  u32  CRC-32C of the rest of the block, seed 9031977
 *     4  u32  flags: 1 clean end, 2 needs a check
 *     8  u64  number of this block, 0
 *    16       uuid, 16 bytes, unused
 *    32  u64  magic 06142003, an octal number
 *    40  u32  version, 1 or 2
 *    44       name of the policy whose hints these are, 16 bytes
 *    60  u32  bytes of a hint
 *    64       root of the metadata space map, 128 bytes
 *   192  u64  root of the mapping, an array of u64: origin block << 16 | 1 in use | 2 dirty (of version 1 only)
 *   200  u64  root of the hints, an array; 0: there are none
 *   208  u64  root of the discards, a bitset
 *   216  u64  block size of the discards, sectors
 *   224  u64  number of bits there
 *   232  u32  block size of the data, sectors
 *   236  u32  block size of the metadata, 8 sectors
 *   240  u32  number of cache blocks
 *   244  u32  features: compatible, +4 compatible when read-only, +8 incompatible; all 0
 *   256  u32  read hits, +4 read misses, +8 write hits, +12 write misses
 *   272  u32  version of the policy, three numbers
 *   284  u64  root of the dirty bits, a bitset; version 2 only
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include "metadata.h"

#include <dmfs/bitset.h>
#include <dmfs/container_of.h>
#include <dmfs/le.h>
#include <dmfs/metadata.h>
#include <dmfs/target.h>

enum sb {
	SB_POLICY = 44,
	SB_HINT_BYTES = 60,
	SB_SM_ROOT = 64,
	SB_MAPPING = 192,
	SB_HINTS = 200,
	SB_DISCARDS = 208,
	SB_DBLOCK_SECTORS = 216,
	SB_DBLOCKS = 224,
	SB_BLOCK_SECTORS = 232,
	SB_META_SECTORS = 236,
	SB_BLOCKS = 240,
	SB_INCOMPAT = 252,
	SB_COUNTERS = 256,
	SB_POLICY_VERSION = 272,
	SB_DIRTY = 284,
};

#define FLAG_CLEAN 1u
#define FLAG_NEEDS_CHECK 2u
#define VALUE_VALID 1u
#define VALUE_DIRTY 2u

struct cache_meta {
	struct dm_md md;
	struct dm_array_info mapping, hints;
	struct dm_bitset_info dirty, discards;
	uint32_t block_sectors, blocks;
	dm_block_t mapping_root, hints_root, discards_root, dirty_root;
	uint64_t dblock_sectors, dblocks;
	struct cache_meta_policy policy;
	struct cache_meta_counters counters;
	atomic_bool changed;
	bool broken;
};

static void init_hints(struct cache_meta *meta)
{
	const struct dm_btree_value_type type = {.size = meta->policy.hint_bytes};

	dm_array_info_init(&meta->hints, meta->md.tm, &type);
}

/* --- the superblock -------------------------------------------------------------------------- */

static void fill_superblock(struct dm_md *md, uint8_t *p)
{
	struct cache_meta *meta = container_of(md, struct cache_meta, md);

	memcpy(p + SB_POLICY, meta->policy.name, CACHE_MD_POLICY_NAME);
	put_le32(p + SB_HINT_BYTES, meta->policy.hint_bytes);
	put_le64(p + SB_MAPPING, meta->mapping_root);
	put_le64(p + SB_HINTS, meta->hints_root);
	put_le64(p + SB_DISCARDS, meta->discards_root);
	put_le64(p + SB_DBLOCK_SECTORS, meta->dblock_sectors);
	put_le64(p + SB_DBLOCKS, meta->dblocks);
	put_le32(p + SB_BLOCK_SECTORS, meta->block_sectors);
	put_le32(p + SB_META_SECTORS, DM_META_BLOCK_SECTORS);
	put_le32(p + SB_BLOCKS, meta->blocks);
	put_le32(p + SB_COUNTERS, meta->counters.read_hits);
	put_le32(p + SB_COUNTERS + 4, meta->counters.read_misses);
	put_le32(p + SB_COUNTERS + 8, meta->counters.write_hits);
	put_le32(p + SB_COUNTERS + 12, meta->counters.write_misses);
	for (unsigned i = 0; i < 3; i++)
		put_le32(p + SB_POLICY_VERSION + 4 * i, meta->policy.version[i]);
	if (meta->md.version >= 2)
		put_le64(p + SB_DIRTY, meta->dirty_root);
}

static int read_superblock(struct dm_md *md, const uint8_t *p, GError **err)
{
	struct cache_meta *meta = container_of(md, struct cache_meta, md);

	if (get_le32(p + SB_INCOMPAT)) {
		dm_log_err("cache metadata: it has features %#x, which are not known", get_le32(p + SB_INCOMPAT));
		return -EINVAL;
	}
	memcpy(meta->policy.name, p + SB_POLICY, CACHE_MD_POLICY_NAME);
	meta->policy.name[CACHE_MD_POLICY_NAME - 1] = '\0';
	meta->policy.hint_bytes = get_le32(p + SB_HINT_BYTES);
	meta->mapping_root = get_le64(p + SB_MAPPING);
	meta->hints_root = get_le64(p + SB_HINTS);
	meta->discards_root = get_le64(p + SB_DISCARDS);
	meta->dblock_sectors = get_le64(p + SB_DBLOCK_SECTORS);
	meta->dblocks = get_le64(p + SB_DBLOCKS);
	meta->blocks = get_le32(p + SB_BLOCKS);
	meta->counters.read_hits = get_le32(p + SB_COUNTERS);
	meta->counters.read_misses = get_le32(p + SB_COUNTERS + 4);
	meta->counters.write_hits = get_le32(p + SB_COUNTERS + 8);
	meta->counters.write_misses = get_le32(p + SB_COUNTERS + 12);
	for (unsigned i = 0; i < 3; i++)
		meta->policy.version[i] = get_le32(p + SB_POLICY_VERSION + 4 * i);
	if (md->version >= 2)
		meta->dirty_root = get_le64(p + SB_DIRTY);
	if (get_le32(p + SB_BLOCK_SECTORS) != meta->block_sectors)
		return dm_fail(
		    err, EINVAL,
		    "cache: Error creating metadata object: changing the data block size (from %u to %u sectors) "
		    "is not supported",
		    get_le32(p + SB_BLOCK_SECTORS), meta->block_sectors);
	return meta->policy.hint_bytes > CACHE_MD_MAX_HINT || meta->policy.hint_bytes % 4 ? -EILSEQ : 0;
}

/* --- opening ----------------------------------------------------------------------------------- */

static int begin(struct dm_md *md, const uint8_t *sb)
{
	static const struct dm_btree_value_type type = {.size = 8};
	struct cache_meta *meta = container_of(md, struct cache_meta, md);
	int r;

	dm_array_info_init(&meta->mapping, md->tm, &type);
	dm_bitset_info_init(&meta->dirty, md->tm);
	dm_bitset_info_init(&meta->discards, md->tm);
	init_hints(meta);
	if (sb)
		return 0;
	md->flags = FLAG_CLEAN;
	r = dm_array_empty(&meta->mapping, &meta->mapping_root);
	if (!r)
		r = dm_bitset_empty(&meta->discards, &meta->discards_root);
	if (!r && md->version >= 2)
		r = dm_bitset_empty(&meta->dirty, &meta->dirty_root);
	return r;
}

static int prepare(struct dm_md *md)
{
	struct cache_meta *meta = container_of(md, struct cache_meta, md);
	int r = dm_bitset_flush(&meta->discards, &meta->discards_root);

	return r || md->version < 2 ? r : dm_bitset_flush(&meta->dirty, &meta->dirty_root);
}

static const struct dm_md_format format = {
	.name = "cache metadata",
	.magic = 06142003,
	.seed = 9031977,
	.min_version = 1,
	.max_version = 2,
	.sm_root = SB_SM_ROOT,
	.cache_bytes = 8u << 20,
	.read = read_superblock,
	.begin = begin,
	.prepare = prepare,
	.fill = fill_superblock,
};

int cache_meta_open(struct dm_dev *dev, uint32_t block_sectors, unsigned version, struct cache_meta **out, GError **err)
{
	struct cache_meta *meta = g_new0(struct cache_meta, 1);
	bool fresh;
	int r;

	meta->block_sectors = block_sectors;
	dm_md_init(&meta->md, &format, dev, version);
	r = dm_md_open(&meta->md, true, &fresh, err);
	if (r) {
		cache_meta_close(meta);
		return dm_fail(err, -r, "cache: Error creating metadata object: %s", g_strerror(-r));
	}
	*out = meta;
	return 0;
}

void cache_meta_close(struct cache_meta *meta)
{
	if (!meta)
		return;
	dm_md_close(&meta->md);
	g_free(meta);
}

unsigned cache_meta_version(struct cache_meta *meta)
{
	return meta->md.version;
}

uint32_t cache_meta_blocks(struct cache_meta *meta)
{
	return meta->blocks;
}

bool cache_meta_clean(struct cache_meta *meta)
{
	return meta->md.flags & FLAG_CLEAN;
}

bool cache_meta_needs_check(struct cache_meta *meta)
{
	return meta->md.flags & FLAG_NEEDS_CHECK;
}

void cache_meta_usage(struct cache_meta *meta, uint64_t *used, uint64_t *total)
{
	dm_md_usage(&meta->md, used, total);
}

void cache_meta_counters(struct cache_meta *meta, struct cache_meta_counters *out)
{
	*out = meta->counters;
}

void cache_meta_set_counters(struct cache_meta *meta, const struct cache_meta_counters *counters)
{
	meta->counters = *counters;
}

/* --- loading -------------------------------------------------------------------------------------- */

struct loader {
	struct dm_array_cursor mapping, hints;
	struct dm_bitset_cursor dirty;
};

static bool hints_count(struct cache_meta *meta, const struct cache_meta_policy *policy)
{
	return cache_meta_clean(meta) && meta->hints_root && policy->hint_bytes &&
	       policy->hint_bytes == meta->policy.hint_bytes && policy->version[0] == meta->policy.version[0] &&
	       !strncmp(policy->name, meta->policy.name, CACHE_MD_POLICY_NAME);
}

static int load_one(struct cache_meta *meta, struct loader *l, bool hints, uint32_t i, cache_meta_load_fn fn,
		    void *context)
{
	uint64_t value = get_le64(dm_array_cursor_get(&l->mapping));
	bool dirty = true;

	if (value & ~(uint64_t)(VALUE_VALID | VALUE_DIRTY) & 0xffff)
		return -EILSEQ;
	if (!(value & VALUE_VALID))
		return 0;
	if (cache_meta_clean(meta))
		dirty = meta->md.version >= 2 ? dm_bitset_cursor_get(&l->dirty) : value & VALUE_DIRTY;
	return fn(context, i, value >> 16, dirty, hints ? dm_array_cursor_get(&l->hints) : NULL);
}

int cache_meta_load(struct cache_meta *meta, const struct cache_meta_policy *policy, cache_meta_load_fn fn,
		    void *context)
{
	g_autofree struct loader *l = g_new0(struct loader, 1);
	bool hints = hints_count(meta, policy), bits = meta->md.version >= 2 && cache_meta_clean(meta);
	int r;

	if (!meta->blocks)
		return 0;
	r = dm_array_cursor_begin(&meta->mapping, meta->mapping_root, meta->blocks, &l->mapping);
	if (!r && bits)
		r = dm_bitset_cursor_begin(&meta->dirty, meta->dirty_root, meta->blocks, &l->dirty);
	if (!r && hints)
		r = dm_array_cursor_begin(&meta->hints, meta->hints_root, meta->blocks, &l->hints);
	for (uint32_t i = 0; !r; i++) {
		r = load_one(meta, l, hints, i, fn, context);
		if (r || i + 1 == meta->blocks)
			break;
		r = dm_array_cursor_next(&l->mapping);
		if (!r && bits)
			r = dm_bitset_cursor_next(&l->dirty);
		if (!r && hints)
			r = dm_array_cursor_next(&l->hints);
	}
	return r == -ENODATA ? -EILSEQ : r;
}

int cache_meta_load_discards(struct cache_meta *meta, void (*fn)(void *context, uint64_t sector, uint64_t sectors),
			     void *context)
{
	g_autofree struct dm_bitset_cursor *c = NULL;
	uint64_t sector;
	int r;

	if (!cache_meta_clean(meta) || !meta->dblocks || !meta->dblock_sectors)
		return 0;
	if (meta->dblocks > UINT32_MAX || __builtin_mul_overflow(meta->dblocks, meta->dblock_sectors, &sector))
		return -EILSEQ;
	c = g_new0(struct dm_bitset_cursor, 1);
	r = dm_bitset_cursor_begin(&meta->discards, meta->discards_root, (uint32_t)meta->dblocks, c);
	for (uint64_t i = 0; !r; i++) {
		if (dm_bitset_cursor_get(c))
			fn(context, i * meta->dblock_sectors, meta->dblock_sectors);
		if (i + 1 == meta->dblocks)
			break;
		r = dm_bitset_cursor_next(c);
	}
	return r == -ENODATA ? -EILSEQ : r;
}

/* --- changes ---------------------------------------------------------------------------------------- */

/* Of a change: it has been made, or has failed half-way. */
static int changed(struct cache_meta *meta, int r)
{
	atomic_store(&meta->changed, true);
	if (r && !meta->broken) {
		meta->broken = true;
		dm_log_err("cache metadata: %s", g_strerror(-r));
	}
	return r;
}

/* As what every array is, a tree of blocks: cache_restore says that hints have no bytes when it has none, and makes
 * some. */
static int drop_hints(struct cache_meta *meta)
{
	struct dm_btree_info blocks = {.tm = meta->md.tm, .levels = 1, .vt = dm_btree_block_type(meta->md.tm)};
	int r = meta->hints_root ? dm_btree_del(&blocks, meta->hints_root) : 0;

	meta->hints_root = 0;
	return r;
}

int cache_meta_resize(struct cache_meta *meta, uint32_t blocks)
{
	uint8_t none[8] = {0};
	int r;

	if (meta->broken)
		return -EIO;
	r = dm_array_resize(&meta->mapping, meta->mapping_root, meta->blocks, blocks, none, &meta->mapping_root);
	if (!r && meta->md.version >= 2)
		r = dm_bitset_resize(&meta->dirty, meta->dirty_root, meta->blocks, blocks, false, &meta->dirty_root);
	if (!r) /* they are of another number of blocks, and are written anew at the clean end */
		r = drop_hints(meta);
	if (!r)
		meta->blocks = blocks;
	return changed(meta, r);
}

static int set_value(struct cache_meta *meta, uint32_t cblock, uint64_t value)
{
	uint8_t raw[8];

	if (meta->broken)
		return -EIO;
	put_le64(raw, value);
	return changed(meta, dm_array_set(&meta->mapping, meta->mapping_root, cblock, raw, &meta->mapping_root));
}

int cache_meta_insert(struct cache_meta *meta, uint32_t cblock, uint64_t oblock)
{
	return set_value(meta, cblock, oblock << 16 | VALUE_VALID);
}

int cache_meta_remove(struct cache_meta *meta, uint32_t cblock)
{
	return set_value(meta, cblock, 0);
}

struct bits {
	bool (*fn)(void *context, uint32_t index);
	void *context;
};

static int give_bit(void *context, uint32_t index, bool *value)
{
	struct bits *bits = context;

	*value = bits->fn(bits->context, index);
	return 0;
}

/* A bitset takes the place of another. */
static int new_bitset(struct dm_bitset_info *info, dm_block_t *root, uint32_t size, struct bits *bits)
{
	int r = dm_bitset_flush(info, root);

	if (!r)
		r = dm_bitset_del(info, *root);
	return r ? r : dm_bitset_new(info, root, size, give_bit, bits);
}

/* Version 1: the flag of each value that is not as it should be. */
static int write_dirty_flags(struct cache_meta *meta, struct bits *bits)
{
	g_autofree struct dm_array_cursor *c = g_new0(struct dm_array_cursor, 1);
	g_autoptr(GArray) wrong = g_array_new(FALSE, FALSE, 4);
	int r = dm_array_cursor_begin(&meta->mapping, meta->mapping_root, meta->blocks, c);

	for (uint32_t i = 0; !r; i++) {
		uint64_t value = get_le64(dm_array_cursor_get(c));

		if (value & VALUE_VALID && !(value & VALUE_DIRTY) != !bits->fn(bits->context, i))
			g_array_append_val(wrong, i);
		if (i + 1 == meta->blocks)
			break;
		r = dm_array_cursor_next(c);
	}
	for (guint i = 0; i < wrong->len && !r; i++) {
		uint32_t at = g_array_index(wrong, uint32_t, i);
		uint8_t raw[8];

		r = dm_array_get(&meta->mapping, meta->mapping_root, at, raw);
		put_le64(raw, get_le64(raw) ^ VALUE_DIRTY);
		if (!r)
			r = dm_array_set(&meta->mapping, meta->mapping_root, at, raw, &meta->mapping_root);
	}
	return r;
}

int cache_meta_write_dirty(struct cache_meta *meta, bool (*dirty)(void *context, uint32_t cblock), void *context)
{
	struct bits bits = {dirty, context};

	if (meta->broken)
		return -EIO;
	if (meta->md.version >= 2)
		return changed(meta, new_bitset(&meta->dirty, &meta->dirty_root, meta->blocks, &bits));
	return meta->blocks ? changed(meta, write_dirty_flags(meta, &bits)) : 0;
}

int cache_meta_write_discards(struct cache_meta *meta, uint64_t dblock_sectors, uint32_t dblocks,
			      bool (*discarded)(void *context, uint32_t dblock), void *context)
{
	struct bits bits = {discarded, context};

	if (meta->broken)
		return -EIO;
	meta->dblock_sectors = dblock_sectors;
	meta->dblocks = dblocks;
	return changed(meta, new_bitset(&meta->discards, &meta->discards_root, dblocks, &bits));
}

struct hint_giver {
	void (*fn)(void *context, uint32_t cblock, void *out);
	void *context;
};

static int give_hint(void *context, uint32_t index, void *value)
{
	struct hint_giver *giver = context;

	giver->fn(giver->context, index, value);
	return 0;
}

int cache_meta_write_hints(struct cache_meta *meta, const struct cache_meta_policy *policy,
			   void (*hint)(void *context, uint32_t cblock, void *out), void *context)
{
	struct hint_giver giver = {hint, context};
	int r;

	if (meta->broken)
		return -EIO;
	r = drop_hints(meta);
	meta->policy = *policy;
	init_hints(meta);
	if (!r && policy->hint_bytes)
		r = dm_array_new(&meta->hints, &meta->hints_root, meta->blocks, give_hint, &giver);
	return changed(meta, r);
}

/* --- commits ------------------------------------------------------------------------------------------ */

bool cache_meta_changed(struct cache_meta *meta)
{
	return atomic_load_explicit(&meta->changed, memory_order_acquire);
}

bool cache_meta_broken(struct cache_meta *meta)
{
	return meta->broken;
}

int cache_meta_commit(struct cache_meta *meta, bool clean)
{
	int r;

	if (meta->broken)
		return -EIO;
	meta->md.flags = clean ? meta->md.flags | FLAG_CLEAN : meta->md.flags & ~FLAG_CLEAN;
	r = changed(meta, dm_md_commit(&meta->md));
	if (!r)
		atomic_store(&meta->changed, false);
	return r;
}

/* With a block manager of its own: nothing that was changed may get to the disk. */
int cache_meta_abort(struct cache_meta *meta)
{
	struct dm_bm *bm = dm_bm_new(meta->md.dev, DM_META_BLOCK_SIZE, format.cache_bytes);
	struct dm_block *sb;
	int r = dm_bm_write_lock(bm, DM_MD_SUPERBLOCK, &meta->md.validator, &sb);

	meta->broken = true;
	if (!r) {
		char *p = dm_block_data(sb);

		put_le32(p + DM_MD_FLAGS, get_le32(p + DM_MD_FLAGS) | FLAG_NEEDS_CHECK);
		dm_bm_unlock(sb);
		r = dm_bm_flush(bm);
	}
	dm_bm_free(bm);
	if (!r)
		meta->md.flags |= FLAG_NEEDS_CHECK;
	return r;
}
