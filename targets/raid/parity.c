/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * P and Q (parity.h): ISA-L generates where it is there, plain C else.
 *
 * What is lost is brought back from what is generated without it:
 *
 *   one block x, with P:   Dx = P + P', P' without x
 *   one block x, with Q:   Dx = (Q + Q') / 2^x
 *   x and y, with both:    Dx + Dy = P + P' = A;  2^x Dx + 2^y Dy = Q + Q' = B
 *                          Dx = (B + 2^y A) / (2^x + 2^y);  Dy = A + Dx
 */
#include "parity.h"

#include <glib.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#ifdef HAVE_LIBISAL
#include <isa-l/raid.h>
#endif

#define POLY 0x1d
#define MAX_BLOCKS 253u

static uint8_t exp_table[256], log_table[256];
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static void make_tables(void)
{
	uint8_t x = 1;

	for (unsigned i = 0; i < 255; i++) {
		exp_table[i] = x;
		log_table[x] = (uint8_t)i;
		x = (uint8_t)(x << 1 ^ (x & 0x80 ? POLY : 0));
	}
	exp_table[255] = 1;
}

static uint8_t power(unsigned exponent)
{
	pthread_once(&tables_once, make_tables);
	return exp_table[exponent % 255];
}

static uint8_t mul(uint8_t a, uint8_t b)
{
	return a && b ? exp_table[(log_table[a] + log_table[b]) % 255] : 0;
}

static uint8_t inverse(uint8_t a)
{
	return exp_table[(255 - log_table[a]) % 255];
}

/* --- sums ------------------------------------------------------------------------------------ */

typedef uint64_t word __attribute__((may_alias, vector_size(32)));

void raid_xor(void *dst, const void *src, size_t len)
{
	word *d = dst;
	const word *s = src;

	for (size_t i = 0; i < len / sizeof *d; i++)
		d[i] ^= s[i];
}

/*
 * A block times a constant, from the products of each half of a byte.  Written so that compilers make vector shuffles
 * of it where the processor has them.
 */
struct product {
	uint8_t low[16], high[16];
};

static void product_init(struct product *p, uint8_t factor)
{
	pthread_once(&tables_once, make_tables);
	for (unsigned i = 0; i < 16; i++) {
		p->low[i] = mul(factor, (uint8_t)i);
		p->high[i] = mul(factor, (uint8_t)(i << 4));
	}
}

#if defined __x86_64__
#include <immintrin.h>

static void __attribute__((target("avx2")))
product_avx2(const struct product *p, uint8_t *dst, const uint8_t *src, size_t len, bool add)
{
	__m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p->low));
	__m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p->high));
	__m256i nibble = _mm256_set1_epi8(15);

	for (size_t i = 0; i < len; i += 32) {
		__m256i s = _mm256_loadu_si256((const __m256i *)(src + i));
		__m256i l = _mm256_shuffle_epi8(low, _mm256_and_si256(s, nibble));
		__m256i h = _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi64(s, 4), nibble));
		__m256i r = _mm256_xor_si256(l, h);

		if (add)
			r = _mm256_xor_si256(r, _mm256_loadu_si256((const __m256i *)(dst + i)));
		_mm256_storeu_si256((__m256i *)(dst + i), r);
	}
}

static bool have_avx2(void)
{
	return __builtin_cpu_supports("avx2");
}
#else
static void product_avx2(const struct product *p, uint8_t *dst, const uint8_t *src, size_t len, bool add)
{
}

static bool have_avx2(void)
{
	return false;
}
#endif

/* dst = or += factor src */
static void multiply(uint8_t factor, uint8_t *dst, const uint8_t *src, size_t len, bool add)
{
	struct product p;

	product_init(&p, factor);
	if (have_avx2()) {
		product_avx2(&p, dst, src, len, add);
		return;
	}
	for (size_t i = 0; i < len; i++)
		dst[i] = (uint8_t)((add ? dst[i] : 0) ^ p.low[src[i] & 15] ^ p.high[src[i] >> 4]);
}

void raid_mul_add(void *dst, const void *src, unsigned exponent, size_t len)
{
	if (exponent % 255)
		multiply(power(exponent), dst, src, len, true);
	else
		raid_xor(dst, src, len);
}

static void gen_plain(unsigned n, const void *const *blocks, void *p, void *q, size_t len)
{
	if (p)
		memset(p, 0, len);
	if (q)
		memset(q, 0, len);
	for (unsigned i = 0; i < n; i++) {
		if (!blocks[i])
			continue;
		if (p)
			raid_xor(p, blocks[i], len);
		if (q)
			raid_mul_add(q, blocks[i], i, len);
	}
}

#ifdef HAVE_LIBISAL
#define ZEROES_LEN 65536u

static const void *zeroes(void)
{
	static const uint8_t block[ZEROES_LEN] __attribute__((aligned(64)));

	return block;
}

/* False: not a case for it. */
static bool gen_isal(unsigned n, const void *const *blocks, void *p, void *q, size_t len)
{
	void *all[MAX_BLOCKS + 2];

	if (!p || n < 2 || n > MAX_BLOCKS || len > ZEROES_LEN)
		return false;
	for (unsigned i = 0; i < n; i++)
		all[i] = (void *)(blocks[i] ? blocks[i] : zeroes());
	all[n] = p;
	all[n + 1] = q;
	return q ? !pq_gen((int)n + 2, (int)len, all) : !xor_gen((int)n + 1, (int)len, all);
}
#else
static bool gen_isal(unsigned n, const void *const *blocks, void *p, void *q, size_t len)
{
	return false;
}
#endif

void raid_gen(unsigned n, const void *const *blocks, void *p, void *q, size_t len)
{
	if (!gen_isal(n, blocks, p, q, len))
		gen_plain(n, blocks, p, q, len);
}

/* --- bringing back ------------------------------------------------------------------------------ */

static void one_from_p(unsigned n, void *const *blocks, const void *p, unsigned x, size_t len)
{
	memcpy(blocks[x], p, len);
	for (unsigned i = 0; i < n; i++)
		if (i != x && blocks[i])
			raid_xor(blocks[x], blocks[i], len);
}

/* Puts Q + Q' into out. */
static void without(unsigned n, void *const *blocks, const void *q, unsigned x, unsigned y, void *out, size_t len)
{
	memcpy(out, q, len);
	for (unsigned i = 0; i < n; i++)
		if (i != x && i != y && blocks[i])
			raid_mul_add(out, blocks[i], i, len);
}

static void one_from_q(unsigned n, void *const *blocks, const void *q, unsigned x, size_t len)
{
	without(n, blocks, q, x, x, blocks[x], len);
	multiply(inverse(power(x)), blocks[x], blocks[x], len, false);
}

static void two(unsigned n, void *const *blocks, const void *p, const void *q, unsigned x, unsigned y, size_t len)
{
	uint8_t *a = blocks[y], *b = blocks[x], divisor = inverse(power(x) ^ power(y));

	memcpy(a, p, len);
	for (unsigned i = 0; i < n; i++)
		if (i != x && i != y && blocks[i])
			raid_xor(a, blocks[i], len);
	without(n, blocks, q, x, y, b, len);
	raid_mul_add(b, a, y, len);
	multiply(divisor, b, b, len, false);
	raid_xor(a, b, len);
}

void raid_recover(unsigned n, void *const *blocks, void *p, void *q, unsigned nr_lost, const unsigned *lost, size_t len)
{
	unsigned x[2], nr = 0;
	bool p_lost = false, q_lost = false;

	for (unsigned i = 0; i < nr_lost && i < 2; i++) {
		p_lost |= lost[i] == n;
		q_lost |= lost[i] == n + 1;
		if (lost[i] < n)
			x[nr++] = lost[i];
	}
	if (nr == 2)
		two(n, blocks, p, q, x[0], x[1], len);
	else if (nr && p_lost)
		one_from_q(n, blocks, q, x[0], len);
	else if (nr)
		one_from_p(n, blocks, p, x[0], len);
	if (p_lost || q_lost)
		raid_gen(n, (const void *const *)blocks, p_lost ? p : NULL, q_lost ? q : NULL, len);
}
