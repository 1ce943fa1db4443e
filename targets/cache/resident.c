/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A hash table whose chains run through the cache blocks (resident.h).  What is stored of a block's number, of the
 * origin or the cache, is one more; 0 is none, so memory that was never written is an empty cache.
 *
 * A chain belongs to one of SEQS sequence numbers, which is odd while one of its chains changes.  Who looks
 * something up looks at the number before and after, and again at each step, for the block it stands on may go to
 * another chain meanwhile; then it begins anew.
 */
#include <glib.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "large.h"
#include "resident.h"

#include <dmfs/rounding.h>

#define SEQS 1024u
#define END 0u

struct seq {
	atomic_uint n;
	char pad[60];
};

struct resident {
	uint32_t cblocks, mask;
	_Atomic uint64_t *oblocks;
	_Atomic uint32_t *next, *buckets;
	_Atomic uint64_t *dirty, *touched; /* a bit a block */
	atomic_uint count, nr_dirty;
	atomic_bool any_touched;
	pthread_mutex_t lock; /* for changes of the chains */
	struct seq seqs[SEQS];
};

static uint64_t words(uint32_t bits)
{
	return (uint64_t)bits / 64 + 1;
}

struct resident *resident_new(uint32_t cblocks)
{
	struct resident *r = g_new0(struct resident, 1);
	uint64_t buckets = UINT64_C(1) << dm_log2(MAX(cblocks, 64));

	if (buckets < cblocks)
		buckets *= 2;
	pthread_mutex_init(&r->lock, NULL);
	r->cblocks = cblocks;
	r->mask = (uint32_t)(buckets - 1);
	r->oblocks = large_try_new0((size_t)cblocks + 1, 8);
	r->next = large_try_new0((size_t)cblocks + 1, 4);
	r->buckets = large_try_new0(buckets, 4);
	r->dirty = large_try_new0(words(cblocks), 8);
	r->touched = large_try_new0(words(cblocks), 8);
	if (!r->oblocks || !r->next || !r->buckets || !r->dirty || !r->touched) {
		resident_free(r);
		return NULL;
	}
	return r;
}

void resident_free(struct resident *r)
{
	if (!r)
		return;
	g_free((void *)r->oblocks);
	g_free((void *)r->next);
	g_free((void *)r->buckets);
	g_free((void *)r->dirty);
	g_free((void *)r->touched);
	pthread_mutex_destroy(&r->lock);
	g_free(r);
}

/* Neighbours come to neighbouring chains: 16 of them to one cache line. */
static uint32_t bucket_of(const struct resident *r, uint64_t oblock)
{
	uint64_t high = (oblock >> 4) * UINT64_C(0x9e3779b97f4a7c15);

	return ((uint32_t)(high >> 28) << 4 | (oblock & 15)) & r->mask;
}

static atomic_uint *seq_of(struct resident *r, uint32_t bucket)
{
	return &r->seqs[bucket / 16 % SEQS].n;
}

/* 1: found; 0: not there; -1: something changed. */
static int look(struct resident *r, uint32_t bucket, atomic_uint *seq, unsigned before, uint64_t oblock,
		uint32_t *cblock)
{
	uint32_t at = atomic_load(&r->buckets[bucket]);

	while (at != END) {
		uint64_t found = atomic_load(&r->oblocks[at - 1]);

		if (atomic_load(seq) != before)
			return -1;
		if (found == oblock + 1) {
			*cblock = at - 1;
			return 1;
		}
		at = atomic_load(&r->next[at - 1]);
	}
	return atomic_load(seq) == before ? 0 : -1;
}

bool resident_find(struct resident *r, uint64_t oblock, uint32_t *cblock)
{
	uint32_t bucket = bucket_of(r, oblock);
	atomic_uint *seq = seq_of(r, bucket);

	for (;;) {
		unsigned before = atomic_load(seq);
		int found = before & 1 ? -1 : look(r, bucket, seq, before, oblock, cblock);

		if (found >= 0)
			return found;
		sched_yield(); /* a change is a few instructions, but its thread may not run */
	}
}

uint64_t resident_oblock(struct resident *r, uint32_t cblock)
{
	return atomic_load(&r->oblocks[cblock]) - 1; /* 0 becomes RESIDENT_NONE */
}

static _Atomic uint32_t *link_to(struct resident *r, uint32_t bucket, uint64_t oblock)
{
	_Atomic uint32_t *link = &r->buckets[bucket];
	uint32_t at;

	while ((at = atomic_load(link)) != END && atomic_load(&r->oblocks[at - 1]) != oblock + 1)
		link = &r->next[at - 1];
	return link;
}

static void enter(struct resident *r, uint32_t bucket, uint64_t oblock, uint32_t cblock)
{
	atomic_store_explicit(&r->oblocks[cblock], oblock + 1, memory_order_release);
	atomic_store_explicit(&r->next[cblock], atomic_load(&r->buckets[bucket]), memory_order_release);
	atomic_store_explicit(&r->buckets[bucket], cblock + 1, memory_order_release);
}

bool resident_insert(struct resident *r, uint64_t oblock, uint32_t cblock)
{
	uint32_t bucket = bucket_of(r, oblock);
	atomic_uint *seq = seq_of(r, bucket);
	bool fresh;

	pthread_mutex_lock(&r->lock);
	fresh = atomic_load(link_to(r, bucket, oblock)) == END;
	if (fresh) {
		atomic_fetch_add(seq, 1);
		enter(r, bucket, oblock, cblock);
		atomic_fetch_add(seq, 1);
		atomic_fetch_add(&r->count, 1);
	}
	pthread_mutex_unlock(&r->lock);
	return fresh;
}

bool resident_load(struct resident *r, uint64_t oblock, uint32_t cblock)
{
	uint32_t bucket = bucket_of(r, oblock);

	if (atomic_load(link_to(r, bucket, oblock)) != END)
		return false;
	enter(r, bucket, oblock, cblock);
	atomic_store_explicit(&r->count, atomic_load(&r->count) + 1, memory_order_relaxed);
	return true;
}

void resident_remove(struct resident *r, uint32_t cblock)
{
	uint64_t oblock;

	resident_set_dirty(r, cblock, false);
	pthread_mutex_lock(&r->lock);
	oblock = resident_oblock(r, cblock);
	if (oblock != RESIDENT_NONE) {
		uint32_t bucket = bucket_of(r, oblock);
		atomic_uint *seq = seq_of(r, bucket);

		atomic_fetch_add(seq, 1);
		atomic_store(link_to(r, bucket, oblock), atomic_load(&r->next[cblock]));
		atomic_store(&r->oblocks[cblock], 0);
		atomic_fetch_add(seq, 1);
		atomic_fetch_sub(&r->count, 1);
	}
	pthread_mutex_unlock(&r->lock);
}

uint32_t resident_count(struct resident *r)
{
	return atomic_load(&r->count);
}

/* --- bits ------------------------------------------------------------------------------------- */

bool resident_dirty(struct resident *r, uint32_t cblock)
{
	return atomic_load(&r->dirty[cblock / 64]) >> cblock % 64 & 1;
}

bool resident_set_dirty(struct resident *r, uint32_t cblock, bool dirty)
{
	uint64_t bit = UINT64_C(1) << cblock % 64;
	_Atomic uint64_t *word = &r->dirty[cblock / 64];

	if (resident_dirty(r, cblock) == dirty)
		return false;
	if (dirty && !(atomic_fetch_or(word, bit) & bit)) {
		atomic_fetch_add(&r->nr_dirty, 1);
		return true;
	}
	if (!dirty && atomic_fetch_and(word, ~bit) & bit) {
		atomic_fetch_sub(&r->nr_dirty, 1);
		return true;
	}
	return false;
}

uint32_t resident_nr_dirty(struct resident *r)
{
	return atomic_load(&r->nr_dirty);
}

void resident_ahead(struct resident *r, uint32_t cblock)
{
	__builtin_prefetch((const void *)&r->touched[cblock / 64], 1);
}

bool resident_touch(struct resident *r, uint32_t cblock)
{
	uint64_t bit = UINT64_C(1) << cblock % 64;
	_Atomic uint64_t *word = &r->touched[cblock / 64];

	if (atomic_load_explicit(word, memory_order_relaxed) & bit)
		return false;
	if (!atomic_load_explicit(&r->any_touched, memory_order_relaxed))
		atomic_store_explicit(&r->any_touched, true, memory_order_relaxed);
	return !(atomic_fetch_or_explicit(word, bit, memory_order_relaxed) & bit);
}

void resident_forget_touched(struct resident *r)
{
	if (!atomic_exchange(&r->any_touched, false))
		return;
	for (uint64_t i = 0; i < words(r->cblocks); i++)
		if (atomic_load_explicit(&r->touched[i], memory_order_relaxed))
			atomic_store_explicit(&r->touched[i], 0, memory_order_relaxed);
}
