/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Forward error correction: blocks that are not what their digests say are mended from Reed-Solomon parity.
 *
 * The code covers an area of fec_blocks blocks: the data blocks, then the hash device from hash_start on;
 * what would be behind it is zero. With rounds = fec_blocks / (255 - roots), rounded up:
 *
 *   byte j of codeword c     byte c + j * rounds * block of the area, j < 255 - roots
 *   parity of codeword c     roots bytes at fec_start * block + c * roots of the FEC device
 *
 * So the codewords of a block T are those of the blocks T % rounds + j * rounds, and of no others: one set of
 * 255 - roots blocks, and the parity of its codewords in one piece.  A run of lost blocks takes
 * neighbours of every set, at most roots of each if it is not longer than roots * rounds blocks.
 *
 * What is lost of a set is not always known: a block that could not be read is; others fail their digests, if
 * the hash blocks for that are good.  So guesses are tried, and the block's own digest is the judge of each:
 *
 *   1. if few codewords are wrong: only what could not be read is lost, the code finds the errors
 *   2. what fails its digest, and the block itself, are lost as well, and nothing else
 *   3. a run of roots blocks of the set around it is lost
 *   4. with what is lost for sure, a run of those of which nothing is known
 *   5. as 2, and the code finds more errors; as 1
 *
 * Where all that is wrong is known, a block comes from sums of syndromes that are the same for all codewords, which
 * is fast; finding errors is done codeword by codeword.
 */
#include <inttypes.h>

#include "rs.h"
#include "verity.h"

#define FEW_CODEWORDS 64

enum member { UNKNOWN, GOOD, LOST };

struct set {
	struct verity *v;
	size_t block;        /* bytes: codewords of the set */
	unsigned data, roots; /* members: 255 - roots of data, then parity */
	uint64_t base;       /* area block of member 0 */
	unsigned target;
	const uint8_t *want; /* the target's digest */
	uint8_t *room;
	uint8_t *bytes[RS_SIZE];
	uint8_t *syndromes[RS_MAX_ROOTS];
	enum member is[RS_SIZE];
	unsigned corrected;  /* errors, by the attempt that was right */
	unsigned lost;       /* members, for sure; at most roots */
	GHashTable *hash_blocks; /* number -> verified content, or NULL if there is none */
};

/* --- the area ------------------------------------------------------------------------------------ */

static uint64_t area_block(const struct set *s, unsigned member)
{
	return s->base + member * s->v->fec->rounds;
}

static bool is_data(const struct set *s, unsigned member)
{
	return area_block(s, member) < s->v->f.data_blocks;
}

static uint64_t hash_block_of(const struct set *s, unsigned member)
{
	return area_block(s, member) - s->v->f.data_blocks + s->v->f.hash_start;
}

static int read_block(struct verity *v, enum verity_block_type type, uint64_t block, uint8_t *out)
{
	unsigned shift = v->f.data_bits - DM_SECTOR_SHIFT;

	return dm_read_sync(type == VERITY_DATA ? v->data_dev : v->hash_dev, block << shift, 1ull << shift, out, 0);
}

/* --- digests of other blocks of the set, without mending any ------------------------------------- */

static const uint8_t *good_hash_block(struct set *s, unsigned level, uint64_t index);

/* The digest of block `index` of level - 1; NULL if it is not known. */
static const uint8_t *digest_in(struct set *s, unsigned level, uint64_t index)
{
	const struct verity_format *f = &s->v->f;
	const uint8_t *content;
	uint64_t unused;
	size_t offset;

	if (level == f->levels)
		return f->root;
	content = good_hash_block(s, level, index >> f->per_block_bits);
	verity_digest_place(f, level, index, &unused, &offset);
	return content ? content + offset : NULL;
}

/* Recursion: once a level. */
static const uint8_t *good_hash_block(struct set *s, unsigned level, uint64_t index)
{
	const struct verity_format *f = &s->v->f;
	uint64_t block = f->level_start[level] + index;
	g_autofree uint8_t *content = NULL;
	uint8_t is[DM_HASH_MAX_SIZE];
	const uint8_t *want;
	gpointer known;

	if (g_hash_table_lookup_extended(s->hash_blocks, GSIZE_TO_POINTER(block), NULL, &known))
		return known;
	content = g_malloc(f->hash_block);
	if (!verity_tree_peek(s->v->tree, block, 0, content, f->hash_block)) {
		want = digest_in(s, level + 1, index);
		if (!want || read_block(s->v, VERITY_METADATA, block, content))
			g_clear_pointer(&content, g_free);
		if (content)
			verity_hash_block(f, content, f->hash_block, is);
		if (content && memcmp(is, want, f->digest_size))
			g_clear_pointer(&content, g_free);
	}
	known = content;
	g_hash_table_insert(s->hash_blocks, GSIZE_TO_POINTER(block), g_steal_pointer(&content));
	return known;
}

static const uint8_t *digest_of(struct set *s, unsigned member)
{
	const struct verity_format *f = &s->v->f;
	unsigned level;
	uint64_t index;

	if (is_data(s, member))
		return digest_in(s, 0, area_block(s, member));
	if (area_block(s, member) >= s->v->fec->blocks ||
	    !verity_hash_block_level(f, hash_block_of(s, member), &level, &index))
		return NULL; /* behind the tree */
	return digest_in(s, level + 1, index);
}

/* Finds out what is good of the set and what is not. */
static void judge(struct set *s)
{
	const struct verity_format *f = &s->v->f;
	uint8_t is[DM_HASH_MAX_SIZE];

	s->is[s->target] = LOST;
	for (unsigned i = 0; i < s->data; i++) {
		const uint8_t *want = s->is[i] == UNKNOWN ? digest_of(s, i) : NULL;

		if (!want)
			continue;
		verity_hash_block(f, s->bytes[i], s->block, is);
		s->is[i] = memcmp(is, want, f->digest_size) ? LOST : GOOD;
	}
}

/* --- reading it ---------------------------------------------------------------------------------- */

static void read_member(struct set *s, unsigned i)
{
	struct verity *v = s->v;
	bool data = is_data(s, i);

	if (area_block(s, i) >= v->fec->blocks) {
		s->is[i] = GOOD;
		return; /* zeroes */
	}
	if (data && v->ignore_zero_blocks) {
		const uint8_t *want = digest_of(s, i);

		if (want && !memcmp(want, v->zero_digest, v->f.digest_size))
			return; /* whatever lies there: it reads as zeroes */
	}
	if (read_block(v, data ? VERITY_DATA : VERITY_METADATA, data ? area_block(s, i) : hash_block_of(s, i),
		       s->bytes[i])) {
		memset(s->bytes[i], 0, s->block);
		s->is[i] = LOST;
	}
}

/* Reads the parity, which lies codeword by codeword. */
static int read_parity(struct set *s)
{
	size_t len = s->block * s->roots;
	g_autofree uint8_t *raw = g_malloc(len);
	unsigned shift = s->v->f.data_bits - DM_SECTOR_SHIFT;
	uint64_t sector = (s->v->fec->start + s->base * s->roots) << shift;
	int error = dm_read_sync(s->v->fec->dev, sector, len >> DM_SECTOR_SHIFT, raw, 0);

	if (error)
		return error;
	for (unsigned i = 0; i < s->roots; i++)
		for (size_t c = 0; c < s->block; c++)
			s->bytes[s->data + i][c] = raw[c * s->roots + i];
	return 0;
}

static int read_set(struct set *s)
{
	int error;

	s->room = g_try_malloc0((RS_SIZE + s->roots) * s->block);
	if (!s->room)
		return -ENOMEM;
	s->hash_blocks = g_hash_table_new_full(NULL, NULL, NULL, g_free);
	for (unsigned i = 0; i < RS_SIZE; i++)
		s->bytes[i] = s->room + i * s->block;
	for (unsigned i = 0; i < s->roots; i++)
		s->syndromes[i] = s->room + (RS_SIZE + i) * s->block;
	for (unsigned i = 0; i < s->data; i++)
		read_member(s, i);
	error = read_parity(s);
	if (!error)
		rs_syndromes(s->v->fec->rs, (const uint8_t *const *)s->bytes, s->block, s->syndromes);
	return error;
}

static void set_clear(struct set *s)
{
	if (s->hash_blocks)
		g_hash_table_destroy(s->hash_blocks);
	g_free(s->room);
}

/* --- attempts ------------------------------------------------------------------------------------ */

static bool is_right(const struct set *s, const uint8_t *out)
{
	uint8_t is[DM_HASH_MAX_SIZE];

	verity_hash_block(&s->v->f, out, s->block, is);
	return !memcmp(is, s->want, s->v->f.digest_size);
}

/* Corrects codeword by codeword; false: one of them has too many errors. */
static bool correct_all(struct set *s, const uint8_t *erasures, unsigned n, uint8_t *out)
{
	uint8_t syndromes[RS_MAX_ROOTS];
	struct rs_fix fix;

	s->corrected = 0;
	memcpy(out, s->bytes[s->target], s->block);
	for (size_t c = 0; c < s->block; c++) {
		uint8_t any = 0;

		for (unsigned i = 0; i < s->roots; i++)
			any |= syndromes[i] = s->syndromes[i][c];
		if (!any)
			continue;
		if (rs_solve(s->v->fec->rs, syndromes, erasures, n, &fix))
			return false;
		for (unsigned i = 0; i < fix.n; i++) {
			s->corrected += fix.value[i] != 0;
			if (fix.at[i] == s->target)
				out[c] ^= fix.value[i];
		}
	}
	return true;
}

/* The places that are lost for sure; more than the code can mend: false. */
static bool lost_places(const struct set *s, uint8_t *erasures, unsigned *n)
{
	*n = 0;
	for (unsigned i = 0; i < s->data; i++) {
		if (s->is[i] != LOST)
			continue;
		if (*n == s->roots)
			return false;
		erasures[(*n)++] = (uint8_t)i;
	}
	return true;
}

static bool try_lost(struct set *s, uint8_t *out)
{
	uint8_t erasures[RS_MAX_ROOTS];
	unsigned n;

	return lost_places(s, erasures, &n) && correct_all(s, erasures, n, out) && is_right(s, out);
}

/*
 * The errors at erasures[which], for all codewords, if the erasures, as many as there are roots, are all that is wrong.
 */
static void errors_at(const struct set *s, const uint8_t *erasures, unsigned which, uint8_t *out)
{
	uint8_t weights[RS_MAX_ROOTS];

	rs_erasure_weights(s->v->fec->rs, erasures, which, weights);
	rs_weighted_sum(s->v->fec->rs, weights, (const uint8_t *const *)s->syndromes, s->block, out);
}

static unsigned count_errors(const struct set *s, const uint8_t *erasures)
{
	g_autofree uint8_t *errors = g_malloc(s->block);
	unsigned n = 0;

	for (unsigned i = 0; i < s->roots; i++) {
		errors_at(s, erasures, i, errors);
		for (size_t c = 0; c < s->block; c++)
			n += errors[c] != 0;
	}
	return n;
}

/* With as many erasures as there are roots, one of them the target, and no other errors. */
static bool try_places(struct set *s, const uint8_t *erasures, uint8_t *out)
{
	unsigned which = 0;

	while (erasures[which] != s->target)
		which++;
	errors_at(s, erasures, which, out);
	for (size_t c = 0; c < s->block; c++)
		out[c] ^= s->bytes[s->target][c];
	if (!is_right(s, out))
		return false;
	s->corrected = count_errors(s, erasures);
	return true;
}

/* What is lost for sure, the target with it, and nothing else. */
static bool try_only_lost(struct set *s, uint8_t *out)
{
	uint8_t erasures[RS_MAX_ROOTS];
	unsigned n;

	if (!lost_places(s, erasures, &n))
		return false;
	for (unsigned i = RS_SIZE - 1; n < s->roots; i--) /* any others make up the number */
		if (s->is[i] != LOST)
			erasures[n++] = (uint8_t)i;
	return try_places(s, erasures, out);
}

static bool try_runs(struct set *s, uint8_t *out)
{
	for (unsigned before = 0; before < s->roots && before <= s->target; before++) {
		uint8_t erasures[RS_MAX_ROOTS];

		for (unsigned i = 0; i < s->roots; i++) /* may reach into the parity */
			erasures[i] = (uint8_t)(s->target - before + i);
		if (erasures[0] + s->roots <= RS_SIZE && try_places(s, erasures, out))
			return true;
	}
	return false;
}

/* With what is lost for sure, as many as are left of those of which nothing is known, one behind the other. */
static bool try_unknown(struct set *s, uint8_t *out)
{
	uint8_t erasures[RS_MAX_ROOTS], unknown[RS_SIZE];
	unsigned n, n_unknown = 0, left;

	if (!lost_places(s, erasures, &n) || n == s->roots)
		return false;
	for (unsigned i = 0; i < RS_SIZE; i++)
		if (s->is[i] == UNKNOWN)
			unknown[n_unknown++] = (uint8_t)i;
	left = s->roots - n;
	for (unsigned first = 0; first + left <= n_unknown; first++) {
		memcpy(erasures + n, unknown + first, left);
		if (try_places(s, erasures, out))
			return true;
	}
	return false;
}

static unsigned wrong_codewords(const struct set *s)
{
	unsigned n = 0;

	for (size_t c = 0; c < s->block; c++) {
		uint8_t any = 0;

		for (unsigned i = 0; i < s->roots; i++)
			any |= s->syndromes[i][c];
		n += any != 0;
	}
	return n;
}

static bool try_all(struct set *s, uint8_t *out)
{
	bool few = wrong_codewords(s) <= FEW_CODEWORDS;
	enum member readable[RS_SIZE];
	uint8_t places[RS_MAX_ROOTS];

	if (few && try_lost(s, out))
		return true;
	memcpy(readable, s->is, sizeof(readable));
	judge(s);
	lost_places(s, places, &s->lost);
	if (try_only_lost(s, out) || try_runs(s, out) || try_unknown(s, out) || try_lost(s, out))
		return true;
	if (few)
		return false;
	memcpy(s->is, readable, sizeof(readable));
	return try_lost(s, out);
}

static void tell(struct set *s, bool mended)
{
	g_autoptr(GString) name = g_string_new(NULL);
	uint64_t offset = s->base * s->block;

	dm_dev_print(s->v->data_dev, name);
	if (mended) {
		dm_log_warn("verity-fec: %s: FEC %" PRIu64 ": corrected %u errors", name->str, offset, s->corrected);
		return;
	}
	dm_log_err("verity-fec: %s: FEC %" PRIu64 ": failed to correct (%u erasures)", name->str, offset, s->lost);
}

int verity_fec_mend(struct verity *v, enum verity_block_type type, uint64_t block, const uint8_t *digest, uint8_t *out)
{
	struct verity_fec *fec = v->fec;
	uint64_t area = type == VERITY_DATA ? block : block - v->f.hash_start + v->f.data_blocks;
	struct set s = {
		.v = v,
		.block = v->f.data_block,
		.data = RS_SIZE - fec->roots,
		.roots = fec->roots,
		.base = area % fec->rounds,
		.target = (unsigned)(area / fec->rounds),
		.want = digest,
	};
	bool mended = !read_block(v, type, block, out) && is_right(&s, out);

	if (mended)
		return 0; /* the medium has thought better of it */
	mended = !read_set(&s) && try_all(&s, out);
	tell(&s, mended);
	set_clear(&s);
	return mended ? 0 : -EIO;
}

/* --- making --------------------------------------------------------------------------------------- */

static uint64_t device_blocks(const struct verity *v, struct dm_dev *dev)
{
	return dm_dev_sectors(dev) >> (v->f.data_bits - DM_SECTOR_SHIFT);
}

static int check_devices(struct verity *v, GError **err)
{
	struct verity_fec *fec = v->fec;
	uint64_t behind = fec->blocks - v->f.data_blocks, parity = fec->rounds * fec->roots;

	if (v->f.hash_start + behind > device_blocks(v, v->hash_dev))
		return dm_fail(err, E2BIG,
			       "verity: Hash device is too small for fec_blocks: %" PRIu64 " blocks behind hash block %" PRIu64
			       ", it has %" PRIu64,
			       behind, v->f.hash_start, device_blocks(v, v->hash_dev));
	if (fec->start > device_blocks(v, fec->dev) || parity > device_blocks(v, fec->dev) - fec->start)
		return dm_fail(err, E2BIG,
			       "verity: FEC device is too small: %" PRIu64 " blocks of parity from block %" PRIu64
			       " on, it has %" PRIu64,
			       parity, fec->start, device_blocks(v, fec->dev));
	if (v->f.data_blocks > device_blocks(v, v->data_dev))
		return dm_fail(err, E2BIG,
			       "verity: Data device is too small: FEC covers %" PRIu64 " data blocks, it has %" PRIu64,
			       v->f.data_blocks, device_blocks(v, v->data_dev));
	return 0;
}

int verity_fec_prepare(struct verity *v, GError **err)
{
	struct verity_fec *fec = v->fec;
	uint64_t tree = v->f.hash_end - v->f.hash_start;

	if (v->f.data_block != v->f.hash_block)
		return dm_fail(err, EINVAL, "verity: Block sizes must match to use FEC: they are %u and %u", v->f.data_block,
			       v->f.hash_block);
	if (!fec->roots)
		return dm_fail(err, EINVAL, "verity: Missing fec_roots");
	if (!fec->blocks)
		return dm_fail(err, EINVAL, "verity: Missing fec_blocks");
	if (fec->blocks < v->f.data_blocks || fec->blocks - v->f.data_blocks < tree)
		return dm_fail(err, EINVAL,
			       "verity: Invalid fec_blocks %" PRIu64 ": %" PRIu64 " data blocks and %" PRIu64
			       " hash blocks must be covered",
			       fec->blocks, v->f.data_blocks, tree);
	fec->rounds = (fec->blocks - 1) / (RS_SIZE - fec->roots) + 1;
	fec->rs = rs_new(fec->roots);
	return check_devices(v, err);
}

void verity_fec_free(struct verity_fec *fec)
{
	if (fec)
		rs_free(fec->rs);
	g_free(fec);
}
