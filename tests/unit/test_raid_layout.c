/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where raid's chunks lie, against models that build the picture row by row as
 * the documents draw it; P, Q and what they bring back, bit by bit.
 */
#include "unit.h"

#include <stdlib.h>

#include "targets/raid/layout.h"
#include "targets/raid/parity.h"

#define ROWS 40u

/* --- rows: a picture, filled in with the documents' words ------------------------------------ */

enum { P = -1, Q = -2 };

struct picture {
	int cell[ROWS][16]; /* number of the data chunk in its row, P or Q */
};

/* Puts data chunks from a device on, around the first n devices, or in device order over what is left. */
static void fill(struct picture *pic, unsigned row, unsigned disks, unsigned from, unsigned around)
{
	int k = 0;

	for (unsigned i = 0; i < (around ? around : disks); i++) {
		unsigned d = around ? (from + i) % around : i;

		if (pic->cell[row][d] != P && pic->cell[row][d] != Q)
			pic->cell[row][d] = k++;
	}
}

static void draw5(struct picture *pic, unsigned layout, unsigned disks, unsigned over, unsigned row)
{
	unsigned p, r = row % over;

	switch (layout) {
	case RAID5_LA: /* left: parity begins on the last and goes to the left */
	case RAID5_LS:
		p = over - 1 - r;
		break;
	case RAID5_RA:
	case RAID5_RS:
		p = r;
		break;
	case RAID5_FIRST:
		p = 0;
		break;
	default:
		p = over - 1;
		break;
	}
	pic->cell[row][p] = P;
	if (layout == RAID5_LS || layout == RAID5_RS) /* symmetric: data goes on after parity */
		fill(pic, row, disks, p + 1, over);
	else
		fill(pic, row, disks, 0, 0);
}

static void draw(struct picture *pic, unsigned level, unsigned layout, unsigned disks)
{
	memset(pic, 0, sizeof *pic);
	for (unsigned row = 0; row < ROWS; row++) {
		unsigned p, r = row % disks;

		if (level == 0) {
			fill(pic, row, disks, 0, 0);
		} else if (level == 5) {
			draw5(pic, layout, disks, disks, row);
		} else if (layout >= RAID6_LA_6) {
			pic->cell[row][disks - 1] = Q;
			draw5(pic, layout - RAID6_LA_6, disks, disks - 1, row);
		} else if (layout == RAID5_N) {
			pic->cell[row][disks - 2] = P;
			pic->cell[row][disks - 1] = Q;
			fill(pic, row, disks, 0, 0);
		} else if (layout == RAID6_NC) {
			p = disks - 1 - r;
			pic->cell[row][p] = P;
			pic->cell[row][(p + disks - 1) % disks] = Q;
			fill(pic, row, disks, p + 1, disks);
		} else {
			/*
			 * nr: right to left, the first row is D D D P Q; la, ls: the first is Q D D D P, or D D D P
			 * moved
			 */
			bool right = layout == RAID6_ZR || layout == RAID5_RA || layout == RAID5_RS;
			bool around = layout == RAID5_LS || layout == RAID5_RS;

			p = right ? r : layout == RAID6_NR ? (2 * disks - 2 - r) % disks : disks - 1 - r;
			pic->cell[row][p] = P;
			pic->cell[row][(p + 1) % disks] = Q;
			fill(pic, row, disks, around ? p + 2 : 0, around ? disks : 0);
		}
	}
}

static const struct {
	unsigned level, layout;
} row_types[] = {
	{0, 0},	      {5, RAID5_LA},   {5, RAID5_RA},	{5, RAID5_LS},	 {5, RAID5_RS},
	{5, RAID5_FIRST}, {5, RAID5_N},    {6, RAID6_ZR},	{6, RAID6_NR},	 {6, RAID6_NC},
	{6, RAID5_LA},	  {6, RAID5_RA},   {6, RAID5_LS},	{6, RAID5_RS},
	{6, RAID5_N},     {6, RAID6_LA_6}, {6, RAID6_RA_6}, {6, RAID6_LS_6}, {6, RAID6_RS_6},
};

static void check_picture(const struct raid_geo *g, const struct picture *pic)
{
	for (unsigned row = 0; row < ROWS; row++) {
		int p, q;

		raid_row_parity(g, row, &p, &q);
		for (unsigned d = 0; d < g->disks; d++) {
			int cell = pic->cell[row][d];

			assert_int_equal(raid_row_slot(g, row, d), cell);
			assert_int_equal(p == (int)d, cell == P);
			assert_int_equal(q == (int)d, cell == Q);
			if (cell >= 0) {
				uint64_t at, sector = (row * g->data + (unsigned)cell) * (uint64_t)g->chunk + 3;

				assert_int_equal(raid_row_disk(g, row, (unsigned)cell), d);
				assert_int_equal(raid_row_map(g, sector, &at), d);
				assert_int_equal(at, row * (uint64_t)g->chunk + 3);
			}
		}
	}
}

static void test_rows(void **state)
{
	for (unsigned t = 0; t < G_N_ELEMENTS(row_types); t++) {
		unsigned level = row_types[t].level;

		for (unsigned disks = level == 6 ? 4 : 2; disks <= 9; disks++) {
			struct picture pic;
			struct raid_geo g;

			assert_true(raid_geo_init(&g, level, row_types[t].layout, disks, 8u << rand() % 5, 1 << 20));
			draw(&pic, level, row_types[t].layout, disks);
			check_picture(&g, &pic);
		}
	}
}

/* Q's exponents: DDF's layouts count every device, the others the data chunks in device order, md's own from Q on. */
static void test_exponents(void **state)
{
	for (unsigned t = 7; t < G_N_ELEMENTS(row_types); t++) {
		struct raid_geo g;

		assert_true(raid_geo_init(&g, 6, row_types[t].layout, 6, 8, 1 << 20));
		for (unsigned row = 0; row < ROWS; row++) {
			unsigned nth = 0, from = 0;
			int p, q;

			raid_row_parity(&g, row, &p, &q);
			if (row_types[t].layout <= RAID5_RS)
				from = (unsigned)q + 1;
			for (unsigned i = 0; i < 6; i++) {
				unsigned d = (from + i) % 6;

				if (raid_row_slot(&g, row, d) < 0)
					continue;
				assert_int_equal(raid_row_exponent(&g, row, d), t <= 9 ? d : nth);
				nth++;
			}
		}
	}
}

/* --- copies: dm-raid.rst's pictures, and what holds for any --------------------------------------- */

static const struct {
	unsigned layout, disks;
	const char *rows[6]; /* of chunks, from device sector 0; the far half begins at the row "..": stride rows */
} pictures[] = {
	{0x102, 2, {"A1 A1", "A2 A2", "A3 A3"}},
	{0x102, 3, {"A1 A1 A2", "A2 A3 A3", "A4 A4 A5", "A5 A6 A6"}},
	{0x102, 4, {"A1 A1 A2 A2", "A3 A3 A4 A4", "A5 A5 A6 A6"}},
	{0x40201, 2, {"A1 A2", "A3 A4", "A5 A6", "A2 A1", "A4 A3", "A6 A5"}},
	{0x40201, 3, {"A1 A2 A3", "A4 A5 A6", "A7 A8 A9", "A3 A1 A2", "A6 A4 A5", "A9 A7 A8"}},
	{0x40201, 4, {"A1 A2 A3 A4", "A5 A6 A7 A8", "A9 A10 A11 A12", "A2 A1 A4 A3", "A6 A5 A8 A7", "A10 A9 A12 A11"}},
	{0x50201, 2, {"A1 A2", "A2 A1", "A3 A4", "A4 A3", "A5 A6", "A6 A5"}},
	{0x50201, 3, {"A1 A2 A3", "A3 A1 A2", "A4 A5 A6", "A6 A4 A5", "A7 A8 A9", "A9 A7 A8"}},
	{0x50201, 4, {"A1 A2 A3 A4", "A2 A1 A4 A3", "A5 A6 A7 A8", "A6 A5 A8 A7", "A9 A10 A11 A12", "A10 A9 A12 A11"}},
};

static void test_document(void **state)
{
	for (unsigned t = 0; t < G_N_ELEMENTS(pictures); t++) {
		struct raid_geo g;

		assert_true(raid_geo_init(&g, 10, pictures[t].layout, pictures[t].disks, 8, 6 * 8));
		for (unsigned row = 0; row < 6 && pictures[t].rows[row]; row++) {
			g_auto(GStrv) cells = g_strsplit(pictures[t].rows[row], " ", -1);

			for (unsigned d = 0; d < g.disks; d++) {
				uint64_t sector;

				assert_true(raid_copy_of(&g, d, row * 8 + 5, &sector));
				assert_int_equal(sector, (strtoul(cells[d] + 1, NULL, 10) - 1) * 8 + 5);
			}
		}
	}
}

static void test_copies(void **state)
{
	for (unsigned n = 0; n < 2000; n++) {
		unsigned disks = 2 + (unsigned)rand() % 9, copies = 2 + (unsigned)rand() % (disks - 1), layout;
		struct raid_copy c[RAID_MAX_DISKS];
		struct raid_geo g;
		uint64_t array;

		layout = n % 3 == 0
			     ? 1u << 8 | copies
			     : copies << 8 | 1 | (n % 3 == 1 ? RAID10_OFFSET : 0) | (rand() % 2 ? RAID10_FAR_SETS : 0);
		assert_true(raid_geo_init(&g, 10, layout, disks, 8u << rand() % 4, 1000 + (unsigned)rand() % 100000));
		array = raid_geo_array_sectors(&g);
		for (unsigned k = 0; k < 40 && array; k++) {
			uint64_t sector = (uint64_t)rand() % array, back;

			raid_copies(&g, sector, c);
			for (unsigned i = 0; i < g.copies; i++) {
				assert_true(c[i].sector < g.dev_sectors);
				assert_true(raid_copy_of(&g, c[i].disk, c[i].sector, &back));
				assert_int_equal(back, sector);
				for (unsigned j = 0; j < i; j++) /* never two on one device */
					assert_int_not_equal(c[i].disk, c[j].disk);
			}
		}
	}
}

static void test_refused(void **state)
{
	struct raid_geo g;

	assert_false(raid_geo_init(&g, 5, 6, 3, 8, 1000));
	assert_false(raid_geo_init(&g, 6, RAID5_FIRST, 4, 8, 1000));
	assert_false(raid_geo_init(&g, 6, RAID6_ZR, 3, 8, 1000));
	assert_false(raid_geo_init(&g, 5, RAID5_LS, 3, 24, 1000));
	assert_false(raid_geo_init(&g, 5, RAID5_LS, 3, 0, 1000));
	assert_false(raid_geo_init(&g, 5, RAID5_LS, 0, 8, 1000));
	assert_false(raid_geo_init(&g, 5, RAID5_LS, 254, 8, 1000));
	assert_false(raid_geo_init(&g, 5, RAID5_LS, 3, 8, UINT64_MAX));
	assert_false(raid_geo_init(&g, 10, 0x102, 1, 8, 1000));
	assert_false(raid_geo_init(&g, 10, 0, 2, 8, 1000));
	assert_false(raid_geo_init(&g, 10, 0x60201, 2, 8, 1000));
	assert_false(raid_geo_init(&g, 7, 0, 2, 8, 1000));
}

/* --- parity ---------------------------------------------------------------------------------------- */

static uint8_t times_two(uint8_t x)
{
	return (uint8_t)(x << 1 ^ (x & 0x80 ? 0x1d : 0));
}

static uint8_t times_power(uint8_t x, unsigned exponent)
{
	while (exponent--)
		x = times_two(x);
	return x;
}

#define MAX_BLOCKS 20u
#define LEN 1024u

struct blocks {
	unsigned n;
	uint8_t *block[MAX_BLOCKS], *copy[MAX_BLOCKS + 2], *p, *q;
	bool zero[MAX_BLOCKS];
};

static uint8_t *room(void)
{
	return aligned_alloc(64, LEN);
}

static void blocks_init(struct blocks *b, unsigned n, bool holes)
{
	b->n = n;
	b->p = room();
	b->q = room();
	for (unsigned i = 0; i < n; i++) {
		b->block[i] = room();
		b->zero[i] = holes && i % 4 == 1;
		for (unsigned k = 0; k < LEN; k++)
			b->block[i][k] = b->zero[i] ? 0 : (uint8_t)rand();
	}
}

static void blocks_clear(struct blocks *b)
{
	for (unsigned i = 0; i < b->n; i++)
		free(b->block[i]);
	free(b->p);
	free(b->q);
}

static void given(const struct blocks *b, void **out)
{
	for (unsigned i = 0; i < b->n; i++)
		out[i] = b->zero[i] ? NULL : b->block[i];
}

static void test_generate(void **state)
{
	for (unsigned n = 1; n <= MAX_BLOCKS; n++) {
		void *in[MAX_BLOCKS];
		struct blocks b;

		blocks_init(&b, n, n > 4);
		given(&b, in);
		raid_gen(n, (const void *const *)in, b.p, n % 2 ? b.q : NULL, LEN);
		for (unsigned k = 0; k < LEN; k++) {
			uint8_t p = 0, q = 0;

			for (unsigned i = 0; i < n; i++) {
				p ^= b.block[i][k];
				q ^= times_power(b.block[i][k], i);
			}
			assert_int_equal(b.p[k], p);
			if (n % 2)
				assert_int_equal(b.q[k], q);
		}
		raid_gen(n, (const void *const *)in, NULL, b.q, LEN);
		assert_int_equal(b.q[7], ({
					 uint8_t q = 0;
					 for (unsigned i = 0; i < n; i++)
						 q ^= times_power(b.block[i][7], i);
					 q;
				 }));
		blocks_clear(&b);
	}
}

/* Every pair of what can be lost. */
static void test_recover(void **state)
{
	for (unsigned n = 1; n <= 12; n++) {
		struct blocks b;
		void *in[MAX_BLOCKS];

		blocks_init(&b, n, n > 5);
		given(&b, in);
		raid_gen(n, (const void *const *)in, b.p, b.q, LEN);
		for (unsigned x = 0; x < n + 2; x++) {
			for (unsigned y = x; y < n + 2; y++) {
				unsigned lost[2] = {y, x};
				uint8_t *at[2], keep[2][LEN];

				if ((x < n && b.zero[x]) || (y < n && b.zero[y]))
					continue;
				at[0] = x < n ? b.block[x] : x == n ? b.p : b.q;
				at[1] = y < n ? b.block[y] : y == n ? b.p : b.q;
				for (unsigned i = 0; i < 2; i++)
					memcpy(keep[i], at[i], LEN);
				for (unsigned i = 0; i < 2; i++)
					memset(at[i], 0xa5, LEN);
				raid_recover(n, in, b.p, b.q, x == y ? 1 : 2, lost, LEN);
				for (unsigned i = 0; i < 2; i++)
					assert_memory_equal(keep[i], at[i], LEN);
			}
		}
		blocks_clear(&b);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_rows),    cmocka_unit_test(test_exponents), cmocka_unit_test(test_document),
	    cmocka_unit_test(test_copies),  cmocka_unit_test(test_refused),   cmocka_unit_test(test_generate),
	    cmocka_unit_test(test_recover),
	};

	srand(20);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
