/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The bits of check_at_most_once: a block that was found good once.
 *
 * A bit a block, in memory that takes no room before it is written to. A page of it that is full takes none
 * either: that it is full is a bit in another such memory, and the page is given back.  Somebody who still
 * looks at the page then sees zeroes and verifies once more, which does no harm.
 */
#include <sys/mman.h>

#include "verity.h"

#define PAGE_BYTES ((uint64_t)4096)
#define PAGE_BITS (PAGE_BYTES * 8)

struct page_state {
	atomic_uint set;  /* bits in the page */
	atomic_bool full; /* all of them are, and the page was given back */
};

struct verity_validated {
	uint64_t blocks, pages;
	_Atomic uint64_t *bits;
	struct page_state *states;
};

static void *map(uint64_t n, size_t each)
{
	uint64_t bytes;
	void *p;

	if (__builtin_mul_overflow(n, each, &bytes) || bytes > SIZE_MAX / 2)
		return NULL;
	p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	madvise(p, bytes, MADV_NOHUGEPAGE); /* a huge page would be room for a single bit */
	return p;
}

struct verity_validated *verity_validated_new(uint64_t blocks)
{
	struct verity_validated *b = g_new0(struct verity_validated, 1);

	b->blocks = blocks;
	b->pages = (blocks + PAGE_BITS - 1) / PAGE_BITS;
	b->bits = map(b->pages, PAGE_BYTES);
	b->states = map(b->pages, sizeof(*b->states));
	if (b->bits && b->states)
		return b;
	verity_validated_free(b);
	return NULL;
}

void verity_validated_free(struct verity_validated *b)
{
	if (!b)
		return;
	if (b->bits)
		munmap((void *)b->bits, b->pages * PAGE_BYTES);
	if (b->states)
		munmap(b->states, b->pages * sizeof(*b->states));
	g_free(b);
}

static uint64_t bits_in_page(const struct verity_validated *b, uint64_t page)
{
	return MIN(PAGE_BITS, b->blocks - page * PAGE_BITS);
}

void verity_validated_set(struct verity_validated *b, uint64_t block)
{
	uint64_t page = block / PAGE_BITS, bit = 1ull << block % 64;
	struct page_state *state = &b->states[page];

	if (atomic_load_explicit(&state->full, memory_order_relaxed) ||
	    (atomic_load_explicit(&b->bits[block / 64], memory_order_relaxed) & bit) ||
	    (atomic_fetch_or(&b->bits[block / 64], bit) & bit))
		return;
	if (atomic_fetch_add(&state->set, 1) + 1 < bits_in_page(b, page))
		return;
	atomic_store(&state->full, true);
	madvise((char *)b->bits + page * PAGE_BYTES, PAGE_BYTES, MADV_DONTNEED);
}

bool verity_validated_test(struct verity_validated *b, uint64_t block, uint64_t blocks)
{
	uint64_t end = block + blocks;

	while (block < end) {
		uint64_t n = MIN(64 - block % 64, end - block);
		uint64_t mask = (n < 64 ? (1ull << n) - 1 : UINT64_MAX) << block % 64;

		if (!atomic_load_explicit(&b->states[block / PAGE_BITS].full, memory_order_relaxed) &&
		    (atomic_load_explicit(&b->bits[block / 64], memory_order_relaxed) & mask) != mask)
			return false;
		block += n;
	}
	return true;
}
