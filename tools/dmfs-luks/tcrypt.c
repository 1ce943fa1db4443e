/* SPDX-License-Identifier: GPL-2.0-or-later */
/* TrueCrypt and VeraCrypt: where the header is, and what it says into table lines. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "luks.h"
#include "storage.h"
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

/* A header that has been found. */
struct found {
	struct tc_header *h;
	uint64_t at; /* byte of its file */
};

static int try_place(const char *path, int64_t at, uint64_t bytes, const struct options *o, const struct secret *pass,
		     struct found *f, GError **err)
{
	const struct tc_wish wish = {
	    .hash = o->hash, .vera = !o->no_veracrypt, .boot = o->tcrypt_system, .pim = (unsigned)o->pim};
	unsigned char header[TC_HEADER_BYTES];
	int r = read_header(path, at, bytes, header, err);

	f->at = at < 0 ? bytes + (uint64_t)at : (uint64_t)at;
	return r ? r : tc_read_header(header, pass->data ? pass->data : "", pass->len, &wish, f->h);
}

/* Without an error in err, -EPERM is the passphrase's fault. */
static int try_passphrase(const char *path, const struct options *o, const struct secret *pass, struct found *f,
			  GError **err)
{
	uint64_t sectors, bytes;
	int r = volume_sectors(path, &sectors, err);

	if (r)
		return r;
	bytes = sectors * 512;
	if (o->tcrypt_system)
		return try_place(path, AT_SYSTEM, bytes, o, pass, f, err);
	if (o->tcrypt_backup)
		return try_place(path, o->tcrypt_hidden ? AT_HIDDEN_BACKUP : AT_BACKUP, bytes, o, pass, f, err);
	if (!o->tcrypt_hidden)
		return try_place(path, 0, bytes, o, pass, f, err);
	/* before version 6, TrueCrypt had it at the end */
	r = bytes < AT_HIDDEN + TC_HEADER_BYTES ? -EPERM : try_place(path, AT_HIDDEN, bytes, o, pass, f, err);
	return r == -EPERM && !*err ? try_place(path, AT_HIDDEN_OLD, bytes, o, pass, f, err) : r;
}

/* header: the file that it is in; path: what the user knows. */
static int unlock(struct crypt_device *cd, const char *path, const char *header, const struct options *o,
		  struct found *f, GError **err)
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
			r = try_passphrase(header, o, &pass, f, err);
		secret_clear(&pass);
		if (r == -EPERM && tries > 1)
			g_printerr("No header can be read with this passphrase.\n");
	} while (r == -EPERM && --tries > 0);
	if (r && !(err && *err))
		fail(err, -r,
		     "%s: no header can be read with this passphrase%s; or it is of a kind that is not supported (LRW, "
		     "cascades in CBC, Blowfish, Kuznyechik, Argon2id: see dmfs(1))",
		     path,
		     o->tcrypt_system || o->tcrypt_hidden || o->tcrypt_backup
			 ? ""
			 : ", or the volume is another "
			   "(--tcrypt-hidden, --tcrypt-backup, --tcrypt-system)");
	return r;
}

/* --- the table -------------------------------------------------------------------------------------- */

static int add_layers(const struct tc_header *h, const struct tc_range *range, const char *path, const char *name,
		      const struct options *o, struct volume *v, GError **err)
{
	g_autofree char *file = volume_quoted(path);
	const char *discards = o->allow_discards ? " 1 allow_discards" : "";
	int r = 0;

	for (unsigned i = h->layers; i-- > 0 && !r;) {
		bool last = i == h->layers - 1;
		g_autofree char *suffix = i ? g_strdup_printf("_%u", i) : g_strdup("");
		g_autofree char *beneath = g_strdup_printf("%s_%u", name, i + 1), *word = volume_quoted(beneath);
		g_autofree char *head =
		    g_strdup_printf("0 %" PRIu64 " crypt %s-%s ", range->sectors, h->layer[i].cipher, h->mode);
		g_autofree char *tail = g_strdup_printf(" %" PRIu64 " %s %" PRIu64 "%s\n", range->iv,
							last ? file : word, last ? range->start : 0, discards);
		g_autoptr(key) k = key_of_layer(h, i, err);

		r = k ? stage_line(stage_new(v, suffix), head, k, tail, err) : -ENOMEM;
	}
	return r;
}

/* --- opening ---------------------------------------------------------------------------------------- */

/* What the header is about, and whether the data may be there. */
static int find_data(const struct found *f, const char *path, const char *header, const struct options *o,
		     struct tc_where *w, struct tc_range *range, GError **err)
{
	struct place place = {
	    .file = path, .header = header, .header_from = f->at, .header_to = f->at + TC_HEADER_BYTES};
	int r = volume_sectors(path, &w->sectors, err);

	if (!r)
		r = volume_sectors(header, &w->header_sectors, err);
	if (r)
		return r;
	w->hidden = o->tcrypt_hidden;
	w->system = o->tcrypt_system;
	w->unfinished = o->readonly;
	r = tc_data_range(f->h, w, range, err);
	if (r) {
		g_prefix_error(err, "%s: ", path);
		return r;
	}
	place.from = range->start * 512;
	place.to = place.from + range->sectors * 512;
	return place_check(&place, o, err);
}

/*
 * Of a system, the header is on the disk, whatever of it is named; a file beside a header is one partition.
 * Returns the file with the header.
 */
static char *find_header(const char *path, const struct options *o, struct tc_where *w)
{
	const char *header = o->header ? o->header : path;
	g_autofree char *disk = NULL, *of_data = NULL;

	if (!o->tcrypt_system)
		return g_strdup(header);
	w->partition = o->header;
	if (storage_partition(header, &disk, &w->partition_start))
		w->partition = w->start_known = true;
	if (storage_partition(path, &of_data, &w->partition_start))
		w->partition = w->start_known = true;
	return g_strdup(disk ? disk : header);
}

int tcrypt_open(struct crypt_device *cd, const char *path, const char *name, const struct options *o, struct volume *v,
		GError **err)
{
	struct options canonical = *o;
	g_autofree char *header = NULL;
	struct tc_where where = {0};
	struct tc_range range;
	struct found f = {0};
	int r;

	canonical.hash = o->hash ? (char *)tc_hash_name(o->hash) : NULL;
	if (o->hash && !canonical.hash)
		return fail(err, EINVAL, "hash '%s' is not one of TrueCrypt's or VeraCrypt's: %s", o->hash, TC_HASHES);
	if (o->tcrypt_system && (o->tcrypt_hidden || o->tcrypt_backup))
		return fail(err, EINVAL, "--tcrypt-system goes with neither --tcrypt-hidden nor --tcrypt-backup");
	header = find_header(path, o, &where);
	f.h = crypt_safe_alloc(sizeof(*f.h));
	if (!f.h)
		return fail(err, ENOMEM, "no memory for a key");
	memset(f.h, 0, sizeof(*f.h));
	r = unlock(cd, path, header, &canonical, &f, err);
	if (!r)
		r = find_data(&f, path, header, o, &where, &range, err);
	if (!r)
		volume_set_place(v, path, range.start * 512, (range.start + range.sectors) * 512);
	if (!r)
		r = add_layers(f.h, &range, path, name, o, v, err);
	crypt_safe_free(f.h);
	return r;
}
