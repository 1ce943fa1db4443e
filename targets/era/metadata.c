/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * era's metadata (metadata.h).
 *
 * Block 0, little endian:
 *
 *     0  u32  CRC-32C of the rest of the block, seed 146538381
 *     4  u32  flags, 0
 *     8  u64  number of this block
 *    16       uuid, 16 bytes, unused
 *    32  u64  magic 2126579579
 *    40  u32  version, 1
 *    44       root of the metadata space map, 128 bytes
 *   172  u32  block size of the origin, sectors
 *   176  u32  block size of the metadata, 8 sectors
 *   180  u32  number of blocks
 *   184  u32  current era
 *   188  u32  bits of the current writeset
 *   192  u64  root of its bitset; 0: there is none
 *   200  u64  root of the tree of archived writesets: era -> u32 bits, u64 root of the bitset
 *   208  u64  root of the era array: a u32 for each block
 *   216  u64  block of the metadata snapshot, a copy of block 0; 0: there is none
 *
 * A writeset is archived when its era ends, and later digested, the oldest one first: its era is written into the array
 * for each of its blocks, and it is dropped.
 *
 * In memory a word for each 32 blocks holds their bits below and the era they are of above, so that a new era needs
 * no clearing and who looks meanwhile sees one era or the other.
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include <dmfs/bitset.h>
#include <dmfs/container_of.h>
#include <dmfs/le.h>
#include <dmfs/metadata.h>
#include <dmfs/ranges.h>
#include <dmfs/rounding.h>
#include <dmfs/target.h>

#include "metadata.h"

#define VERSION 1
#define WRITESET_SIZE 12
#define DIGEST_WORDS 2048 /* of 64 blocks, looked at in one step */
#define DIGEST_BITS 4096  /* set bits moved in one step */

enum sb {
	SB_SM_ROOT = 44,
	SB_BLOCK_SECTORS = 172,
	SB_META_SECTORS = 176,
	SB_BLOCKS = 180,
	SB_ERA = 184,
	SB_WRITESET_BITS = 188,
	SB_WRITESET_ROOT = 192,
	SB_WRITESETS = 200,
	SB_ERAS = 208,
	SB_SNAP = 216,
};

/* A writeset as it is in memory. */
struct writeset {
	uint32_t bits;
	dm_block_t root; /* 0: none */
};

struct era_md {
	struct dm_md md;
	struct dm_bitset_info bitset;   /* for the current writeset alone: it keeps a word of it */
	struct dm_bitset_info archived; /* for all others */
	struct dm_btree_info writesets;
	struct dm_array_info eras;
	uint32_t block_sectors, blocks;
	struct writeset current;
	dm_block_t writesets_root, eras_root, snap;
	bool broken; /* a change has failed half-way: nothing can be committed any more */
	struct dm_ranges marked; /* blocks: in the metadata, not yet in memory */

	struct { /* the digestion under way */
		bool active;
		uint64_t era;
		struct writeset set;
		uint32_t word;
	} digest;

	_Atomic uint32_t era;
	_Atomic uint64_t *words; /* era << 32 | bits of 32 blocks */
	_Atomic uint64_t told_snap; /* as of the last commit */
	_Atomic uint32_t told_era;
};

/* --- the values of the tree of writesets ------------------------------------------------ */

static int writesets_inc(void *context, const void *values, unsigned n)
{
	struct era_md *meta = context;
	int r = 0;

	for (unsigned i = 0; i < n && !r; i++)
		r = dm_tm_inc(meta->md.tm, get_le64((const char *)values + i * WRITESET_SIZE + 4));
	return r;
}

static int writesets_dec(void *context, const void *values, unsigned n)
{
	struct era_md *meta = context;
	int r = 0;

	for (unsigned i = 0; i < n && !r; i++)
		r = dm_bitset_del(&meta->archived, get_le64((const char *)values + i * WRITESET_SIZE + 4));
	return r;
}

/* --- opening and committing --------------------------------------------------------------- */

static int read_superblock(struct dm_md *md, const uint8_t *sb, GError **err)
{
	struct era_md *meta = container_of(md, struct era_md, md);

	meta->blocks = get_le32(sb + SB_BLOCKS);
	atomic_init(&meta->era, get_le32(sb + SB_ERA));
	meta->current = (struct writeset){get_le32(sb + SB_WRITESET_BITS), get_le64(sb + SB_WRITESET_ROOT)};
	meta->writesets_root = get_le64(sb + SB_WRITESETS);
	meta->eras_root = get_le64(sb + SB_ERAS);
	meta->snap = get_le64(sb + SB_SNAP);
	if (get_le32(sb + SB_BLOCK_SECTORS) == meta->block_sectors)
		return 0;
	return dm_fail(err, EINVAL,
		       "era: Error reading metadata: changing the data block size (from %u to %u sectors) is not "
		       "supported",
		       get_le32(sb + SB_BLOCK_SECTORS), meta->block_sectors);
}

static int begin(struct dm_md *md, const uint8_t *sb)
{
	static const struct dm_btree_value_type era_type = {.size = 4};
	struct era_md *meta = container_of(md, struct era_md, md);
	int r;

	dm_bitset_info_init(&meta->bitset, md->tm);
	dm_bitset_info_init(&meta->archived, md->tm);
	meta->writesets = (struct dm_btree_info){
		.tm = md->tm,
		.levels = 1,
		.vt = {.context = meta, .size = WRITESET_SIZE, .inc = writesets_inc, .dec = writesets_dec},
	};
	dm_array_info_init(&meta->eras, md->tm, &era_type);
	if (sb)
		return 0;
	r = dm_btree_empty(&meta->writesets, &meta->writesets_root);
	return r ? r : dm_array_empty(&meta->eras, &meta->eras_root);
}

static int prepare(struct dm_md *md)
{
	struct era_md *meta = container_of(md, struct era_md, md);

	return meta->current.root ? dm_bitset_flush(&meta->bitset, &meta->current.root) : 0;
}

static void fill_superblock(struct dm_md *md, uint8_t *sb)
{
	struct era_md *meta = container_of(md, struct era_md, md);

	put_le32(sb + SB_BLOCK_SECTORS, meta->block_sectors);
	put_le32(sb + SB_META_SECTORS, DM_META_BLOCK_SECTORS);
	put_le32(sb + SB_BLOCKS, meta->blocks);
	put_le32(sb + SB_ERA, atomic_load(&meta->era));
	put_le32(sb + SB_WRITESET_BITS, meta->current.bits);
	put_le64(sb + SB_WRITESET_ROOT, meta->current.root);
	put_le64(sb + SB_WRITESETS, meta->writesets_root);
	put_le64(sb + SB_ERAS, meta->eras_root);
	put_le64(sb + SB_SNAP, meta->snap);
}

static const struct dm_md_format format = {
	.name = "era metadata",
	.magic = 2126579579,
	.seed = 146538381,
	.min_version = VERSION,
	.max_version = VERSION,
	.sm_root = SB_SM_ROOT,
	.cache_bytes = 8u << 20,
	.read = read_superblock,
	.begin = begin,
	.prepare = prepare,
	.fill = fill_superblock,
};

static void tell(struct era_md *meta)
{
	atomic_store(&meta->told_snap, meta->snap);
	atomic_store(&meta->told_era, atomic_load(&meta->era));
}

/* Notes that the metadata in memory is of no use after an error in the midst of a change. */
static int broke(struct era_md *meta, int r)
{
	if (r && !meta->broken) {
		meta->broken = true;
		dm_log_err("era metadata: %s; no write to a block not written in this era is possible any more",
			   g_strerror(-r));
	}
	return r;
}

int era_md_open(struct dm_dev *dev, uint32_t block_sectors, struct era_md **out, GError **err)
{
	struct era_md *meta = g_new0(struct era_md, 1);
	bool fresh;
	int r;

	meta->block_sectors = block_sectors;
	dm_md_init(&meta->md, &format, dev, VERSION);
	r = dm_md_open(&meta->md, true, &fresh, err);
	if (!r)
		meta->words = g_try_malloc0(MAX(dm_div_up((uint64_t)meta->blocks, 32), 1) * 8);
	if (!r && !meta->words)
		r = -ENOMEM;
	if (r) {
		era_md_close(meta);
		return dm_fail(err, -r, "era: Error reading metadata: %s", g_strerror(-r));
	}
	tell(meta);
	*out = meta;
	return 0;
}

void era_md_close(struct era_md *meta)
{
	if (!meta)
		return;
	dm_md_close(&meta->md);
	dm_ranges_clear(&meta->marked);
	g_free((void *)meta->words);
	g_free(meta);
}

void era_md_usage(struct era_md *meta, struct era_usage *out)
{
	*out = (struct era_usage){.snap = atomic_load(&meta->told_snap), .era = atomic_load(&meta->told_era)};
	dm_md_usage(&meta->md, &out->used, &out->total);
}

uint32_t era_md_blocks(struct era_md *meta)
{
	return meta->blocks;
}

int era_md_resize(struct era_md *meta, uint32_t blocks, GError **err)
{
	uint8_t none[4] = {0};
	_Atomic uint64_t *words;
	int r;

	if (meta->broken)
		return dm_fail(err, EIO, "era: the metadata has failed");
	words = g_try_malloc0(MAX(dm_div_up((uint64_t)blocks, 32), 1) * 8);
	if (!words)
		return dm_fail(err, ENOMEM, "era: no memory for %u blocks", blocks);
	r = broke(meta, dm_array_resize(&meta->eras, meta->eras_root, meta->blocks, blocks, none, &meta->eras_root));
	if (r) {
		g_free((void *)words);
		return dm_fail(err, -r, "era: the metadata cannot be made of %u blocks: %s", blocks, g_strerror(-r));
	}
	/* No era is current, so no bit of the old words counts. */
	g_free((void *)meta->words);
	meta->words = words;
	meta->blocks = blocks;
	return 0;
}

/* --- eras ------------------------------------------------------------------------------------ */

int era_md_archive(struct era_md *meta)
{
	uint8_t value[WRITESET_SIZE];
	uint64_t key = atomic_load(&meta->era);
	int r;

	if (meta->broken)
		return -EIO;
	if (!meta->current.root)
		return 0;
	r = dm_bitset_flush(&meta->bitset, &meta->current.root);
	put_le32(value, meta->current.bits);
	put_le64(value + 4, meta->current.root);
	if (!r)
		r = dm_btree_insert(&meta->writesets, meta->writesets_root, &key, value, &meta->writesets_root, NULL);
	meta->current = (struct writeset){0};
	return broke(meta, r);
}

static int begin_era(struct era_md *meta)
{
	int r = dm_bitset_empty(&meta->bitset, &meta->current.root);

	if (!r)
		r = dm_bitset_resize(&meta->bitset, meta->current.root, 0, meta->blocks, false, &meta->current.root);
	meta->current.bits = meta->blocks;
	return r;
}

int era_md_new_era(struct era_md *meta)
{
	int r = era_md_archive(meta);

	if (r)
		return r;
	r = begin_era(meta);
	if (!r)
		atomic_fetch_add(&meta->era, 1);
	broke(meta, r);
	return r ? r : era_md_commit(meta);
}

/* --- marks -------------------------------------------------------------------------------------- */

/* The bits of word w that are of blocks first to last. */
static uint32_t bits_of(uint32_t w, uint32_t first, uint32_t last)
{
	uint32_t bits = UINT32_MAX;

	if (w == first / 32)
		bits &= UINT32_MAX << first % 32;
	if (w == last / 32)
		bits &= UINT32_MAX >> (31 - last % 32);
	return bits;
}

bool era_md_marked(struct era_md *meta, uint32_t first, uint32_t last)
{
	uint32_t era = atomic_load_explicit(&meta->era, memory_order_acquire);

	for (uint32_t w = first / 32; w <= last / 32; w++) {
		uint64_t word = atomic_load_explicit(&meta->words[w], memory_order_acquire);

		if (word >> 32 != era || ~(uint32_t)word & bits_of(w, first, last))
			return false;
	}
	return true;
}

/* They are durable: from now on who looks need not wait. */
static void publish(struct era_md *meta, uint32_t first, uint32_t last)
{
	uint64_t era = atomic_load(&meta->era);

	for (uint32_t w = first / 32; w <= last / 32; w++) {
		uint64_t word = atomic_load(&meta->words[w]);

		if (word >> 32 != era)
			word = era << 32;
		atomic_store_explicit(&meta->words[w], word | bits_of(w, first, last), memory_order_release);
	}
}

int era_md_mark(struct era_md *meta, uint32_t first, uint32_t last)
{
	int r = 0;

	if (meta->broken || !meta->current.root)
		return -EIO;
	for (uint64_t b = first; b <= last && !r; b++)
		r = dm_bitset_set(&meta->bitset, &meta->current.root, (uint32_t)b, true);
	if (!r)
		dm_ranges_add(&meta->marked, first, (uint64_t)last + 1);
	return broke(meta, r);
}

int era_md_commit(struct era_md *meta)
{
	int r = meta->broken ? -EIO : broke(meta, dm_md_commit(&meta->md));

	if (!r) {
		for (unsigned i = 0; i < dm_ranges_n(&meta->marked); i++) {
			struct dm_range *range = dm_ranges_at(&meta->marked, i);

			publish(meta, (uint32_t)range->begin, (uint32_t)(range->end - 1));
		}
		tell(meta);
	}
	dm_ranges_clear(&meta->marked);
	return r;
}

/* --- digestion ------------------------------------------------------------------------------------- */

/* Finds the oldest archived writeset; -ENODATA: there is none. */
static int begin_digest(struct era_md *meta)
{
	uint8_t value[WRITESET_SIZE];
	uint64_t from = 0;
	int r = dm_btree_lookup_next(&meta->writesets, meta->writesets_root, &from, &meta->digest.era, value);

	if (r)
		return r;
	meta->digest.set = (struct writeset){MIN(get_le32(value), meta->blocks), get_le64(value + 4)};
	meta->digest.word = 0;
	meta->digest.active = true;
	return 0;
}

static int end_digest(struct era_md *meta)
{
	int r = dm_btree_remove(&meta->writesets, meta->writesets_root, &meta->digest.era, &meta->writesets_root);

	meta->digest.active = false;
	broke(meta, r);
	return r ? r : era_md_commit(meta);
}

/* Enters the era of a writeset for the blocks of a word of its bitset. */
static int digest_word(struct era_md *meta, uint32_t word, uint64_t bits)
{
	uint8_t era[4];
	int r = 0;

	put_le32(era, (uint32_t)meta->digest.era);
	for (; bits && !r; bits &= bits - 1) {
		uint64_t block = (uint64_t)word * 64 + (unsigned)__builtin_ctzll(bits);

		if (block >= meta->digest.set.bits)
			break;
		r = dm_array_set(&meta->eras, meta->eras_root, (uint32_t)block, era, &meta->eras_root);
	}
	return r;
}

int era_md_digest(struct era_md *meta, bool *more)
{
	uint32_t words, looked_at = 0, moved = 0;
	int r = meta->broken ? -EIO : 0;

	*more = false;
	if (!r && !meta->digest.active)
		r = begin_digest(meta);
	if (r)
		return r == -ENODATA ? 0 : broke(meta, r);
	words = (uint32_t)dm_div_up((uint64_t)meta->digest.set.bits, 64);
	while (meta->digest.word < words && looked_at++ < DIGEST_WORDS && moved < DIGEST_BITS && !r) {
		uint8_t value[8];

		r = dm_array_get(&meta->archived.array, meta->digest.set.root, meta->digest.word, value);
		if (!r) {
			moved += (uint32_t)__builtin_popcountll(get_le64(value));
			r = digest_word(meta, meta->digest.word++, get_le64(value));
		}
	}
	if (r)
		return broke(meta, r);
	*more = true;
	return meta->digest.word < words ? 0 : end_digest(meta);
}

/* --- metadata snapshots ------------------------------------------------------------------------------- */

/*
 * The copy is without a current writeset: that of the era which has just begun is empty, and its bitset goes on
 * changing, and moves, under who reads the copy.
 */
static void edit_copy(uint8_t *sb)
{
	put_le32(sb + SB_WRITESET_BITS, 0);
	put_le64(sb + SB_WRITESET_ROOT, 0);
}

int era_md_take_snap(struct era_md *meta, GError **err)
{
	const struct dm_md_root roots[] = {{SB_WRITESETS, &meta->writesets}, {SB_ERAS, &meta->eras.btree}};
	int r;

	if (meta->snap)
		return dm_fail(err, EINVAL, "era: there already is a metadata snapshot, at block %" PRIu64, meta->snap);
	r = era_md_new_era(meta);
	if (!r)
		r = broke(meta, dm_md_hold(&meta->md, roots, G_N_ELEMENTS(roots), edit_copy, &meta->snap));
	if (!r)
		r = era_md_commit(meta);
	return r ? dm_fail(err, -r, "era: no metadata snapshot: %s", g_strerror(-r)) : 0;
}

int era_md_drop_snap(struct era_md *meta, GError **err)
{
	const struct dm_md_root roots[] = {{SB_WRITESETS, &meta->writesets}, {SB_ERAS, &meta->eras.btree}};
	int r;

	if (!meta->snap)
		return dm_fail(err, EINVAL, "era: there is no metadata snapshot");
	r = meta->broken ? -EIO : dm_md_release(&meta->md, roots, G_N_ELEMENTS(roots), &meta->snap);
	if (!meta->snap)
		broke(meta, r);
	if (!r)
		r = era_md_commit(meta);
	return r ? dm_fail(err, -r, "era: the metadata snapshot cannot be dropped: %s", g_strerror(-r)) : 0;
}
