/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Makes a new LUKS2 header one of a volume with authenticated sectors.
 *
 * libcryptsetup only formats such a volume together with the kernel's device mapper.  So it makes a header for
 * another cipher, without key slots, and here its JSON gets the cipher that is meant, the integrity member,
 * and the digest of the volume key, which has another size; then the key slots are libcryptsetup's again.
 *
 * A LUKS2 header is twice in its file, at 0 and behind that; big-endian (LUKS2 On-Disk Format Specification, 2.1):
 *
 *   0 "LUKS\xba\xbe", or "SKUL\xba\xbe" of the second   6 version 2, u16   8 its bytes with the JSON, u64
 *   72 checksum's name, 32 bytes   448 checksum, 64 bytes, of all of it with zeroes here   4096 JSON, then zeroes
 */
#include <errno.h>
#include <fcntl.h>
#include <gcrypt.h>
#include <string.h>
#include <unistd.h>

#include <dmfs/le.h>

#include "json.h"
#include "luks.h"

#define JSON_AT 4096
#define HEADER_MAX (4 << 20) /* bytes: the most that LUKS2 has */
#define DIGEST_MAX 64

/* Puts a text in the place of a value of the JSON; also: NULL, or what is put behind the value. */
static bool replace(char **json, const char *const *path, const char *text, const char *also)
{
	const char *value = json_find(*json, path);
	g_autofree char *old = json_text(value);
	g_autoptr(GString) out = NULL;

	if (!old)
		return false;
	out = g_string_new_len(*json, value - *json);
	g_string_append(out, text);
	if (also)
		g_string_append(out, also);
	g_string_append(out, value + strlen(old));
	g_free(*json);
	*json = g_string_free(g_steal_pointer(&out), FALSE);
	return true;
}

/* A string without its quotes; NULL: it is none. */
static char *string_at(const char *json, const char *const *path)
{
	g_autofree char *text = json_text(json_find(json, path));
	size_t len = text ? strlen(text) : 0;

	return len >= 2 && *text == '"' ? g_strndup(text + 1, len - 2) : NULL;
}

/* The volume key's digest, as the header says that it is to be made. */
static char *make_digest(const char *json, const struct key *k)
{
	g_autofree char *type = string_at(json, (const char *const[]){"digests", "0", "type", NULL}),
			*hash = string_at(json, (const char *const[]){"digests", "0", "hash", NULL}),
			*salt64 = string_at(json, (const char *const[]){"digests", "0", "salt", NULL}),
			*was64 = string_at(json, (const char *const[]){"digests", "0", "digest", NULL}),
			*rounds = json_text(json_find(json, (const char *const[]){"digests", "0", "iterations", NULL}));
	int algo = hash ? gcry_md_map_name(hash) : 0;
	g_autofree guchar *salt = NULL, *was = NULL;
	gsize salt_len, len;
	uint8_t digest[DIGEST_MAX];
	g_autofree char *out = NULL;

	if (!type || strcmp(type, "pbkdf2") || !algo || !salt64 || !was64 || !rounds)
		return NULL;
	salt = g_base64_decode(salt64, &salt_len);
	was = g_base64_decode(was64, &len);
	if (!salt_len || !len || len > sizeof(digest) ||
	    gcry_kdf_derive(k->bytes, k->len, GCRY_KDF_PBKDF2, algo, salt, salt_len,
			    (unsigned long)g_ascii_strtoull(rounds, NULL, 10), len, digest))
		return NULL;
	out = g_base64_encode(digest, len);
	return g_strdup_printf("\"%s\"", out);
}

static bool edit(char **json, const char *cipher, const char *type, const struct key *k)
{
	g_autofree char *digest = make_digest(*json, k), *quoted = g_strdup_printf("\"%s\"", cipher);
	g_autofree char *member = g_strdup_printf(",\"integrity\":{\"type\":\"%s\",\"journal_encryption\":\"none\","
						  "\"journal_integrity\":\"none\"}",
						  type);

	return digest && replace(json, (const char *const[]){"digests", "0", "digest", NULL}, digest, NULL) &&
	       replace(json, (const char *const[]){"segments", "0", "encryption", NULL}, quoted, member);
}

/* One of the two, size bytes at an offset. */
static int edit_copy(int fd, off_t at, size_t size, const char *cipher, const char *type, const struct key *k)
{
	g_autofree char *header = g_malloc(size + 1), *json = NULL;

	header[size] = '\0';
	if (pread(fd, header, size, at) != (ssize_t)size)
		return -EIO;
	json = g_strdup(header + JSON_AT);
	if (strcmp(header + 72, "sha256") || !edit(&json, cipher, type, k) || strlen(json) >= size - JSON_AT)
		return -EINVAL;
	memset(header + JSON_AT, 0, size - JSON_AT);
	memcpy(header + JSON_AT, json, strlen(json));
	memset(header + 448, 0, 64);
	gcry_md_hash_buffer(GCRY_MD_SHA256, header + 448, header, size); /* which writes after it has read */
	return pwrite(fd, header, size, at) == (ssize_t)size ? 0 : -EIO;
}

int segment_make(const char *file, const char *cipher, const char *type, const struct key *k, GError **err)
{
	int fd = open(file, O_RDWR | O_CLOEXEC), r = 0;
	uint8_t start[16] = {0};
	uint64_t size;

	if (fd < 0)
		return fail(err, errno, "%s: %s", file, g_strerror(errno));
	if (pread(fd, start, sizeof(start), 0) != sizeof(start) || memcmp(start, "LUKS\xba\xbe\0\2", 8))
		r = -EINVAL;
	size = get_be64(start + 8);
	if (!r && (size <= JSON_AT || size > HEADER_MAX))
		r = -EINVAL;
	for (unsigned i = 0; !r && i < 2; i++)
		r = edit_copy(fd, (off_t)(i * size), size, cipher, type, k);
	if (!r && fsync(fd))
		r = -errno;
	close(fd);
	return r ? fail(err, -r, "%s: the header that libcryptsetup made is not as expected: %s", file, g_strerror(-r))
		 : 0;
}
