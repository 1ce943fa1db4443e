/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Chunks in work, their bitmaps, and zones that are taken and freed (metadata.h). */
#include <inttypes.h>

#include <dmfs/le.h>
#include <dmfs/locked.h>

#include "internal.h"

/* --- lists of zones; with the lock ------------------------------------------------------ */

void zoned_list_remove(struct zoned_meta *meta, uint32_t z)
{
	struct zone *zone = &meta->zones[z];
	struct zone_list *l = &meta->lists[zone->list];

	if (zone->list == LIST_NONE)
		return;
	*(zone->prev == ZONED_UNMAPPED ? &l->head : &meta->zones[zone->prev].next) = zone->next;
	*(zone->next == ZONED_UNMAPPED ? &l->tail : &meta->zones[zone->next].prev) = zone->prev;
	l->n--;
	zone->list = LIST_NONE;
}

/* At the end, from wherever it was. */
void zoned_list_add(struct zoned_meta *meta, uint16_t list, uint32_t z)
{
	struct zone *zone = &meta->zones[z];
	struct zone_list *l = &meta->lists[list];

	zoned_list_remove(meta, z);
	zone->list = list;
	zone->prev = l->tail;
	zone->next = ZONED_UNMAPPED;
	*(l->tail == ZONED_UNMAPPED ? &l->head : &meta->zones[l->tail].next) = z;
	l->tail = z;
	l->n++;
}

uint32_t zoned_list_pop(struct zoned_meta *meta, uint16_t list)
{
	uint32_t z = meta->lists[list].head;

	if (z != ZONED_UNMAPPED)
		zoned_list_remove(meta, z);
	return z;
}

uint16_t zoned_free_list(const struct zoned_meta *meta, uint32_t z)
{
	const struct zone *zone = &meta->zones[z];

	return zone->flags & ZONE_RESERVED ? RESERVED
	       : zone->flags & ZONE_CACHE  ? FREE_CACHE
					   : dev_list(zone->dev, zone->flags & ZONE_SEQ ? FREE_SEQ : FREE_RND);
}

uint16_t zoned_map_list(const struct zoned_meta *meta, uint32_t z)
{
	const struct zone *zone = &meta->zones[z];

	return zone->flags & ZONE_CACHE ? MAP_CACHE : dev_list(zone->dev, zone->flags & ZONE_SEQ ? MAP_SEQ : MAP_RND);
}

/* --- the mapping; with the lock ------------------------------------------------------------ */

void zoned_set_map(struct zoned_meta *meta, uint32_t chunk, uint32_t data, uint32_t buffer)
{
	uint32_t block = chunk / ZONED_MAP_ENTRIES;

	dm_assert_locked(&meta->lock);
	put_le32(meta->map + (size_t)chunk * 8, data);
	put_le32(meta->map + (size_t)chunk * 8 + 4, buffer);
	meta->map_dirty_n += !meta->map_dirty[block];
	meta->map_dirty[block] = 1;
	if (data != ZONED_UNMAPPED) {
		meta->zones[data].chunk = chunk;
		meta->zones[data].other = buffer;
		zoned_list_add(meta, zoned_map_list(meta, data), data);
	}
	if (buffer != ZONED_UNMAPPED) {
		meta->zones[buffer].chunk = chunk;
		meta->zones[buffer].other = data;
		zoned_list_add(meta, zoned_map_list(meta, buffer), buffer);
	}
}

/* --- bitmaps; with the lock ------------------------------------------------------------------- */

static void idle_remove(struct zoned_meta *meta, struct zoned_bits *b)
{
	*(b->prev ? &b->prev->next : &meta->idle_first) = b->next;
	*(b->next ? &b->next->prev : &meta->idle_last) = b->prev;
	b->prev = b->next = NULL;
}

static void idle_add(struct zoned_meta *meta, struct zoned_bits *b)
{
	b->prev = meta->idle_last;
	b->next = NULL;
	*(b->prev ? &b->prev->next : &meta->idle_first) = b;
	meta->idle_last = b;
}

static struct zoned_bits *bits_ref(struct zoned_meta *meta, struct zoned_bits *b)
{
	if (!b->refs++)
		idle_remove(meta, b);
	return b;
}

/* Those that nobody uses go when there are too many, if the disk has them. */
static void shrink(struct zoned_meta *meta)
{
	struct zoned_bits *b = meta->idle_first, *next;

	for (; b && meta->bits_n > meta->bits_max; b = next) {
		next = b->next;
		if (b->dirty)
			continue;
		idle_remove(meta, b);
		g_hash_table_remove(meta->bits, &b->zone);
		meta->bits_n--;
		g_free(b);
	}
}

void zoned_bits_unref(struct zoned_meta *meta, struct zoned_bits *b)
{
	dm_assert_locked(&meta->lock);
	if (--b->refs)
		return;
	idle_add(meta, b);
	shrink(meta);
}

void zoned_bits_changed(struct zoned_meta *meta, struct zoned_bits *b)
{
	meta->dirty_n += !b->dirty;
	b->dirty = true;
}

static size_t bits_bytes(const struct zoned_meta *meta)
{
	return (size_t)meta->bitmap_blocks * ZONED_BLOCK;
}

/* A new one, in use, whose content is the caller's to fill in. */
static struct zoned_bits *bits_add(struct zoned_meta *meta, struct zoned_bits *b, uint32_t z)
{
	b->zone = z;
	b->refs = 1;
	b->dirty = false;
	b->prev = b->next = NULL;
	g_hash_table_insert(meta->bits, &b->zone, b);
	meta->bits_n++;
	shrink(meta);
	return b;
}

struct zoned_bits *zoned_bits_fresh(struct zoned_meta *meta, uint32_t z)
{
	struct zoned_bits *b = g_hash_table_lookup(meta->bits, &z);

	dm_assert_locked(&meta->lock);
	if (b)
		bits_ref(meta, b);
	else
		b = bits_add(meta, g_malloc(sizeof *b + bits_bytes(meta)), z);
	memset(b->data, 0, bits_bytes(meta));
	zoned_bits_changed(meta, b);
	return b;
}

/* What is in memory, or is read from the disk. */
static int bits_get(struct zoned_meta *meta, uint32_t z, bool may_wait, struct zoned_bits **out)
{
	struct zoned_bits *b, *read;
	int error;

	pthread_mutex_lock(&meta->lock);
	b = g_hash_table_lookup(meta->bits, &z);
	if (b)
		*out = bits_ref(meta, b);
	pthread_mutex_unlock(&meta->lock);
	if (b || !may_wait)
		return b ? 0 : -EAGAIN;
	read = g_malloc(sizeof *read + bits_bytes(meta));
	error = zoned_set_read(meta, meta->primary, bits_block(meta, z), meta->bitmap_blocks, read->data);
	if (error) {
		g_free(read);
		return error;
	}
	pthread_mutex_lock(&meta->lock);
	b = g_hash_table_lookup(meta->bits, &z); /* another reader of the chunk was faster */
	*out = b ? bits_ref(meta, b) : bits_add(meta, read, z);
	pthread_mutex_unlock(&meta->lock);
	if (b)
		g_free(read);
	return 0;
}

void zoned_validate(struct zoned_meta *meta, struct zoned_bits *bits, uint32_t block, uint32_t blocks)
{
	struct zone *zone = &meta->zones[bits->zone];

	for (uint32_t b = block; b < block + blocks; b++) {
		zone->weight += !bit_is_set(bits->data, b);
		bits->data[b / 8] |= (uint8_t)(1u << b % 8);
	}
	zoned_bits_changed(meta, bits);
}

static void invalidate(struct zoned_meta *meta, struct zoned_bits *bits, uint32_t block, uint32_t blocks)
{
	struct zone *zone = &meta->zones[bits->zone];
	uint32_t before = zone->weight;

	for (uint32_t b = block; b < block + blocks && zone->weight; b++) {
		zone->weight -= bit_is_set(bits->data, b);
		bits->data[b / 8] &= (uint8_t) ~(1u << b % 8);
	}
	if (zone->weight != before)
		zoned_bits_changed(meta, bits);
}

void zoned_zone_free(struct zoned_meta *meta, struct zoned_bits *bits)
{
	struct zone *zone = &meta->zones[bits->zone];

	dm_assert_locked(&meta->lock);
	memset(bits->data, 0, bits_bytes(meta));
	zoned_bits_changed(meta, bits);
	zone->weight = 0;
	zone->chunk = zone->other = ZONED_UNMAPPED;
	zone->flags &= (uint8_t)~ZONE_STUCK;
	zoned_list_add(meta, PENDING, bits->zone);
}

/* --- chunks in work ------------------------------------------------------------------------------ */

void zoned_chunk_put(struct zoned_meta *meta, struct zoned_chunk *c)
{
	pthread_mutex_lock(&meta->lock);
	for (unsigned i = 0; i < 2; i++) {
		if (c->bits[i])
			zoned_bits_unref(meta, c->bits[i]);
		c->bits[i] = NULL;
	}
	pthread_mutex_unlock(&meta->lock);
}

/* Blocks beyond the write pointer are lost, as a failed write to a zone leaves them. */
static int ask_again(struct zoned_meta *meta, uint32_t z)
{
	struct zone now;
	int error = zoned_report_zone(meta, z, &now);

	if (error)
		return error;
	pthread_mutex_lock(&meta->lock);
	dm_log_warn("zoned: zone %" PRIu32 ": a write has failed; its write pointer is at block %" PRIu32, z, now.wp);
	meta->zones[z].wp = now.wp;
	meta->zones[z].flags =
	    (uint8_t)((meta->zones[z].flags & ~ZONE_UNSURE) | (now.flags & (ZONE_READONLY | ZONE_OFFLINE)));
	pthread_mutex_unlock(&meta->lock);
	return 0;
}

int zoned_chunk_get(struct zoned_meta *meta, uint32_t chunk, bool may_wait, struct zoned_chunk *c)
{
	bool unsure;
	int error = 0;

	*c = (struct zoned_chunk){.chunk = chunk};
	pthread_mutex_lock(&meta->lock);
	c->zone[ZONED_DATA] = get_le32(meta->map + (size_t)chunk * 8);
	c->zone[ZONED_BUFFER] = get_le32(meta->map + (size_t)chunk * 8 + 4);
	unsure = c->zone[ZONED_DATA] != ZONED_UNMAPPED && meta->zones[c->zone[ZONED_DATA]].flags & ZONE_UNSURE;
	pthread_mutex_unlock(&meta->lock);
	if (unsure)
		error = may_wait ? ask_again(meta, c->zone[ZONED_DATA]) : -EAGAIN;
	for (unsigned i = 0; i < 2 && !error; i++)
		if (c->zone[i] != ZONED_UNMAPPED)
			error = bits_get(meta, c->zone[i], may_wait, &c->bits[i]);
	if (error)
		zoned_chunk_put(meta, c);
	return error;
}

/* Where a block is: ZONED_DATA, ZONED_BUFFER, or neither, -1. */
static int where_is(const struct zoned_chunk *c, uint32_t block)
{
	for (int i = 0; i < 2; i++)
		if (c->bits[i] && bit_is_set(c->bits[i]->data, block))
			return i;
	return -1;
}

uint32_t zoned_chunk_find(struct zoned_meta *meta, const struct zoned_chunk *c, uint32_t block, uint32_t max,
			  struct dm_dev **dev, uint64_t *sector, int *error)
{
	int where = where_is(c, block);
	const struct zone *zone;
	uint32_t n = 1;

	while (n < max && where_is(c, block + n) == where)
		n++;
	*dev = NULL;
	*error = 0;
	if (where < 0)
		return n;
	zone = zone_of(meta, c->zone[where]);
	if ((zone->flags & ZONE_OFFLINE) || (zone->flags & ZONE_SEQ && block + n > zone->wp)) {
		dm_log_err_limit("zoned: chunk %" PRIu32 ", blocks %" PRIu32 " to %" PRIu32 " are lost: zone %" PRIu32
				 " is %s %" PRIu32,
				 c->chunk, block, block + n - 1, c->zone[where],
				 zone->flags & ZONE_OFFLINE ? "offline; its write pointer was at block"
							    : "written only up to block",
				 zone->wp);
		*error = -EIO;
	}
	*dev = zone_dev(meta, c->zone[where]);
	*sector = zone_sector(meta, c->zone[where], block);
	return n;
}

/* --- writes; with the lock ---------------------------------------------------------------------------- */

static uint32_t take_random(struct zoned_meta *meta)
{
	uint32_t z = zoned_list_pop(meta, FREE_CACHE);

	for (unsigned d = 0; d < meta->g.n && z == ZONED_UNMAPPED; d++)
		z = zoned_list_pop(meta, dev_list(d, FREE_RND));
	return z;
}

static uint32_t take_sequential(struct zoned_meta *meta)
{
	uint32_t z = ZONED_UNMAPPED;

	for (unsigned d = 0; d < meta->g.n && z == ZONED_UNMAPPED; d++)
		z = zoned_list_pop(meta, dev_list(d, FREE_SEQ));
	return z;
}

/* A zone for a chunk that has none, or a buffer for one that has. */
static int take_zone(struct zoned_meta *meta, struct zoned_chunk *c, int which, bool sequential)
{
	uint32_t z = sequential ? take_sequential(meta) : ZONED_UNMAPPED;

	if (z == ZONED_UNMAPPED)
		z = take_random(meta);
	if (z == ZONED_UNMAPPED)
		return -EAGAIN;
	c->zone[which] = z;
	c->bits[which] = zoned_bits_fresh(meta, z);
	meta->zones[z].weight = 0;
	zoned_set_map(meta, c->chunk, c->zone[ZONED_DATA], c->zone[ZONED_BUFFER]);
	return 0;
}

/* Which of its zones a write goes to, taking one if need be; or a negative errno. */
static int choose(struct zoned_meta *meta, struct zoned_chunk *c, uint32_t block)
{
	uint32_t z = c->zone[ZONED_DATA];
	int error = 0;

	if (meta->broken)
		return -EIO;
	if (z == ZONED_UNMAPPED) {
		error = take_zone(meta, c, ZONED_DATA, block == 0);
		return error ? error : ZONED_DATA;
	}
	if (!(meta->zones[z].flags & ZONE_SEQ))
		return meta->zones[z].flags & (ZONE_READONLY | ZONE_OFFLINE) ? -EIO : ZONED_DATA;
	if (meta->zones[z].wp == block && !(meta->zones[z].flags & (ZONE_READONLY | ZONE_OFFLINE | ZONE_UNSURE)))
		return ZONED_DATA;
	if (c->zone[ZONED_BUFFER] == ZONED_UNMAPPED)
		error = take_zone(meta, c, ZONED_BUFFER, false);
	return error ? error : ZONED_BUFFER;
}

int zoned_chunk_place(struct zoned_meta *meta, struct zoned_chunk *c, uint32_t block, uint32_t blocks,
		      struct dm_dev **dev, uint64_t *sector)
{
	int which;

	pthread_mutex_lock(&meta->lock);
	which = choose(meta, c, block);
	if (which >= 0) {
		*dev = zone_dev(meta, c->zone[which]);
		*sector = zone_sector(meta, c->zone[which], block);
	}
	pthread_mutex_unlock(&meta->lock);
	return which;
}

/* Zones of which no block is valid any more go; a buffer alone becomes the data zone. */
static void drop_empty(struct zoned_meta *meta, struct zoned_chunk *c)
{
	uint32_t data = c->zone[ZONED_DATA], buffer = c->zone[ZONED_BUFFER];
	bool changed = false;

	if (buffer != ZONED_UNMAPPED && !meta->zones[buffer].weight) {
		zoned_zone_free(meta, c->bits[ZONED_BUFFER]);
		buffer = ZONED_UNMAPPED;
		changed = true;
	}
	if (data != ZONED_UNMAPPED && !meta->zones[data].weight) {
		zoned_zone_free(meta, c->bits[ZONED_DATA]);
		data = buffer;
		buffer = ZONED_UNMAPPED;
		changed = true;
	}
	if (changed) {
		zoned_set_map(meta, c->chunk, data, buffer);
		return;
	}
	if (data != ZONED_UNMAPPED)
		zoned_list_add(meta, zoned_map_list(meta, data), data);
	if (buffer != ZONED_UNMAPPED)
		zoned_list_add(meta, zoned_map_list(meta, buffer), buffer);
}

void zoned_chunk_written(struct zoned_meta *meta, struct zoned_chunk *c, int which, uint32_t block, uint32_t blocks,
			 int error)
{
	struct zone *zone = &meta->zones[c->zone[which]];

	pthread_mutex_lock(&meta->lock);
	if (error) {
		if (zone->flags & ZONE_SEQ)
			zone->flags |= ZONE_UNSURE;
	} else {
		if (zone->flags & ZONE_SEQ)
			zone->wp = block + blocks;
		zone->flags &= (uint8_t)~ZONE_STUCK;
		zoned_validate(meta, c->bits[which], block, blocks);
		if (c->bits[!which])
			invalidate(meta, c->bits[!which], block, blocks);
	}
	drop_empty(meta, c);
	pthread_mutex_unlock(&meta->lock);
}

void zoned_chunk_forget(struct zoned_meta *meta, struct zoned_chunk *c, uint32_t block, uint32_t blocks)
{
	pthread_mutex_lock(&meta->lock);
	for (unsigned i = 0; i < 2; i++)
		if (c->bits[i])
			invalidate(meta, c->bits[i], block, blocks);
	drop_empty(meta, c);
	pthread_mutex_unlock(&meta->lock);
}

/* --- what is there ---------------------------------------------------------------------------------------- */

void zoned_meta_super(const struct zoned_meta *meta, struct zoned_super *out)
{
	*out = meta->super;
}

uint32_t zoned_meta_chunks(const struct zoned_meta *meta)
{
	return meta->super.chunks;
}

bool zoned_meta_dirty(struct zoned_meta *meta)
{
	bool dirty;

	pthread_mutex_lock(&meta->lock);
	dirty = meta->dirty_n > meta->bits_max / 2;
	pthread_mutex_unlock(&meta->lock);
	return dirty;
}

uint64_t zoned_meta_freed(struct zoned_meta *meta)
{
	uint64_t n;

	pthread_mutex_lock(&meta->lock);
	n = meta->freed;
	pthread_mutex_unlock(&meta->lock);
	return n;
}

bool zoned_meta_pending(struct zoned_meta *meta)
{
	bool pending;

	pthread_mutex_lock(&meta->lock);
	pending = meta->lists[PENDING].n || meta->lists[COMMITTING].n;
	pthread_mutex_unlock(&meta->lock);
	return pending;
}

bool zoned_meta_mapped(struct zoned_meta *meta, uint32_t chunk)
{
	bool mapped;

	pthread_mutex_lock(&meta->lock);
	mapped = get_le32(meta->map + (size_t)chunk * 8) != ZONED_UNMAPPED;
	pthread_mutex_unlock(&meta->lock);
	return mapped;
}

size_t zoned_meta_bytes(struct zoned_meta *meta)
{
	size_t n;

	pthread_mutex_lock(&meta->lock);
	n = sizeof *meta + meta->g.zones * sizeof *meta->zones + (size_t)meta->super.map_blocks * (ZONED_BLOCK + 1) +
	    meta->bits_n * (sizeof(struct zoned_bits) + bits_bytes(meta));
	pthread_mutex_unlock(&meta->lock);
	return n;
}

/* Zones that are free, or will be with the next commit; with the lock. */
static unsigned count_free(struct zoned_meta *meta, unsigned dev, unsigned flags)
{
	unsigned n =
	    meta->lists[flags & ZONE_CACHE ? FREE_CACHE : dev_list(dev, flags & ZONE_SEQ ? FREE_SEQ : FREE_RND)].n;

	for (unsigned list = PENDING; list <= COMMITTING; list++)
		for (uint32_t z = meta->lists[list].head; z != ZONED_UNMAPPED; z = meta->zones[z].next)
			n += (meta->zones[z].flags & (ZONE_CACHE | ZONE_SEQ | ZONE_RESERVED)) == flags &&
			     (flags & ZONE_CACHE || meta->zones[z].dev == dev);
	return n;
}

struct totals {
	unsigned cache, rnd, seq;
};

static struct totals count_zones(const struct zoned_meta *meta, unsigned dev)
{
	const struct zoned_dev *d = &meta->g.devs[dev];
	struct totals t = {0};

	for (uint32_t z = d->first; z < d->first + d->zones; z++) {
		unsigned flags = meta->zones[z].flags;

		if (flags & (ZONE_META | ZONE_OFFLINE | ZONE_RESERVED))
			continue;
		*(flags & ZONE_CACHE ? &t.cache : flags & ZONE_SEQ ? &t.seq : &t.rnd) += 1;
	}
	return t;
}

void zoned_meta_status(struct zoned_meta *meta, GString *out)
{
	struct totals t;

	pthread_mutex_lock(&meta->lock);
	t = count_zones(meta, 0);
	g_string_append_printf(out, "%" PRIu32 " zones %u/%u cache", meta->g.zones, count_free(meta, 0, ZONE_CACHE),
			       t.cache);
	for (unsigned d = t.cache ? 1 : 0; d < meta->g.n; d++) {
		t = count_zones(meta, d);
		g_string_append_printf(out, " %u/%u random %u/%u sequential", count_free(meta, d, 0), t.rnd,
				       count_free(meta, d, ZONE_SEQ), t.seq);
	}
	pthread_mutex_unlock(&meta->lock);
}

bool zoned_meta_has_random(struct zoned_meta *meta)
{
	bool any;

	pthread_mutex_lock(&meta->lock);
	any = meta->lists[FREE_CACHE].n > 0;
	for (unsigned d = 0; d < meta->g.n && !any; d++)
		any = meta->lists[dev_list(d, FREE_RND)].n > 0;
	pthread_mutex_unlock(&meta->lock);
	return any;
}

unsigned zoned_meta_free_percent(struct zoned_meta *meta)
{
	unsigned free = 0, all = 0;

	pthread_mutex_lock(&meta->lock);
	free = meta->lists[FREE_CACHE].n;
	all = free + meta->lists[MAP_CACHE].n;
	for (unsigned d = 0; d < meta->g.n && !meta->g.devs[0].regular; d++) {
		free += meta->lists[dev_list(d, FREE_RND)].n;
		all += meta->lists[dev_list(d, FREE_RND)].n + meta->lists[dev_list(d, MAP_RND)].n;
	}
	pthread_mutex_unlock(&meta->lock);
	return free <= 1 ? 0 : free * 100 / all;
}

bool zoned_meta_reclaimable(struct zoned_meta *meta)
{
	unsigned n;

	pthread_mutex_lock(&meta->lock);
	n = meta->lists[MAP_CACHE].n;
	for (unsigned d = 0; d < meta->g.n; d++)
		n += meta->lists[dev_list(d, MAP_RND)].n;
	pthread_mutex_unlock(&meta->lock);
	return n > 0;
}

/* The nth of a list that can be moved, counting *nth down. */
static uint32_t nth_chunk(const struct zoned_meta *meta, uint16_t list, bool buffered, unsigned *nth)
{
	for (uint32_t z = meta->lists[list].head; z != ZONED_UNMAPPED; z = meta->zones[z].next) {
		if (meta->zones[z].flags & ZONE_STUCK || (buffered && meta->zones[z].other == ZONED_UNMAPPED))
			continue;
		if (!(*nth)--)
			return meta->zones[z].chunk;
	}
	return ZONED_UNMAPPED;
}

uint32_t zoned_meta_victim(struct zoned_meta *meta, unsigned nth)
{
	uint32_t chunk = ZONED_UNMAPPED, free_seq;

	pthread_mutex_lock(&meta->lock);
	free_seq = meta->lists[RESERVED].n;
	for (unsigned d = 0; d < meta->g.n; d++)
		free_seq += meta->lists[dev_list(d, FREE_SEQ)].n;
	for (unsigned d = 0; d < meta->g.n && chunk == ZONED_UNMAPPED && !free_seq; d++)
		chunk = nth_chunk(meta, dev_list(d, MAP_SEQ), true, &nth);
	if (chunk == ZONED_UNMAPPED)
		chunk = nth_chunk(meta, MAP_CACHE, false, &nth);
	for (unsigned d = 0; d < meta->g.n && chunk == ZONED_UNMAPPED; d++)
		chunk = nth_chunk(meta, dev_list(d, MAP_RND), false, &nth);
	pthread_mutex_unlock(&meta->lock);
	return chunk;
}
