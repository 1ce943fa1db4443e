/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Mode B: a bit for each region says that data and tags there may not match.  It is on the disk before a write begins,
 * and goes when tags and data are durable.
 *
 * The bitmap lies where the journal would be, little-endian, bit 0 the volume's first region.
 */
#ifndef INTEGRITY_BITMAP_H
#define INTEGRITY_BITMAP_H

#include "integrity.h"

void integrity_bitmap_new(struct integrity *ic);
void integrity_bitmap_free(struct integrity *ic);

/*
 * Before a write, whose lock is held.  True: it may begin.  False: it waits, until wait->done() is called with 0 or a
 * negative errno.  Never waits itself.
 */
bool integrity_bitmap_may_write(struct integrity *ic, uint64_t block, uint64_t blocks, struct dm_commit_wait *wait);
/* The same, and waits. */
int integrity_bitmap_may_write_sync(struct integrity *ic, uint64_t block, uint64_t blocks);
/* Whether the tags of blocks are not to be trusted, since they are yet to be recalculated. */
bool integrity_bitmap_unsure(struct integrity *ic, uint64_t block, uint64_t blocks);
/* The first block from here on, below end, that is unsure; or end. */
uint64_t integrity_bitmap_next_unsure(struct integrity *ic, uint64_t block, uint64_t end);
/* The regions of which the last block lies in the range are sure now. */
void integrity_bitmap_recalculated(struct integrity *ic, uint64_t block, uint64_t end);
/* Has bits cleared some time within the flush interval, or at once. */
void integrity_bitmap_clear_soon(struct integrity *ic);
void integrity_bitmap_clear_now(struct integrity *ic);

/*
 * Hooks; they wait.  Start: dirty: the disk has a bitmap, of a volume of old_provided sectors; else a fresh one is made.
 * The superblock is the caller's to write, in the end.
 */
int integrity_bitmap_start(struct integrity *ic, bool dirty, uint64_t old_provided, GError **err);
int integrity_bitmap_stop(struct integrity *ic);
/* Whether any bit is set on the disk, for the other modes. */
int integrity_bitmap_any(struct integrity *ic, bool *any);

#endif
