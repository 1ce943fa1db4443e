/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the files of the crypt target share.
 *
 *   spec.c    the cipher string, and how a key is divided for it
 *   lrw.c     LRW mode
 *   iv.c      initial vectors, and what lmk, tcw and elephant do to the data
 *   aead.c    authenticated modes: sectors with a tag
 *   engine.c  encrypts and decrypts runs of sectors, from many threads at once
 *   spread.c  spreads large runs over the cores
 *   bounce.c  where the ciphertext of writes goes
 *   target.c  the target
 *
 * A key, and anything a key could be told from, lives in dm_secmem_alloc()'s memory or for the length of one call in a
 * buffer that is wiped at its end.
 */
#ifndef DMFS_CRYPT_H
#define DMFS_CRYPT_H

#include <dmfs/cipher.h>
#include <dmfs/hash.h>
#include <dmfs/keys.h>
#include <dmfs/secmem.h>
#include <gcrypt.h>
#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "lrw.h"

#define CRYPT_MAX_BLOCK 16
#define CRYPT_MAX_SECTOR 4096
#define CRYPT_MAX_META 480 /* bytes stored beside a sector */

/* --- spec.c ------------------------------------------------------------------------------- */

enum crypt_iv {
	CRYPT_IV_NONE,
	CRYPT_IV_PLAIN,
	CRYPT_IV_PLAIN64,
	CRYPT_IV_PLAIN64BE,
	CRYPT_IV_BENBI,
	CRYPT_IV_NULL,
	CRYPT_IV_LMK,
	CRYPT_IV_TCW,
	CRYPT_IV_EBOIV,
	CRYPT_IV_ELEPHANT,
	CRYPT_IV_RANDOM, /* stored beside the sector */
};

enum crypt_auth {
	CRYPT_AUTH_NONE,
	CRYPT_AUTH_CIPHER, /* the cipher's mode makes the tag */
	CRYPT_AUTH_MAC,    /* authenc(MAC,CIPHER): the MAC of the ciphertext */
};

/* A cipher string, understood. */
struct crypt_spec {
	const struct dm_cipher *cipher;
	enum dm_cipher_mode mode;
	enum crypt_iv iv;
	enum crypt_auth auth;
	char mac[64]; /* CRYPT_AUTH_MAC: its name */
	unsigned mac_size; /* bytes of its key and of its digest */
	struct dm_digest essiv; /* the IV is encrypted with the block cipher under this hash of the key; without name: not */
	unsigned keycount;              /* a power of two */
	unsigned iv_size;               /* bytes; 0: the mode has none */
	unsigned granule;               /* what the mode calls its block: 1 for ctr and stream ciphers */
	const char *ignored;            /* points into the string at what has no meaning here; or NULL */
};

/* aead: whether it must be an authenticated mode; else it must be none.  Error texts begin with "crypt: ". */
int crypt_spec_parse(const char *text, bool aead, struct crypt_spec *spec, GError **err);

/*
 * How a key of `size` bytes is divided:
 *
 *   [0, keycount * subkey)      the sectors' keys, one after another
 *   [extra_at, extra_at + extra)  lmk: the seed; tcw: IV seed, then whitening; elephant: the diffuser's key;
 *                                 authenc: the MAC's key
 */
struct crypt_layout {
	size_t size, subkey, extra_at, extra;
};

int crypt_spec_layout(const struct crypt_spec *spec, size_t key_size, unsigned sector_size, struct crypt_layout *out,
		      GError **err);

/* --- iv.c --------------------------------------------------------------------------------- */

/* All that is derived from a key, for one thread at a time; in secmem. */
struct crypt_lane {
	gcry_cipher_hd_t *data;    /* keycount of them */
	struct crypt_lrw *lrw;     /* as many, in secmem; or NULL */
	gcry_cipher_hd_t *essiv;   /* as many; or NULL */
	gcry_cipher_hd_t elephant; /* or NULL */
	bool seeded;               /* lmk: there is a seed */
	uint8_t seed[64];          /* lmk: the seed and zeroes; tcw: the IV's seed */
	uint8_t whitening[16];     /* tcw */
	uint8_t random[256];       /* what is to become IVs, */
	unsigned random_left;      /* and how much there is of it, at its end */
	uint8_t work[] __attribute__((aligned(16))); /* elephant: a sector */
};

struct crypt_engine;

/* Which sector it is. */
struct crypt_unit {
	unsigned key;       /* which of the keys */
	uint64_t iv_sector; /* what the IV is made of */
	uint64_t number;    /* of 512 bytes, from the begin of the target: what its tag says it is */
	uint8_t *meta;      /* what is stored beside it; NULL if nothing is */
};

/* One sector from src to dst, which may be the same. */
int crypt_sector_encrypt(const struct crypt_engine *e, struct crypt_lane *lane, const struct crypt_unit *u,
			 const uint8_t *src, uint8_t *dst);
int crypt_sector_decrypt(const struct crypt_engine *e, struct crypt_lane *lane, const struct crypt_unit *u,
			 const uint8_t *src, uint8_t *dst);

/*
 * Steps of these.  The IV of a sector, iv_size bytes, essiv included; a random one is stored beside the sector that is
 * encrypted, and fetched from there.  plain: the sector that is encrypted; NULL: it is decrypted.  Then the cipher gets
 * it, and works from src to dst.
 */
int crypt_iv_make(const struct crypt_engine *e, struct crypt_lane *lane, const struct crypt_unit *u,
		  const uint8_t *plain, uint8_t iv[DM_CIPHER_MAX_IV]);
int crypt_iv_set(const struct crypt_engine *e, struct crypt_lane *lane, unsigned key, const uint8_t *iv);
int crypt_cipher_run(const struct crypt_engine *e, struct crypt_lane *lane, unsigned key, bool encrypt,
		     const uint8_t *src, uint8_t *dst);

/* --- aead.c ------------------------------------------------------------------------------- */

/* As crypt_sector_*() for authenticated modes.  -EILSEQ: the tag is not that of this sector with this content. */
int crypt_sector_seal(const struct crypt_engine *e, struct crypt_lane *lane, const struct crypt_unit *u,
		      const uint8_t *src, uint8_t *dst);
int crypt_sector_open(const struct crypt_engine *e, struct crypt_lane *lane, const struct crypt_unit *u,
		      const uint8_t *src, uint8_t *dst);
/* Whether the mode has tags of that size; if not, says which. */
int crypt_check_tag(const struct crypt_spec *spec, unsigned meta_size, unsigned tag_size, GError **err);

/* --- engine.c ----------------------------------------------------------------------------- */

struct crypt_slot;

struct crypt_engine {
	struct crypt_spec spec;
	struct crypt_layout layout;
	unsigned sector_size, sector_shift; /* shift: from 512-byte sectors */
	bool iv_large;                      /* IVs count in sector_size */
	uint64_t iv_offset;                 /* part of the sectors it gets; 0 unless somebody sets it, before there are any */
	/* Beside each sector: the tag, then the IV if it is stored.  0 of each unless crypt_engine_store() says so. */
	unsigned meta_size, tag_size;
	struct dm_hash *mac; /* with the key: authenc's; else NULL */
	uint8_t *key;                       /* layout.size bytes of secmem; NULL: wiped (or a key of no bytes) */
	bool has_key;
	unsigned ns_per_kib; /* how fast it is, measured when it got its key */
	unsigned nr_slots;
	struct crypt_slot *slots;
};

/* Without a key yet.  The layout tells what size the keys will have. */
int crypt_engine_new(const struct crypt_spec *spec, size_t key_size, unsigned sector_size, bool iv_large,
		     struct crypt_engine **out, GError **err);
void crypt_engine_free(struct crypt_engine *e);
/* How many bytes are stored beside each sector.  Before there is a key.  Refused if tag and IV do not fill them. */
int crypt_engine_store(struct crypt_engine *e, unsigned meta_size, GError **err);
/*
 * Takes a new key (copied; size must be the engine's), or forgets it.  Not while sectors are being worked on.  If the
 * key is refused the old one stays.
 */
int crypt_engine_set_key(struct crypt_engine *e, const struct dm_key *key, GError **err);
void crypt_engine_wipe_key(struct crypt_engine *e);

/*
 * Works on len bytes, beginning offset bytes into the iov; sector (of 512 bytes, iv_offset included) is that of the
 * first byte worked on.  len and sector are multiples of the sector size.  meta: meta_size bytes for each sector, NULL
 * if that is 0.  Any number of threads at once.  0 or a negative errno; -EILSEQ: a sector was tampered with, *bad is
 * the first one's number (crypt_unit).
 */
int crypt_engine_encrypt(struct crypt_engine *e, uint64_t sector, const struct iovec *iov, int iovcnt, size_t offset,
			 uint8_t *dst, uint8_t *meta, size_t len);
int crypt_engine_decrypt(struct crypt_engine *e, uint64_t sector, const struct iovec *iov, int iovcnt, size_t offset,
			 uint8_t *meta, size_t len, uint64_t *bad);

#endif
