/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Messages, one a line, to a device of several targets; statistics among them, with I/O between. */
#include "core/message.h"
#include "fuzz.h"

static struct dm_mapped *md;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	g_autofree char *table = NULL;
	struct dm_opener self = dm_opener_self();
	struct dm_table *t;

	fuzz_start();
	if (dm_create("fuzz", -1, &md, NULL))
		abort();
	table = g_strdup_printf("0 1024 linear %s/f0 0", fuzz_dir);
	t = dm_table_new(md, DM_MODE_RW, &self);
	if (dm_table_add_line(t, table, NULL) || dm_table_complete(t, NULL) || dm_mapped_swap(md, t, NULL, NULL, NULL))
		abort();
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autofree char *text = fuzz_text(data, size);
	g_auto(GStrv) lines = g_strsplit(text, "\n", -1);
	struct dm_opener self = dm_opener_self();
	char sector[1024];

	for (unsigned i = 0; lines[i] && i < 64; i++) {
		g_autoptr(GString) reply = g_string_new(NULL);

		/* An area a sector of a huge range is slow to make, not wrong. */
		if (strstr(lines[i], "create") && strlen(lines[i]) > 40)
			continue;
		dm_mapped_message(md, lines[i], &self, reply, NULL);
		dm_read_sync(&md->dev, i, 2, sector, 0);
	}
	for (;;) {
		char list[] = "@stats_list", delete[32];
		g_autoptr(GString) reply = g_string_new(NULL);

		dm_mapped_message(md, list, &self, reply, NULL);
		if (!reply->len)
			break;
		g_snprintf(delete, sizeof delete, "@stats_delete %d", atoi(reply->str));
		dm_mapped_message(md, delete, &self, reply, NULL);
	}
	return 0;
}
