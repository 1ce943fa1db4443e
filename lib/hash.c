/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Hashes by the kernel's names, out of libgcrypt, libxxhash and our CRCs.
 *
 * An unkeyed hash of libgcrypt's works on the stack: gcry_md_hash_buffers()
 * needs no handle.  The others do, and opening one costs more than a block: a
 * hash keeps those that are not in use in slots.  A thread looks into the same slot
 * first each time, so it finds its own there, in a cache line of its own; a handle
 * that finds its slot taken when it comes back is closed.  So there is no lock and no limit
 * on threads.
 *
 * Digests as in the kernel: crc32 begins with 0 and is not inverted, crc32c
 * begins with all ones and is inverted, xxhash64 has the seed 0; all three are
 * little-endian.  wp384 and wp256 are whirlpool's first bytes.
 */
#include <gcrypt.h>
#include <stdatomic.h>
#ifdef HAVE_LIBISAL
#include <isa-l/crc.h>
#endif
#ifdef HAVE_LIBXXHASH
#define XXH_INLINE_ALL /* its state on the stack, whatever version the library has */
#include <xxhash.h>
#endif

#include <dmfs/crc32c.h>
#include <dmfs/hash.h>
#include <dmfs/le.h>
#include <dmfs/secmem.h>
#include <dmfs/target.h>

#include "sha256.h"

#define SLOTS 64
#define STACK_PIECES 16

enum kind {
	DIGEST, /* gcry_md */
	MAC,    /* gcry_mac */
	CRC32,
	CRC32C,
	XXHASH64,
};

static const struct algo {
	const char *name;
	enum kind kind;
	int id;
	unsigned size;
	unsigned max_key; /* optional keys; 0: takes none */
} algos[] = {
	{"md4", DIGEST, GCRY_MD_MD4, 16, 0},
	{"md5", DIGEST, GCRY_MD_MD5, 16, 0},
	{"sha1", DIGEST, GCRY_MD_SHA1, 20, 0},
	{"sha224", DIGEST, GCRY_MD_SHA224, 28, 0},
	{"sha256", DIGEST, GCRY_MD_SHA256, 32, 0},
	{"sha384", DIGEST, GCRY_MD_SHA384, 48, 0},
	{"sha512", DIGEST, GCRY_MD_SHA512, 64, 0},
	{"sha3-224", DIGEST, GCRY_MD_SHA3_224, 28, 0},
	{"sha3-256", DIGEST, GCRY_MD_SHA3_256, 32, 0},
	{"sha3-384", DIGEST, GCRY_MD_SHA3_384, 48, 0},
	{"sha3-512", DIGEST, GCRY_MD_SHA3_512, 64, 0},
	{"rmd160", DIGEST, GCRY_MD_RMD160, 20, 0},
	{"wp256", DIGEST, GCRY_MD_WHIRLPOOL, 32, 0},
	{"wp384", DIGEST, GCRY_MD_WHIRLPOOL, 48, 0},
	{"wp512", DIGEST, GCRY_MD_WHIRLPOOL, 64, 0},
	{"sm3", DIGEST, GCRY_MD_SM3, 32, 0},
	{"streebog256", DIGEST, GCRY_MD_STRIBOG256, 32, 0},
	{"streebog512", DIGEST, GCRY_MD_STRIBOG512, 64, 0},
	{"blake2b-160", DIGEST, GCRY_MD_BLAKE2B_160, 20, 64},
	{"blake2b-256", DIGEST, GCRY_MD_BLAKE2B_256, 32, 64},
	{"blake2b-384", DIGEST, GCRY_MD_BLAKE2B_384, 48, 64},
	{"blake2b-512", DIGEST, GCRY_MD_BLAKE2B_512, 64, 64},
	{"blake2s-128", DIGEST, GCRY_MD_BLAKE2S_128, 16, 32},
	{"blake2s-160", DIGEST, GCRY_MD_BLAKE2S_160, 20, 32},
	{"blake2s-224", DIGEST, GCRY_MD_BLAKE2S_224, 28, 32},
	{"blake2s-256", DIGEST, GCRY_MD_BLAKE2S_256, 32, 32},
	{"crc32", CRC32, 0, 4, 4},
	{"crc32c", CRC32C, 0, 4, 4},
#ifdef HAVE_LIBXXHASH
	{"xxhash64", XXHASH64, 0, 8, 8},
#endif
};

/* Other people's names of the same: cryptsetup's and libgcrypt's. */
static const struct {
	const char *name, *kernels;
} aliases[] = {
	{"ripemd160", "rmd160"},
	{"whirlpool", "wp512"},
	{"stribog256", "streebog256"},
	{"stribog512", "streebog512"},
};

static const struct algo macs[] = {
	{"aes", MAC, GCRY_MAC_CMAC_AES, 16, 0},
	{"serpent", MAC, GCRY_MAC_CMAC_SERPENT, 16, 0},
	{"twofish", MAC, GCRY_MAC_CMAC_TWOFISH, 16, 0},
	{"camellia", MAC, GCRY_MAC_CMAC_CAMELLIA, 16, 0},
	{"sm4", MAC, GCRY_MAC_CMAC_SM4, 16, 0},
	{"seed", MAC, GCRY_MAC_CMAC_SEED, 16, 0},
	{"cast5", MAC, GCRY_MAC_CMAC_CAST5, 8, 0},
	{"blowfish", MAC, GCRY_MAC_CMAC_BLOWFISH, 8, 0},
	{"des3_ede", MAC, GCRY_MAC_CMAC_3DES, 8, 0},
};

/* What a handle of either kind is. */
struct handle {
	gcry_md_hd_t digest;
	gcry_mac_hd_t mac;
};

struct slot {
	_Atomic(struct handle *) free;
} __attribute__((aligned(64)));

struct dm_hash {
	const struct algo *algo;
	bool hmac;
	bool keyed;      /* has a key that is more than a seed */
	bool lanes;      /* several messages at once may be faster: sha256.h */
	uint64_t seed;   /* of the checksums */
	uint8_t *key;    /* secure memory */
	size_t key_len;
	struct slot slots[SLOTS];
};

/* --- by name ------------------------------------------------------------------------------------ */

static const struct algo *find(const struct algo *list, size_t n, const char *name, size_t len)
{
	for (size_t i = 0; i < n; i++)
		if (strlen(list[i].name) == len && !memcmp(list[i].name, name, len))
			return &list[i];
	return NULL;
}

static const struct algo *find_digest(const char *name, size_t len)
{
	for (size_t i = 0; i < G_N_ELEMENTS(aliases); i++)
		if (strlen(aliases[i].name) == len && !memcmp(aliases[i].name, name, len))
			return find_digest(aliases[i].kernels, strlen(aliases[i].kernels));
	return find(algos, G_N_ELEMENTS(algos), name, len);
}

bool dm_digest_find(const char *name, size_t len, struct dm_digest *out)
{
	const struct algo *a = find_digest(name, len);

	if (!a || a->kind != DIGEST)
		return false;
	*out = (struct dm_digest){a->name, a->id, a->size};
	return true;
}

void dm_digest_names(GString *out)
{
	for (size_t i = 0; i < G_N_ELEMENTS(algos); i++)
		if (algos[i].kind == DIGEST)
			g_string_append_printf(out, "%s%s", i ? ", " : "", algos[i].name);
}

/* The inside of "WORD(…)", its length in *len; or NULL. */
static const char *inside(const char *name, const char *word, size_t *len)
{
	size_t n = strlen(word), all = strlen(name);

	if (all < n + 2 || memcmp(name, word, n) || name[n] != '(' || name[all - 1] != ')')
		return NULL;
	*len = all - n - 2;
	return name + n + 1;
}

static bool lookup(struct dm_hash *h, const char *name)
{
	const char *in;
	size_t len;

	if ((in = inside(name, "hmac", &len))) {
		h->hmac = true;
		h->algo = find_digest(in, len);
		/* an HMAC of a shortened hash is not a shortened HMAC */
		return h->algo && h->algo->kind == DIGEST && h->algo->size == gcry_md_get_algo_dlen(h->algo->id);
	}
	if ((in = inside(name, "cmac", &len)))
		h->algo = find(macs, G_N_ELEMENTS(macs), in, len);
	else
		h->algo = find_digest(name, strlen(name));
	return h->algo;
}

static void list_names(GString *out)
{
	for (size_t i = 0; i < G_N_ELEMENTS(algos); i++)
		g_string_append_printf(out, "%s, ", algos[i].name);
	g_string_append(out, "hmac(HASH), cmac(CIPHER)");
}

/* Whether the library, as it is set up here, will do it. */
static bool usable(const struct dm_hash *h)
{
	gcry_md_hd_t digest;

	if (h->algo->kind == MAC)
		return !gcry_mac_test_algo(h->algo->id);
	if (h->algo->kind != DIGEST)
		return true;
	if (gcry_md_test_algo(h->algo->id) || gcry_md_open(&digest, h->algo->id, h->hmac ? GCRY_MD_FLAG_HMAC : 0))
		return false;
	gcry_md_close(digest);
	return true;
}

int dm_hash_new(const char *name, struct dm_hash **out, GError **err)
{
	int error = dm_gcrypt_init(err);
	struct dm_hash *h;

	*out = NULL;
	if (error)
		return error;
	h = g_aligned_alloc0(1, sizeof(*h), 64);
	if (!lookup(h, name) || !usable(h)) {
		g_autoptr(GString) names = g_string_new(NULL);

		list_names(names);
		dm_hash_free(h);
		return dm_fail(err, ENOENT, "hash '%s' is not one of %s", name, names->str);
	}
	h->seed = h->algo->kind == CRC32C ? 0xffffffff : 0;
	h->lanes = h->algo->kind == DIGEST && h->algo->id == GCRY_MD_SHA256 && !h->hmac;
	*out = h;
	return 0;
}

unsigned dm_hash_size(const struct dm_hash *h)
{
	return h->algo->size;
}

bool dm_hash_needs_key(const struct dm_hash *h)
{
	return h->hmac || h->algo->kind == MAC;
}

/* --- handles ------------------------------------------------------------------------------------ */

static void close_handle(struct handle *hd)
{
	gcry_md_close(hd->digest);
	gcry_mac_close(hd->mac);
	g_free(hd);
}

static gcry_error_t open_handle(struct dm_hash *h, struct handle **out)
{
	struct handle *hd = g_new0(struct handle, 1);
	gcry_error_t e;

	if (h->algo->kind == MAC) {
		e = gcry_mac_open(&hd->mac, h->algo->id, GCRY_MAC_FLAG_SECURE, NULL);
		if (!e)
			e = gcry_mac_setkey(hd->mac, h->key, h->key_len);
	} else {
		e = gcry_md_open(&hd->digest, h->algo->id,
				 (h->hmac ? GCRY_MD_FLAG_HMAC : 0) | (h->keyed ? GCRY_MD_FLAG_SECURE : 0));
		if (!e && h->keyed)
			e = gcry_md_setkey(hd->digest, h->key, h->key_len);
	}
	if (!e)
		*out = hd;
	else
		close_handle(hd);
	return e;
}

static struct slot *my_slot(struct dm_hash *h)
{
	static atomic_uint threads;
	static _Thread_local unsigned mine; /* counts from 1 */

	if (!mine)
		mine = atomic_fetch_add(&threads, 1) + 1;
	return &h->slots[mine % SLOTS];
}

static struct handle *take_handle(struct dm_hash *h)
{
	struct handle *hd = atomic_exchange_explicit(&my_slot(h)->free, NULL, memory_order_acquire);
	gcry_error_t e;

	if (hd)
		return hd;
	e = open_handle(h, &hd);
	if (e) /* the first one was opened with the key: this is memory, as if g_malloc() had failed */
		g_error("hash %s: %s", h->algo->name, gcry_strerror(e));
	return hd;
}

static void give_handle(struct dm_hash *h, struct handle *hd)
{
	hd = atomic_exchange_explicit(&my_slot(h)->free, hd, memory_order_acq_rel);
	if (hd)
		close_handle(hd);
}

static void close_all(struct dm_hash *h)
{
	for (unsigned i = 0; i < SLOTS; i++) {
		struct handle *hd = atomic_exchange(&h->slots[i].free, NULL);

		if (hd)
			close_handle(hd);
	}
}

void dm_hash_free(struct dm_hash *h)
{
	if (!h)
		return;
	close_all(h);
	dm_secmem_free(h->key);
	g_aligned_free(h);
}

/* --- keys --------------------------------------------------------------------------------------- */

static int set_seed(struct dm_hash *h, const void *key, size_t len, GError **err)
{
	if (len != h->algo->max_key)
		return dm_fail(err, EINVAL, "the key of %s has %zu bytes, %u are needed", h->algo->name, len,
			       h->algo->max_key);
	h->seed = len == 4 ? get_le32(key) : get_le64(key);
	return 0;
}

int dm_hash_set_key(struct dm_hash *h, const void *key, size_t len, GError **err)
{
	struct handle *hd;
	gcry_error_t e;

	if (!dm_hash_needs_key(h) && !h->algo->max_key)
		return dm_fail(err, EINVAL, "%s takes no key", h->algo->name);
	if (h->algo->kind != DIGEST && h->algo->kind != MAC)
		return set_seed(h, key, len, err);
	if (!h->hmac && h->algo->kind == DIGEST && (!len || len > h->algo->max_key))
		return dm_fail(err, EINVAL, "the key of %s has %zu bytes, 1 to %u are possible", h->algo->name, len,
			       h->algo->max_key);
	close_all(h);
	dm_secmem_free(h->key);
	h->key = dm_secmem_alloc(len);
	if (!h->key)
		return dm_fail(err, ENOMEM, "no memory for a key of %zu bytes", len);
	memcpy(h->key, key, len);
	h->key_len = len;
	h->keyed = true;
	e = open_handle(h, &hd);
	if (!e) {
		give_handle(h, hd);
		return 0;
	}
	h->keyed = false;
	return dm_fail(err, EINVAL, "a key of %zu bytes for %s%s: %s", len, h->hmac ? "an HMAC of " : "", h->algo->name,
		       gcry_strerror(e));
}

/* --- hashing ------------------------------------------------------------------------------------ */

static void hash_on_stack(struct dm_hash *h, const struct iovec *iov, int iovcnt, void *digest)
{
	gcry_buffer_t pieces[STACK_PIECES];
	uint8_t full[DM_HASH_MAX_SIZE];

	for (int i = 0; i < iovcnt; i++)
		pieces[i] = (gcry_buffer_t){.len = iov[i].iov_len, .data = iov[i].iov_base};
	if (gcry_md_hash_buffers(h->algo->id, 0, full, pieces, iovcnt))
		g_error("hash %s failed", h->algo->name); /* out of memory: it worked when it was made */
	memcpy(digest, full, h->algo->size);
}

static void hash_by_md(struct dm_hash *h, const struct iovec *iov, int iovcnt, void *digest)
{
	struct handle *hd = take_handle(h);

	gcry_md_reset(hd->digest);
	if (h->keyed && !h->hmac) /* blake2: the reset has taken the key away */
		gcry_md_setkey(hd->digest, h->key, h->key_len);
	for (int i = 0; i < iovcnt; i++)
		gcry_md_write(hd->digest, iov[i].iov_base, iov[i].iov_len);
	memcpy(digest, gcry_md_read(hd->digest, h->algo->id), h->algo->size);
	give_handle(h, hd);
}

static void hash_by_mac(struct dm_hash *h, const struct iovec *iov, int iovcnt, void *digest)
{
	struct handle *hd = take_handle(h);
	size_t size = h->algo->size;

	gcry_mac_reset(hd->mac);
	for (int i = 0; i < iovcnt; i++)
		gcry_mac_write(hd->mac, iov[i].iov_base, iov[i].iov_len);
	gcry_mac_read(hd->mac, digest, &size);
	give_handle(h, hd);
}

#ifdef HAVE_LIBISAL
/* ISA-L inverts at both ends. */
static uint32_t crc32_piece(uint32_t crc, const void *data, size_t len)
{
	return ~crc32_gzip_refl(~crc, data, len);
}
#else
static uint32_t crc32_table[256];

static void fill_crc32_table(void)
{
	for (unsigned i = 0; i < 256; i++) {
		uint32_t crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
		crc32_table[i] = crc;
	}
}

static uint32_t crc32_piece(uint32_t crc, const void *data, size_t len)
{
	static gsize filled;
	const uint8_t *p = data;

	if (g_once_init_enter(&filled)) {
		fill_crc32_table();
		g_once_init_leave(&filled, 1);
	}
	while (len--)
		crc = crc >> 8 ^ crc32_table[(crc ^ *p++) & 0xff];
	return crc;
}
#endif

static void hash_crc32(struct dm_hash *h, const struct iovec *iov, int iovcnt, void *digest)
{
	uint32_t crc = (uint32_t)h->seed;

	for (int i = 0; i < iovcnt; i++)
		crc = crc32_piece(crc, iov[i].iov_base, iov[i].iov_len);
	put_le32(digest, crc);
}

static void hash_crc32c(struct dm_hash *h, const struct iovec *iov, int iovcnt, void *digest)
{
	uint32_t crc = (uint32_t)h->seed;

	for (int i = 0; i < iovcnt; i++)
		crc = dm_crc32c(crc, iov[i].iov_base, iov[i].iov_len);
	put_le32(digest, ~crc);
}

static void hash_xxhash64(struct dm_hash *h, const struct iovec *iov, int iovcnt, void *digest)
{
#ifdef HAVE_LIBXXHASH
	if (iovcnt == 1) {
		put_le64(digest, XXH64(iov->iov_base, iov->iov_len, h->seed));
	} else {
		XXH64_state_t state;

		XXH64_reset(&state, h->seed);
		for (int i = 0; i < iovcnt; i++)
			XXH64_update(&state, iov[i].iov_base, iov[i].iov_len);
		put_le64(digest, XXH64_digest(&state));
	}
#endif
}

void dm_hash_iov(struct dm_hash *h, const struct iovec *iov, int iovcnt, void *digest)
{
	switch (h->algo->kind) {
	case DIGEST:
		if (h->hmac || h->keyed || iovcnt > STACK_PIECES)
			hash_by_md(h, iov, iovcnt, digest);
		else
			hash_on_stack(h, iov, iovcnt, digest);
		break;
	case MAC:
		hash_by_mac(h, iov, iovcnt, digest);
		break;
	case CRC32:
		hash_crc32(h, iov, iovcnt, digest);
		break;
	case CRC32C:
		hash_crc32c(h, iov, iovcnt, digest);
		break;
	case XXHASH64:
		hash_xxhash64(h, iov, iovcnt, digest);
		break;
	}
}

void dm_hash_many(struct dm_hash *h, const struct iovec *prefix, const void *const *data, size_t len,
		  const struct iovec *suffix, unsigned n, uint8_t *digests)
{
	unsigned size = h->algo->size, i = 0, lanes;

	for (; h->lanes && (lanes = sha256_lanes_pay(n - i)) > 1; i += lanes)
		sha256_lanes(prefix, data + i, len, suffix, lanes, digests + i * size);
	for (; i < n; i++) {
		const struct iovec pieces[3] = {*prefix, {(void *)data[i], len}, *suffix};

		dm_hash_iov(h, pieces, 3, digests + i * size);
	}
}
