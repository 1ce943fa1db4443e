/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Makes a LUKS volume in a file, new or old. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "luks.h"

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

/* Whether the begin of the file holds anything but zeroes. */
static bool looks_used(int fd)
{
	char buf[65536];
	ssize_t n = pread(fd, buf, sizeof(buf), 0);

	for (ssize_t i = 0; i < n; i++)
		if (buf[i])
			return true;
	return false;
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

/* Makes the file if need be, gives it its size, asks before anything is lost. */
static int prepare(const char *file, const struct options *o, GError **err)
{
	int fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600), r = 0;
	uint64_t bytes = 0;
	struct stat st;

	if (fd < 0)
		return fail(err, errno, "%s: %s", file, g_strerror(errno));
	if (o->size)
		r = read_size(o->size, &bytes, err);
	if (!r && fstat(fd, &st))
		r = fail(err, errno, "%s: %s", file, g_strerror(errno));
	if (!r && !S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		r = fail(err, ENOTBLK, "%s is neither a file nor a block device", file);
	if (!r && looks_used(fd))
		r = confirm(file, o, err);
	if (!r && bytes && (!S_ISREG(st.st_mode) || (uint64_t)st.st_size > bytes))
		r = fail(err, EINVAL, "%s is no file, or longer than %s: --size only makes files longer", file, o->size);
	if (!r && bytes && ftruncate(fd, (off_t)bytes))
		r = fail(err, errno, "%s: %s", file, g_strerror(errno));
	if (!r && S_ISREG(st.st_mode) && !bytes && !st.st_size && !o->header)
		r = fail(err, EINVAL, "%s is empty: give its size, as --size 100M", file);
	close(fd);
	return r;
}

/* A new header file must have a block: libcryptsetup makes it as long as is needed. */
static int prepare_header(const char *file, const struct options *o, GError **err)
{
	int fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600), r = 0;
	struct stat st;

	if (fd < 0)
		return fail(err, errno, "%s: %s", file, g_strerror(errno));
	if (fstat(fd, &st))
		r = fail(err, errno, "%s: %s", file, g_strerror(errno));
	else if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		r = fail(err, ENOTBLK, "%s is neither a file nor a block device", file);
	else if (looks_used(fd))
		r = confirm(file, o, err);
	if (!r && ((S_ISREG(st.st_mode) && !st.st_size && ftruncate(fd, 4096))))
		r = fail(err, errno, "%s: %s", file, g_strerror(errno));
	close(fd);
	return r;
}

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

static int format_device(struct crypt_device *cd, const char *type, const char *file, const struct options *o,
			 GError **err)
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

	if (r)
		return r;
	pbkdf = *crypt_get_pbkdf_default(type);
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
	r = crypt_set_pbkdf_type(cd, &pbkdf);
	if (r < 0)
		return volume_fail(err, -r, "pbkdf");
	r = crypt_format(cd, type, cipher, mode, o->uuid, NULL, key_bytes, luks2 ? (void *)&params2 : (void *)&params1);
	return r < 0 ? volume_fail(err, -r, file) : 0;
}

/* A header makes a short file longer, but leaves it without data. */
static int check_room(struct crypt_device *cd, const char *file, GError **err)
{
	uint64_t sectors, offset = crypt_get_data_offset(cd);
	int r = volume_sectors(file, &sectors, err);

	if (!r && sectors * 512 < offset * 512 + (uint64_t)crypt_get_sector_size(cd))
		r = fail(err, ENOSPC, "%s has no room for data behind the %" PRIu64 " KiB of its header: make it longer (--size)",
			 file, offset / 2);
	return r;
}

int volume_format(const char *file, const struct options *o, GError **err)
{
	const char *type = o->type ? o->type : CRYPT_LUKS2;
	struct crypt_device *cd = NULL;
	struct secret pass = {0};
	int r;

	if (strcmp(type, CRYPT_LUKS1) && strcmp(type, CRYPT_LUKS2))
		return fail(err, EINVAL, "type '%s' cannot be formatted, only luks1 and luks2", type);
	if (!strcmp(type, CRYPT_LUKS1) && (o->sector_size || o->label || (o->pbkdf && strcmp(o->pbkdf, "pbkdf2"))))
		return fail(err, EINVAL, "LUKS1 has sectors of 512 bytes, no label, and pbkdf2");
	r = prepare(file, o, err);
	if (!r && o->header)
		r = prepare_header(o->header, o, err);
	if (!r)
		r = volume_init(file, o, &cd, err);
	if (!r)
		r = secret_get_new(cd, o, file, &pass, err);
	if (!r)
		r = format_device(cd, type, file, o, err);
	if (!r)
		r = check_room(cd, file, err);
	if (!r) {
		r = crypt_keyslot_add_by_volume_key(cd, o->key_slot, NULL, 0, pass.data ? pass.data : "", pass.len);
		r = r < 0 ? volume_fail(err, -r, file) : 0;
	}
	secret_clear(&pass);
	crypt_free(cd);
	return r;
}
