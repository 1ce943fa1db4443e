/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef DMFS_TARGETS_LIST_H
#define DMFS_TARGETS_LIST_H

#include <dmfs/target.h>

/* Every target type of this build, NULL at the end; whoever starts the engine registers them. */
extern const struct dm_target_type *const dm_target_list[];

#endif
