/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Memory for tables with something for each cache block: zeroed, and what is large in large pages where the system has
 * them.  Lookups go everywhere in it, and with small pages each has to look for its page first.
 */
#ifndef CACHE_LARGE_H
#define CACHE_LARGE_H

#include <glib.h>
#include <stdint.h>
#include <sys/mman.h>

#define LARGE_PAGE (UINT64_C(1) << 21)

/* For n things of so many bytes; NULL: no memory.  g_free() takes it. */
static inline void *large_try_new0(size_t n, size_t size)
{
	void *memory = g_try_malloc0_n(n, size);
	uint64_t begin = ((uintptr_t)memory + LARGE_PAGE - 1) & ~(LARGE_PAGE - 1);
	uint64_t end = ((uintptr_t)memory + n * size) & ~(LARGE_PAGE - 1);

	if (memory && end > begin + LARGE_PAGE) /* an error changes nothing but the speed */
		madvise((void *)(uintptr_t)begin, end - begin, MADV_HUGEPAGE);
	return memory;
}

#endif
