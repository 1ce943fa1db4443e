/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "internal.h"
const struct dm_target_type *const lab_extra_types[] = {NULL};
