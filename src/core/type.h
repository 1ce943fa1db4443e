/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The registry of target types. */
#ifndef DMFS_CORE_TYPE_H
#define DMFS_CORE_TYPE_H

#include <dmfs/target.h>

/* Once, before anything else; the array ends with NULL and stays. */
void dm_register_targets(const struct dm_target_type *const *list);
const struct dm_target_type *dm_find_type(const char *name);
/* "NAME vX.Y.Z" lines. */
void dm_print_types(GString *out);

#endif
