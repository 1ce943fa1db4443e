/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The ciphers and hashes of crypt: the kernel's names, the key lengths the
 * kernel takes, and libgcrypt's algorithms behind them.
 *
 * Where libgcrypt takes fewer lengths than the kernel but the missing ones are
 * defined as padded longer ones, the key is padded here: serpent appends a
 * one bit (as a byte 01, its words being little-endian) and zeroes, cast5
 * zeroes (RFC 2144, 2.5; keys of 80 bits and less have fewer rounds, which
 * libgcrypt has not).
 */
#include "crypt.h"

#include <dmfs/target.h>

static const struct crypt_cipher ciphers[] = {
	{"aes", 16, 16, 32, 8, 0, 0, 0, 0, {GCRY_CIPHER_AES128, GCRY_CIPHER_AES192, GCRY_CIPHER_AES256}},
	{"serpent", 16, 0, 32, 1, 0, 0, 32, 1,
	 {GCRY_CIPHER_SERPENT256, GCRY_CIPHER_SERPENT256, GCRY_CIPHER_SERPENT256}},
	{"twofish", 16, 16, 32, 8, 0, 24, 0, 0, {GCRY_CIPHER_TWOFISH128, GCRY_CIPHER_TWOFISH, GCRY_CIPHER_TWOFISH}},
	{"camellia", 16, 16, 32, 8, 0, 0, 0, 0,
	 {GCRY_CIPHER_CAMELLIA128, GCRY_CIPHER_CAMELLIA192, GCRY_CIPHER_CAMELLIA256}},
	{"cast5", 8, 5, 16, 1, 11, 0, 16, 0, {GCRY_CIPHER_CAST5, GCRY_CIPHER_CAST5, GCRY_CIPHER_CAST5}},
	{"blowfish", 8, 4, 56, 1, 0, 0, 0, 0, {GCRY_CIPHER_BLOWFISH, GCRY_CIPHER_BLOWFISH, GCRY_CIPHER_BLOWFISH}},
	{"des", 8, 8, 8, 1, 0, 0, 0, 0, {GCRY_CIPHER_DES, GCRY_CIPHER_DES, GCRY_CIPHER_DES}},
	{"des3_ede", 8, 24, 24, 1, 0, 0, 0, 0, {GCRY_CIPHER_3DES, GCRY_CIPHER_3DES, GCRY_CIPHER_3DES}},
	{"seed", 16, 16, 16, 1, 0, 0, 0, 0, {GCRY_CIPHER_SEED, GCRY_CIPHER_SEED, GCRY_CIPHER_SEED}},
	{"sm4", 16, 16, 16, 1, 0, 0, 0, 0, {GCRY_CIPHER_SM4, GCRY_CIPHER_SM4, GCRY_CIPHER_SM4}},
	{"chacha20", 1, 32, 32, 1, 0, 0, 0, 0, {GCRY_CIPHER_CHACHA20, GCRY_CIPHER_CHACHA20, GCRY_CIPHER_CHACHA20}},
	{"cipher_null", 1, 0, 0, 1, 0, 0, 0, 0, {0, 0, 0}},
};

static const struct crypt_hash hashes[] = {
	{"md4", GCRY_MD_MD4, 16},
	{"md5", GCRY_MD_MD5, 16},
	{"sha1", GCRY_MD_SHA1, 20},
	{"sha224", GCRY_MD_SHA224, 28},
	{"sha256", GCRY_MD_SHA256, 32},
	{"sha384", GCRY_MD_SHA384, 48},
	{"sha512", GCRY_MD_SHA512, 64},
	{"sha3-224", GCRY_MD_SHA3_224, 28},
	{"sha3-256", GCRY_MD_SHA3_256, 32},
	{"sha3-384", GCRY_MD_SHA3_384, 48},
	{"sha3-512", GCRY_MD_SHA3_512, 64},
	{"rmd160", GCRY_MD_RMD160, 20},
	{"wp256", GCRY_MD_WHIRLPOOL, 32}, /* whirlpool cut short */
	{"wp384", GCRY_MD_WHIRLPOOL, 48},
	{"wp512", GCRY_MD_WHIRLPOOL, 64},
	{"sm3", GCRY_MD_SM3, 32},
	{"streebog256", GCRY_MD_STRIBOG256, 32},
	{"streebog512", GCRY_MD_STRIBOG512, 64},
	{"blake2b-160", GCRY_MD_BLAKE2B_160, 20},
	{"blake2b-256", GCRY_MD_BLAKE2B_256, 32},
	{"blake2b-384", GCRY_MD_BLAKE2B_384, 48},
	{"blake2b-512", GCRY_MD_BLAKE2B_512, 64},
};

static bool same_name(const char *name, const char *s, size_t len)
{
	return strlen(name) == len && !memcmp(name, s, len);
}

const struct crypt_cipher *crypt_cipher_find(const char *name, size_t len)
{
	for (size_t i = 0; i < G_N_ELEMENTS(ciphers); i++)
		if (same_name(ciphers[i].name, name, len))
			return &ciphers[i];
	return NULL;
}

const struct crypt_hash *crypt_hash_find(const char *name, size_t len)
{
	for (size_t i = 0; i < G_N_ELEMENTS(hashes); i++)
		if (same_name(hashes[i].name, name, len))
			return &hashes[i];
	return NULL;
}

void crypt_cipher_names(GString *out)
{
	for (size_t i = 0; i < G_N_ELEMENTS(ciphers); i++)
		g_string_append_printf(out, "%s%s", i ? ", " : "", ciphers[i].name);
}

void crypt_hash_names(GString *out)
{
	for (size_t i = 0; i < G_N_ELEMENTS(hashes); i++)
		g_string_append_printf(out, "%s%s", i ? ", " : "", hashes[i].name);
}

static void key_lengths(const struct crypt_cipher *c, GString *out)
{
	unsigned min = MAX(c->key_min, c->lib_min);

	if (min == c->key_max) {
		g_string_append_printf(out, "%u", min);
	} else if (c->key_step == 1) {
		g_string_append_printf(out, "%u to %u", min, c->key_max);
	} else {
		for (unsigned len = min; len <= c->key_max; len += c->key_step)
			if (len != c->missing)
				g_string_append_printf(out, "%s%u", len == min ? "" : " or ", len);
	}
}

int crypt_cipher_check_key(const struct crypt_cipher *c, size_t len, const char *what, GError **err)
{
	g_autoptr(GString) lengths = NULL;
	bool kernels = len >= c->key_min && len <= c->key_max && (len - c->key_min) % c->key_step == 0;

	if (kernels && len >= c->lib_min && (!c->missing || len != c->missing))
		return 0;
	lengths = g_string_new(NULL);
	key_lengths(c, lengths);
	return dm_fail(err, EINVAL, "crypt: %s has %zu bytes, %s takes %s%s", what, len, c->name, lengths->str,
		       kernels ? " (libgcrypt has no others)" : "");
}

static size_t padded_key(const struct crypt_cipher *c, const uint8_t *key, size_t len, uint8_t *out)
{
	memcpy(out, key, len);
	if (len >= c->pad)
		return len;
	memset(out + len, 0, c->pad - len);
	out[len] = c->pad_mark;
	return c->pad;
}

/* Keys the kernel takes although they are weak are taken here too: there are volumes that have them. */
static gcry_error_t set_key(gcry_cipher_hd_t hd, const uint8_t *key, size_t len)
{
	gcry_error_t e;

	gcry_cipher_ctl(hd, GCRYCTL_SET_ALLOW_WEAK_KEY, NULL, 1);
	e = gcry_cipher_setkey(hd, key, len);
	return gcry_err_code(e) == GPG_ERR_WEAK_KEY ? 0 : e;
}

int crypt_cipher_open(const struct crypt_cipher *c, enum crypt_mode mode, const uint8_t *key, size_t len,
		      gcry_cipher_hd_t *out)
{
	static const int modes[] = {
		[CRYPT_ECB] = GCRY_CIPHER_MODE_ECB, [CRYPT_CBC] = GCRY_CIPHER_MODE_CBC,
		[CRYPT_CTR] = GCRY_CIPHER_MODE_CTR, [CRYPT_XTS] = GCRY_CIPHER_MODE_XTS,
		[CRYPT_STREAM] = GCRY_CIPHER_MODE_STREAM,
	};
	size_t half = mode == CRYPT_XTS ? len / 2 : len, padded;
	uint8_t full[CRYPT_MAX_KEY];
	gcry_cipher_hd_t hd;
	gcry_error_t e;
	int algo;

	*out = NULL;
	if (half > CRYPT_MAX_KEY / 2)
		return -EINVAL;
	if (!c->algo[0])
		return 0; /* the null cipher needs no handle */
	padded = padded_key(c, key, half, full);
	if (mode == CRYPT_XTS)
		padded += padded_key(c, key + half, half, full + padded);
	algo = half <= 16 ? c->algo[0] : half <= 24 ? c->algo[1] : c->algo[2];
	e = gcry_cipher_open(&hd, algo, modes[mode], GCRY_CIPHER_SECURE);
	if (!e) {
		e = set_key(hd, full, padded);
		if (e)
			gcry_cipher_close(hd);
		else
			*out = hd;
	}
	explicit_bzero(full, sizeof(full));
	return !e ? 0 : gcry_err_code(e) == GPG_ERR_ENOMEM ? -ENOMEM : -EINVAL;
}
