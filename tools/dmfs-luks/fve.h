/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is where on a BitLocker volume (version 2, Windows 7 and later).
 *
 * Source of the format: "BitLocker Drive Encryption (BDE) format specification" of the libbde project.  Numbers are
 * little endian.
 *
 * The file system's first sectors are encrypted elsewhere, since the boot sector that points at the metadata is in
 * their place; the three copies of the metadata, and the place elsewhere, read as zeroes.  All else is encrypted where
 * it is.
 */
#ifndef DMFS_FVE_H
#define DMFS_FVE_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FVE_BOOT_BYTES 512
#define FVE_METADATA_BYTES 65536 /* of each copy */
#define FVE_NONCE_BYTES 12
#define FVE_MAC_BYTES 16
#define FVE_KEY_HEADER_BYTES 12 /* in front of a key, when it is decrypted: its size and kind */

/* Encrypted by AES-CCM: nonce, MAC, data; points into the metadata. */
struct fve_sealed {
	const uint8_t *bytes;
	size_t data_bytes; /* without nonce and MAC; at least FVE_KEY_HEADER_BYTES + 1 */
};

struct fve {
	unsigned sector_size; /* bytes: 512 or 4096 */
	unsigned method;      /* of encryption, 0x8000 to 0x8005 */
	uint64_t volume_bytes;
	uint64_t metadata[3];		  /* byte offsets */
	uint64_t header_at, header_bytes; /* of the file system's first sectors */
	/* of a volume whose protection is suspended: both or none */
	const uint8_t *clear_key; /* 32 bytes */
	struct fve_sealed clear_vmk;
	struct fve_sealed fvek;
};

struct fve_segment {
	uint64_t start, sectors; /* of the volume */
	uint64_t from;		 /* sector of the file */
	bool zero;		 /* instead */
};

/* Whether a boot sector (FVE_BOOT_BYTES) is BitLocker's, of any version. */
bool fve_is_boot(const uint8_t *boot);
/* Sets sector_size and metadata.  -EOPNOTSUPP: a kind that cannot be opened; -EINVAL: damaged. */
int fve_read_boot(const uint8_t *boot, struct fve *v, GError **err);
/* Sets the rest, from a copy of the metadata (len: as much of FVE_METADATA_BYTES as there is), which must stay. */
int fve_read_metadata(const uint8_t *block, size_t len, struct fve *v, GError **err);
/*
 * The next volume master key that a passphrase opens, in metadata that has been read; *at: 0 at first.  salt: 16 bytes.
 */
bool fve_next_passphrase(const uint8_t *block, size_t len, size_t *at, const uint8_t **salt, struct fve_sealed *vmk);
/* The volume's segments in order, without gaps, on a file of that many sectors: an array of struct fve_segment. */
int fve_segments(const struct fve *v, uint64_t sectors, GArray **out, GError **err);

#endif
