/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Cipher strings (dm-crypt.rst):
 *
 *   cipher[:keycount]-chainmode-ivmode[:ivopts]     aes-cbc-essiv:sha256
 *   cipher, cipher-plain                            both mean cipher-cbc-plain
 *   cipher[:keycount]-ecb                           has no IV
 *   capi:MODE(cipher)-ivmode[:ivopts]               capi:xts(aes)-plain64
 *   capi:essiv(MODE(cipher),hash)-ivmode            the kernel's template, spelt out
 *   capi:chacha20-ivmode
 *
 * MODE is ecb, cbc, ctr or xts.  Authenticated modes:
 *
 *   capi:gcm(cipher)-ivmode
 *   capi:rfc7539(chacha20,poly1305)-ivmode
 *   capi:authenc(MAC,MODE(cipher))-ivmode       MAC: hmac(hash), cmac(cipher), or a hash that takes a key
 *
 * What follows an IV mode that takes no options, and an IV mode for ecb, mean nothing; the kernel takes them, so they
 * are taken with a warning.
 */
#include "crypt.h"

#include <dmfs/rounding.h>
#include <dmfs/target.h>

static const struct {
	const char *name;
	enum crypt_iv iv;
} iv_modes[] = {
	{"plain", CRYPT_IV_PLAIN}, {"plain64", CRYPT_IV_PLAIN64}, {"plain64be", CRYPT_IV_PLAIN64BE},
	{"benbi", CRYPT_IV_BENBI}, {"null", CRYPT_IV_NULL},       {"lmk", CRYPT_IV_LMK},
	{"tcw", CRYPT_IV_TCW},     {"eboiv", CRYPT_IV_EBOIV},     {"elephant", CRYPT_IV_ELEPHANT},
	{"random", CRYPT_IV_RANDOM},
};

static bool is_word(const char *s, size_t len, const char *word)
{
	return s && strlen(word) == len && !memcmp(s, word, len);
}

static int find_hash(const char *s, size_t len, struct crypt_spec *spec, GError **err)
{
	g_autoptr(GString) names = NULL;

	if (dm_digest_find(s, len, &spec->essiv))
		return 0;
	names = g_string_new(NULL);
	dm_digest_names(names);
	return dm_fail(err, EINVAL, "crypt: essiv: hash '%.*s' is not one of %s", (int)len, s, names->str);
}

/* Whether mode and cipher go together; and what sizes follow. */
static int settle_mode(struct crypt_spec *spec, GError **err)
{
	int r = dm_cipher_check_mode("crypt", spec->cipher, spec->mode, err);

	spec->iv_size = dm_cipher_iv_size(spec->cipher, spec->mode);
	spec->granule = dm_cipher_granule(spec->cipher, spec->mode);
	return r;
}

static int settle_essiv(struct crypt_spec *spec, GError **err)
{
	if (!spec->essiv.name)
		return 0;
	if (spec->iv_size != spec->cipher->block)
		return dm_fail(err, EINVAL, "crypt: essiv takes a mode whose IV is one block of the cipher: cbc, ctr, xts, lrw");
	return dm_cipher_check_key("crypt", spec->cipher, spec->essiv.size, "essiv: the hash", err);
}

/* ivmode: len bytes, or NULL.  ivopts: the rest of the string, or NULL. */
static int settle_iv(struct crypt_spec *spec, const char *ivmode, size_t len, const char *ivopts, GError **err)
{
	bool essiv = is_word(ivmode, len, "essiv");
	int i;

	spec->iv = CRYPT_IV_NONE;
	if (essiv) {
		if (!ivopts)
			return dm_fail(err, EINVAL, "crypt: essiv needs a hash, as in essiv:sha256");
		if (spec->essiv.name)
			return dm_fail(err, EINVAL, "crypt: essiv is named twice");
		if (find_hash(ivopts, strlen(ivopts), spec, err))
			return -EINVAL;
	}
	if (settle_essiv(spec, err))
		return -EINVAL;
	if (!spec->iv_size) {
		spec->ignored = ivmode;
		return 0;
	}
	if (!ivmode)
		return dm_fail(err, EINVAL, "crypt: an IV mode is needed, such as plain64");
	if (essiv) {
		spec->iv = CRYPT_IV_PLAIN64;
		return 0;
	}
	spec->ignored = ivopts;
	for (i = 0; i < (int)G_N_ELEMENTS(iv_modes); i++)
		if (is_word(ivmode, len, iv_modes[i].name)) {
			spec->iv = iv_modes[i].iv;
			break;
		}
	if (i == (int)G_N_ELEMENTS(iv_modes))
		return dm_fail(err, EINVAL,
			       "crypt: IV mode '%.*s' is not one of plain, plain64, plain64be, essiv:HASH, benbi, null, "
			       "lmk, tcw, eboiv, elephant, random",
			       (int)len, ivmode);
	if (spec->auth && spec->iv >= CRYPT_IV_LMK && spec->iv != CRYPT_IV_RANDOM)
		return dm_fail(err, EINVAL, "crypt: IV mode %s does not go with authenticated modes", iv_modes[i].name);
	if (spec->iv == CRYPT_IV_LMK && spec->mode != DM_CIPHER_CBC)
		return dm_fail(err, EINVAL, "crypt: IV mode lmk takes cbc: in other modes what was written could not be read");
	if ((spec->iv == CRYPT_IV_EBOIV || spec->iv == CRYPT_IV_ELEPHANT) && spec->granule != spec->iv_size)
		return dm_fail(err, EINVAL, "crypt: IV mode %s takes a mode whose IV is one block: cbc, xts, lrw",
			       iv_modes[i].name);
	return 0;
}

/* NAME(INSIDE) at s: splits it; false if it has not this form. */
static bool split_call(const char *s, size_t len, size_t *name_len, const char **inside, size_t *inside_len)
{
	const char *open = memchr(s, '(', len);

	if (!open || open == s || s[len - 1] != ')')
		return false;
	*name_len = open - s;
	*inside = open + 1;
	*inside_len = s + len - 1 - *inside;
	return true;
}

static bool is_authenticated(const char *s, size_t len)
{
	static const char *const names[] = {"gcm(",     "gcm_base(", "ccm(",      "ccm_base(",        "authenc(", "authencesn(",
					    "rfc7539(", "rfc7539esp(", "rfc4106(", "rfc4309(", "rfc4543(", "aegis128", "morus"};

	for (size_t i = 0; i < G_N_ELEMENTS(names); i++)
		if (len >= strlen(names[i]) && !memcmp(s, names[i], strlen(names[i])))
			return true;
	return false;
}

/* MAC,MODE(CIPHER) */
static int parse_authenc(const char *inside, size_t len, struct crypt_spec *spec, GError **err)
{
	const char *comma = memchr(inside, ',', len);
	size_t name_len = comma ? (size_t)(comma - inside) : 0;
	struct dm_hash *mac = NULL;

	if (!name_len || name_len >= sizeof(spec->mac))
		return dm_fail(err, EINVAL, "crypt: authenc(%.*s) is not of the form authenc(MAC,MODE(CIPHER))", (int)len,
			       inside);
	memcpy(spec->mac, inside, name_len);
	if (dm_gcrypt_init(err))
		return -EINVAL;
	if (dm_hash_new(spec->mac, &mac, NULL))
		return dm_fail(err, EINVAL, "crypt: authenc: MAC '%s' is not hmac(HASH) or cmac(CIPHER) of one there is",
			       spec->mac);
	spec->mac_size = dm_hash_size(mac);
	dm_hash_free(mac);
	spec->auth = CRYPT_AUTH_MAC;
	if (dm_cipher_parse("crypt", comma + 1, inside + len - comma - 1, &spec->cipher, &spec->mode, err))
		return -EINVAL;
	/* the kernel takes it, but makes other tags than those of aead.c */
	if (spec->mode == DM_CIPHER_ECB)
		return dm_fail(err, EINVAL, "crypt: authenc takes a mode that has an IV: cbc, ctr, xts");
	return 0;
}

static int parse_aead(const char *text, size_t len, struct crypt_spec *spec, GError **err)
{
	size_t name_len, inside_len;
	const char *inside;

	spec->auth = CRYPT_AUTH_CIPHER;
	if (split_call(text, len, &name_len, &inside, &inside_len)) {
		if (is_word(text, name_len, "gcm")) {
			spec->mode = DM_CIPHER_GCM;
			return dm_cipher_read("crypt", inside, inside_len, &spec->cipher, err);
		}
		if (is_word(text, name_len, "rfc7539") && is_word(inside, inside_len, "chacha20,poly1305")) {
			spec->mode = DM_CIPHER_POLY1305;
			return dm_cipher_read("crypt", "chacha20", strlen("chacha20"), &spec->cipher, err);
		}
		if (is_word(text, name_len, "authenc"))
			return parse_authenc(inside, inside_len, spec, err);
	}
	return dm_fail(err, EINVAL,
		       "crypt: '%.*s' is not an authenticated mode there is: gcm(CIPHER), rfc7539(chacha20,poly1305), "
		       "authenc(MAC,MODE(CIPHER))%s",
		       (int)len, text,
		       g_str_has_prefix(text, "aegis128") ? "; no library here has aegis128" : "");
}

/* What is before the IV mode. */
static int parse_api_cipher(const char *text, size_t len, bool aead, struct crypt_spec *spec, GError **err)
{
	const char *comma, *inside;
	size_t name_len, inside_len;

	if (aead)
		return parse_aead(text, len, spec, err);
	if (is_authenticated(text, len))
		return dm_fail(err, EINVAL,
			       "crypt: '%.*s' is an authenticated mode, which needs integrity:BYTES:aead and a device that "
			       "stores tags",
			       (int)len, text);
	if (split_call(text, len, &name_len, &inside, &inside_len) && is_word(text, name_len, "essiv")) {
		comma = memrchr(inside, ',', inside_len);
		if (!comma)
			return dm_fail(err, EINVAL, "crypt: '%.*s' is not of the form essiv(MODE(CIPHER),HASH)", (int)len,
				       text);
		if (find_hash(comma + 1, inside + inside_len - comma - 1, spec, err))
			return -EINVAL;
		text = inside;
		len = comma - inside;
	}
	return dm_cipher_parse("crypt", text, len, &spec->cipher, &spec->mode, err);
}

static int parse_api(const char *text, bool aead, struct crypt_spec *spec, GError **err)
{
	const char *end = text + strlen(text), *ivopts = strrchr(text, ':'), *ivmode = NULL;
	const char *iv_end = ivopts ? ivopts : end;
	size_t len;

	if (ivopts)
		ivopts++;
	ivmode = memrchr(text, '-', iv_end - text);
	len = (ivmode ? ivmode : iv_end) - text;
	if (ivmode)
		ivmode++;
	spec->keycount = ivmode && !aead && is_word(ivmode, iv_end - ivmode, "lmk") ? 64 : 1;
	if (parse_api_cipher(text, len, aead, spec, err) || settle_mode(spec, err))
		return -EINVAL;
	return settle_iv(spec, ivmode, ivmode ? iv_end - ivmode : 0, ivopts, err);
}

static int parse_keycount(const char *s, size_t len, struct crypt_spec *spec, GError **err)
{
	g_autofree char *word = g_strndup(s, len);

	if (!dm_parse_uint(word, &spec->keycount) || !dm_is_pow2(spec->keycount))
		return dm_fail(err, EINVAL, "crypt: key count '%s' is not a power of two", word);
	return 0;
}

/* The part from *s to the next separator (or the end), moving *s behind it; NULL if *s is NULL. */
static const char *next_part(const char **s, char separator, size_t *len)
{
	const char *part = *s, *end;

	*len = 0;
	if (!part)
		return NULL;
	end = strchr(part, separator);
	*len = end ? (size_t)(end - part) : strlen(part);
	*s = end ? end + 1 : NULL;
	return part;
}

static int parse_plain(const char *text, struct crypt_spec *spec, GError **err)
{
	size_t cipher_len, chain_len, iv_len;
	const char *rest = text, *cipher, *chain, *ivmode, *colon;

	if (strchr(text, '('))
		return dm_fail(err, EINVAL, "crypt: cipher '%s' has parentheses, which need the prefix capi:", text);
	cipher = next_part(&rest, '-', &cipher_len);
	chain = next_part(&rest, '-', &chain_len);
	ivmode = next_part(&rest, ':', &iv_len);
	spec->keycount = 1;
	colon = memchr(cipher, ':', cipher_len);
	if (colon && parse_keycount(colon + 1, cipher + cipher_len - colon - 1, spec, err))
		return -EINVAL;
	if (colon)
		cipher_len = colon - cipher;
	if (!chain || (is_word(chain, chain_len, "plain") && !ivmode)) {
		chain = "cbc";
		ivmode = "plain";
		chain_len = 3;
		iv_len = 5;
	}
	if (dm_cipher_read_mode("crypt", chain, chain_len, &spec->mode, err) ||
	    dm_cipher_read("crypt", cipher, cipher_len, &spec->cipher, err) || settle_mode(spec, err))
		return -EINVAL;
	return settle_iv(spec, ivmode, iv_len, rest, err);
}

int crypt_spec_parse(const char *text, bool aead, struct crypt_spec *spec, GError **err)
{
	memset(spec, 0, sizeof(*spec));
	if (!strncmp(text, "capi:", 5))
		return parse_api(text + 5, aead, spec, err);
	if (aead)
		return dm_fail(err, EINVAL,
			       "crypt: cipher '%s' is not an authenticated mode as integrity:BYTES:aead takes it, such as "
			       "capi:gcm(aes)-random", text);
	return parse_plain(text, spec, err);
}

static int layout_special(const struct crypt_spec *spec, unsigned sector_size, struct crypt_layout *l, GError **err)
{
	const char *name = spec->iv == CRYPT_IV_LMK ? "lmk" : "tcw";

	if ((spec->iv == CRYPT_IV_LMK || spec->iv == CRYPT_IV_TCW) && sector_size != 512)
		return dm_fail(err, EINVAL, "crypt: IV mode %s takes sectors of 512 bytes, not %u", name, sector_size);
	switch (spec->iv) {
	case CRYPT_IV_LMK:
		/* a key more than the keycount is the seed, of which the first 16 bytes count */
		if (l->size % spec->keycount) {
			l->extra = l->size / ((size_t)spec->keycount + 1);
			if (l->extra < 16)
				return dm_fail(err, EINVAL, "crypt: lmk: a key of %zu bytes gives a seed of %zu, at least 16 "
							    "are needed", l->size, l->extra);
		}
		break;
	case CRYPT_IV_TCW:
		l->extra = spec->iv_size + 16;
		if (l->size <= l->extra)
			return dm_fail(err, EINVAL, "crypt: tcw: the key has %zu bytes, it needs the cipher's and %zu more",
				       l->size, l->extra);
		break;
	case CRYPT_IV_ELEPHANT:
		l->extra = l->size / 2;
		return dm_cipher_check_key("crypt", dm_cipher_find("aes", 3), l->extra, "elephant: half of the key", err);
	default:
		break;
	}
	return 0;
}

int crypt_spec_layout(const struct crypt_spec *spec, size_t key_size, unsigned sector_size, struct crypt_layout *out,
		      GError **err)
{
	g_autofree char *what = NULL;

	*out = (struct crypt_layout){.size = key_size};
	if (spec->keycount > MAX(key_size, 1))
		return dm_fail(err, EINVAL, "crypt: a key of %zu bytes cannot be divided into %u keys", key_size,
			       spec->keycount);
	if (layout_special(spec, sector_size, out, err))
		return -EINVAL;
	if (spec->auth == CRYPT_AUTH_MAC) {
		if (key_size < spec->mac_size)
			return dm_fail(err, EINVAL, "crypt: the key has %zu bytes, it needs the cipher's and then %u for %s",
				       key_size, spec->mac_size, spec->mac);
		out->extra = spec->mac_size;
	}
	out->subkey = (key_size - out->extra) / spec->keycount;
	/* lmk's seed follows keys of its own length, the others' extra key is at the very end */
	out->extra_at = spec->iv == CRYPT_IV_LMK ? out->extra * spec->keycount : key_size - out->extra;
	if (spec->mode == DM_CIPHER_XTS) {
		if (out->subkey % 2)
			return dm_fail(err, EINVAL, "crypt: xts takes keys of two halves, not of %zu bytes", out->subkey);
		return dm_cipher_check_key("crypt", spec->cipher, out->subkey / 2, "half of the xts key", err);
	}
	if (spec->mode == DM_CIPHER_LRW) {
		if (out->subkey < CRYPT_LRW_KEY)
			return dm_fail(err, EINVAL, "crypt: lrw takes the cipher's key and %u bytes, not %zu", CRYPT_LRW_KEY,
				       out->subkey);
		return dm_cipher_check_key("crypt", spec->cipher, out->subkey - CRYPT_LRW_KEY,
					   "the lrw key without its last 16 bytes", err);
	}
	what = spec->keycount > 1 ? g_strdup_printf("each of the %u keys", spec->keycount) : g_strdup("the key");
	return dm_cipher_check_key("crypt", spec->cipher, out->subkey, what, err);
}
