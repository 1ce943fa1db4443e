/* SPDX-License-Identifier: GPL-2.0-or-later */
/* switch: the packed region table against a model, its size, and mapping while mappings change. */
#include "device.h"

#include "targets/list.h"

#include <malloc.h>
#include <pthread.h>
#include <stdio.h>

static int setup(void **state)
{
	dm_register_targets(dm_target_list);
	return 0;
}

static int teardown(void **state)
{
	dm_remove_all();
	unit_files_close();
	return 0;
}

/*
 * A switch of one-sector regions; path p lies at sector p * regions of a file and holds the path's number in each
 * sector.
 */
static struct dm_mapped *numbered(const char *name, unsigned paths, unsigned regions)
{
	const char *file = unit_file((uint64_t)paths * regions);
	struct dm_mapped *under = unit_device("under", "0 %u linear %s 0", paths * regions, file), *md;
	g_autoptr(GString) table = g_string_new(NULL);
	g_autofree char *data = g_malloc0((size_t)regions * 512);

	g_string_printf(table, "0 %u switch %u 1 0", regions, paths);
	for (unsigned p = 0; p < paths; p++) {
		for (unsigned r = 0; r < regions; r++)
			memcpy(data + (size_t)r * 512, &p, sizeof p);
		assert_int_equal(dm_write_sync(&under->dev, (uint64_t)p * regions, regions, data, 0), 0);
		g_string_append_printf(table, " %s %u", file, p * regions);
	}
	unit_remove(under);
	md = unit_device(name, "%s", table->str);
	return md;
}

static unsigned path_of(struct dm_mapped *md, unsigned region)
{
	char buf[512];
	unsigned path;

	assert_int_equal(dm_read_sync(&md->dev, region, 1, buf, 0), 0);
	memcpy(&path, buf, sizeof path);
	return path;
}

static void check(struct dm_mapped *md, const unsigned *model, unsigned regions)
{
	for (unsigned r = 0; r < regions; r++)
		assert_int_equal(path_of(md, r), model[r]);
}

static void against_model(unsigned paths, unsigned regions)
{
	struct dm_mapped *md = numbered("s", paths, regions);
	g_autofree unsigned *model = g_new(unsigned, regions);
	GRand *rand = g_rand_new_with_seed(paths);

	for (unsigned r = 0; r < regions; r++)
		model[r] = r % paths;
	check(md, model, regions);
	for (unsigned round = 0; round < 30; round++) {
		g_autoptr(GString) text = g_string_new("set_region_mappings");
		unsigned at = 0;

		for (unsigned i = 0; i < 8; i++) {
			unsigned path = g_rand_int_range(rand, 0, (int)paths);

			if (i == 0 || g_rand_boolean(rand) || at + 1 == regions) {
				at = g_rand_int_range(rand, 0, (int)regions);
				g_string_append_printf(text, " %x:%x", at, path);
				model[at] = path;
			} else if (g_rand_boolean(rand)) {
				g_string_append_printf(text, " :%X", path);
				model[++at] = path;
			} else {
				unsigned cycle = g_rand_int_range(rand, 1, (int)at + 2);
				unsigned n = g_rand_int_range(rand, 0, (int)(regions - at));

				g_string_append_printf(text, " R%x,%x", cycle, n);
				for (; n; n--, at++)
					model[at + 1] = model[at + 1 - cycle];
			}
		}
		assert_int_equal(unit_message(md, text->str, NULL), 0);
		check(md, model, regions);
		/* a word that is wrong at the end: nothing of it is done */
		g_string_append_printf(text, " 0:%x", paths);
		g_string_insert(text, (gssize)strlen("set_region_mappings"), " 0:0 R1,1 R1,2");
		assert_int_equal(unit_message(md, text->str, NULL), -EINVAL);
		check(md, model, regions);
	}
	g_rand_free(rand);
	unit_remove(md);
}

static void test_table_is_what_a_model_is(void **state)
{
	static const unsigned paths[] = {1, 2, 3, 4, 5, 16, 17, 256, 257};

	for (unsigned i = 0; i < G_N_ELEMENTS(paths); i++)
		against_model(paths[i], 150);
}

/* A million regions over 16 paths: half a megabyte. */
static void test_a_million_regions_are_packed(void **state)
{
	const char *file = unit_file(1000000);
	g_autoptr(GString) table = g_string_new("0 1000000 switch 16 1 0");
	g_autoptr(GString) text = g_string_new("set_region_mappings");
	struct mallinfo2 before, after;
	struct dm_mapped *md;

	for (unsigned i = 0; i < 16; i++)
		g_string_append_printf(table, " %s 0", file);
	before = mallinfo2();
	md = unit_device("million", "%s", table->str);
	after = mallinfo2();
	/* a sanitizer's malloc says 0 to both */
	assert_true(after.uordblks + after.hblkhd <= before.uordblks + before.hblkhd + 600000);
	g_string_append(text, " 0:f");
	for (unsigned i = 1; i < 1000000; i++)
		g_string_append_printf(text, " :%x", i * 7 % 16);
	assert_int_equal(unit_message(md, text->str, NULL), 0);
	assert_int_equal(unit_message(md, "set_region_mappings 0:1 R1,f423f", NULL), 0);
	assert_int_equal(unit_message(md, "set_region_mappings 0:1 R1,f4240", NULL), -EINVAL);
	unit_remove(md);
}

static atomic_bool over;

static void *map_regions(void *data)
{
	struct dm_mapped *md = data;
	uint64_t looked = 0;

	while (!atomic_load(&over)) {
		unsigned r = (unsigned)(looked++ * 31 % 120), path = path_of(md, r);

		assert_true(r % 2 ? path == 3 : path == 1 || path == 4); /* odd ones stay, even ones go to and fro */
	}
	return NULL;
}

static void test_mapping_while_mappings_change(void **state)
{
	struct dm_mapped *md = numbered("s", 5, 120);
	pthread_t readers[3];

	assert_int_equal(unit_message(md, "set_region_mappings 0:1 :3 R2,76", NULL), 0);
	atomic_store(&over, false);
	for (unsigned i = 0; i < 3; i++)
		pthread_create(&readers[i], NULL, map_regions, md);
	for (unsigned i = 0; i < 1500; i++) {
		char text[64];

		snprintf(text, sizeof text, "set_region_mappings %x:%x", i * 2 % 120, i / 60 % 2 ? 1 : 4);
		assert_int_equal(unit_message(md, text, NULL), 0);
		if (i % 100 == 99)
			assert_int_equal(unit_message(md, i % 200 == 99 ? "set_region_mappings 0:4 :3 R2,76"
									  : "set_region_mappings 0:1 :3 R2,76", NULL), 0);
	}
	atomic_store(&over, true);
	for (unsigned i = 0; i < 3; i++)
		pthread_join(readers[i], NULL);
	unit_remove(md);
}

/* A table that no memory holds is refused: its file takes no space, so anybody can ask. */
static void test_a_table_too_large_is_refused(void **state)
{
	const char *file = unit_file((uint64_t)1 << 52);
	g_autofree char *table = g_strdup_printf("0 %" G_GUINT64_FORMAT " switch 2 1 0 %s 0 %s 0", (uint64_t)1 << 52, file,
						 file);
	g_autoptr(GError) err = NULL;
	struct dm_mapped *md;

	assert_int_equal(dm_create("huge", -1, &md, NULL), 0);
	assert_int_equal(unit_load(md, table, &err), -ENOMEM);
	assert_non_null(strstr(err->message, "Region table too large"));
	unit_remove(md);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_table_is_what_a_model_is),
		cmocka_unit_test(test_a_million_regions_are_packed),
		cmocka_unit_test(test_mapping_while_mappings_change),
		cmocka_unit_test(test_a_table_too_large_is_refused),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
