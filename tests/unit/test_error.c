/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Errors with a text, and which of a bio's are those of a path. */
#include "unit.h"

#include <dmfs/error.h>

static void test_the_first_text_stays(void **state)
{
	g_autoptr(GError) err = NULL;

	assert_int_equal(dm_fail(&err, EINVAL, "linear: device sector '%s' is not a number", "x"), -EINVAL);
	assert_int_equal(dm_fail(&err, EIO, "what it led to"), -EIO);
	assert_true(g_error_matches(err, DM_ERROR, EINVAL));
	assert_string_equal(err->message, "linear: device sector 'x' is not a number");
	assert_int_equal(dm_fail(NULL, ENOMEM, "nobody reads it"), -ENOMEM);
}

static void test_a_text_is_one_printable_line(void **state)
{
	g_autoptr(GError) err = NULL;

	dm_fail(&err, EINVAL, "a%cb\n\x1b[1mc", 0x7f);
	assert_string_equal(err->message, "a\\x7fb\\x0a\\x1b[1mc");
}

static void test_what_another_path_could_do_better(void **state)
{
	static const int path[] = {EIO, ENODEV, ENXIO, ETIMEDOUT, ENOTCONN, ECONNRESET, EPIPE, ESHUTDOWN, ESTALE, ENOLINK,
				   ENOMEM, EAGAIN};
	static const int other[] = {EOPNOTSUPP, EINVAL, ENODATA, EILSEQ, EREMOTEIO, EBADE, ENOSPC, EDQUOT, EFBIG,
				    EROFS, EPERM, EINTR};

	for (unsigned i = 0; i < G_N_ELEMENTS(path); i++)
		assert_true(dm_error_is_path(-path[i]));
	for (unsigned i = 0; i < G_N_ELEMENTS(other); i++)
		assert_false(dm_error_is_path(-other[i]));
	assert_false(dm_error_is_path(0));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_first_text_stays),
		cmocka_unit_test(test_a_text_is_one_printable_line),
		cmocka_unit_test(test_what_another_path_could_do_better),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
