/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Mode B's bitmap (bitmap.h).  There are three in memory:
 *
 *   image        what the disk has, or will have after the next commit of bits     (lock)
 *   may_write    bits that are durable: writes to these regions may begin          (atomic words)
 *   unsure       regions that are yet to be recalculated: their tags are not compared (atomic words)
 *
 * Bits are set by a group commit, for all who wait.  They are cleared some time after: while the whole volume is
 * locked, so that no write is under way, tags and data are made durable and the bits go in memory; the disk learns of
 * it after that.
 *
 * Locks: io_lock (the bitmap's writes to the disk, held across I/O), then lock.
 */
#include <dmfs/rounding.h>

#include "bitmap.h"
#include "journal.h"

#define WORD_BITS 64u
#define WORDS_OF_BLOCK (BITMAP_BLOCK / 8u)

struct integrity_bitmap {
	unsigned blocks; /* of BITMAP_BLOCK bytes */
	size_t words;
	uint64_t *image; /* little-endian, as on the disk */
	_Atomic uint64_t *may_write, *unsure;
	bool *wanted; /* blocks to be written; lock */
	pthread_mutex_t lock, io_lock;
	struct dm_wq *wq, *clear_wq;
	struct dm_group_commit *bits, *clears;
};

/* --- bits ------------------------------------------------------------------------------------- */

static uint64_t bit_of(const struct integrity *ic, uint64_t block)
{
	return block >> (ic->l.log2_bit - ic->l.log2_spb);
}

/* The bits first to last that lie in a word. */
static uint64_t mask_of(uint64_t word, uint64_t first, uint64_t last)
{
	uint64_t from = MAX(first, word * WORD_BITS), to = MIN(last, word * WORD_BITS + WORD_BITS - 1);

	return (UINT64_MAX << from % WORD_BITS) & (UINT64_MAX >> (WORD_BITS - 1 - to % WORD_BITS));
}

static bool all_set(const _Atomic uint64_t *words, uint64_t first, uint64_t last)
{
	for (uint64_t w = first / WORD_BITS; w <= last / WORD_BITS; w++) {
		uint64_t mask = mask_of(w, first, last);

		if ((atomic_load(&words[w]) & mask) != mask)
			return false;
	}
	return true;
}

static void clear_atomic(_Atomic uint64_t *words, uint64_t first, uint64_t last)
{
	for (uint64_t w = first / WORD_BITS; w <= last / WORD_BITS; w++)
		atomic_fetch_and(&words[w], ~mask_of(w, first, last));
}

/* lock held, or nobody else is there. */
static void set_image(struct integrity_bitmap *b, uint64_t first, uint64_t last)
{
	for (uint64_t w = first / WORD_BITS; w <= last / WORD_BITS; w++) {
		b->image[w] |= GUINT64_TO_LE(mask_of(w, first, last));
		b->wanted[w / WORDS_OF_BLOCK] = true;
	}
}

static void clear_image(struct integrity_bitmap *b, uint64_t first, uint64_t last)
{
	for (uint64_t w = first / WORD_BITS; w <= last / WORD_BITS; w++) {
		uint64_t cleared = b->image[w] & ~GUINT64_TO_LE(mask_of(w, first, last));

		if (cleared != b->image[w])
			b->wanted[w / WORDS_OF_BLOCK] = true;
		b->image[w] = cleared;
	}
}

/* --- to the disk ------------------------------------------------------------------------------ */

static uint64_t sector_of(const struct integrity *ic, unsigned block)
{
	return ic->l.start + SB_SECTORS + block * (BITMAP_BLOCK >> DM_SECTOR_SHIFT);
}

/* Writes the wanted blocks; those that were written, and all their bits, are in may_write then. */
static int write_wanted(struct integrity *ic)
{
	struct integrity_bitmap *b = ic->bitmap;
	g_autofree uint64_t *copy = g_malloc(BITMAP_BLOCK);
	int error = 0;

	dm_block_begin();
	pthread_mutex_lock(&b->io_lock);
	dm_block_end();
	for (unsigned i = 0; i < b->blocks && !error; i++) {
		bool wanted;

		pthread_mutex_lock(&b->lock);
		wanted = b->wanted[i];
		b->wanted[i] = false;
		if (wanted)
			memcpy(copy, b->image + (size_t)i * WORDS_OF_BLOCK, BITMAP_BLOCK);
		pthread_mutex_unlock(&b->lock);
		if (!wanted)
			continue;
		error =
		    dm_write_sync(ic->meta, sector_of(ic, i), BITMAP_BLOCK >> DM_SECTOR_SHIFT, copy, DM_FUA | DM_META);
		for (unsigned w = 0; w < WORDS_OF_BLOCK && !error; w++)
			atomic_fetch_or(&b->may_write[(size_t)i * WORDS_OF_BLOCK + w], GUINT64_FROM_LE(copy[w]));
		if (error) {
			pthread_mutex_lock(&b->lock);
			b->wanted[i] = true;
			pthread_mutex_unlock(&b->lock);
		}
	}
	pthread_mutex_unlock(&b->io_lock);
	return error;
}

static int read_image(struct integrity *ic, uint64_t *image, unsigned blocks)
{
	int error = 0;

	for (unsigned i = 0; i < blocks && !error; i++)
		error = dm_read_sync(ic->meta, sector_of(ic, i), BITMAP_BLOCK >> DM_SECTOR_SHIFT,
				     image + (size_t)i * WORDS_OF_BLOCK, DM_META);
	return error;
}

static int commit_bits(void *context)
{
	struct integrity *ic = context;
	int error = write_wanted(ic);

	if (error)
		dm_log_err_limit("integrity: the bitmap cannot be written: %s", g_strerror(-error));
	integrity_bitmap_clear_soon(ic);
	return error;
}

/* --- before a write --------------------------------------------------------------------------- */

static bool want_bits(struct integrity *ic, uint64_t block, uint64_t blocks)
{
	struct integrity_bitmap *b = ic->bitmap;
	uint64_t first = bit_of(ic, block), last = bit_of(ic, block + blocks - 1);

	if (all_set(b->may_write, first, last))
		return false;
	pthread_mutex_lock(&b->lock);
	set_image(b, first, last);
	pthread_mutex_unlock(&b->lock);
	return true;
}

bool integrity_bitmap_may_write(struct integrity *ic, uint64_t block, uint64_t blocks, struct dm_commit_wait *wait)
{
	if (!want_bits(ic, block, blocks))
		return true;
	dm_group_commit(ic->bitmap->bits, wait);
	return false;
}

int integrity_bitmap_may_write_sync(struct integrity *ic, uint64_t block, uint64_t blocks)
{
	return want_bits(ic, block, blocks) ? dm_group_commit_sync(ic->bitmap->bits) : 0;
}

/* --- recalculation ---------------------------------------------------------------------------- */

bool integrity_bitmap_unsure(struct integrity *ic, uint64_t block, uint64_t blocks)
{
	return integrity_bitmap_next_unsure(ic, block, block + blocks) < block + blocks;
}

uint64_t integrity_bitmap_next_unsure(struct integrity *ic, uint64_t block, uint64_t end)
{
	struct integrity_bitmap *b = ic->bitmap;
	uint64_t first = bit_of(ic, block), last;

	if (block >= end)
		return end;
	last = bit_of(ic, end - 1);
	for (uint64_t w = first / WORD_BITS; w <= last / WORD_BITS; w++) {
		uint64_t set = atomic_load(&b->unsure[w]) & mask_of(w, first, last);

		if (set)
			return MAX((w * WORD_BITS + (unsigned)__builtin_ctzll(set))
				       << (ic->l.log2_bit - ic->l.log2_spb),
				   block);
	}
	return end;
}

void integrity_bitmap_recalculated(struct integrity *ic, uint64_t block, uint64_t end)
{
	bool all = end >= ic->l.provided >> ic->l.log2_spb;
	uint64_t first = bit_of(ic, block), after = all ? ic->l.bits : bit_of(ic, end);

	if (after > first)
		clear_atomic(ic->bitmap->unsure, first, after - 1);
}

/* --- clearing --------------------------------------------------------------------------------- */

/* How many bits, from the first on, may go: not those that a recalculation has yet to come to. */
static uint64_t clearable(const struct integrity *ic)
{
	if (!(atomic_load(&ic->flags) & SB_RECALCULATING) || atomic_load(&ic->recalc) >= ic->l.provided)
		return ic->l.bits;
	return atomic_load(&ic->recalc) >> ic->l.log2_bit;
}

static int clear_bits(void *context)
{
	struct integrity *ic = context;
	struct integrity_bitmap *b = ic->bitmap;
	struct dm_block_sync_claim c;
	uint64_t n;
	int error = integrity_make_durable(ic); /* most of it, while writes go on */

	if (error)
		return error;
	integrity_lock_sync(ic, &c, 0, (ic->l.provided >> ic->l.log2_spb) - 1);
	error = integrity_make_durable(ic);
	n = clearable(ic);
	if (!error && n) {
		pthread_mutex_lock(&b->lock);
		clear_image(b, 0, n - 1);
		pthread_mutex_unlock(&b->lock);
		clear_atomic(b->may_write, 0, n - 1);
	}
	integrity_unlock_sync(ic, &c);
	return error ? error : write_wanted(ic);
}

void integrity_bitmap_clear_soon(struct integrity *ic)
{
	dm_group_commit_soon(ic->bitmap->clears, ic->flush_ms * MS_NS);
}

void integrity_bitmap_clear_now(struct integrity *ic)
{
	dm_group_commit_soon(ic->bitmap->clears, 0);
}

/* --- hooks ------------------------------------------------------------------------------------ */

static void set_all(struct integrity *ic, uint64_t from_sector)
{
	if (from_sector < ic->l.provided)
		set_image(ic->bitmap, from_sector >> ic->l.log2_bit, ic->l.bits - 1);
}

/* What the disk says, or would, is what is unsure. */
static bool take_image(struct integrity *ic)
{
	struct integrity_bitmap *b = ic->bitmap;
	uint64_t any = 0;

	for (uint64_t w = 0; w < b->words; w++) {
		uint64_t set =
		    w * WORD_BITS < ic->l.bits ? GUINT64_FROM_LE(b->image[w]) & mask_of(w, 0, ic->l.bits - 1) : 0;

		any |= set;
		atomic_store(&b->unsure[w], set);
		atomic_store(&b->may_write[w], set);
	}
	return any;
}

static void recalculate_from(struct integrity *ic, uint64_t sector)
{
	pthread_mutex_lock(&ic->sb_lock);
	ic->sb.flags |= SB_RECALCULATING;
	ic->sb.recalc = sector;
	pthread_mutex_unlock(&ic->sb_lock);
}

static int start_dirty(struct integrity *ic, uint64_t old_provided)
{
	struct integrity_bitmap *b = ic->bitmap;
	unsigned per_bit = ic->l.log2_bit - ic->l.log2_spb;
	bool fits = ic->sb.log2_blocks_per_bit == per_bit && !ic->reset_recalculate;
	int error = fits ? read_image(ic, b->image, b->blocks) : 0;

	if (error)
		return error;
	if (fits)
		set_all(ic, old_provided);
	else
		set_all(ic, 0);
	if (ic->writes)
		error = write_wanted(ic);
	if (take_image(ic))
		recalculate_from(ic, 0);
	ic->sb.log2_blocks_per_bit = per_bit;
	return error;
}

/* The superblock says that there is a bitmap before there is one: what a crash leaves between is at worst too many
 * bits. */
static int start_fresh(struct integrity *ic)
{
	struct integrity_bitmap *b = ic->bitmap;
	int error = 0;

	memset(b->image, 0, (size_t)b->blocks * BITMAP_BLOCK);
	if (ic->sb.flags & SB_RECALCULATING)
		set_all(ic, ic->sb.recalc);
	for (unsigned i = 0; i < b->blocks; i++)
		b->wanted[i] = true;
	pthread_mutex_lock(&ic->sb_lock);
	ic->sb.flags |= SB_DIRTY_BITMAP;
	ic->sb.log2_blocks_per_bit = ic->l.log2_bit - ic->l.log2_spb;
	pthread_mutex_unlock(&ic->sb_lock);
	if (ic->writes)
		error = integrity_write_super(ic);
	if (!error && ic->writes)
		error = write_wanted(ic);
	take_image(ic);
	return error;
}

int integrity_bitmap_start(struct integrity *ic, bool dirty, uint64_t old_provided, GError **err)
{
	int error;

	for (size_t w = 0; w < ic->bitmap->words; w++)
		atomic_store(&ic->bitmap->may_write[w], 0);
	error = dirty ? start_dirty(ic, old_provided) : start_fresh(ic);
	return error ? dm_fail(err, -error, "integrity: the bitmap cannot be read or written: %s", g_strerror(-error))
		     : 0;
}

int integrity_bitmap_stop(struct integrity *ic)
{
	int error;

	dm_group_commit_settle(ic->bitmap->bits);
	dm_group_commit_settle(ic->bitmap->clears);
	if (!ic->writes)
		return 0;
	error = integrity_make_durable(ic);
	if (!error)
		error = integrity_journal_erase(ic);
	if (error)
		return error;
	pthread_mutex_lock(&ic->sb_lock);
	ic->sb.flags &= ~(unsigned)SB_DIRTY_BITMAP;
	pthread_mutex_unlock(&ic->sb_lock);
	return integrity_write_super(ic);
}

int integrity_bitmap_any(struct integrity *ic, bool *any)
{
	unsigned blocks = integrity_layout_bitmap_blocks(&ic->l);
	g_autofree uint64_t *image = NULL;
	int error;

	*any = true;
	if (ic->sb.log2_blocks_per_bit != ic->l.log2_bit - ic->l.log2_spb)
		return 0;
	image = g_malloc((size_t)blocks * BITMAP_BLOCK);
	error = read_image(ic, image, blocks);
	if (error)
		return error;
	*any = false;
	for (uint64_t w = 0; w * WORD_BITS < ic->l.bits; w++)
		*any |= GUINT64_FROM_LE(image[w]) & mask_of(w, 0, ic->l.bits - 1);
	return 0;
}

void integrity_bitmap_new(struct integrity *ic)
{
	struct integrity_bitmap *b = g_new0(struct integrity_bitmap, 1);

	b->blocks = integrity_layout_bitmap_blocks(&ic->l);
	b->words = (size_t)b->blocks * WORDS_OF_BLOCK;
	b->image = g_new0(uint64_t, b->words);
	b->may_write = (_Atomic uint64_t *)g_new0(uint64_t, b->words);
	b->unsure = (_Atomic uint64_t *)g_new0(uint64_t, b->words);
	b->wanted = g_new0(bool, b->blocks);
	pthread_mutex_init(&b->lock, NULL);
	pthread_mutex_init(&b->io_lock, NULL);
	b->wq = dm_wq_new("integrity-bits", 1);
	b->clear_wq = dm_wq_new("integrity-clear", 1);
	b->bits = dm_group_commit_new(b->wq, commit_bits, ic);
	b->clears = dm_group_commit_new(b->clear_wq, clear_bits, ic);
	ic->bitmap = b;
}

void integrity_bitmap_free(struct integrity *ic)
{
	struct integrity_bitmap *b = ic->bitmap;

	if (!b)
		return;
	dm_group_commit_free(b->bits);
	dm_group_commit_free(b->clears);
	dm_wq_free(b->wq);
	dm_wq_free(b->clear_wq);
	pthread_mutex_destroy(&b->lock);
	pthread_mutex_destroy(&b->io_lock);
	g_free(b->image);
	g_free((void *)b->may_write);
	g_free((void *)b->unsure);
	g_free(b->wanted);
	g_free(b);
}
