/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Wiping behind the users: sectors that cannot be read, as they were never written, become zeroes, while the device is
 * used.  Only of authenticated modes.
 *
 * A part is wiped with an exclusive lock on its sectors, which all writes share meanwhile.  So what was written stays:
 * before the part is looked at it reads, and a write that comes meanwhile is done afterwards.
 */
#ifndef CRYPT_WIPE_H
#define CRYPT_WIPE_H

#include <dmfs/target.h>

#include "crypt.h"

struct crypt_wipe;

/* What is wiped: the whole of a target, of which sector 0 is at start of dev. */
struct crypt_wipe_place {
	struct dm_target *ti;
	struct dm_dev *dev;
	uint64_t start, iv_offset;
	struct crypt_engine *engine;
};

/* From a sector on, up to the end; it begins with crypt_wipe_start(). */
struct crypt_wipe *crypt_wipe_new(const struct crypt_wipe_place *place, uint64_t from);
void crypt_wipe_free(struct crypt_wipe *w);

/* resume; presuspend; postsuspend: waits for the part that is being wiped. */
void crypt_wipe_start(struct crypt_wipe *w);
void crypt_wipe_stop(struct crypt_wipe *w);
void crypt_wipe_wait(struct crypt_wipe *w);

/* Whether it is not all done yet.  *at: sectors before this one are wiped, durably. */
bool crypt_wipe_left(const struct crypt_wipe *w, uint64_t *at);
/* An I/O error has ended it, until it is started again. */
bool crypt_wipe_failed(const struct crypt_wipe *w);

/*
 * A write, from map() to its end.  crypt_wipe_enter(): whether it goes on now; if not, go() is called once it may, and
 * it may have ended when this returns.  *guest: set before that; NULL if nothing is wiped any more, else
 * crypt_wipe_leave() is called when the write has ended.
 */
struct crypt_wipe_guest;
bool crypt_wipe_enter(struct crypt_wipe *w, struct dm_bio *bio, void (*go)(struct dm_target *ti, struct dm_bio *bio),
		      struct crypt_wipe_guest **guest);
void crypt_wipe_leave(struct crypt_wipe_guest *g);

#endif
