/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What dmfsctl reads: its command line, mountinfo, dm-init's format, progress, statistics. */
#include "unit.h"

#include <stdlib.h>
#include <unistd.h>

#include "../../tools/common/tree.c"
#include "../../tools/dmfsctl/concise.c"
#include "../../tools/dmfsctl/options.c"
#include "../../tools/dmfsctl/progress.c"
#include "../../tools/dmfsctl/regions.c"

/* --- the command line --------------------------------------------------------------------- */

static bool parse_line(struct options *o, const char *line)
{
	static char **argv; /* options point into it */
	int argc;

	g_strfreev(argv);
	assert_true(g_shell_parse_argv(line, &argc, &argv, NULL));
	return options_parse(o, argc, argv);
}

static void m_is_the_mount_before_the_command_and_minor_after_it(void **state)
{
	struct options o;

	assert_true(parse_line(&o, "dmfsctl -m /mnt info"));
	assert_string_equal(o.mount, "/mnt");
	assert_int_equal(o.minor, -1);
	options_clear(&o);
	assert_true(parse_line(&o, "dmfsctl info -j 0 -m 5"));
	assert_null(o.mount);
	assert_int_equal(o.minor, 5);
	assert_int_equal(o.major, 0);
	options_clear(&o);
	assert_true(parse_line(&o, "dmfsctl -j 0 -m 5 info"));
	assert_null(o.mount);
	assert_int_equal(o.minor, 5);
	options_clear(&o);
	assert_true(parse_line(&o, "dmfsctl -m ./5 info --mount /other -j 0 --minor=7"));
	assert_string_equal(o.mount, "/other");
	assert_int_equal(o.minor, 7);
	options_clear(&o);
}

static void options_may_stand_anywhere(void **state)
{
	struct options o;

	assert_true(parse_line(&o, "dmfsctl create -u U vol --table '0 8 zero' -r file -v -v -- -x"));
	assert_int_equal(o.words->len, 5);
	assert_string_equal(o.words->pdata[0], "create");
	assert_string_equal(o.words->pdata[1], "vol");
	assert_string_equal(o.words->pdata[2], "file");
	assert_string_equal(o.words->pdata[3], "-x");
	assert_null(o.words->pdata[4]);
	assert_string_equal(o.uuid, "U");
	assert_string_equal(o.table, "0 8 zero");
	assert_true(o.readonly);
	assert_int_equal(o.verbose, 2);
	options_clear(&o);
	assert_true(parse_line(&o, "dmfsctl message vol 0 @stats_create - /100"));
	assert_int_equal(o.words->len, 7);
	options_clear(&o);
}

static int saved;

static int hide(void **state)
{
	saved = dup(2);
	return freopen("/dev/null", "w", stderr) ? 0 : -1;
}

static int show(void **state)
{
	fflush(stderr);
	dup2(saved, 2);
	close(saved);
	return 0;
}

static void bad_options_are_refused(void **state)
{
	static const char *const bad[] = {
		"x --bogus", "x -5", "x -u", "x -j 0", "x -m 0", "x -j x -m 0", "x -j 0 -m x", "x -j 0 -m 1048576",
		"x -j 0 -m -1", "x --count -1", "x --count 1x", "x --interval 0", "x --interval -1", "x --interval x",
		"x --mode 8", "x --mode 17777", "x -U x", "x -G 4294967295", "x --manglename x", "x --readahead -5",
		"x --readahead x", "x --table t --notable", "x --addnodeoncreate --addnodeonresume", "x --regionid x",
		"x --count 99999999999999999999",
	};

	for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
		g_autofree char *line = g_strconcat("dmfsctl create ", bad[i], NULL);
		struct options o;

		if (parse_line(&o, line))
			fail_msg("accepted: %s", line);
		options_clear(&o);
	}
}

/* --- the mount -------------------------------------------------------------------------------- */

static void mounts_of_dmfs(void **state)
{
	g_autoptr(GPtrArray) list = tree_list_mounts(
		"22 1 0:21 / /proc rw,nosuid shared:12 - proc proc rw\n"
		"30 1 0:40 / /a\\040b rw - fuse.dmfs dmfs rw\n"
		"31 1 0:41 / /c rw shared:1 master:2 - fuse.dmfs /state rw\n"
		"32 1 0:42 / /d rw - fuse.dmfs dmfs rw\n"
		"33 1 0:43 / /d rw - ext4 /dev/sda1 rw\n" /* hides it */
		"34 1 0:44 / /e - fuse.dmfs2 dmfs rw\n"
		"35 1 0:45 / /f rw - fuse.dmfs-images dmfs rw\n"
		"35 1 0:45 / /f rw\n"
		"\n"
		"nonsense\n");

	assert_int_equal(list->len, 2);
	assert_string_equal(list->pdata[0], "/a b");
	assert_string_equal(list->pdata[1], "/c");
}

static void quoting(void **state)
{
	g_autofree char *quoted = tree_quote("/a b\t'c\\#"), *plain = tree_unquote(quoted);

	assert_string_equal(quoted, "/a\\ b\\\t\\'c\\\\\\#");
	assert_string_equal(plain, "/a b\t'c\\#");
}

static void lines_and_words(void **state)
{
	static const char *const lines[] = {"0 8 linear /a\\\nb\\ c 0", "", "x\\\\", "last\\"};
	g_autofree char *text = g_strjoin("\n", lines[0], lines[1], lines[2], lines[3], NULL);
	g_auto(GStrv) got = tree_lines(text), words = tree_words(lines[0]), none = tree_words(" \t ");

	assert_int_equal(g_strv_length(got), 4);
	for (unsigned i = 0; i < 4; i++)
		assert_string_equal(got[i], lines[i]);
	assert_int_equal(g_strv_length(words), 5);
	assert_string_equal(words[3], "/a\\\nb\\ c");
	assert_int_equal(g_strv_length(none), 0);
	/* in a comment nothing is quoted; a # within a word or quoted begins none */
	assert_int_equal(tree_line_length("a # b\\\nc", true), 6);
	assert_int_equal(tree_line_length("a # b\\\nc", false), 8);
	assert_int_equal(tree_line_length("a#\\\nc", true), 5);
	assert_int_equal(tree_line_length("\\#\\\nc", true), 5);
	assert_int_equal(tree_line_length("a\\", true), 2);
}

static void shown_texts(void **state)
{
	static const char *const names[][3] = {
		{"a b\\c", "a b\\c", "a b\\c"},
		{"a\nb c/\\", "a\\x0ab\\x20c\\x2f\\x5c", "a\\x0ab c/\\x5c"},
		{"\177", "\\x7f", "\\x7f"},
		{"\303\274", "\303\274", "\303\274"},
	};

	for (unsigned i = 0; i < G_N_ELEMENTS(names); i++) {
		g_autofree char *name = tree_shown_name(names[i][0]), *path = tree_shown_path(names[i][0]);

		assert_string_equal(name, names[i][1]);
		assert_string_equal(path, names[i][2]);
	}
}

/* --- dm-init's format ---------------------------------------------------------------------------- */

static bool note(const struct concise_device *d, void *data)
{
	g_string_append_printf(data, "[%s|%s|%d|%d|%s]", d->name, d->uuid, (int)d->minor, d->readonly, d->table);
	return strcmp(d->name, "stop");
}

static bool concise(const char *text, GString *out)
{
	g_string_truncate(out, 0);
	return concise_parse(text, note, out);
}

static void concise_devices(void **state)
{
	g_autoptr(GString) out = g_string_new(NULL);

	assert_true(concise("a,,,,0 1 zero", out));
	assert_string_equal(out->str, "[a||-1|0|0 1 zero]");
	assert_true(concise("a,u,7,ro,0 1 zero,1 1 error;b,,,rw,0 9 zero\n", out));
	assert_string_equal(out->str, "[a|u|7|1|0 1 zero\n1 1 error][b||-1|0|0 9 zero]");
	assert_true(concise("a\\,b\\;c\\\\,,,,0 1 x \\,", out));
	assert_string_equal(out->str, "[a,b;c\\||-1|0|0 1 x ,]");
	assert_true(concise("", out));
	assert_true(concise("a,,,,0 1 zero;\n", out));
	assert_string_equal(out->str, "[a||-1|0|0 1 zero]");
	g_string_truncate(out, 0);
	concise_append(out, "a,b;c\\");
	assert_string_equal(out->str, "a\\,b\\;c\\\\");
}

static void broken_concise_devices(void **state)
{
	static const char *const bad[] = {"a", "a,,,", "a,,,,", ";", "a,,,,0 1 zero;b", "a,,,rx,0 1 zero", "a,,x,,0 1 zero",
					  "a,,1048576,,0 1 zero", "a,,,,0 1 zero\\", "a;b,,,,0 1 zero",
					  "stop,,,,0 1 zero;b,,,,0 1 zero"};
	g_autoptr(GString) out = g_string_new(NULL);

	for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++)
		assert_false(concise(bad[i], out));
	assert_string_equal(out->str, "[stop||-1|0|0 1 zero]");
}

/* --- progress ---------------------------------------------------------------------------------------- */

static void check(const char *status, const char *what, uint64_t left, uint64_t total)
{
	struct progress p;

	progress_of_status(&p, status);
	if (what)
		assert_string_equal(p.what, what);
	else
		assert_null(p.what);
	assert_false(p.failed);
	assert_int_equal(p.left, left);
	assert_int_equal(p.total, total);
}

static void progress_of_targets(void **state)
{
	struct progress p;

	check("0 100 linear \n", NULL, 0, 0);
	check("", NULL, 0, 0);
	check("0 100 mirror 2 7:0 7:1 30/100 1 AA 1 core\n", "resync", 70, 100);
	check("0 100 mirror 99 7:0 7:1 30/100 1 AA 1 core\n", NULL, 0, 0);
	check("0 100 raid raid1 2 Aa 25/100 recover 0 0 -\n", "recover", 75, 100);
	check("0 100 raid raid1 2 AA 100/100 idle 0 0 -\n", "resync", 0, 100);
	check("0 100 snapshot-merge 160/1000 32\n", "merge", 128, 0);
	check("0 100 snapshot-merge 32/1000 32\n", "merge", 0, 0);
	check("0 100 snapshot 160/1000 32\n", NULL, 0, 0);
	check("0 100 clone 8 12/1024 8 40/100 0 0 2 hydration_threshold 1 rw\n", "hydration", 60, 100);
	check("0 100 integrity 0 1000 400\n", "recalculation", 600, 1000);
	check("0 100 integrity 0 1000 -\n", NULL, 0, 0);
	check("0 100 crypt wiping 40/100\n", "wiping", 60, 100);
	check("0 100 crypt\n", NULL, 0, 0);
	check("0 100 cache 8 1/2 128 1/2 0 0 0 0 0 0 17 1 writethrough 0 cleaner 0 rw -\n", "cleaning", 17, 0);
	/* two lines are one work */
	check("0 9 mirror 1 7:0 1/2 1 A 1 core\n9 9 mirror 1 7:0 1/8 1 A 1 core\n", "resync", 8, 10);
	progress_of_status(&p, "0 100 snapshot-merge Merge failed\n");
	assert_true(p.failed);
}

static void fractions(void **state)
{
	struct progress p = {"x", false, 25, 100}, merge = {"merge", false, 10, 0}, done = {"x", false, 0, 0};

	assert_float_equal(progress_fraction(&p, 0), 0.75, 1e-9);
	assert_float_equal(progress_fraction(&merge, 40), 0.75, 1e-9);
	assert_float_equal(progress_fraction(&merge, 10), 0, 1e-9);
	assert_float_equal(progress_fraction(&done, 0), 1, 1e-9);
}

/* --- statistics ------------------------------------------------------------------------------------------ */

static void regions(void **state)
{
	static const char *const bad[] = {"", "0", "0:", "0: 5", "0: 5+", "0: 5+6", "0: 5+6 0 - -", "x: 0+1 1 - -",
					  "9999999999: 0+1 1 - -"};
	struct region *r = region_parse("3: 8+1000 100 prog foo bar precise_timestamps histogram:5,10");

	assert_non_null(r);
	assert_int_equal(r->id, 3);
	assert_int_equal(r->start, 8);
	assert_int_equal(r->length, 1000);
	assert_int_equal(region_n_areas(r), 10);
	assert_string_equal(r->program, "prog");
	assert_string_equal(r->aux, "foo bar");
	assert_true(r->precise);
	assert_int_equal(r->bounds->len, 2);
	region_free(r);
	r = region_parse("0: 0+5 3 - -");
	assert_string_equal(r->program, "");
	assert_string_equal(r->aux, "");
	assert_int_equal(region_n_areas(r), 2);
	region_free(r);
	for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++)
		assert_null(region_parse(bad[i]));
}

static struct region *grouped(GPtrArray *list, const char *line)
{
	struct region *r = region_parse(line);

	assert_non_null(r);
	g_ptr_array_add(list, r);
	return r;
}

static void region_groups(void **state)
{
	g_autoptr(GPtrArray) list = g_ptr_array_new_with_free_func((GDestroyNotify)region_free);
	struct region *r = grouped(list, "1: 0+10 10 dmstats DMS_GROUP=a:b:1,3-4#data x histogram:5");
	struct region *alone = grouped(list, "2: 0+10 10 dmstats DMS_GROUP=broken");
	struct region *other = grouped(list, "3: 0+10 10 dmstats -");
	struct region *last =
	    grouped(list, "9: 0+10 10 dmstats DMS_GROUP=:9,3,18446744073709551615,0-18446744073709551615#-");
	g_autofree char *back = aux_print(r->members, r->alias, r->aux), *none = aux_print(NULL, NULL, "");

	assert_string_equal(r->alias, "a:b");
	assert_string_equal(r->members, "1,3-4");
	assert_string_equal(r->aux, "data x");
	assert_string_equal(back, "DMS_GROUP=a:b:1,3-4#data x");
	assert_string_equal(none, "-");
	assert_null(alone->members);
	assert_string_equal(alone->aux, "DMS_GROUP=broken");
	assert_string_equal(last->aux, "");
	regions_group(list);
	assert_int_equal(r->group, 1);
	assert_int_equal(alone->group, -1);
	assert_int_equal(other->group, 1); /* of two groups the first */
	assert_string_equal(other->group_alias, "a:b");
	assert_int_equal(last->group, 9);
	assert_ptr_equal(regions_find(list, 9), last);
	assert_null(regions_find(list, 4));
}

static void id_lists(void **state)
{
	static const struct {
		const char *in, *out;
	} good[] = {{"1", "1"},	  {"3,1,2", "1-3"},	    {"0,2", "0,2"},
		    {"1,1", "1"}, {"0-1,5,3-4", "0-1,3-5"}, {"0-7,99", "7,99"}};
	static const char *const bad[] = {"", "x", "1,", ",1", "1,,2", "2-1", "1-", "-1", "1 2", "1-2-3"};

	for (unsigned i = 0; i < G_N_ELEMENTS(good); i++) {
		g_autoptr(GArray) ids = id_list_parse(good[i].in, 6);
		g_autofree char *text = ids ? id_list_print(ids) : NULL;

		assert_non_null(ids);
		assert_string_equal(text, good[i].out);
	}
	for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++)
		assert_null(id_list_parse(bad[i], 6));
}

static void areas(void **state)
{
	g_autoptr(GPtrArray) list = areas_parse("0+8 1 2 3 4 5 6 7 8 9 10 11 12 13 7:8:9\n8+8 0 0 0 0 0 0 0 0 0 0 0 0 0\n");
	struct area *a;

	assert_non_null(list);
	assert_int_equal(list->len, 2);
	a = list->pdata[0];
	assert_int_equal(a->counter[READS], 1);
	assert_int_equal(a->counter[IN_FLIGHT], 9);
	assert_int_equal(a->counter[WRITE_IO_MS], 13);
	assert_int_equal(a->histogram->len, 3);
	assert_null(areas_parse("0+8 1 2 3\n"));
	assert_null(areas_parse("junk"));
}

static void units(void **state)
{
	static const struct {
		uint64_t bytes;
		const char *units, *text;
	} sizes[] = {{0, NULL, "0"},
		     {512, NULL, "512b"},
		     {1536, NULL, "1.50k"},
		     {1024000, NULL, "1000.00k"},
		     {1 << 20, NULL, "1.00m"},
		     {1536, "s", "3"},
		     {1536, "b", "1536"},
		     {1 << 20, "k", "1024.00"},
		     {UINT64_MAX, NULL, "16.00e"},
		     {512000, "H", "512.00K"},
		     {512000, "K", "512.00"},
		     {0, "k", "0"},
		     {512000, "3M", "0.17"},
		     {1024, "512b", "2.00"},
		     {1024, "S", "2"},
		     {1024, "1k", "1.00"}};
	static const char *const bad_units[] = {"", "x", "512", "0k", "k3", "3kk", "18446744073709551615k"};
	static const struct {
		uint64_t ns;
		const char *text;
	} times[] = {{0, "0s"}, {5, "5ns"}, {1000, "1us"}, {1500, "1500ns"}, {2000000, "2ms"}, {1000000000, "1s"}};
	uint64_t n;

	for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
		g_autoptr(GString) out = g_string_new(NULL);

		size_print(out, sizes[i].bytes, sizes[i].units);
		assert_string_equal(out->str, sizes[i].text);
	}
	for (unsigned i = 0; i < G_N_ELEMENTS(times); i++) {
		g_autoptr(GString) out = g_string_new(NULL);

		time_print(out, times[i].ns, true);
		assert_string_equal(out->str, times[i].text);
	}
	for (unsigned i = 0; i < G_N_ELEMENTS(bad_units); i++)
		assert_false(units_valid(bad_units[i]));
	assert_true(units_valid(NULL) && units_valid("h") && units_valid("B") && units_valid("3M"));
	assert_true(size_parse("100", &n) && n == 100);
	assert_true(size_parse("4k", &n) && n == 8);
	assert_true(size_parse("1m", &n) && n == 2048);
	assert_true(size_parse("1M", &n) && n == 1000000 / 512);
	assert_true(size_parse("4kb", &n) && n == 8);
	assert_true(size_parse("1000b", &n) && n == 1);
	assert_true(size_parse("0", &n) && n == 0);
	assert_false(size_parse("1b", &n));
	assert_true(size_parse("7s", &n) && n == 7);
	assert_false(size_parse("", &n) || size_parse("x", &n) || size_parse("4kk", &n) || size_parse("-4", &n) ||
		     size_parse("99999999e", &n) || size_parse("18446744073709551615k", &n));
}

static void histogram_bounds(void **state)
{
	static const struct {
		const char *in, *out;
		bool precise;
	} good[] = {{"1ms,2ms", "1,2", false}, {"1,2,3ms", "1,2,3", false}, {"10us", "10000", true},
		    {"1s,2s,3s", "1000,2000,3000", false}, {"5", "5", true}, {"500us,1ms", "500000,1000000", true}};
	static const char *const bad[] = {"", "x", "1ms,", "2ms,1ms", "1ms,1ms", "1h", "1ms;2ms", "99999999999999999s"};

	for (unsigned i = 0; i < G_N_ELEMENTS(good); i++) {
		g_autofree char *out = NULL;
		bool precise = false;

		assert_true(bounds_parse(good[i].in, &precise, &out));
		assert_string_equal(out, good[i].out);
		assert_int_equal(precise, good[i].precise);
	}
	for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
		g_autofree char *out = NULL;
		bool precise = false;

		assert_false(bounds_parse(bad[i], &precise, &out));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(m_is_the_mount_before_the_command_and_minor_after_it),
		cmocka_unit_test(options_may_stand_anywhere),
		cmocka_unit_test_setup_teardown(bad_options_are_refused, hide, show),
		cmocka_unit_test(mounts_of_dmfs),
		cmocka_unit_test(quoting),
		cmocka_unit_test(lines_and_words),
		cmocka_unit_test(shown_texts),
		cmocka_unit_test(concise_devices),
		cmocka_unit_test_setup_teardown(broken_concise_devices, hide, show),
		cmocka_unit_test(progress_of_targets),
		cmocka_unit_test(fractions),
		cmocka_unit_test(regions),
	    cmocka_unit_test(region_groups),
	    cmocka_unit_test(id_lists),
		cmocka_unit_test(areas),
		cmocka_unit_test(units),
		cmocka_unit_test(histogram_bounds),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
