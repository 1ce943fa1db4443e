/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs-luks: encrypted volumes in a dmfs, without privileges.
 *
 *   main.c    the command line
 *   secret.c  passphrases and key files
 *   volume.c  from a file and its passphrase to table lines: what all kinds share
 *   key.c     the volume's key, which must be proven before it is in a table
 *   header.c  which header it is, and why it cannot be loaded
 *   place.c   where the data must not be (storage.c: what a path stands on; around.c:
 *             who else is there)
 *   luks.c    LUKS (json.c: its metadata; token.c: its tokens; integrity.c: LUKS2 with authenticated sectors)
 *   bitlk.c   BitLocker (fve.c: its metadata)
 *   tcrypt.c  TrueCrypt and VeraCrypt (tchead.c: their headers; tcrange.c: where the data is)
 *   format.c  makes a new LUKS volume (format_tags.c, segment.c, fill.c: with authenticated sectors)
 *   wipe.c    sectors that were never written become zeroes while the volume is open
 *   tree.c    the mounted control tree
 *
 * Keys and passphrases are in memory of crypt_safe_alloc(), which is locked and wiped when freed, and leave the process
 * by one write to the device's `table` only.
 *
 * Functions return 0 or a negative errno and set the error; nothing secret is in an error.
 */
#ifndef DMFS_LUKS_H
#define DMFS_LUKS_H

#include <glib.h>
#include <libcryptsetup.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../common/fail.h"

struct options {
	char *mount;  /* -m */
	char *type;   /* NULL: whatever it is */
	char *header; /* detached; or NULL */
	char **key_files;
	gint64 keyfile_size, keyfile_offset;
	int key_slot, token_id;
	char *volume_key_file;
	bool token_only, readonly, shared, allow_discards, batch;
	bool no_journal; /* --integrity-no-journal; format: from then on */
	int tries;
	/* TrueCrypt, VeraCrypt */
	bool tcrypt_hidden, tcrypt_backup, tcrypt_system, no_veracrypt;
	int pim;
	/* format */
	char *cipher, *hash, *pbkdf, *uuid, *label, *size, *integrity;
	bool no_wipe, wipe_later;
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
int secret_get_new(struct crypt_device *cd, const struct options *o, const char *what, struct secret *out,
		   GError **err);
/* From --volume-key-file, all of it. */
struct key;
int secret_get_volume_key(struct crypt_device *cd, const struct options *o, struct key *k, GError **err);
/* Whether a second try makes sense: somebody types. */
bool secret_can_retry(const struct options *o);

/* --- key.c ------------------------------------------------------------------------------------ */

struct key {
	char *bytes; /* crypt_safe_alloc(), room of them */
	size_t room, len;
	bool unused;								 /* the cipher needs none */
	enum { KEY_UNPROVEN, KEY_BY_DIGEST, KEY_BY_TAG, KEY_BY_CHECKSUM } proof; /* only key.c sets it */
};

struct tc_header;
struct stage;

/* Of room bytes, unproven; NULL: no memory. */
struct key *key_new(size_t room, GError **err);
void key_free(struct key *k);
typedef struct key key;
G_DEFINE_AUTOPTR_CLEANUP_FUNC(key, key_free)
/* Compares it with the digest in the header: -EPERM if it is another's. */
int key_prove_luks(struct key *k, struct crypt_device *cd, const char *file, GError **err);
/* BitLocker's: it came out of AES-CCM with the right tag. */
void key_prove_sealed(struct key *k);
/* Of a header that tc_read_header() has read. */
struct key *key_of_layer(const struct tc_header *h, unsigned layer, GError **err);
/* Adds a line to a table: head, the key in hexadecimal ("-" if it is unused), tail.  -EPERM: it is not proven. */
int stage_line(struct stage *s, const char *head, const struct key *k, const char *tail, GError **err);
/* Adds lines that have no key in them: of the targets zero and integrity. */
int stage_line_keyless(struct stage *s, const char *line, GError **err);

/* --- header.c --------------------------------------------------------------------------------- */

#define HEADER_SNIFF_BYTES 512 /* FVE_BOOT_BYTES too */

/* LUKS1, LUKS2, BitLocker, or NULL: as the first bytes of a device say. */
const char *header_kind(const uint8_t *start);
/* Loads the header that is in the file, with the reason if that fails. */
int header_load(struct crypt_device *cd, const char *file, const struct options *o, GError **err);

/* --- place.c ---------------------------------------------------------------------------------- */

/* Where a volume's data and its header are: bytes, the end not included; absolute paths. */
struct place {
	const char *file, *header;
	uint64_t from, to, header_from, header_to;
};

#define PLACE_CLOSE_FIRST "close that first, or use it beside that one with --shared"

/*
 * Whether it can be opened as it is wanted; nobody else claims a file until *claim, a descriptor or -1, is closed.
 * way_out: what to do where it is in use.
 */
int place_claim(const char *file, bool readonly, bool shared, const char *way_out, int *claim, GError **err);
/* -EINVAL: the data is where its own or another's header is; -EBUSY: somebody writes there. */
int place_check(const struct place *p, const struct options *o, GError **err);
/* -EBUSY: a device of a dmfs or a loop device writes there; way_out: what to do about it. */
int place_unused(const char *file, uint64_t from, uint64_t to, const char *way_out, GError **err);
/* Tells whose use of it is not known. */
void place_warn(const char *file);

/* --- volume.c --------------------------------------------------------------------------------- */

/*
 * One device of a volume: a cascade of ciphers has several, and so has a volume with tags, the one on the file first.
 */
struct stage {
	char *suffix; /* of its name: "" for the last, "_1", "_2", "_dif" for those beneath */
	struct secret table;
};

/* Sectors that were never written, and so cannot be read (wipe.c). */
#define WIPE_KEY_BYTES 32

struct wipe {
	bool left;	 /* there are some, */
	uint64_t sector; /* from this one on */
	uint8_t key[WIPE_KEY_BYTES];
	char *header; /* the file with the header; g_free() */
};

struct volume {
	char *type;	   /* as in the uuid: LUKS1, LUKS2, TCRYPT, BITLK */
	char *uuid;	   /* without dashes; may be empty */
	GPtrArray *stages; /* struct stage */
	int claim;	   /* of the file, until the devices are made; or -1 */
	char *file;
	uint64_t from, to; /* bytes of it that hold the data */
	struct wipe wipe;
};

/* Unlocks a file; name: the device's, which the tables of a cascade need. */
int volume_open(const char *file, const char *name, const struct options *o, struct volume **out, GError **err);
void volume_free(struct volume *v);
/* For a volume's stages, none yet. */
GPtrArray *volume_stages(void);
/* A crypt_device for a file and perhaps a detached header. */
int volume_init(const char *file, const struct options *o, struct crypt_device **out, GError **err);
/* The text of an error of libcryptsetup's, its last message if it had one. */
int volume_fail(GError **err, int code, const char *what);
/* Whether to listen to what libcryptsetup says below its error level; what it said before is forgotten. */
void volume_listen(bool closely);
/* Its last error, and what it said below that of faults; g_free(); NULL: nothing. */
char *volume_message(void);
char *volume_details(void);
/*
 * Asks, as often as o says, for the key's bytes, of which there is room for a volume's; it is not proven then.
 * also: NULL, or what is tried where libcryptsetup has no key for the passphrase: 0 or a negative errno.
 */
typedef int (*key_fn)(const struct secret *pass, struct key *k, void *data);
int volume_key_by_passphrase(struct crypt_device *cd, const char *file, const struct options *o, struct key *k,
			     key_fn also, void *data, GError **err);
/* The place of its data is that one. */
void volume_set_place(struct volume *v, const char *file, uint64_t from, uint64_t to);
/* How long a file or block device is. */
int volume_sectors(const char *file, uint64_t *sectors, GError **err);
/* An absolute path as one word of a table line. */
char *volume_quoted(const char *path);
/* An empty stage, behind those there are. */
struct stage *stage_new(struct volume *v, const char *suffix);

/* --- token.c ---------------------------------------------------------------------------------- */

/* Whether there is a token that libcryptsetup may resolve. */
bool token_any(struct crypt_device *cd);
/* 0 or more: the key's bytes are there, not proven; or a negative errno. */
int token_key(struct crypt_device *cd, const struct options *o, struct key *k);
/* Why none gives a key, token by token: each is tried, into k; g_free(). */
char *token_why_not(struct crypt_device *cd, const struct options *o, struct key *k);

/* --- the kinds -------------------------------------------------------------------------------- */

/* A key slot's cipher that libcryptsetup has not itself, where the kernel lends none; g_free(); or NULL. */
char *luks_foreign_cipher(struct crypt_device *cd);
/* What is in the file, if it is of that kind; path: absolute; name: the device's. */
int luks_open(struct crypt_device *cd, const char *path, const char *name, const struct options *o, struct volume *v,
	      GError **err);
/* The same with a key that is there already; NULL: as luks_open(). */
int luks_open_with(struct crypt_device *cd, const char *path, const char *name, const struct options *o, struct key *given,
		   struct volume *v, GError **err);
int bitlk_open(struct crypt_device *cd, const char *path, const struct options *o, struct volume *v, GError **err);
int tcrypt_open(struct crypt_device *cd, const char *path, const char *name, const struct options *o, struct volume *v,
		GError **err);

/* --- integrity.c ------------------------------------------------------------------------------ */

#define INTEGRITY_SUFFIX "_dif" /* cryptsetup's */

/* What is stored beside the sectors. */
struct integrity {
	char *type;	   /* as in the header; NULL: nothing */
	unsigned tag_size; /* bytes, a stored IV included */
	uint64_t provided; /* sectors that there are for data */
};

/* Of an --integrity: its name in the header, which stays, and how many bytes of key its MAC takes. */
int integrity_kind(const char *option, const char **header, unsigned *mac_key, GError **err);
/* What a table calls a cipher, of that type; g_free(). */
char *integrity_table_cipher(const char *type, const char *spec);
const char *integrity_profile(const char *type);
/* -EOPNOTSUPP: it has a type that is not known here. */
int integrity_of_header(struct crypt_device *cd, const char *file, struct integrity *in, GError **err);
/* Reads how much there is for data from the superblock, at a sector of the file, which must be the header's. */
int integrity_read_super(const char *file, uint64_t start, int sector_size, struct integrity *in, GError **err);
void integrity_clear(struct integrity *in);
/* mode: J or D; new: it gets its superblock now. */
int integrity_add_stage(struct volume *v, const char *file, uint64_t start, int sector_size, char mode,
			const struct integrity *in, bool new, GError **err);

/* --- format.c, segment.c, fill.c, format_tags.c ------------------------------------------------- */

/* Writes a header without key slots to what cd was made for; shown: the file's name for people. */
int format_header(struct crypt_device *cd, const char *type, const char *file, const char *shown, const struct options *o,
		  GError **err);
/* How key slots are made from now on. */
int format_pbkdf(struct crypt_device *cd, const char *type, const struct options *o, GError **err);
/* -ENOSPC: the header leaves no room for data. */
int format_check_room(struct crypt_device *cd, const char *file, const char *shown, GError **err);
/* A new LUKS2 header, which has no key slots, gets another cipher, an integrity type and another volume key. */
int segment_make(const char *file, const char *cipher, const char *type, const struct key *k, GError **err);
/*
 * Makes a volume's devices in this process and takes them away again; done: NULL, or in between it fills the last of
 * them with zeroes, and this is how many sectors.  -EINTR: a signal asked for the end.
 */
int fill_volume(const struct volume *v, const char *name, uint64_t *done, GError **err);
/* All of a volume with --integrity; pass: NULL: only what there is to find fault with. */
int format_with_tags(const char *file, const char *shown, const struct options *o, const struct secret *pass, GError **err);

int volume_format(const char *file, const struct options *o, GError **err);

/* --- wipe.c ----------------------------------------------------------------------------------- */

/* The key of what a header says of it; the volume key is proven. */
int wipe_key(struct wipe *w, struct crypt_device *cd, const struct key *k, GError **err);
/* Whether there is something left, as the header says; it is told if it does not say so truly. */
bool wipe_read(struct wipe *w, struct crypt_device *cd, const char *file);
/* Into the header. */
int wipe_note(const struct wipe *w, struct crypt_device *cd, const char *file, GError **err);
/* Whether a token of that type is such a note. */
bool wipe_is_record(const char *token_type);
/* Of an open volume: its device wipes what is left from now on, and a process that this leaves behind notes how far. */
int wipe_go_on(struct volume *v, const char *mount, const char *name, GError **err);
/* How far that is, for people; g_free(); NULL: nothing is wiped. */
char *wipe_shown(const char *mount, const char *name);
/* Waits until it is over, with a bar on a terminal. */
int wipe_wait(const char *mount, const char *name, GError **err);

/* --- tree.c ----------------------------------------------------------------------------------- */

/* The mountpoint to work with: -m, $DMFS_MOUNT, or the only dmfs in sight; NULL: none. */
char *tree_find(const struct options *o, GError **err);

/* Makes the devices of a volume, or none. */
int tree_open(const char *mount, const char *name, const struct volume *v, bool readonly, GError **err);
int tree_close(const char *mount, const char *name, GError **err);
int tree_status(const char *mount, const char *name, GError **err);

#endif
