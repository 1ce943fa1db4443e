/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reed-Solomon (rs.h), after Berlekamp, Massey, Chien and Forney.
 *
 * In terms of polynomials: byte p of a codeword is the coefficient of x^(254 - p), its locator the generator to that
 * power.  The errors' locators are the inverse roots of sigma, which starts as the product over the erasures and is
 * completed from the syndromes; the error at locator X is omega(1/X) * X / sigma'(1/X), with omega = sigma * syndromes.
 */
#include "rs.h"

#include <glib.h>
#include <string.h>
#ifdef HAVE_LIBISAL
#include <isa-l/erasure_code.h>
#endif

#define POLYNOMIAL 0x11d

struct rs {
	unsigned roots;
	uint8_t generator[RS_MAX_ROOTS + 1]; /* the coefficient of x^i in generator[i] */
	uint8_t *tables;                     /* ISA-L's, for syndromes of whole codewords */
};

/* Logarithms, and powers twice over, so that a sum of logarithms need not be reduced. */
static uint8_t power[2 * RS_SIZE], logarithm[256];

static void fill_field(void)
{
	unsigned x = 1;

	for (unsigned i = 0; i < RS_SIZE; i++) {
		power[i] = power[i + RS_SIZE] = (uint8_t)x;
		logarithm[x] = (uint8_t)i;
		x <<= 1;
		if (x & 0x100)
			x ^= POLYNOMIAL;
	}
}

static uint8_t mul(uint8_t a, uint8_t b)
{
	return a && b ? power[logarithm[a] + logarithm[b]] : 0;
}

static uint8_t inverse(uint8_t a)
{
	return power[RS_SIZE - logarithm[a]];
}

static uint8_t divide(uint8_t a, uint8_t b)
{
	return a ? power[logarithm[a] + RS_SIZE - logarithm[b]] : 0;
}

/* The locator of byte p: the generator to the power 254 - p. */
static uint8_t locator(unsigned p)
{
	return power[RS_SIZE - 1 - p];
}

#ifdef HAVE_LIBISAL
static void prepare_tables(struct rs *rs)
{
	g_autofree uint8_t *matrix = g_malloc(rs->roots * RS_SIZE);

	for (unsigned i = 0; i < rs->roots; i++)
		for (unsigned p = 0; p < RS_SIZE; p++)
			matrix[i * RS_SIZE + p] = power[i * (RS_SIZE - 1 - p) % RS_SIZE];
	rs->tables = g_malloc(32 * rs->roots * RS_SIZE);
	ec_init_tables(RS_SIZE, (int)rs->roots, matrix, rs->tables);
}
#else
static void prepare_tables(struct rs *rs)
{
}
#endif

struct rs *rs_new(unsigned roots)
{
	static gsize filled;
	struct rs *rs = g_new0(struct rs, 1);

	g_assert(roots >= RS_MIN_ROOTS && roots <= RS_MAX_ROOTS);
	if (g_once_init_enter(&filled)) {
		fill_field();
		g_once_init_leave(&filled, 1);
	}
	rs->roots = roots;
	rs->generator[0] = 1;
	for (unsigned i = 0; i < roots; i++) { /* times x + 2^i */
		for (unsigned j = i + 1; j > 0; j--)
			rs->generator[j] = rs->generator[j - 1] ^ mul(rs->generator[j], power[i]);
		rs->generator[0] = mul(rs->generator[0], power[i]);
	}
	prepare_tables(rs);
	return rs;
}

void rs_free(struct rs *rs)
{
	if (rs)
		g_free(rs->tables);
	g_free(rs);
}

void rs_encode(const struct rs *rs, const uint8_t *data, uint8_t *parity)
{
	memset(parity, 0, rs->roots);
	for (unsigned p = 0; p < RS_SIZE - rs->roots; p++) { /* the remainder by the generator polynomial */
		uint8_t out = data[p] ^ parity[0];

		memmove(parity, parity + 1, rs->roots - 1);
		parity[rs->roots - 1] = 0;
		for (unsigned i = 0; i < rs->roots; i++)
			parity[i] ^= mul(out, rs->generator[rs->roots - 1 - i]);
	}
}

#ifdef HAVE_LIBISAL
void rs_syndromes(const struct rs *rs, const uint8_t *const bytes[RS_SIZE], size_t len, uint8_t *const syndromes[])
{
	ec_encode_data((int)len, RS_SIZE, (int)rs->roots, rs->tables, (uint8_t **)bytes, (uint8_t **)syndromes);
}

void rs_weighted_sum(const struct rs *rs, const uint8_t *weights, const uint8_t *const syndromes[], size_t len,
		     uint8_t *out)
{
	uint8_t tables[32 * RS_MAX_ROOTS];

	ec_init_tables((int)rs->roots, 1, (uint8_t *)weights, tables);
	ec_encode_data((int)len, (int)rs->roots, 1, tables, (uint8_t **)syndromes, &out);
}
#else
/* out = out * factor + in, for each byte */
static void horner(uint8_t *out, uint8_t factor, const uint8_t *in, size_t len)
{
	uint8_t times[256];

	for (unsigned i = 0; i < 256; i++)
		times[i] = mul((uint8_t)i, factor);
	for (size_t c = 0; c < len; c++)
		out[c] = times[out[c]] ^ in[c];
}

void rs_syndromes(const struct rs *rs, const uint8_t *const bytes[RS_SIZE], size_t len, uint8_t *const syndromes[])
{
	for (unsigned i = 0; i < rs->roots; i++) {
		memset(syndromes[i], 0, len);
		for (unsigned p = 0; p < RS_SIZE; p++)
			horner(syndromes[i], power[i], bytes[p], len);
	}
}

void rs_weighted_sum(const struct rs *rs, const uint8_t *weights, const uint8_t *const syndromes[], size_t len,
		     uint8_t *out)
{
	memset(out, 0, len);
	for (unsigned i = 0; i < rs->roots; i++)
		for (size_t c = 0; c < len; c++)
			out[c] ^= mul(weights[i], syndromes[i][c]);
}
#endif

/* --- one codeword ----------------------------------------------------------------------------- */

/* A polynomial: the coefficient of x^i in [i]; of degree at most RS_MAX_ROOTS. */
typedef uint8_t poly[RS_MAX_ROOTS + 1];

static uint8_t evaluate(const uint8_t *p, unsigned degree, uint8_t x)
{
	uint8_t y = 0;

	for (unsigned i = degree + 1; i-- > 0;)
		y = mul(y, x) ^ p[i];
	return y;
}

/* sigma = the product of 1 - X x over the erasures; its degree is their number */
static void erasure_polynomial(const uint8_t *erasures, unsigned n, poly sigma)
{
	memset(sigma, 0, sizeof(poly));
	sigma[0] = 1;
	for (unsigned e = 0; e < n; e++)
		for (unsigned j = e + 1; j > 0; j--)
			sigma[j] ^= mul(sigma[j - 1], locator(erasures[e]));
}

/* Completes sigma from the syndromes behind the first n_erasures; returns its degree, the number of errors. */
static unsigned find_sigma(const struct rs *rs, const uint8_t *s, unsigned n_erasures, poly sigma)
{
	unsigned length = n_erasures, roots = rs->roots;
	poly b, next;

	memcpy(b, sigma, sizeof(poly));
	for (unsigned r = n_erasures; r < roots; r++) {
		uint8_t d = 0;

		for (unsigned i = 0; i <= MIN(r, roots); i++)
			d ^= mul(sigma[i], s[r - i]);
		memmove(b + 1, b, roots); /* times x */
		b[0] = 0;
		if (!d)
			continue;
		for (unsigned i = 0; i <= roots; i++)
			next[i] = sigma[i] ^ mul(d, b[i]);
		if (2 * length <= r + n_erasures) {
			length = r + 1 + n_erasures - length;
			for (unsigned i = 0; i <= roots; i++)
				b[i] = divide(sigma[i], d);
		}
		memcpy(sigma, next, roots + 1);
	}
	return length;
}

/* Where sigma is zero: the places of the errors, at most n; returns how many there are. */
static unsigned find_places(const poly sigma, unsigned degree, uint8_t *at)
{
	unsigned found = 0;

	for (unsigned p = 0; p < RS_SIZE && found < degree; p++)
		if (!evaluate(sigma, degree, inverse(locator(p))))
			at[found++] = (uint8_t)p;
	return found;
}

int rs_solve(const struct rs *rs, const uint8_t *s, const uint8_t *erasures, unsigned n_erasures, struct rs_fix *fix)
{
	unsigned roots = rs->roots, degree;
	poly sigma, omega = {0};

	fix->n = 0;
	if (n_erasures > roots)
		return -1;
	erasure_polynomial(erasures, n_erasures, sigma);
	degree = find_sigma(rs, s, n_erasures, sigma);
	if (degree > roots || 2 * (degree - n_erasures) + n_erasures > roots ||
	    find_places(sigma, degree, fix->at) != degree)
		return -1;
	for (unsigned i = 0; i < roots; i++)
		for (unsigned j = 0; j <= i; j++)
			omega[i] ^= mul(s[i - j], sigma[j]);
	for (unsigned e = 0; e < degree; e++) {
		uint8_t x = inverse(locator(fix->at[e])), slope = 0;

		for (unsigned i = 1; i <= degree; i += 2) /* the derivative: even powers vanish */
			slope ^= mul(sigma[i], power[logarithm[x] * (i - 1) % RS_SIZE]);
		if (!slope)
			return -1;
		fix->value[e] = mul(divide(evaluate(omega, roots - 1, x), slope), locator(fix->at[e]));
	}
	fix->n = degree;
	return 0;
}

/*
 * The polynomial that is one at the wanted locator and zero at the others': summing the syndromes with its
 * coefficients leaves the wanted error alone.
 */
void rs_erasure_weights(const struct rs *rs, const uint8_t *erasures, unsigned which, uint8_t *weights)
{
	uint8_t x = locator(erasures[which]);
	unsigned degree = 0;
	poly p = {1};

	for (unsigned e = 0; e < rs->roots; e++) {
		uint8_t other = locator(erasures[e]), scale;

		if (e == which)
			continue;
		scale = inverse(x ^ other);
		degree++;
		for (unsigned j = degree + 1; j-- > 0;) /* times (y + other) / (x + other) */
			p[j] = mul((j ? p[j - 1] : 0) ^ mul(p[j], other), scale);
	}
	memcpy(weights, p, rs->roots);
}
