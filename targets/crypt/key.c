/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Keys as a table line or a message gives them:
 *
 *   babe…                 two hexadecimal digits a byte
 *   -                     none
 *   :SIZE:user:DESC       SIZE bytes from the keyring of the daemon's session
 *
 * Of the kernel's other key types, what is in a logon key only the kernel can
 * read, and of an encrypted or trusted key user space sees only the wrapped form.
 */
#include "crypt.h"

#include <dmfs/target.h>
#ifdef HAVE_KEYUTILS
#include <keyutils.h>
#endif

void crypt_key_clear(struct crypt_key *key)
{
	dm_secmem_free(key->data);
	g_free(key->description);
	*key = (struct crypt_key){0};
}

static int alloc_key(struct crypt_key *key, size_t size, GError **err)
{
	int r = dm_gcrypt_init(err);

	if (r)
		return r;
	key->data = size ? dm_secmem_alloc(size) : NULL;
	key->size = size;
	if (size && !key->data)
		return dm_fail(err, ENOMEM, "crypt: no locked memory for a key of %zu bytes", size);
	return 0;
}

static int read_hex(const char *hex, struct crypt_key *key, GError **err)
{
	size_t digits = strlen(hex);
	int r;

	if (digits % 2)
		return dm_fail(err, EINVAL, "crypt: the key has %zu hexadecimal digits, an even number is needed", digits);
	r = alloc_key(key, digits / 2, err);
	if (r)
		return r;
	for (size_t i = 0; i < digits; i += 2) {
		int hi = g_ascii_xdigit_value(hex[i]), lo = g_ascii_xdigit_value(hex[i + 1]);

		if (hi < 0 || lo < 0)
			return dm_fail(err, EINVAL, "crypt: the key is not hexadecimal at digit %zu of %zu",
				       i + (hi < 0 ? 1 : 2), digits);
		key->data[i / 2] = hi << 4 | lo;
	}
	return 0;
}

#ifdef HAVE_KEYUTILS
static int fetch_key(const char *desc, struct crypt_key *key, GError **err)
{
	key_serial_t id = request_key("user", desc, NULL, 0);
	int saved;
	long len;

	if (id < 0)
		return dm_fail(err, errno, "crypt: user key '%s' is not in the keyrings of the daemon: %s", desc,
			       g_strerror(errno));
	/* Asks for the size first: what does not fit is not read. */
	len = keyctl_read(id, NULL, 0);
	if (len >= 0 && (size_t)len != key->size)
		return dm_fail(err, EINVAL, "crypt: user key '%s' has %ld bytes, not %zu", desc, len, key->size);
	if (len >= 0)
		len = keyctl_read(id, (char *)key->data, key->size);
	saved = errno;
	if (len < 0)
		return dm_fail(err, saved, "crypt: user key '%s' cannot be read: %s", desc, g_strerror(saved));
	if ((size_t)len != key->size)
		return dm_fail(err, EINVAL, "crypt: user key '%s' has %ld bytes, not %zu", desc, len, key->size);
	return 0;
}
#else
static int fetch_key(const char *desc, struct crypt_key *key, GError **err)
{
	return dm_fail(err, EOPNOTSUPP, "crypt: this dmfs was built without keyrings (libkeyutils)");
}
#endif

static int read_keyring(const char *arg, struct crypt_key *key, GError **err)
{
	g_auto(GStrv) parts = g_strsplit(arg + 1, ":", 3); /* SIZE, TYPE, DESCRIPTION */
	unsigned size;
	int r;

	/* What is not of this form might be a mistyped key: not into an error text. */
	if (g_strv_length(parts) != 3 || !*parts[1] || !*parts[2])
		return dm_fail(err, EINVAL, "crypt: a key from the keyring has the form :SIZE:user:DESCRIPTION");
	if (!dm_parse_uint(parts[0], &size) || !size || size > 32767)
		return dm_fail(err, EINVAL, "crypt: the key's size is not a number of bytes from 1 to 32767, as in "
					    ":32:user:DESCRIPTION");
	for (const char *p = parts[2]; *p; p++)
		if (g_ascii_isspace(*p))
			return dm_fail(err, EINVAL, "crypt: the key's description has blanks, it must have none");
	if (!strcmp(parts[1], "logon") || !strcmp(parts[1], "encrypted") || !strcmp(parts[1], "trusted"))
		return dm_fail(err, EOPNOTSUPP,
			       "crypt: key '%s': only the kernel can read keys of type %s; here the type must be user",
			       parts[2], parts[1]);
	if (strcmp(parts[1], "user"))
		return dm_fail(err, EINVAL, "crypt: key '%s' is of no known type, it must be user", parts[2]);
	r = alloc_key(key, size, err);
	if (!r)
		r = fetch_key(parts[2], key, err);
	if (!r)
		key->description = g_strdup_printf("%s:%s", parts[1], parts[2]);
	return r;
}

int crypt_key_read(const char *arg, struct crypt_key *key, GError **err)
{
	int r;

	*key = (struct crypt_key){0};
	if (!strcmp(arg, "-"))
		return 0;
	r = *arg == ':' ? read_keyring(arg, key, err) : read_hex(arg, key, err);
	if (r)
		crypt_key_clear(key);
	return r;
}
