/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Target messages. */
#ifndef DMFS_CORE_MESSAGE_H
#define DMFS_CORE_MESSAGE_H

#include "mapped.h"

/*
 * Sends a message, "[SECTOR] WORDS…", to the target at the sector (0 if left out) of the live table.  The text is
 * changed.  The opener is who sends it: devices it names are opened as him.  reply: what the target answers.
 */
int dm_mapped_message(struct dm_mapped *md, char *text, const struct dm_opener *who, GString *reply, GError **err);

/* Whether a message only asks the device about itself. */
bool dm_message_asks(const char *text);

#endif
