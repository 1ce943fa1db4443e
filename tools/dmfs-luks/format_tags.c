/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Makes a LUKS2 volume with authenticated sectors: its header (segment.c), its two devices and what fills them
 * (fill.c). */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "luks.h"

#define SUPERBLOCK_BYTES 4096
#define SUPERBLOCK_DEVICE 8 /* sectors: any length makes the superblock, which then says how much there is for data */

/* cryptsetup's default, or the cipher that the tag is one of. */
static const char *default_cipher(const char *type)
{
	return !strcmp(type, "aead")	   ? "aes-gcm-random"
	       : !strcmp(type, "poly1305") ? "chacha20-random"
	       : !strcmp(type, "none")	   ? "aes-xts-random"
					   : "aes-xts-plain64";
}

/* It goes into the header's JSON as it is; whether there is such a cipher the table says, which is made of it. */
static int check_cipher(const char *cipher, GError **err)
{
	const char *dash = strchr(cipher, '-');
	size_t good = strspn(cipher, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-:");

	if (dash && dash != cipher && dash[1] && !cipher[good])
		return 0;
	return fail(err, EINVAL, "cipher '%s' is not of the form aes-xts-plain64", cipher);
}

/* The cipher's key, and the MAC's. */
static struct key *new_key(const char *cipher, unsigned mac_key, const struct options *o, GError **err)
{
	bool xts = strstr(cipher, "-xts-") != NULL;
	struct key *k = key_new((size_t)(o->key_bits ? o->key_bits : xts ? 512 : 256) / 8 + mac_key, err);
	size_t at = 0;

	while (k && at < k->len) {
		ssize_t n = getrandom(k->bytes + at, k->len - at, 0);

		if (n < 0 && errno != EINTR) {
			fail(err, errno, "random numbers: %s", g_strerror(errno));
			g_clear_pointer(&k, key_free);
		}
		at += (size_t)MAX(n, 0);
	}
	return k;
}

/* What was there would be taken for a superblock, or for none that is known. */
static int clear_super(const char *file, uint64_t start, GError **err)
{
	static const char zeroes[SUPERBLOCK_BYTES];
	int fd = open(file, O_WRONLY | O_CLOEXEC), r = 0;

	if (fd < 0 || pwrite(fd, zeroes, sizeof(zeroes), (off_t)(start * 512)) != sizeof(zeroes))
		r = fail(err, errno ? errno : EIO, "%s: %s", file, g_strerror(errno ? errno : EIO));
	if (fd >= 0)
		close(fd);
	return r;
}

static struct volume *new_volume(void)
{
	struct volume *v = g_new0(struct volume, 1);

	v->claim = -1;
	v->stages = volume_stages();
	return v;
}

static int make_super(struct crypt_device *cd, const char *file, const char *shown, GError **err)
{
	struct integrity in = {0};
	struct volume *v = new_volume();
	uint64_t start = crypt_get_data_offset(cd);
	int r = integrity_of_header(cd, shown, &in, err);

	in.provided = SUPERBLOCK_DEVICE;
	if (!r && !in.type)
		r = fail(err, EINVAL, "%s: the header that was made has no integrity type", shown);
	if (!r)
		r = clear_super(file, start, err);
	if (!r)
		r = integrity_add_stage(v, file, start, crypt_get_sector_size(cd), 'D', &in, true, err);
	if (!r)
		r = fill_volume(v, "new", NULL, err);
	volume_free(v);
	integrity_clear(&in);
	return r;
}

/* The two devices as they will be opened, and zeroes in them if done is not NULL. */
static int make_devices(struct crypt_device *cd, const char *file, const struct options *o, struct key *k,
			uint64_t *done, GError **err)
{
	struct options quick = *o;
	struct volume *v = new_volume();
	int r;

	quick.no_journal = true; /* for the zeroes */
	quick.readonly = quick.shared = false;
	r = luks_open_with(cd, file, "new", &quick, k, v, err);
	if (!r)
		r = fill_volume(v, "new", done, err);
	volume_free(v);
	return r;
}

static int add_slot(struct crypt_device *cd, const char *shown, const struct options *o, const struct key *k,
		    const struct secret *pass, GError **err)
{
	int r = crypt_keyslot_add_by_key(cd, o->key_slot, k->bytes, k->len, pass->data ? pass->data : "", pass->len, 0);

	if (r >= 0 && o->no_journal)
		r = crypt_persistent_flags_set(cd, CRYPT_FLAGS_ACTIVATION, CRYPT_ACTIVATE_NO_JOURNAL);
	return r < 0 ? volume_fail(err, -r, shown) : 0;
}

/* A header for the cipher that libcryptsetup takes in any case, and then the one that is meant. */
static int make_header(const char *file, const char *shown, const struct options *o, const char *cipher,
		       const char *kind, const struct key *k, struct crypt_device **cd, GError **err)
{
	struct options stand_in = *o;
	int r = volume_init(file, o, cd, err);

	stand_in.cipher = (char *)"aes-xts-plain64";
	stand_in.key_bits = 512;
	if (!r)
		r = format_header(*cd, CRYPT_LUKS2, file, shown, &stand_in, err);
	if (!r)
		r = format_check_room(*cd, file, shown, err);
	if (!r)
		r = segment_make(o->header ? o->header : file, cipher, kind, k, err);
	crypt_free(*cd);
	*cd = NULL;
	if (!r)
		r = volume_init(file, o, cd, err);
	if (!r)
		r = header_load(*cd, o->header ? o->header : file, o, err);
	return r ? r : format_pbkdf(*cd, CRYPT_LUKS2, o, err);
}

/*
 * Zeroes all over it, now or when it is open.  noted: how far that is is in the header, so that it goes on wherever it
 * was interrupted; without an authenticated mode there is no telling which sectors were never written.
 */
static int wipe_new(struct crypt_device *cd, const char *file, const char *shown, const struct options *o,
		    struct key *k, bool noted, GError **err)
{
	struct wipe w = {.left = true};
	g_autoptr(GError) why = NULL;
	int r = noted ? wipe_key(&w, cd, k, err) : 0;

	if (!r && noted)
		r = wipe_note(&w, cd, shown, err);
	if (r || o->wipe_later)
		return r;
	r = make_devices(cd, file, o, k, &w.sector, &why);
	w.left = r != 0;
	if (noted && (!r || r == -EINTR) && wipe_note(&w, cd, shown, err))
		return -EIO;
	if (r == -EINTR && noted)
		return fail(err, EINTR, "%s; open goes on with it", why->message);
	return r ? fail(err, -r, "%s", why->message) : 0;
}

int format_with_tags(const char *file, const char *shown, const struct options *o, const struct secret *pass,
		     GError **err)
{
	g_autoptr(key) k = NULL;
	struct crypt_device *cd = NULL;
	const char *kind, *cipher;
	unsigned mac_key;
	int r = integrity_kind(o->integrity, &kind, &mac_key, err);

	if (r)
		return r;
	cipher = o->cipher ? o->cipher : default_cipher(kind);
	r = check_cipher(cipher, err);
	if (r)
		return r;
	k = new_key(cipher, mac_key, o, err);
	if (!k)
		return -ENOMEM;
	r = make_header(file, shown, o, cipher, kind, k, &cd, err);
	if (!r)
		r = key_prove_luks(k, cd, shown, err);
	if (!r)
		r = make_super(cd, file, shown, err);
	if (!r)
		r = make_devices(cd, file, o, k, NULL, err);
	if (!r && pass)
		r = add_slot(cd, shown, o, k, pass, err);
	if (!r && pass && !o->no_wipe)
		r = wipe_new(cd, file, shown, o, k, strcmp(kind, "none") != 0, err);
	crypt_free(cd);
	return r;
}
