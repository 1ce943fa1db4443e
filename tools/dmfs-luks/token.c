/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * LUKS2's tokens: what says where the passphrase is kept.  libcryptsetup
 * resolves those of the kernel's keyring itself, and others by plugins.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "luks.h"

/* Whether libcryptsetup could resolve it. */
static bool is_usable(crypt_token_info info)
{
	return info == CRYPT_TOKEN_INTERNAL || info == CRYPT_TOKEN_EXTERNAL;
}

bool token_any(struct crypt_device *cd)
{
	int max = crypt_token_max(CRYPT_LUKS2);

	for (int i = 0; i < max; i++)
		if (is_usable(crypt_token_status(cd, i, NULL)))
			return true;
	return false;
}

int token_key(struct crypt_device *cd, const struct options *o, struct key *k)
{
	struct crypt_keyslot_context *kc = NULL;
	int r = crypt_keyslot_context_init_by_token(cd, o->token_id, NULL, NULL, 0, NULL, &kc);

	if (!r)
		r = crypt_volume_key_get_by_keyslot_context(cd, o->key_slot, k->bytes, &k->len, kc);
	crypt_keyslot_context_free(kc);
	return r;
}

/* --- why not ---------------------------------------------------------------------------------------- */

static void say_unknown(GString *why, int id, const char *type)
{
	g_autofree char *plugin = g_strdup_printf("libcryptsetup-token-%s.so", type);
	g_autofree char *path = g_build_filename(crypt_token_external_path() ? crypt_token_external_path() : "", plugin, NULL);

	if (!crypt_token_external_path() || access(path, R_OK))
		g_string_append_printf(why, "token %d (%s) needs libcryptsetup's plugin %s, which is not there", id, type,
				       crypt_token_external_path() ? path : plugin);
	else
		g_string_append_printf(why, "token %d (%s) cannot be used by libcryptsetup's plugin %s", id, type, path);
}

static void say_usable(struct crypt_device *cd, GString *why, int id, const char *type, int code)
{
	struct crypt_token_params_luks2_keyring keyring = {0};

	g_string_append_printf(why, "token %d (%s) ", id, type ? type : "?");
	if (code == ENOANO)
		g_string_append(why, "needs a PIN, which dmfs-luks has no way to give");
	else if (code == EPERM)
		g_string_append(why, "gives a passphrase that opens no key slot");
	else if (crypt_token_luks2_keyring_get(cd, id, &keyring) >= 0 && keyring.key_description)
		g_string_append_printf(why, "needs the key '%s', which is in no keyring of this process", keyring.key_description);
	else
		g_string_append_printf(why, "gives no passphrase: %s", g_strerror(code));
}

static void say_token(struct crypt_device *cd, GString *why, int id, int code)
{
	const char *type = NULL;
	crypt_token_info info = crypt_token_status(cd, id, &type);

	if (info != CRYPT_TOKEN_INACTIVE && info != CRYPT_TOKEN_INVALID && why->len)
		g_string_append(why, "; ");
	if (is_usable(info))
		say_usable(cd, why, id, type, code);
	else if (info == CRYPT_TOKEN_EXTERNAL_UNKNOWN || info == CRYPT_TOKEN_INTERNAL_UNKNOWN)
		say_unknown(why, id, type);
}

char *token_why_not(struct crypt_device *cd, const struct options *o, int code)
{
	int max = crypt_token_max(CRYPT_LUKS2);
	GString *why = g_string_new(NULL);

	for (int i = 0; i < max; i++)
		if (o->token_id == CRYPT_ANY_TOKEN || o->token_id == i)
			say_token(cd, why, i, code);
	if (!why->len && o->token_id != CRYPT_ANY_TOKEN)
		g_string_printf(why, "it has no token %d", o->token_id);
	else if (!why->len)
		g_string_assign(why, "it has no tokens");
	return g_string_free(why, FALSE);
}
