/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The small helpers: container_of, rounding, numbers in bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dmfs/container_of.h>
#include <dmfs/le.h>
#include <dmfs/rounding.h>

struct outer {
	int before;
	struct inner {
		int x;
	} inner;
};

static void embedded_leads_to_owner(void **state)
{
	struct outer o;
	struct inner *in = &o.inner;

	(void)state;
	assert_ptr_equal(container_of(in, struct outer, inner), &o);
}

static void powers_of_two(void **state)
{
	(void)state;
	assert_false(dm_is_pow2(0));
	assert_true(dm_is_pow2(1));
	assert_false(dm_is_pow2(3));
	for (unsigned i = 0; i < 64; i++) {
		assert_true(dm_is_pow2(UINT64_C(1) << i));
		assert_int_equal(dm_log2(UINT64_C(1) << i), i);
	}
	assert_false(dm_is_pow2(UINT64_MAX));
	assert_int_equal(dm_log2(UINT64_MAX), 63);
	assert_int_equal(dm_log2(7), 2);
}

static void rounding(void **state)
{
	(void)state;
	assert_int_equal(dm_div_up(0, 8), 0);
	assert_int_equal(dm_div_up(1, 8), 1);
	assert_int_equal(dm_div_up(8, 8), 1);
	assert_int_equal(dm_div_up(9, 8), 2);
	assert_true(dm_div_up(UINT64_MAX, 2) == UINT64_C(1) << 63);
	assert_int_equal(dm_round_up(0, 6), 0);
	assert_int_equal(dm_round_up(13, 6), 18);
	assert_int_equal(dm_round_up(12, 6), 12);
	assert_int_equal(dm_round_down(13, 6), 12);
	assert_int_equal(dm_round_down(5, 6), 0);
}

static void numbers_at_odd_addresses(void **state)
{
	static const uint8_t up[9] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
	uint8_t out[9] = {0};

	(void)state;
	assert_int_equal(get_le16(up + 1), 0x0201);
	assert_int_equal(get_be16(up + 1), 0x0102);
	assert_int_equal(get_le32(up + 1), 0x04030201);
	assert_int_equal(get_be32(up + 1), 0x01020304);
	assert_true(get_le64(up + 1) == UINT64_C(0x0807060504030201));
	assert_true(get_be64(up + 1) == UINT64_C(0x0102030405060708));
	put_le16(out + 1, 0x0201);
	put_be16(out + 3, 0x0304);
	put_le32(out + 5, 0x08070605);
	assert_memory_equal(out, up, sizeof out);
	put_be32(out + 1, 0x01020304);
	put_be64(out + 1, UINT64_C(0x0102030405060708));
	assert_memory_equal(out, up, sizeof out);
	put_le64(out + 1, UINT64_C(0x0807060504030201));
	assert_memory_equal(out, up, sizeof out);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(embedded_leads_to_owner),
		cmocka_unit_test(powers_of_two),
		cmocka_unit_test(rounding),
		cmocka_unit_test(numbers_at_odd_addresses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
