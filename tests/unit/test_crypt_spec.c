/* SPDX-License-Identifier: GPL-2.0-or-later */
/* crypt's cipher strings and keys: what is taken, what is refused and with which words. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include <dmfs/target.h>

#include "../../targets/crypt/crypt.h"

static void expect(const char *text, const char *cipher, enum dm_cipher_mode mode, enum crypt_iv iv, const char *hash,
		   unsigned keycount)
{
	struct crypt_spec spec;
	GError *err = NULL;

	if (crypt_spec_parse(text, false, &spec, &err))
		fail_msg("%s refused: %s", text, err->message);
	assert_string_equal(spec.cipher->name, cipher);
	assert_int_equal(spec.mode, mode);
	assert_int_equal(spec.iv, iv);
	assert_int_equal(spec.keycount, keycount);
	if (hash)
		assert_string_equal(spec.essiv.name, hash);
	else
		assert_null(spec.essiv.name);
}

static void test_accepted(void **state)
{
	expect("aes", "aes", DM_CIPHER_CBC, CRYPT_IV_PLAIN, NULL, 1);
	expect("aes-plain", "aes", DM_CIPHER_CBC, CRYPT_IV_PLAIN, NULL, 1);
	expect("aes:64-cbc-lmk", "aes", DM_CIPHER_CBC, CRYPT_IV_LMK, NULL, 64);
	expect("aes-cbc-essiv:sha256", "aes", DM_CIPHER_CBC, CRYPT_IV_PLAIN64, "sha256", 1);
	expect("aes-cbc-essiv:sha3-256", "aes", DM_CIPHER_CBC, CRYPT_IV_PLAIN64, "sha3-256", 1);
	expect("twofish-ecb", "twofish", DM_CIPHER_ECB, CRYPT_IV_NONE, NULL, 1);
	expect("serpent-xts-plain64", "serpent", DM_CIPHER_XTS, CRYPT_IV_PLAIN64, NULL, 1);
	expect("des3_ede-ctr-benbi", "des3_ede", DM_CIPHER_CTR, CRYPT_IV_BENBI, NULL, 1);
	expect("capi:xts(aes)-plain64", "aes", DM_CIPHER_XTS, CRYPT_IV_PLAIN64, NULL, 1);
	expect("capi:cbc(aes)-essiv:sha3-256", "aes", DM_CIPHER_CBC, CRYPT_IV_PLAIN64, "sha3-256", 1);
	expect("capi:essiv(cbc(aes),sha256)-tcw", "aes", DM_CIPHER_CBC, CRYPT_IV_TCW, "sha256", 1);
	expect("capi:cbc(aes)-lmk", "aes", DM_CIPHER_CBC, CRYPT_IV_LMK, NULL, 64);
	expect("capi:chacha20-plain64", "chacha20", DM_CIPHER_STREAM, CRYPT_IV_PLAIN64, NULL, 1);
	expect("capi:ecb(aes)", "aes", DM_CIPHER_ECB, CRYPT_IV_NONE, NULL, 1);
	expect("cipher_null-ecb", "cipher_null", DM_CIPHER_ECB, CRYPT_IV_NONE, NULL, 1);
	expect("aes-cbc-elephant", "aes", DM_CIPHER_CBC, CRYPT_IV_ELEPHANT, NULL, 1);
}

static void test_meaningless_parts_are_told(void **state)
{
	struct crypt_spec spec;

	assert_int_equal(crypt_spec_parse("aes-ecb-foo", false, &spec, NULL), 0);
	assert_string_equal(spec.ignored, "foo");
	assert_int_equal(crypt_spec_parse("aes-cbc-plain:foo", false, &spec, NULL), 0);
	assert_string_equal(spec.ignored, "foo");
	assert_int_equal(crypt_spec_parse("aes-cbc-plain", false, &spec, NULL), 0);
	assert_null(spec.ignored);
	assert_int_equal(crypt_spec_parse("twofish-ecb", false, &spec, NULL), 0);
	assert_null(spec.ignored);
}

static void test_refused(void **state)
{
	static const struct {
		const char *text, *why;
	} bad[] = {
		{"", "cipher ''"},
		{"-", "chaining mode ''"},
		{"rot13-cbc-plain", "cipher 'rot13' is not one of aes, serpent"},
		{"aes-cbc", "an IV mode is needed"},
		{"aes-cbc-", "IV mode '' is not one of"},
		{"aes-pcbc-benbi", "chaining mode 'pcbc' is not one of ecb, cbc, ctr, xts, lrw"},
		{"aes-xts-plain65", "IV mode 'plain65'"},
		{"aes-cbc-essiv", "essiv needs a hash"},
		{"aes-cbc-essiv:sha257", "hash 'sha257' is not one of"},
		{"aes-cbc-essiv:sha512", "the hash has 64 bytes, aes takes 16 or 24 or 32"},
		{"aes-cbc-essiv:sha1", "the hash has 20 bytes"},
		{"aes-ecb-essiv:sha256", "essiv takes a mode"},
		{"aes-ctr-eboiv", "eboiv takes a mode"},
		{"aes-xts-lmk", "lmk takes cbc"},
		{"blowfish-lrw-plain64", "lrw takes ciphers with blocks of 16 bytes, blowfish has 8"},
		{"blowfish-xts-plain64", "xts takes ciphers with blocks of 16 bytes, blowfish has 8"},
		{"cipher_null-cbc-plain", "only as cipher_null-ecb"},
		{"chacha20-ecb", "only as capi:chacha20"},
		{"aes:3-cbc-plain", "key count '3' is not a power of two"},
		{"aes:0-cbc-plain", "key count '0'"},
		{"aes:-cbc-plain", "key count ''"},
		{"aes:4294967296-cbc-plain", "key count '4294967296'"},
		{"cbc(aes)-plain", "need the prefix capi:"},
		{"capi:", "not a cipher of the form"},
		{"capi:aes-plain", "not a cipher of the form"},
		{"capi:xts(aes-plain64", "not a cipher of the form"},
		{"capi:(aes)-plain", "not a cipher of the form"},
		{"capi:xts()-plain64", "cipher ''"},
		{"capi:cbc(aes)", "an IV mode is needed"},
		{"capi:cbc(aes)-essiv", "essiv needs a hash"},
		{"capi:essiv(cbc(aes))-plain64", "not of the form essiv(MODE(CIPHER),HASH)"},
		{"capi:essiv(cbc(aes),sha256)-essiv:sha256", "named twice"},
		{"capi:gcm(aes)-random", "'gcm(aes)' is an authenticated mode"},
		{"capi:authenc(hmac(sha256),xts(aes))-random", "is an authenticated mode"},
		{"capi:rfc7539(chacha20,poly1305)-random", "is an authenticated mode"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		struct crypt_spec spec;
		GError *err = NULL;

		assert_int_equal(crypt_spec_parse(bad[i].text, false, &spec, &err), -EINVAL);
		assert_true(g_str_has_prefix(err->message, "crypt: "));
		if (!strstr(err->message, bad[i].why))
			fail_msg("'%s': says '%s', not '%s'", bad[i].text, err->message, bad[i].why);
		g_error_free(err);
	}
}

static void test_layout(void **state)
{
	static const struct {
		const char *text;
		size_t key;
		unsigned sector_size;
		const char *why; /* NULL: taken, with: */
		size_t subkey, extra_at, extra;
	} cases[] = {
		{"aes-xts-plain64", 64, 512, NULL, 64, 64, 0},
		{"aes-xts-plain64", 33, 512, "two halves", 0, 0, 0},
		{"aes-xts-plain64", 40, 512, "half of the xts key has 20 bytes, aes takes 16 or 24 or 32", 0, 0, 0},
		{"aes-cbc-plain", 20, 512, "the key has 20 bytes, aes takes 16 or 24 or 32", 0, 0, 0},
		{"aes-cbc-plain", 0, 512, "the key has 0 bytes", 0, 0, 0},
		{"twofish-cbc-plain", 24, 512, "takes 16 or 32 (libgcrypt has no others)", 0, 0, 0},
		{"cast5-cbc-plain", 10, 512, "takes 11 to 16 (libgcrypt has no others)", 0, 0, 0},
		{"cast5-cbc-plain", 17, 512, "takes 11 to 16", 0, 0, 0},
		{"aes:4-cbc-plain", 64, 512, NULL, 16, 64, 0},
		{"aes:4-cbc-plain", 3, 512, "cannot be divided into 4 keys", 0, 0, 0},
		{"aes:2-cbc-plain", 40, 512, "each of the 2 keys has 20 bytes", 0, 0, 0},
		{"aes:64-cbc-lmk", 1024, 512, NULL, 16, 0, 0},
		{"aes:64-cbc-lmk", 1040, 512, NULL, 16, 1024, 16},
		{"aes:64-cbc-lmk", 1040, 4096, "lmk takes sectors of 512 bytes, not 4096", 0, 0, 0},
		{"des:64-cbc-lmk", 520, 512, "at least 16", 0, 0, 0},
		{"aes-cbc-tcw", 64, 512, NULL, 32, 32, 32},
		{"aes-cbc-tcw", 32, 512, "it needs the cipher's and 32 more", 0, 0, 0},
		{"aes-cbc-tcw", 64, 1024, "tcw takes sectors of 512 bytes, not 1024", 0, 0, 0},
		{"aes-cbc-elephant", 64, 4096, NULL, 32, 32, 32},
		{"aes-cbc-elephant", 36, 512, "elephant: half of the key has 18 bytes", 0, 0, 0},
		{"cipher_null-ecb", 0, 512, NULL, 0, 0, 0},
		{"cipher_null-ecb", 16, 512, "cipher_null takes 0", 0, 0, 0},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
		struct crypt_spec spec;
		struct crypt_layout l;
		GError *err = NULL;
		int r;

		assert_int_equal(crypt_spec_parse(cases[i].text, false, &spec, NULL), 0);
		r = crypt_spec_layout(&spec, cases[i].key, cases[i].sector_size, &l, &err);
		if (!cases[i].why) {
			assert_int_equal(r, 0);
			assert_int_equal(l.subkey, cases[i].subkey);
			assert_int_equal(l.extra, cases[i].extra);
			assert_int_equal(l.extra_at, cases[i].extra_at);
			continue;
		}
		assert_int_equal(r, -EINVAL);
		if (!strstr(err->message, cases[i].why))
			fail_msg("'%s': says '%s', not '%s'", cases[i].text, err->message, cases[i].why);
		g_error_free(err);
	}
}

/* No error text has more of the key in it than its length. */
static void test_bad_keys(void **state)
{
	static const struct {
		const char *arg, *why;
	} bad[] = {
		{"c0ffee0", "7 hexadecimal digits, an even number"},
		{"c0ffeexx", "not hexadecimal at digit 7 of 8"},
		{"c0ffee00\xe4\xe4", "not hexadecimal at digit 9 of 10"},
		{":c0ffee", "has the form :SIZE:user:DESCRIPTION"},
		{":32:c0ffee", "has the form :SIZE:user:DESCRIPTION"},
		{":32::c0ffee", "has the form :SIZE:user:DESCRIPTION"},
		{":32:user:", "has the form :SIZE:user:DESCRIPTION"},
		{":c0ffee:user:x", "size is not a number of bytes"},
		{":0:user:x", "size is not a number of bytes"},
		{":32:c0ffee:x", "is of no known type"},
		{":32:user:a b", "has blanks"},
		{":32:logon:a:b", "only the kernel can read keys of type logon"},
		{"c0ffee:", "HEX:user:DESCRIPTION or HEX:logon"},
		{"c0ffee:x", "HEX:user:DESCRIPTION or HEX:logon"},
		{"c0ffee:user:", "HEX:user:DESCRIPTION or HEX:logon"},
		{"c0ffee:logon:", "HEX:user:DESCRIPTION or HEX:logon"},
		{"c0ffee:trusted:x", "HEX:user:DESCRIPTION or HEX:logon"},
		{"c0ffee0:user:x", "7 hexadecimal digits, an even number"},
		{"c0ffeexx:logon:a:b", "not hexadecimal at digit 7 of 8"},
		{"c0ffee00:logon:a b", "has blanks"},
		{":32:encrypted:a", "only the kernel can read keys of type encrypted"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(bad); i++) {
		struct dm_key key;
		GError *err = NULL;

		assert_true(dm_key_read("crypt", bad[i].arg, &key, &err) < 0);
		assert_null(key.data);
		assert_null(strstr(err->message, "c0ffee"));
		if (!strstr(err->message, bad[i].why))
			fail_msg("'%s': says '%s', not '%s'", bad[i].arg, err->message, bad[i].why);
		g_error_free(err);
	}
	assert_int_equal(dm_secmem_used(), 0);
}

static void test_missing_keyring_key(void **state)
{
	struct dm_key key;
	GError *err = NULL;

	assert_true(dm_key_read("crypt", ":32:user:dmfs-test-surely-not-there", &key, &err) < 0);
#ifdef HAVE_KEYUTILS
	assert_non_null(strstr(err->message, "'dmfs-test-surely-not-there' is not in the keyrings"));
#endif
	g_error_free(err);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_accepted),
		cmocka_unit_test(test_meaningless_parts_are_told),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_layout),
		cmocka_unit_test(test_bad_keys),
		cmocka_unit_test(test_missing_keyring_key),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
