/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Commits of zoned's metadata (dm-zoned.rst, "Metadata Protection"): what has changed is written to the second set, and
 * with its superblock's new generation that set is true; then the same goes to the first.  One of them is always whole.
 *
 * What is written is copied at the begin, so that nobody waits; the data are flushed before any of it is.
 */
#include <inttypes.h>

#include "internal.h"

/* A run of blocks of a set as they are to be written. */
struct piece {
	uint64_t block;
	uint32_t blocks;
	struct zoned_bits *bits; /* stays in memory until they are written; NULL: of the mapping */
	uint8_t *data;
};

static void add_piece(GArray *pieces, uint64_t block, uint32_t blocks, struct zoned_bits *bits, const uint8_t *data)
{
	struct piece p = {block, blocks, bits, g_memdup2(data, (size_t)blocks * ZONED_BLOCK)};

	g_array_append_val(pieces, p);
}

/* All that is dirty, which it then is no more; with the lock. */
static GArray *copy_dirty(struct zoned_meta *meta)
{
	GArray *pieces = g_array_new(FALSE, FALSE, sizeof(struct piece));
	GHashTableIter iter;
	gpointer value;

	for (uint32_t b = 0; b < meta->super.map_blocks && meta->map_dirty_n; b++)
		if (meta->map_dirty[b]) {
			add_piece(pieces, 1 + b, 1, NULL, meta->map + (size_t)b * ZONED_BLOCK);
			meta->map_dirty[b] = 0;
			meta->map_dirty_n--;
		}
	g_hash_table_iter_init(&iter, meta->bits);
	while (meta->dirty_n && g_hash_table_iter_next(&iter, NULL, &value)) {
		struct zoned_bits *b = value;

		if (!b->dirty)
			continue;
		if (!b->refs++) { /* no longer one of those that nobody uses */
			*(b->prev ? &b->prev->next : &meta->idle_first) = b->next;
			*(b->next ? &b->next->prev : &meta->idle_last) = b->prev;
			b->prev = b->next = NULL;
		}
		b->dirty = false;
		meta->dirty_n--;
		add_piece(pieces, bits_block(meta, b->zone), meta->bitmap_blocks, b, b->data);
	}
	return pieces;
}

/* With the lock; failed: all is as dirty as it was. */
static void release(struct zoned_meta *meta, GArray *pieces, bool failed)
{
	for (guint i = 0; i < pieces->len; i++) {
		struct piece *p = &g_array_index(pieces, struct piece, i);

		if (failed && p->bits) {
			zoned_bits_changed(meta, p->bits);
		} else if (failed) {
			meta->map_dirty_n += !meta->map_dirty[p->block - 1];
			meta->map_dirty[p->block - 1] = 1;
		}
		if (p->bits)
			zoned_bits_unref(meta, p->bits);
		g_free(p->data);
	}
	g_array_free(pieces, TRUE);
}

static int write_blocks(struct zoned_meta *meta, unsigned set, const GArray *pieces)
{
	int error = 0;

	for (guint i = 0; i < pieces->len && !error; i++) {
		const struct piece *p = &g_array_index(pieces, struct piece, i);

		error = zoned_set_write(meta, set, p->block, p->blocks, p->data);
	}
	return error ? error : dm_flush_sync(meta->g.devs[0].dev);
}

/*
 * *unknown: it failed where the second set may be true already and the first is not: to write to either again could
 * leave none that is.
 */
static int write_sets(struct zoned_meta *meta, const GArray *pieces, bool *unknown)
{
	uint64_t generation = meta->super.generation + 1;
	int error = write_blocks(meta, !meta->primary, pieces);

	if (error)
		return error;
	error = zoned_super_commit(meta, !meta->primary, generation);
	if (!error)
		error = write_blocks(meta, meta->primary, pieces);
	if (!error)
		error = zoned_super_commit(meta, meta->primary, generation);
	*unknown = error != 0;
	return error;
}

static int flush_devices(struct zoned_meta *meta)
{
	int error = 0;

	for (unsigned d = 0; d < meta->g.n; d++) {
		int one = dm_flush_sync(meta->g.devs[d].dev);

		error = error ? error : one;
	}
	return error;
}

/* A zone that no metadata know any more can be used again; without the lock. */
static void make_usable(struct zoned_meta *meta, uint32_t z)
{
	struct zone *zone = &meta->zones[z];
	struct dm_region where = {zone_dev(meta, z), zone_sector(meta, z, 0), meta->g.zone_sectors};
	int error = 0;

	if (zone->flags & ZONE_SEQ && (zone->wp || zone->flags & ZONE_UNSURE))
		error = dm_io_sync(DM_ZONE_RESET, 0, 1, &where, NULL, 0, NULL);
	pthread_mutex_lock(&meta->lock);
	zoned_list_remove(meta, z);
	if (error) {
		dm_log_err("zoned: zone %" PRIu32 " cannot be reset: %s; it is not used any more", z,
			   g_strerror(-error));
		zone->flags |= ZONE_OFFLINE;
	} else {
		zone->wp = 0;
		zone->flags &= (uint8_t)~ZONE_UNSURE;
		meta->freed++;
		zoned_list_add(meta, zoned_free_list(meta, z), z);
	}
	pthread_mutex_unlock(&meta->lock);
}

static bool free_zones(struct zoned_meta *meta)
{
	bool any = false;
	uint32_t z;

	for (;;) {
		pthread_mutex_lock(&meta->lock);
		z = meta->lists[COMMITTING].head;
		pthread_mutex_unlock(&meta->lock);
		if (z == ZONED_UNMAPPED)
			return any;
		make_usable(meta, z);
		any = true;
	}
}

/* What was freed since the last commit, or all of it back. */
static void move_list(struct zoned_meta *meta, uint16_t from, uint16_t to)
{
	while (meta->lists[from].head != ZONED_UNMAPPED)
		zoned_list_add(meta, to, meta->lists[from].head);
}

int zoned_meta_commit(struct zoned_meta *meta, bool *freed)
{
	bool nothing, unknown = false;
	GArray *pieces;
	int error;

	*freed = false;
	pthread_mutex_lock(&meta->lock);
	error = meta->broken ? -EIO : 0;
	if (error || !meta->write) {
		pthread_mutex_unlock(&meta->lock);
		return error;
	}
	pieces = copy_dirty(meta);
	nothing = !pieces->len;
	move_list(meta, PENDING, COMMITTING);
	pthread_mutex_unlock(&meta->lock);
	error = flush_devices(meta);
	if (!error && !nothing)
		error = write_sets(meta, pieces, &unknown);
	pthread_mutex_lock(&meta->lock);
	if (!error && !nothing)
		meta->super.generation++;
	if (error)
		move_list(meta, COMMITTING, PENDING);
	if (unknown) {
		dm_log_err("zoned: the metadata cannot be written: %s; nothing is written any more",
			   g_strerror(-error));
		meta->broken = true;
	}
	release(meta, pieces, error != 0);
	pthread_mutex_unlock(&meta->lock);
	if (!error)
		*freed = free_zones(meta);
	return error;
}
