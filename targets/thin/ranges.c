/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "ranges.h"

/* The first range that ends at or after n. */
static unsigned find(const struct ranges *rs, uint64_t n)
{
	unsigned low = 0, high = ranges_n(rs);

	while (low < high) {
		unsigned mid = low + (high - low) / 2;

		if (ranges_at(rs, mid)->end < n)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

void ranges_add(struct ranges *rs, uint64_t begin, uint64_t end)
{
	struct range r = {begin, end};
	unsigned i = find(rs, begin), n = 0;

	if (begin >= end)
		return;
	if (!rs->array)
		rs->array = g_array_new(FALSE, FALSE, sizeof(struct range));
	for (; i + n < rs->array->len && ranges_at(rs, i + n)->begin <= end; n++) { /* touching ones become one */
		r.begin = MIN(r.begin, ranges_at(rs, i + n)->begin);
		r.end = MAX(r.end, ranges_at(rs, i + n)->end);
		rs->count -= ranges_at(rs, i + n)->end - ranges_at(rs, i + n)->begin;
	}
	if (n)
		g_array_remove_range(rs->array, i, n);
	g_array_insert_val(rs->array, i, r);
	rs->count += r.end - r.begin;
}

void ranges_remove(struct ranges *rs, uint64_t begin, uint64_t end)
{
	unsigned i = find(rs, begin + 1);
	struct range r, rest;

	if (begin >= end)
		return;
	g_assert(i < ranges_n(rs));
	r = *ranges_at(rs, i);
	g_assert(r.begin <= begin && end <= r.end);
	rs->count -= end - begin;
	rest = (struct range){end, r.end};
	ranges_at(rs, i)->end = begin;
	if (rest.begin < rest.end)
		g_array_insert_val(rs->array, i + 1, rest);
	if (r.begin == begin)
		g_array_remove_index(rs->array, i);
}

bool ranges_has(const struct ranges *rs, uint64_t n)
{
	unsigned i = find(rs, n + 1);

	return i < ranges_n(rs) && ranges_at(rs, i)->begin <= n;
}

void ranges_clear(struct ranges *rs)
{
	if (rs->array)
		g_array_free(rs->array, TRUE);
	*rs = (struct ranges){0};
}
