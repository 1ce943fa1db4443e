/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The root's files that are no more than a text: targets, version, log, .devices. */
#include <stdatomic.h>

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

/* 0:MINOR EVENT-NUMBER NAME [UUID], quoted as in a table: all in one reading, for who looks for one of many. */
static int devices_text(struct dmfs_handle *h, GString *out)
{
	g_autoptr(GPtrArray) list = dm_list_devices();

	for (unsigned i = 0; i < list->len; i++) {
		struct dm_mapped *md = list->pdata[i];
		g_autofree char *name = dm_mapped_dup_name(md), *uuid = dm_mapped_dup_uuid(md);

		g_string_append_printf(out, "0:%u %u ", md->minor, (unsigned)atomic_load(&md->event_nr));
		dm_quote_word(name, out);
		if (*uuid) {
			g_string_append_c(out, ' ');
			dm_quote_word(uuid, out);
		}
		g_string_append_c(out, '\n');
	}
	return 0;
}

const struct dmfs_file dmfs_targets_file = {.name = "targets", .mode = 0444, .read_text = targets_text};
const struct dmfs_file dmfs_version_file = {.name = "version", .mode = 0444, .read_text = version_text};
const struct dmfs_file dmfs_log_file = {.name = "log", .mode = 0400, .read_text = log_text};
const struct dmfs_file dmfs_devices_file = {.name = ".devices", .mode = 0400, .read_text = devices_text};
