/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A raid10's reshape on paper: devices are arrays of numbers, a sector holds the array's sector that was put there. For
 * random shapes every window is moved, and whatever the power may leave of it, all that is not known to have moved must
 * still be at its old places.
 */
#include "unit.h"

#include <stdlib.h>

#include "targets/raid/reshape.h"

#define NOTHING UINT32_MAX
#define DISKS 12u

static unsigned under(unsigned n)
{
	return (unsigned)rand() % n;
}

/* --- bounds in whole rows ------------------------------------------------------------------------- */

static unsigned random_layout(unsigned copies, bool offset)
{
	return offset ? copies << 8 | 1 | RAID10_OFFSET | (under(2) ? RAID10_FAR_SETS : 0) : 1u << 8 | copies;
}

static void test_bounds(void **state)
{
	for (unsigned n = 0; n < 300; n++) {
		unsigned disks = 2 + under(9), copies = 2 + under(disks - 1);
		struct raid_copy c[RAID_MAX_DISKS];
		struct raid_geo g;
		uint64_t array, cut;

		assert_true(
		    raid_geo_init(&g, 10, random_layout(copies, n % 2), disks, 8u << under(2), 200 + under(300)));
		array = raid_geo_array_sectors(&g);
		cut = under((unsigned)array + 1);
		for (uint64_t sector = 0; sector < array; sector++) {
			raid_copies(&g, sector, c);
			for (unsigned i = 0; i < g.copies; i++) {
				if (sector < cut)
					assert_true(c[i].sector < raid_copies_end(&g, cut));
				else
					assert_true(c[i].sector >= raid_copies_first(&g, cut));
				if (sector < raid_copies_below(&g, cut))
					assert_true(c[i].sector < cut);
				if (sector >= raid_copies_above(&g, cut))
					assert_true(c[i].sector >= cut);
			}
		}
	}
}

/* --- the whole way ---------------------------------------------------------------------------------- */

struct paper {
	struct raid r;
	struct raid_member members[DISKS];
	struct reshape rs;
	uint32_t *at[DISKS];
	uint64_t room; /* sectors of a device */
};

static void put(struct paper *p, const struct raid_geo *g, bool moved, uint64_t sector)
{
	struct raid_copy c[RAID_MAX_DISKS];

	raid_copies(g, sector, c);
	for (unsigned i = 0; i < g->copies; i++) {
		uint64_t to = raid_data_offset(&p->members[c[i].disk], moved) + c[i].sector;

		assert_true(to < p->room);
		p->at[c[i].disk][to] = (uint32_t)sector;
	}
}

static void expect(struct paper *p, const struct raid_geo *g, bool moved, uint64_t sector)
{
	struct raid_copy c[RAID_MAX_DISKS];

	raid_copies(g, sector, c);
	for (unsigned i = 0; i < g->copies; i++)
		assert_int_equal(p->at[c[i].disk][raid_data_offset(&p->members[c[i].disk], moved) + c[i].sector],
				 sector);
}

/* False: shapes between which there is no way. */
static bool draw(struct paper *p, unsigned n)
{
	unsigned disks = 2 + under(6), more = n % 2 ? 1 + under(4) : 0, copies = 2 + under(MIN(disks, 4) - 1);
	unsigned chunk = 8u << under(3), new_chunk = under(2) ? chunk : 8u << under(3);
	uint64_t dev = dm_round_down(200 + under(200), MAX(chunk, new_chunk)), gap, least, before, after;
	bool offset = under(2), new_offset = more ? offset : under(2);

	*p = (struct paper){.r.state.backwards = !more && under(2)};
	if (!raid_geo_init(&p->rs.from_geo, 10, random_layout(copies, offset), disks, chunk, dev) ||
	    !raid_geo_init(&p->rs.to_geo, 10, more ? p->rs.from_geo.layout : random_layout(copies, new_offset),
			   disks + more, new_chunk, dev))
		return false;
	least = MAX(chunk * p->rs.from_geo.far, new_chunk * p->rs.to_geo.far);
	gap = least + (under(2) ? 0 : 8u * under(20));
	p->room = dev + gap;
	before = raid_geo_array_sectors(&p->rs.from_geo);
	after = raid_geo_array_sectors(&p->rs.to_geo);
	if (after < before)
		return false;
	p->rs.moves = before;
	p->rs.sectors = p->r.state.backwards ? before : after;
	p->r.members = p->members;
	p->r.family = &p->rs;
	p->r.disks = disks + more;
	for (unsigned d = 0; d < p->r.disks; d++) {
		p->members[d].data_offset = p->r.state.backwards ? 0 : gap;
		p->members[d].new_data_offset = p->r.state.backwards ? gap : 0;
		p->at[d] = g_malloc(p->room * sizeof *p->at[d]);
		memset(p->at[d], 0xff, p->room * sizeof *p->at[d]);
	}
	for (uint64_t sector = 0; sector < before; sector++)
		put(p, &p->rs.from_geo, false, sector);
	return true;
}

/* Moves it all; false if it had to stop as a window would have hit what counts. */
static bool move(struct paper *p)
{
	struct reshape *rs = &p->rs;
	bool back = p->r.state.backwards;
	uint64_t position = back ? rs->sectors : 0;

	while (back ? position > 0 : position < rs->sectors) {
		uint64_t n = raid10_window(&p->r, rs, position), begin = back ? position - n : position,
			 end = begin + n;

		assert_true(n && n <= (back ? position : rs->sectors - position));
		if (raid10_hits_old(&p->r, rs, begin, end))
			return false;
		for (uint64_t sector = begin; sector < end; sector++)
			put(p, &rs->to_geo, true, sector);
		/* the power fails before the position is known: it is all there still */
		for (uint64_t sector = back ? 0 : begin; sector < (back ? end : rs->moves); sector++)
			expect(p, &rs->from_geo, false, sector);
		position = back ? begin : end;
		for (uint64_t sector = back ? position : 0; sector < (back ? rs->sectors : position); sector++)
			expect(p, &rs->to_geo, true, sector);
	}
	return true;
}

static void test_whole_way(void **state)
{
	unsigned moved = 0, stopped = 0;

	for (unsigned n = 0; n < 600; n++) {
		struct paper p;

		if (draw(&p, n)) {
			bool way = raid10_has_way(&p.r, &p.rs);

			assert_int_equal(move(&p), way);
			way ? moved++ : stopped++;
		}
		for (unsigned d = 0; d < DISKS; d++)
			g_free(p.at[d]);
	}
	assert_true(moved > 200);
	/* more copies than the least room has rows for: these alone may have no way */
	assert_true(stopped < moved / 10);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_bounds),
	    cmocka_unit_test(test_whole_way),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
