/* SPDX-License-Identifier: GPL-2.0-or-later */
/* How far a device's work is that has an end: a merge, a hydration, a resynchronisation, ... */
#ifndef DMFSCTL_PROGRESS_H
#define DMFSCTL_PROGRESS_H

#include <glib.h>
#include <stdbool.h>

struct progress {
	const char *what;    /* "merge", ...; NULL: the table has no such work */
	bool failed;         /* it has stopped before its end */
	guint64 left, total; /* in the target's units; total 0: not told, left will go down to 0 */
};

/* Adds what a target's status says (the words after START LENGTH TYPE). */
void progress_add(struct progress *p, const char *type, const char *rest);
/* Of a whole `status`. */
void progress_of_status(struct progress *p, const char *status);
/* From 0 to 1.  first_left: what was left when it was looked at first, for work that does not tell its total. */
double progress_fraction(const struct progress *p, guint64 first_left);

#endif
