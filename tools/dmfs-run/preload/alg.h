/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The kernel's ciphers as its AF_ALG sockets give them, by libgcrypt: for machines and containers that withhold them.
 *
 * cryptsetup asks these sockets whether there is a cipher, and has all ciphers of key slots but AES from them alone.
 * libgcrypt is loaded when the first socket is bound; where it is missing there is no cipher.
 */
#ifndef DMFS_ALG_H
#define DMFS_ALG_H

#include <stdbool.h>
#include <stddef.h>

struct alg;

/*
 * The algorithm name of the kernel's crypto API, as "xts(aes)", of type "skcipher" or "aead"; NULL with errno: ENOENT,
 * there is none, ENOMEM.  It has no key.  Any thread; one at a time works on it.
 */
struct alg *alg_new(const char *type, const char *name);
/* A new one of the same, with its key if it has one; NULL: ENOMEM. */
struct alg *alg_clone(const struct alg *a);
/* Wipes it; NULL is none. */
void alg_free(struct alg *a);
/* 0 or a negative errno; -EINVAL: not of a length it takes, or a weak key. */
int alg_set_key(struct alg *a, const void *key, size_t len);
/* Whether an aead has tags of len bytes. */
bool alg_has_tag(const struct alg *a, size_t len);
/*
 * En- or decrypts len bytes in place; iv_len is 0 in ecb alone.  0 or a negative errno: -EINVAL, lengths that do not
 * fit; -ENOKEY; -EOPNOTSUPP, an aead: whether there is one is all that is told.
 */
int alg_crypt(struct alg *a, bool encrypt, const void *iv, size_t iv_len, void *data, size_t len);

#endif
