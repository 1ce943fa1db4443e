/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * SHA-256 of several messages at once (FIPS 180-4): each round of one waits for the one before, those of several
 * do not.
 *
 *   16 lanes   AVX-512: a register holds the same word of sixteen messages; twice as fast as
 *              the SHA instructions, if there are sixteen, and no slower with half of them
 *   2 lanes    the SHA instructions on two messages in step; they want the state as A B E F and C D G H
 *
 * Messages have one length, so their blocks are of one kind: all data, which is hashed where
 * it lies, or put together from prefix, data, suffix and padding.
 */
#include "sha256.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>

#define BLOCK 64

static const uint32_t rounds[64] __attribute__((aligned(16))) = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
				    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

/* Of one message. */
struct state {
	__m128i abef, cdgh;
};

#define WITH_SHA __attribute__((target("sha,sse4.1")))

#define WITH_512 __attribute__((target("avx512f,avx512bw")))

/* --- two messages ---------------------------------------------------------------------------------- */

WITH_SHA static void start2(struct state *s)
{
	s->abef = _mm_set_epi32((int)initial[0], (int)initial[1], (int)initial[4], (int)initial[5]);
	s->cdgh = _mm_set_epi32((int)initial[2], (int)initial[3], (int)initial[6], (int)initial[7]);
}

WITH_SHA static void finish2(const struct state *s, uint8_t *digest)
{
	const uint32_t words[8] = {
		(uint32_t)_mm_extract_epi32(s->abef, 3), (uint32_t)_mm_extract_epi32(s->abef, 2),
		(uint32_t)_mm_extract_epi32(s->cdgh, 3), (uint32_t)_mm_extract_epi32(s->cdgh, 2),
		(uint32_t)_mm_extract_epi32(s->abef, 1), (uint32_t)_mm_extract_epi32(s->abef, 0),
		(uint32_t)_mm_extract_epi32(s->cdgh, 1), (uint32_t)_mm_extract_epi32(s->cdgh, 0),
	};

	for (int i = 0; i < 8; i++) {
		uint32_t big = __builtin_bswap32(words[i]);

		memcpy(digest + i * 4, &big, 4);
	}
}

/* The next four words of the message schedule, out of the last sixteen; w[g % 4] are the words of group g. */
#define SCHEDULE(w, g)                                                                                               \
	(w[(g) & 3] = _mm_sha256msg2_epu32(                                                                          \
		 _mm_add_epi32(_mm_sha256msg1_epu32(w[(g) & 3], w[((g) + 1) & 3]),                                   \
			       _mm_alignr_epi8(w[((g) + 3) & 3], w[((g) + 2) & 3], 4)),                              \
		 w[((g) + 3) & 3]))

/* Blocks of both messages, in step. */
WITH_SHA static void blocks2(struct state *s, const uint8_t *p, const uint8_t *q, size_t n)
{
	const __m128i swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
	__m128i abef0 = s[0].abef, cdgh0 = s[0].cdgh, abef1 = s[1].abef, cdgh1 = s[1].cdgh;

	for (; n; n--, p += BLOCK, q += BLOCK) {
		const __m128i a0 = abef0, c0 = cdgh0, a1 = abef1, c1 = cdgh1;
		__m128i w0[4], w1[4];

		for (int g = 0; g < 4; g++) {
			w0[g] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)p + g), swap);
			w1[g] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)q + g), swap);
		}
#pragma GCC unroll 16
		for (int g = 0; g < 16; g++) {
			const __m128i k = _mm_load_si128((const __m128i *)rounds + g);
			__m128i k0, k1;

			if (g >= 4) {
				SCHEDULE(w0, g);
				SCHEDULE(w1, g);
			}
			k0 = _mm_add_epi32(w0[g & 3], k);
			k1 = _mm_add_epi32(w1[g & 3], k);
			cdgh0 = _mm_sha256rnds2_epu32(cdgh0, abef0, k0);
			cdgh1 = _mm_sha256rnds2_epu32(cdgh1, abef1, k1);
			abef0 = _mm_sha256rnds2_epu32(abef0, cdgh0, _mm_shuffle_epi32(k0, 0x0e));
			abef1 = _mm_sha256rnds2_epu32(abef1, cdgh1, _mm_shuffle_epi32(k1, 0x0e));
		}
		abef0 = _mm_add_epi32(abef0, a0);
		cdgh0 = _mm_add_epi32(cdgh0, c0);
		abef1 = _mm_add_epi32(abef1, a1);
		cdgh1 = _mm_add_epi32(cdgh1, c1);
	}
	s[0] = (struct state){abef0, cdgh0};
	s[1] = (struct state){abef1, cdgh1};
}

/* --- sixteen --------------------------------------------------------------------------------------- */

/* From a row a message to a row a word. */
WITH_512 static void transpose(__m512i r[16])
{
	__m512i t[16], u[4][4];

	for (int i = 0; i < 16; i += 2) {
		t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
		t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
	}
	for (int g = 0; g < 4; g++) { /* u[g][j]: in each quarter q the words 4q + j of messages 4g to 4g + 3 */
		u[g][0] = _mm512_unpacklo_epi64(t[4 * g], t[4 * g + 2]);
		u[g][1] = _mm512_unpackhi_epi64(t[4 * g], t[4 * g + 2]);
		u[g][2] = _mm512_unpacklo_epi64(t[4 * g + 1], t[4 * g + 3]);
		u[g][3] = _mm512_unpackhi_epi64(t[4 * g + 1], t[4 * g + 3]);
	}
	for (int j = 0; j < 4; j++) {
		__m512i even_low = _mm512_shuffle_i32x4(u[0][j], u[1][j], 0x88);
		__m512i odd_low = _mm512_shuffle_i32x4(u[0][j], u[1][j], 0xdd);
		__m512i even_high = _mm512_shuffle_i32x4(u[2][j], u[3][j], 0x88);
		__m512i odd_high = _mm512_shuffle_i32x4(u[2][j], u[3][j], 0xdd);

		r[j] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
		r[8 + j] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
		r[4 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
		r[12 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
	}
}

#define XOR3(a, b, c) _mm512_ternarylogic_epi32(a, b, c, 0x96)
#define CHOOSE(e, f, g) _mm512_ternarylogic_epi32(e, f, g, 0xca)
#define MAJORITY(a, b, c) _mm512_ternarylogic_epi32(a, b, c, 0xe8)
#define ROTATE(x, n) _mm512_ror_epi32(x, n)
#define ADD(a, b) _mm512_add_epi32(a, b)
#define BIG_SIGMA0(x) XOR3(ROTATE(x, 2), ROTATE(x, 13), ROTATE(x, 22))
#define BIG_SIGMA1(x) XOR3(ROTATE(x, 6), ROTATE(x, 11), ROTATE(x, 25))
#define SIGMA0(x) XOR3(ROTATE(x, 7), ROTATE(x, 18), _mm512_srli_epi32(x, 3))
#define SIGMA1(x) XOR3(ROTATE(x, 17), ROTATE(x, 19), _mm512_srli_epi32(x, 10))

/* s: the eight words of the states. */
WITH_512 static void block16(__m512i s[8], const uint8_t *const p[16], size_t off)
{
	const __m512i swap =
		_mm512_broadcast_i32x4(_mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3));
	__m512i a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7], w[16];

	for (int i = 0; i < 16; i++)
		w[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(p[i] + off), swap);
	transpose(w);
#pragma GCC unroll 64
	for (int t = 0; t < 64; t++) {
		__m512i t1, t2;

		if (t >= 16)
			w[t & 15] = ADD(ADD(w[t & 15], SIGMA0(w[(t + 1) & 15])),
					ADD(w[(t + 9) & 15], SIGMA1(w[(t + 14) & 15])));
		t1 = ADD(ADD(h, BIG_SIGMA1(e)), ADD(CHOOSE(e, f, g), _mm512_set1_epi32((int)rounds[t])));
		t1 = ADD(t1, w[t & 15]);
		t2 = ADD(BIG_SIGMA0(a), MAJORITY(a, b, c));
		h = g;
		g = f;
		f = e;
		e = ADD(d, t1);
		d = c;
		c = b;
		b = a;
		a = ADD(t1, t2);
	}
	s[0] = ADD(s[0], a);
	s[1] = ADD(s[1], b);
	s[2] = ADD(s[2], c);
	s[3] = ADD(s[3], d);
	s[4] = ADD(s[4], e);
	s[5] = ADD(s[5], f);
	s[6] = ADD(s[6], g);
	s[7] = ADD(s[7], h);
}

WITH_512 static void start16(__m512i s[8])
{
	for (int i = 0; i < 8; i++)
		s[i] = _mm512_set1_epi32((int)initial[i]);
}

WITH_512 static void blocks16(__m512i s[8], const uint8_t *const p[16], size_t n)
{
	for (size_t off = 0; off < n * BLOCK; off += BLOCK)
		block16(s, p, off);
}

WITH_512 static void finish16(const __m512i s[8], unsigned n, uint8_t *digests)
{
	uint32_t words[8][16] __attribute__((aligned(64)));

	for (int i = 0; i < 8; i++)
		_mm512_store_si512(words[i], s[i]);
	for (unsigned m = 0; m < n; m++)
		for (int i = 0; i < 8; i++) {
			uint32_t big = __builtin_bswap32(words[i][m]);

			memcpy(digests + m * SHA256_SIZE + i * 4, &big, 4);
		}
}

/* --- messages ---------------------------------------------------------------------------------------- */

struct messages {
	const struct iovec *prefix, *suffix;
	const void *const *data;
	size_t len;
};

/* The part of a piece, which lies at `at` in the message, that is in the block at `off`. */
static void copy_part(uint8_t *block, size_t off, const void *piece, size_t at, size_t len)
{
	size_t from = at > off ? at : off, end = at + len < off + BLOCK ? at + len : off + BLOCK;

	if (from < end)
		memcpy(block + (from - off), (const uint8_t *)piece + (from - at), end - from);
}

/* A block of message i that is not all data; last: it ends with the length. */
static void assemble(const struct messages *m, unsigned i, size_t off, bool last, uint8_t *block)
{
	size_t total = m->prefix->iov_len + m->len + m->suffix->iov_len;

	memset(block, 0, BLOCK);
	copy_part(block, off, m->prefix->iov_base, 0, m->prefix->iov_len);
	copy_part(block, off, m->data[i], m->prefix->iov_len, m->len);
	copy_part(block, off, m->suffix->iov_base, m->prefix->iov_len + m->len, m->suffix->iov_len);
	if (total >= off && total < off + BLOCK)
		block[total - off] = 0x80;
	if (last) {
		uint64_t bits = __builtin_bswap64((uint64_t)total * 8);

		memcpy(block + BLOCK - 8, &bits, 8);
	}
}

/*
 * The next blocks of n messages: where they are, and how many lie there one behind the other.  Lanes without a
 * message get the first one's.
 */
static size_t next_blocks(const struct messages *m, unsigned n, unsigned lanes, size_t off, size_t padded,
			  uint8_t room[][BLOCK], const uint8_t **p)
{
	size_t begin = m->prefix->iov_len, end = begin + m->len;
	bool data = off >= begin && off + BLOCK <= end;

	for (unsigned i = 0; i < n; i++) {
		p[i] = data ? (const uint8_t *)m->data[i] + (off - begin) : room[i];
		if (!data)
			assemble(m, i, off, off + BLOCK == padded, room[i]);
	}
	for (unsigned i = n; i < lanes; i++)
		p[i] = p[0];
	return data ? (end - off) / BLOCK : 1;
}

static size_t padded_length(const struct messages *m)
{
	return (m->prefix->iov_len + m->len + m->suffix->iov_len + 1 + 8 + BLOCK - 1) / BLOCK * BLOCK;
}

WITH_SHA static void two(const struct messages *m, uint8_t *digests)
{
	size_t padded = padded_length(m), n;
	uint8_t room[2][BLOCK];
	const uint8_t *p[2];
	struct state s[2];

	start2(&s[0]);
	start2(&s[1]);
	for (size_t off = 0; off < padded; off += n * BLOCK) {
		n = next_blocks(m, 2, 2, off, padded, room, p);
		blocks2(s, p[0], p[1], n);
	}
	finish2(&s[0], digests);
	finish2(&s[1], digests + SHA256_SIZE);
}

WITH_512 static void sixteen(const struct messages *m, unsigned n_messages, uint8_t *digests)
{
	size_t padded = padded_length(m), n;
	uint8_t room[SHA256_LANES][BLOCK];
	const uint8_t *p[SHA256_LANES];
	__m512i s[8];

	start16(s);
	for (size_t off = 0; off < padded; off += n * BLOCK) {
		n = next_blocks(m, n_messages, SHA256_LANES, off, padded, room, p);
		blocks16(s, p, n);
	}
	finish16(s, n_messages, digests);
}

/* --- which --------------------------------------------------------------------------------------------- */

#define ENOUGH_FOR_16 9 /* with fewer, two by two is faster */

static bool has_sha(void)
{
	unsigned eax, ebx, ecx, edx;

	return __builtin_cpu_supports("sse4.1") && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & bit_SHA);
}

static bool has_512(void)
{
	return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}

static atomic_uint known; /* ASKED, and what there is */

#define ASKED 1u

void sha256_lanes_allow(unsigned which)
{
	unsigned is = (has_sha() ? SHA256_TWO : 0) | (has_512() ? SHA256_SIXTEEN : 0);

	atomic_store_explicit(&known, ASKED | (is & which), memory_order_relaxed);
}

unsigned sha256_lanes_pay(unsigned n)
{
	unsigned is = atomic_load_explicit(&known, memory_order_relaxed);

	if (!is) {
		sha256_lanes_allow(SHA256_TWO | SHA256_SIXTEEN);
		is = atomic_load_explicit(&known, memory_order_relaxed);
	}
	if ((is & SHA256_SIXTEEN) && n >= (is & SHA256_TWO ? ENOUGH_FOR_16 : 3))
		return n < SHA256_LANES ? n : SHA256_LANES;
	return (is & SHA256_TWO) && n >= 2 ? 2 : 0;
}

void sha256_lanes(const struct iovec *prefix, const void *const *data, size_t len, const struct iovec *suffix,
		  unsigned n, uint8_t *digests)
{
	const struct messages m = {prefix, suffix, data, len};

	if (n == 2)
		two(&m, digests);
	else
		sixteen(&m, n, digests);
}
#else
void sha256_lanes_allow(unsigned which)
{
}

unsigned sha256_lanes_pay(unsigned n)
{
	return 0;
}

void sha256_lanes(const struct iovec *prefix, const void *const *data, size_t len, const struct iovec *suffix,
		  unsigned n, uint8_t *digests)
{
}
#endif
