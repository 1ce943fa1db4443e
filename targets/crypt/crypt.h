/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the files of the crypt target share.
 *
 *   spec.c    the cipher string, and how a key is divided for it
 *   iv.c      initial vectors, and what lmk, tcw and elephant do to the data
 *   engine.c  encrypts and decrypts runs of sectors, from many threads at once
 *   spread.c  spreads large runs over the cores
 *   bounce.c  where the ciphertext of writes goes
 *   target.c  the target
 *
 * A key, and anything a key could be told from, lives in dm_secmem_alloc()'s memory
 * or for the length of one call in a buffer that is wiped at its end.
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

#define CRYPT_MAX_BLOCK 16
#define CRYPT_MAX_SECTOR 4096

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
};

/* A cipher string, understood. */
struct crypt_spec {
	const struct dm_cipher *cipher;
	enum dm_cipher_mode mode;
	enum crypt_iv iv;
	struct dm_digest essiv; /* the IV is encrypted with the block cipher under this hash of the key; without name: not */
	unsigned keycount;              /* a power of two */
	unsigned iv_size;               /* bytes; 0: the mode has none */
	unsigned granule;               /* what the mode calls its block: 1 for ctr and stream ciphers */
	const char *ignored;            /* points into the string at what has no meaning here; or NULL */
};

/* The authenticated modes and the random IV are refused by name.  Error texts begin with "crypt: ". */
int crypt_spec_parse(const char *text, struct crypt_spec *spec, GError **err);

/*
 * How a key of `size` bytes is divided:
 *
 *   [0, keycount * subkey)      the sectors' keys, one after another
 *   [extra_at, extra_at + extra)  lmk: the seed; tcw: IV seed, then whitening; elephant: the diffuser's key
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
	gcry_cipher_hd_t *essiv;   /* as many; or NULL */
	gcry_cipher_hd_t elephant; /* or NULL */
	bool seeded;               /* lmk: there is a seed */
	uint8_t seed[64];          /* lmk: the seed and zeroes; tcw: the IV's seed */
	uint8_t whitening[16];     /* tcw */
	uint8_t work[] __attribute__((aligned(16))); /* elephant: a sector */
};

struct crypt_engine;

/* One sector from src to dst, which may be the same; iv_sector is what the IV is made of, key which of the keys. */
int crypt_sector_encrypt(const struct crypt_engine *e, struct crypt_lane *lane, unsigned key, uint64_t iv_sector,
			 const uint8_t *src, uint8_t *dst);
int crypt_sector_decrypt(const struct crypt_engine *e, struct crypt_lane *lane, unsigned key, uint64_t iv_sector,
			 const uint8_t *src, uint8_t *dst);

/* --- engine.c ----------------------------------------------------------------------------- */

struct crypt_slot;

struct crypt_engine {
	struct crypt_spec spec;
	struct crypt_layout layout;
	unsigned sector_size, sector_shift; /* shift: from 512-byte sectors */
	bool iv_large;                      /* IVs count in sector_size */
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
/*
 * Takes a new key (copied; size must be the engine's), or forgets it.  Not
 * while sectors are being worked on.  If the key is refused the old one stays.
 */
int crypt_engine_set_key(struct crypt_engine *e, const struct dm_key *key, GError **err);
void crypt_engine_wipe_key(struct crypt_engine *e);

/*
 * Works on len bytes, beginning offset bytes into the iov; sector (of 512 bytes,
 * iv_offset included) is that of the first byte worked on.  len and sector are
 * multiples of the sector size.  Any number of threads at once.  0 or a
 * negative errno.
 */
int crypt_engine_encrypt(struct crypt_engine *e, uint64_t sector, const struct iovec *iov, int iovcnt, size_t offset,
			 uint8_t *dst, size_t len);
int crypt_engine_decrypt(struct crypt_engine *e, uint64_t sector, const struct iovec *iov, int iovcnt, size_t offset,
			 size_t len);

#endif
