/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A multiqueue: entries in LEVELS lists, each from the one used longest ago to the one used last.  An entry that is hit
 * changes places with the oldest one of a higher level, so the order comes about by itself and levels keep their lengths.
 * Entries are numbers into arrays that several queues may share; an entry is in one queue at most.
 */
#ifndef CACHE_LEVELS_H
#define CACHE_LEVELS_H

#include <stdint.h>

#define LEVELS 64u
#define LEVELS_NONE UINT32_MAX

struct level_link {
	uint32_t older, newer;
};

struct levels {
	struct level_link *links;
	uint8_t *level; /* the low six bits; the others are the owner's */
	uint32_t oldest[LEVELS], newest[LEVELS], count[LEVELS], total;
};

void levels_init(struct levels *q, struct level_link *links, uint8_t *level);
static inline unsigned levels_of(const struct levels *q, uint32_t e)
{
	return q->level[e] & (LEVELS - 1);
}
void levels_add(struct levels *q, uint32_t e, unsigned level);
void levels_remove(struct levels *q, uint32_t e);
/* A hit: `by` levels up. */
void levels_raise(struct levels *q, uint32_t e, unsigned by);
/* It is the newest of its level now. */
void levels_renew(struct levels *q, uint32_t e);
/* The oldest of the lowest level below `below`; LEVELS_NONE: there is none. */
uint32_t levels_lowest(const struct levels *q, unsigned below);
/* Makes the levels about equally long, in at most so many steps. */
void levels_balance(struct levels *q, unsigned steps);

#endif
