/* SPDX-License-Identifier: GPL-2.0-or-later */
/* LRW (lrw.h). */
#include "lrw.h"

#include <string.h>

#include <dmfs/le.h>

#define BLOCK 16u

static unsigned __int128 get_block(const uint8_t *p)
{
	return (unsigned __int128)get_be64(p) << 64 | get_be64(p + 8);
}

static void xor_block(uint8_t *p, const uint8_t *src, unsigned __int128 mask)
{
	put_be64(p, get_be64(src) ^ (uint64_t)(mask >> 64));
	put_be64(p + 8, get_be64(src + 8) ^ (uint64_t)mask);
}

/* a * x, in the same time whatever a is. */
static unsigned __int128 times_x(unsigned __int128 a)
{
	return a << 1 ^ (0x87 & -(a >> 127));
}

/* The time depends on the number, which is no secret. */
static unsigned __int128 times(unsigned __int128 secret, unsigned __int128 number)
{
	unsigned __int128 product = 0;

	for (int i = 127; i >= 0; i--) {
		product = times_x(product);
		if (number >> i & 1)
			product ^= secret;
	}
	return product;
}

/* 127 of all ones, too: that is counting on to 0. */
static unsigned ones_at_end(unsigned __int128 n)
{
	uint64_t low = ~(uint64_t)n, high = ~(uint64_t)(n >> 64);

	return low ? (unsigned)__builtin_ctzll(low) : high ? 64 + (unsigned)__builtin_ctzll(high) : 127;
}

void crypt_lrw_init(struct crypt_lrw *l, const uint8_t key2[CRYPT_LRW_KEY])
{
	unsigned __int128 power = get_block(key2), sum = 0;

	l->key2 = power;
	for (unsigned i = 0; i < 128; i++) {
		sum ^= power;
		l->step[i] = sum;
		power = times_x(power);
	}
}

void crypt_lrw_set_iv(struct crypt_lrw *l, const uint8_t iv[BLOCK])
{
	l->index = get_block(iv);
}

static void mask(const struct crypt_lrw *l, unsigned __int128 t, const uint8_t *src, uint8_t *dst, size_t len)
{
	unsigned __int128 index = l->index;

	for (size_t at = 0; at < len; at += BLOCK) {
		xor_block(dst + at, src + at, t);
		t ^= l->step[ones_at_end(index++)];
	}
}

gcry_error_t crypt_lrw_run(struct crypt_lrw *l, gcry_cipher_hd_t ecb, bool encrypt, const uint8_t *src, uint8_t *dst,
			   size_t len)
{
	unsigned __int128 t = times(l->key2, l->index);
	gcry_error_t error;

	mask(l, t, src, dst, len);
	error = encrypt ? gcry_cipher_encrypt(ecb, dst, len, NULL, 0) : gcry_cipher_decrypt(ecb, dst, len, NULL, 0);
	mask(l, t, dst, dst, len);
	l->index += len / BLOCK;
	return error;
}
