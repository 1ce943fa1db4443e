/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A piece: a row of blocks whose data have been read, or written, and whose tags are now compared, stored, or passed
 * on (integrity.h).
 *
 * It runs in the thread that has brought the data, as long as the tags' buffers are in memory; else it is taken up
 * again by a work queue when they are.
 */
#include <dmfs/le.h>

#include "integrity.h"

#define MAX_BLOCK (MAX_SPB * DM_SECTOR_SIZE)
#define MAX_PIECES 8

bool integrity_tags_equal(const uint8_t *a, const uint8_t *b, size_t n)
{
	uint8_t differs = 0;

	for (size_t i = 0; i < n; i++)
		differs |= a[i] ^ b[i];
	return !differs;
}

/* --- tags ------------------------------------------------------------------------------------------ */

static void hash_pieces(struct integrity *ic, struct iovec *iov, int n, uint8_t *tag)
{
	uint8_t digest[DM_HASH_MAX_SIZE];
	unsigned size = dm_hash_size(ic->internal_hash.hash);

	dm_hash_iov(ic->internal_hash.hash, iov, n, digest);
	memcpy(tag, digest, MIN(size, ic->l.tag_size));
	if (size < ic->l.tag_size)
		memset(tag + size, 0, ic->l.tag_size - size);
}

void integrity_tag(struct integrity *ic, uint64_t block, const struct iovec *iov, int iovcnt, size_t at, uint8_t *tag)
{
	size_t left = integrity_block_bytes(ic);
	struct iovec pieces[MAX_PIECES + 2];
	uint8_t copy[MAX_BLOCK], sector[8];
	const struct iovec *v = iov;
	size_t skip = at;
	int n = 0, head;

	put_le64(sector, block << ic->l.log2_spb);
	if (ic->salted)
		pieces[n++] = (struct iovec){ic->sb.salt, SALT_BYTES};
	pieces[n++] = (struct iovec){sector, sizeof sector};
	head = n;
	for (; skip >= v->iov_len; v++)
		skip -= v->iov_len;
	for (; left && n < MAX_PIECES + 2; v++, skip = 0) {
		size_t part = MIN(v->iov_len - skip, left);

		if (!part)
			continue;
		pieces[n++] = (struct iovec){(char *)v->iov_base + skip, part};
		left -= part;
	}
	if (left) {
		dm_iov_read(iov, iovcnt, at, copy, integrity_block_bytes(ic));
		pieces[head] = (struct iovec){copy, integrity_block_bytes(ic)};
		n = head + 1;
	}
	hash_pieces(ic, pieces, n, tag);
}

static bool is_filler(const struct integrity *ic, const uint8_t *tag)
{
	for (unsigned i = 0; i < ic->l.tag_size; i++)
		if (tag[i] != DISCARD_FILLER)
			return false;
	return true;
}

static int compare(struct integrity_piece *p)
{
	struct integrity *ic = p->ic;
	uint8_t is[MAX_TAG];

	for (unsigned i = 0; i < p->tio.blocks; i++) {
		const uint8_t *tag = p->tags + (size_t)i * ic->l.tag_size;

		integrity_tag(ic, p->tio.block + i, p->bio->iov, p->bio->iovcnt, i * integrity_block_bytes(ic), is);
		if (integrity_tags_equal(is, tag, ic->l.tag_size) || (ic->discards && is_filler(ic, tag)))
			continue;
		integrity_mismatch(ic, p->tio.block + i);
		return -EILSEQ;
	}
	return 0;
}

static void make_tags(struct integrity_piece *p)
{
	for (unsigned i = 0; i < p->tio.blocks; i++)
		integrity_tag(p->ic, p->tio.block + i, p->bio->iov, p->bio->iovcnt, i * integrity_block_bytes(p->ic),
			      p->tags + (size_t)i * p->ic->l.tag_size);
	p->hashed = true;
}

/* --- running ------------------------------------------------------------------------------------------ */

static void run_later(struct dm_work *work)
{
	struct integrity_piece *p = container_of(work, struct integrity_piece, work);
	int error;

	if (integrity_piece_run(p, &error))
		p->done(p, error);
}

static void ready(struct integrity_tag_io *io)
{
	struct integrity_piece *p = container_of(io, struct integrity_piece, tio);

	dm_wq_queue(p->ic->wq, &p->work);
}

void integrity_piece_init(struct integrity_piece *p, struct integrity *ic, struct dm_bio *bio, uint64_t block,
			  unsigned blocks, uint8_t *tags, void (*done)(struct integrity_piece *p, int error))
{
	*p = (struct integrity_piece){
		.tio = {.block = block, .blocks = blocks, .write = bio->op == DM_WRITE, .data = tags, .ready = ready},
		.work = {.fn = run_later},
		.ic = ic,
		.bio = bio,
		.tags = tags,
		.done = done,
	};
}

bool integrity_piece_run(struct integrity_piece *p, int *error)
{
	int r;

	if (p->tio.write && p->ic->internal_hash.hash && !p->hashed)
		make_tags(p);
	r = integrity_tags_io(p->ic->tags, &p->tio);
	if (!r)
		return false;
	*error = r < 0 ? r : 0;
	if (r > 0 && !p->tio.write && p->ic->internal_hash.hash)
		*error = compare(p);
	return true;
}
