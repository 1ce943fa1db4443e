/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs-luks: encrypted volumes in a dmfs, without privileges.
 *
 *   main.c    the command line
 *   secret.c  passphrases and key files
 *   volume.c  from a file and its passphrase to table lines, by libcryptsetup:
 *             LUKS, and what all kinds share
 *   bitlk.c   BitLocker (fve.c: its metadata)
 *   tcrypt.c  TrueCrypt and VeraCrypt (tchead.c: their headers)
 *   format.c  makes a new LUKS volume
 *   tree.c    the mounted control tree
 *
 * Keys and passphrases are in memory of crypt_safe_alloc(), which is locked
 * and wiped when freed, and leave the process by one write to the device's
 * `table` only.
 *
 * Functions return 0 or a negative errno and set the error; nothing secret is
 * in an error.
 */
#ifndef DMFS_LUKS_H
#define DMFS_LUKS_H

#include <glib.h>
#include <libcryptsetup.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "fail.h"

struct options {
	char *mount;  /* -m */
	char *type;   /* NULL: whatever it is */
	char *header; /* detached; or NULL */
	char **key_files;
	gint64 keyfile_size, keyfile_offset;
	int key_slot, token_id;
	bool token_only, readonly, allow_discards, batch;
	int tries;
	/* TrueCrypt, VeraCrypt */
	bool tcrypt_hidden, tcrypt_backup, tcrypt_system, no_veracrypt;
	int pim;
	/* format */
	char *cipher, *hash, *pbkdf, *uuid, *label, *size;
	int key_bits, sector_size, iter_time, pbkdf_memory, pbkdf_parallel, pbkdf_iterations;
};

/* --- secret.c --------------------------------------------------------------------------------- */

struct secret {
	char *data; /* crypt_safe_alloc(); NULL: empty */
	size_t len;
};

void secret_clear(struct secret *s);
/* The key file if one is named, else a line of the terminal (asked for), else a line of standard input. */
int secret_get(struct crypt_device *cd, const struct options *o, const char *prompt, struct secret *out, GError **err);
/* The same, asked for twice on a terminal. */
int secret_get_new(struct crypt_device *cd, const struct options *o, const char *what, struct secret *out, GError **err);
/* Whether a second try makes sense: somebody types. */
bool secret_can_retry(const struct options *o);

/* --- volume.c --------------------------------------------------------------------------------- */

/* One device of a volume: a cascade of ciphers has several, the one on the file first. */
struct stage {
	char *suffix; /* of its name: "" for the last, "_1", "_2" for those beneath */
	struct secret table;
};

struct volume {
	char *type; /* as in the uuid: LUKS1, LUKS2, TCRYPT, BITLK */
	char *uuid; /* without dashes; may be empty */
	GPtrArray *stages; /* struct stage */
};

/* Unlocks a file; name: the device's, which the tables of a cascade need. */
int volume_open(const char *file, const char *name, const struct options *o, struct volume **out, GError **err);
void volume_free(struct volume *v);
/* A crypt_device for a file and perhaps a detached header. */
int volume_init(const char *file, const struct options *o, struct crypt_device **out, GError **err);
/* The text of an error of libcryptsetup's, its last message if it had one. */
int volume_fail(GError **err, int code, const char *what);
/*
 * Asks, as often as o says; key has room for *len bytes, which is then how many there are.
 * also: NULL, or what is tried where libcryptsetup has no key for the passphrase: 0 or a negative errno.
 */
typedef int (*key_fn)(const struct secret *pass, char *key, size_t *len, void *data);
int volume_key_by_passphrase(struct crypt_device *cd, const char *file, const struct options *o, char *key, size_t *len,
			     key_fn also, void *data, GError **err);
/* How long a file or block device is. */
int volume_sectors(const char *file, uint64_t *sectors, GError **err);
/* An absolute path as one word of a table line. */
char *volume_quoted(const char *path);
/* An empty stage, behind those there are. */
struct stage *stage_new(struct volume *v, const char *suffix);
/* Adds a line: head, the key in hexadecimal ("-" if it has no bytes), tail; key NULL: head alone. */
int stage_line(struct stage *s, const char *head, const char *key, size_t key_len, const char *tail, GError **err);

/* What is in the file, if it is of that kind; errors as above.  path: absolute; name: the device's. */
int bitlk_open(struct crypt_device *cd, const char *path, const struct options *o, struct volume *v, GError **err);
int tcrypt_open(struct crypt_device *cd, const char *path, const char *name, const struct options *o, struct volume *v,
		GError **err);

int volume_format(const char *file, const struct options *o, GError **err);

/* --- tree.c ----------------------------------------------------------------------------------- */

/* The mountpoint: -m, $DMFS_MOUNT, or the only dmfs that is mounted. */
char *tree_find(const struct options *o, GError **err);
int tree_check_name(const char *name, GError **err);
/* Makes the devices of a volume, or none. */
int tree_open(const char *mount, const char *name, const struct volume *v, bool readonly, GError **err);
int tree_close(const char *mount, const char *name, GError **err);
int tree_status(const char *mount, const char *name, GError **err);
/* Whether there is a device of this name. */
bool tree_exists(const char *mount, const char *name);

#endif
