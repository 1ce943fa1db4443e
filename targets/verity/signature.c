/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Signatures of root hashes: PKCS#7, detached, of the root hash's hexadecimal digits as they stand in the table line.
 *
 * root_hash_sig_key_desc names a user key that holds the signature, in the keyrings of the daemon, or has it in front,
 * HEX:user:NAME, from who can read a key that the daemon cannot; or, with a `/` in front, a file.  A signature is good if one of the certificates that the mount was given made it, or
 * stands behind the certificate in it that did.  As with the kernel's keyrings, nobody asks how old a certificate is.
 *
 * Without certificates a signature cannot be checked, and the line is refused; with them, so is a line without one.
 */
#ifdef HAVE_GNUTLS
#include <gnutls/pkcs7.h>
#include <gnutls/x509.h>
#endif

#include <dmfs/keys.h>

#include "mount.h"
#include "verity.h"

#define MAX_SIGNATURE ((size_t)1 << 20) /* bytes */

/* --- the signature ------------------------------------------------------------------------------ */

#define KEY_TYPE "user:"

/* The word becomes the name alone. */
static int read_key(struct dm_target *ti, char **word, GBytes **out, GError **err)
{
	static const char who[] = "verity: DM Verity Sig Verification Invalid key specified";
	size_t digits = strspn(*word, "0123456789abcdefABCDEF");
	bool handed = digits && g_str_has_prefix(*word + digits, ":" KEY_TYPE);
	struct dm_key key;
	int r = handed ? dm_key_read(who, *word, &key, err) : dm_key_from_keyring(who, *word, 0, &key, err);

	if (!r)
		*out = g_bytes_new(key.data, key.size);
	if (!r && handed) {
		g_free(*word);
		*word = g_strdup(key.description + strlen(KEY_TYPE));
		ti->secret = true;
	}
	dm_key_clear(&key);
	return r;
}

static int read_signature(struct dm_target *ti, char **word, GBytes **out, GError **err)
{
	if (**word != '/')
		return read_key(ti, word, out, err);
	return dm_read_file(ti, *word, MAX_SIGNATURE, out, err);
}

/* --- checking it -------------------------------------------------------------------------------- */

#ifdef HAVE_GNUTLS
static gnutls_x509_crt_t *certificates;
static unsigned n_certificates;

int verity_set_keys(const char *path, GError **err)
{
	g_autofree char *text = NULL;
	g_autoptr(GError) why = NULL;
	gnutls_datum_t pem;
	size_t len;
	int r;

	if (!g_file_get_contents(path, &text, &len, &why))
		return dm_fail(err, ENOENT, "verity-keys=%s: %s", path, why->message);
	pem = (gnutls_datum_t){(unsigned char *)text, (unsigned)len};
	r = gnutls_x509_crt_list_import2(&certificates, &n_certificates, &pem, GNUTLS_X509_FMT_PEM, 0);
	if (r < 0 || !n_certificates)
		return dm_fail(err, EINVAL, "verity-keys=%s: no certificates in PEM format are in it: %s", path,
			       gnutls_strerror(r));
	return 0;
}

/* Made by one of the certificates itself. */
static bool signed_by_one(gnutls_pkcs7_t pkcs7, unsigned nr, const gnutls_datum_t *text)
{
	for (unsigned i = 0; i < n_certificates; i++)
		if (gnutls_pkcs7_verify_direct(pkcs7, certificates[i], nr, text, 0) >= 0)
			return true;
	return false;
}

/* Made by a certificate that came with it, and that one of ours stands behind. */
static bool signed_below_one(gnutls_pkcs7_t pkcs7, unsigned nr, const gnutls_datum_t *text)
{
	gnutls_x509_trust_list_t trusted;
	bool good = false;

	if (gnutls_x509_trust_list_init(&trusted, 0) < 0)
		return false;
	if (gnutls_x509_trust_list_add_cas(trusted, certificates, n_certificates, 0) >= 0)
		good = gnutls_pkcs7_verify(pkcs7, trusted, NULL, 0, nr, text, GNUTLS_VERIFY_DISABLE_TIME_CHECKS) >= 0;
	gnutls_x509_trust_list_deinit(trusted, 0);
	return good;
}

static bool is_good(gnutls_pkcs7_t pkcs7, const gnutls_datum_t *text)
{
	int n = gnutls_pkcs7_get_signature_count(pkcs7);

	for (int i = 0; i < n; i++)
		if (signed_by_one(pkcs7, (unsigned)i, text) || signed_below_one(pkcs7, (unsigned)i, text))
			return true;
	return false;
}

static int check(const char *root, const char *key, GBytes *signature, GError **err)
{
	gnutls_datum_t text = {(unsigned char *)root, (unsigned)strlen(root)}, der, content = {NULL, 0};
	gnutls_pkcs7_t pkcs7;
	gsize len;
	int r;

	if (!n_certificates)
		return dm_fail(err, ENOKEY,
			       "verity: Root hash verification failed: no certificates to check a signature with were given to "
			       "the mount (-o verity-keys=FILE.pem)");
	der.data = (unsigned char *)g_bytes_get_data(signature, &len);
	der.size = (unsigned)len;
	if (gnutls_pkcs7_init(&pkcs7) < 0)
		return dm_fail(err, ENOMEM, "verity: no memory for a signature");
	r = gnutls_pkcs7_import(pkcs7, &der, GNUTLS_X509_FMT_DER);
	if (r < 0) {
		r = dm_fail(err, EBADMSG, "verity: Root hash verification failed: '%s' holds no PKCS#7 signature in DER format: %s",
			    key, gnutls_strerror(r));
	} else if (gnutls_pkcs7_get_embedded_data(pkcs7, 0, &content) >= 0) {
		gnutls_free(content.data);
		r = dm_fail(err, EINVAL, "verity: Root hash verification failed: the signature '%s' is not detached", key);
	} else if (!is_good(pkcs7, &text)) {
		r = dm_fail(err, EKEYREJECTED,
			    "verity: Root hash verification failed: '%s' is no signature of this root hash by any of the %u "
			    "certificates the mount was given",
			    key, n_certificates);
	} else {
		r = 0;
	}
	gnutls_pkcs7_deinit(pkcs7);
	return r;
}

static bool is_needed(void)
{
	return n_certificates;
}
#else
int verity_set_keys(const char *path, GError **err)
{
	return dm_fail(err, EOPNOTSUPP, "verity-keys=%s: this dmfs was built without GnuTLS", path);
}

static int check(const char *root, const char *key, GBytes *signature, GError **err)
{
	return dm_fail(err, EOPNOTSUPP, "verity: '%s': this dmfs was built without GnuTLS and checks no signatures", key);
}

static bool is_needed(void)
{
	return false;
}
#endif

int verity_check_signature(struct dm_target *ti, const char *root, char **key, GError **err)
{
	g_autoptr(GBytes) signature = NULL;
	int r;

	if (!*key && is_needed())
		return dm_fail(err, ENOKEY,
			       "verity: Root hash verification failed: this mount takes signed root hashes only "
			       "(root_hash_sig_key_desc)");
	if (!*key)
		return 0;
	r = read_signature(ti, key, &signature, err);
	return r ? r : check(root, *key, signature, err);
}
