/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Table lines: parsed, built, printed; what is printed loads again and prints the same. */
#include "core/message.h"
#include "fuzz.h"

static struct dm_mapped *md;

/* A pool with a thin device 0, for tables to name. */
static void make_pool(void)
{
	g_autofree char *line = g_strdup_printf("0 1024 thin-pool %s/f4 %s/f5 128 0", fuzz_dir, fuzz_dir);
	g_autoptr(GString) reply = g_string_new(NULL);
	struct dm_opener who = fuzz_opener();
	char message[] = "create_thin 0";
	struct dm_mapped *pool;
	struct dm_table *t;

	if (dm_create("pool", -1, &pool, NULL))
		abort();
	t = fuzz_build(pool, line);
	if (!t || dm_mapped_swap(pool, t, NULL, NULL, NULL) || dm_mapped_message(pool, message, &who, reply, NULL))
		abort();
	dm_mapped_unref(pool);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	fuzz_start();
	if (dm_create("fuzz", -1, &md, NULL))
		abort();
	make_pool();
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
