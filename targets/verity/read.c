/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A read's way: its data goes where the reader wants it, and is hashed there.
 *
 * A check is the verification of a run of blocks, one after the other. A small read is one check, in the bio's own
 * room.  A large one is cut into pieces, each a read of its own and a check: if that is a lot of work other cores
 * take pieces (dmfs/spread.h), and in any case a piece is hashed while it is in the cache.
 *
 * A check runs in the thread that brings the data, as long as nothing is missing: a digest that is not there yet, a
 * block to be mended.  For these nobody waits: the check is taken up again by a work queue when there is news.  At any
 * time one thread has it.
 *
 * Blocks that lie behind each other are hashed together, as many as a hash block has the digests of: several at
 * once are faster than one by one (dmfs/hash.h).
 *
 * Blocks that check_at_most_once knows go straight through.
 */
#include <inttypes.h>

#include <dmfs/spread.h>

#include "verity.h"

#define PIECE_BYTES ((size_t)128 << 10)
#define MANY 16u                       /* blocks that are hashed together */
#define SMALL_BYTES ((size_t)16 << 10) /* hashed by whoever brings them */

struct check {
	struct verity_wait wait; /* first */
	struct dm_work work;
	struct verity *v;
	struct dm_bio *bio;       /* the data */
	uint64_t block;           /* its first block */
	unsigned blocks, next;    /* next: of them, not yet checked */
	bool unreadable;          /* some block of it could not be read */
	bool over;                /* a small read's: end_io has nothing to do any more */
	void (*done)(struct check *, int error);
	uint8_t digest[DM_HASH_MAX_SIZE]; /* of a block to be mended */
};

size_t verity_per_bio_size(void)
{
	return sizeof(struct check);
}

/* --- checking ------------------------------------------------------------------------------------ */

static void run_later(struct dm_work *work);
static void mend(struct dm_work *work);

static void ready(struct verity_wait *w)
{
	struct check *c = (struct check *)w;

	c->work.fn = run_later;
	dm_wq_queue(c->v->wq, &c->work);
}

static void check_init(struct check *c, struct verity *v, struct dm_bio *bio, uint64_t block,
		       void (*done)(struct check *, int error))
{
	memset(c, 0, offsetof(struct check, digest));
	c->wait.ready = ready;
	c->v = v;
	c->bio = bio;
	c->block = block;
	c->blocks = (unsigned)(bio->sectors >> (v->f.data_bits - DM_SECTOR_SHIFT));
	c->done = done;
}

static size_t offset_of_next(const struct check *c)
{
	return (size_t)c->next << c->v->f.data_bits;
}

/* Hashes a block that lies in many pieces, out of a copy. */
static void hash_copy(struct check *c, uint8_t *digest)
{
	uint8_t copy[VERITY_MAX_DATA_BLOCK];

	dm_iov_read(c->bio->iov, c->bio->iovcnt, offset_of_next(c), copy, c->v->f.data_block);
	verity_hash_block(&c->v->f, copy, c->v->f.data_block, digest);
}

static void hash_next(struct check *c, uint8_t *digest)
{
	const struct verity_format *f = &c->v->f;
	const struct iovec *iov = c->bio->iov;
	size_t at = offset_of_next(c), len = f->data_block;
	struct iovec pieces[VERITY_MAX_PIECES];
	int n = 0;

	if (c->bio->iovcnt == 1) {
		verity_hash_block(f, (char *)iov->iov_base + at, len, digest);
		return;
	}
	for (; at >= iov->iov_len; iov++)
		at -= iov->iov_len;
	for (; len && n < VERITY_MAX_PIECES; iov++, at = 0) {
		size_t part = MIN(iov->iov_len - at, len);

		pieces[n++] = (struct iovec){(char *)iov->iov_base + at, part};
		len -= part;
	}
	if (len)
		hash_copy(c, digest);
	else
		verity_hash_pieces(f, pieces, n, digest);
}

enum verdict { GO_ON, WAIT, FAIL };

/* The next block is not what its digest says.  *error if it fails. */
static enum verdict wrong(struct check *c, const uint8_t *digest, int *error)
{
	struct verity *v = c->v;

	if (v->fec) {
		memcpy(c->digest, digest, v->f.digest_size);
		c->work.fn = mend;
		dm_wq_queue(v->mending, &c->work);
		return WAIT;
	}
	if (verity_block_corrupted(v, VERITY_DATA, c->block + c->next)) {
		*error = -EIO;
		return FAIL;
	}
	c->next++;
	return GO_ON;
}

static bool is_validated(const struct check *c, unsigned nr)
{
	return c->v->validated && verity_validated_test(c->v->validated, c->block + nr, 1);
}

static bool is_zero(const struct check *c, const uint8_t *digest)
{
	return c->v->ignore_zero_blocks && !memcmp(digest, c->v->zero_digest, c->v->f.digest_size);
}

/* How many of the next blocks, up to n, are each in one piece and nothing but to be hashed; and where they are. */
static unsigned plain_blocks(const struct check *c, unsigned n, const uint8_t *digests, const void **data)
{
	size_t at = offset_of_next(c), block = c->v->f.data_block;
	const struct iovec *iov = c->bio->iov;

	for (unsigned i = 0; i < n; i++, at += block) {
		for (; at >= iov->iov_len; iov++)
			at -= iov->iov_len;
		if (at + block > iov->iov_len || is_zero(c, digests + i * c->v->f.digest_size) ||
		    (i && is_validated(c, c->next + i)))
			return i;
		data[i] = (char *)iov->iov_base + at;
	}
	return n;
}

/* Hashes some of the next blocks, of n whose digests are there. */
static enum verdict hash_some(struct check *c, unsigned n, const uint8_t *digests, int *error)
{
	struct verity *v = c->v;
	unsigned size = v->f.digest_size;
	uint8_t is[MANY * DM_HASH_MAX_SIZE];
	enum verdict verdict = GO_ON;
	const void *data[MANY];

	n = n > 1 ? plain_blocks(c, n, digests, data) : 0;
	if (n)
		verity_hash_many(&v->f, data, v->f.data_block, n, is);
	else
		hash_next(c, is);
	for (unsigned i = 0; i < MAX(n, 1) && verdict == GO_ON; i++) {
		if (memcmp(is + i * size, digests + i * size, size)) {
			verdict = wrong(c, digests + i * size, error);
			continue;
		}
		if (v->validated)
			verity_validated_set(v->validated, c->block + c->next);
		c->next++;
	}
	return verdict;
}

static enum verdict check_some(struct check *c, int *error)
{
	struct verity *v = c->v;
	unsigned n = c->unreadable ? 1 : MIN(MANY, c->blocks - c->next);
	uint8_t digests[MANY * DM_HASH_MAX_SIZE];

	if (!c->unreadable && !verity_has_waited(&c->wait) && is_validated(c, c->next)) {
		c->next++;
		return GO_ON;
	}
	switch (verity_tree_digests(v->tree, c->block + c->next, &n, digests, &c->wait)) {
	case VERITY_WAIT:
		return WAIT;
	case VERITY_FAILED:
		*error = c->wait.error;
		return FAIL;
	case VERITY_DIGEST:
		break;
	}
	if (is_zero(c, digests)) {
		dm_iov_zero(c->bio->iov, c->bio->iovcnt, offset_of_next(c), v->f.data_block);
		c->next++;
		return GO_ON;
	}
	return c->unreadable ? wrong(c, digests, error) : hash_some(c, n, digests, error);
}

/* Checks blocks until all are, or one fails (*error).  False: it must wait, and is somebody else's by now. */
static bool run(struct check *c, int *error)
{
	*error = 0;
	while (c->next < c->blocks)
		switch (check_some(c, error)) {
		case GO_ON:
			break;
		case FAIL:
			return true;
		case WAIT:
			return false;
		}
	return true;
}

static void run_to_done(struct check *c)
{
	int error;

	if (run(c, &error))
		c->done(c, error);
}

static void run_later(struct dm_work *work)
{
	run_to_done((struct check *)((char *)work - offsetof(struct check, work)));
}

/* In the mending queue: the next block, whose digest is known. */
static void mend(struct dm_work *work)
{
	struct check *c = (struct check *)((char *)work - offsetof(struct check, work));
	struct verity *v = c->v;
	uint8_t block[VERITY_MAX_DATA_BLOCK];

	if (!verity_fec_mend(v, VERITY_DATA, c->block + c->next, c->digest, block)) {
		dm_iov_write(c->bio->iov, c->bio->iovcnt, offset_of_next(c), block, v->f.data_block);
	} else if (c->unreadable || verity_block_corrupted(v, VERITY_DATA, c->block + c->next)) {
		c->done(c, -EIO);
		return;
	}
	c->next++;
	run_to_done(c);
}

/* --- large reads --------------------------------------------------------------------------------- */

struct piece {
	struct check check; /* first */
	struct dm_bio bio;
	struct large *large;
	struct dm_part_data data;
};

struct large {
	struct dm_parts parts; /* first */
	struct dm_target *ti;
	struct piece pieces[];
};

static void piece_checked(struct check *c, int error)
{
	struct piece *p = (struct piece *)c;

	dm_part_data_clear(&p->data);
	dm_parts_end(&p->large->parts, error);
}

/*
 * What this thread is submitting: it is checked here if it comes back at once, by other threads if a third one brings
 * it.
 */
static _Thread_local struct piece *submitting;

static void piece_read(struct dm_bio *bio)
{
	struct piece *p = bio->private;

	p->check.unreadable = bio->error;
	if (bio->error && !p->check.v->fec)
		piece_checked(&p->check, bio->error);
	else if (submitting == p)
		run_to_done(&p->check);
	else
		ready(&p->check.wait);
}

static void start_piece(void *context, unsigned nr)
{
	struct large *l = context;
	struct verity *v = l->ti->private;
	struct dm_bio *orig = l->parts.whole;
	struct piece *p = &l->pieces[nr], *before = submitting;
	size_t at = nr * PIECE_BYTES, len = MIN(PIECE_BYTES, (orig->sectors << DM_SECTOR_SHIFT) - at);
	uint64_t sector = dm_target_offset(l->ti, orig->sector) + (at >> DM_SECTOR_SHIFT);

	p->large = l;
	p->bio = (struct dm_bio){
		.op = DM_READ,
		.flags = orig->flags,
		.dev = v->data_dev,
		.sector = sector,
		.sectors = len >> DM_SECTOR_SHIFT,
		.end = piece_read,
		.private = p,
	};
	dm_part_data_init(&p->data, &p->bio, orig, at, len);
	check_init(&p->check, v, &p->bio, sector >> (v->f.data_bits - DM_SECTOR_SHIFT), piece_checked);
	submitting = p;
	dm_submit_now(&p->bio);
	submitting = before;
}

static void start_large(struct dm_target *ti, struct dm_bio *bio)
{
	struct verity *v = ti->private;
	size_t len = bio->sectors << DM_SECTOR_SHIFT;
	unsigned pieces = (unsigned)((len + PIECE_BYTES - 1) / PIECE_BYTES);
	struct large *l = g_malloc(sizeof(*l) + pieces * sizeof(l->pieces[0]));
	bool help = pieces > 1 && dm_spread_pays((len >> v->f.data_bits) * v->ns_per_block);

	dm_parts_init(&l->parts, bio, pieces);
	l->ti = ti;
	dm_spread_start(&(struct dm_spread_run){start_piece, l, pieces}, help);
}

/* --- bios ---------------------------------------------------------------------------------------- */

static void small_checked(struct check *c, int error)
{
	dm_bio_end(c->bio, error);
}

enum dm_mapio verity_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct verity *v = ti->private;
	uint64_t offset = dm_target_offset(ti, bio->sector), block = offset >> (v->f.data_bits - DM_SECTOR_SHIFT);
	uint64_t blocks = bio->sectors >> (v->f.data_bits - DM_SECTOR_SHIFT);
	struct check *c = bio->private;

	if (bio->op != DM_READ || ((offset | bio->sectors) & ((v->f.data_block >> DM_SECTOR_SHIFT) - 1)) ||
	    atomic_load_explicit(&v->failed, memory_order_relaxed))
		return DM_MAPIO_KILL;
	c->over = true;
	if (v->validated && !v->fec && verity_validated_test(v->validated, block, blocks)) {
		bio->dev = v->data_dev;
		bio->sector = offset;
		return DM_MAPIO_REMAPPED;
	}
	verity_tree_prefetch(v->tree, block, blocks);
	if (bio->sectors << DM_SECTOR_SHIFT > SMALL_BYTES) {
		start_large(ti, bio);
		return DM_MAPIO_SUBMITTED;
	}
	check_init(c, v, bio, block, small_checked);
	bio->dev = v->data_dev;
	bio->sector = offset;
	return DM_MAPIO_REMAPPED;
}

enum dm_endio verity_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct verity *v = ti->private;
	struct check *c = bio->private;
	int error;

	if (c->over)
		return DM_ENDIO_DONE;
	c->over = true;
	if (bio->error && !v->fec)
		return DM_ENDIO_DONE;
	c->unreadable = bio->error;
	if (!run(c, &error))
		return DM_ENDIO_INCOMPLETE;
	bio->error = error;
	return DM_ENDIO_DONE;
}
