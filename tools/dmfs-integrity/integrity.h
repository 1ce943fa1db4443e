/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dmfs-integrity's rooms: main.c (the command line), table.c (table lines), volume.c (devices).  Errors: fail.h. */
#ifndef DMFS_TOOLS_INTEGRITY_H
#define DMFS_TOOLS_INTEGRITY_H

#include <glib.h>
#include <stdbool.h>

#include "../../targets/integrity/super.h"
#include "../common/fail.h"

struct options {
	char *mount, *data_device;
	char *integrity, *integrity_key_file, *journal_integrity, *journal_integrity_key_file, *journal_crypt,
		*journal_crypt_key_file;
	int integrity_key_size, journal_integrity_key_size, journal_crypt_key_size; /* bytes; 0: the file's */
	int tag_size, sector_size, interleave, buffer, watermark, commit_time, flush_time;
	gint64 journal_size, sectors_per_bit; /* bytes; sectors */
	bool no_journal, bitmap, recovery, recalculate, recalculate_reset, legacy_padding, legacy_hmac, legacy_recalculate;
	bool discards, no_wipe, batch, deferred, cancel_deferred;
};

/* A device's superblock; what is not there is an error. */
int super_load(const char *device, struct integrity_super *sb, GError **err);
/*
 * The table line, of so many sectors, without its newline; sb: NULL to format.  It holds keys: table_free() wipes it.
 */
char *table_line(const char *device, const struct integrity_super *sb, guint64 sectors, const struct options *o, GError **err);
void table_free(char *line);

int volume_format(const char *device, const struct options *o, GError **err);
int volume_open(const char *device, const char *name, const struct options *o, GError **err);
int volume_close(const char *name, const struct options *o, GError **err);
int volume_status(const char *name, const struct options *o, GError **err);
int volume_dump(const char *device, GError **err);

#endif
