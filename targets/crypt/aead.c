/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Authenticated modes.  The tag of a sector is made of, one after the other,
 *
 *   8 bytes         the sector's number (of 512 bytes, from the begin of the target), little-endian
 *   iv_size bytes   the IV that the cipher gets
 *   the sector      encrypted
 *
 * by the mode itself (gcm: NIST SP 800-38D; chacha20 with poly1305: RFC 7539) or, of authenc, by a MAC, which may be
 * cut. What is stored beside the sector is the tag and, if the IV is random, then the IV.
 *
 * So a sector is found out that was changed, or moved, or whose tag or IV was.  One that was put back as
 * it had been before, with its tag, is not.
 */
#include "crypt.h"

#include <dmfs/le.h>
#include <dmfs/target.h>

#define HEAD_MAX (8 + DM_CIPHER_MAX_IV)

int crypt_check_tag(const struct crypt_spec *spec, unsigned meta_size, unsigned tag_size, GError **err)
{
	if (spec->auth == CRYPT_AUTH_MAC && tag_size > spec->mac_size)
		return dm_fail(err, EINVAL, "crypt: integrity:%u leaves %u bytes for the tag, %s has %u", meta_size,
			       tag_size, spec->mac, spec->mac_size);
	if (spec->mode == DM_CIPHER_GCM && tag_size != 4 && tag_size != 8 && (tag_size < 12 || tag_size > 16))
		return dm_fail(err, EINVAL, "crypt: integrity:%u leaves %u bytes for the tag, gcm has 4, 8 or 12 to 16",
			       meta_size, tag_size);
	if (spec->mode == DM_CIPHER_POLY1305 && tag_size != 16)
		return dm_fail(err, EINVAL, "crypt: integrity:%u leaves %u bytes for the tag, poly1305 has 16",
			       meta_size, tag_size);
	return 0;
}

/* What comes before the sector; its length. */
static size_t make_head(const struct crypt_engine *e, const struct crypt_unit *u, const uint8_t *iv, uint8_t *head)
{
	put_le64(head, u->number);
	memcpy(head + 8, iv, e->spec.iv_size);
	return 8 + e->spec.iv_size;
}

static void mac(const struct crypt_engine *e, uint8_t *head, size_t head_len, const uint8_t *sector, uint8_t *out)
{
	struct iovec iov[2] = {{head, head_len}, {(void *)sector, e->sector_size}};

	dm_hash_iov(e->mac, iov, 2, out);
}

/* In a time that does not tell where they differ. */
static bool same_tag(const uint8_t *a, const uint8_t *b, size_t len)
{
	volatile uint8_t differ = 0;

	for (size_t i = 0; i < len; i++)
		differ |= a[i] ^ b[i];
	return !differ;
}

/* The mode's own tag: the IV and what is before the sector, into the handle. */
static int begin(const struct crypt_engine *e, struct crypt_lane *lane, const uint8_t *iv, const uint8_t *head,
		 size_t head_len)
{
	return gcry_cipher_setiv(lane->data[0], iv, e->spec.iv_size) ||
		       gcry_cipher_authenticate(lane->data[0], head, head_len)
		   ? -EIO
		   : 0;
}

int crypt_sector_seal(const struct crypt_engine *e, struct crypt_lane *lane, const struct crypt_unit *u,
		      const uint8_t *src, uint8_t *dst)
{
	uint8_t iv[DM_CIPHER_MAX_IV], head[HEAD_MAX], digest[DM_HASH_MAX_SIZE];
	size_t head_len;

	if (crypt_iv_make(e, lane, u, src, iv))
		return -EIO;
	head_len = make_head(e, u, iv, head);
	if (e->spec.auth == CRYPT_AUTH_CIPHER)
		return begin(e, lane, iv, head, head_len) || crypt_cipher_run(e, lane, 0, true, src, dst) ||
			       gcry_cipher_gettag(lane->data[0], u->meta, e->tag_size)
			   ? -EIO
			   : 0;
	if (crypt_iv_set(e, lane, 0, iv) || crypt_cipher_run(e, lane, 0, true, src, dst))
		return -EIO;
	mac(e, head, head_len, dst, digest);
	memcpy(u->meta, digest, e->tag_size);
	return 0;
}

/* Decrypted before it is known to be right: it is wiped if it is not.  libgcrypt compares in constant time. */
static int open_by_mode(const struct crypt_engine *e, struct crypt_lane *lane, const struct crypt_unit *u,
			const uint8_t *src, uint8_t *dst)
{
	gcry_error_t r;

	if (crypt_cipher_run(e, lane, 0, false, src, dst))
		return -EIO;
	r = gcry_cipher_checktag(lane->data[0], u->meta, e->tag_size);
	if (!r)
		return 0;
	memset(dst, 0, e->sector_size);
	return gcry_err_code(r) == GPG_ERR_CHECKSUM ? -EILSEQ : -EIO;
}

int crypt_sector_open(const struct crypt_engine *e, struct crypt_lane *lane, const struct crypt_unit *u,
		      const uint8_t *src, uint8_t *dst)
{
	uint8_t iv[DM_CIPHER_MAX_IV], head[HEAD_MAX], digest[DM_HASH_MAX_SIZE];
	size_t head_len;

	if (crypt_iv_make(e, lane, u, NULL, iv))
		return -EIO;
	head_len = make_head(e, u, iv, head);
	if (e->spec.auth == CRYPT_AUTH_CIPHER)
		return begin(e, lane, iv, head, head_len) ? -EIO : open_by_mode(e, lane, u, src, dst);
	mac(e, head, head_len, src, digest);
	if (!same_tag(digest, u->meta, e->tag_size))
		return -EILSEQ;
	return crypt_iv_set(e, lane, 0, iv) || crypt_cipher_run(e, lane, 0, false, src, dst) ? -EIO : 0;
}
