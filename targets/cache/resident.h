/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is in the cache, in memory: which origin block each cache block holds, and whether it is dirty or was hit
 * lately. Lookups take no lock.  About 19 bytes a cache block.
 */
#ifndef CACHE_RESIDENT_H
#define CACHE_RESIDENT_H

#include <stdbool.h>
#include <stdint.h>

#define RESIDENT_NONE UINT64_MAX

struct resident;

/* NULL: no memory. */
struct resident *resident_new(uint32_t cblocks);
void resident_free(struct resident *r);

/* All from any thread.  An insertion or removal that returned before the call is seen. */
bool resident_find(struct resident *r, uint64_t oblock, uint32_t *cblock);
/* RESIDENT_NONE: it holds none. */
uint64_t resident_oblock(struct resident *r, uint32_t cblock);
/* The cache block is clean.  False: the origin block is there already. */
bool resident_insert(struct resident *r, uint64_t oblock, uint32_t cblock);
/* The same, while nobody else calls: for the loading of very many. */
bool resident_load(struct resident *r, uint64_t oblock, uint32_t cblock);
/* And what was dirty is not. */
void resident_remove(struct resident *r, uint32_t cblock);
uint32_t resident_count(struct resident *r);

bool resident_dirty(struct resident *r, uint32_t cblock);
/* True: it was not so before. */
bool resident_set_dirty(struct resident *r, uint32_t cblock, bool dirty);
uint32_t resident_nr_dirty(struct resident *r);

/* resident_touch() will come for it in a moment: fetches what that looks at. */
void resident_ahead(struct resident *r, uint32_t cblock);
/* True: for the first time since resident_forget_touched(). */
bool resident_touch(struct resident *r, uint32_t cblock);
void resident_forget_touched(struct resident *r);

#endif
