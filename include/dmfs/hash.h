/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Hashes by the names the kernel's crypto API gives them: sha1, sha256,
 * sha3-512, blake2b-256, rmd160, wp512, sm3, …, the checksums crc32, crc32c and
 * xxhash64, and the keyed hmac(HASH) and cmac(CIPHER).
 *
 * A hash is made once, given its key if it takes one, and does not change any
 * more: any number of threads hash with it at once, without a lock and, after the first
 * call of a thread, without allocating.
 */
#ifndef DMFS_HASH_H
#define DMFS_HASH_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#define DM_HASH_MAX_SIZE 64 /* bytes of the longest digest */

struct dm_hash;

/*
 * -ENOENT: no such hash, or the library that has it is missing; the text says which there are.  Texts here do not
 * begin with anybody's name.
 */
int dm_hash_new(const char *name, struct dm_hash **out, GError **err);
/* No thread hashes any more.  NULL is fine. */
void dm_hash_free(struct dm_hash *h);

/* Bytes of a digest, 1 to DM_HASH_MAX_SIZE. */
unsigned dm_hash_size(const struct dm_hash *h);
/* Whether it has no digest without a key: hmac() and cmac(). */
bool dm_hash_needs_key(const struct dm_hash *h);
/*
 * Before the first dm_hash_iov(), from one thread.  The key is copied, to memory of secmem.h.  hmac() takes any length,
 * cmac() its cipher's, blake2b 1 to 64 bytes, blake2s 1 to 32; crc32 and crc32c take 4 bytes and xxhash64 takes 8: the
 * number to begin with, little-endian.  -EINVAL for any other hash or length.
 */
int dm_hash_set_key(struct dm_hash *h, const void *key, size_t len, GError **err);

/* The digest of the pieces, one after the other, to digest.  Any thread.  A hash that needs a key has got it. */
void dm_hash_iov(struct dm_hash *h, const struct iovec *iov, int iovcnt, void *digest);
static inline void dm_hash_buffer(struct dm_hash *h, const void *data, size_t len, void *digest)
{
	struct iovec piece = {(void *)data, len};

	dm_hash_iov(h, &piece, 1, digest);
}

/*
 * The digests of n messages of one length at once, each prefix, len bytes at data[i], suffix; they come to digests one
 * behind the other.  Faster than one by one where there are instructions for it.
 */
void dm_hash_many(struct dm_hash *h, const struct iovec *prefix, const void *const *data, size_t len,
		  const struct iovec *suffix, unsigned n, uint8_t *digests);

/* A plain digest of libgcrypt's, for who needs its own handle: in secure memory, as of a key. */
struct dm_digest {
	const char *name; /* the kernel's */
	int algo;         /* libgcrypt's */
	unsigned size;    /* bytes, of which libgcrypt's may have more */
};
/* By name, len bytes of it; false: there is none, or it is no plain digest. */
bool dm_digest_find(const char *name, size_t len, struct dm_digest *out);
/* "md4, md5, …" */
void dm_digest_names(GString *out);

#endif
