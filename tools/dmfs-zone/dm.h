/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The devices of a target zoned as dmfs-zone's dm- commands have them. */
#ifndef DMFS_TOOLS_ZONE_DM_H
#define DMFS_TOOLS_ZONE_DM_H

#include "../../targets/zoned/metadata.h"
#include "zone.h"

/* Opens them, in the order of a table's line; devices_close() in any case. */
int devices_open(char **names, unsigned n, bool write, struct zoned_geometry *g, GError **err);
void devices_close(struct zoned_geometry *g);

int dm_format(char **names, unsigned n, const struct options *o, GError **err);
/* Tells what is wrong; repair: and mends it.  -EUCLEAN: something is, or was and could not be mended. */
int dm_check(char **names, unsigned n, bool repair, GError **err);

#endif
