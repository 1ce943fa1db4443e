/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Ciphers by libgcrypt (alg.h).
 *
 *   skcipher  MODE(CIPHER), modes ecb, cbc, ctr, xts; ecb(cipher_null)
 *   aead      gcm(aes), rfc7539(chacha20,poly1305): those that dmfs's crypt has
 */
#include <dlfcn.h>
#include <errno.h>
#include <gcrypt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "alg.h"

/* --- libgcrypt ------------------------------------------------------------------------------------- */

#define GCRYPT "libgcrypt.so.20"

/* Its functions that are used here, by their names. */
#define FUNCTIONS(f)                                                                                                   \
	f(gcry_check_version) f(gcry_control) f(gcry_cipher_open) f(gcry_cipher_close) f(gcry_cipher_setkey)           \
		f(gcry_cipher_setiv) f(gcry_cipher_setctr) f(gcry_cipher_encrypt) f(gcry_cipher_decrypt)               \
			f(gcry_cipher_get_algo_blklen) f(gcry_cipher_get_algo_keylen)

#define MEMBER(name) __typeof__(&name) name;
static struct {
	bool there;
	FUNCTIONS(MEMBER)
} gcrypt;

static void load(void)
{
	void *lib = dlopen(GCRYPT, RTLD_NOW | RTLD_LOCAL);

	if (!lib)
		return;
#define LOOK_UP(name) gcrypt.name = (__typeof__(&name))dlsym(lib, #name);
	FUNCTIONS(LOOK_UP)
#define IS_MISSING(name) || !gcrypt.name
	if (false FUNCTIONS(IS_MISSING) || !gcrypt.gcry_check_version(NULL))
		return;
	if (!gcrypt.gcry_control(GCRYCTL_ANY_INITIALIZATION_P)) { /* else it is the program's own */
		gcrypt.gcry_control(GCRYCTL_DISABLE_SECMEM, 0);
		gcrypt.gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
	}
	gcrypt.there = true;
}

static bool have_gcrypt(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, load);
	return gcrypt.there;
}

/* --- names ----------------------------------------------------------------------------------------- */

/* By the length of the key. */
#define MAX_KEYS 3

static const struct cipher {
	const char *name;
	int algos[MAX_KEYS];
} ciphers[] = {
	{"aes", {GCRY_CIPHER_AES128, GCRY_CIPHER_AES192, GCRY_CIPHER_AES256}},
	{"serpent", {GCRY_CIPHER_SERPENT128, GCRY_CIPHER_SERPENT192, GCRY_CIPHER_SERPENT256}},
	{"twofish", {GCRY_CIPHER_TWOFISH128, GCRY_CIPHER_TWOFISH}},
	{"camellia", {GCRY_CIPHER_CAMELLIA128, GCRY_CIPHER_CAMELLIA192, GCRY_CIPHER_CAMELLIA256}},
	{"blowfish", {GCRY_CIPHER_BLOWFISH}},
	{"cast5", {GCRY_CIPHER_CAST5}},
	{"des3_ede", {GCRY_CIPHER_3DES}},
	{"sm4", {GCRY_CIPHER_SM4}},
	{"cipher_null", {0}},
};

static const struct mode {
	const char *name;
	int mode;
} modes[] = {
	{"ecb", GCRY_CIPHER_MODE_ECB},
	{"cbc", GCRY_CIPHER_MODE_CBC},
	{"ctr", GCRY_CIPHER_MODE_CTR},
	{"xts", GCRY_CIPHER_MODE_XTS},
};

static const struct aead {
	const char *name;
	size_t key_lens[MAX_KEYS];
	size_t min_tag;
} aeads[] = {
	{"gcm(aes)", {16, 24, 32}, 4},
	{"rfc7539(chacha20,poly1305)", {32}, 16},
};

#define N_OF(array) (sizeof(array) / sizeof *(array))

struct alg {
	const struct aead *aead; /* or: */
	const struct cipher *cipher;
	int mode, algo;
	gcry_cipher_hd_t handle;
	unsigned char *key;
	size_t key_len;
	bool keyed;
};

static bool is_null(const struct cipher *c)
{
	return !c->algos[0];
}

static bool find_cipher(struct alg *a, const char *name)
{
	const char *open = strchr(name, '(');
	size_t len = strlen(name), block;

	if (!open || name[len - 1] != ')')
		return false;
	for (size_t i = 0; i < N_OF(modes); i++)
		if (strlen(modes[i].name) == (size_t)(open - name) && !memcmp(modes[i].name, name, (size_t)(open - name)))
			a->mode = modes[i].mode;
	for (size_t i = 0; i < N_OF(ciphers); i++)
		if (strlen(ciphers[i].name) == (size_t)(name + len - 1 - (open + 1)) &&
		    !memcmp(ciphers[i].name, open + 1, strlen(ciphers[i].name)))
			a->cipher = &ciphers[i];
	if (!a->mode || !a->cipher)
		return false;
	if (is_null(a->cipher))
		return a->mode == GCRY_CIPHER_MODE_ECB;
	block = have_gcrypt() ? gcrypt.gcry_cipher_get_algo_blklen(a->cipher->algos[0]) : 0;
	return a->mode == GCRY_CIPHER_MODE_XTS ? block == 16 : block != 0;
}

static bool find_aead(struct alg *a, const char *name)
{
	for (size_t i = 0; i < N_OF(aeads); i++)
		if (!strcmp(aeads[i].name, name))
			a->aead = &aeads[i];
	return a->aead;
}

struct alg *alg_new(const char *type, const char *name)
{
	struct alg *a = calloc(1, sizeof *a);

	if (!a)
		return NULL;
	if ((!strcmp(type, "skcipher") && find_cipher(a, name)) || (!strcmp(type, "aead") && find_aead(a, name)))
		return a;
	free(a);
	errno = ENOENT;
	return NULL;
}

/* --- keys ------------------------------------------------------------------------------------------ */

static void drop_key(struct alg *a)
{
	if (a->handle)
		gcrypt.gcry_cipher_close(a->handle);
	if (a->key)
		explicit_bzero(a->key, a->key_len);
	free(a->key);
	a->handle = NULL;
	a->key = NULL;
	a->key_len = 0;
	a->keyed = false;
}

void alg_free(struct alg *a)
{
	if (!a)
		return;
	drop_key(a);
	free(a);
}

static bool takes_length(struct alg *a, size_t len)
{
	size_t one = a->mode == GCRY_CIPHER_MODE_XTS ? len / 2 : len;

	for (size_t i = 0; i < MAX_KEYS; i++) {
		if (a->aead && a->aead->key_lens[i] && a->aead->key_lens[i] == len)
			return true;
		if (a->aead || !a->cipher->algos[i] || gcrypt.gcry_cipher_get_algo_keylen(a->cipher->algos[i]) != one)
			continue;
		a->algo = a->cipher->algos[i];
		return one == len || 2 * one == len;
	}
	return false;
}

int alg_set_key(struct alg *a, const void *key, size_t len)
{
	drop_key(a);
	if (a->cipher && is_null(a->cipher)) {
		a->keyed = !len;
		return len ? -EINVAL : 0;
	}
	if (!takes_length(a, len))
		return -EINVAL;
	if (a->cipher && (gcrypt.gcry_cipher_open(&a->handle, a->algo, a->mode, 0) ||
			  gcrypt.gcry_cipher_setkey(a->handle, key, len))) {
		drop_key(a);
		return -EINVAL;
	}
	a->key = malloc(len);
	if (!a->key) {
		drop_key(a);
		return -ENOMEM;
	}
	memcpy(a->key, key, len);
	a->key_len = len;
	a->keyed = true;
	return 0;
}

struct alg *alg_clone(const struct alg *a)
{
	struct alg *copy = calloc(1, sizeof *copy);

	if (!copy)
		return NULL;
	copy->aead = a->aead;
	copy->cipher = a->cipher;
	copy->mode = a->mode;
	if (a->keyed && alg_set_key(copy, a->key, a->key_len)) {
		alg_free(copy);
		errno = ENOMEM;
		return NULL;
	}
	return copy;
}

bool alg_has_tag(const struct alg *a, size_t len)
{
	return a->aead && len >= a->aead->min_tag && len <= 16;
}

/* --- data ------------------------------------------------------------------------------------------ */

static bool set_iv(struct alg *a, const void *iv, size_t iv_len, size_t block)
{
	if (a->mode == GCRY_CIPHER_MODE_ECB)
		return true;
	if (iv_len != block)
		return false;
	if (a->mode == GCRY_CIPHER_MODE_CTR)
		return !gcrypt.gcry_cipher_setctr(a->handle, iv, iv_len);
	return !gcrypt.gcry_cipher_setiv(a->handle, iv, iv_len);
}

int alg_crypt(struct alg *a, bool encrypt, const void *iv, size_t iv_len, void *data, size_t len)
{
	size_t block;

	if (a->aead)
		return -EOPNOTSUPP;
	if (!a->keyed && !is_null(a->cipher))
		return -ENOKEY;
	if (is_null(a->cipher) || !len)
		return 0;
	block = gcrypt.gcry_cipher_get_algo_blklen(a->algo);
	if ((a->mode != GCRY_CIPHER_MODE_CTR && len % block) || !set_iv(a, iv, iv_len, block))
		return -EINVAL;
	if (encrypt ? gcrypt.gcry_cipher_encrypt(a->handle, data, len, NULL, 0)
		    : gcrypt.gcry_cipher_decrypt(a->handle, data, len, NULL, 0))
		return -EINVAL;
	return 0;
}
