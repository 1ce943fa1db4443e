/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The device mapper's commands (control.c), and what they have of each other.  They return 0 or a negative errno. */
#ifndef DMFS_RUN_COMMAND_H
#define DMFS_RUN_COMMAND_H

#include <linux/dm-ioctl.h>

#include "run.h"

/* Finds the device that the header names, by uuid, name or number, and writes name and uuid into it.  -ENXIO: none. */
int command_find(struct dm_ioctl *io, struct device *d);
/* Fills in the header's part of an answer from what the device is now. */
int command_state(struct dm_ioctl *io, const char *name);
uint64_t command_dev(unsigned minor_nr);
/* Where a result goes, and how much room there is. */
void *command_room(struct dm_ioctl *io, size_t size, size_t *room);
/* Puts a whole result there; false: it does not fit, and the header says so. */
bool command_result(struct dm_ioctl *io, size_t size, const struct text *result);
/* Pads a result to a multiple of 8. */
void command_align(struct text *t);
/* The string at an offset into the command's data, or NULL if it does not end within the buffer. */
const char *command_string(struct dm_ioctl *io, size_t size, size_t offset);

/* table.c */
int command_load(struct dm_ioctl *io, size_t size);
int command_clear(struct dm_ioctl *io, size_t size);
int command_deps(struct dm_ioctl *io, size_t size);
int command_table(struct dm_ioctl *io, size_t size);
int command_wait(struct dm_ioctl *io, size_t size);
int command_message(struct dm_ioctl *io, size_t size);

#endif
