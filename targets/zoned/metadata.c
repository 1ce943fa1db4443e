/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Chunks in work, their bitmaps, and zones that are taken and freed (metadata.h). */
#include <inttypes.h>

#include <dmfs/le.h>
#include <dmfs/locked.h>

#include "internal.h"

/* --- lists of zones; with the lock ------------------------------------------------------ */

void zoned_list_remove(struct zoned_md *md, uint32_t z)
{
	struct zone *zone = &md->zones[z];
	struct zone_list *l = &md->lists[zone->list];

	if (zone->list == LIST_NONE)
		return;
	*(zone->prev == ZONED_UNMAPPED ? &l->head : &md->zones[zone->prev].next) = zone->next;
	*(zone->next == ZONED_UNMAPPED ? &l->tail : &md->zones[zone->next].prev) = zone->prev;
	l->n--;
	zone->list = LIST_NONE;
}

/* At the end, from wherever it was. */
void zoned_list_add(struct zoned_md *md, uint16_t list, uint32_t z)
{
	struct zone *zone = &md->zones[z];
	struct zone_list *l = &md->lists[list];

	zoned_list_remove(md, z);
	zone->list = list;
	zone->prev = l->tail;
	zone->next = ZONED_UNMAPPED;
	*(l->tail == ZONED_UNMAPPED ? &l->head : &md->zones[l->tail].next) = z;
	l->tail = z;
	l->n++;
}

uint32_t zoned_list_pop(struct zoned_md *md, uint16_t list)
{
	uint32_t z = md->lists[list].head;

	if (z != ZONED_UNMAPPED)
		zoned_list_remove(md, z);
	return z;
}

uint16_t zoned_free_list(const struct zoned_md *md, uint32_t z)
{
	const struct zone *zone = &md->zones[z];

	return zone->flags & ZONE_RESERVED ? RESERVED
	       : zone->flags & ZONE_CACHE  ? FREE_CACHE
					   : dev_list(zone->dev, zone->flags & ZONE_SEQ ? FREE_SEQ : FREE_RND);
}

uint16_t zoned_map_list(const struct zoned_md *md, uint32_t z)
{
	const struct zone *zone = &md->zones[z];

	return zone->flags & ZONE_CACHE ? MAP_CACHE : dev_list(zone->dev, zone->flags & ZONE_SEQ ? MAP_SEQ : MAP_RND);
}

/* --- the mapping; with the lock ------------------------------------------------------------ */

void zoned_set_map(struct zoned_md *md, uint32_t chunk, uint32_t data, uint32_t buffer)
{
	uint32_t block = chunk / ZONED_MAP_ENTRIES;

	dm_assert_locked(&md->lock);
	put_le32(md->map + (size_t)chunk * 8, data);
	put_le32(md->map + (size_t)chunk * 8 + 4, buffer);
	md->map_dirty_n += !md->map_dirty[block];
	md->map_dirty[block] = 1;
	if (data != ZONED_UNMAPPED) {
		md->zones[data].chunk = chunk;
		md->zones[data].other = buffer;
		zoned_list_add(md, zoned_map_list(md, data), data);
	}
	if (buffer != ZONED_UNMAPPED) {
		md->zones[buffer].chunk = chunk;
		md->zones[buffer].other = data;
		zoned_list_add(md, zoned_map_list(md, buffer), buffer);
	}
}

/* --- bitmaps; with the lock ------------------------------------------------------------------- */

static void idle_remove(struct zoned_md *md, struct zoned_bits *b)
{
	*(b->prev ? &b->prev->next : &md->idle_first) = b->next;
	*(b->next ? &b->next->prev : &md->idle_last) = b->prev;
	b->prev = b->next = NULL;
}

static void idle_add(struct zoned_md *md, struct zoned_bits *b)
{
	b->prev = md->idle_last;
	b->next = NULL;
	*(b->prev ? &b->prev->next : &md->idle_first) = b;
	md->idle_last = b;
}

static struct zoned_bits *bits_ref(struct zoned_md *md, struct zoned_bits *b)
{
	if (!b->refs++)
		idle_remove(md, b);
	return b;
}

/* Those that nobody uses go when there are too many, if the disk has them. */
static void shrink(struct zoned_md *md)
{
	struct zoned_bits *b = md->idle_first, *next;

	for (; b && md->bits_n > md->bits_max; b = next) {
		next = b->next;
		if (b->dirty)
			continue;
		idle_remove(md, b);
		g_hash_table_remove(md->bits, &b->zone);
		md->bits_n--;
		g_free(b);
	}
}

void zoned_bits_unref(struct zoned_md *md, struct zoned_bits *b)
{
	dm_assert_locked(&md->lock);
	if (--b->refs)
		return;
	idle_add(md, b);
	shrink(md);
}

void zoned_bits_changed(struct zoned_md *md, struct zoned_bits *b)
{
	md->dirty_n += !b->dirty;
	b->dirty = true;
}

static size_t bits_bytes(const struct zoned_md *md)
{
	return (size_t)md->bitmap_blocks * ZONED_BLOCK;
}

/* A new one, in use, whose content is the caller's to fill in. */
static struct zoned_bits *bits_add(struct zoned_md *md, struct zoned_bits *b, uint32_t z)
{
	b->zone = z;
	b->refs = 1;
	b->dirty = false;
	b->prev = b->next = NULL;
	g_hash_table_insert(md->bits, &b->zone, b);
	md->bits_n++;
	shrink(md);
	return b;
}

struct zoned_bits *zoned_bits_fresh(struct zoned_md *md, uint32_t z)
{
	struct zoned_bits *b = g_hash_table_lookup(md->bits, &z);

	dm_assert_locked(&md->lock);
	if (b)
		bits_ref(md, b);
	else
		b = bits_add(md, g_malloc(sizeof *b + bits_bytes(md)), z);
	memset(b->data, 0, bits_bytes(md));
	zoned_bits_changed(md, b);
	return b;
}

/* What is in memory, or is read from the disk. */
static int bits_get(struct zoned_md *md, uint32_t z, bool may_wait, struct zoned_bits **out)
{
	struct zoned_bits *b, *read;
	int error;

	pthread_mutex_lock(&md->lock);
	b = g_hash_table_lookup(md->bits, &z);
	if (b)
		*out = bits_ref(md, b);
	pthread_mutex_unlock(&md->lock);
	if (b || !may_wait)
		return b ? 0 : -EAGAIN;
	read = g_malloc(sizeof *read + bits_bytes(md));
	error = zoned_set_read(md, md->primary, bits_block(md, z), md->bitmap_blocks, read->data);
	if (error) {
		g_free(read);
		return error;
	}
	pthread_mutex_lock(&md->lock);
	b = g_hash_table_lookup(md->bits, &z); /* another reader of the chunk was faster */
	*out = b ? bits_ref(md, b) : bits_add(md, read, z);
	pthread_mutex_unlock(&md->lock);
	if (b)
		g_free(read);
	return 0;
}

void zoned_validate(struct zoned_md *md, struct zoned_bits *bits, uint32_t block, uint32_t blocks)
{
	struct zone *zone = &md->zones[bits->zone];

	for (uint32_t b = block; b < block + blocks; b++) {
		zone->weight += !bit_is_set(bits->data, b);
		bits->data[b / 8] |= (uint8_t)(1u << b % 8);
	}
	zoned_bits_changed(md, bits);
}

static void invalidate(struct zoned_md *md, struct zoned_bits *bits, uint32_t block, uint32_t blocks)
{
	struct zone *zone = &md->zones[bits->zone];
	uint32_t before = zone->weight;

	for (uint32_t b = block; b < block + blocks && zone->weight; b++) {
		zone->weight -= bit_is_set(bits->data, b);
		bits->data[b / 8] &= (uint8_t) ~(1u << b % 8);
	}
	if (zone->weight != before)
		zoned_bits_changed(md, bits);
}

void zoned_zone_free(struct zoned_md *md, struct zoned_bits *bits)
{
	struct zone *zone = &md->zones[bits->zone];

	dm_assert_locked(&md->lock);
	memset(bits->data, 0, bits_bytes(md));
	zoned_bits_changed(md, bits);
	zone->weight = 0;
	zone->chunk = zone->other = ZONED_UNMAPPED;
	zone->flags &= (uint8_t)~ZONE_STUCK;
	zoned_list_add(md, PENDING, bits->zone);
}

/* --- chunks in work ------------------------------------------------------------------------------ */

void zoned_chunk_put(struct zoned_md *md, struct zoned_chunk *c)
{
	pthread_mutex_lock(&md->lock);
	for (unsigned i = 0; i < 2; i++) {
		if (c->bits[i])
			zoned_bits_unref(md, c->bits[i]);
		c->bits[i] = NULL;
	}
	pthread_mutex_unlock(&md->lock);
}

/* Blocks beyond the write pointer are lost, as a failed write to a zone leaves them. */
static int ask_again(struct zoned_md *md, uint32_t z)
{
	struct zone now;
	int error = zoned_report_zone(md, z, &now);

	if (error)
		return error;
	pthread_mutex_lock(&md->lock);
	dm_log_warn("zoned: zone %" PRIu32 ": a write has failed; its write pointer is at block %" PRIu32, z, now.wp);
	md->zones[z].wp = now.wp;
	md->zones[z].flags =
	    (uint8_t)((md->zones[z].flags & ~ZONE_UNSURE) | (now.flags & (ZONE_READONLY | ZONE_OFFLINE)));
	pthread_mutex_unlock(&md->lock);
	return 0;
}

int zoned_chunk_get(struct zoned_md *md, uint32_t chunk, bool may_wait, struct zoned_chunk *c)
{
	bool unsure;
	int error = 0;

	*c = (struct zoned_chunk){.chunk = chunk};
	pthread_mutex_lock(&md->lock);
	c->zone[ZONED_DATA] = get_le32(md->map + (size_t)chunk * 8);
	c->zone[ZONED_BUFFER] = get_le32(md->map + (size_t)chunk * 8 + 4);
	unsure = c->zone[ZONED_DATA] != ZONED_UNMAPPED && md->zones[c->zone[ZONED_DATA]].flags & ZONE_UNSURE;
	pthread_mutex_unlock(&md->lock);
	if (unsure)
		error = may_wait ? ask_again(md, c->zone[ZONED_DATA]) : -EAGAIN;
	for (unsigned i = 0; i < 2 && !error; i++)
		if (c->zone[i] != ZONED_UNMAPPED)
			error = bits_get(md, c->zone[i], may_wait, &c->bits[i]);
	if (error)
		zoned_chunk_put(md, c);
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

uint32_t zoned_chunk_find(struct zoned_md *md, const struct zoned_chunk *c, uint32_t block, uint32_t max,
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
	zone = zone_of(md, c->zone[where]);
	if ((zone->flags & ZONE_OFFLINE) || (zone->flags & ZONE_SEQ && block + n > zone->wp)) {
		dm_log_err_limit("zoned: chunk %" PRIu32 ", blocks %" PRIu32 " to %" PRIu32 " are lost: zone %" PRIu32
				 " is %s %" PRIu32,
				 c->chunk, block, block + n - 1, c->zone[where],
				 zone->flags & ZONE_OFFLINE ? "offline; its write pointer was at block"
							    : "written only up to block",
				 zone->wp);
		*error = -EIO;
	}
	*dev = zone_dev(md, c->zone[where]);
	*sector = zone_sector(md, c->zone[where], block);
	return n;
}

/* --- writes; with the lock ---------------------------------------------------------------------------- */

static uint32_t take_random(struct zoned_md *md)
{
	uint32_t z = zoned_list_pop(md, FREE_CACHE);

	for (unsigned d = 0; d < md->g.n && z == ZONED_UNMAPPED; d++)
		z = zoned_list_pop(md, dev_list(d, FREE_RND));
	return z;
}

static uint32_t take_sequential(struct zoned_md *md)
{
	uint32_t z = ZONED_UNMAPPED;

	for (unsigned d = 0; d < md->g.n && z == ZONED_UNMAPPED; d++)
		z = zoned_list_pop(md, dev_list(d, FREE_SEQ));
	return z;
}

/* A zone for a chunk that has none, or a buffer for one that has. */
static int take_zone(struct zoned_md *md, struct zoned_chunk *c, int which, bool sequential)
{
	uint32_t z = sequential ? take_sequential(md) : ZONED_UNMAPPED;

	if (z == ZONED_UNMAPPED)
		z = take_random(md);
	if (z == ZONED_UNMAPPED)
		return -EAGAIN;
	c->zone[which] = z;
	c->bits[which] = zoned_bits_fresh(md, z);
	md->zones[z].weight = 0;
	zoned_set_map(md, c->chunk, c->zone[ZONED_DATA], c->zone[ZONED_BUFFER]);
	return 0;
}

/* Which of its zones a write goes to, taking one if need be; or a negative errno. */
static int choose(struct zoned_md *md, struct zoned_chunk *c, uint32_t block)
{
	uint32_t z = c->zone[ZONED_DATA];
	int error = 0;

	if (md->broken)
		return -EIO;
	if (z == ZONED_UNMAPPED) {
		error = take_zone(md, c, ZONED_DATA, block == 0);
		return error ? error : ZONED_DATA;
	}
	if (!(md->zones[z].flags & ZONE_SEQ))
		return md->zones[z].flags & (ZONE_READONLY | ZONE_OFFLINE) ? -EIO : ZONED_DATA;
	if (md->zones[z].wp == block && !(md->zones[z].flags & (ZONE_READONLY | ZONE_OFFLINE | ZONE_UNSURE)))
		return ZONED_DATA;
	if (c->zone[ZONED_BUFFER] == ZONED_UNMAPPED)
		error = take_zone(md, c, ZONED_BUFFER, false);
	return error ? error : ZONED_BUFFER;
}

int zoned_chunk_place(struct zoned_md *md, struct zoned_chunk *c, uint32_t block, uint32_t blocks, struct dm_dev **dev,
		      uint64_t *sector)
{
	int which;

	pthread_mutex_lock(&md->lock);
	which = choose(md, c, block);
	if (which >= 0) {
		*dev = zone_dev(md, c->zone[which]);
		*sector = zone_sector(md, c->zone[which], block);
	}
	pthread_mutex_unlock(&md->lock);
	return which;
}

/* Zones of which no block is valid any more go; a buffer alone becomes the data zone. */
static void drop_empty(struct zoned_md *md, struct zoned_chunk *c)
{
	uint32_t data = c->zone[ZONED_DATA], buffer = c->zone[ZONED_BUFFER];
	bool changed = false;

	if (buffer != ZONED_UNMAPPED && !md->zones[buffer].weight) {
		zoned_zone_free(md, c->bits[ZONED_BUFFER]);
		buffer = ZONED_UNMAPPED;
		changed = true;
	}
	if (data != ZONED_UNMAPPED && !md->zones[data].weight) {
		zoned_zone_free(md, c->bits[ZONED_DATA]);
		data = buffer;
		buffer = ZONED_UNMAPPED;
		changed = true;
	}
	if (changed) {
		zoned_set_map(md, c->chunk, data, buffer);
		return;
	}
	if (data != ZONED_UNMAPPED)
		zoned_list_add(md, zoned_map_list(md, data), data);
	if (buffer != ZONED_UNMAPPED)
		zoned_list_add(md, zoned_map_list(md, buffer), buffer);
}

void zoned_chunk_written(struct zoned_md *md, struct zoned_chunk *c, int which, uint32_t block, uint32_t blocks,
			 int error)
{
	struct zone *zone = &md->zones[c->zone[which]];

	pthread_mutex_lock(&md->lock);
	if (error) {
		if (zone->flags & ZONE_SEQ)
			zone->flags |= ZONE_UNSURE;
	} else {
		if (zone->flags & ZONE_SEQ)
			zone->wp = block + blocks;
		zone->flags &= (uint8_t)~ZONE_STUCK;
		zoned_validate(md, c->bits[which], block, blocks);
		if (c->bits[!which])
			invalidate(md, c->bits[!which], block, blocks);
	}
	drop_empty(md, c);
	pthread_mutex_unlock(&md->lock);
}

void zoned_chunk_forget(struct zoned_md *md, struct zoned_chunk *c, uint32_t block, uint32_t blocks)
{
	pthread_mutex_lock(&md->lock);
	for (unsigned i = 0; i < 2; i++)
		if (c->bits[i])
			invalidate(md, c->bits[i], block, blocks);
	drop_empty(md, c);
	pthread_mutex_unlock(&md->lock);
}

/* --- what is there ---------------------------------------------------------------------------------------- */

void zoned_md_super(const struct zoned_md *md, struct zoned_super *out)
{
	*out = md->super;
}

uint32_t zoned_md_chunks(const struct zoned_md *md)
{
	return md->super.chunks;
}

bool zoned_md_dirty(struct zoned_md *md)
{
	bool dirty;

	pthread_mutex_lock(&md->lock);
	dirty = md->dirty_n > md->bits_max / 2;
	pthread_mutex_unlock(&md->lock);
	return dirty;
}

uint64_t zoned_md_freed(struct zoned_md *md)
{
	uint64_t n;

	pthread_mutex_lock(&md->lock);
	n = md->freed;
	pthread_mutex_unlock(&md->lock);
	return n;
}

bool zoned_md_pending(struct zoned_md *md)
{
	bool pending;

	pthread_mutex_lock(&md->lock);
	pending = md->lists[PENDING].n || md->lists[COMMITTING].n;
	pthread_mutex_unlock(&md->lock);
	return pending;
}

bool zoned_md_mapped(struct zoned_md *md, uint32_t chunk)
{
	bool mapped;

	pthread_mutex_lock(&md->lock);
	mapped = get_le32(md->map + (size_t)chunk * 8) != ZONED_UNMAPPED;
	pthread_mutex_unlock(&md->lock);
	return mapped;
}

size_t zoned_md_bytes(struct zoned_md *md)
{
	size_t n;

	pthread_mutex_lock(&md->lock);
	n = sizeof *md + md->g.zones * sizeof *md->zones + (size_t)md->super.map_blocks * (ZONED_BLOCK + 1) +
	    md->bits_n * (sizeof(struct zoned_bits) + bits_bytes(md));
	pthread_mutex_unlock(&md->lock);
	return n;
}

/* Zones that are free, or will be with the next commit; with the lock. */
static unsigned count_free(struct zoned_md *md, unsigned dev, unsigned flags)
{
	unsigned n =
	    md->lists[flags & ZONE_CACHE ? FREE_CACHE : dev_list(dev, flags & ZONE_SEQ ? FREE_SEQ : FREE_RND)].n;

	for (unsigned list = PENDING; list <= COMMITTING; list++)
		for (uint32_t z = md->lists[list].head; z != ZONED_UNMAPPED; z = md->zones[z].next)
			n += (md->zones[z].flags & (ZONE_CACHE | ZONE_SEQ | ZONE_RESERVED)) == flags &&
			     (flags & ZONE_CACHE || md->zones[z].dev == dev);
	return n;
}

struct totals {
	unsigned cache, rnd, seq;
};

static struct totals count_zones(const struct zoned_md *md, unsigned dev)
{
	const struct zoned_dev *d = &md->g.devs[dev];
	struct totals t = {0};

	for (uint32_t z = d->first; z < d->first + d->zones; z++) {
		unsigned flags = md->zones[z].flags;

		if (flags & (ZONE_META | ZONE_OFFLINE | ZONE_RESERVED))
			continue;
		*(flags & ZONE_CACHE ? &t.cache : flags & ZONE_SEQ ? &t.seq : &t.rnd) += 1;
	}
	return t;
}

void zoned_md_status(struct zoned_md *md, GString *out)
{
	struct totals t;

	pthread_mutex_lock(&md->lock);
	t = count_zones(md, 0);
	g_string_append_printf(out, "%" PRIu32 " zones %u/%u cache", md->g.zones, count_free(md, 0, ZONE_CACHE),
			       t.cache);
	for (unsigned d = t.cache ? 1 : 0; d < md->g.n; d++) {
		t = count_zones(md, d);
		g_string_append_printf(out, " %u/%u random %u/%u sequential", count_free(md, d, 0), t.rnd,
				       count_free(md, d, ZONE_SEQ), t.seq);
	}
	pthread_mutex_unlock(&md->lock);
}

bool zoned_md_has_random(struct zoned_md *md)
{
	bool any;

	pthread_mutex_lock(&md->lock);
	any = md->lists[FREE_CACHE].n > 0;
	for (unsigned d = 0; d < md->g.n && !any; d++)
		any = md->lists[dev_list(d, FREE_RND)].n > 0;
	pthread_mutex_unlock(&md->lock);
	return any;
}

unsigned zoned_md_free_percent(struct zoned_md *md)
{
	unsigned free = 0, all = 0;

	pthread_mutex_lock(&md->lock);
	free = md->lists[FREE_CACHE].n;
	all = free + md->lists[MAP_CACHE].n;
	for (unsigned d = 0; d < md->g.n && !md->g.devs[0].regular; d++) {
		free += md->lists[dev_list(d, FREE_RND)].n;
		all += md->lists[dev_list(d, FREE_RND)].n + md->lists[dev_list(d, MAP_RND)].n;
	}
	pthread_mutex_unlock(&md->lock);
	return free <= 1 ? 0 : free * 100 / all;
}

bool zoned_md_reclaimable(struct zoned_md *md)
{
	unsigned n;

	pthread_mutex_lock(&md->lock);
	n = md->lists[MAP_CACHE].n;
	for (unsigned d = 0; d < md->g.n; d++)
		n += md->lists[dev_list(d, MAP_RND)].n;
	pthread_mutex_unlock(&md->lock);
	return n > 0;
}

/* The nth of a list that can be moved, counting *nth down. */
static uint32_t nth_chunk(const struct zoned_md *md, uint16_t list, bool buffered, unsigned *nth)
{
	for (uint32_t z = md->lists[list].head; z != ZONED_UNMAPPED; z = md->zones[z].next) {
		if (md->zones[z].flags & ZONE_STUCK || (buffered && md->zones[z].other == ZONED_UNMAPPED))
			continue;
		if (!(*nth)--)
			return md->zones[z].chunk;
	}
	return ZONED_UNMAPPED;
}

uint32_t zoned_md_victim(struct zoned_md *md, unsigned nth)
{
	uint32_t chunk = ZONED_UNMAPPED, free_seq;

	pthread_mutex_lock(&md->lock);
	free_seq = md->lists[RESERVED].n;
	for (unsigned d = 0; d < md->g.n; d++)
		free_seq += md->lists[dev_list(d, FREE_SEQ)].n;
	for (unsigned d = 0; d < md->g.n && chunk == ZONED_UNMAPPED && !free_seq; d++)
		chunk = nth_chunk(md, dev_list(d, MAP_SEQ), true, &nth);
	if (chunk == ZONED_UNMAPPED)
		chunk = nth_chunk(md, MAP_CACHE, false, &nth);
	for (unsigned d = 0; d < md->g.n && chunk == ZONED_UNMAPPED; d++)
		chunk = nth_chunk(md, dev_list(d, MAP_RND), false, &nth);
	pthread_mutex_unlock(&md->lock);
	return chunk;
}
