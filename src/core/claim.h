/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the engine sees of claims (dmfs/claim.h). */
#ifndef DMFS_CORE_CLAIM_H
#define DMFS_CORE_CLAIM_H

#include "mapped.h"

/* Ends all claims of a target. */
void dm_claims_end(struct dm_target *ti);

/*
 * A table is to be resumed (before its targets hear of it), or cannot be, or is suspended.  -EBUSY: another one that it
 * shares something with is active, that of who (to be unreferenced).  md->control held.
 */
int dm_claims_activate(struct dm_table *t, struct dm_mapped **who, GError **err);
void dm_claims_rest(struct dm_table *t);

/*
 * A device is to get another table: claims that reach through it claim what is beneath the new one too.  -EBUSY: that
 * meets others.  Then what is beneath only one of them is given up, when it is settled which stays.  md->control held.
 */
int dm_claims_follow(struct dm_mapped *md, struct dm_table *t, GError **err);
void dm_claims_settle(struct dm_mapped *md, bool moved);

#endif
