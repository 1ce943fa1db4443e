/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The reader of exception stores: any bytes may be on a COW device.  A store
 * that is taken is then written to, read again, and merged: what it says must stay consistent.
 *
 * Byte 0: the chunk size asked for; byte 1: sectors of the origin / 8; the rest is the device.
 */
#include "../../targets/snapshot/store.h"
#include "../unit/ramdev.h"

#define MAX_SECTORS 4096u

static int add(void *context, uint64_t old_chunk, uint64_t new_chunk)
{
	GHashTable *seen = context;

	return g_hash_table_insert(seen, GSIZE_TO_POINTER(old_chunk + 1), GSIZE_TO_POINTER(new_chunk)) ? 0 : -EEXIST;
}

static void done(struct snap_commit *c, bool ok)
{
	g_assert(ok);
	g_free(c);
}

static struct snap_store *open_store(struct ramdev *m, uint32_t chunk, uint64_t origin, GHashTable *seen, int *r)
{
	struct snap_store *st = snap_store_new(SNAP_PERSISTENT, &m->dev);
	struct snap_reader rd = {.origin_sectors = origin, .add = add, .context = seen};
	g_autoptr(GError) err = NULL;

	*r = snap_store_open(st, chunk, &rd, &err);
	g_assert(*r < 0 ? err && *err->message : !err);
	return st;
}

/* Takes a few chunks more; each must be free. */
static void write_some(struct snap_store *st, struct ramdev *m, GHashTable *seen)
{
	for (uint64_t chunk = 0; chunk < 40; chunk++) {
		struct snap_commit *c = g_new0(struct snap_commit, 1);
		GHashTableIter it;
		gpointer new_chunk;

		c->old_chunk = chunk;
		c->done = done;
		if (g_hash_table_contains(seen, GSIZE_TO_POINTER(chunk + 1)) || snap_alloc(st, c)) {
			g_free(c);
			continue;
		}
		g_assert((c->new_chunk + 1) * snap_chunk_sectors(st) <= m->sectors);
		g_hash_table_iter_init(&it, seen);
		while (g_hash_table_iter_next(&it, NULL, &new_chunk))
			g_assert(GPOINTER_TO_SIZE(new_chunk) != c->new_chunk);
		g_hash_table_insert(seen, GSIZE_TO_POINTER(chunk + 1), GSIZE_TO_POINTER(c->new_chunk));
		snap_commit(st, c);
	}
}

static void merge_all(struct snap_store *st, GHashTable *seen)
{
	struct snap_pair pairs[64];
	int n;

	while ((n = snap_merge_last(st, pairs, G_N_ELEMENTS(pairs))) > 0) {
		for (int i = 0; i < n; i++)
			g_assert(g_hash_table_remove(seen, GSIZE_TO_POINTER(pairs[i].old_chunk + 1)));
		g_assert(!snap_merge_forget(st, (unsigned)n));
	}
	g_assert(!n && !g_hash_table_size(seen));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL), again = g_hash_table_new(NULL, NULL);
	uint32_t chunk;
	uint64_t origin;
	struct snap_store *st;
	struct ramdev m;
	int r;

	if (size < 2)
		return 0;
	chunk = data[0] & 16 ? 0 : 1u << (data[0] & 7);
	origin = 8 + 8ull * data[1] * (data[0] & 32 ? 100 : 1);
	ramdev_init(&m, MIN(MAX_SECTORS, (size - 2 + 511) / 512 + (data[0] & 64 ? 100 : 0)), data + 2, size - 2);
	st = open_store(&m, chunk, origin, seen, &r);
	if (!r) {
		write_some(st, &m, seen);
		snap_store_free(st);
		/* Old chunks past a small origin's end were written just now; the reader would refuse them. */
		st = open_store(&m, 0, UINT64_MAX >> 1, again, &r);
		g_assert(!r && g_hash_table_size(again) == g_hash_table_size(seen));
		merge_all(st, again);
	}
	snap_store_free(st);
	ramdev_clear(&m);
	return 0;
}
