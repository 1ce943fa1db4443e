/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reed-Solomon codes over GF(256): the code of verity's forward error correction.
 *
 * A codeword is 255 bytes, 255 - roots of them data, then roots of parity.  The field's polynomial
 * is x^8 + x^4 + x^3 + x^2 + 1 (0x11d), its generator 2; a codeword, its first byte as the highest coefficient, is
 * zero at the powers 0 to roots - 1 of the generator.
 *
 * With e of a codeword's bytes known to be wrong (erasures) and t wrong elsewhere it is corrected if e + 2t <= roots.
 */
#ifndef DMFS_VERITY_RS_H
#define DMFS_VERITY_RS_H

#include <stddef.h>
#include <stdint.h>

#define RS_SIZE 255
#define RS_MIN_ROOTS 2
#define RS_MAX_ROOTS 24

struct rs;

struct rs *rs_new(unsigned roots);
void rs_free(struct rs *rs);

/* The parity, roots bytes, of 255 - roots bytes of data. */
void rs_encode(const struct rs *rs, const uint8_t *data, uint8_t *parity);

/*
 * Many codewords side by side: bytes[p] holds byte p of each of them, len of them.  Their syndromes come
 * the same way, roots of them: syndromes[i][c] for codeword c.  All zeroes: it is a codeword.
 */
void rs_syndromes(const struct rs *rs, const uint8_t *const bytes[RS_SIZE], size_t len, uint8_t *const syndromes[]);

/* What to do about a codeword: byte at[i] is to be xored with value[i]. */
struct rs_fix {
	unsigned n;
	uint8_t at[RS_MAX_ROOTS], value[RS_MAX_ROOTS];
};

/*
 * From the syndromes of one codeword, and the places of bytes known to be wrong.  0, or -1 if there are more errors
 * than can be corrected (it cannot always be told: a hash must prove the result).
 */
int rs_solve(const struct rs *rs, const uint8_t *syndromes, const uint8_t *erasures, unsigned n_erasures,
	     struct rs_fix *fix);

/*
 * With `roots` erasures the fix of the byte at erasures[which] is a sum of the syndromes, the same for all
 * codewords: weights[i] for syndrome i.  And the sum itself, for len codewords.
 */
void rs_erasure_weights(const struct rs *rs, const uint8_t *erasures, unsigned which, uint8_t *weights);
void rs_weighted_sum(const struct rs *rs, const uint8_t *weights, const uint8_t *const syndromes[], size_t len,
		     uint8_t *out);

#endif
