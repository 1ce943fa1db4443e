/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Ciphers (cipher.h).
 *
 * Where libgcrypt takes fewer lengths than the kernel but the missing ones are defined as padded longer ones, the key
 * is padded here: serpent appends a one bit (as a byte 01, its words being little-endian) and zeroes, cast5 zeroes (RFC
 * 2144, 2.5; keys of 80 bits and less have fewer rounds, which libgcrypt has not).
 */
#include <errno.h>
#include <string.h>

#include <dmfs/cipher.h>
#include <dmfs/error.h>

static const struct dm_cipher ciphers[] = {
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

static bool same_name(const char *name, const char *s, size_t len)
{
	return strlen(name) == len && !memcmp(name, s, len);
}

const struct dm_cipher *dm_cipher_find(const char *name, size_t len)
{
	for (size_t i = 0; i < G_N_ELEMENTS(ciphers); i++)
		if (same_name(ciphers[i].name, name, len))
			return &ciphers[i];
	return NULL;
}

void dm_cipher_names(GString *out)
{
	for (size_t i = 0; i < G_N_ELEMENTS(ciphers); i++)
		g_string_append_printf(out, "%s%s", i ? ", " : "", ciphers[i].name);
}

int dm_cipher_read(const char *who, const char *name, size_t len, const struct dm_cipher **out, GError **err)
{
	g_autoptr(GString) names = NULL;

	*out = dm_cipher_find(name, len);
	if (*out)
		return 0;
	names = g_string_new(NULL);
	dm_cipher_names(names);
	return dm_fail(err, EINVAL, "%s: cipher '%.*s' is not one of %s", who, (int)len, name, names->str);
}

/* --- modes --------------------------------------------------------------------------------- */

int dm_cipher_read_mode(const char *who, const char *name, size_t len, enum dm_cipher_mode *out, GError **err)
{
	static const char *const names[] = {
		[DM_CIPHER_ECB] = "ecb", [DM_CIPHER_CBC] = "cbc", [DM_CIPHER_CTR] = "ctr", [DM_CIPHER_XTS] = "xts",
		[DM_CIPHER_LRW] = "lrw"};

	for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
		if (same_name(names[i], name, len)) {
			*out = (enum dm_cipher_mode)i;
			return 0;
		}
	return dm_fail(err, EINVAL, "%s: chaining mode '%.*s' is not one of ecb, cbc, ctr, xts, lrw", who, (int)len, name);
}

int dm_cipher_parse(const char *who, const char *text, size_t len, const struct dm_cipher **cipher,
		    enum dm_cipher_mode *mode, GError **err)
{
	const char *open = memchr(text, '(', len);

	if (same_name("chacha20", text, len)) {
		*mode = DM_CIPHER_STREAM;
		return dm_cipher_read(who, text, len, cipher, err);
	}
	if (!open || open == text || text[len - 1] != ')')
		return dm_fail(err, EINVAL, "%s: '%.*s' is not a cipher of the form MODE(CIPHER), as xts(aes)", who,
			       (int)len, text);
	if (dm_cipher_read_mode(who, text, (size_t)(open - text), mode, err))
		return -EINVAL;
	return dm_cipher_read(who, open + 1, (size_t)(text + len - 1 - (open + 1)), cipher, err);
}

int dm_cipher_check_mode(const char *who, const struct dm_cipher *c, enum dm_cipher_mode mode, GError **err)
{
	if (mode == DM_CIPHER_STREAM || mode == DM_CIPHER_POLY1305)
		return 0;
	if (c->block == 1 && (c->algo[0] || mode != DM_CIPHER_ECB))
		return dm_fail(err, EINVAL, "%s: %s is no block cipher, it works only as %s", who, c->name,
			       c->algo[0] ? "capi:chacha20" : "cipher_null-ecb");
	if ((mode == DM_CIPHER_XTS || mode == DM_CIPHER_LRW || mode == DM_CIPHER_GCM) && c->block != 16)
		return dm_fail(err, EINVAL, "%s: %s takes ciphers with blocks of 16 bytes, %s has %u", who,
			       mode == DM_CIPHER_XTS ? "xts" : mode == DM_CIPHER_LRW ? "lrw" : "gcm", c->name, c->block);
	return 0;
}

unsigned dm_cipher_iv_size(const struct dm_cipher *c, enum dm_cipher_mode mode)
{
	switch (mode) {
	case DM_CIPHER_ECB:
		return 0;
	case DM_CIPHER_STREAM:
		return DM_CIPHER_MAX_IV;
	case DM_CIPHER_GCM:
	case DM_CIPHER_POLY1305:
		return 12;
	default:
		return c->block;
	}
}

unsigned dm_cipher_granule(const struct dm_cipher *c, enum dm_cipher_mode mode)
{
	return mode == DM_CIPHER_CTR || mode == DM_CIPHER_GCM ? 1 : c->block;
}

/* --- keys ---------------------------------------------------------------------------------- */

static void key_lengths(const struct dm_cipher *c, GString *out)
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

int dm_cipher_check_key(const char *who, const struct dm_cipher *c, size_t len, const char *what, GError **err)
{
	g_autoptr(GString) lengths = NULL;
	bool kernels = len >= c->key_min && len <= c->key_max && (len - c->key_min) % c->key_step == 0;

	if (kernels && len >= c->lib_min && (!c->missing || len != c->missing))
		return 0;
	lengths = g_string_new(NULL);
	key_lengths(c, lengths);
	return dm_fail(err, EINVAL, "%s: %s has %zu bytes, %s takes %s%s", who, what, len, c->name, lengths->str,
		       kernels ? " (libgcrypt has no others)" : "");
}

static size_t padded_key(const struct dm_cipher *c, const uint8_t *key, size_t len, uint8_t *out)
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

int dm_cipher_open(const struct dm_cipher *c, enum dm_cipher_mode mode, const uint8_t *key, size_t len,
		      gcry_cipher_hd_t *out)
{
	static const int modes[] = {
		[DM_CIPHER_ECB] = GCRY_CIPHER_MODE_ECB, [DM_CIPHER_CBC] = GCRY_CIPHER_MODE_CBC,
		[DM_CIPHER_CTR] = GCRY_CIPHER_MODE_CTR, [DM_CIPHER_XTS] = GCRY_CIPHER_MODE_XTS,
		[DM_CIPHER_LRW] = GCRY_CIPHER_MODE_ECB,
		[DM_CIPHER_STREAM] = GCRY_CIPHER_MODE_STREAM, [DM_CIPHER_GCM] = GCRY_CIPHER_MODE_GCM,
		[DM_CIPHER_POLY1305] = GCRY_CIPHER_MODE_POLY1305,
	};
	size_t half = mode == DM_CIPHER_XTS ? len / 2 : len, padded;
	uint8_t full[DM_CIPHER_MAX_KEY];
	gcry_cipher_hd_t hd;
	gcry_error_t e;
	int algo;

	*out = NULL;
	if (mode == DM_CIPHER_LRW)
		half -= MIN(half, 16);
	if (half > DM_CIPHER_MAX_KEY / 2)
		return -EINVAL;
	if (!c->algo[0])
		return 0; /* the null cipher needs no handle */
	padded = padded_key(c, key, half, full);
	if (mode == DM_CIPHER_XTS)
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
