/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A build without libnbd refuses NBD URIs, by name.  Our own dm_nbd_open() stands before the library's. */
#undef HAVE_LIBNBD
#include "io/nbd.c"

#include "unit.h"

#include "io/nbd.h"

static void a_uri_is_refused_by_name(void **state)
{
	static const char *const uris[] = {"nbd://host/x", "nbds://host", "nbd+unix:///?socket=/s", "nbds+unix:///"};
	struct dm_opener self = dm_opener_self();

	for (unsigned i = 0; i < G_N_ELEMENTS(uris); i++) {
		g_autoptr(GError) err = NULL;
		struct dm_dev *dev = NULL;

		assert_int_equal(dm_nbd_open(&self, uris[i], DM_MODE_READ, &dev, &err), -EOPNOTSUPP);
		assert_null(dev);
		assert_non_null(err);
		assert_non_null(strstr(err->message, uris[i]));
		assert_non_null(strstr(err->message, "libnbd"));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(a_uri_is_refused_by_name)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
