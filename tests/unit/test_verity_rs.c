/* SPDX-License-Identifier: GPL-2.0-or-later */
/* verity's Reed-Solomon code: parity, and as many errors and erasures as it can correct. */
#include "unit.h"

#include <stdbool.h>

#include "../../targets/verity/rs.h"

static uint32_t seed;

static unsigned random_below(unsigned n)
{
	seed = seed * 1664525 + 1013904223;
	return (seed >> 8) % n;
}

static void make_codeword(const struct rs *rs, unsigned roots, uint8_t *word)
{
	for (unsigned i = 0; i < RS_SIZE - roots; i++)
		word[i] = (uint8_t)random_below(256);
	rs_encode(rs, word, word + RS_SIZE - roots);
}

static void syndromes_of(const struct rs *rs, const uint8_t *word, uint8_t *syndromes)
{
	const uint8_t *bytes[RS_SIZE];
	uint8_t *out[RS_MAX_ROOTS];

	for (unsigned i = 0; i < RS_SIZE; i++)
		bytes[i] = word + i;
	for (unsigned i = 0; i < RS_MAX_ROOTS; i++)
		out[i] = syndromes + i;
	rs_syndromes(rs, bytes, 1, out);
}

/* n different places. */
static void choose(unsigned n, uint8_t *at)
{
	for (unsigned i = 0; i < n; i++) {
		bool again;

		do {
			again = false;
			at[i] = (uint8_t)random_below(RS_SIZE);
			for (unsigned j = 0; j < i; j++)
				again |= at[j] == at[i];
		} while (again);
	}
}

/*
 * The parity of 1, 2, …, 253 and of a single one, from the generator polynomial by hand: with two roots it is
 * x^2 + 3x + 2, so x^2 is 3x + 2 there.
 */
static void test_parity_by_hand(void **state)
{
	struct rs *rs = rs_new(2);
	uint8_t data[253] = {0}, parity[2];

	data[252] = 1;
	rs_encode(rs, data, parity);
	assert_int_equal(parity[0], 3);
	assert_int_equal(parity[1], 2);
	data[252] = 0;
	data[251] = 1; /* x^3 = x (3x + 2) = 3 (3x + 2) + 2x = (5 + 2) x + 6 */
	rs_encode(rs, data, parity);
	assert_int_equal(parity[0], 7);
	assert_int_equal(parity[1], 6);
	rs_free(rs);
}

static void test_codewords_have_no_syndromes(void **state)
{
	for (unsigned roots = RS_MIN_ROOTS; roots <= RS_MAX_ROOTS; roots++) {
		struct rs *rs = rs_new(roots);
		uint8_t word[RS_SIZE], syndromes[RS_MAX_ROOTS] = {0}, zero[RS_MAX_ROOTS] = {0};

		make_codeword(rs, roots, word);
		syndromes_of(rs, word, syndromes);
		assert_memory_equal(syndromes, zero, roots);
		rs_free(rs);
	}
}

static void correct(const struct rs *rs, unsigned roots, unsigned n_erasures, unsigned n_errors)
{
	uint8_t word[RS_SIZE], broken[RS_SIZE], syndromes[RS_MAX_ROOTS], at[RS_MAX_ROOTS];
	struct rs_fix fix;

	make_codeword(rs, roots, word);
	memcpy(broken, word, RS_SIZE);
	choose(n_erasures + n_errors, at);
	for (unsigned i = 0; i < n_erasures; i++) /* an erasure may happen to be right */
		broken[at[i]] = (uint8_t)random_below(4) ? (uint8_t)random_below(256) : word[at[i]];
	for (unsigned i = n_erasures; i < n_erasures + n_errors; i++)
		broken[at[i]] ^= (uint8_t)(1 + random_below(255));
	syndromes_of(rs, broken, syndromes);
	assert_int_equal(rs_solve(rs, syndromes, at, n_erasures, &fix), 0);
	for (unsigned i = 0; i < fix.n; i++)
		broken[fix.at[i]] ^= fix.value[i];
	assert_memory_equal(broken, word, RS_SIZE);
}

static void test_all_that_can_be_corrected(void **state)
{
	for (unsigned roots = RS_MIN_ROOTS; roots <= RS_MAX_ROOTS; roots++) {
		struct rs *rs = rs_new(roots);

		for (unsigned erasures = 0; erasures <= roots; erasures++)
			for (unsigned errors = 0; erasures + 2 * errors <= roots; errors++)
				for (unsigned times = 0; times < 5; times++)
					correct(rs, roots, erasures, errors);
		rs_free(rs);
	}
}

/* It says so, or makes another codeword of it; it never claims that there is nothing. */
static void test_too_much(void **state)
{
	struct rs *rs = rs_new(4);
	uint8_t word[RS_SIZE], syndromes[RS_MAX_ROOTS], at[3];
	struct rs_fix fix;
	unsigned refused = 0;

	for (unsigned times = 0; times < 200; times++) {
		make_codeword(rs, 4, word);
		choose(3, at);
		for (unsigned i = 0; i < 3; i++)
			word[at[i]] ^= (uint8_t)(1 + random_below(255));
		syndromes_of(rs, word, syndromes);
		if (rs_solve(rs, syndromes, NULL, 0, &fix)) {
			refused++;
			continue;
		}
		assert_true(fix.n);
		for (unsigned i = 0; i < fix.n; i++)
			word[fix.at[i]] ^= fix.value[i];
		syndromes_of(rs, word, syndromes);
		for (unsigned i = 0; i < 4; i++)
			assert_int_equal(syndromes[i], 0);
	}
	assert_true(refused > 50);
	assert_int_equal(rs_solve(rs, syndromes, word, 5, &fix), -1);
	rs_free(rs);
}

/* With all erasures known, many codewords at once. */
static void test_weights(void **state)
{
	enum { WORDS = 64 };

	for (unsigned roots = RS_MIN_ROOTS; roots <= RS_MAX_ROOTS; roots += 11) {
		struct rs *rs = rs_new(roots);
		uint8_t words[RS_SIZE][WORDS], room[RS_MAX_ROOTS][WORDS], word[RS_SIZE], right[WORDS], sum[WORDS];
		uint8_t at[RS_MAX_ROOTS], weights[RS_MAX_ROOTS];
		uint8_t *syndromes[RS_MAX_ROOTS];
		const uint8_t *bytes[RS_SIZE];

		choose(roots, at);
		for (unsigned c = 0; c < WORDS; c++) {
			make_codeword(rs, roots, word);
			right[c] = word[at[1]];
			for (unsigned i = 0; i < roots; i++)
				word[at[i]] = (uint8_t)random_below(256);
			for (unsigned i = 0; i < RS_SIZE; i++)
				words[i][c] = word[i];
		}
		for (unsigned i = 0; i < RS_SIZE; i++)
			bytes[i] = words[i];
		for (unsigned i = 0; i < RS_MAX_ROOTS; i++)
			syndromes[i] = room[i];
		rs_syndromes(rs, bytes, WORDS, syndromes);
		rs_erasure_weights(rs, at, 1, weights);
		rs_weighted_sum(rs, weights, (const uint8_t *const *)syndromes, WORDS, sum);
		for (unsigned c = 0; c < WORDS; c++)
			assert_int_equal(words[at[1]][c] ^ sum[c], right[c]);
		rs_free(rs);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parity_by_hand), cmocka_unit_test(test_codewords_have_no_syndromes),
		cmocka_unit_test(test_all_that_can_be_corrected), cmocka_unit_test(test_too_much),
		cmocka_unit_test(test_weights),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
