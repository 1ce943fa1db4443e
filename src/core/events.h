/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What happened: dm events and uevents. */
#ifndef DMFS_CORE_EVENTS_H
#define DMFS_CORE_EVENTS_H

#include "mapped.h"

void dm_event_added(struct dm_mapped *md);
void dm_event_removed(struct dm_mapped *md);
void dm_event_renamed(struct dm_mapped *md);
void dm_event_resumed(struct dm_mapped *md);

#endif
