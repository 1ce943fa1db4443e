/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef DMFS_IO_NBD_H
#define DMFS_IO_NBD_H

#include "store.h"

/* How long a request may go without an answer before it fails, milliseconds.  Set before the first store is opened. */
extern unsigned dm_nbd_timeout_ms;

int dm_nbd_open(const struct dm_opener *who, const char *uri, enum dm_mode mode, struct dm_dev **out, GError **err);

#endif
