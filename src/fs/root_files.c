/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The root's files that are no more than a text: targets, version, log. */
#include "core/type.h"
#include "files.h"
#include "version.h"

static int targets_text(struct dmfs_handle *h, GString *out)
{
	dm_print_types(out);
	return 0;
}

static int version_text(struct dmfs_handle *h, GString *out)
{
	g_string_append(out, DMFS_VERSION "\n");
	return 0;
}

static int log_text(struct dmfs_handle *h, GString *out)
{
	dm_log_read(out);
	return 0;
}

const struct dmfs_file dmfs_targets_file = {.name = "targets", .mode = 0444, .read_text = targets_text};
const struct dmfs_file dmfs_version_file = {.name = "version", .mode = 0444, .read_text = version_text};
const struct dmfs_file dmfs_log_file = {.name = "log", .mode = 0400, .read_text = log_text};
