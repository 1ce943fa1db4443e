/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dm-init's format for sets of devices (dm-init.rst):
 *
 *   NAME,UUID,MINOR,FLAGS,TABLE[,TABLE]...[;NAME,...]
 *
 * FLAGS is ro or rw.  A backslash quotes the next character.
 */
#ifndef DMFS_CORE_CONCISE_H
#define DMFS_CORE_CONCISE_H

#include "mapped.h"

/* Creates and activates every device, or none. */
int dm_concise_create(const char *text, const struct dm_opener *who, GError **err);
/* Appends all devices that have a live table, one a line. */
void dm_concise_print(GString *out);

#endif
