/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What the printing commands share with the tree. */
#ifndef DMFSCTL_SHOW_H
#define DMFSCTL_SHOW_H

#include "dmfsctl.h"

/* Takes -o of ls and deps: devno, devname or blkdevname.  False: it is none of them, and that has been said. */
bool check_naming(void);
/* Takes -o of ls --tree. */
bool check_tree_options(void);
/* Whether --target, if given, is that type; whether the device has such a target. */
bool target_is(const char *type);
bool has_target(const struct device *d);

#endif
