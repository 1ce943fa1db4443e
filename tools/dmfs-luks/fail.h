/* SPDX-License-Identifier: GPL-2.0-or-later */
#ifndef DMFS_FAIL_H
#define DMFS_FAIL_H

#include <glib.h>

/* Sets the error, if it is not set yet; code: an errno, which is returned negated. */
int fail(GError **err, int code, const char *fmt, ...) G_GNUC_PRINTF(3, 4);

#endif
