/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Ciphers by name and keys by text, for any target: who says what, sizes, and that a handle does what the cipher does.
 */
#include "unit.h"

#include <unistd.h>

#ifdef HAVE_KEYUTILS
#include <keyutils.h>
#endif

#include <dmfs/cipher.h>
#include <dmfs/hash.h>
#include <dmfs/keys.h>
#include <dmfs/secmem.h>

static void parse(const char *text, const char *name, enum dm_cipher_mode mode, unsigned iv, unsigned granule)
{
	const struct dm_cipher *c;
	enum dm_cipher_mode m;

	assert_int_equal(dm_cipher_parse("integrity", text, strlen(text), &c, &m, NULL), 0);
	assert_int_equal(dm_cipher_check_mode("integrity", c, m, NULL), 0);
	assert_string_equal(c->name, name);
	assert_int_equal(m, mode);
	assert_int_equal(dm_cipher_iv_size(c, m), iv);
	assert_int_equal(dm_cipher_granule(c, m), granule);
}

static void refuse(const char *text, const char *why)
{
	g_autoptr(GError) err = NULL;
	const struct dm_cipher *c;
	enum dm_cipher_mode m;
	int r = dm_cipher_parse("integrity", text, strlen(text), &c, &m, &err);

	if (!r)
		r = dm_cipher_check_mode("integrity", c, m, &err);
	assert_int_equal(r, -EINVAL);
	assert_true(g_str_has_prefix(err->message, "integrity: "));
	if (!strstr(err->message, why))
		fail_msg("'%s' does not say '%s'", err->message, why);
}

static void names_of_the_crypto_api(void **state)
{
	parse("ctr(aes)", "aes", DM_CIPHER_CTR, 16, 1);
	parse("cbc(aes)", "aes", DM_CIPHER_CBC, 16, 16);
	parse("xts(serpent)", "serpent", DM_CIPHER_XTS, 16, 16);
	parse("ecb(des3_ede)", "des3_ede", DM_CIPHER_ECB, 0, 8);
	parse("chacha20", "chacha20", DM_CIPHER_STREAM, 16, 1);
	refuse("aes", "MODE(CIPHER)");
	refuse("", "MODE(CIPHER)");
	refuse("(aes)", "MODE(CIPHER)");
	refuse("cbc(aes", "MODE(CIPHER)");
	refuse("gcm(aes)", "'gcm' is not one of ecb, cbc, ctr, xts");
	refuse("cbc(aes2)", "'aes2' is not one of aes, ");
	refuse("cbc()", "is not one of aes, ");
	refuse("xts(des3_ede)", "xts takes ciphers with blocks of 16 bytes");
	refuse("cbc(chacha20)", "is no block cipher");
}

static void a_handle_encrypts(void **state)
{
	/* FIPS 197, C.1 */
	static const uint8_t plain[16] = {0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77,
					  0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
	static const uint8_t want[16] = {0x69, 0xc4, 0xe0, 0xd8, 0x6a, 0x7b, 0x04, 0x30,
					 0xd8, 0xcd, 0xb7, 0x80, 0x70, 0xb4, 0xc5, 0x5a};
	g_autoptr(GError) err = NULL;
	gcry_cipher_hd_t hd;
	struct dm_key key;
	uint8_t got[16];

	assert_int_equal(dm_gcrypt_init(NULL), 0);
	assert_int_equal(dm_key_read("integrity", "000102030405060708090a0b0c0d0e0f", &key, NULL), 0);
	assert_int_equal(dm_cipher_open(dm_cipher_find("aes", 3), DM_CIPHER_ECB, key.data, key.size, &hd), 0);
	assert_int_equal(gcry_cipher_encrypt(hd, got, 16, plain, 16), 0);
	assert_memory_equal(got, want, 16);
	gcry_cipher_close(hd);
	dm_key_clear(&key);
	assert_null(key.data);
	assert_int_equal(dm_cipher_check_key("integrity", dm_cipher_find("aes", 3), 17, "the journal's key", &err), -EINVAL);
	assert_string_equal(err->message, "integrity: the journal's key has 17 bytes, aes takes 16 or 24 or 32");
}

static void keys_from_hex(void **state)
{
	g_autoptr(GError) err = NULL, odd = NULL;
	struct dm_key key;

	assert_int_equal(dm_key_from_hex("integrity", "the journal's key", "00ff7F", &key, NULL), 0);
	assert_int_equal(key.size, 3);
	assert_memory_equal(key.data, "\0\xff\x7f", 3);
	assert_null(key.description);
	dm_key_clear(&key);
	assert_int_equal(dm_key_from_hex("integrity", "the journal's key", "0g", &key, &err), -EINVAL);
	assert_string_equal(err->message, "integrity: the journal's key is not hexadecimal at digit 2 of 2");
	assert_int_equal(dm_key_from_hex("integrity", "the journal's key", "0", &key, &odd), -EINVAL);
	assert_non_null(strstr(odd->message, "has 1 hexadecimal digits"));
	assert_int_equal(dm_key_read("integrity", "-", &key, NULL), 0);
	assert_int_equal(key.size, 0);
	assert_null(key.data);
}

static void keys_handed_over(void **state)
{
	struct dm_key key;

	assert_int_equal(dm_key_read("crypt", "3132:logon:a:b", &key, NULL), 0);
	assert_int_equal(key.size, 2);
	assert_memory_equal(key.data, "12", 2);
	assert_true(key.handed);
	assert_string_equal(key.description, "logon:a:b");
	dm_key_clear(&key);
	assert_int_equal(dm_key_read("crypt", "3132", &key, NULL), 0);
	assert_false(key.handed);
	dm_key_clear(&key);
}

static void keys_from_the_keyring(void **state)
{
#ifdef HAVE_KEYUTILS
	g_autofree char *desc = g_strdup_printf("dmfs-unit-%d", (int)getpid());
	g_autofree char *arg = g_strdup_printf(":5:user:%s", desc), *wrong = g_strdup_printf(":6:user:%s", desc);
	key_serial_t id = add_key("user", desc, "12345", 5, KEY_SPEC_PROCESS_KEYRING);
	g_autoptr(GError) err = NULL;
	struct dm_key key;

	if (id < 0)
		skip(); /* a container without keyrings */
	assert_int_equal(dm_key_from_keyring("verity", desc, 0, &key, NULL), 0); /* as large as it is */
	assert_int_equal(key.size, 5);
	assert_memory_equal(key.data, "12345", 5);
	dm_key_clear(&key);
	assert_int_equal(dm_key_read("verity", arg, &key, NULL), 0);
	assert_memory_equal(key.data, "12345", 5);
	assert_true(g_str_has_prefix(key.description, "user:dmfs-unit-"));
	dm_key_clear(&key);
	assert_int_equal(dm_key_read("verity", wrong, &key, &err), -EINVAL);
	assert_non_null(strstr(err->message, "has 5 bytes, not 6"));
	keyctl_revoke(id);
#else
	skip();
#endif
}

static void plain_digests(void **state)
{
	g_autoptr(GString) names = g_string_new(NULL);
	struct dm_digest d;

	assert_true(dm_digest_find("wp384!", 5, &d));
	assert_string_equal(d.name, "wp384");
	assert_int_equal(d.algo, GCRY_MD_WHIRLPOOL);
	assert_int_equal(d.size, 48);
	assert_false(dm_digest_find("crc32c", 6, &d));
	assert_false(dm_digest_find("sha", 3, &d));
	dm_digest_names(names);
	assert_true(g_str_has_prefix(names->str, "md4, md5, sha1, "));
	assert_null(strstr(names->str, "crc32"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(names_of_the_crypto_api),
		cmocka_unit_test(a_handle_encrypts),
		cmocka_unit_test(keys_from_hex),
		cmocka_unit_test(keys_handed_over),
		cmocka_unit_test(keys_from_the_keyring),
		cmocka_unit_test(plain_digests),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
