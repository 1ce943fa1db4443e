/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The bits of check_at_most_once: a block that was found good once.
 *
 * Bits are in groups of 1024. A group of which none is set takes no memory, nor does one of which all are: its
 * place then holds ALL.  So a scattered few cost 128 bytes each, and a whole image nothing but the places, which lie in
 * memory that takes no room before it is written to.
 *
 * Bits are set under a lock, looked at without: a group is used again for another place once its own place holds ALL,
 * so whoever has looked at a group looks at the place once more.  A place never goes back.
 */
#include <pthread.h>
#include <sys/mman.h>

#include "verity.h"

#define GROUP_BITS 1024u
#define GROUP_WORDS (GROUP_BITS / 64)
#define LOCKS 16u

/* What a place holds: one of these, or the number of a group from 1 on. */
#define NONE 0u
#define ALL UINT32_MAX

struct group {
	_Atomic uint64_t words[GROUP_WORDS];
};

struct verity_validated {
	uint64_t blocks;
	uint64_t n; /* places, and groups if each has one */
	_Atomic uint32_t *places;
	struct group *groups;
	pthread_mutex_t locks[LOCKS]; /* of the places: setting bits */
	pthread_mutex_t lock;         /* what follows; inside one of the others */
	uint32_t used;       /* groups */
	GArray *spare;       /* numbers of those that are free again */
};

/* Zeroes that take no room before they are written to; or NULL. */
static void *map(uint64_t n, size_t each)
{
	void *p = mmap(NULL, n * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	madvise(p, n * each, MADV_NOHUGEPAGE); /* a huge page would be room for a few bits */
	return p;
}

struct verity_validated *verity_validated_new(uint64_t blocks)
{
	struct verity_validated *b = g_new0(struct verity_validated, 1);

	g_assert(blocks <= INT32_MAX);
	b->blocks = blocks;
	b->n = (blocks + GROUP_BITS - 1) / GROUP_BITS;
	b->places = map(b->n, sizeof(*b->places));
	b->groups = map(b->n, sizeof(*b->groups));
	for (unsigned i = 0; i < LOCKS; i++)
		pthread_mutex_init(&b->locks[i], NULL);
	pthread_mutex_init(&b->lock, NULL);
	b->spare = g_array_new(FALSE, FALSE, sizeof(uint32_t));
	if (b->places && b->groups)
		return b;
	verity_validated_free(b);
	return NULL;
}

void verity_validated_free(struct verity_validated *b)
{
	if (!b)
		return;
	if (b->places)
		munmap((void *)b->places, b->n * sizeof(*b->places));
	if (b->groups)
		munmap(b->groups, b->n * sizeof(*b->groups));
	for (unsigned i = 0; i < LOCKS; i++)
		pthread_mutex_destroy(&b->locks[i]);
	pthread_mutex_destroy(&b->lock);
	g_array_free(b->spare, TRUE);
	g_free(b);
}

static struct group *group_of(struct verity_validated *b, uint32_t nr)
{
	return &b->groups[nr - 1];
}

/* The number of an empty one. */
static uint32_t take_group(struct verity_validated *b)
{
	struct group *g;
	uint32_t nr;

	pthread_mutex_lock(&b->lock);
	if (b->spare->len) {
		nr = g_array_index(b->spare, uint32_t, b->spare->len - 1);
		g_array_set_size(b->spare, b->spare->len - 1);
	} else {
		nr = ++b->used;
	}
	pthread_mutex_unlock(&b->lock);
	g = group_of(b, nr);
	for (unsigned i = 0; i < GROUP_WORDS; i++)
		atomic_store_explicit(&g->words[i], 0, memory_order_release); /* who reads it, sees ALL in its old place */
	return nr;
}

static void spare_group(struct verity_validated *b, uint32_t nr)
{
	pthread_mutex_lock(&b->lock);
	g_array_append_val(b->spare, nr);
	pthread_mutex_unlock(&b->lock);
}

/* A word of a place with all its bits; none behind the last block. */
static uint64_t full_word(const struct verity_validated *b, uint64_t place, unsigned word)
{
	uint64_t first = place * GROUP_BITS + word * 64;

	if (first >= b->blocks)
		return 0;
	return b->blocks - first >= 64 ? UINT64_MAX : (1ull << (b->blocks - first)) - 1;
}

static bool is_full(struct verity_validated *b, uint32_t nr, uint64_t place)
{
	for (unsigned i = 0; i < GROUP_WORDS; i++)
		if (atomic_load_explicit(&group_of(b, nr)->words[i], memory_order_relaxed) != full_word(b, place, i))
			return false;
	return true;
}

/* With the place's lock. */
static void set_bit(struct verity_validated *b, uint64_t place, unsigned word, uint64_t bit)
{
	uint32_t nr = atomic_load_explicit(&b->places[place], memory_order_relaxed);
	_Atomic uint64_t *at;
	uint64_t now;

	if (nr == ALL)
		return;
	if (nr == NONE) {
		nr = take_group(b);
		atomic_store_explicit(&b->places[place], nr, memory_order_release);
	}
	at = &group_of(b, nr)->words[word];
	now = atomic_load_explicit(at, memory_order_relaxed) | bit;
	atomic_store_explicit(at, now, memory_order_release);
	if (now == full_word(b, place, word) && is_full(b, nr, place)) {
		atomic_store(&b->places[place], ALL);
		spare_group(b, nr);
	}
}

void verity_validated_set(struct verity_validated *b, uint64_t block)
{
	uint64_t place = block / GROUP_BITS;
	pthread_mutex_t *lock = &b->locks[place % LOCKS];

	pthread_mutex_lock(lock);
	set_bit(b, place, block % GROUP_BITS / 64, 1ull << block % 64);
	pthread_mutex_unlock(lock);
}

/* Whether the bits of a mask in a word are set. */
static bool test_word(struct verity_validated *b, uint64_t block, uint64_t mask)
{
	_Atomic uint32_t *place = &b->places[block / GROUP_BITS];
	uint32_t nr = atomic_load_explicit(place, memory_order_acquire);
	uint64_t word;

	if (nr == NONE || nr == ALL)
		return nr == ALL;
	word = atomic_load_explicit(&group_of(b, nr)->words[block % GROUP_BITS / 64], memory_order_acquire);
	if (atomic_load_explicit(place, memory_order_acquire) != nr)
		return true; /* ALL by now; what was read may be another's */
	return (word & mask) == mask;
}

bool verity_validated_test(struct verity_validated *b, uint64_t block, uint64_t blocks)
{
	uint64_t end = block + blocks;

	while (block < end) {
		uint64_t n = MIN(64 - block % 64, end - block);
		uint64_t mask = (n < 64 ? (1ull << n) - 1 : UINT64_MAX) << block % 64;

		if (!test_word(b, block, mask))
			return false;
		block += n;
	}
	return true;
}
