/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How far a long work is: a line on standard error, if that is a terminal; and whether a signal asks for its end.
 * One work at a time.
 */
#ifndef DMFS_TOOLS_BAR_H
#define DMFS_TOOLS_BAR_H

#include <stdbool.h>
#include <stdint.h>

/* From now on until bar_end() SIGINT and SIGTERM only make bar_interrupted() true. */
void bar_begin(const char *what);
bool bar_interrupted(void);
/* Sectors.  done == all: the line is over. */
void bar_show(uint64_t done, uint64_t all);
void bar_end(void);

#endif
