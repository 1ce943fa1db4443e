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

static void look_up(struct dm_table *t)
{
	for (uint64_t sector = 0; sector < t->sectors; sector += t->sectors / 7 + 1) {
		struct dm_target *ti = dm_table_find(t, sector);

		if (sector < ti->begin || sector - ti->begin >= ti->len)
			abort();
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	g_autofree char *text = fuzz_text(data, size);
	g_autoptr(GString) first = g_string_new(NULL), again = g_string_new(NULL), status = g_string_new(NULL);
	struct dm_table *t;
	bool secret;

	fuzz_reset();
	t = fuzz_build(md, text);
	if (!t)
		return 0;
	dm_table_print(t, DM_STATUS_TABLE, first);
	dm_table_print(t, DM_STATUS_INFO, status);
	look_up(t);
	secret = t->secret;
	dm_table_unref(t);
	if (secret) /* its key was not printed */
		return 0;
	t = fuzz_build(md, first->str);
	if (!t)
		g_error("this was printed and is refused: %s", first->str);
	dm_table_print(t, DM_STATUS_TABLE, again);
	dm_table_unref(t);
	if (strcmp(first->str, again->str))
		g_error("this was printed:\n%sand then:\n%s", first->str, again->str);
	return 0;
}
