/* SPDX-License-Identifier: GPL-2.0-or-later */
/* levels.h */
#include <glib.h>
#include <stdbool.h>

#include "levels.h"

void levels_init(struct levels *q, struct level_link *links, uint8_t *level)
{
	q->links = links;
	q->level = level;
	q->total = 0;
	for (unsigned i = 0; i < LEVELS; i++) {
		q->oldest[i] = q->newest[i] = LEVELS_NONE;
		q->count[i] = 0;
	}
}

static void enter(struct levels *q, uint32_t e, unsigned level, bool as_newest)
{
	struct level_link *link = &q->links[e];

	q->level[e] = (uint8_t)((q->level[e] & ~(LEVELS - 1)) | level);
	link->older = as_newest ? q->newest[level] : LEVELS_NONE;
	link->newer = as_newest ? LEVELS_NONE : q->oldest[level];
	*(link->older == LEVELS_NONE ? &q->oldest[level] : &q->links[link->older].newer) = e;
	*(link->newer == LEVELS_NONE ? &q->newest[level] : &q->links[link->newer].older) = e;
	q->count[level]++;
	q->total++;
}

void levels_add(struct levels *q, uint32_t e, unsigned level)
{
	enter(q, e, level, true);
}

void levels_remove(struct levels *q, uint32_t e)
{
	const struct level_link *link = &q->links[e];
	unsigned level = levels_of(q, e);

	*(link->older == LEVELS_NONE ? &q->oldest[level] : &q->links[link->older].newer) = link->newer;
	*(link->newer == LEVELS_NONE ? &q->newest[level] : &q->links[link->newer].older) = link->older;
	q->count[level]--;
	q->total--;
}

static void move(struct levels *q, uint32_t e, unsigned level, bool as_newest)
{
	levels_remove(q, e);
	enter(q, e, level, as_newest);
}

void levels_renew(struct levels *q, uint32_t e)
{
	move(q, e, levels_of(q, e), true);
}

void levels_raise(struct levels *q, uint32_t e, unsigned by)
{
	unsigned from = levels_of(q, e), to = MIN(from + by, LEVELS - 1);
	uint32_t other = q->oldest[to];

	move(q, e, to, true);
	if (to > from && other != LEVELS_NONE)
		move(q, other, from, true);
}

uint32_t levels_lowest(const struct levels *q, unsigned below)
{
	for (unsigned i = 0; i < below; i++)
		if (q->oldest[i] != LEVELS_NONE)
			return q->oldest[i];
	return LEVELS_NONE;
}

static uint32_t wanted(const struct levels *q, unsigned level)
{
	return q->total / LEVELS + (level < q->total % LEVELS);
}

/* How many entries are more than wanted below this level, in all. */
static int64_t surplus_below(const struct levels *q, unsigned level)
{
	int64_t surplus = 0;

	for (unsigned i = 0; i < level; i++)
		surplus += (int64_t)q->count[i] - wanted(q, i);
	return surplus;
}

/* The highest level below this one with entries. */
static unsigned next_below(const struct levels *q, unsigned level)
{
	do
		level--;
	while (!q->count[level]);
	return level;
}

static unsigned next_above(const struct levels *q, unsigned level)
{
	do
		level++;
	while (!q->count[level]);
	return level;
}

/*
 * The order of all stays, where the levels begin changes.  What is too much below goes up, to the highest level first;
 * then what is too much above goes down.  So each entry goes straight to where it stays, and no step undoes another.
 */
void levels_balance(struct levels *q, unsigned steps)
{
	for (unsigned i = LEVELS - 1; i > 0 && steps; i--)
		for (int64_t more = surplus_below(q, i); steps && more > 0 && q->count[i] < wanted(q, i);
		     steps--, more--)
			move(q, q->newest[next_below(q, i)], i, false);
	for (unsigned i = 0; i < LEVELS - 1 && steps; i++)
		for (int64_t less = -surplus_below(q, i + 1); steps && less > 0 && q->count[i] < wanted(q, i);
		     steps--, less--)
			move(q, q->oldest[next_above(q, i)], i, true);
}
