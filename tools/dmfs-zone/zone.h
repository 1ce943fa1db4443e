/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The parts of dmfs-zone.  Functions return 0 or a negative errno and set the error. */
#ifndef DMFS_TOOLS_ZONE_H
#define DMFS_TOOLS_ZONE_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct options {
	char *mount;
	/* format */
	char *size, *zone_size, *capacity, *model;
	int conventional, max_open, max_active, block_size;
	bool constrained_reads, force;
	/* report, reset, … */
	char *offset, *length;
	int count;
	/* dm-… */
	char *label;
	int reserved_seq, version;
};

/* A number with an optional K, M, G or T (of 1024), decimal or 0x…; what: names it in the error. */
int parse_size(const char *text, const char *what, uint64_t *out, GError **err);

int format_file(const char *file, const struct options *o, GError **err);
/* What blkzone's command of this name does, on a file, an image or a device's name. */
int zone_command(const char *command, const char *target, const struct options *o, GError **err);

#endif
