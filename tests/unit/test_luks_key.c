/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dmfs-luks: a key that is not proven to be the volume's own is in no table. */
#include "unit.h"

#ifdef HAVE_LIBCRYPTSETUP

#include <stdio.h>

#undef fail /* cmocka's, for the tool's own */

#include "../../tools/dmfs-luks/key.c"

static int verified; /* what libcryptsetup says of a key */

void *crypt_safe_alloc(size_t size)
{
	return g_malloc0(size);
}

void crypt_safe_free(void *data)
{
	g_free(data);
}

int crypt_volume_key_verify(struct crypt_device *cd, const char *volume_key, size_t volume_key_size)
{
	return verified;
}

int volume_fail(GError **err, int code, const char *what)
{
	return -code;
}

int fail(GError **err, int code, const char *fmt, ...)
{
	return -code;
}

void secret_clear(struct secret *s)
{
	crypt_safe_free(s->data);
	*s = (struct secret){0};
}

static struct key *new_key(void)
{
	struct key *k = key_new(2, NULL);

	assert_non_null(k);
	memcpy(k->bytes, "\x01\xfe", 2);
	return k;
}

static void assert_line(const struct key *k, const char *expected)
{
	struct stage s = {0};

	assert_int_equal(stage_line(&s, "head ", k, " tail\n", NULL), expected ? 0 : -EPERM);
	if (expected)
		assert_string_equal(s.table.data, expected);
	else
		assert_null(s.table.data);
	secret_clear(&s.table);
}

static void a_key_is_not_proven_at_first(void **state)
{
	g_autoptr(key) k = new_key();

	assert_line(k, NULL);
	k->unused = true;
	assert_line(k, NULL);
}

static void luks_proves_it_by_its_digest(void **state)
{
	g_autoptr(key) k = new_key();

	verified = -EPERM;
	assert_int_equal(key_prove_luks(k, NULL, "f", NULL), -EPERM);
	assert_line(k, NULL);
	verified = -EINVAL;
	assert_int_equal(key_prove_luks(k, NULL, "f", NULL), -EPERM);
	assert_line(k, NULL);
	verified = -ENOMEM;
	assert_int_equal(key_prove_luks(k, NULL, "f", NULL), -ENOMEM);
	assert_line(k, NULL);
	verified = 0;
	assert_int_equal(key_prove_luks(k, NULL, "f", NULL), 0);
	assert_line(k, "head 01fe tail\n");
	k->unused = true;
	assert_line(k, "head - tail\n");
	verified = -EPERM; /* not for ever */
	assert_int_equal(key_prove_luks(k, NULL, "f", NULL), -EPERM);
	assert_line(k, NULL);
}

static void bitlocker_proves_it_by_its_tag(void **state)
{
	g_autoptr(key) k = new_key();

	key_prove_sealed(k);
	assert_line(k, "head 01fe tail\n");
}

static void tcrypt_proves_it_by_its_checksums(void **state)
{
	struct tc_header h = {.layers = 1, .layer = {{.cipher = "aes", .key = {0xab}, .key_len = 1}}};
	g_autoptr(key) before = key_of_layer(&h, 0, NULL), after = NULL;

	assert_line(before, NULL);
	h.checked = true;
	after = key_of_layer(&h, 0, NULL);
	assert_line(after, "head ab tail\n");
}

static void a_line_of_zeroes_needs_none(void **state)
{
	struct stage s = {0};

	assert_int_equal(stage_line_keyless(&s, "0 8 zero\n", NULL), 0);
	assert_string_equal(s.table.data, "0 8 zero\n");
	secret_clear(&s.table);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_key_is_not_proven_at_first),   cmocka_unit_test(luks_proves_it_by_its_digest),
	    cmocka_unit_test(bitlocker_proves_it_by_its_tag), cmocka_unit_test(tcrypt_proves_it_by_its_checksums),
	    cmocka_unit_test(a_line_of_zeroes_needs_none),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

int main(void)
{
	print_message("SKIPPED: built without libcryptsetup\n");
	return 0;
}

#endif
