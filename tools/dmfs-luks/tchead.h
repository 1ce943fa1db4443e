/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Headers of TrueCrypt and VeraCrypt, read with libgcrypt alone: libcryptsetup needs the kernel's ciphers for that
 * (AF_ALG), which many machines and all containers of the common kinds withhold.
 *
 * Sources: VeraCrypt's user guide ("Volume Format Specification", "Header Key Derivation, Salt, and Iteration Count",
 * "Keyfiles"), and the wiki page TrueCryptOnDiskFormat of cryptsetup for what TrueCrypt did before.
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
	bool checked;						  /* it is a header: magic and checksums are right */
	unsigned version, sector_size, flags;			  /* of the format; bytes; TC_IS_... */
	uint64_t hidden_bytes, volume_bytes, data_at, data_bytes; /* as the header says; 0: it does not */
};

enum { TC_IS_SYSTEM = 1, TC_IS_IN_PLACE = 2 };

/* Where a volume's data is looked for. */
struct tc_where {
	uint64_t sectors;	 /* of the file with the data */
	uint64_t header_sectors; /* of the file with the header: the same, mostly */
	bool hidden, system;
	bool partition;		  /* system: the file is one partition, not the disk */
	bool start_known;	  /* and where it starts on its disk, in sectors: */
	uint64_t partition_start; /* else it is where the header says */
	bool unfinished;	  /* all right: it is only read */
};

struct tc_range {
	uint64_t start, sectors; /* of the file */
	uint64_t iv;		 /* of the first */
};

/* The hash that is meant, as a user or cryptsetup spells it; NULL: there is none like that. */
const char *tc_hash_name(const char *spelled);
/* All of them, as a list for people. */
#define TC_HASHES "sha512, sha256, blake2s-256, whirlpool, ripemd160, streebog (stribog512), sha1"
/* -EINVAL: it is not within the file, or there is none; -EOPNOTSUPP: it is encrypted in part only. */
int tc_data_range(const struct tc_header *h, const struct tc_where *where, struct tc_range *out, GError **err);
/* Mixes the first TC_MAX_KEYFILE_BYTES of a key file into the pool, which begins as zeroes. */
void tc_mix_keyfile(unsigned char *pool, size_t pool_len, const unsigned char *data, size_t len);
/*
 * -EPERM: not with this passphrase.  out holds keys afterwards, also when it
 * failed: it must be in locked memory and be wiped.
 */
int tc_read_header(const unsigned char *header, const char *pass, size_t pass_len, const struct tc_wish *wish,
		   struct tc_header *out);

#endif
