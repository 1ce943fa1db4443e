/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Sets of numbers (dmfs/ranges.h): a sorted array of ranges that do not touch. */
#include <dmfs/ranges.h>

/* The first range that ends at or after n. */
static unsigned find(const struct dm_ranges *rs, uint64_t n)
{
	unsigned low = 0, high = dm_ranges_n(rs);

	while (low < high) {
		unsigned mid = low + (high - low) / 2;

		if (dm_ranges_at(rs, mid)->end < n)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

void dm_ranges_add(struct dm_ranges *rs, uint64_t begin, uint64_t end)
{
	struct dm_range r = {begin, end};
	unsigned i = find(rs, begin), n = 0;

	if (begin >= end)
		return;
	if (!rs->array)
		rs->array = g_array_new(FALSE, FALSE, sizeof(struct dm_range));
	for (; i + n < rs->array->len && dm_ranges_at(rs, i + n)->begin <= end; n++) { /* touching ones become one */
		r.begin = MIN(r.begin, dm_ranges_at(rs, i + n)->begin);
		r.end = MAX(r.end, dm_ranges_at(rs, i + n)->end);
		rs->count -= dm_ranges_at(rs, i + n)->end - dm_ranges_at(rs, i + n)->begin;
	}
	if (n)
		g_array_remove_range(rs->array, i, n);
	g_array_insert_val(rs->array, i, r);
	rs->count += r.end - r.begin;
}

void dm_ranges_remove(struct dm_ranges *rs, uint64_t begin, uint64_t end)
{
	unsigned i = find(rs, begin + 1);
	struct dm_range r, rest;

	if (begin >= end)
		return;
	g_assert(i < dm_ranges_n(rs));
	r = *dm_ranges_at(rs, i);
	g_assert(r.begin <= begin && end <= r.end);
	rs->count -= end - begin;
	rest = (struct dm_range){end, r.end};
	dm_ranges_at(rs, i)->end = begin;
	if (rest.begin < rest.end)
		g_array_insert_val(rs->array, i + 1, rest);
	if (r.begin == begin)
		g_array_remove_index(rs->array, i);
}

bool dm_ranges_has(const struct dm_ranges *rs, uint64_t n)
{
	unsigned i = find(rs, n + 1);

	return i < dm_ranges_n(rs) && dm_ranges_at(rs, i)->begin <= n;
}

void dm_ranges_clear(struct dm_ranges *rs)
{
	if (rs->array)
		g_array_free(rs->array, TRUE);
	*rs = (struct dm_ranges){0};
}
