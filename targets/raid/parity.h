/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * P and Q: the sums that bring back lost blocks.
 *
 *   P = D0 + D1 + …            (+ is XOR)
 *   Q = D0 + 2 D1 + 4 D2 + …   in GF(2^8) with x^8 + x^4 + x^3 + x^2 + 1
 *
 * Blocks are len bytes, a multiple of 64, aligned to 32.  A NULL block is all zeroes.
 */
#ifndef DMFS_TARGETS_RAID_PARITY_H
#define DMFS_TARGETS_RAID_PARITY_H

#include <stddef.h>
#include <stdint.h>

/* dst += src */
void raid_xor(void *dst, const void *src, size_t len);
/* dst += 2^exponent src */
void raid_mul_add(void *dst, const void *src, unsigned exponent, size_t len);

/* P, and if q is not NULL Q, of n blocks; block i counts 2^i times in Q. */
void raid_gen(unsigned n, const void *const *blocks, void *p, void *q, size_t len);

/*
 * Brings back up to two of n blocks and P and Q.  blocks[lost[i]] are written, the others read.  lost entries are
 * numbers of blocks, or n for P, n + 1 for Q.  p and q are read where needed and written where lost; q may be NULL
 * where the level has none and is not asked for.  With two lost both P and Q must be given.  The blocks given must not
 * be NULL where they are lost.
 */
void raid_recover(unsigned n, void *const *blocks, void *p, void *q, unsigned nr_lost, const unsigned *lost,
		  size_t len);

#endif
