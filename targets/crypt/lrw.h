/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * LRW (IEEE P1619 draft of 2006; Liskov, Rivest, Wagner: "Tweakable Block Ciphers"): a block cipher whose block number I
 * (the IV, a big-endian number that counts on through the sector) is multiplied by a second key of a block's size:
 *
 *   T = key2 * I in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1, where bit i of a big-endian number is x^i's factor
 *   C = E(key1, P ^ T) ^ T
 *
 * The key is key1, then the 16 bytes of key2.
 */
#ifndef CRYPT_LRW_H
#define CRYPT_LRW_H

#include <gcrypt.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CRYPT_LRW_KEY 16u /* bytes of key2 */

/* One thread at a time; a secret, to be in secmem. */
struct crypt_lrw {
	unsigned __int128 key2;
	unsigned __int128 step[128]; /* by how many ones I ends in: what T changes by when I is counted on */
	unsigned __int128 index;     /* of the next block */
};

void crypt_lrw_init(struct crypt_lrw *l, const uint8_t key2[CRYPT_LRW_KEY]);
void crypt_lrw_set_iv(struct crypt_lrw *l, const uint8_t iv[16]);
/* len bytes, a multiple of 16, from src to dst, which may be the same; ecb has key1. */
gcry_error_t crypt_lrw_run(struct crypt_lrw *l, gcry_cipher_hd_t ecb, bool encrypt, const uint8_t *src, uint8_t *dst,
			   size_t len);

#endif
