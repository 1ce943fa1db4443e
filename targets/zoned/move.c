/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Moving chunks from zones for random writes into sequential ones (dm-zoned.rst, the reclaim process).  Where valid
 * blocks do not follow on one another zeroes fill the gap; they are not valid.
 */
#include <inttypes.h>

#include "internal.h"

#define PIECE_BLOCKS 256u /* copied at a time */

struct copy {
	struct zoned_meta *meta;
	struct zoned_bits *from;
	uint32_t to; /* zone */
	uint8_t *buf;
	bool (*stop)(void *);
	void *context;
};

/* The next run of valid blocks from *block on, at most a piece long; 0: there is none. */
static uint32_t next_run(const struct zoned_meta *meta, const struct zoned_bits *bits, uint32_t *block)
{
	uint32_t b = *block, n = 0;

	while (b < meta->g.zone_blocks && !bit_is_set(bits->data, b))
		b++;
	while (b + n < meta->g.zone_blocks && n < PIECE_BLOCKS && bit_is_set(bits->data, b + n))
		n++;
	*block = b;
	return n;
}

static int write_blocks(struct copy *c, uint32_t block, uint32_t blocks)
{
	struct zoned_meta *meta = c->meta;
	struct zone *zone = &meta->zones[c->to];
	int error = dm_write_sync(zone_dev(meta, c->to), zone_sector(meta, c->to, block),
				  (uint64_t)blocks * ZONED_BLOCK_SECTORS, c->buf, DM_BACKGROUND);

	if (!(zone->flags & ZONE_SEQ))
		return error;
	pthread_mutex_lock(&meta->lock);
	if (error)
		zone->flags |= ZONE_UNSURE;
	else
		zone->wp = block + blocks;
	pthread_mutex_unlock(&meta->lock);
	return error;
}

/* Writes zeroes from the write pointer up to a block. */
static int fill_gap(struct copy *c, uint32_t block)
{
	int error = 0;

	if (c->meta->zones[c->to].wp < block)
		memset(c->buf, 0, MIN(block - c->meta->zones[c->to].wp, PIECE_BLOCKS) * (size_t)ZONED_BLOCK);
	while (!error && c->meta->zones[c->to].wp < block)
		error = write_blocks(c, c->meta->zones[c->to].wp, MIN(block - c->meta->zones[c->to].wp, PIECE_BLOCKS));
	return error;
}

static int copy_valid(struct copy *c)
{
	struct zoned_meta *meta = c->meta;
	uint32_t from = c->from->zone, block = 0, n;
	int error = 0;

	while (!error && (n = next_run(meta, c->from, &block))) {
		if (c->stop && c->stop(c->context))
			return -EINTR;
		if (meta->zones[from].flags & ZONE_SEQ && block + n > meta->zones[from].wp)
			return -EIO; /* they are lost: what is there are zeroes */
		if (meta->zones[c->to].flags & ZONE_SEQ)
			error = fill_gap(c, block);
		if (!error)
			error = dm_read_sync(zone_dev(meta, from), zone_sector(meta, from, block),
					     (uint64_t)n * ZONED_BLOCK_SECTORS, c->buf, DM_BACKGROUND);
		if (!error)
			error = write_blocks(c, block, n);
		block += n;
	}
	return error;
}

/* All blocks valid in one are so in the other, and the one has none; with the lock. */
static void hand_over(struct zoned_meta *meta, struct zoned_bits *from, struct zoned_bits *to)
{
	uint32_t block = 0, n;

	for (; (n = next_run(meta, from, &block)); block += n)
		zoned_validate(meta, to, block, n);
	zoned_zone_free(meta, from);
}

/* Chunks with a buffer: the buffer goes to the end of its zone if nothing of it is before that, else the zone to the
 * buffer. */
static int merge(struct copy *copy, struct zoned_chunk *c)
{
	struct zoned_meta *meta = copy->meta;
	uint32_t data = c->zone[ZONED_DATA], buffer = c->zone[ZONED_BUFFER], first = 0;
	bool append = !next_run(meta, c->bits[ZONED_BUFFER], &first) || first >= meta->zones[data].wp;
	int from = append && !(meta->zones[data].flags & ZONE_READONLY) ? ZONED_BUFFER : ZONED_DATA, error;

	copy->from = c->bits[from];
	copy->to = c->zone[!from];
	error = copy_valid(copy);
	if (error)
		return error;
	pthread_mutex_lock(&meta->lock);
	hand_over(meta, c->bits[from], c->bits[!from]);
	zoned_set_map(meta, c->chunk, from == ZONED_BUFFER ? data : buffer, ZONED_UNMAPPED);
	pthread_mutex_unlock(&meta->lock);
	return 0;
}

static uint32_t take_target(struct zoned_meta *meta, bool from_cache)
{
	uint32_t z = ZONED_UNMAPPED;

	for (unsigned d = 0; d < meta->g.n && z == ZONED_UNMAPPED; d++)
		z = zoned_list_pop(meta, dev_list(d, FREE_SEQ));
	if (z == ZONED_UNMAPPED)
		z = zoned_list_pop(meta, RESERVED);
	for (unsigned d = 0; d < meta->g.n && z == ZONED_UNMAPPED && from_cache; d++)
		z = zoned_list_pop(meta, dev_list(d, FREE_RND));
	return z;
}

static int relocate(struct copy *copy, struct zoned_chunk *c)
{
	struct zoned_meta *meta = copy->meta;
	struct zoned_bits *to;
	int error;

	copy->from = c->bits[ZONED_DATA];
	pthread_mutex_lock(&meta->lock);
	copy->to = take_target(meta, meta->zones[c->zone[ZONED_DATA]].flags & ZONE_CACHE);
	to = copy->to == ZONED_UNMAPPED ? NULL : zoned_bits_fresh(meta, copy->to);
	pthread_mutex_unlock(&meta->lock);
	if (!to)
		return -ENOSPC;
	error = copy_valid(copy);
	pthread_mutex_lock(&meta->lock);
	if (error) {
		zoned_zone_free(meta, to);
	} else {
		hand_over(meta, c->bits[ZONED_DATA], to);
		zoned_set_map(meta, c->chunk, copy->to, ZONED_UNMAPPED);
	}
	zoned_bits_unref(meta, to);
	pthread_mutex_unlock(&meta->lock);
	return error;
}

/* A chunk that cannot be moved is not tried again before something is written to it. */
static void give_up(struct zoned_meta *meta, const struct zoned_chunk *c)
{
	pthread_mutex_lock(&meta->lock);
	for (unsigned i = 0; i < 2; i++)
		if (c->zone[i] != ZONED_UNMAPPED)
			meta->zones[c->zone[i]].flags |= ZONE_STUCK;
	pthread_mutex_unlock(&meta->lock);
}

int zoned_meta_move(struct zoned_meta *meta, struct zoned_chunk *c, bool (*stop)(void *), void *context)
{
	g_autofree uint8_t *buf = g_malloc(PIECE_BLOCKS * ZONED_BLOCK);
	struct copy copy = {.meta = meta, .buf = buf, .stop = stop, .context = context};
	int error = 0;

	if (c->zone[ZONED_DATA] == ZONED_UNMAPPED)
		return 0;
	if (c->zone[ZONED_BUFFER] != ZONED_UNMAPPED)
		error = merge(&copy, c);
	else if (!(meta->zones[c->zone[ZONED_DATA]].flags & ZONE_SEQ))
		error = relocate(&copy, c);
	if (error && error != -EINTR && error != -ENOSPC) {
		dm_log_err("zoned: chunk %" PRIu32 " cannot be moved: %s", c->chunk, g_strerror(-error));
		give_up(meta, c);
	}
	return error;
}
