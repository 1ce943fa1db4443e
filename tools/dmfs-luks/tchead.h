/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Headers of TrueCrypt and VeraCrypt, read with libgcrypt alone: libcryptsetup
 * needs the kernel's ciphers for that (AF_ALG), which many machines and all
 * containers of the common kinds withhold.
 *
 * Sources: VeraCrypt's user guide ("Volume Format Specification", "Header Key
 * Derivation, Salt, and Iteration Count", "Keyfiles"), and the wiki page
 * TrueCryptOnDiskFormat of cryptsetup for what TrueCrypt did before.
 */
#ifndef DMFS_TCHEAD_H
#define DMFS_TCHEAD_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TC_HEADER_BYTES 512
#define TC_MAX_KEYFILE_BYTES (1 << 20) /* no more of a key file counts */
#define TC_MAX_LAYERS 3

/* What to try. */
struct tc_wish {
	const char *hash; /* only this one; or NULL */
	bool vera, boot;  /* VeraCrypt's derivations; those of its boot loader */
	unsigned pim;	  /* 0: the default */
};

struct tc_layer {
	const char *cipher;    /* as crypt names it, without the mode */
	unsigned char key[96]; /* as crypt wants it */
	size_t key_len;
};

struct tc_header {
	const char *mode; /* of crypt: xts-plain64, cbc-tcw */
	unsigned layers;  /* the first is the outermost, the last is on the file */
	struct tc_layer layer[TC_MAX_LAYERS];
	unsigned version, sector_size;				  /* of the format; bytes */
	uint64_t hidden_bytes, volume_bytes, data_at, data_bytes; /* as the header says; 0: it does not */
};

/* Whether a hash is one of those that can be wished for. */
bool tc_has_hash(const char *name);
/* Mixes the first TC_MAX_KEYFILE_BYTES of a key file into the pool, which begins as zeroes. */
void tc_mix_keyfile(unsigned char *pool, size_t pool_len, const unsigned char *data, size_t len);
/*
 * -EPERM: not with this passphrase.  out holds keys afterwards, also when it
 * failed: it must be in locked memory and be wiped.
 */
int tc_read_header(const unsigned char *header, const char *pass, size_t pass_len, const struct tc_wish *wish,
		   struct tc_header *out);

#endif
