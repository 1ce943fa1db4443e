/* SPDX-License-Identifier: GPL-2.0-or-later */
/* raid4/5/6's journal (journal.c). */
#ifndef DMFS_TARGETS_RAID_JOURNAL_H
#define DMFS_TARGETS_RAID_JOURNAL_H

#include "stripe.h"

/* NULL with an error set. */
struct raid_journal *raid_journal_open(struct raid *r, GError **err);
/* Nothing is in it any more. */
void raid_journal_close(struct raid_journal *j);
/* Before the first resume, the stripes stand: replays what is in it.  May wait. */
int raid_journal_start(struct raid_journal *j, GError **err);
/* Postsuspend: waits until all that was answered is on the devices, and empties the log. */
void raid_journal_settle(struct raid_journal *j);

/* What a stripe is about to write (RAID_OUT) becomes durable; then raid_stripe_journaled() is called.  Never waits. */
void raid_journal_append(struct raid_journal *j, struct raid_stripe *s);
/* It has been written. */
void raid_journal_home(struct raid_journal *j);

/* Status: A, a (write-back) or D. */
char raid_journal_letter(struct raid_journal *j);
/* How many pages a stripe may have on a device. */
unsigned raid_journal_stripe_pages(const struct raid_journal *j, unsigned disks);

#endif
