/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A volume's key, and its only way into a table.
 *
 * Whoever opens a volume with a key that is not its own sees noise, and what he writes destroys what is there.  So a
 * key carries how it was proven to be the volume's; stage_line() takes none that is not, and only the functions here
 * prove one:
 *
 *   LUKS       the digest in the header, by libcryptsetup
 *   BitLocker  the authentication tag (AES-CCM) of the sealed key
 *   tcrypt     magic and checksums of the header that the key was in
 */
#include <errno.h>
#include <string.h>

#include "luks.h"
#include "tchead.h"

struct key *key_new(size_t room, GError **err)
{
	struct key *k = crypt_safe_alloc(sizeof(*k));

	if (k) {
		*k = (struct key){.room = room, .len = room};
		k->bytes = crypt_safe_alloc(MAX(room, 1));
	}
	if (k && k->bytes)
		return k;
	key_free(k);
	fail(err, ENOMEM, "no memory for a key");
	return NULL;
}

void key_free(struct key *k)
{
	if (k && k->bytes)
		crypt_safe_free(k->bytes);
	if (k)
		crypt_safe_free(k);
}

int key_prove_luks(struct key *k, struct crypt_device *cd, const char *file, GError **err)
{
	int r = crypt_volume_key_verify(cd, k->bytes, k->len);

	k->proof = r < 0 ? KEY_UNPROVEN : KEY_BY_DIGEST;
	if (r == -EPERM || r == -EINVAL)
		return fail(err, EPERM, "%s: this key is not the volume's own: its digest in the header is another",
			    file);
	return r < 0 ? volume_fail(err, -r, file) : 0;
}

void key_prove_sealed(struct key *k)
{
	k->proof = KEY_BY_TAG;
}

struct key *key_of_layer(const struct tc_header *h, unsigned layer, GError **err)
{
	const struct tc_layer *l = &h->layer[layer];
	struct key *k = key_new(l->key_len, err);

	if (!k)
		return NULL;
	memcpy(k->bytes, l->key, l->key_len);
	if (h->checked)
		k->proof = KEY_BY_CHECKSUM;
	return k;
}

/* --- table lines ---------------------------------------------------------------------------------- */

static int append(struct stage *s, const char *head, const struct key *k, const char *tail, GError **err)
{
	static const char digits[] = "0123456789abcdef";
	size_t at = s->table.len, head_len = strlen(head), tail_len = strlen(tail),
	       key_len = k && !k->unused ? k->len : 0;
	size_t len = at + head_len + (key_len ? 2 * key_len : 1) + tail_len;
	char *p = crypt_safe_alloc(len + 1);

	if (!p)
		return fail(err, ENOMEM, "no memory for a key");
	if (at)
		memcpy(p, s->table.data, at);
	memcpy(p + at, head, head_len);
	at += head_len;
	if (k && !key_len)
		p[at++] = '-';
	for (size_t i = 0; i < key_len; i++) {
		p[at++] = digits[(unsigned char)k->bytes[i] >> 4];
		p[at++] = digits[k->bytes[i] & 15];
	}
	memcpy(p + at, tail, tail_len + 1);
	secret_clear(&s->table);
	s->table = (struct secret){p, at + tail_len};
	return 0;
}

int stage_line(struct stage *s, const char *head, const struct key *k, const char *tail, GError **err)
{
	if (k->proof == KEY_UNPROVEN)
		return fail(err, EPERM, "its key is not proven to be the volume's own");
	return append(s, head, k, tail, err);
}

int stage_line_keyless(struct stage *s, const char *line, GError **err)
{
	return append(s, line, NULL, "", err);
}
