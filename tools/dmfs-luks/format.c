/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Makes a LUKS volume in a file, new or old. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "around.h"
#include "hash.h"
#include "luks.h"
#include "storage.h"

/* "16M": bytes, K, M, G, T are powers of 1024. */
static int read_size(const char *text, uint64_t *bytes, GError **err)
{
	static const char units[] = "KMGT";
	char *end;
	guint64 n = g_ascii_strtoull(text, &end, 10);
	const char *unit = *end ? strchr(units, g_ascii_toupper(*end)) : NULL;
	unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;

	if (end == text || *text == '-' || (*end && (!unit || end[1])) || !n || n > (guint64)INT64_MAX >> shift)
		return fail(err, EINVAL, "size '%s' is not a number of bytes, or with K, M, G, T behind it", text);
	*bytes = n << shift;
	return 0;
}

/* --- the files ------------------------------------------------------------------------------------ */

/* A file that is about to be written. */
struct target {
	const char *file;
	int fd, claim;	  /* the second keeps others out */
	bool made;	  /* by us */
	uint64_t was, is; /* bytes */
};

#define LOOK_FIRST                                                                                                     \
	(32 << 20)	    /* bytes, more than any header, and what file systems and partition tables have in front */
#define LOOK_LAST (4 << 20) /* and what some have at the end */

/* Whether these bytes hold anything but zeroes. */
static bool holds_data(int fd, uint64_t from, uint64_t to)
{
	g_autofree char *buf = g_malloc(1 << 20);
	off_t at = (off_t)from, data;
	ssize_t n;

	while (at < (off_t)to) {
		data = lseek(fd, at, SEEK_DATA);
		if (data < 0 && errno == ENXIO)
			return false;
		at = MAX(at, data);
		n = pread(fd, buf, MIN((uint64_t)1 << 20, to - MIN(to, (uint64_t)at)), at);
		if (n <= 0)
			return n < 0; /* who knows */
		if (buf[0] || memcmp(buf, buf + 1, (size_t)n - 1))
			return true;
		at += n;
	}
	return false;
}

static bool looks_used(const struct target *t)
{
	uint64_t first = MIN(t->was, LOOK_FIRST);

	return holds_data(t->fd, 0, first) || holds_data(t->fd, MAX(first, t->was - MIN(t->was, LOOK_LAST)), t->was);
}

static int confirm(const char *file, const struct options *o, GError **err)
{
	char answer[8] = "";

	if (o->batch)
		return 0;
	if (!isatty(STDIN_FILENO))
		return fail(err, EEXIST, "%s holds data: --batch overwrites it", file);
	fprintf(stderr, "%s holds data, which will be lost. Type YES to go on: ", file);
	if (!fgets(answer, sizeof(answer), stdin) || strcmp(answer, "YES\n"))
		return fail(err, ECANCELED, "%s is left as it is", file);
	return 0;
}

/* Opens the file, or makes it. */
static int target_open(struct target *t, const char *file, GError **err)
{
	struct stat st;
	uint64_t sectors;

	t->file = file;
	t->fd = open(file, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NONBLOCK, 0600);
	t->made = t->fd >= 0;
	if (!t->made && errno == EEXIST) /* a link that leads nowhere is made, too */
		t->fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600);
	if (t->fd < 0)
		return fail(err, errno, "%s: %s", file, g_strerror(errno));
	if (fstat(t->fd, &st))
		return fail(err, errno, "%s: %s", file, g_strerror(errno));
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return fail(err, ENOTBLK, "%s is neither a file nor a block device", file);
	if (volume_sectors(file, &sectors, err))
		return -EIO;
	t->was = t->is = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : sectors * 512;
	return 0;
}

/* Nobody else uses it, and it is not asked for in vain. */
static int target_check(struct target *t, const struct options *o, GError **err)
{
	static const char way_out[] = "close that first";
	int r = place_unused(t->file, 0, UINT64_MAX, way_out, err); /* which has a name for who it is */

	if (!r)
		r = place_claim(t->file, false, false, way_out, &t->claim, err);
	if (!r && looks_used(t))
		r = confirm(t->file, o, err);
	return r;
}

static int target_grow(struct target *t, uint64_t bytes, GError **err)
{
	struct stat st;

	if (fstat(t->fd, &st) || !S_ISREG(st.st_mode) || t->was > bytes)
		return fail(err, EINVAL,
			    "%s is no file, or longer than %" PRIu64 " bytes: --size only makes files longer", t->file,
			    bytes);
	if (ftruncate(t->fd, (off_t)bytes))
		return fail(err, errno, "%s: %s", t->file, g_strerror(errno));
	t->is = bytes;
	return 0;
}

/* When it has not come to writing: as if nothing had been asked. */
static void target_undo(const struct target *t)
{
	if (t->made)
		unlink(t->file);
	else if (t->fd >= 0 && t->is > t->was && ftruncate(t->fd, (off_t)t->was))
		g_printerr("%s stays as long as it is: %s\n", t->file, g_strerror(errno));
}

static void target_close(struct target *t)
{
	if (t->claim >= 0)
		close(t->claim);
	if (t->fd >= 0)
		close(t->fd);
}

/* A header of old in front of the data would be taken for the volume's. */
static int forget_old_headers(const struct target *t, GError **err)
{
	static const char zeroes[4096];
	uint8_t start[HEADER_SNIFF_BYTES];

	for (off_t at = 0; at <= 0x400000; at = at ? 2 * at : 0x4000) {
		ssize_t n = pread(t->fd, start, sizeof(start), at);

		if (n == (ssize_t)sizeof(start) && (header_kind(start) || !memcmp(start, "SKUL\xba\xbe", 6)) &&
		    pwrite(t->fd, zeroes, MIN(sizeof(zeroes), t->is - (uint64_t)at), at) < 0)
			return fail(err, errno, "%s: %s", t->file, g_strerror(errno));
	}
	return 0;
}

/* data: whole; header: NULL if it is in front of the data. */
static int prepare(struct target *data, struct target *header, const struct options *o, GError **err)
{
	uint64_t bytes = 0;
	int r = o->size ? read_size(o->size, &bytes, err) : 0;

	if (!r && header) {
		g_autoptr(GPtrArray) a = storage_extents(data->file, 0, UINT64_MAX),
				     b = storage_extents(header->file, 0, UINT64_MAX);

		if (storage_overlap(a, b))
			r = fail(
			    err, EINVAL,
			    "%s and the header's file %s are the same storage: leave --header out to have the header "
			    "in front of the data",
			    data->file, header->file);
	}
	if (!r)
		r = target_check(data, o, err);
	if (!r && header)
		r = target_check(header, o, err);
	if (!r && bytes)
		r = target_grow(data, bytes, err);
	if (!r && !data->is && !header)
		r = fail(err, EINVAL, "%s is empty: give its size, as --size 100M", data->file);
	/* a new header file must have a block: libcryptsetup makes it as long as is needed */
	if (!r && header && !header->was)
		r = target_grow(header, 4096, err);
	return r;
}

/* --- the format ------------------------------------------------------------------------------------- */

/* "aes-xts-plain64" -> "aes", "xts-plain64" */
static int split_cipher(const char *spec, char **cipher, char **mode, GError **err)
{
	const char *dash = strchr(spec, '-');

	if (!dash || dash == spec || !dash[1])
		return fail(err, EINVAL, "cipher '%s' is not of the form aes-xts-plain64", spec);
	*cipher = g_strndup(spec, (gsize)(dash - spec));
	*mode = g_strdup(dash + 1);
	return 0;
}

/* libcryptsetup's reason, with the name that the user knows. */
static int format_fail(GError **err, int code, const char *file, const char *name)
{
	g_autofree char *why = volume_message();
	g_autoptr(GString) text = g_string_new(why ? why : g_strerror(code));

	g_string_replace(text, file, name, 0);
	return fail(err, code, "%s: %s", name, text->str);
}

static int read_pbkdf(const char *type, const struct options *o, struct crypt_pbkdf_type *out, GError **err)
{
	struct crypt_pbkdf_type pbkdf = *crypt_get_pbkdf_default(type);

	if (o->pbkdf) {
		const struct crypt_pbkdf_type *named = crypt_get_pbkdf_type_params(o->pbkdf);

		if (!named)
			return fail(err, EINVAL, "pbkdf '%s' is not one of pbkdf2, argon2i, argon2id", o->pbkdf);
		pbkdf = *named;
	}
	if (o->hash)
		pbkdf.hash = o->hash;
	if (o->iter_time)
		pbkdf.time_ms = (uint32_t)o->iter_time;
	if (o->pbkdf_memory)
		pbkdf.max_memory_kb = (uint32_t)o->pbkdf_memory;
	if (o->pbkdf_parallel)
		pbkdf.parallel_threads = (uint32_t)o->pbkdf_parallel;
	if (o->pbkdf_iterations) {
		pbkdf.iterations = (uint32_t)o->pbkdf_iterations;
		pbkdf.time_ms = 0;
		pbkdf.flags |= CRYPT_PBKDF_NO_BENCHMARK;
	}
	*out = pbkdf;
	return 0;
}

int format_pbkdf(struct crypt_device *cd, const char *type, const struct options *o, GError **err)
{
	struct crypt_pbkdf_type pbkdf;
	int r = read_pbkdf(type, o, &pbkdf, err);

	if (r)
		return r;
	r = crypt_set_pbkdf_type(cd, &pbkdf);
	return r < 0 ? volume_fail(err, -r, "pbkdf") : 0;
}

int format_header(struct crypt_device *cd, const char *type, const char *file, const char *name,
		  const struct options *o, GError **err)
{
	bool luks2 = !strcmp(type, CRYPT_LUKS2);
	g_autofree char *cipher = NULL, *mode = NULL;
	struct crypt_pbkdf_type pbkdf;
	struct crypt_params_luks2 params2 = {
	    .sector_size = (uint32_t)o->sector_size,
	    .label = o->label,
	    .data_device = o->header ? file : NULL,
	    .pbkdf = &pbkdf,
	};
	struct crypt_params_luks1 params1 = {
	    .hash = o->hash ? o->hash : "sha256",
	    .data_device = o->header ? file : NULL,
	};
	int r = split_cipher(o->cipher ? o->cipher : "aes-xts-plain64", &cipher, &mode, err);
	/* as cryptsetup: 256 bits of AES, which xts takes twice */
	size_t key_bytes = (size_t)(o->key_bits ? o->key_bits : mode && g_str_has_prefix(mode, "xts") ? 512 : 256) / 8;

	if (!r)
		r = read_pbkdf(type, o, &pbkdf, err);
	if (r)
		return r;
	r = crypt_set_pbkdf_type(cd, &pbkdf);
	if (r < 0)
		return volume_fail(err, -r, "pbkdf");
	r = crypt_format(cd, type, cipher, mode, o->uuid, NULL, key_bytes, luks2 ? (void *)&params2 : (void *)&params1);
	return r < 0 ? format_fail(err, -r, file, name) : 0;
}

/* A header makes a short file longer, but leaves it without data.  name: of the file, for people. */
int format_check_room(struct crypt_device *cd, const char *file, const char *name, GError **err)
{
	uint64_t sectors, offset = crypt_get_data_offset(cd);
	int r = volume_sectors(file, &sectors, err);

	if (!r && sectors * 512 < offset * 512 + (uint64_t)crypt_get_sector_size(cd))
		r = fail(err, ENOSPC,
			 "%s has no room for data behind the %" PRIu64 " KiB of its header: make it longer (--size)",
			 name, offset / 2);
	return r;
}

/* A file in memory, as long as the target. */
static char *stand_in(const struct target *t, int *fd, GError **err)
{
	*fd = memfd_create("dmfs-luks", MFD_CLOEXEC);
	if (*fd >= 0 && !ftruncate(*fd, (off_t)t->is))
		return g_strdup_printf("/proc/self/fd/%d", *fd);
	fail(err, errno, "memory to try it in: %s", g_strerror(errno));
	return NULL;
}

static int rehearse_tags(const char *path, const char *name, const struct options *o, GError **err)
{
	g_autoptr(GError) why = NULL;
	g_autoptr(GString) text = NULL;
	int r = format_with_tags(path, name, o, NULL, &why);

	if (!r)
		return 0;
	text = g_string_new(why ? why->message : g_strerror(-r));
	g_string_replace(text, path, name, 0);
	return fail(err, -r, "%s", text->str);
}

/* In memory at first: what libcryptsetup refuses, or what has no room, is to change nothing. */
static int rehearse(const char *type, const struct target *data, const struct target *header, const struct options *o,
		    GError **err)
{
	int data_fd = -1, header_fd = -1, r = 0;
	g_autofree char *path = stand_in(data, &data_fd, err), *header_path = NULL;
	struct options in_memory = *o;
	struct crypt_device *cd = NULL;

	if (path && header)
		header_path = stand_in(header, &header_fd, err);
	in_memory.header = header_path;
	r = !path || (header && !header_path) ? -ENOMEM : 0;
	if (!r && o->integrity)
		r = rehearse_tags(path, data->file, &in_memory, err);
	else if (!r)
		r = volume_init(path, &in_memory, &cd, err);
	if (!r && !o->integrity)
		r = format_header(cd, type, path, data->file, &in_memory, err);
	if (!r && !o->integrity)
		r = format_check_room(cd, path, data->file, err);
	crypt_free(cd);
	if (data_fd >= 0)
		close(data_fd);
	if (header_fd >= 0)
		close(header_fd);
	return r;
}

static int format_now(const char *type, const struct target *data, const struct target *header, const struct options *o,
		      const struct secret *pass, GError **err)
{
	struct crypt_device *cd = NULL;
	int r;

	if (o->integrity) {
		r = header ? forget_old_headers(data, err) : 0;
		return r ? r : format_with_tags(data->file, data->file, o, pass, err);
	}
	r = volume_init(data->file, o, &cd, err);
	if (!r)
		r = format_header(cd, type, data->file, data->file, o, err);
	if (!r)
		r = format_check_room(cd, data->file, data->file, err);
	if (!r) {
		r = crypt_keyslot_add_by_volume_key(cd, o->key_slot, NULL, 0, pass->data ? pass->data : "", pass->len);
		r = r < 0 ? volume_fail(err, -r, data->file) : 0;
	}
	if (!r && header)
		r = forget_old_headers(data, err);
	crypt_free(cd);
	return r;
}

/* What must be right before any file is looked at; o is o as libcryptsetup wants it afterwards. */
static int settle(const char *type, struct options *o, GError **err)
{
	if (strcmp(type, CRYPT_LUKS1) && strcmp(type, CRYPT_LUKS2))
		return fail(err, EINVAL, "type '%s' cannot be formatted, only luks1 and luks2", type);
	if (!strcmp(type, CRYPT_LUKS1) && (o->sector_size || o->label || (o->pbkdf && strcmp(o->pbkdf, "pbkdf2"))))
		return fail(err, EINVAL, "LUKS1 has sectors of 512 bytes, no label, and pbkdf2");
	if (o->integrity && strcmp(type, CRYPT_LUKS2))
		return fail(err, EINVAL, "--integrity: only for luks2");
	if (o->wipe_later && !strcmp(o->integrity, "none"))
		return fail(err, EINVAL,
			    "--integrity-wipe-later: not with --integrity none, which does not tell what was never written");
	if (o->key_slot != CRYPT_ANY_SLOT && (o->key_slot < 0 || o->key_slot >= crypt_keyslot_max(type)))
		return fail(err, EINVAL, "there is no key slot %d: a %s header has 0 to %d", o->key_slot, type,
			    crypt_keyslot_max(type) - 1);
	if (o->hash && !hash_luks(o->hash))
		return fail(err, EINVAL, "hash '%s' is not one of %s", o->hash, HASH_LUKS_NAMES);
	if (o->hash)
		o->hash = (char *)hash_luks(o->hash);
	return 0;
}

int volume_format(const char *file, const struct options *given, GError **err)
{
	const char *type = given->type && strcmp(given->type, "LUKS") ? given->type : CRYPT_LUKS2;
	struct target data = {.fd = -1, .claim = -1}, header = {.fd = -1, .claim = -1},
		      *detached = given->header ? &header : NULL;
	struct options o = *given;
	struct secret pass = {0};
	int r = settle(type, &o, err);

	around_look(NULL);
	if (!r)
		r = target_open(&data, file, err);
	if (!r && detached)
		r = target_open(detached, o.header, err);
	if (!r)
		r = prepare(&data, detached, &o, err);
	if (!r)
		r = rehearse(type, &data, detached, &o, err);
	if (!r)
		r = secret_get_new(NULL, &o, file, &pass, err);
	if (r) {
		target_undo(&header);
		target_undo(&data);
	} else {
		place_warn(file);
		r = format_now(type, &data, detached, &o, &pass, err);
	}
	secret_clear(&pass);
	target_close(&header);
	target_close(&data);
	return r;
}
