/* SPDX-License-Identifier: GPL-2.0-or-later */
/* TrueCrypt and VeraCrypt. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "luks.h"

#define TCRYPT_BACKUP_SECTORS 256

static int tcrypt_load(struct crypt_device *cd, const char *file, const struct options *o, GError **err)
{
	g_autofree char *prompt = g_strdup_printf("Passphrase for %s", file);
	struct options typed = *o;
	struct crypt_params_tcrypt params = {
		.keyfiles = (const char **)o->key_files,
		.keyfiles_count = o->key_files ? g_strv_length(o->key_files) : 0,
		.flags = CRYPT_TCRYPT_LEGACY_MODES | (o->no_veracrypt ? 0 : CRYPT_TCRYPT_VERA_MODES) |
			 (o->tcrypt_hidden ? CRYPT_TCRYPT_HIDDEN_HEADER : 0) |
			 (o->tcrypt_backup ? CRYPT_TCRYPT_BACKUP_HEADER : 0),
		.veracrypt_pim = (uint32_t)o->pim,
	};
	int tries, r;

	typed.key_files = NULL; /* they come on top of the passphrase */
	tries = secret_can_retry(&typed) ? MAX(o->tries, 1) : 1;
	do {
		struct secret pass;

		r = secret_get(cd, &typed, prompt, &pass, err);
		if (r)
			return r;
		params.passphrase = pass.data ? pass.data : "";
		params.passphrase_size = pass.len;
		r = crypt_load(cd, CRYPT_TCRYPT, &params);
		secret_clear(&pass);
		if (r == -EPERM && tries > 1)
			g_printerr("No header can be read with this passphrase.\n");
	} while (r == -EPERM && --tries > 0);
	return r < 0 ? volume_fail(err, -r, file) : 0;
}

/* Layers: the last cipher of the cascade is on the file. */
static int tcrypt_stages(struct crypt_device *cd, const char *file, const char *name, const char *key, size_t len,
			 struct volume *v, GError **err)
{
	g_auto(GStrv) ciphers = g_strsplit(crypt_get_cipher(cd), "-", -1);
	unsigned n = g_strv_length(ciphers);
	uint64_t offset = crypt_get_data_offset(cd), sectors, end;
	g_autofree char *path = volume_quoted(file);
	int r = volume_sectors(file, &sectors, err);

	if (r)
		return r;
	end = offset < TCRYPT_BACKUP_SECTORS ? sectors : sectors - MIN(sectors, TCRYPT_BACKUP_SECTORS);
	if (end <= offset || !n || len % n)
		return fail(err, EINVAL, "%s: no room for data behind sector %" PRIu64, file, offset);
	for (unsigned i = n; i-- > 0 && !r;) {
		g_autofree char *suffix = i ? g_strdup_printf("_%u", i) : g_strdup("");
		g_autofree char *beneath = g_strdup_printf("%s_%u", name, i + 1);
		g_autofree char *head = g_strdup_printf("0 %" PRIu64 " crypt %s-%s ", end - offset, ciphers[i],
							crypt_get_cipher_mode(cd));
		g_autofree char *tail = g_strdup_printf(" %" PRIu64 " %s %" PRIu64 "\n", crypt_get_iv_offset(cd),
							i == n - 1 ? path : beneath, i == n - 1 ? offset : 0);

		r = stage_line(stage_new(v, suffix), head, key + i * (len / n), len / n, tail, err);
	}
	return r;
}

int tcrypt_open(struct crypt_device *cd, const char *file, const char *name, const struct options *o, struct volume *v,
		GError **err)
{
	size_t len;
	char *key;
	int r = tcrypt_load(cd, file, o, err);

	if (r)
		return r;
	len = (size_t)MAX(crypt_get_volume_key_size(cd), 1);
	key = crypt_safe_alloc(len);
	if (!key)
		return fail(err, ENOMEM, "no memory for a key");
	r = crypt_volume_key_get(cd, CRYPT_ANY_SLOT, key, &len, NULL, 0);
	r = r < 0 ? volume_fail(err, -r, file) : tcrypt_stages(cd, file, name, key, len, v, err);
	crypt_safe_free(key);
	return r;
}

