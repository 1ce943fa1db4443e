/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Headers of TrueCrypt and VeraCrypt (tchead.h). */
#include <errno.h>
#include <gcrypt.h>
#include <string.h>

#include <libcryptsetup.h>

#include "hash.h"
#include "tchead.h"

#include <dmfs/le.h>

#define SALT 64
#define BODY (TC_HEADER_BYTES - SALT)
#define KEYS_AT 192 /* in the body, to its end */
#define KEY_BYTES 192

/* --- key derivation -------------------------------------------------------------------------------- */

/* What is quick comes first, and then what is usual. */
static const struct kdf {
	const char *hash;
	int md;
	bool vera, boot;
	unsigned iterations, per_pim, base_pim;
} kdfs[] = {
    {"sha512", GCRY_MD_SHA512, false, false, 1000, 0, 0},
    {"ripemd160", GCRY_MD_RMD160, false, false, 2000, 0, 0},
    {"ripemd160", GCRY_MD_RMD160, false, false, 1000, 0, 0},
    {"whirlpool", GCRY_MD_WHIRLPOOL, false, false, 1000, 0, 0},
    {"sha1", GCRY_MD_SHA1, false, false, 2000, 0, 0},
    {"sha256", GCRY_MD_SHA256, true, true, 200000, 2048, 0},
    {"blake2s-256", GCRY_MD_BLAKE2S_256, true, true, 200000, 2048, 0},
    {"ripemd160", GCRY_MD_RMD160, true, true, 327661, 2048, 0},
    {"sha512", GCRY_MD_SHA512, true, false, 500000, 1000, 15000},
    {"sha256", GCRY_MD_SHA256, true, false, 500000, 1000, 15000},
    {"blake2s-256", GCRY_MD_BLAKE2S_256, true, false, 500000, 1000, 15000},
    {"whirlpool", GCRY_MD_WHIRLPOOL, true, false, 500000, 1000, 15000},
    {"ripemd160", GCRY_MD_RMD160, true, false, 655331, 1000, 15000},
    {"streebog", GCRY_MD_STRIBOG512, true, false, 500000, 1000, 15000},
};

const char *tc_hash_name(const char *spelled)
{
	static const char *const others[][2] = {
	    {"streebog", "stribog512"}, {"streebog", "streebog512"}, {"streebog", "stribog"},
	    {"ripemd160", "rmd160"},	{"blake2s-256", "blake2s"},
	};
	g_autofree char *plain = hash_plain(spelled);

	for (size_t i = 0; i < G_N_ELEMENTS(kdfs); i++) {
		g_autofree char *name = hash_plain(kdfs[i].hash);

		if (!strcmp(plain, name))
			return kdfs[i].hash;
	}
	for (size_t i = 0; i < G_N_ELEMENTS(others); i++)
		if (!strcmp(plain, others[i][1]))
			return others[i][0];
	return NULL;
}

/* CRC-32 with the bits reflected (ISO 3309), one byte more. */
static uint32_t crc32_step(uint32_t crc, unsigned char byte)
{
	crc ^= byte;
	for (unsigned i = 0; i < 8; i++)
		crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
	return crc;
}

static uint32_t crc32_of(const unsigned char *data, size_t len)
{
	uint32_t crc = 0xffffffff;

	for (size_t i = 0; i < len; i++)
		crc = crc32_step(crc, data[i]);
	return ~crc;
}

void tc_mix_keyfile(unsigned char *pool, size_t pool_len, const unsigned char *data, size_t len)
{
	uint32_t crc = 0xffffffff;
	size_t at = 0;

	for (size_t i = 0; i < MIN(len, TC_MAX_KEYFILE_BYTES); i++) {
		crc = crc32_step(crc, data[i]);
		for (unsigned shift = 32; shift > 0;) {
			shift -= 8;
			pool[at++] += (unsigned char)(crc >> shift);
		}
		at %= pool_len;
	}
}

/* --- ciphers --------------------------------------------------------------------------------------- */

enum { AES, SERPENT, TWOFISH, CAMELLIA, CAST5, DES3 };

static const struct cipher {
	const char *name;
	int algo;
	unsigned key, block; /* bytes */
} ciphers[] = {
    [AES] = {"aes", GCRY_CIPHER_AES256, 32, 16},	  [SERPENT] = {"serpent", GCRY_CIPHER_SERPENT256, 32, 16},
    [TWOFISH] = {"twofish", GCRY_CIPHER_TWOFISH, 32, 16}, [CAMELLIA] = {"camellia", GCRY_CIPHER_CAMELLIA256, 32, 16},
    [CAST5] = {"cast5", GCRY_CIPHER_CAST5, 16, 8},	  [DES3] = {"des3_ede", GCRY_CIPHER_3DES, 24, 8},
};

/* As crypt's layers go: the last is the first to be decrypted. */
static const struct cascade {
	unsigned n;
	unsigned char cipher[TC_MAX_LAYERS];
} cascades[] = {
    {1, {AES}},
    {1, {SERPENT}},
    {1, {TWOFISH}},
    {1, {CAMELLIA}},
    {2, {TWOFISH, AES}},
    {3, {SERPENT, TWOFISH, AES}},
    {2, {AES, SERPENT}},
    {3, {AES, TWOFISH, SERPENT}},
    {2, {SERPENT, TWOFISH}},
    {2, {SERPENT, CAMELLIA}},
};

static const unsigned char cbc_ciphers[] = {AES, SERPENT, TWOFISH, CAST5, DES3};

static int decrypt(int algo, int mode, const unsigned char *key, size_t key_len, const unsigned char *iv, size_t iv_len,
		   unsigned char *body)
{
	gcry_cipher_hd_t h;
	gcry_error_t e = gcry_cipher_open(&h, algo, mode, GCRY_CIPHER_SECURE);

	if (e)
		return -ENOTSUP;
	e = gcry_cipher_setkey(h, key, key_len);
	if (!e)
		e = gcry_cipher_setiv(h, iv, iv_len);
	if (!e)
		e = gcry_cipher_decrypt(h, body, BODY, NULL, 0);
	gcry_cipher_close(h);
	return e ? -EINVAL : 0;
}

/* Whether it has been decrypted rightly: magic and checksums. */
static bool is_header(const unsigned char *body, bool vera)
{
	unsigned version = get_be32(body + 4) >> 16;

	if (memcmp(body, vera ? "VERA" : "TRUE", 4))
		return false;
	if (version > 3 && crc32_of(body, KEYS_AT - 4) != get_be32(body + KEYS_AT - 4))
		return false;
	return crc32_of(body + KEYS_AT, BODY - KEYS_AT) == get_be32(body + 8);
}

/* The key of one of n layers, xts: all first halves, then all second halves. */
static void xts_layer(const unsigned char *keys, unsigned i, unsigned n, const struct cipher *c, struct tc_layer *out)
{
	out->cipher = c->name;
	out->key_len = 64;
	memcpy(out->key, keys + 32 * i, 32);
	memcpy(out->key + 32, keys + 32 * (n + i), 32);
}

static bool try_xts(const unsigned char *header, const unsigned char *keys, const struct cascade *s, bool vera,
		    unsigned char *body, struct tc_header *out)
{
	static const unsigned char unit[16];

	memcpy(body, header + SALT, BODY);
	for (unsigned i = s->n; i-- > 0;) {
		const struct cipher *c = &ciphers[s->cipher[i]];

		xts_layer(keys, i, s->n, c, &out->layer[i]);
		if (decrypt(c->algo, GCRY_CIPHER_MODE_XTS, out->layer[i].key, 64, unit, sizeof(unit), body))
			return false;
	}
	if (!is_header(body, vera))
		return false;
	for (unsigned i = 0; i < s->n; i++)
		xts_layer(body + KEYS_AT, i, s->n, &ciphers[s->cipher[i]], &out->layer[i]);
	out->layers = s->n;
	out->mode = "xts-plain64";
	return true;
}

/* The key is at byte 32 of all keys; before it the IV's seed, of which the bytes from the eighth on whiten. */
static bool try_cbc(const unsigned char *header, const unsigned char *keys, const struct cipher *c, unsigned char *body,
		    struct tc_header *out)
{
	for (unsigned i = 0; i < BODY; i++)
		body[i] = header[SALT + i] ^ keys[8 + i % 8];
	if (decrypt(c->algo, GCRY_CIPHER_MODE_CBC, keys + 32, c->key, keys, c->block, body) || !is_header(body, false))
		return false;
	out->layers = 1;
	out->mode = "cbc-tcw";
	out->layer[0].cipher = c->name;
	out->layer[0].key_len = c->key + c->block + 16;
	memcpy(out->layer[0].key, body + KEYS_AT + 32, c->key);
	memcpy(out->layer[0].key + c->key, body + KEYS_AT, c->block + 16);
	return true;
}

static bool try_all(const unsigned char *header, const unsigned char *keys, bool vera, unsigned char *body,
		    struct tc_header *out)
{
	for (size_t i = 0; i < G_N_ELEMENTS(cascades); i++)
		if (try_xts(header, keys, &cascades[i], vera, body, out))
			return true;
	for (size_t i = 0; i < G_N_ELEMENTS(cbc_ciphers) && !vera; i++)
		if (try_cbc(header, keys, &ciphers[cbc_ciphers[i]], body, out))
			return true;
	return false;
}

/* --- the header ------------------------------------------------------------------------------------ */

static bool is_wished(const struct kdf *k, const struct tc_wish *w)
{
	return (!w->hash || !strcmp(w->hash, k->hash)) && (w->vera || !k->vera) && (w->boot || !k->boot) &&
	       (!w->pim || k->vera);
}

int tc_read_header(const unsigned char *header, const char *pass, size_t pass_len, const struct tc_wish *wish,
		   struct tc_header *out)
{
	unsigned char *keys = crypt_safe_alloc(KEY_BYTES), *body = crypt_safe_alloc(BODY);
	bool found = false;
	int r = keys && body ? -EPERM : -ENOMEM;

	for (size_t i = 0; i < G_N_ELEMENTS(kdfs) && r == -EPERM && pass_len; i++) {
		const struct kdf *k = &kdfs[i];
		unsigned long iterations =
		    wish->pim ? k->base_pim + (unsigned long)k->per_pim * wish->pim : k->iterations;

		if (!is_wished(k, wish) ||
		    gcry_kdf_derive(pass, pass_len, GCRY_KDF_PBKDF2, k->md, header, SALT, iterations, KEY_BYTES, keys))
			continue;
		found = try_all(header, keys, k->vera, body, out);
		if (found)
			r = 0;
	}
	if (found) {
		out->checked = true;
		out->version = get_be32(body + 4) >> 16;
		out->hidden_bytes = get_be64(body + 28);
		out->volume_bytes = get_be64(body + 36);
		out->data_at = get_be64(body + 44);
		out->data_bytes = get_be64(body + 52);
		out->flags = get_be32(body + 60);
		out->sector_size = get_be32(body + 64) ? get_be32(body + 64) : 512;
	}
	crypt_safe_free(keys);
	crypt_safe_free(body);
	return r;
}
