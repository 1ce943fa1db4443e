/* SPDX-License-Identifier: GPL-2.0-or-later */
/* TrueCrypt and VeraCrypt: where the header is, and what it says into table lines. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "luks.h"
#include "tchead.h"

#define POOL_TRUECRYPT 64 /* bytes; also the longest passphrase */
#define POOL_VERACRYPT 128

/* Byte offsets of headers; negative: from the end. */
#define AT_SYSTEM 31744
#define AT_HIDDEN 65536
#define AT_HIDDEN_OLD (-1536)
#define AT_BACKUP (-131072)
#define AT_HIDDEN_BACKUP (-65536)

/* --- passphrase and key files ----------------------------------------------------------------------- */

static int mix_keyfile(const char *path, unsigned char *pool, size_t pool_len, GError **err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), r = 0;
	unsigned char *data = crypt_safe_alloc(TC_MAX_KEYFILE_BYTES);
	size_t len = 0;
	ssize_t n = 0;

	if (fd < 0)
		r = fail(err, errno, "%s: %s", path, g_strerror(errno));
	else if (!data)
		r = fail(err, ENOMEM, "no memory for a key file");
	while (!r && len < TC_MAX_KEYFILE_BYTES && (n = read(fd, data + len, TC_MAX_KEYFILE_BYTES - len)) != 0) {
		if (n > 0)
			len += (size_t)n;
		else if (errno != EINTR)
			r = fail(err, errno, "%s: %s", path, g_strerror(errno));
	}
	if (!r && !len)
		r = fail(err, EINVAL, "%s: an empty key file", path);
	if (!r)
		tc_mix_keyfile(pool, pool_len, data, len);
	crypt_safe_free(data);
	if (fd >= 0)
		close(fd);
	return r;
}

/* Turns a passphrase into one with the key files in it. */
static int with_keyfiles(const struct options *o, struct secret *pass, GError **err)
{
	size_t most = o->no_veracrypt ? POOL_TRUECRYPT : POOL_VERACRYPT;
	size_t len = pass->len > POOL_TRUECRYPT ? POOL_VERACRYPT : POOL_TRUECRYPT;
	char *pool;
	int r = 0;

	if (pass->len > most)
		return fail(err, EINVAL, "the passphrase is longer than %zu bytes", most);
	if (!o->key_files)
		return 0;
	pool = crypt_safe_alloc(len);
	if (!pool)
		return fail(err, ENOMEM, "no memory for a passphrase");
	memset(pool, 0, len);
	for (char **f = o->key_files; *f && !r; f++)
		r = mix_keyfile(*f, (unsigned char *)pool, len, err);
	for (size_t i = 0; i < pass->len; i++)
		pool[i] = (char)((unsigned char)pool[i] + (unsigned char)pass->data[i]);
	secret_clear(pass);
	*pass = (struct secret){pool, len};
	return r;
}

/* --- the header ------------------------------------------------------------------------------------- */

/* Of a file that long. */
static int read_header(const char *path, int64_t at, uint64_t bytes, unsigned char *header, GError **err)
{
	int64_t from = at < 0 ? (int64_t)bytes + at : at;
	int fd, r = 0;
	ssize_t n;

	if (from < 0 || (uint64_t)from + TC_HEADER_BYTES > bytes)
		return fail(err, EINVAL, "%s is too short for a header at byte %" PRId64, path, at);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return fail(err, errno, "%s: %s", path, g_strerror(errno));
	n = pread(fd, header, TC_HEADER_BYTES, from);
	if (n != TC_HEADER_BYTES)
		r = fail(err, n < 0 ? errno : EIO, "%s: %s", path, g_strerror(n < 0 ? errno : EIO));
	close(fd);
	return r;
}

static int try_place(const char *path, int64_t at, uint64_t bytes, const struct options *o, const struct secret *pass,
		     struct tc_header *h, GError **err)
{
	const struct tc_wish wish = {
	    .hash = o->hash, .vera = !o->no_veracrypt, .boot = o->tcrypt_system, .pim = (unsigned)o->pim};
	unsigned char header[TC_HEADER_BYTES];
	int r = read_header(path, at, bytes, header, err);

	return r ? r : tc_read_header(header, pass->data ? pass->data : "", pass->len, &wish, h);
}

/* Without an error in err, -EPERM is the passphrase's fault. */
static int try_passphrase(const char *path, const struct options *o, const struct secret *pass, struct tc_header *h,
			  GError **err)
{
	uint64_t sectors, bytes;
	int r = volume_sectors(path, &sectors, err);

	if (r)
		return r;
	bytes = sectors * 512;
	if (o->tcrypt_system)
		return try_place(path, AT_SYSTEM, bytes, o, pass, h, err);
	if (o->tcrypt_backup)
		return try_place(path, o->tcrypt_hidden ? AT_HIDDEN_BACKUP : AT_BACKUP, bytes, o, pass, h, err);
	if (!o->tcrypt_hidden)
		return try_place(path, 0, bytes, o, pass, h, err);
	/* before version 6, TrueCrypt had it at the end */
	r = bytes < AT_HIDDEN + TC_HEADER_BYTES ? -EPERM : try_place(path, AT_HIDDEN, bytes, o, pass, h, err);
	return r == -EPERM && !*err ? try_place(path, AT_HIDDEN_OLD, bytes, o, pass, h, err) : r;
}

static int unlock(struct crypt_device *cd, const char *path, const struct options *o, struct tc_header *h, GError **err)
{
	g_autofree char *prompt = g_strdup_printf("Passphrase for %s", path);
	struct options typed = *o;
	int tries, r;

	typed.key_files = NULL; /* they come on top of the passphrase */
	tries = secret_can_retry(&typed) ? MAX(o->tries, 1) : 1;
	do {
		struct secret pass;

		r = secret_get(cd, &typed, prompt, &pass, err);
		if (!r)
			r = with_keyfiles(o, &pass, err);
		if (!r)
			r = try_passphrase(o->header ? o->header : path, o, &pass, h, err);
		secret_clear(&pass);
		if (r == -EPERM && tries > 1)
			g_printerr("No header can be read with this passphrase.\n");
	} while (r == -EPERM && --tries > 0);
	if (r && !(err && *err))
		fail(err, -r, "%s: no header can be read with this passphrase", path);
	return r;
}

/* --- the table -------------------------------------------------------------------------------------- */

/* Where the data is: sectors of the file, and the number that IVs count from. */
static int data_range(const struct tc_header *h, const struct options *o, uint64_t sectors, uint64_t *start,
		      uint64_t *length, uint64_t *iv, GError **err)
{
	bool xts = g_str_has_prefix(h->mode, "xts");
	uint64_t at = h->data_at ? h->data_at / 512 : 1, bytes = o->tcrypt_hidden ? h->hidden_bytes : h->volume_bytes;

	*start = at;
	*length = o->tcrypt_system ? 0 : bytes / 512;
	if (o->tcrypt_hidden && !o->tcrypt_system && (!xts || h->version < 4))
		*start = sectors - MIN(sectors, *length + -AT_HIDDEN_OLD / 512); /* it ends where its header begins */
	else if (xts && h->version < 3)
		*start = 1;
	*iv = xts ? *start : at;
	if (!*length && sectors > *start)
		*length = sectors - *start;
	if (h->sector_size % 512 || h->data_at % 512 || !*length || *start > sectors || *length > sectors - *start)
		return fail(err, EINVAL,
			    "it has %" PRIu64 " sectors, too few for data of %" PRIu64 " from sector %" PRIu64
			    " on: was it cut short?",
			    sectors, *length, *start);
	return 0;
}

static int add_layers(const struct tc_header *h, const char *path, const char *name, const struct options *o,
		      struct volume *v, GError **err)
{
	g_autofree char *file = volume_quoted(path);
	const char *discards = o->allow_discards ? " 1 allow_discards" : "";
	uint64_t sectors, start, length, iv;
	int r = volume_sectors(path, &sectors, err);

	if (!r)
		r = data_range(h, o, sectors, &start, &length, &iv, err);
	for (unsigned i = h->layers; i-- > 0 && !r;) {
		bool last = i == h->layers - 1;
		const struct tc_layer *l = &h->layer[i];
		g_autofree char *suffix = i ? g_strdup_printf("_%u", i) : g_strdup("");
		g_autofree char *beneath = g_strdup_printf("%s_%u", name, i + 1), *word = volume_quoted(beneath);
		g_autofree char *head = g_strdup_printf("0 %" PRIu64 " crypt %s-%s ", length, l->cipher, h->mode);
		g_autofree char *tail = g_strdup_printf(" %" PRIu64 " %s %" PRIu64 "%s\n", iv, last ? file : word,
							last ? start : 0, discards);

		r = stage_line(stage_new(v, suffix), head, (const char *)l->key, l->key_len, tail, err);
	}
	return r;
}

int tcrypt_open(struct crypt_device *cd, const char *path, const char *name, const struct options *o, struct volume *v,
		GError **err)
{
	struct tc_header *h;
	int r;

	if (o->hash && !tc_has_hash(o->hash))
		return fail(err, EINVAL, "hash '%s' is not one of TrueCrypt's or VeraCrypt's", o->hash);
	if (o->tcrypt_system && (o->tcrypt_hidden || o->tcrypt_backup))
		return fail(err, EINVAL, "--tcrypt-system goes with neither --tcrypt-hidden nor --tcrypt-backup");
	h = crypt_safe_alloc(sizeof(*h));
	if (!h)
		return fail(err, ENOMEM, "no memory for a key");
	memset(h, 0, sizeof(*h));
	r = unlock(cd, path, o, h, err);
	if (!r) {
		r = add_layers(h, path, name, o, v, err);
		if (r)
			g_prefix_error(err, "%s: ", path);
	}
	crypt_safe_free(h);
	return r;
}
