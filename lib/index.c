/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An index (dmfs/index.h): linear probing; removing closes the gap, so there are no tombstones. */
#include <dmfs/index.h>

#include <glib.h>
#include <string.h>

#define EMPTY UINT64_MAX
#define LEAST_SIZE 8u

static size_t home(const struct dm_index *ix, uint64_t key)
{
	/* The low 32 bits of the hash, scaled to the size: no division, any size will do. */
	return (size_t)(((unsigned __int128)(uint32_t)dm_index_hash(key) * ix->size) >> 32);
}

static size_t after(const struct dm_index *ix, size_t i)
{
	return i + 1 == ix->size ? 0 : i + 1;
}

void dm_index_clear(struct dm_index *ix)
{
	g_free(ix->slots);
	*ix = (struct dm_index){0};
}

struct dm_index_entry *dm_index_find(const struct dm_index *ix, uint64_t key)
{
	if (!ix->used)
		return NULL;
	for (size_t i = home(ix, key); ix->slots[i].key != EMPTY; i = after(ix, i))
		if (ix->slots[i].key == key)
			return &ix->slots[i];
	return NULL;
}

static void put(struct dm_index *ix, struct dm_index_entry e)
{
	size_t i = home(ix, e.key);

	while (ix->slots[i].key != EMPTY)
		i = after(ix, i);
	ix->slots[i] = e;
}

static void grow(struct dm_index *ix)
{
	struct dm_index old = *ix;

	ix->size = old.size + old.size / 4 + LEAST_SIZE;
	ix->slots = g_new(struct dm_index_entry, ix->size);
	memset(ix->slots, 0xff, ix->size * sizeof *ix->slots);
	for (size_t i = 0; i < old.size; i++)
		if (old.slots[i].key != EMPTY)
			put(ix, old.slots[i]);
	g_free(old.slots);
}

bool dm_index_add(struct dm_index *ix, uint64_t key, uint64_t value)
{
	if (dm_index_find(ix, key))
		return false;
	if ((ix->used + 1) * 10 > ix->size * 7)
		grow(ix);
	put(ix, (struct dm_index_entry){.key = key, .value = value});
	ix->used++;
	return true;
}

bool dm_index_remove(struct dm_index *ix, uint64_t key)
{
	struct dm_index_entry *e = dm_index_find(ix, key);
	size_t gap, i;

	if (!e)
		return false;
	gap = (size_t)(e - ix->slots);
	for (i = after(ix, gap); ix->slots[i].key != EMPTY; i = after(ix, i)) {
		size_t want = home(ix, ix->slots[i].key);
		/* It may move into the gap unless its home lies behind the gap, on the way to i. */
		bool stays = gap < i ? want > gap && want <= i : want > gap || want <= i;

		if (!stays) {
			ix->slots[gap] = ix->slots[i];
			gap = i;
		}
	}
	ix->slots[gap].key = EMPTY;
	ix->used--;
	if (!ix->used)
		dm_index_clear(ix);
	return true;
}

uint64_t dm_index_next(const struct dm_index *ix, uint64_t from)
{
	uint64_t next = UINT64_MAX;

	for (size_t i = 0; i < ix->size; i++)
		if (ix->slots[i].key >= from && ix->slots[i].key < next)
			next = ix->slots[i].key;
	return next;
}
