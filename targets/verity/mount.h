/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What verity is told by the options of the mount, before there is any device. */
#ifndef DMFS_VERITY_MOUNT_H
#define DMFS_VERITY_MOUNT_H

#include <glib.h>

/*
 * verity-keys: the certificates, a PEM file of them, whose owners may sign root hashes.  From now on a table needs a
 * signature.  -ENOENT, …, -EINVAL: no certificate in it; -EOPNOTSUPP: built without GnuTLS.
 */
int verity_set_keys(const char *path, GError **err);

/* on-corruption: a command that is run, without a shell; its words as in one, with quotes.  -EINVAL. */
int verity_set_on_corruption(const char *line, GError **err);

#endif
