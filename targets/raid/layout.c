/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Where an array's sectors lie on its devices (layout.h).
 *
 * Rows, for n devices and row r:
 *
 *   layout       P on                 Q on       data chunk 0 on, the others follow
 *   raid5 la     n-1 - r mod n                   device 0, passing over P
 *   raid5 ra     r mod n                         device 0, passing over P
 *   raid5 ls     n-1 - r mod n                   after P, around
 *   raid5 rs     r mod n                         after P, around
 *   raid4        0                               1
 *   raid5 n      n-1                             0
 *   raid6 la     n-1 - r mod n        after P    device 0, passing over P and Q
 *   raid6 ra     r mod n              after P    device 0, passing over P and Q
 *   raid6 ls     n-1 - r mod n        after P    after Q, around
 *   raid6 rs     r mod n              after P    after Q, around
 *   raid6 zr     r mod n              after P    device 0, passing over P and Q
 *   raid6 nr     n-1 - (r+1) mod n    after P    device 0, passing over P and Q
 *   raid6 nc     n-1 - r mod n        before P   after P, around
 *   raid6 n_6    n-2                  n-1        0
 *   raid6 X_6    as raid5 X of the first n-1 devices, Q on the last
 *
 * In Q, zr, nr and nc count P's and Q's places too (as DDF does): the exponent is the device's number; else it is the
 * number of data chunks on the devices from Q on, around.  (la, ra, ls and rs are md's; the kernel's dm-raid has no
 * names for them.)
 */
#include "layout.h"

#include <stddef.h>

#include <dmfs/rounding.h>

/* --- making one --------------------------------------------------------------------------- */

static bool layout_known(unsigned level, unsigned layout)
{
	if (level == 5)
		return layout <= RAID5_N;
	return layout <= RAID5_RS || layout == RAID5_N || (layout >= RAID6_ZR && layout <= RAID6_NC) ||
	       (layout >= RAID6_LA_6 && layout <= RAID6_RS_6);
}

static bool init_rows(struct raid_geo *g)
{
	g->parity = g->level == 6 ? 2 : g->level == 5 ? 1 : 0;
	if (g->level && !layout_known(g->level, g->layout))
		return false;
	if (g->disks < g->parity + (g->level == 6 ? 2 : 1))
		return false;
	g->data = g->disks - g->parity;
	g->copies = 1;
	return true;
}

static bool init_raid10(struct raid_geo *g)
{
	uint64_t chunks;

	g->near = g->layout & 0xff;
	g->far = g->layout >> 8 & 0xff;
	if (!g->near || !g->far || g->layout >> 19 || g->layout & 1u << 17)
		return false;
	g->copies = g->near * g->far;
	if (g->copies > g->disks)
		return false;
	g->set = g->layout & RAID10_FAR_SETS ? g->copies : g->disks;
	/* the chunks of the array, and what a device needs for its share of their copies */
	chunks = g->dev_sectors / g->chunk / g->far * g->disks / g->near;
	chunks = (chunks * g->copies + g->disks - 1) / g->disks;
	g->dev_sectors = chunks * g->chunk;
	g->stride = g->layout & RAID10_OFFSET ? g->chunk : chunks / g->far * g->chunk;
	return true;
}

bool raid_geo_init(struct raid_geo *g, unsigned level, unsigned layout, unsigned disks, unsigned chunk,
		   uint64_t dev_sectors)
{
	*g = (struct raid_geo){.level = level, .layout = layout, .disks = disks, .dev_sectors = dev_sectors};
	if (!disks || disks > RAID_MAX_DISKS || dev_sectors >> 54)
		return false;
	if (level == 1) {
		g->copies = g->near = disks;
		g->far = 1;
		return layout == 0;
	}
	if (!chunk || chunk & (chunk - 1) || chunk >> 30)
		return false;
	g->chunk = chunk;
	g->dev_sectors -= dev_sectors % chunk;
	if (level == 10)
		return init_raid10(g);
	return (level == 0 || level == 5 || level == 6) && init_rows(g);
}

uint64_t raid_geo_array_sectors(const struct raid_geo *g)
{
	if (g->level == 1)
		return g->dev_sectors;
	if (g->level == 10)
		return g->dev_sectors / g->chunk / g->far * g->disks / g->near * g->chunk;
	return g->dev_sectors * g->data;
}

/* --- rows --------------------------------------------------------------------------------- */

/* P's device with n devices to rotate over. */
static unsigned rotate(unsigned layout, unsigned n, uint64_t row)
{
	unsigned r = (unsigned)(row % n);

	switch (layout) {
	case RAID5_LA:
	case RAID5_LS:
		return n - 1 - r;
	case RAID5_RA:
	case RAID5_RS:
		return r;
	case RAID5_FIRST:
		return 0;
	default:
		return n - 1;
	}
}

void raid_row_parity(const struct raid_geo *g, uint64_t row, int *p, int *q)
{
	unsigned n = g->disks;

	*p = *q = -1;
	if (g->level == 5) {
		*p = (int)rotate(g->layout, n, row);
	} else if (g->level == 6) {
		switch (g->layout) {
		case RAID5_LA:
		case RAID5_RA:
		case RAID5_LS:
		case RAID5_RS:
			*p = (int)rotate(g->layout, n, row);
			*q = (*p + 1) % (int)n;
			break;
		case RAID6_ZR:
			*p = (int)(row % n);
			*q = (int)((row % n + 1) % n);
			break;
		case RAID6_NR:
			*p = (int)(n - 1 - (row + 1) % n);
			*q = (*p + 1) % (int)n;
			break;
		case RAID6_NC:
			*p = (int)(n - 1 - row % n);
			*q = (*p + (int)n - 1) % (int)n;
			break;
		case RAID5_N:
			*p = (int)n - 2;
			*q = (int)n - 1;
			break;
		default:
			*p = (int)rotate(g->layout - RAID6_LA_6, n - 1, row);
			*q = (int)n - 1;
			break;
		}
	}
}

/* Data begins after P and goes around; the number of devices it goes around, 0: it passes over P and Q instead. */
static unsigned around(const struct raid_geo *g)
{
	if (g->level == 5)
		return g->layout == RAID5_LS || g->layout == RAID5_RS ? g->disks : 0;
	if (g->level == 6 && (g->layout == RAID6_LS_6 || g->layout == RAID6_RS_6))
		return g->disks - 1;
	return g->level == 6 && (g->layout == RAID6_NC || g->layout == RAID5_LS || g->layout == RAID5_RS) ? g->disks : 0;
}

/* What data begins behind, where it goes around: P, or Q where that is behind P in a circle of both. */
static unsigned before_data(const struct raid_geo *g, int p, int q)
{
	return (unsigned)(raid_geo_from_q(g) ? q : p);
}

unsigned raid_row_disk(const struct raid_geo *g, uint64_t row, unsigned k)
{
	unsigned n = around(g), low, high;
	int p, q;

	raid_row_parity(g, row, &p, &q);
	if (n)
		return (before_data(g, p, q) + 1 + k) % n;
	low = (unsigned)(q >= 0 && q < p ? q : p);
	high = (unsigned)(q > p ? q : p);
	if (p >= 0 && k >= low)
		k++;
	if (q >= 0 && k >= high)
		k++;
	return k;
}

int raid_row_slot(const struct raid_geo *g, uint64_t row, unsigned disk)
{
	unsigned n = around(g);
	int p, q, d = (int)disk;

	raid_row_parity(g, row, &p, &q);
	if (d == p)
		return -1;
	if (d == q)
		return -2;
	if (n)
		return (int)((disk + n - before_data(g, p, q) - 1) % n);
	return d - (p >= 0 && d > p) - (q >= 0 && d > q);
}

unsigned raid_row_exponent(const struct raid_geo *g, uint64_t row, unsigned disk)
{
	int p, q, d = (int)disk;

	if (raid_geo_by_disk(g))
		return disk;
	raid_row_parity(g, row, &p, &q);
	if (raid_geo_from_q(g)) /* P, which is before Q, comes last */
		return (disk + g->disks - (unsigned)q - 1) % g->disks;
	return disk - (unsigned)(d > p) - (unsigned)(d > q);
}

unsigned raid_row_map(const struct raid_geo *g, uint64_t sector, uint64_t *dev_sector)
{
	uint64_t chunk = sector / g->chunk, row = chunk / g->data;

	*dev_sector = row * g->chunk + (sector & (g->chunk - 1));
	return raid_row_disk(g, row, (unsigned)(chunk % g->data));
}

/* --- copies --------------------------------------------------------------------------------- */

/*
 * Far copies go round within sets of devices.  The sets follow each other; what is left over at the end belongs to the
 * last, which begins at *first.
 */
static void set_of(const struct raid_geo *g, unsigned disk, unsigned *first, unsigned *size)
{
	unsigned last = (g->disks / g->set - 1) * g->set;

	if (g->disks % g->set && disk >= last) {
		*first = last;
		*size = g->set + g->disks % g->set;
	} else {
		*first = disk / g->set * g->set;
		*size = g->set;
	}
}

void raid_copies(const struct raid_geo *g, uint64_t sector, struct raid_copy *copies)
{
	uint64_t chunk, row, at;
	unsigned disk, n = 0;

	if (g->level == 1) {
		for (unsigned i = 0; i < g->disks; i++)
			copies[i] = (struct raid_copy){i, sector};
		return;
	}
	chunk = sector / g->chunk * g->near;
	row = chunk / g->disks;
	disk = (unsigned)(chunk % g->disks);
	at = (sector & (g->chunk - 1)) + row * g->chunk * (g->layout & RAID10_OFFSET ? g->far : 1);
	for (unsigned i = 0; i < g->near; i++) {
		unsigned d = disk, first, size;

		set_of(g, d, &first, &size);
		for (unsigned f = 0; f < g->far; f++) {
			copies[n++] = (struct raid_copy){d, at + f * g->stride};
			d = first + (d - first + g->near) % size;
		}
		if (++disk == g->disks) {
			disk = 0;
			at += g->chunk;
		}
	}
}

bool raid_copy_of(const struct raid_geo *g, unsigned disk, uint64_t dev_sector, uint64_t *sector)
{
	unsigned f = 0, first, size;
	uint64_t row, chunk;

	if (g->level == 1) {
		*sector = dev_sector;
		return true;
	}
	if (g->layout & RAID10_OFFSET) {
		row = dev_sector / g->chunk;
		f = (unsigned)(row % g->far);
		row /= g->far;
	} else {
		if (g->stride)
			f = (unsigned)(dev_sector / g->stride);
		if (f >= g->far)
			return false;
		row = (dev_sector - f * g->stride) / g->chunk;
	}
	set_of(g, disk, &first, &size);
	disk = first + (disk - first + size - f * g->near % size) % size;
	chunk = (row * g->disks + disk) / g->near;
	*sector = chunk * g->chunk + (dev_sector & (g->chunk - 1));
	return *sector < raid_geo_array_sectors(g);
}

static uint64_t copies_row(const struct raid_geo *g)
{
	return (uint64_t)g->far * g->chunk;
}

uint64_t raid_copies_first(const struct raid_geo *g, uint64_t sector)
{
	return sector / g->chunk * g->near / g->disks * copies_row(g);
}

uint64_t raid_copies_end(const struct raid_geo *g, uint64_t sector)
{
	return dm_div_up(dm_div_up(sector, g->chunk) * g->near, g->disks) * copies_row(g);
}

uint64_t raid_copies_below(const struct raid_geo *g, uint64_t dev_sector)
{
	return dev_sector / copies_row(g) * g->disks / g->near * g->chunk;
}

uint64_t raid_copies_above(const struct raid_geo *g, uint64_t dev_sector)
{
	return dm_div_up(dm_div_up(dev_sector, copies_row(g)) * g->disks, g->near) * g->chunk;
}
