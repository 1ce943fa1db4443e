/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * smq, the stochastic multiqueue (cache-policies.rst).
 *
 * Resident blocks are in two multiqueues (levels.h), the clean and the dirty ones.  A hit raises a block by a level.
 * What leaves the cache is the oldest of the lowest level.  The hint is the level.
 *
 * Origin blocks that are not in the cache are counted in areas of up to 8 blocks, in a third multiqueue, the hotspot
 * queue, of half as many entries as there are cache blocks.  A miss in an area of a high level makes a wish: that this
 * block be promoted.  How high depends: while blocks are free a few misses are enough.  When the cache is full only the
 * hottest areas will do, the fewer the better or the worse the cache does: where nearly all are hits there is little to
 * gain, and where nearly all are misses there is no hot part.  And then the block must have been missed before, while
 * its area was hot, within FORGET_PERIODS: not all of an area need be hot, and a promotion drives another block out. In
 * a period no more than a small part of a full cache is replaced: between two blocks a cache block holds nothing for a
 * while.  Where many are misses this part is much larger, and they raise areas faster.
 *
 * A miss counts only if it is a new visit to its area: what goes through the origin from begin to end misses each block
 * many times in a row, and then the next.  The ends of the last STREAMS streams are remembered.  A miss of the next
 * block, in the same area, goes on with a stream, and so does one of the same block, as often as it takes to go through
 * a block, if it comes within STREAM_GAP misses.
 *
 * About 22 bytes a cache block.
 */
#include <errno.h>

#include "large.h"
#include "levels.h"
#include "policy.h"

#include <dmfs/le.h>
#include <dmfs/log.h>
#include <dmfs/rounding.h>

#define STREAMS 32u
#define STREAM_GAP 16u
#define STREAM_SECTORS 8u /* the least a stream is thought to go on by */
#define MAX_WISHES 256u
#define AREA_BLOCKS 8u /* a bit each of area_missed */
#define MIN_AREAS 1024u
#define TICKS 5u /* of a period, after which thresholds are looked at */
#define FORGET_PERIODS 4u
#define REPLACE_PART 16u /* of a full cache, in a period, where all are misses; LEAST_PART where none is */
#define LEAST_PART 512u
#define BUSY_WRITEBACKS 4u /* a tick */
#define BALANCE_STEPS 4096u
#define NEW_LEVEL (LEVELS / 2)
#define FREE_LEVEL 2u	/* areas of this level are good enough for free blocks */
#define MOST_LEVELS 16u /* the highest ones that may be good enough for a full cache */
#define MOST_RAISE 8u	/* levels, by a miss, where all are misses */
#define SLACK 8u	/* levels that a dirty block must be below a clean one to leave first */

/* In the two high bits of a block's level byte; a free block's link leads to the next free one. */
enum state { FREE = 0, PROMISED = 1u << 6, CLEAN = 2u << 6, DIRTY = 3u << 6, STATE = 3u << 6 };

struct stream {
	uint64_t at, last; /* the block, and the number of the miss */
	uint32_t touches;  /* of this block in a row; 0: there is no stream here */
};

struct smq {
	uint32_t cblocks;
	struct level_link *links;
	uint8_t *level;
	uint64_t *busy; /* a bit a block: in the work of somebody, and in no queue */
	struct levels clean, dirty;
	uint32_t free, nr_free;

	struct levels hot;
	uint32_t areas, used_areas, area_shift, bucket_mask;
	struct level_link *area_links;
	uint8_t *area_level, *area_missed; /* which of its blocks were missed while it was hot */
	uint32_t *area, *area_next, *buckets;

	GQueue wishes;		       /* of origin blocks */
	GHashTable *wanted;	       /* the same, and those being promoted */
	uint32_t demoting, writebacks; /* writebacks: that may yet begin in this tick beside other I/O */

	struct stream streams[STREAMS];
	unsigned next_stream;
	uint32_t tick, stream_touches;
	uint64_t hits, misses; /* of this period, each origin block once a stream */
	uint64_t all_misses;
	unsigned promote_level, raise_by;
	uint32_t replacements; /* that this period may yet have */
};

/* --- making one ------------------------------------------------------------------------- */

static void smq_destroy(void *policy)
{
	struct smq *s = policy;
	uint64_t *oblock;

	while ((oblock = g_queue_pop_head(&s->wishes)))
		g_free(oblock);
	if (s->wanted)
		g_hash_table_destroy(s->wanted);
	g_free(s->links);
	g_free(s->level);
	g_free(s->busy);
	g_free(s->area_links);
	g_free(s->area_level);
	g_free(s->area_missed);
	g_free(s->area);
	g_free(s->area_next);
	g_free(s->buckets);
	g_free(s);
}

/* Areas are as small as makes the hotspot queue see the whole origin, if it can. */
static void choose_areas(struct smq *s, uint64_t oblocks)
{
	uint64_t buckets;

	s->areas = MAX(s->cblocks / 2, MIN_AREAS);
	while (1u << s->area_shift < AREA_BLOCKS && (uint64_t)s->areas << s->area_shift < oblocks)
		s->area_shift++;
	buckets = UINT64_C(1) << dm_log2(s->areas);
	s->bucket_mask = (uint32_t)(buckets - 1);
}

static void *smq_create(uint32_t cblocks, uint64_t oblocks, uint32_t block_sectors)
{
	struct smq *s = g_new0(struct smq, 1);

	s->cblocks = cblocks;
	s->stream_touches = block_sectors / STREAM_SECTORS;
	choose_areas(s, oblocks);
	g_queue_init(&s->wishes);
	s->links = large_try_new0((size_t)cblocks + 1, sizeof *s->links);
	s->level = large_try_new0((size_t)cblocks + 1, 1);
	s->busy = large_try_new0(cblocks / 64 + 1, 8);
	s->area_links = large_try_new0(s->areas, sizeof *s->area_links);
	s->area_level = large_try_new0(s->areas, 1);
	s->area_missed = large_try_new0(s->areas, 1);
	s->area = large_try_new0(s->areas, 4);
	s->area_next = large_try_new0(s->areas, 4);
	s->buckets = large_try_new0((size_t)s->bucket_mask + 1, 4);
	if (!s->links || !s->level || !s->busy || !s->area_links || !s->area_level || !s->area_missed || !s->area ||
	    !s->area_next || !s->buckets) {
		smq_destroy(s);
		return NULL;
	}
	memset(s->buckets, 0xff, ((size_t)s->bucket_mask + 1) * 4);
	s->wanted = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
	levels_init(&s->clean, s->links, s->level);
	levels_init(&s->dirty, s->links, s->level);
	levels_init(&s->hot, s->area_links, s->area_level);
	for (uint32_t i = 0; i < cblocks; i++)
		s->links[i].newer = i + 1 < cblocks ? i + 1 : LEVELS_NONE;
	s->free = cblocks ? 0 : LEVELS_NONE;
	s->nr_free = cblocks;
	s->promote_level = LEVELS - MOST_LEVELS / 2;
	s->raise_by = 2;
	return s;
}

static void smq_print(void *policy, GString *out)
{
	g_string_append_c(out, '0');
}

/* --- cache blocks -------------------------------------------------------------------------- */

static enum state state_of(const struct smq *s, uint32_t cblock)
{
	return s->level[cblock] & STATE;
}

static void set_state(struct smq *s, uint32_t cblock, enum state state)
{
	s->level[cblock] = (uint8_t)((s->level[cblock] & ~STATE) | state);
}

static bool is_busy(const struct smq *s, uint32_t cblock)
{
	return s->busy[cblock / 64] >> cblock % 64 & 1;
}

static struct levels *queue_of(struct smq *s, uint32_t cblock)
{
	return state_of(s, cblock) == DIRTY ? &s->dirty : &s->clean;
}

static void set_busy(struct smq *s, uint32_t cblock, bool busy)
{
	s->busy[cblock / 64] ^= UINT64_C(1) << cblock % 64;
	if (busy)
		levels_remove(queue_of(s, cblock), cblock);
	else
		levels_add(queue_of(s, cblock), cblock, s->level[cblock] & (LEVELS - 1));
}

static uint32_t take(struct smq *s)
{
	uint32_t cblock = s->free;

	s->free = s->links[cblock].newer;
	s->nr_free--;
	set_state(s, cblock, PROMISED);
	return cblock;
}

static void make_free(struct smq *s, uint32_t cblock)
{
	set_state(s, cblock, FREE);
	s->links[cblock].newer = s->free;
	s->free = cblock;
	s->nr_free++;
}

static void smq_load(void *policy, uint32_t cblock, bool dirty, const void *hint)
{
	struct smq *s = policy;
	/* Without a hint any level is as good as another, but not one for all. */
	uint32_t level = hint ? MIN(get_le32(hint), LEVELS - 1) : cblock * UINT32_C(2654435769) >> 26;

	set_state(s, cblock, dirty ? DIRTY : CLEAN);
	levels_add(queue_of(s, cblock), cblock, level);
}

/* After the loading: what is free is put on the list again, for load() takes blocks out of its midst. */
static void collect_free(struct smq *s)
{
	uint32_t *link = &s->free;

	s->nr_free = 0;
	for (uint32_t i = 0; i < s->cblocks; i++) {
		if (state_of(s, i) != FREE)
			continue;
		*link = i;
		link = &s->links[i].newer;
		s->nr_free++;
	}
	*link = LEVELS_NONE;
}

static void smq_hit(void *policy, uint32_t cblock, bool write)
{
	struct smq *s = policy;

	s->hits++;
	if (state_of(s, cblock) >= CLEAN && !is_busy(s, cblock))
		levels_raise(queue_of(s, cblock), cblock, 1);
}

static void smq_ahead(void *policy, uint32_t cblock)
{
	struct smq *s = policy;

	__builtin_prefetch(&s->level[cblock], 1);
	__builtin_prefetch(&s->links[cblock], 1);
}

static void smq_dirty(void *policy, uint32_t cblock, bool dirty)
{
	struct smq *s = policy;
	enum state state = dirty ? DIRTY : CLEAN;

	if (state_of(s, cblock) < CLEAN || state_of(s, cblock) == state)
		return;
	if (is_busy(s, cblock)) {
		set_state(s, cblock, state);
		return;
	}
	levels_remove(queue_of(s, cblock), cblock);
	set_state(s, cblock, state);
	levels_add(queue_of(s, cblock), cblock, s->level[cblock] & (LEVELS - 1));
}

static void smq_removed(void *policy, uint32_t cblock)
{
	struct smq *s = policy;

	if (state_of(s, cblock) < CLEAN)
		return;
	if (is_busy(s, cblock))
		s->busy[cblock / 64] ^= UINT64_C(1) << cblock % 64;
	else
		levels_remove(queue_of(s, cblock), cblock);
	make_free(s, cblock);
}

static void smq_hint(void *policy, uint32_t cblock, void *out)
{
	struct smq *s = policy;

	put_le32(out, state_of(s, cblock) < CLEAN ? 0 : s->level[cblock] & (LEVELS - 1));
}

/* --- origin blocks ------------------------------------------------------------------------------ */

static uint32_t *bucket_of(struct smq *s, uint32_t area)
{
	return &s->buckets[area * UINT64_C(0x9e3779b97f4a7c15) >> 30 & s->bucket_mask];
}

/* The entry of an area, which is made if there is none: in place of the coldest one, if need be. */
static uint32_t entry_of(struct smq *s, uint64_t oblock, bool *fresh)
{
	uint32_t area = (uint32_t)(oblock >> s->area_shift); /* of areas 2^32 apart one is as good as the other */
	uint32_t *bucket = bucket_of(s, area), e = *bucket;

	while (e != LEVELS_NONE && s->area[e] != area)
		e = s->area_next[e];
	*fresh = e == LEVELS_NONE;
	if (!*fresh)
		return e;
	if (s->used_areas < s->areas) {
		e = s->used_areas++;
	} else {
		uint32_t *link;

		e = levels_lowest(&s->hot, LEVELS);
		levels_remove(&s->hot, e);
		for (link = bucket_of(s, s->area[e]); *link != e; link = &s->area_next[*link])
			;
		*link = s->area_next[e];
	}
	s->area[e] = area;
	s->area_missed[e] = 0;
	s->area_next[e] = *bucket;
	*bucket = e;
	levels_add(&s->hot, e, 0);
	return e;
}

/* Whether a miss is within a stream's visit to an area, or, beyond what going through its block takes, one more use. */
static bool goes_on(struct smq *s, struct stream *stream, uint64_t oblock)
{
	bool same = stream->at == oblock, same_area = stream->at >> s->area_shift == oblock >> s->area_shift;
	bool near = s->all_misses - stream->last <= STREAM_GAP;

	stream->last = s->all_misses;
	if (same && near)
		return ++stream->touches <= s->stream_touches;
	stream->at = oblock;
	stream->touches = 1;
	return near && same_area;
}

/* Whether a miss is a new visit to its area. */
static bool visits(struct smq *s, uint64_t oblock)
{
	for (unsigned i = 0; i < STREAMS; i++) {
		struct stream *stream = &s->streams[i];

		if (stream->touches && (oblock == stream->at || oblock == stream->at + 1))
			return !goes_on(s, stream, oblock);
	}
	s->streams[s->next_stream] = (struct stream){oblock, s->all_misses, 1};
	s->next_stream = (s->next_stream + 1) % STREAMS;
	return true;
}

static bool wish(struct smq *s, uint64_t oblock)
{
	if (g_queue_get_length(&s->wishes) >= MAX_WISHES || g_hash_table_contains(s->wanted, &oblock))
		return false;
	g_queue_push_tail(&s->wishes, g_memdup2(&oblock, sizeof oblock));
	g_hash_table_add(s->wanted, g_memdup2(&oblock, sizeof oblock));
	return true;
}

/* Whether a block of a hot area has been missed before; the next time is a first one again. */
static bool missed_before(struct smq *s, uint32_t e, uint64_t oblock)
{
	uint8_t bit = (uint8_t)(1u << (oblock & ((1u << s->area_shift) - 1)));

	s->area_missed[e] ^= bit;
	return !(s->area_missed[e] & bit);
}

static bool smq_miss(void *policy, uint64_t oblock, bool write)
{
	struct smq *s = policy;
	bool fresh, visit = visits(s, oblock), room = s->nr_free > g_queue_get_length(&s->wishes);
	uint32_t e = entry_of(s, oblock, &fresh);

	s->misses++;
	s->all_misses++;
	if (visit && !fresh)
		levels_raise(&s->hot, e, s->raise_by);
	if (levels_of(&s->hot, e) < (room ? FREE_LEVEL : s->promote_level))
		return false;
	if (room)
		return wish(s, oblock);
	if (!s->replacements || !visit || !missed_before(s, e, oblock) || !wish(s, oblock))
		return false;
	s->replacements--;
	return true;
}

static bool smq_take_free(void *policy, uint32_t *cblock)
{
	struct smq *s = policy;

	if (!s->nr_free)
		return false;
	*cblock = take(s);
	return true;
}

/* --- work ------------------------------------------------------------------------------------------ */

static bool promote(struct smq *s, struct cache_work *out)
{
	g_autofree uint64_t *oblock = NULL;

	if (!s->nr_free || !(oblock = g_queue_pop_head(&s->wishes)))
		return false;
	*out = (struct cache_work){.op = CACHE_PROMOTE, .cblock = take(s), .oblock = *oblock};
	return true;
}

/* One for each wish. */
static bool demote(struct smq *s, struct cache_work *out)
{
	uint32_t clean, dirty;

	if (s->demoting + s->nr_free >= g_queue_get_length(&s->wishes))
		return false;
	clean = levels_lowest(&s->clean, LEVELS);
	dirty = levels_lowest(&s->dirty, LEVELS);
	if (clean == LEVELS_NONE ||
	    (dirty != LEVELS_NONE && levels_of(&s->dirty, dirty) + SLACK < levels_of(&s->clean, clean)))
		clean = dirty;
	if (clean == LEVELS_NONE)
		return false;
	set_busy(s, clean, true);
	s->demoting++;
	*out = (struct cache_work){.op = CACHE_DEMOTE, .cblock = clean};
	return true;
}

/* When there is time; and slowly when few clean blocks are left, so that not every demotion has to write. */
static bool write_back(struct smq *s, enum cache_room room, struct cache_work *out)
{
	uint32_t cblock = levels_lowest(&s->dirty, LEVELS);

	if (cblock == LEVELS_NONE || room == CACHE_ROOM_NONE)
		return false;
	if (room == CACHE_ROOM_BUSY && (s->dirty.total <= s->cblocks / 4 * 3 || !s->writebacks))
		return false;
	if (room == CACHE_ROOM_BUSY)
		s->writebacks--;
	set_busy(s, cblock, true);
	*out = (struct cache_work){.op = CACHE_WRITEBACK, .cblock = cblock};
	return true;
}

static bool smq_work(void *policy, enum cache_room room, struct cache_work *out)
{
	struct smq *s = policy;

	return promote(s, out) || demote(s, out) || write_back(s, room, out);
}

static void smq_done(void *policy, const struct cache_work *work, bool success)
{
	struct smq *s = policy;

	if (work->op == CACHE_PROMOTE) {
		g_hash_table_remove(s->wanted, &work->oblock);
		if (success) {
			set_state(s, work->cblock, CLEAN);
			levels_add(&s->clean, work->cblock, NEW_LEVEL);
		} else {
			make_free(s, work->cblock);
		}
		return;
	}
	if (work->op == CACHE_DEMOTE)
		s->demoting--;
	if (!is_busy(s, work->cblock)) /* it was removed meanwhile */
		return;
	set_busy(s, work->cblock, false);
	if (work->op == CACHE_DEMOTE && success)
		smq_removed(s, work->cblock);
}

/* --- time ---------------------------------------------------------------------------------------------- */

static void look_at_performance(struct smq *s)
{
	uint64_t all = s->hits + s->misses, less = MIN(MIN(4 * s->hits, 2 * s->misses), all);

	if (all) { /* most levels where a quarter to a half are hits, one where all are or none is */
		s->promote_level = LEVELS - 1 - (unsigned)(less * (MOST_LEVELS - 1) / all);
		s->raise_by = 1 + (unsigned)(s->misses * (MOST_RAISE - 1) / all);
	}
	s->replacements = s->cblocks / LEAST_PART + 1;
	if (all)
		s->replacements += (uint32_t)(s->cblocks / REPLACE_PART * s->misses / all * s->misses / all);
	s->hits = s->misses = 0;
}

static void smq_tick(void *policy)
{
	struct smq *s = policy;

	s->writebacks = BUSY_WRITEBACKS;
	levels_balance(&s->clean, BALANCE_STEPS);
	levels_balance(&s->dirty, BALANCE_STEPS);
	if (s->hot.total >= 2 * LEVELS)
		levels_balance(&s->hot, BALANCE_STEPS);
	if (++s->tick % TICKS)
		return;
	look_at_performance(s);
	if (s->tick % (TICKS * FORGET_PERIODS) == 0)
		memset(s->area_missed, 0, s->areas);
}

static void smq_loaded(void *policy)
{
	collect_free(policy);
}

/* --- mq, an old name: its tunables are taken and mean nothing ----------------------------------------------- */

static const char *const mq_words[] = {"random_threshold", "sequential_threshold", "discard_promote_adjustment",
				       "read_promote_adjustment", "write_promote_adjustment"};

static int mq_set(void *policy, const char *key, const char *value)
{
	uint64_t number;
	char *end;

	number = g_ascii_strtoull(value, &end, 10);
	if (!g_ascii_isdigit(*value) || *end || number > UINT32_MAX)
		return -EINVAL;
	for (unsigned i = 0; i < G_N_ELEMENTS(mq_words); i++)
		if (!g_ascii_strcasecmp(key, mq_words[i])) {
			dm_log_warn("cache: tunable '%s' no longer has any effect", mq_words[i]);
			return 0;
		}
	return -EINVAL;
}

static void mq_print(void *policy, GString *out)
{
	g_string_append(out, "10");
	for (unsigned i = 0; i < G_N_ELEMENTS(mq_words); i++)
		g_string_append_printf(out, " %s 0", mq_words[i]);
}

#define SMQ(type_name, type_set, type_print)                                                                           \
	{                                                                                                              \
		.name = type_name, .set = type_set, .version = {2, 0, 0}, .hint_bytes = 4, .create = smq_create,       \
		.destroy = smq_destroy, .print = type_print, .load = smq_load, .loaded = smq_loaded, .hit = smq_hit,   \
		.ahead = smq_ahead,                                                                                    \
		.miss = smq_miss, .take_free = smq_take_free, .dirty = smq_dirty, .work = smq_work, .done = smq_done,  \
		.removed = smq_removed, .hint = smq_hint, .tick = smq_tick,                                            \
	}

const struct cache_policy_type cache_policy_smq = SMQ("smq", NULL, smq_print);
const struct cache_policy_type cache_policy_mq = SMQ("mq", mq_set, mq_print);
