/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Keys as table lines and messages give them:
 *
 *   babe…                 two hexadecimal digits a byte
 *   -                     none
 *   :SIZE:user:DESC       SIZE bytes from the keyring of the daemon's session
 *   babe…:TYPE:DESC       handed over by who can read a key that the daemon cannot; TYPE is user or logon.  It is
 *                         shown as :SIZE:TYPE:DESC, as the kernel does, and told to nobody
 *
 * Of the kernel's other key types, what is in a logon key only the kernel can read, and of an encrypted or trusted key
 * user space sees only the wrapped form.
 *
 * A key lives in dm_secmem_alloc()'s memory, and no error text holds any part of it.  `who` begins the texts: the
 * target's name.
 */
#ifndef DMFS_KEYS_H
#define DMFS_KEYS_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct dm_key {
	size_t size;       /* bytes */
	uint8_t *data;     /* secure memory; NULL if size is 0 */
	char *description; /* "TYPE:DESCRIPTION" of a key that came from a keyring; or NULL */
	bool handed;       /* the text held it: with the description alone it is not found again */
};

/*
 * Reads any of these forms.  0; -EINVAL: not of this form, or of another size; -EOPNOTSUPP: a type that only the
 * kernel can read, or no keyrings here; -ENOMEM; the keyring's own, -ENOKEY above all.
 */
int dm_key_read(const char *who, const char *arg, struct dm_key *key, GError **err);
/* The first form alone, as of hashes' keys; what says which key it is: "the key", "the journal's key". */
int dm_key_from_hex(const char *who, const char *what, const char *hex, struct dm_key *key, GError **err);
/* The user key of that description; size: how many bytes it must have, 0: any number but none. */
int dm_key_from_keyring(const char *who, const char *description, size_t size, struct dm_key *key, GError **err);
/* For status: a key of size bytes in hexadecimal digits, which are zeroes if key is NULL or !dm_status_tells_keys(). */
void dm_key_print(const uint8_t *key, size_t size, GString *out);
/* Wipes it. */
void dm_key_clear(struct dm_key *key);

#endif
