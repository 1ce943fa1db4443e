/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How the tools that are like cryptsetup's say what is wrong: errors are negative errnos with a text. */
#ifndef DMFS_FAIL_H
#define DMFS_FAIL_H

#include <glib.h>

/* Sets the error, if it is not set yet; code: an errno, which is returned negated. */
int fail(GError **err, int code, const char *fmt, ...) G_GNUC_PRINTF(3, 4);
/*
 * To standard error, after the tool's name.  What headers and file names have in it must not steer a terminal, nor
 * look like another line.
 */
void say_error(const char *tool, const char *message);
/*
 * As cryptsetup's: 1 wrong parameters or any other, 2 the passphrase, 3 memory, 4 the device, 5 it exists or is busy.
 */
int exit_status(int r);

#endif
