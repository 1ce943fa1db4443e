/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Numbers, argument groups and words: all that tables and messages are read with. */
#include "unit.h"

#include "core/table.h"

#include <dmfs/target.h>

static void numbers_are_decimal_and_checked(void **state)
{
	static const char *const bad[] = {"", " ", "-1", "+1", "0x10", "1x", "x1", "1 ", " 1", "1.0", "18446744073709551616",
					  "99999999999999999999999", "\xc2\xb2"};
	uint64_t n = 5;
	unsigned u = 5;

	for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
		assert_false(dm_parse_u64(bad[i], &n));
		assert_false(dm_parse_uint(bad[i], &u));
	}
	assert_false(dm_parse_uint("4294967296", &u));
	assert_true(n == 5 && u == 5);
	assert_true(dm_parse_u64("18446744073709551615", &n) && n == UINT64_MAX);
	assert_true(dm_parse_u64("0010", &n) && n == 10);
	assert_true(dm_parse_uint("4294967295", &u) && u == UINT_MAX);
	assert_true(dm_parse_uint("0", &u) && u == 0);
}

static void out_of_range_says_the_value_and_the_range(void **state)
{
	g_autoptr(GError) err = NULL;
	uint64_t n = 5;

	assert_int_equal(dm_read_u64("11", 1, 10, "target", "thing", &n, &err), -EINVAL);
	assert_int_equal(n, 5);
	assert_non_null(strstr(err->message, "target: thing 11 "));
	assert_non_null(strstr(err->message, "1 to 10"));
	assert_int_equal(dm_read_u64("10", 1, 10, "target", "thing", &n, NULL), 0);
	assert_int_equal(n, 10);
	g_clear_error(&err);
	assert_int_equal(dm_read_u64("ten", 1, 10, "target", "thing", &n, &err), -EINVAL);
	assert_non_null(strstr(err->message, "'ten'"));
}

static void groups_count_what_follows(void **state)
{
	char *argv[] = {"2", "a", "b", "1"};
	struct dm_args as = {4, argv};
	g_autoptr(GError) err = NULL;
	unsigned count = 9;

	assert_int_equal(dm_read_arg_group(&as, 0, 2, true, "t", "features", &count, NULL), 0);
	assert_int_equal(count, 2);
	assert_string_equal(dm_shift_arg(&as), "a");
	assert_string_equal(dm_shift_arg(&as), "b");
	assert_int_equal(dm_read_arg_group(&as, 0, 2, true, "t", "features", &count, &err), -EINVAL);
	assert_non_null(err);
	g_clear_error(&err);
	as.argc = 0;
	assert_int_equal(dm_read_arg_group(&as, 0, 2, true, "t", "features", &count, NULL), 0);
	assert_int_equal(count, 0);
	assert_int_equal(dm_read_arg_group(&as, 0, 2, false, "t", "features", &count, &err), -EINVAL);
	assert_null(dm_shift_arg(&as));
	as = (struct dm_args){4, argv};
	g_clear_error(&err);
	assert_int_equal(dm_read_arg_group(&as, 0, 1, true, "t", "features", &count, &err), -EINVAL);
}

static void check_words(const char *line, const char *const *want)
{
	g_autofree char *copy = g_strdup(line);
	g_autoptr(GPtrArray) words = dm_split_words(copy);

	assert_null(words->pdata[words->len - 1]);
	assert_int_equal(words->len - 1, g_strv_length((char **)want));
	for (unsigned i = 0; want[i]; i++)
		assert_string_equal(words->pdata[i], want[i]);
}

static void words_and_backslashes(void **state)
{
	check_words("", (const char *[]){NULL});
	check_words(" \t ", (const char *[]){NULL});
	check_words("0 8 zero", (const char *[]){"0", "8", "zero", NULL});
	check_words("  a\tb  ", (const char *[]){"a", "b", NULL});
	check_words("a\\ b c\\\\d", (const char *[]){"a b", "c\\d", NULL});
	check_words("\\a\\", (const char *[]){"a\\", NULL});
}

static void what_is_quoted_reads_the_same(void **state)
{
	char text[256];

	for (int first = 1; first < 256; first++) {
		g_autoptr(GString) quoted = g_string_new("x ");

		text[0] = (char)first;
		for (int i = 1; i < 255; i++)
			text[i] = (char)(1 + (first * 7 + i * 31) % 255);
		text[255] = '\0';
		dm_quote_word(text, quoted);
		g_string_append(quoted, " y");
		check_words(quoted->str, (const char *[]){"x", text, "y", NULL});
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(numbers_are_decimal_and_checked),
		cmocka_unit_test(out_of_range_says_the_value_and_the_range),
		cmocka_unit_test(groups_count_what_follows),
		cmocka_unit_test(words_and_backslashes),
		cmocka_unit_test(what_is_quoted_reads_the_same),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
