/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an operation on a stripe must read, compute and write.
 *
 * Each column (4 KiB of every device) is decided by itself, sector by sector in masks:
 *
 *   RMW   read what will be overwritten, and the parity; take the old out of the parity, the new in
 *   RCW   read what will not be overwritten; compute the parity anew
 *
 * whichever reads less.  What is lost (on a device that is out, not yet rebuilt, or could not be
 * read) and needed is brought back first, from all the others.
 */
#include "parity.h"
#include "stripe.h"

#define ALL 0xffu

struct column {
	struct raid_stripe *s;
	unsigned c;
	uint8_t touched; /* sectors written on some device */
};

static uint8_t get(const struct column *col, enum raid_mask which, unsigned d)
{
	return raid_mask(col->s, which, d)[col->c];
}

static void add(const struct column *col, enum raid_mask which, unsigned d, uint8_t bits)
{
	raid_mask(col->s, which, d)[col->c] |= bits;
}

static bool is_parity(const struct raid_stripe *s, unsigned d)
{
	return (int)d == s->p || (int)d == s->q;
}

static bool alive(const struct raid_stripe *s, unsigned d)
{
	return raid_member_alive(&s->c->r->members[d]);
}

/* Sectors whose content is known or can be read. */
static uint8_t have(const struct column *col, unsigned d)
{
	uint8_t known = get(col, RAID_VALID, d);

	return raid_stripe_readable(col->s, d) ? known | (uint8_t)~get(col, RAID_BAD, d) : known;
}

static unsigned bits(uint8_t mask)
{
	return (unsigned)__builtin_popcount(mask);
}

/* --- planning ------------------------------------------------------------------------------------------ */

/* Everything there is of these sectors is wanted, so that what is lost can be brought back; false: it cannot. */
static bool want_all(const struct column *col, uint8_t sectors)
{
	struct raid_stripe *s = col->s;
	unsigned redundancy = s->q >= 0 ? 2 : 1;

	if (sectors && atomic_load(&s->c->r->broken))
		return false;
	for (unsigned bit = 0; bit < PAGE_SECTORS; bit++) {
		unsigned lost = 0;

		if (!(sectors >> bit & 1))
			continue;
		for (unsigned d = 0; d < s->c->disks; d++)
			lost += !(have(col, d) >> bit & 1);
		if (lost > redundancy)
			return false;
	}
	for (unsigned d = 0; d < s->c->disks; d++)
		add(col, RAID_WANT, d, sectors & have(col, d) & (uint8_t)~get(col, RAID_VALID, d));
	s->recon[col->c] |= sectors;
	return true;
}

/* How many sectors RMW reads, or UINT_MAX if it cannot be done. */
static unsigned rmw_cost(const struct column *col)
{
	struct raid_stripe *s = col->s;
	unsigned cost = 0;

	for (unsigned d = 0; d < s->c->disks; d++) {
		uint8_t need = is_parity(s, d) ? alive(s, d) ? col->touched : 0 : get(col, RAID_WRITE, d);

		if (need & ~have(col, d))
			return UINT_MAX;
		cost += bits(need & (uint8_t)~get(col, RAID_VALID, d));
	}
	return cost;
}

static uint8_t rcw_need(const struct column *col, unsigned d)
{
	return is_parity(col->s, d) ? 0 : col->touched & (uint8_t)~get(col, RAID_COVER, d);
}

static unsigned rcw_cost(const struct column *col)
{
	unsigned cost = 0;

	for (unsigned d = 0; d < col->s->c->disks; d++) {
		uint8_t need = rcw_need(col, d);

		if (need & ~have(col, d))
			return UINT_MAX;
		cost += bits(need & (uint8_t)~get(col, RAID_VALID, d));
	}
	return cost;
}

/* RCW where some of what is not overwritten is lost. */
static bool plan_recovering_write(const struct column *col)
{
	struct raid_stripe *s = col->s;
	uint8_t lost = 0;

	for (unsigned d = 0; d < s->c->disks; d++)
		lost |= rcw_need(col, d) & (uint8_t)~have(col, d);
	if (!want_all(col, lost))
		return false;
	for (unsigned d = 0; d < s->c->disks; d++)
		add(col, RAID_WANT, d, rcw_need(col, d) & have(col, d) & (uint8_t)~get(col, RAID_VALID, d));
	s->mode[col->c] = RAID_RCW;
	return true;
}

/* Where parity is not right yet it is computed anew. */
static bool parity_unsure(const struct raid_stripe *s)
{
	struct raid *r = s->c->r;

	return r->bitmap && !atomic_load(&r->degraded) &&
	       raid_region_needed(r->bitmap, s->nr * s->c->sectors >> r->bitmap->shift);
}

static bool plan_write(const struct column *col)
{
	struct raid_stripe *s = col->s;
	unsigned rmw = rmw_cost(col), rcw = rcw_cost(col);

	if (atomic_load(&s->c->r->broken))
		return false;
	if (rmw == UINT_MAX && rcw == UINT_MAX)
		return plan_recovering_write(col);
	if (rcw <= rmw || (rcw != UINT_MAX && parity_unsure(s)))
		s->mode[col->c] = RAID_RCW;
	else
		s->mode[col->c] = RAID_RMW;
	for (unsigned d = 0; d < s->c->disks; d++) {
		uint8_t need;

		if (s->mode[col->c] == RAID_RCW)
			need = rcw_need(col, d);
		else
			need = is_parity(s, d) ? alive(s, d) ? col->touched : 0 : get(col, RAID_WRITE, d);
		add(col, RAID_WANT, d, need & (uint8_t)~get(col, RAID_VALID, d));
	}
	return true;
}

static bool plan_read(const struct column *col)
{
	struct raid_stripe *s = col->s;
	uint8_t lost = 0;

	for (unsigned d = 0; d < s->c->disks; d++) {
		uint8_t need = get(col, RAID_ASK, d) & (uint8_t)~get(col, RAID_VALID, d);

		lost |= need & (uint8_t)~have(col, d);
		add(col, RAID_WANT, d, need & have(col, d));
	}
	return !lost || want_all(col, lost);
}

static void clear_masks(struct raid_stripe *s, enum raid_mask from, enum raid_mask to)
{
	memset(raid_mask(s, from, 0), 0, (size_t)(to - from + 1) * s->c->disks * s->c->pages);
}

/* What the pieces are about, as masks. */
static void take_pieces(struct raid_stripe *s)
{
	for (struct raid_piece *p = s->pieces; p; p = p->next) {
		enum raid_mask which = p->req->kind == RAID_REQ_READ ? RAID_ASK : RAID_COVER;

		for (unsigned i = p->first; i < p->first + p->sectors; i++)
			raid_mask(s, which, p->disk)[i / PAGE_SECTORS] |= (uint8_t)(1u << (i % PAGE_SECTORS));
	}
	for (unsigned i = 0; i < s->c->disks * s->c->pages; i++) {
		uint8_t cover = raid_mask(s, RAID_COVER, 0)[i];

		/* a journal takes whole pages */
		raid_mask(s, RAID_WRITE, 0)[i] = cover && s->c->journal ? ALL : cover;
	}
}

bool raid_plan(struct raid_stripe *s)
{
	bool ok = true;

	clear_masks(s, RAID_WRITE, RAID_WANT);
	clear_masks(s, RAID_OUT, RAID_OUT);
	memset(s->mode, 0, s->c->pages);
	memset(s->recon, 0, s->c->pages);
	take_pieces(s);
	for (unsigned c = 0; c < s->c->pages && ok; c++) {
		struct column col = {s, c, 0};

		for (unsigned d = 0; d < s->c->disks; d++)
			col.touched |= get(&col, RAID_WRITE, d);
		if (col.touched)
			ok = plan_write(&col);
		ok = ok && plan_read(&col);
	}
	return ok;
}

bool raid_plan_sync(struct raid_stripe *s)
{
	bool ok = true;

	clear_masks(s, RAID_VALID, RAID_WANT);
	clear_masks(s, RAID_OUT, RAID_OUT);
	memset(s->mode, 0, s->c->pages);
	memset(s->recon, 0, s->c->pages);
	for (unsigned c = 0; c < s->c->pages && ok; c++)
		ok = want_all(&(struct column){s, c, 0}, ALL);
	return ok;
}

/* --- sums over a column ---------------------------------------------------------------------------------- */

/* Calls fn for each run of set bits. */
static void for_runs(uint8_t mask, const struct column *col, void (*fn)(const struct column *, unsigned, unsigned))
{
	while (mask) {
		unsigned first = (unsigned)__builtin_ctz(mask), n = 1;

		while (first + n < PAGE_SECTORS && mask >> (first + n) & 1)
			n++;
		fn(col, first, n);
		mask &= (uint8_t) ~(((1u << n) - 1) << first);
	}
}

struct sources {
	unsigned n; /* blocks of Q's exponents 0 to n - 1 */
	void *block[RAID_MAX_DISKS];
	unsigned disk[RAID_MAX_DISKS]; /* whose they are */
	void *p, *q;
};

static void *at(const struct column *col, int d, unsigned first)
{
	uint8_t *page = d < 0 ? NULL : raid_page(col->s, (unsigned)d, col->c);

	return page ? page + first * DM_SECTOR_SIZE : NULL;
}

static void sources(const struct column *col, unsigned first, struct sources *src)
{
	struct raid_stripe *s = col->s;
	const struct raid_geo *g = &s->c->geo;
	bool by_disk = raid_geo_by_disk(g);
	unsigned from = raid_geo_from_q(g) ? (unsigned)s->q + 1 : 0;

	src->n = 0;
	for (unsigned i = 0; i < s->c->disks; i++) {
		unsigned d = (from + i) % s->c->disks;

		if (is_parity(s, d)) {
			if (!by_disk)
				continue;
			src->block[src->n] = NULL; /* counts as zeroes */
		} else {
			src->block[src->n] = at(col, (int)d, first);
		}
		src->disk[src->n++] = d;
	}
	src->p = at(col, s->p, first);
	src->q = at(col, s->q, first);
}

static void generate(const struct column *col, unsigned first, unsigned n)
{
	struct raid_stripe *s = col->s;
	struct sources src;
	uint8_t mask = (uint8_t)(((1u << n) - 1) << first);

	sources(col, first, &src);
	raid_gen(src.n, (const void *const *)src.block, s->p >= 0 && alive(s, (unsigned)s->p) ? src.p : NULL,
		 s->q >= 0 && alive(s, (unsigned)s->q) ? src.q : NULL, n * DM_SECTOR_SIZE);
	for (int k = 0; k < 2; k++) {
		int d = k ? s->q : s->p;

		if (d >= 0 && alive(s, (unsigned)d))
			add(col, RAID_VALID, (unsigned)d, mask);
	}
}

/* The devices whose sector is not known; the same for n sectors from there on. */
static unsigned lost_run(const struct column *col, unsigned first, unsigned most, unsigned *lost, unsigned *nr)
{
	unsigned n = 1;

	*nr = 0;
	for (unsigned d = 0; d < col->s->c->disks; d++)
		if (!(get(col, RAID_VALID, d) >> first & 1) && *nr < 2)
			lost[(*nr)++] = d;
	for (; n < most; n++)
		for (unsigned d = 0; d < col->s->c->disks; d++)
			if ((get(col, RAID_VALID, d) >> (first + n) & 1) != (get(col, RAID_VALID, d) >> first & 1))
				return n;
	return n;
}

static void bring_back(const struct column *col, unsigned first, unsigned most)
{
	struct raid_stripe *s = col->s;

	for (unsigned n; most; first += n, most -= n) {
		unsigned lost[2], number[2], nr;
		struct sources src;

		n = lost_run(col, first, most, lost, &nr);
		if (!nr)
			continue;
		sources(col, first, &src);
		for (unsigned i = 0; i < nr; i++) {
			number[i] = (int)lost[i] == s->p ? src.n : src.n + 1;
			for (unsigned k = 0; k < src.n && !is_parity(s, lost[i]); k++)
				if (src.disk[k] == lost[i])
					number[i] = k;
			add(col, RAID_VALID, lost[i], (uint8_t)(((1u << n) - 1) << first));
		}
		raid_recover(src.n, src.block, src.p, src.q, nr, number, n * DM_SECTOR_SIZE);
	}
}

void raid_plan_recover(struct raid_stripe *s)
{
	for (unsigned c = 0; c < s->c->pages; c++) {
		struct column col = {s, c, 0};

		if (s->recon[c])
			for_runs(s->recon[c], &col, bring_back);
	}
}

/* --- writes ------------------------------------------------------------------------------------------------ */

/* Adds a data device's sectors to the parity, which takes them out if they are in. */
static void fold(const struct column *col, unsigned d)
{
	struct raid_stripe *s = col->s;
	const struct raid_geo *g = &s->c->geo;
	uint8_t mask = get(col, RAID_WRITE, d);

	while (mask) {
		unsigned first = (unsigned)__builtin_ctz(mask), n = 1;

		while (first + n < PAGE_SECTORS && mask >> (first + n) & 1)
			n++;
		if (s->p >= 0 && alive(s, (unsigned)s->p))
			raid_xor(at(col, s->p, first), at(col, (int)d, first), n * DM_SECTOR_SIZE);
		if (s->q >= 0 && alive(s, (unsigned)s->q))
			raid_mul_add(at(col, s->q, first), at(col, (int)d, first),
				     raid_row_exponent(g, s->nr * s->c->sectors / g->chunk, d), n * DM_SECTOR_SIZE);
		mask &= (uint8_t) ~(((1u << n) - 1) << first);
	}
}

static void fold_all(struct raid_stripe *s)
{
	for (unsigned c = 0; c < s->c->pages; c++)
		for (unsigned d = 0; d < s->c->disks && s->mode[c] == RAID_RMW; d++)
			fold(&(struct column){s, c, 0}, d);
}

/* Copies a piece's data between its bio and the pages. */
static void copy_piece(struct raid_stripe *s, struct raid_piece *p, bool in)
{
	struct dm_bio *bio = p->req->bio;

	for (unsigned i = p->first, n; i < p->first + p->sectors; i += n) {
		size_t offset = (p->offset + i - p->first) * DM_SECTOR_SIZE, len;
		uint8_t *page = raid_page(s, p->disk, i / PAGE_SECTORS) + i % PAGE_SECTORS * DM_SECTOR_SIZE;

		n = MIN(PAGE_SECTORS - i % PAGE_SECTORS, p->first + p->sectors - i);
		len = n * DM_SECTOR_SIZE;
		if (in)
			dm_iov_read(bio->iov, bio->iovcnt, offset, page, len);
		else
			dm_iov_write(bio->iov, bio->iovcnt, offset, page, len);
	}
}

static void mark_out(const struct column *col)
{
	struct raid_stripe *s = col->s;

	for (unsigned d = 0; d < s->c->disks; d++) {
		uint8_t out = is_parity(s, d) ? col->touched : get(col, RAID_WRITE, d);

		/* what could not be read is mended by writing */
		out |= get(col, RAID_BAD, d) & get(col, RAID_VALID, d);
		if (alive(s, d))
			add(col, RAID_OUT, d, out);
	}
}

void raid_plan_write(struct raid_stripe *s)
{
	fold_all(s);
	for (struct raid_piece *p = s->pieces; p; p = p->next)
		if (p->req->kind == RAID_REQ_WRITE)
			copy_piece(s, p, true);
	fold_all(s);
	for (unsigned c = 0; c < s->c->pages; c++) {
		struct column col = {s, c, 0};

		for (unsigned d = 0; d < s->c->disks; d++) {
			col.touched |= get(&col, RAID_WRITE, d);
			add(&col, RAID_VALID, d, get(&col, RAID_WRITE, d));
		}
		if (s->mode[c] == RAID_RCW)
			for_runs(col.touched, &col, generate);
		mark_out(&col);
	}
}

void raid_plan_answer(struct raid_stripe *s)
{
	for (struct raid_piece *p = s->pieces; p; p = p->next)
		if (p->req->kind == RAID_REQ_READ)
			copy_piece(s, p, false);
}

/* --- synchronising ------------------------------------------------------------------------------------------ */

/* Whether a device's parity in a column is what it should be; it is afterwards. */
static bool right(const struct column *col, int d, const void *should)
{
	void *is = at(col, d, 0);

	if (d < 0 || !alive(col->s, (unsigned)d) || !memcmp(is, should, PAGE_BYTES))
		return true;
	memcpy(is, should, PAGE_BYTES);
	return false;
}

static uint64_t compare_column(const struct column *col, enum raid_action action, uint8_t *scratch)
{
	struct raid_stripe *s = col->s;
	struct sources src;
	bool p_right, q_right;

	sources(col, 0, &src);
	raid_gen(src.n, (const void *const *)src.block, scratch, s->q >= 0 ? scratch + PAGE_BYTES : NULL, PAGE_BYTES);
	p_right = right(col, s->p, scratch);
	q_right = right(col, s->q, scratch + PAGE_BYTES);
	if (action != RAID_CHECK && !p_right)
		add(col, RAID_OUT, (unsigned)s->p, ALL);
	if (action != RAID_CHECK && !q_right)
		add(col, RAID_OUT, (unsigned)s->q, ALL);
	return p_right && q_right ? 0 : PAGE_SECTORS;
}

uint64_t raid_plan_compare(struct raid_stripe *s, enum raid_action action)
{
	g_autofree uint8_t *room = g_malloc(2 * PAGE_BYTES + 64);
	uint8_t *scratch = (uint8_t *)(((uintptr_t)room + 63) & ~(uintptr_t)63);
	uint64_t mismatches = 0;

	for (unsigned c = 0; c < s->c->pages; c++) {
		struct column col = {s, c, 0};

		if (action != RAID_RECOVER)
			mismatches += compare_column(&col, action, scratch);
		for (unsigned d = 0; d < s->c->disks; d++) {
			if (!alive(s, d))
				continue;
			if (action == RAID_RECOVER && !raid_stripe_readable(s, d))
				add(&col, RAID_OUT, d, ALL);
			add(&col, RAID_OUT, d, get(&col, RAID_BAD, d));
		}
	}
	return mismatches;
}
