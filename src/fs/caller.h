/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who waits for a request that may take long, and whether he is dying. */
#ifndef DMFS_FS_CALLER_H
#define DMFS_FS_CALLER_H

#include "fs.h"

#include <dmfs/hold.h>

struct dmfs_caller;

/* For a request that has not been answered. */
struct dmfs_caller *dmfs_caller_new(fuse_req_t req);
/* For its bios: cancelled when he is. */
struct dm_origin *dmfs_caller_origin(struct dmfs_caller *c);
/* Before the answer, when its bios have ended; any thread.  NULL is fine. */
void dmfs_caller_free(struct dmfs_caller *c);

#endif
