/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Ciphers by the kernel's names, the key lengths that the kernel takes, and libgcrypt's handles for them.
 *
 * A handle serves one thread at a time.  `who` begins an error text: the target's name.
 */
#ifndef DMFS_CIPHER_H
#define DMFS_CIPHER_H

#include <gcrypt.h>
#include <glib.h>
#include <stddef.h>
#include <stdint.h>

#define DM_CIPHER_MAX_KEY 128 /* bytes of one handle's: two halves of 32 for xts, and room */
#define DM_CIPHER_MAX_IV 16

enum dm_cipher_mode {
	DM_CIPHER_ECB,
	DM_CIPHER_CBC,
	DM_CIPHER_CTR,
	DM_CIPHER_XTS,
	DM_CIPHER_LRW, /* libgcrypt has it not: who uses it makes it of the handle, which is ecb's */
	DM_CIPHER_STREAM,
	/* These make a tag, too (gcry_cipher_gettag()).  No name that the functions below read means them. */
	DM_CIPHER_GCM,      /* of ciphers with blocks of 16 bytes */
	DM_CIPHER_POLY1305, /* chacha20's, RFC 7539 */
};

struct dm_cipher {
	const char *name;                    /* the kernel's */
	unsigned block;                      /* bytes; 1: no block cipher */
	unsigned key_min, key_max, key_step; /* bytes, as the kernel takes them */
	unsigned lib_min;                    /* libgcrypt has no shorter ones */
	unsigned missing;                    /* nor this length; 0: has all */
	unsigned pad;                        /* keys are padded to this length ... */
	uint8_t pad_mark;                    /* ... with this byte and zeroes */
	int algo[3];                         /* libgcrypt's for keys up to 16, 24, and more bytes; 0: the null cipher */
};

/* By name, len bytes of it; NULL: there is none. */
const struct dm_cipher *dm_cipher_find(const char *name, size_t len);
/* "aes, serpent, …" */
void dm_cipher_names(GString *out);
/* The same with an error text that names those there are: 0 or -EINVAL. */
int dm_cipher_read(const char *who, const char *name, size_t len, const struct dm_cipher **out, GError **err);
/* ecb, cbc, ctr, xts, lrw: 0 or -EINVAL with a text. */
int dm_cipher_read_mode(const char *who, const char *name, size_t len, enum dm_cipher_mode *out, GError **err);
/* "MODE(CIPHER)" as the kernel's crypto API names it, or "chacha20".  0 or -EINVAL with a text. */
int dm_cipher_parse(const char *who, const char *text, size_t len, const struct dm_cipher **cipher,
		    enum dm_cipher_mode *mode, GError **err);
/* Whether cipher and mode go together: 0 or -EINVAL with a text. */
int dm_cipher_check_mode(const char *who, const struct dm_cipher *c, enum dm_cipher_mode mode, GError **err);

/* Bytes of the IV, 0: the mode has none; and of what the data must be a multiple of. */
unsigned dm_cipher_iv_size(const struct dm_cipher *c, enum dm_cipher_mode mode);
unsigned dm_cipher_granule(const struct dm_cipher *c, enum dm_cipher_mode mode);

/* Whether the cipher takes a key of len bytes (of an xts key: a half; of an lrw key: all but 16 bytes); if not, says so with what it would take. */
int dm_cipher_check_key(const char *who, const struct dm_cipher *c, size_t len, const char *what, GError **err);
/*
 * Opens a handle in secure memory and sets its key (xts: both halves; lrw: without its last 16 bytes).  *out is NULL for the null cipher, which needs
 * none.  dm_gcrypt_init() comes first.  0, -EINVAL: the key is refused, or -ENOMEM.
 */
int dm_cipher_open(const struct dm_cipher *c, enum dm_cipher_mode mode, const uint8_t *key, size_t len,
		   gcry_cipher_hd_t *out);

#endif
