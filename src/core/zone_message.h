/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The device message @zone. */
#ifndef DMFS_CORE_ZONE_MESSAGE_H
#define DMFS_CORE_ZONE_MESSAGE_H

#include "mapped.h"

/* argv[0] is "@zone".  0 or a negative errno with an error.  May wait. */
int dm_zone_message(struct dm_mapped *md, int argc, char **argv, GString *reply, GError **err);

#endif
