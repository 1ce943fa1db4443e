/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Path selectors alone: which path they take, and what they print. */
#include "unit.h"

#include <dmfs/path_selector.h>
#include <dmfs/work.h>

#define MAX_PATHS 4

struct group {
	struct dm_path_selector ps;
	struct dm_path paths[MAX_PATHS];
};

/* A selector with n paths whose arguments are words separated by blanks, a path each. */
static void make(struct group *g, const char *name, const char *args, const char *const *paths)
{
	g_auto(GStrv) words = g_strsplit(args, " ", -1);

	memset(g, 0, sizeof *g);
	g->ps.type = dm_path_selector_find(name);
	assert_non_null(g->ps.type);
	g->ps.paths = g_ptr_array_new();
	if (g->ps.type->create)
		assert_int_equal(g->ps.type->create(&g->ps, *args ? (int)g_strv_length(words) : 0, words, NULL), 0);
	for (unsigned i = 0; paths[i]; i++) {
		g_auto(GStrv) of_path = g_strsplit(paths[i], " ", -1);

		g_ptr_array_add(g->ps.paths, &g->paths[i]);
		assert_int_equal(g->ps.type->add_path(&g->ps, &g->paths[i], *paths[i] ? (int)g_strv_length(of_path) : 0,
						      of_path, NULL), 0);
	}
}

static void drop(struct group *g)
{
	if (g->ps.type->destroy)
		g->ps.type->destroy(&g->ps);
	for (unsigned i = 0; i < g->ps.paths->len; i++)
		g_free(g->paths[i].context);
	g_ptr_array_free(g->ps.paths, TRUE);
}

/* The index of the path chosen for so many bytes; -1: none. */
static int choose(struct group *g, uint64_t bytes)
{
	struct dm_path *path = g->ps.type->select(&g->ps, bytes);

	return path ? (int)(path - g->paths) : -1;
}

static int send(struct group *g, uint64_t bytes)
{
	int i = choose(g, bytes);

	if (i >= 0 && g->ps.type->start)
		g->ps.type->start(&g->ps, &g->paths[i], bytes);
	return i;
}

static char *status(struct group *g, int path, enum dm_status_type type)
{
	GString *out = g_string_new(NULL);

	g->ps.type->status(&g->ps, path < 0 ? NULL : &g->paths[path], type, out);
	return g_string_free(out, FALSE);
}

static void assert_status(struct group *g, int path, enum dm_status_type type, const char *expected)
{
	g_autofree char *text = status(g, path, type);

	assert_string_equal(text, expected);
}

static void test_unknown(void **state)
{
	assert_null(dm_path_selector_find("nonsense"));
	assert_null(dm_path_selector_find(""));
}

static void test_failed_paths_are_left_out(void **state)
{
	static const char *const names[] = {"round-robin", "queue-length", "service-time", "historical-service-time"};

	for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
		struct group g;
		unsigned seen = 0;

		make(&g, names[i], "", (const char *const[]){"1", "1", "1", NULL});
		atomic_store(&g.paths[1].failed, true);
		for (unsigned n = 0; n < 8; n++) {
			int p = send(&g, 4096);

			assert_in_range(p, 0, 2);
			seen |= 1u << p;
		}
		assert_int_equal(seen, 5);
		atomic_store(&g.paths[0].failed, true);
		atomic_store(&g.paths[2].failed, true);
		assert_int_equal(choose(&g, 4096), -1);
		drop(&g);
	}
}

static void test_queue_length(void **state)
{
	struct group g;

	make(&g, "queue-length", "", (const char *const[]){"1", "1", NULL});
	assert_int_equal(send(&g, 512), 0);
	assert_int_equal(send(&g, 512), 1);
	assert_int_equal(send(&g, 512), 0);
	assert_status(&g, 0, DM_STATUS_INFO, " 2");
	g.ps.type->end(&g.ps, &g.paths[0], 512, 0);
	g.ps.type->end(&g.ps, &g.paths[0], 512, 0);
	assert_int_equal(choose(&g, 512), 0);
	assert_int_equal(choose(&g, 512), 0); /* it is idle, the other is not */
	drop(&g);
}

static void test_service_time(void **state)
{
	struct group g;

	make(&g, "service-time", "", (const char *const[]){"1 1", "1 4", "1 0", NULL});
	for (unsigned i = 0; i < 4; i++) /* (0 + n) / 1 against (i * n + n) / 4 */
		assert_int_equal(send(&g, 4096), 1);
	assert_int_equal(send(&g, 4096), 0);
	assert_status(&g, 1, DM_STATUS_INFO, " 16384 4");
	assert_status(&g, 1, DM_STATUS_TABLE, " 1 4");
	atomic_store(&g.paths[0].failed, true);
	atomic_store(&g.paths[1].failed, true);
	assert_int_equal(choose(&g, 4096), 2);
	drop(&g);
}

/* No product of sizes and throughputs wraps. */
static void test_service_time_of_much(void **state)
{
	struct group g;

	make(&g, "service-time", "", (const char *const[]){"1 100", "1 99", NULL});
	g.ps.type->start(&g.ps, &g.paths[0], UINT64_MAX / 2);
	assert_int_equal(choose(&g, UINT64_MAX / 4), 1);
	drop(&g);
}

/* As if a request had gone by a path and taken so long. */
static void took(struct group *g, int path, uint64_t ms)
{
	uint64_t now = dm_now_ns();

	g->ps.type->start(&g->ps, &g->paths[path], 4096);
	g->ps.type->end(&g->ps, &g->paths[path], 4096, now - ms * 1000000);
}

static void test_historical_service_time(void **state)
{
	unsigned counts[2] = {0};
	struct group g;

	make(&g, "historical-service-time", "", (const char *const[]){"", "", NULL});
	assert_status(&g, -1, DM_STATUS_TABLE, " 2 972 0");
	assert_status(&g, 0, DM_STATUS_TABLE, " 0");
	took(&g, 0, 2000);
	took(&g, 1, 20);
	g.ps.type->start(&g.ps, &g.paths[1], 4096); /* busy, but so much faster */
	g.ps.type->start(&g.ps, &g.paths[0], 4096);
	for (unsigned i = 0; i < 10; i++)
		counts[send(&g, 4096)]++;
	assert_int_equal(counts[1], 10);
	drop(&g);
}

static void test_historical_threshold(void **state)
{
	struct group g;

	make(&g, "historical-service-time", "0 1000", (const char *const[]){"", "", NULL});
	assert_status(&g, -1, DM_STATUS_INFO, " 2 0 1000");
	took(&g, 0, 40);
	took(&g, 1, 20);
	g.ps.type->start(&g.ps, &g.paths[1], 4096); /* too like each other: the one with fewer under way */
	assert_int_equal(choose(&g, 4096), 0);
	drop(&g);
}

static void test_io_affinity(void **state)
{
	struct group g;
	g_autofree char *mask = NULL;

	make(&g, "io-affinity", "", (const char *const[]){"1", NULL});
	mask = status(&g, 0, DM_STATUS_TABLE);
	assert_true(g_str_has_suffix(mask, "1"));
	assert_int_equal(choose(&g, 512), 0); /* whatever processor this is */
	drop(&g);
}

static void test_io_affinity_refuses(void **state)
{
	static const char *const masks[] = {"", "0", "g", "1,", ",1", "123456789", "ffffffff,ffffffff,ffffffff,ffffffff"};

	for (unsigned i = 0; i < G_N_ELEMENTS(masks); i++) {
		struct group g;
		char *word = (char *)masks[i];

		make(&g, "io-affinity", "", (const char *const[]){NULL});
		g_ptr_array_add(g.ps.paths, &g.paths[0]);
		assert_int_not_equal(g.ps.type->add_path(&g.ps, &g.paths[0], 1, &word, NULL), 0);
		drop(&g);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_unknown),
		cmocka_unit_test(test_failed_paths_are_left_out),
		cmocka_unit_test(test_queue_length),
		cmocka_unit_test(test_service_time),
		cmocka_unit_test(test_service_time_of_much),
		cmocka_unit_test(test_historical_service_time),
		cmocka_unit_test(test_historical_threshold),
		cmocka_unit_test(test_io_affinity),
		cmocka_unit_test(test_io_affinity_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
