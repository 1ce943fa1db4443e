/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Tables without a mount: building them, and finding the target of every sector. */
#include "unit.h"

#include "core/devices.h"
#include "core/type.h"
#include "targets/list.h"

#include <fcntl.h>
#include <unistd.h>

static struct dm_mapped *md;

static int setup(void **state)
{
	dm_register_targets(dm_target_list);
	return dm_create("vol", -1, &md, NULL);
}

static int teardown(void **state)
{
	dm_mapped_unref(md);
	dm_remove_all();
	return 0;
}

static struct dm_table *draft(void)
{
	struct dm_opener self = dm_opener_self();

	return dm_table_new(md, DM_MODE_RW, &self);
}

static int add(struct dm_table *t, const char *text, GError **err)
{
	g_autofree char *line = g_strdup(text);

	return dm_table_add_line(t, line, err);
}

static uint64_t one(unsigned i)
{
	return 1;
}

static uint64_t odd(unsigned i)
{
	return 1 + (uint64_t)i * 2654435761u % 1000;
}

static uint64_t huge(unsigned i)
{
	return (uint64_t)1 << 40;
}

static uint64_t first_differs(unsigned i)
{
	return i ? 8 : 3;
}

static uint64_t first_is_long(unsigned i)
{
	return i ? 8 : (uint64_t)1 << 50;
}

static uint64_t one_in_hundred_differs(unsigned i)
{
	return i % 100 == 99 ? 1 + i : 8;
}

static uint64_t halves_differ(unsigned i)
{
	return i & 16 ? 8 : 4096;
}

/* Every sector near a border is found where a walk along the table finds it. */
static void check_lookup(unsigned n, uint64_t (*length)(unsigned i))
{
	struct dm_table *t = draft();
	uint64_t at = 0;

	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(dm_table_add(t, at, length(i), "zero", 0, NULL, NULL), 0);
		at += length(i);
	}
	assert_int_equal(dm_table_complete(t, NULL), 0);
	assert_int_equal(t->sectors, at);
	if (n > 2 && (length == one || length == first_differs || length == first_is_long))
		assert_int_equal(t->stride, length(1));
	at = 0;
	for (unsigned i = 0; i < n; i++) {
		struct dm_target *ti = dm_table_target(t, i);

		assert_int_equal(ti->begin, at);
		assert_ptr_equal(dm_table_find(t, at), ti);
		assert_ptr_equal(dm_table_find(t, at + length(i) / 2), ti);
		assert_ptr_equal(dm_table_find(t, at + length(i) - 1), ti);
		at += length(i);
	}
	dm_table_unref(t);
}

/* Around every size at which the tree gains a node or a level: nodes have 8 keys, 9 children. */
static void every_sector_finds_its_target(void **state)
{
	static const unsigned sizes[] = {1, 2, 7, 8, 9, 71, 72, 73, 80, 647, 648, 649, 655, 656, 657, 5831, 5832, 5833, 60000};

	for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++) {
		check_lookup(sizes[i], one);
		check_lookup(sizes[i], odd);
		check_lookup(sizes[i], first_differs);
		check_lookup(sizes[i], first_is_long);
		check_lookup(sizes[i], one_in_hundred_differs);
		check_lookup(sizes[i], halves_differ);
		if (sizes[i] < 10000)
			check_lookup(sizes[i], huge);
	}
	for (unsigned n = 1; n < 300; n++)
		check_lookup(n, odd);
}

static void a_bad_line_leaves_the_table_as_it_was(void **state)
{
	static const char *const bad[] = {"", "8", "8 8", "8 8 nosuch", "8 0 zero", "9 8 zero", "7 8 zero", "8 x zero",
					  "x 8 zero", "8 8 zero 1", "8 18446744073709551615 zero", "8 36028797018963968 zero",
					  "8 8 linear", "8 8 linear /nonexistent 0", "8 8 striped 0 8"};
	struct dm_table *t = draft();

	assert_int_equal(add(t, "0 8 zero", NULL), 0);
	for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
		g_autoptr(GError) err = NULL;

		assert_true(add(t, bad[i], &err) < 0);
		assert_non_null(err);
		assert_true(*err->message);
		assert_int_equal(t->n, 1);
		assert_int_equal(t->sectors, 8);
	}
	assert_int_equal(add(t, "8 8 error", NULL), 0);
	assert_int_equal(dm_table_complete(t, NULL), 0);
	dm_table_unref(t);
}

static void an_empty_table_is_an_error(void **state)
{
	g_autoptr(GError) err = NULL;
	struct dm_table *t = draft();

	assert_true(dm_table_complete(t, &err) < 0);
	assert_non_null(err);
	dm_table_unref(t);
}

static void text(struct dm_table *t, enum dm_status_type type, const char *want)
{
	g_autoptr(GString) out = g_string_new(NULL);

	dm_table_print(t, type, out);
	assert_string_equal(out->str, want);
}

static void what_is_printed_loads_again(void **state)
{
	char path[] = "/tmp/dmfs-unit-a b-XXXXXX";
	int fd = mkstemp(path);
	struct dm_table *t = draft(), *again = draft();
	g_autoptr(GString) out = g_string_new(NULL), twice = g_string_new(NULL), quoted = g_string_new(NULL);
	g_autofree char *lines = NULL, *line = NULL;
	g_auto(GStrv) split = NULL;

	assert_true(fd >= 0 && !ftruncate(fd, 1 << 20));
	dm_quote_word(path, quoted);
	line = g_strdup_printf("0 96 striped 2 16 %s 3 %s 1000", quoted->str, quoted->str);
	assert_int_equal(add(t, line, NULL), 0);
	assert_int_equal(add(t, "96 8 io-err", NULL), 0);
	assert_int_equal(dm_table_complete(t, NULL), 0);
	dm_table_print(t, DM_STATUS_TABLE, out);
	split = g_strsplit(out->str, "\n", -1);
	for (unsigned i = 0; *split[i]; i++)
		assert_int_equal(add(again, split[i], NULL), 0);
	assert_int_equal(dm_table_complete(again, NULL), 0);
	dm_table_print(again, DM_STATUS_TABLE, twice);
	assert_string_equal(out->str, twice->str);
	assert_non_null(strstr(out->str, "96 8 error"));
	dm_table_unref(t);
	dm_table_unref(again);
	close(fd);
	unlink(path);
}

static void zero_prints_nothing_more(void **state)
{
	struct dm_table *t = draft();

	assert_int_equal(add(t, "0 8 zero", NULL), 0);
	assert_int_equal(dm_table_complete(t, NULL), 0);
	text(t, DM_STATUS_TABLE, "0 8 zero\n");
	dm_table_unref(t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_sector_finds_its_target),
		cmocka_unit_test(a_bad_line_leaves_the_table_as_it_was),
		cmocka_unit_test(an_empty_table_is_an_error),
		cmocka_unit_test(what_is_printed_loads_again),
		cmocka_unit_test(zero_prints_nothing_more),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
