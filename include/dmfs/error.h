/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Errors with a text.
 *
 * A function that can fail returns 0 or a negative errno and, where somebody will read about it, takes a GError **
 * for the text.  A text begins with the name of who tells it.
 */
#ifndef DMFS_ERROR_H
#define DMFS_ERROR_H

#include <errno.h>
#include <glib.h>
#include <stdbool.h>

#define DM_ERROR (dm_error_quark())
GQuark dm_error_quark(void);

/*
 * Sets *err to the text and returns -code, for `return dm_fail(err, EINVAL, "…", …)`.  err may be NULL; a text that is
 * there already stays.  What is not printable in it is shown as \xNN.
 */
int dm_fail(GError **err, int code, const char *fmt, ...) G_GNUC_PRINTF(3, 4);

/*
 * Whether a bio's error (0 or a negative errno) may be the fault of the way to the data, so that another way may do:
 * a device that is gone, a server that does not answer, an I/O error that nobody knows more of.  False for what the
 * medium or the request itself is to blame for and every path would answer alike: ENODATA is a bad sector, EILSEQ a
 * wrong checksum, EREMOTEIO and EBADE a refusal by the device itself.
 *
 * That is the convention for whoever ends a bio with an error of his own: EIO, ENODEV, ETIMEDOUT, ENOTCONN and their
 * like only for what another path could do better.
 */
static inline bool dm_error_is_path(int error)
{
	switch (-error) {
	case 0:
	case EOPNOTSUPP:
	case EINVAL:
	case ENODATA:
	case EILSEQ:
	case EREMOTEIO:
	case EBADE:
	case ENOSPC:
	case EDQUOT:
	case EFBIG:
	case EOVERFLOW:
	case EROFS:
	case EPERM:
	case EINTR: /* who asked has gone */
		return false;
	default:
		return true;
	}
}

#endif
