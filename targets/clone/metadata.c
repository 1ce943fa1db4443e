/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A clone's metadata (metadata.h).
 *
 * Block 0, little endian:
 *
 *     0  u32  CRC-32C of the rest of the block, seed 257649492
 *     4  u32  flags, 0
 *     8  u64  number of this block, 0
 *    16       uuid, 16 bytes, unused
 *    32  u64  magic 0x8af27f64
 *    40  u32  version, 1
 *    44       root of the metadata space map, 128 bytes
 *   172  u64  region size, sectors
 *   180  u64  size of the target, sectors
 *   188  u64  root of a bitset with a bit for each region: hydrated
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
#include <dmfs/rounding.h>
#include <dmfs/target.h>

#define VERSION 1
#define SLICE 16384u /* words that a commit takes at once: 256 KiB of memory */

enum sb {
	SB_SM_ROOT = 44,
	SB_REGION = 172,
	SB_TARGET = 180,
	SB_BITSET = 188,
};

struct clone_md {
	struct dm_md md;
	struct dm_bitset_info info;
	dm_block_t root;
	uint64_t target_sectors, nr_regions, nr_words;
	uint32_t region_sectors;
	_Atomic uint64_t nr_hydrated;
	_Atomic uint64_t *words; /* NULL: all are hydrated */
	_Atomic uint64_t *dirty; /* a bit for each word */
	pthread_mutex_t lock;          /* for setting bits: a commit takes each with its count or not at all */
	_Atomic uint64_t set, durable; /* how many have been set; how many of them are on the disk */
	_Atomic uint64_t loaded;       /* how many were on the disk before */
	bool written; /* words are in the tree that no superblock speaks of */
	bool broken;
};

/* --- opening ------------------------------------------------------------------------- */

static int read_superblock(struct dm_md *md, const uint8_t *sb, GError **err)
{
	struct clone_md *meta = container_of(md, struct clone_md, md);
	uint64_t region = get_le64(sb + SB_REGION), target = get_le64(sb + SB_TARGET);

	meta->root = get_le64(sb + SB_BITSET);
	if (region == meta->region_sectors && target == meta->target_sectors)
		return 0;
	return dm_fail(err, EINVAL,
		       "clone: Region and/or target size don't match the ones in metadata: regions of %" PRIu64
		       " sectors, a target of %" PRIu64 " there, %" PRIu32 " and %" PRIu64 " here",
		       region, target, meta->region_sectors, meta->target_sectors);
}

static int begin(struct dm_md *md, const uint8_t *sb)
{
	struct clone_md *meta = container_of(md, struct clone_md, md);
	int r = 0;

	dm_bitset_info_init(&meta->info, md->tm);
	if (sb)
		return 0;
	r = dm_bitset_empty(&meta->info, &meta->root);
	if (!r)
		r = dm_bitset_resize(&meta->info, meta->root, 0, (uint32_t)meta->nr_regions, false, &meta->root);
	return r ? r : dm_bitset_flush(&meta->info, &meta->root);
}

static void fill_superblock(struct dm_md *md, uint8_t *sb)
{
	struct clone_md *meta = container_of(md, struct clone_md, md);

	put_le64(sb + SB_REGION, meta->region_sectors);
	put_le64(sb + SB_TARGET, meta->target_sectors);
	put_le64(sb + SB_BITSET, meta->root);
}

static const struct dm_md_format format = {
	.name = "clone metadata",
	.magic = 0x8af27f64,
	.seed = 257649492,
	.min_version = VERSION,
	.max_version = VERSION,
	.sm_root = SB_SM_ROOT,
	.cache_bytes = 4u << 20,
	.read = read_superblock,
	.begin = begin,
	.fill = fill_superblock,
};

/* Bits past the last region are of no meaning. */
static uint64_t word_mask(const struct clone_md *meta, uint64_t word)
{
	uint64_t rest = meta->nr_regions - word * 64;

	return rest >= 64 ? UINT64_MAX : (UINT64_C(1) << rest) - 1;
}

static int load_word(void *context, uint32_t index, const void *value)
{
	struct clone_md *meta = context;
	uint64_t bits;

	if (index >= meta->nr_words)
		return 0;
	bits = get_le64(value) & word_mask(meta, index);
	if (meta->words) /* else it is only counted */
		atomic_init(&meta->words[index], bits);
	meta->nr_hydrated += (unsigned)__builtin_popcountll(bits);
	meta->loaded = meta->nr_hydrated;
	return 0;
}

int clone_md_open(struct dm_dev *dev, uint64_t target_sectors, uint32_t region_sectors, struct clone_md **out,
		  GError **err)
{
	struct clone_md *meta = g_new0(struct clone_md, 1);
	bool fresh = false;
	int r;

	pthread_mutex_init(&meta->lock, NULL);
	meta->target_sectors = target_sectors;
	meta->region_sectors = region_sectors;
	meta->nr_regions = dm_div_up(target_sectors, region_sectors);
	meta->nr_words = dm_div_up(meta->nr_regions, 64);
	if (meta->nr_regions > UINT32_MAX) {
		dm_fail(err, EINVAL, "clone: %" PRIu64 " regions are more than 2^32; make them larger", meta->nr_regions);
		clone_md_close(meta);
		return -EINVAL;
	}
	dm_md_init(&meta->md, &format, dev, VERSION);
	meta->words = g_try_malloc0(meta->nr_words * 8);
	meta->dirty = g_try_malloc0(dm_div_up(meta->nr_words, 64) * 8);
	r = meta->words && meta->dirty ? dm_md_open(&meta->md, true, &fresh, err) : -ENOMEM;
	if (!r && !fresh)
		r = dm_array_walk(&meta->info.array, meta->root, load_word, meta);
	if (r) {
		clone_md_close(meta);
		return dm_fail(err, -r, "clone: Failed to %s metadata: %s", fresh ? "format" : "load", g_strerror(-r));
	}
	*out = meta;
	return 0;
}

void clone_md_close(struct clone_md *meta)
{
	if (!meta)
		return;
	dm_md_close(&meta->md);
	g_free((void *)meta->words);
	g_free((void *)meta->dirty);
	pthread_mutex_destroy(&meta->lock);
	g_free(meta);
}

/* --- bits ------------------------------------------------------------------------------- */

uint64_t clone_md_nr_regions(struct clone_md *meta)
{
	return meta->nr_regions;
}

uint64_t clone_md_nr_hydrated(struct clone_md *meta)
{
	return atomic_load_explicit(&meta->nr_hydrated, memory_order_relaxed);
}

uint64_t clone_md_nr_committed(struct clone_md *meta)
{
	return atomic_load(&meta->loaded) + atomic_load(&meta->durable);
}

void clone_md_usage(struct clone_md *meta, uint64_t *used, uint64_t *total)
{
	dm_md_usage(&meta->md, used, total);
}

bool clone_md_hydrated(struct clone_md *meta, uint64_t region)
{
	return !meta->words ||
	       atomic_load_explicit(&meta->words[region / 64], memory_order_acquire) >> (region % 64) & 1;
}

void clone_md_set(struct clone_md *meta, uint64_t region, uint64_t n)
{
	uint64_t end = region + n;

	if (!meta->words)
		return;
	pthread_mutex_lock(&meta->lock);
	for (uint64_t word = region / 64; word * 64 < end; word++) {
		uint64_t bits = UINT64_MAX, fresh;

		if (word == region / 64)
			bits &= UINT64_MAX << (region % 64);
		if (end - word * 64 < 64)
			bits &= (UINT64_C(1) << (end % 64)) - 1;
		fresh = bits & ~atomic_load_explicit(&meta->words[word], memory_order_relaxed);
		if (!fresh)
			continue;
		/* Who sees a bit sees that it is not durable. */
		atomic_fetch_or(&meta->dirty[word / 64], UINT64_C(1) << (word % 64));
		atomic_fetch_add(&meta->set, (unsigned)__builtin_popcountll(fresh));
		atomic_fetch_or(&meta->words[word], fresh);
		atomic_fetch_add(&meta->nr_hydrated, (unsigned)__builtin_popcountll(fresh));
	}
	pthread_mutex_unlock(&meta->lock);
}

/* The first bit at or after `from`, and below `end`, that differs from those of `same`, all set or all clear. */
static uint64_t next_other(struct clone_md *meta, uint64_t from, uint64_t end, uint64_t same)
{
	while (from < end) {
		uint64_t other = (atomic_load(&meta->words[from / 64]) ^ same) & UINT64_MAX << (from % 64);

		if (other)
			return MIN(end, from / 64 * 64 + (unsigned)__builtin_ctzll(other));
		from = (from / 64 + 1) * 64;
	}
	return end;
}

uint64_t clone_md_next(struct clone_md *meta, uint64_t from, uint64_t end)
{
	return meta->words ? next_other(meta, from, end, UINT64_MAX) : end;
}

uint64_t clone_md_next_hydrated(struct clone_md *meta, uint64_t from, uint64_t end)
{
	return meta->words ? next_other(meta, from, end, 0) : MIN(from, end);
}

bool clone_md_dirty(struct clone_md *meta)
{
	return atomic_load(&meta->durable) != atomic_load(&meta->set);
}

/* --- commit ------------------------------------------------------------------------------ */

struct changed {
	uint32_t word;
	uint64_t bits;
};

/* Takes words that differ from the disk, from word *at on, at most SLICE; moves *at on. */
static void take_dirty(struct clone_md *meta, uint64_t *at, GArray *out)
{
	g_array_set_size(out, 0);
	pthread_mutex_lock(&meta->lock);
	for (; *at < meta->nr_words && out->len < SLICE; *at += 64) {
		_Atomic uint64_t *dirty = &meta->dirty[*at / 64];
		uint64_t bits = atomic_load(dirty) ? atomic_exchange(dirty, 0) : 0;

		for (; bits; bits &= bits - 1) {
			struct changed c = {.word = (uint32_t)(*at + (unsigned)__builtin_ctzll(bits))};

			c.bits = atomic_load(&meta->words[c.word]);
			g_array_append_val(out, c);
		}
	}
	pthread_mutex_unlock(&meta->lock);
}

/* They did not get into the tree: they still differ. */
static void give_back(struct clone_md *meta, GArray *all)
{
	for (guint i = 0; i < all->len; i++) {
		uint32_t word = g_array_index(all, struct changed, i).word;

		atomic_fetch_or(&meta->dirty[word / 64], UINT64_C(1) << (word % 64));
	}
}

/* Neighbours together: a block of the array is looked up once for all of its words. */
static int write_words(struct clone_md *meta, GArray *all)
{
	g_autofree uint64_t *values = g_new(uint64_t, all->len);
	int r = 0;

	for (guint i = 0, n; i < all->len && !r; i += n) {
		const struct changed *c = &g_array_index(all, struct changed, i);

		for (n = 0; i + n < all->len && c[n].word == c->word + n; n++)
			values[n] = GUINT64_TO_LE(c[n].bits);
		r = dm_array_set_run(&meta->info.array, meta->root, c->word, n, values, &meta->root);
	}
	meta->written |= all->len > 0;
	return r;
}

/*
 * In slices, so that a commit of very many bits takes little memory; each slice is taken, then the data flushed, then
 * the slice written.  What was set before the call is in one of them; one of the later ones may hold more.
 */
int clone_md_commit(struct clone_md *meta, struct dm_dev *dest)
{
	uint64_t set, at = 0;
	GArray *slice;
	int r;

	if (meta->broken)
		return -EIO;
	if (!meta->words)
		return dm_flush_sync(dest);
	pthread_mutex_lock(&meta->lock);
	set = atomic_load(&meta->set);
	pthread_mutex_unlock(&meta->lock);
	if (set == atomic_load(&meta->durable) && !meta->written)
		at = meta->nr_words;
	slice = g_array_new(FALSE, FALSE, sizeof(struct changed));
	do {
		take_dirty(meta, &at, slice);
		r = dm_flush_sync(dest);
		if (!r && slice->len)
			meta->broken = (r = write_words(meta, slice)) != 0;
		if (r)
			give_back(meta, slice);
	} while (!r && at < meta->nr_words);
	g_array_free(slice, TRUE);
	if (!r && meta->written) {
		meta->broken = (r = dm_md_commit(&meta->md)) != 0;
		meta->written = meta->broken;
	}
	if (!r)
		atomic_store(&meta->durable, set);
	return r;
}

bool clone_md_broken(struct clone_md *meta)
{
	return meta->broken;
}

int clone_md_abort(struct clone_md *meta)
{
	struct clone_md disk = {
		.target_sectors = meta->target_sectors,
		.region_sectors = meta->region_sectors,
		.nr_regions = meta->nr_regions,
		.nr_words = meta->nr_words,
	};
	g_autoptr(GError) err = NULL;
	int r;

	meta->broken = true;
	dm_md_init(&disk.md, &format, meta->md.dev, VERSION);
	r = dm_md_load(&disk.md, &err);
	if (!r)
		r = dm_array_walk(&disk.info.array, disk.root, load_word, &disk);
	if (err)
		dm_log_err("%s", err->message);
	if (!r) {
		atomic_store(&meta->loaded, atomic_load(&disk.nr_hydrated) - atomic_load(&meta->durable));
		atomic_store(&meta->md.used, disk.md.used);
		atomic_store(&meta->md.total, disk.md.total);
	}
	dm_md_close(&disk.md);
	return r;
}

void clone_md_release(struct clone_md *meta)
{
	g_free((void *)meta->words);
	g_free((void *)meta->dirty);
	meta->words = meta->dirty = NULL;
}
