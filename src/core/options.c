/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The options that targets see (include/dmfs/options.h). */
#include <dmfs/options.h>

struct dm_options dm_options;
