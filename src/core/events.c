/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What happened: dm events and uevents. */
#include "events.h"

void dm_event_added(struct dm_mapped *md)
{
}

void dm_event_removed(struct dm_mapped *md)
{
}

void dm_event_renamed(struct dm_mapped *md)
{
	atomic_fetch_add(&md->event_nr, 1);
}

void dm_event_resumed(struct dm_mapped *md)
{
}

void dm_target_event(struct dm_target *ti, const char *action, const char *words)
{
	atomic_fetch_add(&ti->table->md->event_nr, 1);
}
