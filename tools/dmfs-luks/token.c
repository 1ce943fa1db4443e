/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * LUKS2's tokens: what says where the passphrase is kept.  libcryptsetup
 * resolves those of the kernel's keyring itself, and others by plugins.
 */
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
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

static int key_by(struct crypt_device *cd, int id, int slot, struct key *k)
{
	struct crypt_keyslot_context *kc = NULL;
	int r = crypt_keyslot_context_init_by_token(cd, id, NULL, NULL, 0, NULL, &kc);

	if (!r)
		r = crypt_volume_key_get_by_keyslot_context(cd, slot, k->bytes, &k->len, kc);
	crypt_keyslot_context_free(kc);
	return r;
}

int token_key(struct crypt_device *cd, const struct options *o, struct key *k)
{
	return key_by(cd, o->token_id, o->key_slot, k);
}

/* --- why not ---------------------------------------------------------------------------------------- */

static void say_unknown(GString *why, int id, const char *type)
{
	g_autofree char *plugin = g_strdup_printf("libcryptsetup-token-%s.so", type);
	g_autofree char *path =
	    g_build_filename(crypt_token_external_path() ? crypt_token_external_path() : "", plugin, NULL);

	if (!crypt_token_external_path() || access(path, R_OK))
		g_string_append_printf(why, "token %d (%s) needs libcryptsetup's plugin %s, which is not there", id,
				       type, crypt_token_external_path() ? path : plugin);
	else
		g_string_append_printf(why, "token %d (%s) cannot be used by libcryptsetup's plugin %s", id, type,
				       path);
}

/* As libcryptsetup looks for it. */
static bool is_in_keyring(const char *description)
{
	return syscall(SYS_request_key, "user", description, NULL, 0) >= 0;
}

static void say_usable(struct crypt_device *cd, GString *why, int id, const char *type, int code)
{
	struct crypt_token_params_luks2_keyring keyring = {0};

	g_string_append_printf(why, "token %d (%s) ", id, type);
	if (code == ENOANO)
		g_string_append(why, "needs a PIN, which dmfs-luks has no way to give");
	else if (!strcmp(type, "luks2-keyring") && crypt_token_luks2_keyring_get(cd, id, &keyring) >= 0 &&
		 !is_in_keyring(keyring.key_description))
		g_string_append_printf(why, "needs the key '%s', which is in no keyring of this process",
				       keyring.key_description);
	else if (code == EPERM || code == ENOENT)
		g_string_append(why, "gives no passphrase, or one that opens no key slot of the volume's");
	else
		g_string_append_printf(why, "gives no passphrase: %s", g_strerror(code));
}

static void say_token(struct crypt_device *cd, const struct options *o, GString *why, int id, struct key *k)
{
	const char *type = NULL;
	crypt_token_info info = crypt_token_status(cd, id, &type);
	g_autofree char *name = g_strdup(type ? type : "?"); /* the next call may take it away */

	if (info == CRYPT_TOKEN_INACTIVE || info == CRYPT_TOKEN_INVALID || wipe_is_record(name))
		return;
	if (why->len)
		g_string_append(why, "; ");
	if (is_usable(info))
		say_usable(cd, why, id, name, -key_by(cd, id, o->key_slot, k));
	else
		say_unknown(why, id, name);
}

char *token_why_not(struct crypt_device *cd, const struct options *o, struct key *k)
{
	int max = crypt_token_max(CRYPT_LUKS2);
	GString *why = g_string_new(NULL);

	for (int i = 0; i < max; i++)
		if (o->token_id == CRYPT_ANY_TOKEN || o->token_id == i)
			say_token(cd, o, why, i, k);
	if (!why->len && o->token_id != CRYPT_ANY_TOKEN)
		g_string_printf(why, "it has no token %d", o->token_id);
	else if (!why->len)
		g_string_assign(why, "it has no tokens");
	return g_string_free(why, FALSE);
}
