/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What happened: dm events and uevents, and those who wait for them.
 *
 * The root and every device has a channel: a ring of the last lines and a list of readers.  A reader has a place in the
 * ring, so a slow one costs nothing; if the ring has run over its place it is told how many lines it missed.  A reader
 * that has nothing to read can be armed: its wake function is called once, from a thread of its own, when there is a
 * line.
 */
#ifndef DMFS_CORE_EVENTS_H
#define DMFS_CORE_EVENTS_H

#include "mapped.h"

/*
 * When a device was last made, removed, renamed or given a uuid, or its tables or whether it is suspended changed;
 * zero: never.  A later change has a later time.
 */
struct timespec dm_devices_changed(void);
void dm_devices_touch(void);

void dm_event_added(struct dm_mapped *md);
void dm_event_removed(struct dm_mapped *md);
void dm_event_renamed(struct dm_mapped *md, const char *old_name);
void dm_event_uuid_set(struct dm_mapped *md);
void dm_event_resumed(struct dm_mapped *md);
/* Its capacity has changed: tells the front end, then raises the event, from a thread of its own. */
void dm_event_resized(struct dm_mapped *md);
void dm_event_run_resized(struct dm_work *work); /* its md->resized */
/* When a device is freed. */
void dm_events_free(struct dm_mapped *md);

struct dm_event_reader;

/*
 * From now on; md NULL: of all devices.  The caller holds a reference to md while the reader lives.
 * wake may be called until dm_event_reader_free() has returned, with no locks held.
 */
struct dm_event_reader *dm_event_reader_new(struct dm_mapped *md, void (*wake)(void *), void *context);
/* Waits for the wakes under way, of all readers, and for what is being told of new sizes; before what they use goes. */
void dm_events_settle(void);
/* Not from wake. */
void dm_event_reader_free(struct dm_event_reader *r);
/* Appends unread lines, whole ones, up to about max bytes but at least one if there is one.  False: there was none. */
bool dm_event_read(struct dm_event_reader *r, GString *out, size_t max);
/* Forgets the unread lines; true if there were any. */
bool dm_event_skip(struct dm_event_reader *r);
bool dm_event_pending(struct dm_event_reader *r);
/* Asks for a wake-up at the next line; if there is one already, it comes now. */
void dm_event_arm(struct dm_event_reader *r);
void dm_event_disarm(struct dm_event_reader *r);
/* Calls wake as if there were a line. */
void dm_event_kick(struct dm_event_reader *r);
/* The device was removed and all has been read: no line will come. */
bool dm_event_ended(struct dm_event_reader *r);

#endif
