/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the engine sees of claims (dmfs/claim.h). */
#ifndef DMFS_CORE_CLAIM_H
#define DMFS_CORE_CLAIM_H

#include "mapped.h"

/* Ends all claims of a target. */
void dm_claims_end(struct dm_target *ti);

/*
 * A device is to get another table: claims that reach through it claim what is beneath the new one too.  -EBUSY: that
 * meets others.  Then what is beneath only one of them is given up, when it is settled which stays.  md->control held.
 */
int dm_claims_follow(struct dm_mapped *md, struct dm_table *t, GError **err);
void dm_claims_settle(struct dm_mapped *md, bool moved);

#endif
