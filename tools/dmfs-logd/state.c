/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a log knows (state.h). */
#include <string.h>

#include <dmfs/dirty_log.h>

#include "state.h"

#define WINDOW 64u /* regions in a row that one client copies, so that two do not take turns */

static void *key(uint64_t region)
{
	return GSIZE_TO_POINTER(region);
}

/* --- the whole ------------------------------------------------------------------------ */

struct log_state *log_state_new(uint64_t regions, bool in_sync)
{
	size_t bytes = (regions + 63) / 64 * 8;
	uint8_t *bits = g_try_malloc(bytes + 1);
	struct log_state *s;

	if (!bits)
		return NULL;
	memset(bits, in_sync ? 0xff : 0, bytes);
	s = g_new0(struct log_state, 1);
	s->regions = regions;
	s->sync_bits = bits;
	s->in_sync = in_sync ? regions : 0;
	s->holders = g_hash_table_new(NULL, NULL);
	s->clients = g_ptr_array_new();
	return s;
}

void log_state_free(struct log_state *s)
{
	if (!s)
		return;
	g_hash_table_destroy(s->holders);
	g_ptr_array_free(s->clients, TRUE);
	g_free(s->sync_bits);
	g_free(s);
}

bool log_in_sync(const struct log_state *s, uint64_t region)
{
	return dm_region_bit_test(s->sync_bits, region);
}

static unsigned holders(const struct log_state *s, uint64_t region)
{
	return GPOINTER_TO_UINT(g_hash_table_lookup(s->holders, key(region)));
}

bool log_is_clean(const struct log_state *s, uint64_t region)
{
	return log_in_sync(s, region) && !holders(s, region);
}

static void tell(struct log_state *s, uint64_t region)
{
	if (s->changed)
		s->changed(s->context, region, log_is_clean(s, region));
}

static void set_sync(struct log_state *s, uint64_t region, bool in_sync)
{
	if (log_in_sync(s, region) == in_sync)
		return;
	if (in_sync)
		dm_region_bit_set(s->sync_bits, region);
	else
		dm_region_bit_clear(s->sync_bits, region);
	s->in_sync += in_sync ? 1 : -1;
}

void log_set_known(struct log_state *s, uint64_t region, bool in_sync)
{
	set_sync(s, region, in_sync);
}

/* The first region out of sync in [from, to), or to. */
static uint64_t next_out_of_sync(const struct log_state *s, uint64_t from, uint64_t to)
{
	while (from < to) {
		uint64_t word;

		memcpy(&word, s->sync_bits + from / 64 * 8, sizeof word);
		if (from % 64 == 0 && word == UINT64_MAX)
			from += 64;
		else if (log_in_sync(s, from))
			from++;
		else
			return from;
	}
	return to;
}

uint64_t log_hint(const struct log_state *s)
{
	return next_out_of_sync(s, 0, s->regions);
}

/* --- clients ---------------------------------------------------------------------------- */

struct log_client *log_join(struct log_state *s)
{
	struct log_client *c = g_new0(struct log_client, 1);

	c->state = s;
	c->has = g_hash_table_new(NULL, NULL);
	c->given = g_hash_table_new(NULL, NULL);
	c->copying = g_hash_table_new(NULL, NULL);
	c->failed = g_hash_table_new(NULL, NULL);
	g_queue_init(&c->urgent);
	g_ptr_array_add(s->clients, c);
	return c;
}

static bool has(const struct log_client *c, uint64_t region)
{
	return g_hash_table_contains(c->has, key(region));
}

static bool others_have(const struct log_client *c, uint64_t region)
{
	return holders(c->state, region) > has(c, region);
}

static void take(struct log_client *c, uint64_t region)
{
	struct log_state *s = c->state;

	if (g_hash_table_add(c->has, key(region)))
		g_hash_table_insert(s->holders, key(region), GUINT_TO_POINTER(holders(s, region) + 1));
	tell(s, region);
}

static void let_go(struct log_client *c, uint64_t region)
{
	struct log_state *s = c->state;
	unsigned n = holders(s, region);

	g_hash_table_remove(c->given, key(region));
	g_hash_table_remove(c->copying, key(region));
	if (!g_hash_table_remove(c->has, key(region)))
		return;
	if (n > 1)
		g_hash_table_insert(s->holders, key(region), GUINT_TO_POINTER(n - 1));
	else
		g_hash_table_remove(s->holders, key(region));
	tell(s, region);
}

void log_postsuspend(struct log_client *c)
{
	g_autoptr(GList) regions = g_hash_table_get_keys(c->has);

	for (GList *l = regions; l; l = l->next) {
		set_sync(c->state, GPOINTER_TO_SIZE(l->data), false);
		let_go(c, GPOINTER_TO_SIZE(l->data));
	}
	g_hash_table_remove_all(c->copying);
	g_hash_table_remove_all(c->failed);
	g_queue_clear(&c->urgent);
	c->pos = c->window_end = 0;
	c->resumed = false;
}

void log_leave(struct log_client *c)
{
	log_postsuspend(c);
	g_ptr_array_remove(c->state->clients, c);
	g_hash_table_destroy(c->has);
	g_hash_table_destroy(c->given);
	g_hash_table_destroy(c->copying);
	g_hash_table_destroy(c->failed);
	g_free(c);
}

void log_resume(struct log_client *c)
{
	g_hash_table_remove_all(c->copying);
	g_hash_table_remove_all(c->failed);
	c->resumed = true;
}

/* --- regions ------------------------------------------------------------------------------ */

void log_mark(struct log_client *c, uint64_t region)
{
	take(c, region);
}

void log_clear(struct log_client *c, uint64_t region)
{
	let_go(c, region);
}

static bool given_to_another(const struct log_client *c, uint64_t region)
{
	for (guint i = 0; i < c->state->clients->len; i++) {
		const struct log_client *other = c->state->clients->pdata[i];

		if (other != c && g_hash_table_contains(other->given, key(region)))
			return true;
	}
	return false;
}

bool log_set_sync(struct log_client *c, uint64_t region, bool in_sync)
{
	if (in_sync && (!has(c, region) || given_to_another(c, region)))
		return false;
	g_hash_table_remove(c->copying, key(region));
	if (!in_sync)
		g_hash_table_add(c->failed, key(region));
	set_sync(c->state, region, in_sync);
	tell(c->state, region);
	return true;
}

static bool is_work(const struct log_client *c, uint64_t region)
{
	return !log_in_sync(c->state, region) && !others_have(c, region) &&
	       !g_hash_table_contains(c->copying, key(region)) && !g_hash_table_contains(c->failed, key(region));
}

static bool find_work(const struct log_client *c, uint64_t from, uint64_t to, uint64_t *region)
{
	while ((from = next_out_of_sync(c->state, from, to)) < to) {
		if (is_work(c, from)) {
			*region = from;
			return true;
		}
		from++;
	}
	return false;
}

static bool find_urgent(struct log_client *c, uint64_t *region)
{
	while (!g_queue_is_empty(&c->urgent)) {
		*region = GPOINTER_TO_SIZE(g_queue_pop_head(&c->urgent));
		if (is_work(c, *region))
			return true;
	}
	return false;
}

static bool find_window(struct log_client *c, uint64_t *region)
{
	struct log_state *s = c->state;

	if (!find_work(c, s->window, s->regions, region) && !find_work(c, 0, s->window, region))
		return false;
	c->window_end = MIN(*region + WINDOW, s->regions);
	s->window = c->window_end;
	return true;
}

bool log_work(struct log_client *c, uint64_t *region)
{
	struct log_state *s = c->state;

	if (s->grace || !c->resumed || s->in_sync == s->regions)
		return false;
	if (!find_urgent(c, region)) {
		if (!find_work(c, c->pos, c->window_end, region) && !find_window(c, region))
			return false;
		c->pos = *region + 1;
	}
	g_hash_table_add(c->copying, key(*region));
	g_hash_table_add(c->given, key(*region));
	take(c, *region);
	return true;
}

bool log_is_remote(struct log_client *c, uint64_t region)
{
	struct log_state *s = c->state;

	if (log_in_sync(s, region)) /* by now; it is not handed out, so he must not take it for his */
		return true;
	for (guint i = 0; i < s->clients->len; i++) {
		struct log_client *other = s->clients->pdata[i];

		if (other != c && has(other, region) && !g_queue_find(&other->urgent, key(region)))
			g_queue_push_tail(&other->urgent, key(region));
	}
	if (others_have(c, region) || (s->grace && !has(c, region)))
		return true;
	g_hash_table_add(c->given, key(region));
	take(c, region);
	return false;
}
