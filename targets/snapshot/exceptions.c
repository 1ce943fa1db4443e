/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Linear probing; removing closes the gap, so there are no tombstones. */
#include "exceptions.h"

#include <glib.h>
#include <string.h>

#define EMPTY UINT64_MAX
#define LEAST_SIZE 8u

static size_t home(const struct exception_set *set, uint64_t chunk)
{
	/* The low 32 bits of the hash, scaled to the size: no division, any size will do. */
	return (size_t)(((unsigned __int128)(uint32_t)exception_hash(chunk) * set->size) >> 32);
}

static size_t after(const struct exception_set *set, size_t i)
{
	return i + 1 == set->size ? 0 : i + 1;
}

void exceptions_clear(struct exception_set *set)
{
	g_free(set->slots);
	*set = (struct exception_set){0};
}

struct exception *exceptions_find(const struct exception_set *set, uint64_t old_chunk)
{
	if (!set->used)
		return NULL;
	for (size_t i = home(set, old_chunk); set->slots[i].old_chunk != EMPTY; i = after(set, i))
		if (set->slots[i].old_chunk == old_chunk)
			return &set->slots[i];
	return NULL;
}

static void put(struct exception_set *set, struct exception e)
{
	size_t i = home(set, e.old_chunk);

	while (set->slots[i].old_chunk != EMPTY)
		i = after(set, i);
	set->slots[i] = e;
}

static void grow(struct exception_set *set)
{
	struct exception_set old = *set;

	set->size = old.size + old.size / 4 + LEAST_SIZE;
	set->slots = g_new(struct exception, set->size);
	memset(set->slots, 0xff, set->size * sizeof *set->slots);
	for (size_t i = 0; i < old.size; i++)
		if (old.slots[i].old_chunk != EMPTY)
			put(set, old.slots[i]);
	g_free(old.slots);
}

bool exceptions_add(struct exception_set *set, uint64_t old_chunk, uint64_t new_chunk)
{
	if (exceptions_find(set, old_chunk))
		return false;
	if ((set->used + 1) * 10 > set->size * 7)
		grow(set);
	put(set, (struct exception){.old_chunk = old_chunk, .new_chunk = new_chunk});
	set->used++;
	return true;
}

bool exceptions_remove(struct exception_set *set, uint64_t old_chunk)
{
	struct exception *e = exceptions_find(set, old_chunk);
	size_t gap, i;

	if (!e)
		return false;
	gap = (size_t)(e - set->slots);
	for (i = after(set, gap); set->slots[i].old_chunk != EMPTY; i = after(set, i)) {
		size_t want = home(set, set->slots[i].old_chunk);
		/* It may move into the gap unless its home lies behind the gap, on the way to i. */
		bool stays = gap < i ? want > gap && want <= i : want > gap || want <= i;

		if (!stays) {
			set->slots[gap] = set->slots[i];
			gap = i;
		}
	}
	set->slots[gap].old_chunk = EMPTY;
	set->used--;
	if (!set->used)
		exceptions_clear(set);
	return true;
}

uint64_t exceptions_next(const struct exception_set *set, uint64_t from)
{
	uint64_t next = UINT64_MAX;

	for (size_t i = 0; i < set->size; i++)
		if (set->slots[i].old_chunk >= from && set->slots[i].old_chunk < next)
			next = set->slots[i].old_chunk;
	return next;
}
