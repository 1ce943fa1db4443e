/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Keys from text and from the keyring (keys.h). */
#include <errno.h>
#include <string.h>
#ifdef HAVE_KEYUTILS
#include <keyutils.h>
#endif

#include <dmfs/keys.h>
#include <dmfs/secmem.h>
#include <dmfs/target.h>

void dm_key_clear(struct dm_key *key)
{
	dm_secmem_free(key->data);
	g_free(key->description);
	*key = (struct dm_key){0};
}

void dm_key_print(const uint8_t *key, size_t size, GString *out)
{
	size_t at = out->len;

	if (!dm_status_tells_keys())
		key = NULL;
	g_string_set_size(out, at + 2 * size);
	for (size_t i = 0; i < 2 * size; i++)
		out->str[at + i] = "0123456789abcdef"[key ? key[i / 2] >> (i % 2 ? 0 : 4) & 15 : 0];
}

static int alloc_key(const char *who, struct dm_key *key, size_t size, GError **err)
{
	int r = dm_gcrypt_init(err);

	if (r)
		return r;
	key->data = size ? dm_secmem_alloc(size) : NULL;
	key->size = size;
	if (size && !key->data)
		return dm_fail(err, ENOMEM, "%s: no locked memory for a key of %zu bytes", who, size);
	return 0;
}

static int read_hex(const char *who, const char *what, const char *hex, struct dm_key *key, GError **err)
{
	size_t digits = strlen(hex);
	int r;

	if (digits % 2)
		return dm_fail(err, EINVAL, "%s: %s has %zu hexadecimal digits, an even number is needed", who, what,
			       digits);
	r = alloc_key(who, key, digits / 2, err);
	if (r)
		return r;
	for (size_t i = 0; i < digits; i += 2) {
		int hi = g_ascii_xdigit_value(hex[i]), lo = g_ascii_xdigit_value(hex[i + 1]);

		if (hi < 0 || lo < 0)
			return dm_fail(err, EINVAL, "%s: %s is not hexadecimal at digit %zu of %zu", who, what,
				       i + (hi < 0 ? 1 : 2), digits);
		key->data[i / 2] = (uint8_t)(hi << 4 | lo);
	}
	return 0;
}

int dm_key_from_hex(const char *who, const char *what, const char *hex, struct dm_key *key, GError **err)
{
	int r;

	*key = (struct dm_key){0};
	r = read_hex(who, what, hex, key, err);
	if (r)
		dm_key_clear(key);
	return r;
}

/* --- the keyring --------------------------------------------------------------------------- */

#ifdef HAVE_KEYUTILS
/* size 0: as large as it is. */
static int fetch_key(const char *who, const char *desc, size_t size, struct dm_key *key, GError **err)
{
	key_serial_t id = request_key("user", desc, NULL, 0);
	int saved, r;
	long len;

	if (id < 0)
		return dm_fail(err, errno, "%s: user key '%s' is not in the keyrings of the daemon: %s", who, desc,
			       g_strerror(errno));
	/* Asks for the size first: what does not fit is not read. */
	len = keyctl_read(id, NULL, 0);
	if (len == 0 || (len > 0 && size && (size_t)len != size))
		return dm_fail(err, EINVAL, "%s: user key '%s' has %ld bytes, not %zu", who, desc, len, MAX(size, 1));
	if (len > 0) {
		r = alloc_key(who, key, (size_t)len, err);
		if (r)
			return r;
		len = keyctl_read(id, (char *)key->data, key->size);
	}
	saved = errno;
	if (len < 0)
		return dm_fail(err, saved, "%s: user key '%s' cannot be read: %s", who, desc, g_strerror(saved));
	if ((size_t)len != key->size)
		return dm_fail(err, EINVAL, "%s: user key '%s' has %ld bytes, not %zu", who, desc, len, key->size);
	return 0;
}
#else
static int fetch_key(const char *who, const char *desc, size_t size, struct dm_key *key, GError **err)
{
	return dm_fail(err, EOPNOTSUPP, "%s: this dmfs was built without keyrings (libkeyutils)", who);
}
#endif

int dm_key_from_keyring(const char *who, const char *description, size_t size, struct dm_key *key, GError **err)
{
	int r;

	*key = (struct dm_key){0};
	r = fetch_key(who, description, size, key, err);
	if (r)
		dm_key_clear(key);
	else
		key->description = g_strdup_printf("user:%s", description);
	return r;
}

/* What a text says of a key in a keyring; what is not of its form might be a mistyped key: not into an error text. */
static int check_description(const char *who, const char *desc, GError **err)
{
	for (const char *p = desc; *p; p++)
		if (g_ascii_isspace(*p))
			return dm_fail(err, EINVAL, "%s: the key's description has blanks, it must have none", who);
	return 0;
}

/* HEX:TYPE:DESCRIPTION */
static int read_handed(const char *who, const char *arg, struct dm_key *key, GError **err)
{
	const char *type = strchr(arg, ':') + 1, *desc = strchr(type, ':');
	size_t digits = (size_t)(type - arg) - 1;
	g_autofree char *hex = NULL;
	int r;

	if (!desc || !desc[1] || (!g_str_has_prefix(type, "user:") && !g_str_has_prefix(type, "logon:")))
		return dm_fail(err, EINVAL, "%s: a key that is handed over has the form HEX:user:DESCRIPTION or "
					    "HEX:logon:DESCRIPTION", who);
	r = check_description(who, desc + 1, err);
	if (r)
		return r;
	hex = g_strndup(arg, digits);
	r = dm_key_from_hex(who, "the key", hex, key, err);
	explicit_bzero(hex, digits);
	if (r)
		return r;
	key->description = g_strdup(type);
	key->handed = true;
	return 0;
}

static int read_keyring(const char *who, const char *arg, struct dm_key *key, GError **err)
{
	g_auto(GStrv) parts = g_strsplit(arg + 1, ":", 3); /* SIZE, TYPE, DESCRIPTION */
	unsigned size;
	int r;

	if (g_strv_length(parts) != 3 || !*parts[1] || !*parts[2])
		return dm_fail(err, EINVAL, "%s: a key from the keyring has the form :SIZE:user:DESCRIPTION", who);
	if (!dm_parse_uint(parts[0], &size) || !size || size > 32767)
		return dm_fail(err, EINVAL, "%s: the key's size is not a number of bytes from 1 to 32767, as in "
					    ":32:user:DESCRIPTION", who);
	r = check_description(who, parts[2], err);
	if (r)
		return r;
	if (!strcmp(parts[1], "logon") || !strcmp(parts[1], "encrypted") || !strcmp(parts[1], "trusted"))
		return dm_fail(err, EOPNOTSUPP,
			       "%s: key '%s': only the kernel can read keys of type %s; here the type must be user", who,
			       parts[2], parts[1]);
	if (strcmp(parts[1], "user"))
		return dm_fail(err, EINVAL, "%s: key '%s' is of no known type, it must be user", who, parts[2]);
	return dm_key_from_keyring(who, parts[2], size, key, err);
}

int dm_key_read(const char *who, const char *arg, struct dm_key *key, GError **err)
{
	*key = (struct dm_key){0};
	if (!strcmp(arg, "-"))
		return 0;
	if (*arg == ':')
		return read_keyring(who, arg, key, err);
	return strchr(arg, ':') ? read_handed(who, arg, key, err) : dm_key_from_hex(who, "the key", arg, key, err);
}
