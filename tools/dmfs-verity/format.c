/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Makes an image: libcryptsetup writes the superblock, the tree and the parity. */
#include <errno.h>
#include <fcntl.h>
#include <libcryptsetup.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../targets/verity/format.h"
#include "verity.h"

static char *last_error;

static void remember(int level, const char *msg, void *unused)
{
	if (level != CRYPT_LOG_ERROR)
		return;
	g_free(last_error);
	last_error = g_strdelimit(g_strstrip(g_strdup(msg)), "\n", ' ');
}

static int fail_with_its(GError **err, int r, const char *what)
{
	/* a failure of its own tells why; EINVAL is for what we were given */
	return fail(err, -r, "%s: %s", what, last_error && *last_error ? last_error : g_strerror(-r));
}

/* As veritysetup: what is to be written is made if it is not there. */
static int make_if_absent(const char *path, bool *made, GError **err)
{
	struct stat st;
	int fd;

	*made = false;
	if (!path || !stat(path, &st))
		return 0;
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return fail(err, errno, "%s: %s", path, g_strerror(errno));
	close(fd);
	*made = true;
	return 0;
}

static int random_salt(uint8_t *salt, size_t len, GError **err)
{
	int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
	bool ok = fd >= 0 && read(fd, salt, len) == (ssize_t)len;

	if (fd >= 0)
		close(fd);
	return ok ? 0 : fail(err, EIO, "/dev/urandom: %s", g_strerror(errno));
}

/* The salt of the options, else a random one. */
static int make_salt(const struct options *o, uint8_t *salt, size_t *size, GError **err)
{
	ssize_t len = o->salt && strcmp(o->salt, "-") ? verity_parse_hex(o->salt, NULL) : 0;

	if (len < 0 || len > 256)
		return fail(err, EINVAL, "--salt=%s: up to 256 bytes in hexadecimal, or - for none", o->salt);
	*size = (size_t)len;
	if (len)
		verity_parse_hex(o->salt, salt);
	if (o->salt)
		return 0;
	*size = 32;
	return random_salt(salt, *size, err);
}

static int write_image(const char *data, const char *hashes, const struct options *o, const uint8_t *salt,
		       size_t salt_size, char **root, char **uuid, GError **err)
{
	struct crypt_params_verity p = {
		.hash_name = o->hash ? o->hash : "sha256",
		.data_device = data,
		.fec_device = o->fec_device,
		.salt = (const char *)salt,
		.salt_size = (uint32_t)salt_size,
		.hash_type = o->type < 0 ? 1 : (uint32_t)o->type,
		.data_block_size = o->data_block ? (uint32_t)o->data_block : 4096,
		.hash_block_size = o->hash_block ? (uint32_t)o->hash_block : 4096,
		.data_size = (uint64_t)o->data_blocks,
		.hash_area_offset = (uint64_t)o->hash_offset,
		.fec_area_offset = (uint64_t)o->fec_offset,
		.fec_roots = o->fec_roots ? (uint32_t)o->fec_roots : 2,
		.flags = CRYPT_VERITY_CREATE_HASH | (o->no_superblock ? CRYPT_VERITY_NO_HEADER : 0),
	};
	struct crypt_device *cd = NULL;
	GString *hex = g_string_new(NULL);
	uint8_t key[DM_HASH_MAX_SIZE];
	size_t size = sizeof(key);
	int r;

	crypt_set_log_callback(NULL, remember, NULL);
	crypt_metadata_locking(NULL, 0);
	r = crypt_init(&cd, hashes);
	if (r >= 0)
		r = crypt_format(cd, CRYPT_VERITY, NULL, NULL, o->uuid, NULL, 0, &p);
	if (r >= 0)
		r = crypt_volume_key_get(cd, CRYPT_ANY_SLOT, (char *)key, &size, NULL, 0);
	if (r >= 0 && crypt_get_uuid(cd))
		*uuid = g_strdup(crypt_get_uuid(cd));
	for (size_t i = 0; r >= 0 && i < size; i++)
		g_string_append_printf(hex, "%02x", key[i]);
	*root = g_string_free(hex, FALSE);
	crypt_free(cd);
	return r < 0 ? fail_with_its(err, r, hashes) : 0;
}

static int write_root(const char *path, const char *root, GError **err)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	size_t len = strlen(root);
	bool ok = fd >= 0 && write(fd, root, len) == (ssize_t)len;

	if (fd >= 0 && close(fd))
		ok = false;
	return ok ? 0 : fail(err, errno, "%s: %s", path, g_strerror(errno));
}

static int show(const char *data, const char *hashes, const struct options *o, const uint8_t *salt, size_t salt_size,
		const char *root, GError **err)
{
	g_autoptr(GString) hex = g_string_new(salt_size ? NULL : "-");
	struct options as_made = *o;
	struct image im;
	int r;

	for (size_t i = 0; i < salt_size; i++)
		g_string_append_printf(hex, "%02x", salt[i]);
	as_made.salt = hex->str;
	r = image_load(data, hashes, &as_made, &im, err);
	if (!r)
		image_print(&im, root);
	image_clear(&im);
	return r;
}

int format(const char *data, const char *hashes, const struct options *o, GError **err)
{
	g_autofree char *root = NULL, *uuid = NULL;
	bool made_hashes = false, made_fec = false;
	uint8_t salt[256];
	size_t salt_size;
	int r = make_salt(o, salt, &salt_size, err);

	if (!r)
		r = make_if_absent(hashes, &made_hashes, err);
	if (!r)
		r = make_if_absent(o->fec_device, &made_fec, err);
	if (!r)
		r = write_image(data, hashes, o, salt, salt_size, &root, &uuid, err);
	if (r && made_hashes)
		unlink(hashes);
	if (r && made_fec)
		unlink(o->fec_device);
	if (!r && o->root_file)
		r = write_root(o->root_file, root, err);
	return r ? r : show(data, hashes, o, salt, salt_size, root, err);
}
