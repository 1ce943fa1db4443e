/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A set of bad blocks that the data path reads without a lock.
 *
 * Block numbers are up to 2^55.  Each block has a write fail count, 0 to 255.
 */
#ifndef DUST_BLOCKS_H
#define DUST_BLOCKS_H

#include <glib.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include <dmfs/index.h>

struct bad_table;

struct bad_blocks {
	struct bad_table *_Atomic table;
	_Atomic uint64_t version; /* rises before a table is used anew */
	_Atomic uint64_t count;
	/* What follows is the writers'. */
	struct bad_table *spare;  /* of the size of table, or NULL */
	GPtrArray *retired;       /* smaller ones, which a reader may still be in */
	uint64_t dead;            /* groups in table without a bad block */
	struct dm_index fail_counts; /* of the blocks whose count is not 0 */
};

void bad_blocks_init(struct bad_blocks *b);
void bad_blocks_destroy(struct bad_blocks *b);

/* Any thread, at any time. */
bool bad_blocks_any(struct bad_blocks *b, uint64_t first, uint64_t last);
static inline uint64_t bad_blocks_count(struct bad_blocks *b)
{
	return atomic_load_explicit(&b->count, memory_order_relaxed);
}

/* The rest: one thread at a time, the owner sees to it.  Adding one that is in it only sets its count. */
void bad_blocks_add(struct bad_blocks *b, uint64_t block, uint8_t fail_count);
void bad_blocks_remove(struct bad_blocks *b, uint64_t block);
void bad_blocks_clear(struct bad_blocks *b);
uint8_t bad_blocks_fail_count(struct bad_blocks *b, uint64_t block);
/* All of them, ascending: an array of uint64_t. */
GArray *bad_blocks_list(struct bad_blocks *b);
/* Gives back memory that is not needed; no reader may be at it. */
void bad_blocks_trim(struct bad_blocks *b);

#endif
