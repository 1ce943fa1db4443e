/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dm-init's one-line format: devices separated by ';', their fields by ','
 *
 *   NAME,UUID,MINOR,FLAGS,TABLE[,TABLE]...
 *
 * UUID, MINOR and FLAGS (ro or rw) may be empty; a backslash quotes the next character.
 */
#ifndef DMFSCTL_CONCISE_H
#define DMFSCTL_CONCISE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct concise_device {
	char *name, *uuid;
	int64_t minor; /* -1: none given */
	bool readonly;
	char *table; /* its lines, each with a newline but the last */
};

/* Calls take() for each device in turn, until one fails or there is something wrong, which is printed.  False then. */
bool concise_parse(const char *text, bool (*take)(const struct concise_device *, void *), void *data);
/* Appends a field with its ',', ';' and '\' quoted. */
void concise_append(GString *out, const char *field);

#endif
