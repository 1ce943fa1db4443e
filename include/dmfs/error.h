/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Errors with a text.
 *
 * A function that can fail returns 0 or a negative errno and, where somebody will read about it, takes a GError **
 * for the text.  A text begins with the name of who tells it.
 */
#ifndef DMFS_ERROR_H
#define DMFS_ERROR_H

#include <glib.h>

#define DM_ERROR (dm_error_quark())
GQuark dm_error_quark(void);

/*
 * Sets *err to the text and returns -code, for `return dm_fail(err, EINVAL, "…", …)`.  err may be NULL; a text that is
 * there already stays.  What is not printable in it is shown as \xNN.
 */
int dm_fail(GError **err, int code, const char *fmt, ...) G_GNUC_PRINTF(3, 4);

#endif
