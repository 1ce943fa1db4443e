/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What each sector may hold.
 *
 * A sector's history is the ops that wrote it, by begin.  At any moment some
 * of them are settled: durable before a power loss, or answered before a
 * read.  The newest settled one and all that it has not surely replaced may be seen: every
 * op that has begun, except those answered before a settled one began.  So the order of
 * ops that ran at the same time is left open, and a failed op (never answered) may have happened or not.
 *
 * A discard lets a sector be anything it was before, or zeroes.
 *
 * A sector that was written:
 *
 *   offset  bytes
 *        0      8  magic
 *        8      4  run
 *       12      4  op
 *       16      4  volume
 *       20      4  zero
 *       24      8  sector
 *       32    472  noise that depends on all that
 *      504      8  hash of the bytes before
 */
#include "internal.h"

#define MAGIC 0x6c616273656374ull

struct sector {
	uint64_t magic;
	uint32_t run, op, volume, zero;
	uint64_t sector;
	uint64_t noise[59];
	uint64_t hash;
};

_Static_assert(sizeof(struct sector) == DM_SECTOR_SIZE, "a sector");

static uint64_t hash_words(const uint64_t *words, unsigned n)
{
	uint64_t h = 0x9e3779b97f4a7c15;

	for (unsigned i = 0; i < n; i++) {
		h = (h ^ words[i]) * 0xff51afd7ed558ccd;
		h ^= h >> 32;
	}
	return h;
}

uint64_t hash_sector(const uint8_t *data)
{
	uint64_t words[DM_SECTOR_SIZE / 8], h;

	memcpy(words, data, sizeof words);
	h = hash_words(words, G_N_ELEMENTS(words));
	return h ? h : 1;
}

void stamp(uint8_t *data, uint32_t run, unsigned volume, uint64_t sector, unsigned op)
{
	struct sector s = {.magic = MAGIC, .run = run, .op = op, .volume = volume, .sector = sector};
	uint64_t x = hash_words((const uint64_t *)&s, 4);

	for (unsigned i = 0; i < G_N_ELEMENTS(s.noise); i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		s.noise[i] = x;
	}
	s.hash = hash_words((const uint64_t *)&s, sizeof s / 8 - 1);
	memcpy(data, &s, sizeof s);
}

/* --- volumes and ops ------------------------------------------------------------------- */

static void volume_free(gpointer p)
{
	struct volume *v = p;

	for (uint64_t i = 0; i < v->sectors; i++)
		if (v->history[i])
			g_array_free(v->history[i], TRUE);
	g_free(v->history);
	g_array_free(v->undurable, TRUE);
	g_free(v->expect);
	g_free(v->lost);
	g_free(v->name);
	g_free(v);
}

void model_init(struct model *m, uint32_t run)
{
	pthread_mutex_init(&m->lock, NULL);
	m->run = run;
	m->volumes = g_ptr_array_new_with_free_func(volume_free);
	m->ops = g_ptr_array_new_with_free_func(g_free);
	m->steps = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, g_free);
}

void model_clear(struct model *m)
{
	g_ptr_array_free(m->volumes, TRUE);
	g_ptr_array_free(m->ops, TRUE);
	g_hash_table_destroy(m->steps);
	pthread_mutex_destroy(&m->lock);
}

struct volume *model_volume(struct model *m, const char *name)
{
	for (unsigned i = 0; i < m->volumes->len; i++) {
		struct volume *v = m->volumes->pdata[i];

		if (!strcmp(v->name, name))
			return v;
	}
	return NULL;
}

struct volume *model_add_volume(struct model *m, const char *name, uint64_t sectors, enum lab_initial initial)
{
	struct volume *v = g_new0(struct volume, 1);

	v->name = g_strdup(name);
	v->sectors = sectors;
	v->initial = initial;
	v->history = g_new0(GArray *, sectors);
	v->undurable = g_array_new(FALSE, FALSE, sizeof(unsigned));
	g_ptr_array_add(m->volumes, v);
	return v;
}

void model_copy_volume(struct model *m, struct volume *to, const struct volume *from)
{
	to->initial = from->initial;
	for (uint64_t i = 0; i < to->sectors; i++) {
		if (to->history[i])
			g_array_free(to->history[i], TRUE);
		to->history[i] = i < from->sectors && from->history[i] ? g_array_copy(from->history[i]) : NULL;
	}
}

unsigned model_begin(struct model *m, struct volume *v, enum dm_op op, uint64_t sector, uint64_t sectors,
		     uint64_t mark)
{
	struct op *o = g_new(struct op, 1);
	unsigned id = m->ops->len, volume = 0;

	while (m->volumes->pdata[volume] != v)
		volume++;
	*o = (struct op){op, volume, sector, sectors, mark, NEVER, NEVER};
	g_ptr_array_add(m->ops, o);
	for (uint64_t i = sector; i < sector + sectors; i++) {
		if (!v->history[i])
			v->history[i] = g_array_new(FALSE, FALSE, sizeof(unsigned));
		g_array_append_val(v->history[i], id);
	}
	g_array_append_val(v->undurable, id);
	return id;
}

/* --- looking at a sector ------------------------------------------------------------------ */

static bool is_zero(const uint8_t *data)
{
	return !data[0] && !memcmp(data, data + 1, DM_SECTOR_SIZE - 1);
}

/* The op whose stamp this is; UINT_MAX if it is no whole stamp of this run. */
static unsigned read_stamp(const struct model *m, const uint8_t *data, struct sector *s)
{
	memcpy(s, data, sizeof *s);
	if (s->magic != MAGIC || s->run != m->run || s->hash != hash_words((const uint64_t *)s, sizeof *s / 8 - 1) ||
	    s->op >= m->ops->len)
		return UINT_MAX;
	return s->op;
}

static const struct op *op_at(const struct model *m, const GArray *history, unsigned i)
{
	return m->ops->pdata[g_array_index(history, unsigned, i)];
}

/* The latest begin of a settled op; 0: none is. */
static uint64_t find_floor(const struct model *m, const GArray *history, bool settled, uint64_t time)
{
	uint64_t floor = 0;

	for (unsigned i = 0; i < history->len; i++) {
		const struct op *o = op_at(m, history, i);

		if ((settled ? o->end : o->durable) <= time)
			floor = MAX(floor, o->begin);
	}
	return floor;
}

static bool is_allowed(const struct op *o, uint64_t floor, uint64_t until)
{
	return o->begin <= until && (o->end == NEVER || o->end >= floor);
}

static char *describe(const struct model *m, const struct volume *v, uint64_t sector, const uint8_t *data)
{
	struct sector s;
	unsigned id = read_stamp(m, data, &s);
	const struct op *o;

	if (is_zero(data))
		return g_strdup("zeroes");
	if (id == UINT_MAX) {
		bool begun = s.magic == MAGIC;

		return g_strdup_printf("a mixture or garbage (%s)",
				       begun ? "it begins like a sector that was written" : "no begin of a sector");
	}
	o = m->ops->pdata[id];
	if (o->volume != s.volume || s.sector != sector)
		return g_strdup_printf("what belongs to %s sector %" PRIu64,
				       ((struct volume *)m->volumes->pdata[o->volume])->name, s.sector);
	return g_strdup_printf("write %u to %s (began at %" PRIu64 ", answered at %" PRIi64 ", durable at %" PRIi64 ")",
			       id, ((struct volume *)m->volumes->pdata[o->volume])->name, o->begin, (int64_t)o->end,
			       (int64_t)o->durable);
}

/* Whether anything in the history allows what is seen. */
static bool search(const struct model *m, const struct volume *v, const GArray *history, uint64_t floor,
		   uint64_t until, bool zero, unsigned id, bool foreign)
{
	uint64_t discarded = 0; /* begin of the last allowed discard: all before it may be seen */

	for (unsigned i = 0; history && i < history->len; i++) {
		const struct op *o = op_at(m, history, i);

		if (!is_allowed(o, floor, until))
			continue;
		if (o->op != DM_WRITE && zero)
			return true;
		if (o->op == DM_DISCARD)
			discarded = o->begin;
	}
	for (unsigned i = 0; history && id != UINT_MAX && !foreign && i < history->len; i++) {
		const struct op *o = op_at(m, history, i);

		if (g_array_index(history, unsigned, i) == id && o->op == DM_WRITE &&
		    (is_allowed(o, floor, until) || o->begin < discarded))
			return true;
	}
	if (floor && !discarded)
		return false;
	return zero || (v->initial == LAB_ANYTHING && id == UINT_MAX);
}

static const char *what_else(const struct model *m, const GArray *history, uint64_t floor, GString *out)
{
	for (unsigned i = 0; history && i < history->len; i++) {
		const struct op *o = op_at(m, history, i);

		if (o->begin == floor)
			g_string_append_printf(out, "op %u (%s, began at %" PRIu64 ")",
					       g_array_index(history, unsigned, i),
					       o->op == DM_WRITE ? "write" : o->op == DM_DISCARD ? "discard" : "zeroes",
					       floor);
	}
	return out->len ? out->str : "its first content";
}

char *model_check(struct model *m, const struct volume *v, uint64_t sector, const uint8_t *data, bool settled,
		  uint64_t time, uint64_t until)
{
	const GArray *history = v->history[sector];
	uint64_t floor = history ? find_floor(m, history, settled, time) : 0;
	bool zero = is_zero(data), foreign;
	g_autoptr(GString) least = NULL;
	g_autofree char *seen = NULL;
	struct sector s;
	unsigned id;

	if (zero && search(m, v, history, floor, until, true, UINT_MAX, false))
		return NULL;
	id = zero ? UINT_MAX : read_stamp(m, data, &s);
	foreign = id != UINT_MAX && (s.sector != sector || ((struct op *)m->ops->pdata[id])->volume != s.volume);
	if (!zero && search(m, v, history, floor, until, false, id, foreign))
		return NULL;
	seen = describe(m, v, sector, data);
	least = g_string_new(NULL);
	return g_strdup_printf("%s sector %" PRIu64 ": holds %s; the oldest it may hold is %s%s", v->name, sector, seen,
			       what_else(m, history, floor, least), settled ? " (read while running)" : "");
}
