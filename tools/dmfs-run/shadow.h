/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The directory that stands for /dev, /sys and /proc under dmfs-run. */
#ifndef DMFS_RUN_SHADOW_H
#define DMFS_RUN_SHADOW_H

#include <glib.h>
#include <stdbool.h>

/* That of a mount, made if there is none; g_free() its path. */
char *shadow_make(const char *mount, GError **err);
/* A disk image gets a number and a name; again, it keeps them. */
bool shadow_add_disk(const char *shadow, const char *disk, GError **err);

#endif
