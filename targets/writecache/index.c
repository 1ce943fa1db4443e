/* SPDX-License-Identifier: GPL-2.0-or-later */
/* writecache's index (index.h): shards of hash chains through the entries, and a map of bits without a lock. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <dmfs/rounding.h>

#include "index.h"

#define HUGE                                                                                                           \
	(4u << 20) /* bytes from which on large pages are worth asking for: nearly each access is to another page */

/* --- life --------------------------------------------------------------------------------- */

/* Zeroes; NULL: there is not so much memory. */
static void *map_memory(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	if (bytes >= HUGE)
		madvise(p, bytes, MADV_HUGEPAGE);
	return p;
}

static void unmap_memory(void *p, size_t bytes)
{
	if (p)
		munmap(p, bytes);
}

static size_t entries_bytes(const struct wc_index *ix)
{
	return ((size_t)ix->n + 1) * sizeof *ix->entries;
}

static size_t buckets_bytes(const struct wc_index *ix)
{
	return (size_t)ix->shard_buckets * WC_SHARDS * sizeof *ix->buckets;
}

struct wc_index *wc_index_new(uint32_t n)
{
	struct wc_index *ix = aligned_alloc(_Alignof(struct wc_index), sizeof *ix);
	size_t words = dm_div_up(n, 64), sums = dm_div_up(words, 64);

	if (!ix)
		return NULL;
	memset(ix, 0, sizeof *ix);
	ix->n = n;
	ix->shard_buckets = n / WC_SHARDS + 1;
	ix->entries = map_memory(entries_bytes(ix));
	ix->buckets = map_memory(buckets_bytes(ix));
	ix->free = calloc(words + 1, sizeof *ix->free);
	ix->summary = calloc(sums + 1, sizeof *ix->summary);
	for (unsigned i = 0; i < WC_SHARDS; i++) {
		struct wc_shard *s = &ix->shards[i];

		pthread_mutex_init(&s->lock, NULL);
		if (ix->buckets)
			s->buckets = ix->buckets + (size_t)i * ix->shard_buckets;
		s->oldest = s->newest = s->freeing = WC_NONE;
	}
	if (!ix->entries || !ix->buckets || !ix->free || !ix->summary) {
		wc_index_free(ix);
		return NULL;
	}
	memset(ix->buckets, 0xff, buckets_bytes(ix));
	return ix;
}

void wc_index_free(struct wc_index *ix)
{
	if (!ix)
		return;
	for (unsigned i = 0; i < WC_SHARDS; i++)
		pthread_mutex_destroy(&ix->shards[i].lock);
	unmap_memory(ix->entries, entries_bytes(ix));
	unmap_memory(ix->buckets, buckets_bytes(ix));
	free(ix->free);
	free(ix->summary);
	free(ix);
}

/* --- finding ------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t v)
{
	v ^= v >> 32;
	v *= UINT64_C(0xd6e8feb86659fd93);
	v ^= v >> 32;
	v *= UINT64_C(0xd6e8feb86659fd93);
	return v ^ v >> 32;
}

struct wc_shard *wc_shard_of(struct wc_index *ix, uint64_t block)
{
	return &ix->shards[mix(block / WC_GROUP) % WC_SHARDS];
}

uint32_t *wc_bucket_of(struct wc_index *ix, struct wc_shard *s, uint64_t block)
{
	return &s->buckets[(mix(block + 1) >> 32) * ix->shard_buckets >> 32];
}

static uint32_t next_of(struct wc_index *ix, uint32_t e, uint64_t block)
{
	while (e != WC_NONE && ix->entries[e].block != block)
		e = ix->entries[e].chain;
	return e;
}

uint32_t wc_find_in(struct wc_index *ix, const uint32_t *bucket, uint64_t block)
{
	return next_of(ix, *bucket, block);
}

uint32_t wc_find(struct wc_index *ix, struct wc_shard *s, uint64_t block)
{
	return wc_find_in(ix, wc_bucket_of(ix, s, block), block);
}

uint32_t wc_older(struct wc_index *ix, uint32_t e)
{
	return next_of(ix, ix->entries[e].chain, ix->entries[e].block);
}

/* --- the order they came ---------------------------------------------------------------------- */

static void queue_last(struct wc_index *ix, struct wc_shard *s, uint32_t e)
{
	ix->entries[e].next = WC_NONE;
	ix->entries[e].prev = s->newest;
	if (s->newest != WC_NONE)
		ix->entries[s->newest].next = e;
	else
		s->oldest = e;
	s->newest = e;
}

void wc_requeue(struct wc_index *ix, struct wc_shard *s, uint32_t e)
{
	ix->entries[e].prev = WC_NONE;
	ix->entries[e].next = s->oldest;
	if (s->oldest != WC_NONE)
		ix->entries[s->oldest].prev = e;
	else
		s->newest = e;
	s->oldest = e;
}

void wc_unqueue(struct wc_index *ix, struct wc_shard *s, uint32_t e)
{
	struct wc_entry *x = &ix->entries[e];

	if (x->prev != WC_NONE)
		ix->entries[x->prev].next = x->next;
	else
		s->oldest = x->next;
	if (x->next != WC_NONE)
		ix->entries[x->next].prev = x->prev;
	else
		s->newest = x->prev;
}

void wc_touch(struct wc_index *ix, struct wc_shard *s)
{
	uint64_t bit = UINT64_C(1) << (s - ix->shards);

	if (!(atomic_load_explicit(&ix->touched, memory_order_relaxed) & bit))
		atomic_fetch_or(&ix->touched, bit);
}

void wc_insert_in(struct wc_index *ix, struct wc_shard *s, uint32_t *bucket, uint32_t e, uint64_t block,
		  enum wc_state state, uint32_t age_ms)
{
	struct wc_entry *x = &ix->entries[e];

	*x = (struct wc_entry){.block = block, .chain = *bucket, .state = (uint8_t)state, .age_ms = age_ms};
	*bucket = e;
	queue_last(ix, s, e);
	atomic_fetch_add(&s->count, 1);
	if (state == WC_NEW)
		wc_touch(ix, s);
}

void wc_insert(struct wc_index *ix, struct wc_shard *s, uint32_t e, uint64_t block, enum wc_state state,
	       uint32_t age_ms)
{
	wc_insert_in(ix, s, wc_bucket_of(ix, s, block), e, block, state, age_ms);
}

void wc_remove(struct wc_index *ix, struct wc_shard *s, uint32_t e)
{
	uint32_t *at = wc_bucket_of(ix, s, ix->entries[e].block);

	while (*at != e)
		at = &ix->entries[*at].chain;
	*at = ix->entries[e].chain;
	atomic_fetch_sub(&s->count, 1);
}

void wc_to_free(struct wc_index *ix, struct wc_shard *s, uint32_t e)
{
	ix->entries[e].state = WC_FREEING;
	ix->entries[e].next = s->freeing;
	s->freeing = e;
	wc_touch(ix, s);
}

/* --- free blocks ---------------------------------------------------------------------------- */

/* A word of the map with a free block in it, from this one on; as the summary knows it. */
static uint32_t next_word(struct wc_index *ix, uint32_t word, uint32_t words)
{
	while (word < words) {
		uint64_t bits = atomic_load(&ix->summary[word / 64]) & ~UINT64_C(0) << word % 64;

		if (!bits) {
			word = (word / 64 + 1) * 64;
			continue;
		}
		word = word / 64 * 64 + (uint32_t)__builtin_ctzll(bits);
		if (atomic_load(&ix->free[word]))
			return word;
		atomic_fetch_and(&ix->summary[word / 64], ~(UINT64_C(1) << word % 64));
		if (atomic_load(&ix->free[word])) /* somebody was faster */
			atomic_fetch_or(&ix->summary[word / 64], UINT64_C(1) << word % 64);
		else
			word++;
	}
	return words;
}

/* The first free block from this one on, as it looks. */
static uint32_t look(struct wc_index *ix, uint32_t from)
{
	uint32_t words = (uint32_t)dm_div_up(ix->n, 64), word = from / 64;
	uint64_t bits;

	if (from >= ix->n)
		return WC_NONE;
	bits = atomic_load(&ix->free[word]) & ~UINT64_C(0) << from % 64;
	while (!bits) {
		word = next_word(ix, word + 1, words);
		if (word >= words)
			return WC_NONE;
		bits = atomic_load(&ix->free[word]);
	}
	return word * 64 + (uint32_t)__builtin_ctzll(bits);
}

bool wc_take_free_at(struct wc_index *ix, uint32_t e)
{
	uint64_t bit = UINT64_C(1) << e % 64;

	if (e >= ix->n || !(atomic_fetch_and(&ix->free[e / 64], ~bit) & bit))
		return false;
	atomic_fetch_sub(&ix->n_free, 1);
	atomic_store_explicit(&ix->cursor, e + 1, memory_order_relaxed);
	return true;
}

uint32_t wc_take_free(struct wc_index *ix)
{
	while (atomic_load(&ix->n_free) > 0) {
		uint32_t e = look(ix, atomic_load_explicit(&ix->cursor, memory_order_relaxed));

		if (e == WC_NONE)
			e = look(ix, 0);
		if (e == WC_NONE)
			return e;
		if (wc_take_free_at(ix, e))
			return e;
	}
	return WC_NONE;
}

void wc_put_free(struct wc_index *ix, uint32_t e)
{
	atomic_fetch_or(&ix->free[e / 64], UINT64_C(1) << e % 64);
	atomic_fetch_or(&ix->summary[e / 4096], UINT64_C(1) << e / 64 % 64);
	atomic_fetch_add(&ix->n_free, 1);
}
