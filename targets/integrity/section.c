/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Sections of the journal (section.h). */
#include <errno.h>
#include <gcrypt.h>
#include <sys/mman.h>

#include <dmfs/cipher.h>
#include <dmfs/le.h>
#include <dmfs/rounding.h>
#include <dmfs/secmem.h>

#include "section.h"

#define PAGE 4096u

struct integrity_sections {
	uint64_t ids[COMMIT_IDS];
	bool encrypted;
	gcry_cipher_hd_t cipher; /* of blocks; NULL: of none */
	unsigned iv_size;
	uint8_t *stream; /* or its stream, for the whole journal */
	size_t stream_bytes;
};

/* --- entries ---------------------------------------------------------------------------------- */

uint8_t *integrity_entry(const struct integrity_layout *l, uint8_t *section, unsigned n)
{
	return section + (n % SECTION_HEAD << DM_SECTOR_SHIFT) + n / SECTION_HEAD * l->entry_size;
}

uint8_t *integrity_entry_data(const struct integrity_layout *l, uint8_t *section, unsigned n)
{
	return section + ((size_t)(SECTION_HEAD + (n << l->log2_spb)) << DM_SECTOR_SHIFT);
}

void integrity_entry_put(const struct integrity_layout *l, uint8_t *section, unsigned n, const struct iovec *iov,
			 int iovcnt, size_t at)
{
	uint8_t *entry = integrity_entry(l, section, n), *data = integrity_entry_data(l, section, n);

	for (unsigned s = 0; s < 1u << l->log2_spb; s++, at += DM_SECTOR_SIZE, data += DM_SECTOR_SIZE) {
		dm_iov_read(iov, iovcnt, at, data, SECTOR_DATA);
		dm_iov_read(iov, iovcnt, at + SECTOR_DATA, entry + 8 + 8 * s, 8);
	}
}

void integrity_entry_get(const struct integrity_layout *l, uint8_t *section, unsigned n, const struct iovec *iov,
			 int iovcnt, size_t at)
{
	uint8_t *entry = integrity_entry(l, section, n), *data = integrity_entry_data(l, section, n);

	for (unsigned s = 0; s < 1u << l->log2_spb; s++, at += DM_SECTOR_SIZE, data += DM_SECTOR_SIZE) {
		dm_iov_write(iov, iovcnt, at, data, SECTOR_DATA);
		dm_iov_write(iov, iovcnt, at + SECTOR_DATA, entry + 8 + 8 * s, 8);
	}
}

void integrity_section_clear(const struct integrity_layout *l, uint8_t *section)
{
	memset(section, 0, (size_t)SECTION_HEAD << DM_SECTOR_SHIFT);
	for (unsigned i = 0; i < l->section_entries; i++)
		put_le64(integrity_entry(l, section, i), UNUSED_SECTOR);
}

/* --- commit ids and MAC ----------------------------------------------------------------------- */

static uint64_t commit_id(const struct integrity_sections *s, uint32_t nr, unsigned sector, unsigned id)
{
	return s->ids[id] ^ ((uint64_t)nr << 32 ^ sector);
}

int integrity_section_id(const struct integrity *ic, const uint8_t *section, uint32_t nr, unsigned sector)
{
	uint64_t is = get_le64(section + ((size_t)sector << DM_SECTOR_SHIFT) + SECTOR_DATA);

	for (unsigned id = 0; id < COMMIT_IDS; id++)
		if (is == commit_id(ic->sections, nr, sector, id))
			return (int)id;
	return -1;
}

/* Of the entries' sectors: 64 bytes, of which each sector of entries has 8. */
static void make_mac(const struct integrity *ic, uint8_t *section, uint32_t nr, uint8_t mac[SECTION_HEAD * SECTOR_MAC])
{
	const struct integrity_layout *l = &ic->l;
	g_autofree uint8_t *sectors = g_malloc(l->section_entries * 8);
	uint8_t number[8], digest[DM_HASH_MAX_SIZE];
	struct iovec iov[3];
	int n = 0;

	put_le64(number, nr);
	if (ic->salted) {
		iov[n++] = (struct iovec){(void *)ic->sb.salt, SALT_BYTES};
		iov[n++] = (struct iovec){number, sizeof number};
	}
	for (unsigned i = 0; i < l->section_entries; i++)
		memcpy(sectors + i * 8, integrity_entry(l, section, i), 8);
	iov[n++] = (struct iovec){sectors, l->section_entries * 8};
	dm_hash_iov(ic->journal_mac.hash, iov, n, digest);
	memset(mac, 0, SECTION_HEAD * SECTOR_MAC);
	memcpy(mac, digest, MIN(dm_hash_size(ic->journal_mac.hash), SECTION_HEAD * SECTOR_MAC));
}

static uint8_t *mac_in(uint8_t *section, unsigned sector)
{
	return section + ((size_t)sector << DM_SECTOR_SHIFT) + SECTOR_DATA - SECTOR_MAC;
}

void integrity_section_seal(const struct integrity *ic, uint8_t *section, uint32_t nr, unsigned id)
{
	uint8_t mac[SECTION_HEAD * SECTOR_MAC];

	for (unsigned j = 0; j < ic->l.section_sectors; j++)
		put_le64(section + ((size_t)j << DM_SECTOR_SHIFT) + SECTOR_DATA, commit_id(ic->sections, nr, j, id));
	if (!ic->journal_mac.hash)
		return;
	make_mac(ic, section, nr, mac);
	for (unsigned j = 0; j < SECTION_HEAD; j++)
		memcpy(mac_in(section, j), mac + j * SECTOR_MAC, SECTOR_MAC);
}

bool integrity_section_mac_right(const struct integrity *ic, uint8_t *section, uint32_t nr)
{
	uint8_t mac[SECTION_HEAD * SECTOR_MAC];
	bool right = true;

	if (!ic->journal_mac.hash)
		return true;
	make_mac(ic, section, nr, mac);
	for (unsigned j = 0; j < SECTION_HEAD; j++)
		right &= integrity_tags_equal(mac_in(section, j), mac + j * SECTOR_MAC, SECTOR_MAC);
	return right;
}

/* --- encryption ------------------------------------------------------------------------------- */

static int set_iv(const struct integrity_sections *s, uint32_t nr)
{
	uint8_t iv[DM_CIPHER_MAX_IV] = {0};

	if (!s->iv_size)
		return gcry_cipher_setiv(s->cipher, NULL, 0) ? -EIO : 0;
	if (gcry_cipher_setiv(s->cipher, iv, s->iv_size))
		return -EIO;
	put_le32(iv, nr);
	if (gcry_cipher_encrypt(s->cipher, iv, s->iv_size, NULL, 0) || gcry_cipher_setiv(s->cipher, iv, s->iv_size))
		return -EIO;
	return 0;
}

static void xor_stream(const struct integrity *ic, uint8_t *section, uint32_t nr)
{
	size_t bytes = integrity_section_bytes(&ic->l);
	const uint8_t *stream = ic->sections->stream + nr * bytes;

	for (size_t i = 0; i < bytes; i += 8) {
		uint64_t a, b;

		memcpy(&a, section + i, 8);
		memcpy(&b, stream + i, 8);
		a ^= b;
		memcpy(section + i, &a, 8);
	}
}

static int crypt_section(const struct integrity *ic, uint8_t *section, uint32_t nr,
			 gcry_error_t (*fn)(gcry_cipher_hd_t, void *, size_t, const void *, size_t))
{
	const struct integrity_sections *s = ic->sections;

	if (s->stream)
		xor_stream(ic, section, nr);
	else if (s->cipher)
		return set_iv(s, nr) || fn(s->cipher, section, integrity_section_bytes(&ic->l), NULL, 0) ? -EIO : 0;
	return 0;
}

int integrity_section_encrypt(const struct integrity *ic, uint8_t *section, uint32_t nr)
{
	return crypt_section(ic, section, nr, gcry_cipher_encrypt);
}

int integrity_section_decrypt(const struct integrity *ic, uint8_t *section, uint32_t nr)
{
	return crypt_section(ic, section, nr, gcry_cipher_decrypt);
}

/* --- making ----------------------------------------------------------------------------------- */

/* Stream ciphers that only a journal may have. */
static int open_old_stream(const struct integrity_alg *a, gcry_cipher_hd_t *out, bool *known)
{
	int algo = !strcmp(a->name, "ecb(arc4)") ? GCRY_CIPHER_ARCFOUR
		   : !strcmp(a->name, "salsa20") ? GCRY_CIPHER_SALSA20
						 : 0;

	*known = algo;
	if (!algo)
		return 0;
	if (gcry_cipher_open(out, algo, GCRY_CIPHER_MODE_STREAM, GCRY_CIPHER_SECURE))
		return -ENOENT;
	gcry_cipher_ctl(*out, GCRYCTL_SET_ALLOW_WEAK_KEY, NULL, 1);
	return gcry_cipher_setkey(*out, a->key.data, a->key.size) ? -EINVAL : 0;
}

/* *iv_size: of a block cipher; *stream: it is none. */
static int open_cipher(const struct integrity_alg *a, gcry_cipher_hd_t *out, unsigned *iv_size, bool *stream,
		       GError **err)
{
	const struct dm_cipher *cipher;
	enum dm_cipher_mode mode;
	bool known = false;
	int r = dm_gcrypt_init(err);

	if (r)
		return r;
	r = open_old_stream(a, out, &known);
	if (known) {
		*stream = true;
		return r ? dm_fail(err, -r, "integrity: Error setting encryption key of %s: %zu bytes do not fit",
				   a->name, a->key.size)
			 : 0;
	}
	if (dm_cipher_parse("integrity: Invalid journal cipher", a->name, strlen(a->name), &cipher, &mode, err) ||
	    dm_cipher_check_mode("integrity: Invalid journal cipher", cipher, mode, err))
		return -ENOENT;
	if (mode == DM_CIPHER_LRW)
		return dm_fail(err, ENOENT, "integrity: Invalid journal cipher: %s: lrw is for crypt alone", a->name);
	r = dm_cipher_check_key("integrity", cipher, mode == DM_CIPHER_XTS ? a->key.size / 2 : a->key.size,
				"Error setting encryption key: journal_crypt's key", err);
	if (!r && mode == DM_CIPHER_XTS && a->key.size % 2)
		r = dm_fail(err, EINVAL, "integrity: Error setting encryption key: an xts key has two halves");
	if (r)
		return r;
	*stream = cipher->block == 1 || mode == DM_CIPHER_CTR;
	*iv_size = dm_cipher_iv_size(cipher, mode);
	r = dm_cipher_open(cipher, mode, a->key.data, a->key.size, out);
	if (!r && *out && mode == DM_CIPHER_CTR && gcry_cipher_setctr(*out, NULL, 0))
		r = -EIO;
	return r ? dm_fail(err, -r, "integrity: Error setting encryption key of %s: %s", a->name, g_strerror(-r)) : 0;
}

/* The stream for all of the journal; the commit ids are hidden by what follows it. */
static int make_stream(struct integrity_sections *s, const struct integrity *ic, gcry_cipher_hd_t cipher, GError **err)
{
	uint64_t bytes = dm_round_up((ic->l.initial - SB_SECTORS) << DM_SECTOR_SHIFT, PAGE);
	static const uint8_t zeroes[DM_CIPHER_MAX_IV];
	uint8_t tail[COMMIT_IDS * 8] = {0};
	int r = 0;

	if (!cipher)
		return 0; /* cipher_null */
	s->stream = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (s->stream == MAP_FAILED) {
		s->stream = NULL;
		return dm_fail(err, ENOMEM,
			       "integrity: Could not allocate memory for journal xor: %" G_GUINT64_FORMAT " bytes",
			       bytes);
	}
	s->stream_bytes = bytes;
	madvise(s->stream, bytes, MADV_DONTDUMP);
	if (!strcmp(ic->journal_crypt.name, "chacha20"))
		r = (int)gcry_cipher_setiv(cipher, zeroes, 16);
	else if (!strcmp(ic->journal_crypt.name, "salsa20"))
		r = (int)gcry_cipher_setiv(cipher, zeroes, 8);
	for (uint64_t at = 0; at < bytes && !r; at += PAGE)
		r = (int)gcry_cipher_encrypt(cipher, s->stream + at, PAGE, NULL, 0);
	if (!r)
		r = (int)gcry_cipher_encrypt(cipher, tail, sizeof tail, NULL, 0);
	if (r)
		return dm_fail(err, EIO, "integrity: Unable to encrypt journal: %s", gcry_strerror((gcry_error_t)r));
	for (unsigned i = 0; i < COMMIT_IDS; i++)
		s->ids[i] ^= get_le64(tail + 8 * i);
	return 0;
}

/* No two of the numbers are the same. */
static void make_unique(uint64_t ids[COMMIT_IDS])
{
	for (unsigned i = 0; i < COMMIT_IDS; i++)
		for (unsigned j = 0; j < i; j++)
			if (ids[j] == ids[i]) {
				ids[i]++;
				j = UINT_MAX; /* from the first again */
			}
}

static int prepare(struct integrity_sections *s, const struct integrity *ic, GError **err)
{
	gcry_cipher_hd_t cipher = NULL;
	bool stream = false;
	int r;

	if (!ic->journal_crypt.name)
		return 0;
	s->encrypted = true;
	r = open_cipher(&ic->journal_crypt, &cipher, &s->iv_size, &stream, err);
	if (!r && stream) {
		r = make_stream(s, ic, cipher, err);
		make_unique(s->ids);
	}
	if (stream)
		gcry_cipher_close(cipher);
	else
		s->cipher = cipher;
	return r;
}

int integrity_sections_new(const struct integrity *ic, struct integrity_sections **out, GError **err)
{
	struct integrity_sections *s = g_new0(struct integrity_sections, 1);

	for (unsigned i = 0; i < COMMIT_IDS; i++)
		s->ids[i] = 0x1111111111111111ull * (i + 1);
	*out = s;
	return prepare(s, ic, err);
}

void integrity_sections_free(struct integrity_sections *s)
{
	if (!s)
		return;
	gcry_cipher_close(s->cipher);
	if (s->stream) {
		explicit_bzero(s->stream, s->stream_bytes);
		munmap(s->stream, s->stream_bytes);
	}
	g_free(s);
}
