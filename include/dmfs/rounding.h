/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Powers of two and rounding, of unsigned numbers.  A unit is 1 or more.  Rounding up may overflow: then the
 * result is what is left of it in 64 bits, so who takes numbers from outside checks them first.
 */
#ifndef DMFS_ROUNDING_H
#define DMFS_ROUNDING_H

#include <stdbool.h>
#include <stdint.h>

/* 0 is none. */
static inline bool dm_is_pow2(uint64_t n)
{
	return n && !(n & (n - 1));
}

/* The exponent of a power of two; of other numbers that of the largest one below.  Not for 0. */
static inline unsigned dm_log2(uint64_t n)
{
	return 63u - (unsigned)__builtin_clzll(n);
}

/* How many units hold n; no overflow. */
static inline uint64_t dm_div_up(uint64_t n, uint64_t unit)
{
	return n / unit + (n % unit > 0);
}

static inline uint64_t dm_round_down(uint64_t n, uint64_t unit)
{
	return n - n % unit;
}

static inline uint64_t dm_round_up(uint64_t n, uint64_t unit)
{
	return dm_div_up(n, unit) * unit;
}

#endif
