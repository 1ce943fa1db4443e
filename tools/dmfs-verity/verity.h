/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs-verity: verity images, and devices of a mounted dmfs on them, without privileges.
 *
 *   main.c        the command line
 *   superblock.c  veritysetup's superblock
 *   image.c       what an image is: from its superblock, or from options; its table line
 *   format.c      makes one (libcryptsetup does)
 *   verify.c      reads all of one
 *   device.c      open, close, status
 *
 * Functions return 0 or a negative errno and set the error.
 */
#ifndef DMFS_VERITY_TOOL_H
#define DMFS_VERITY_TOOL_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "../common/fail.h"

/* As they are given; 0 or NULL: not. */
struct options {
	char *mount;
	bool no_superblock;
	int type; /* --format; -1: not given */
	int data_block, hash_block;
	gint64 data_blocks, hash_offset;
	char *hash, *salt, *uuid;
	char *fec_device;
	int fec_roots;
	gint64 fec_offset;
	char *root_file, *signature;
	bool ignore_corruption, restart, panic, ignore_zero_blocks, check_once, tasklets;
	bool deferred, cancel_deferred;
};

/* --- superblock.c ------------------------------------------------------------------------------------ */

#define SUPERBLOCK_BYTES 512

/* What is in one, or would be. */
struct superblock {
	unsigned type; /* 0 or 1 */
	char uuid[37]; /* "" without a superblock */
	char hash[33];
	unsigned data_block, hash_block; /* bytes */
	uint64_t data_blocks;
	unsigned salt_size; /* bytes, up to 256 */
	uint8_t salt[256];
};

/* -EINVAL: not one, or none that can be. */
int superblock_parse(const uint8_t *bytes, struct superblock *out, GError **err);

/* --- image.c ------------------------------------------------------------------------------------------- */

struct image {
	char *data, *hashes, *fec; /* absolute paths; data, fec may be NULL */
	struct superblock sb;
	uint64_t hash_offset;           /* as it was given, in bytes */
	uint64_t hash_start;            /* in hash blocks */
	uint64_t hash_blocks;           /* of the tree */
	uint64_t fec_start, fec_blocks; /* in data blocks */
	unsigned fec_roots;
	unsigned digest_size;
};

/* data NULL: what can be said without it. */
int image_load(const char *data, const char *hashes, const struct options *o, struct image *im, GError **err);
void image_clear(struct image *im);
/* The root hash of a command's argument, or of --root-hash-file; g_free() it.  Checked against the image. */
char *image_root(const struct image *im, const char *argument, const struct options *o, GError **err);
/* g_free() it. */
char *image_line(const struct image *im, const char *root, const struct options *o);
/* As veritysetup prints it; root may be NULL. */
void image_print(const struct image *im, const char *root);
/* The salt in hexadecimal, "-" if there is none; g_free() it. */
char *image_salt(const struct image *im);

/* --- commands --------------------------------------------------------------------------------------------- */

int format(const char *data, const char *hashes, const struct options *o, GError **err);
int verify(const struct image *im, const char *root, const struct options *o, GError **err);
int device_open(const char *mount, const char *name, const struct image *im, const char *root, const struct options *o,
		GError **err);
int device_close(const char *mount, const char *name, const struct options *o, GError **err);
int device_status(const char *mount, const char *name, GError **err);

#endif
