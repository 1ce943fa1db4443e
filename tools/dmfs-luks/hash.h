/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Names of hashes, as people and programs spell them. */
#ifndef DMFS_LUKS_HASH_H
#define DMFS_LUKS_HASH_H

/* In small letters, letters and digits alone: SHA-512 is sha512; g_free(). */
char *hash_plain(const char *spelled);
/* What libcryptsetup calls it for LUKS; NULL: there is none like that. */
const char *hash_luks(const char *spelled);
/* All of them, as a list for people. */
#define HASH_LUKS_NAMES                                                                                                \
	"sha1, sha224, sha256, sha384, sha512, sha3-224, sha3-256, sha3-384, sha3-512, ripemd160, whirlpool, "         \
	"stribog256, stribog512, sm3, blake2b-160, blake2b-256, blake2b-384, blake2b-512, blake2s-128, blake2s-160, "  \
	"blake2s-224, blake2s-256"

#endif
