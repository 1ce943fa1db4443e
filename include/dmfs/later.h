/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Bios that are submitted later: at a time, or as soon as a thread is there for it.
 *
 *	map():         bio->dev = …, bio->sector = …;
 *	               switch (dm_later_submit(t->later, bio, dm_now_ns() + delay)) {
 *	               case 0:       return DM_MAPIO_SUBMITTED;
 *	               case -EAGAIN: return DM_MAPIO_REMAPPED;
 *	               default:      dm_bio_end(bio, that error);
 *	               }
 *	presuspend(), end_waiting():  dm_later_go(t->later);
 *	resume():      dm_later_keep(t->later);
 *
 * A bio that waits costs no thread.  It ends with -EINTR when its origin is cancelled (hold.h).  All calls may come
 * from any thread, none waits.
 */
#ifndef DMFS_LATER_H
#define DMFS_LATER_H

#include <dmfs/bio.h>

/*
 * Has bios submitted in this order by threads of a queue that all share, and returns at once; the list ends empty.
 * If a submission waits for a disk another thread goes on with the next bio.
 */
void dm_submit_async(struct dm_bio_list *bios);

struct dm_later;

struct dm_later *dm_later_new(void);
/* It keeps none. */
void dm_later_free(struct dm_later *l);

/*
 * 0: the bio will be submitted at due_ns (of dm_now_ns()), or soon after; all that are kept anywhere are submitted in
 * the order of these times.  Else it is still the caller's: -EAGAIN after dm_later_go() or when the daemon ends;
 * -EINTR the bio's origin was cancelled.
 */
int dm_later_submit(struct dm_later *l, struct dm_bio *bio, uint64_t due_ns);
/* Has all that it keeps submitted now, in the order they came; from now on it keeps nothing, until dm_later_keep(). */
void dm_later_go(struct dm_later *l);
void dm_later_keep(struct dm_later *l);
/* How many it keeps now. */
unsigned dm_later_count(struct dm_later *l);

#endif
