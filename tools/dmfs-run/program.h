/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Whether a program can be given a library. */
#ifndef DMFS_RUN_PROGRAM_H
#define DMFS_RUN_PROGRAM_H

/*
 * A sentence that says why a program file cannot be run with a preloaded library, g_free() it; NULL: it can, or it is
 * no ELF file (a script, whose interpreter is looked at).
 */
char *program_why_not(const char *path);

#endif
