/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * BitLocker.  libcryptsetup gives the volume key for a passphrase, a recovery password or a startup key (.BEK); where
 * what is, and the key of a volume whose protection is suspended, is in the metadata (fve.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <gcrypt.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "fve.h"
#include "luks.h"

/* --- the metadata --------------------------------------------------------------------------------- */

static ssize_t read_at(int fd, uint8_t *buf, size_t len, uint64_t at)
{
	size_t done = 0;
	ssize_t n;

	while (done < len && (n = pread(fd, buf + done, len - done, (off_t)(at + done))) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

/* block: of FVE_METADATA_BYTES, to which v points from then on. */
static int read_layout(const char *path, uint8_t *block, struct fve *v, GError **err)
{
	uint8_t boot[FVE_BOOT_BYTES] = {0};
	int fd = open(path, O_RDONLY | O_CLOEXEC), r;
	ssize_t n;

	if (fd < 0)
		return fail(err, errno, "%s", g_strerror(errno));
	n = read_at(fd, boot, sizeof(boot), 0);
	r = n < 0 ? fail(err, (int)-n, "%s", g_strerror((int)-n)) : fve_read_boot(boot, v, err);
	if (!r) {
		n = read_at(fd, block, FVE_METADATA_BYTES, v->metadata[0]);
		r = n < 0 ? fail(err, (int)-n, "%s", g_strerror((int)-n)) : fve_read_metadata(block, (size_t)n, v, err);
	}
	close(fd);
	return r;
}

/* --- the key -------------------------------------------------------------------------------------- */

static const char *const wrong_key = "its clear key does not open it";

/* Decrypts into out, which has room for data_bytes; and takes the header off: *out_len bytes of key are left. */
static int unseal(const struct fve_sealed *s, const uint8_t *key, uint8_t *out, size_t *out_len, GError **err)
{
	uint64_t lengths[3] = {s->data_bytes, 0, FVE_MAC_BYTES};
	const uint8_t *mac = s->bytes + FVE_NONCE_BYTES;
	gcry_cipher_hd_t h;
	gcry_error_t e = gcry_cipher_open(&h, GCRY_CIPHER_AES256, GCRY_CIPHER_MODE_CCM, GCRY_CIPHER_SECURE);

	if (e)
		return fail(err, ENOMEM, "AES-CCM: %s", gcry_strerror(e));
	e = gcry_cipher_setkey(h, key, 32);
	if (!e)
		e = gcry_cipher_setiv(h, s->bytes, FVE_NONCE_BYTES);
	if (!e)
		e = gcry_cipher_ctl(h, GCRYCTL_SET_CCM_LENGTHS, lengths, sizeof(lengths));
	if (!e)
		e = gcry_cipher_decrypt(h, out, s->data_bytes, mac + FVE_MAC_BYTES, s->data_bytes);
	if (!e)
		e = gcry_cipher_checktag(h, mac, FVE_MAC_BYTES);
	gcry_cipher_close(h);
	if (e)
		return fail(err, EPERM, "%s", wrong_key);
	*out_len = s->data_bytes - FVE_KEY_HEADER_BYTES;
	memmove(out, out + FVE_KEY_HEADER_BYTES, *out_len);
	return 0;
}

/* From a volume master key and the key that opens it; all of k is needed. */
static int key_by_master(const struct fve *v, const struct fve_sealed *master, const uint8_t *opens, struct key *k,
			 GError **err)
{
	size_t vmk_len, fvek_len, most = MAX(master->data_bytes, v->fvek.data_bytes);
	uint8_t *vmk = crypt_safe_alloc(most), *fvek = crypt_safe_alloc(most);
	int r = vmk && fvek ? 0 : fail(err, ENOMEM, "no memory for a key");

	if (!r)
		r = unseal(master, opens, vmk, &vmk_len, err);
	if (!r && vmk_len < 32)
		r = fail(err, EINVAL, "%s", wrong_key);
	if (!r)
		r = unseal(&v->fvek, vmk, fvek, &fvek_len, err);
	/* AES-128 with diffuser: each half is filled up to 32 bytes */
	if (!r && v->method == 0x8000 && fvek_len >= 64)
		memmove(fvek + 16, fvek + 32, 16);
	if (!r && fvek_len < k->room)
		r = fail(err, EINVAL, "%s", wrong_key);
	if (!r)
		memcpy(k->bytes, fvek, k->room);
	crypt_safe_free(vmk);
	crypt_safe_free(fvek);
	return r;
}

/* SHA-256 of SHA-256 of the passphrase, and then a million times more. */
static int stretch(const uint16_t *utf16, size_t units, const uint8_t *salt, uint8_t *out)
{
	struct {
		uint8_t last[32], initial[32], salt[16], count[8];
	} *k = crypt_safe_alloc(sizeof(*k));

	if (!k)
		return -ENOMEM;
	memset(k, 0, sizeof(*k));
	gcry_md_hash_buffer(GCRY_MD_SHA256, k->last, utf16, units * 2);
	gcry_md_hash_buffer(GCRY_MD_SHA256, k->initial, k->last, 32);
	memset(k->last, 0, 32);
	memcpy(k->salt, salt, 16);
	for (uint32_t i = 0; i < 0x100000; i++) {
		for (unsigned b = 0; b < 4; b++)
			k->count[b] = (uint8_t)(i >> 8 * b);
		gcry_md_hash_buffer(GCRY_MD_SHA256, out, k, sizeof(*k));
		memcpy(k->last, out, 32);
	}
	crypt_safe_free(k);
	return 0;
}

struct metadata {
	const struct fve *fve;
	const uint8_t *block;
};

/* libcryptsetup (2.6) hashes too much of a passphrase that has other than ASCII in it. */
static int key_by_utf16(const struct secret *pass, struct key *k, void *data)
{
	const struct metadata *m = data;
	const uint8_t *salt;
	struct fve_sealed vmk;
	uint8_t *opens;
	gunichar2 *utf16;
	glong units;
	size_t at = 0;
	int r = -EPERM;

	bool ascii = true;

	for (size_t i = 0; i < pass->len; i++)
		ascii &= g_ascii_isprint(pass->data[i]) || g_ascii_iscntrl(pass->data[i]);
	if (ascii || !m->fve->fvek.bytes || !g_utf8_validate(pass->data, (gssize)pass->len, NULL))
		return -EPERM;
	utf16 = g_utf8_to_utf16(pass->data, (glong)pass->len, NULL, &units, NULL);
	opens = crypt_safe_alloc(32);
	for (glong i = 0; utf16 && i < units; i++)
		utf16[i] = GUINT16_TO_LE(utf16[i]);
	while (utf16 && opens && r && fve_next_passphrase(m->block, FVE_METADATA_BYTES, &at, &salt, &vmk)) {
		r = stretch(utf16, (size_t)units, salt, opens);
		if (!r)
			r = key_by_master(m->fve, &vmk, opens, k, NULL);
	}
	crypt_safe_free(opens);
	if (utf16)
		explicit_bzero(utf16, (size_t)units * 2);
	g_free(utf16);
	return r ? -EPERM : 0;
}

/* --- the table ------------------------------------------------------------------------------------ */

static int add_lines(const char *path, const char *cipher, const struct fve *f, const GArray *segments,
		     const struct key *k, bool discards, struct volume *v, GError **err)
{
	bool large = f->sector_size > 512;
	g_autofree char *file = volume_quoted(path);
	g_autofree char *large_words = g_strdup_printf(" iv_large_sectors sector_size:%u", f->sector_size);
	g_autofree char *options = g_strdup_printf(" %d%s%s", 2 * large + discards, discards ? " allow_discards" : "",
						   large ? large_words : "");
	struct stage *stage = stage_new(v, "");
	int r = 0;

	for (unsigned i = 0; i < segments->len && !r; i++) {
		const struct fve_segment *s = &g_array_index(segments, struct fve_segment, i);
		g_autofree char *range = g_strdup_printf("%" PRIu64 " %" PRIu64 " ", s->start, s->sectors);
		g_autofree char *head = g_strdup_printf("%scrypt %s ", range, cipher);
		g_autofree char *zeroes = g_strconcat(range, "zero\n", NULL);
		/* the IV is the sector's number in the file */
		g_autofree char *tail = g_strdup_printf(" %" PRIu64 " %s %" PRIu64 "%s\n", s->from, file, s->from,
							large || discards ? options : "");

		if (s->zero)
			r = stage_line_keyless(stage, zeroes, err);
		else
			r = stage_line(stage, head, k, tail, err);
	}
	return r;
}

int bitlk_open(struct crypt_device *cd, const char *path, const struct options *o, struct volume *v, GError **err)
{
	g_autofree char *cipher = g_strdup_printf("%s-%s", crypt_get_cipher(cd), crypt_get_cipher_mode(cd));
	g_autofree uint8_t *block = g_malloc0(FVE_METADATA_BYTES);
	g_autoptr(GArray) segments = NULL;
	struct fve f = {0};
	g_autoptr(key) k = NULL;
	uint64_t sectors;
	int r = volume_sectors(path, &sectors, err);

	if (!r)
		r = read_layout(path, block, &f, err);
	if (!r)
		r = fve_segments(&f, sectors, &segments, err);
	if (r) {
		g_prefix_error(err, "%s: ", path);
		return r;
	}
	if (f.volume_bytes / 512 != sectors)
		g_printerr("%s has %" PRIu64 " sectors, but says its BitLocker volume has %" PRIu64 "\n", path, sectors,
			   f.volume_bytes / 512);
	volume_set_place(v, path, 0, sectors * 512);
	if (!o->readonly && !o->shared)
		r = place_unused(path, 0, sectors * 512, PLACE_CLOSE_FIRST, err);
	if (r)
		return r;
	k = key_new((size_t)MAX(crypt_get_volume_key_size(cd), 1), err);
	if (!k)
		return -ENOMEM;
	if (f.clear_key && f.fvek.bytes) {
		r = key_by_master(&f, &f.clear_vmk, f.clear_key, k, err);
		if (r)
			g_prefix_error(err, "%s: ", path);
	} else {
		r = volume_key_by_passphrase(cd, path, o, k, key_by_utf16, &(struct metadata){&f, block}, err);
	}
	if (!r)
		key_prove_sealed(k);
	return r ? r : add_lines(path, cipher, &f, segments, k, o->allow_discards, v, err);
}
