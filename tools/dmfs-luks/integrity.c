/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * LUKS2 with authenticated sectors: two devices, NAME on NAME_dif, which stores the tags.
 *
 *   the header's   --integrity    the table's cipher, of CIPHER-MODE-IV        beside a sector
 *   none           none           CIPHER-MODE-IV                               the IV, which must be random
 *   aead           aead           capi:MODE(CIPHER)-IV                         16 bytes of tag
 *   poly1305       poly1305       capi:rfc7539(CIPHER,poly1305)-IV             16
 *   hmac(sha256)   hmac-sha256    capi:authenc(hmac(sha256),MODE(CIPHER))-IV   32 (sha1: 20, sha512: 64)
 *   cmac(aes)      cmac-aes       capi:authenc(cmac(aes),MODE(CIPHER))-IV      16
 *
 * and the IV behind the tag if it is random.  The MAC's key, as long as its tag, follows the cipher's.
 *
 * NAME_dif is the rest of the file from where the data begins, with a superblock (dm-integrity.rst) there:
 *
 *   0 "integrt\0"   8 version   10 tag bytes, u16   16 sectors it has for data, u64   28 log2 of sectors per block
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include <dmfs/le.h>

#include "luks.h"

static const struct {
	const char *option, *header;
	unsigned tag, mac_key; /* bytes */
} kinds[] = {
    {"none", "none", 0, 0},
    {"aead", "aead", 16, 0},
    {"poly1305", "poly1305", 16, 0},
    {"hmac-sha1", "hmac(sha1)", 20, 20},
    {"hmac-sha256", "hmac(sha256)", 32, 32},
    {"hmac-sha512", "hmac(sha512)", 64, 64},
    {"cmac-aes", "cmac(aes)", 16, 16},
};

/* --- names --------------------------------------------------------------------------------------- */

int integrity_kind(const char *option, const char **header, unsigned *mac_key, GError **err)
{
	for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++)
		if (!strcmp(option, kinds[i].option)) {
			*header = kinds[i].header;
			*mac_key = kinds[i].mac_key;
			return 0;
		}
	return fail(err, EINVAL,
		    "integrity '%s' is not one of aead, poly1305, hmac-sha1, hmac-sha256, hmac-sha512, cmac-aes, none",
		    option);
}

/* "aes-xts-plain64" or, of a stream cipher, "chacha20-random": "xts(aes)" or "chacha20", and where its IV mode begins.
 */
static char *api_name(const char *spec, const char **iv)
{
	const char *mode = strchr(spec, '-'), *dash = mode ? strchr(mode + 1, '-') : NULL;
	g_autofree char *cipher = mode ? g_strndup(spec, (gsize)(mode - spec)) : NULL, *chain = NULL;

	if (!mode)
		return NULL;
	if (!dash) {
		*iv = mode + 1;
		return g_steal_pointer(&cipher);
	}
	*iv = dash + 1;
	chain = g_strndup(mode + 1, (gsize)(dash - mode - 1));
	return g_strdup_printf("%s(%s)", chain, cipher);
}

char *integrity_table_cipher(const char *type, const char *spec)
{
	const char *iv = NULL;
	g_autofree char *api = api_name(spec, &iv);

	if (!api || !strcmp(type, "none"))
		return api && !strchr(api, '(') ? g_strdup_printf("capi:%s", spec) : g_strdup(spec);
	if (!strcmp(type, "aead"))
		return g_strdup_printf("capi:%s-%s", api, iv);
	if (!strcmp(type, "poly1305"))
		return g_strdup_printf("capi:rfc7539(%s,poly1305)-%s", api, iv);
	return g_strdup_printf("capi:authenc(%s,%s)-%s", type, api, iv);
}

const char *integrity_profile(const char *type)
{
	return strcmp(type, "none") ? "aead" : "none";
}

/* --- what is there --------------------------------------------------------------------------------- */

void integrity_clear(struct integrity *in)
{
	g_clear_pointer(&in->type, g_free);
}

/* Whether the type is one that this program knows: it becomes a word of a table line. */
static bool is_known(const char *type)
{
	for (size_t i = 0; i < G_N_ELEMENTS(kinds); i++)
		if (!strcmp(type, kinds[i].header))
			return true;
	return false;
}

int integrity_of_header(struct crypt_device *cd, const char *file, struct integrity *in, GError **err)
{
	struct crypt_params_integrity ip = {0};

	*in = (struct integrity){0};
	if (strcmp(crypt_get_type(cd), CRYPT_LUKS2) || crypt_get_integrity_info(cd, &ip) || !ip.integrity ||
	    !*ip.integrity)
		return 0;
	if (!is_known(ip.integrity))
		return fail(err, EOPNOTSUPP, "%s: its sectors are authenticated by %s, which is not known here", file,
			    ip.integrity);
	if (!ip.tag_size)
		return fail(err, EINVAL, "%s: integrity %s stores nothing beside sectors of %s-%s", file, ip.integrity,
			    crypt_get_cipher(cd), crypt_get_cipher_mode(cd));
	in->type = g_strdup(ip.integrity);
	in->tag_size = ip.tag_size;
	return 0;
}

int integrity_read_super(const char *file, uint64_t start, int sector_size, struct integrity *in, GError **err)
{
	static const char magic[8] = "integrt";
	uint8_t sb[512] = {0};
	int fd = open(file, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ssize_t n = fd < 0 ? -1 : pread(fd, sb, sizeof(sb), (off_t)(start * 512));
	int code = errno;

	if (fd >= 0)
		close(fd);
	if (n < 0)
		return fail(err, code, "%s: %s", file, g_strerror(code));
	if (n < (ssize_t)sizeof(sb) || memcmp(sb, magic, sizeof(magic)))
		return fail(err, EINVAL,
			    "%s: there is no integrity superblock at sector %" PRIu64 ", where its tags should begin",
			    file, start);
	if (get_le16(sb + 10) != in->tag_size)
		return fail(err, EINVAL, "%s: its integrity superblock has tags of %u bytes, its header of %u", file,
			    get_le16(sb + 10), in->tag_size);
	if (sb[28] > 3 || 512u << sb[28] != (unsigned)sector_size)
		return fail(err, EINVAL,
			    "%s: its integrity superblock has blocks of 2^%u sectors, its header of %d bytes", file,
			    sb[28], sector_size);
	in->provided = get_le64(sb + 16);
	if (!in->provided || in->provided % ((unsigned)sector_size / 512))
		return fail(err, EINVAL, "%s: its integrity superblock has %" PRIu64 " sectors for data", file,
			    in->provided);
	return 0;
}

/* --- the device beneath ------------------------------------------------------------------------------ */

int integrity_add_stage(struct volume *v, const char *file, uint64_t start, int sector_size, char mode,
			const struct integrity *in, bool new, GError **err)
{
	g_autofree char *path = volume_quoted(file), *line = NULL;

	line = g_strdup_printf("0 %" PRIu64 " integrity %s %" PRIu64 " %u %c %d block_size:%d%s\n", in->provided, path,
			       start, in->tag_size, mode, new ? 2 : 1, sector_size, new ? " fix_padding" : "");
	return stage_line_keyless(stage_new(v, INTEGRITY_SUFFIX), line, err);
}
