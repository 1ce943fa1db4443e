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
#include <dmfs/le.h>
#include <dmfs/rounding.h>
#include <dmfs/target.h>

#include "metadata.h"

#define SUPERBLOCK 0
#define SEED 146538381
#define MAGIC UINT64_C(2126579579)
#define VERSION 1
#define CACHE_BYTES (8u << 20)
#define WRITESET_SIZE 12
#define DIGEST_WORDS 2048 /* of 64 blocks, looked at in one step */
#define DIGEST_BITS 4096  /* set bits moved in one step */

enum sb {
	SB_BLOCKNR = 8,
	SB_MAGIC = 32,
	SB_VERSION = 40,
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
	SM_ROOT_SPACE = 128,
};

/* A writeset as it is in memory. */
struct writeset {
	uint32_t bits;
	dm_block_t root; /* 0: none */
};

struct range {
	uint32_t first, last;
};

struct era_md {
	struct dm_bm *bm;
	struct dm_tm *tm;
	struct dm_bitset_info bitset;   /* for the current writeset alone: it keeps a word of it */
	struct dm_bitset_info archived; /* for all others */
	struct dm_btree_info writesets;
	struct dm_array_info eras;
	uint32_t block_sectors, blocks;
	struct writeset current;
	dm_block_t writesets_root, eras_root, snap;
	bool broken; /* a change has failed half-way: nothing can be committed any more */
	GArray *marked; /* struct range: in the metadata, not yet in memory */

	struct { /* the digestion under way */
		bool active;
		uint64_t era;
		struct writeset set;
		uint32_t word;
	} digest;

	_Atomic uint32_t era;
	_Atomic uint64_t *words; /* era << 32 | bits of 32 blocks */
	pthread_mutex_t usage_lock;
	struct era_usage usage;
};

static void sb_prepare(void *context, dm_block_t where, void *data, size_t size)
{
	put_le64((char *)data + SB_BLOCKNR, where);
	put_le32(data, dm_bm_checksum((char *)data + 4, size - 4, SEED));
}

static int sb_check(void *context, dm_block_t where, const void *data, size_t size)
{
	const char *p = data;

	if (get_le64(p + SB_BLOCKNR) != where) {
		dm_log_err("era metadata: superblock says it is block %" PRIu64 ", wanted %" PRIu64,
			   get_le64(p + SB_BLOCKNR), where);
		return -ENOTBLK;
	}
	if (get_le64(p + SB_MAGIC) != MAGIC) {
		dm_log_err("era metadata: superblock has magic %" PRIu64 ", wanted %" PRIu64, get_le64(p + SB_MAGIC),
			   MAGIC);
		return -EILSEQ;
	}
	if (get_le32(p) != dm_bm_checksum(p + 4, size - 4, SEED)) {
		dm_log_err("era metadata: superblock's checksum is wrong");
		return -EILSEQ;
	}
	if (get_le32(p + SB_VERSION) != VERSION) {
		dm_log_err("era metadata: version %u, only %d is known", get_le32(p + SB_VERSION), VERSION);
		return -EINVAL;
	}
	return 0;
}

static const struct dm_validator sb_validator = {.name = "era superblock", .prepare = sb_prepare, .check = sb_check};

/* --- the values of the tree of writesets ------------------------------------------------ */

static int writesets_inc(void *context, const void *values, unsigned n)
{
	struct era_md *meta = context;
	int r = 0;

	for (unsigned i = 0; i < n && !r; i++)
		r = dm_tm_inc(meta->tm, get_le64((const char *)values + i * WRITESET_SIZE + 4));
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

static void init_infos(struct era_md *meta)
{
	static const struct dm_btree_value_type era_type = {.size = 4};

	dm_bitset_info_init(&meta->bitset, meta->tm);
	dm_bitset_info_init(&meta->archived, meta->tm);
	meta->writesets = (struct dm_btree_info){
		.tm = meta->tm,
		.levels = 1,
		.vt = {.context = meta, .size = WRITESET_SIZE, .inc = writesets_inc, .dec = writesets_dec},
	};
	dm_array_info_init(&meta->eras, meta->tm, &era_type);
}

/* --- opening and committing --------------------------------------------------------------- */

static void update_usage(struct era_md *meta)
{
	struct dm_sm *sm = dm_tm_sm(meta->tm);

	pthread_mutex_lock(&meta->usage_lock);
	meta->usage.total = dm_sm_nr_blocks(sm);
	meta->usage.used = meta->usage.total - dm_sm_nr_free(sm);
	meta->usage.snap = meta->snap;
	meta->usage.era = atomic_load(&meta->era);
	pthread_mutex_unlock(&meta->usage_lock);
}

static int write_superblock(struct era_md *meta, bool fresh)
{
	struct dm_block *sb;
	char *p;
	int r = 0;

	if (meta->current.root)
		r = dm_bitset_flush(&meta->bitset, &meta->current.root);
	if (!r)
		r = dm_tm_pre_commit(meta->tm);
	if (!r)
		r = fresh ? dm_bm_write_lock_zero(meta->bm, SUPERBLOCK, &sb_validator, &sb) :
			    dm_bm_write_lock(meta->bm, SUPERBLOCK, &sb_validator, &sb);
	if (r)
		return r;
	p = dm_block_data(sb);
	put_le64(p + SB_MAGIC, MAGIC);
	put_le32(p + SB_VERSION, VERSION);
	dm_sm_copy_root(dm_tm_sm(meta->tm), p + SB_SM_ROOT);
	put_le32(p + SB_BLOCK_SECTORS, meta->block_sectors);
	put_le32(p + SB_META_SECTORS, DM_META_BLOCK_SECTORS);
	put_le32(p + SB_BLOCKS, meta->blocks);
	put_le32(p + SB_ERA, atomic_load(&meta->era));
	put_le32(p + SB_WRITESET_BITS, meta->current.bits);
	put_le64(p + SB_WRITESET_ROOT, meta->current.root);
	put_le64(p + SB_WRITESETS, meta->writesets_root);
	put_le64(p + SB_ERAS, meta->eras_root);
	put_le64(p + SB_SNAP, meta->snap);
	return dm_tm_commit(meta->tm, sb);
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

static int format(struct era_md *meta)
{
	int r = dm_tm_create(meta->bm, SUPERBLOCK, dm_bm_nr_blocks(meta->bm), &meta->tm);

	if (r)
		return r;
	init_infos(meta);
	r = dm_btree_empty(&meta->writesets, &meta->writesets_root);
	if (!r)
		r = dm_array_empty(&meta->eras, &meta->eras_root);
	return r ? r : write_superblock(meta, true);
}

static int load(struct era_md *meta, GError **err)
{
	struct dm_block *sb;
	uint32_t block_sectors;
	char root[DM_SM_ROOT_SIZE];
	const char *p;
	int r = dm_bm_read_lock(meta->bm, SUPERBLOCK, &sb_validator, &sb);

	if (r)
		return r;
	p = dm_block_data(sb);
	memcpy(root, p + SB_SM_ROOT, sizeof root);
	block_sectors = get_le32(p + SB_BLOCK_SECTORS);
	meta->blocks = get_le32(p + SB_BLOCKS);
	atomic_init(&meta->era, get_le32(p + SB_ERA));
	meta->current = (struct writeset){get_le32(p + SB_WRITESET_BITS), get_le64(p + SB_WRITESET_ROOT)};
	meta->writesets_root = get_le64(p + SB_WRITESETS);
	meta->eras_root = get_le64(p + SB_ERAS);
	meta->snap = get_le64(p + SB_SNAP);
	dm_bm_unlock(sb);
	if (block_sectors != meta->block_sectors)
		return dm_fail(err, EINVAL,
			       "era: Error reading metadata: changing the data block size (from %u to %u sectors) is not "
			       "supported",
			       block_sectors, meta->block_sectors);
	r = dm_tm_open(meta->bm, SUPERBLOCK, root, sizeof root, &meta->tm);
	if (!r)
		init_infos(meta);
	return r;
}

static int is_all_zeroes(struct era_md *meta, bool *zeroes)
{
	struct dm_block *b;
	const char *p;
	int r = dm_bm_read_lock(meta->bm, SUPERBLOCK, NULL, &b);

	if (r)
		return r;
	p = dm_block_data(b);
	*zeroes = !p[0] && !memcmp(p, p + 1, DM_META_BLOCK_SIZE - 1);
	dm_bm_unlock(b);
	dm_bm_forget(meta->bm, SUPERBLOCK); /* it has been cached without a validator */
	return 0;
}

int era_md_open(struct dm_dev *dev, uint32_t block_sectors, struct era_md **out, GError **err)
{
	struct era_md *meta = g_new0(struct era_md, 1);
	bool zeroes = false;
	int r;

	pthread_mutex_init(&meta->usage_lock, NULL);
	meta->marked = g_array_new(FALSE, FALSE, sizeof(struct range));
	meta->block_sectors = block_sectors;
	meta->bm = dm_bm_new(dev, DM_META_BLOCK_SIZE, CACHE_BYTES);
	r = is_all_zeroes(meta, &zeroes);
	if (!r)
		r = zeroes ? format(meta) : load(meta, err);
	if (!r)
		meta->words = g_try_malloc0(MAX(dm_div_up((uint64_t)meta->blocks, 32), 1) * 8);
	if (!r && !meta->words)
		r = -ENOMEM;
	if (r) {
		era_md_close(meta);
		if (err && !*err)
			dm_fail(err, -r, "era: Error reading metadata: %s", g_strerror(-r));
		return r;
	}
	update_usage(meta);
	*out = meta;
	return 0;
}

void era_md_close(struct era_md *meta)
{
	if (!meta)
		return;
	if (meta->tm)
		dm_tm_free(meta->tm);
	dm_bm_free(meta->bm);
	g_array_free(meta->marked, TRUE);
	g_free((void *)meta->words);
	pthread_mutex_destroy(&meta->usage_lock);
	g_free(meta);
}

void era_md_usage(struct era_md *meta, struct era_usage *out)
{
	pthread_mutex_lock(&meta->usage_lock);
	*out = meta->usage;
	pthread_mutex_unlock(&meta->usage_lock);
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
static void publish(struct era_md *meta, const struct range *range)
{
	uint64_t era = atomic_load(&meta->era);

	for (uint32_t w = range->first / 32; w <= range->last / 32; w++) {
		uint64_t word = atomic_load(&meta->words[w]);

		if (word >> 32 != era)
			word = era << 32;
		atomic_store_explicit(&meta->words[w], word | bits_of(w, range->first, range->last), memory_order_release);
	}
}

int era_md_mark(struct era_md *meta, uint32_t first, uint32_t last)
{
	struct range range = {first, last};
	int r = 0;

	if (meta->broken || !meta->current.root)
		return -EIO;
	for (uint64_t b = first; b <= last && !r; b++)
		r = dm_bitset_set(&meta->bitset, &meta->current.root, (uint32_t)b, true);
	if (!r)
		g_array_append_val(meta->marked, range);
	return broke(meta, r);
}

int era_md_commit(struct era_md *meta)
{
	int r = meta->broken ? -EIO : broke(meta, write_superblock(meta, false));

	if (!r) {
		for (guint i = 0; i < meta->marked->len; i++)
			publish(meta, &g_array_index(meta->marked, struct range, i));
		update_usage(meta);
	}
	g_array_set_size(meta->marked, 0);
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
 * The copy is without a current writeset: that of the era which has just begun is empty, and its bitset goes on changing,
 * and moves, under who reads the copy.
 */
int era_md_take_snap(struct era_md *meta, GError **err)
{
	struct dm_block *copy;
	bool inc;
	int r;

	if (meta->snap)
		return dm_fail(err, EINVAL, "era: there already is a metadata snapshot, at block %" PRIu64, meta->snap);
	r = era_md_new_era(meta);
	if (!r)
		r = broke(meta, dm_tm_inc(meta->tm, SUPERBLOCK));
	if (!r)
		r = broke(meta, dm_tm_shadow_block(meta->tm, SUPERBLOCK, &sb_validator, &copy, &inc));
	if (!r) {
		put_le32((char *)dm_block_data(copy) + SB_WRITESET_BITS, 0);
		put_le64((char *)dm_block_data(copy) + SB_WRITESET_ROOT, 0);
		meta->snap = dm_block_location(copy);
		dm_tm_unlock(meta->tm, copy);
		r = broke(meta, dm_tm_inc(meta->tm, meta->writesets_root));
	}
	if (!r)
		r = broke(meta, dm_tm_inc(meta->tm, meta->eras_root));
	if (!r)
		r = era_md_commit(meta);
	return r ? dm_fail(err, -r, "era: no metadata snapshot: %s", g_strerror(-r)) : 0;
}

int era_md_drop_snap(struct era_md *meta, GError **err)
{
	dm_block_t writesets = 0, eras = 0, snap = meta->snap;
	struct dm_block *copy;
	int r;

	if (!snap)
		return dm_fail(err, EINVAL, "era: there is no metadata snapshot");
	r = meta->broken ? -EIO : dm_tm_read_lock(meta->tm, snap, &sb_validator, &copy);
	if (!r) {
		writesets = get_le64((char *)dm_block_data(copy) + SB_WRITESETS);
		eras = get_le64((char *)dm_block_data(copy) + SB_ERAS);
		dm_tm_unlock(meta->tm, copy);
		meta->snap = 0;
		r = broke(meta, dm_btree_del(&meta->writesets, writesets));
	}
	if (!r)
		r = broke(meta, dm_array_del(&meta->eras, eras));
	if (!r)
		r = broke(meta, dm_tm_dec(meta->tm, snap));
	if (!r)
		r = era_md_commit(meta);
	return r ? dm_fail(err, -r, "era: the metadata snapshot cannot be dropped: %s", g_strerror(-r)) : 0;
}
