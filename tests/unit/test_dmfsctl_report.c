/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dmfsctl's reports: fields, columns, order, selections. */
#include "unit.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "../../tools/dmfsctl/report.c"
#include "../../tools/dmfsctl/select.c"

struct thing {
	const char *name;
	int size;
};

static void get_name(const void *o, struct value *v)
{
	g_string_append(v->text, ((const struct thing *)o)->name);
}

static void get_size(const void *o, struct value *v)
{
	v->number = ((const struct thing *)o)->size;
	g_string_append_printf(v->text, "%d", ((const struct thing *)o)->size);
}

static const struct field fields[] = {
	{"a", "the_name", "Name", 6, FIELD_STRING, get_name, "Its name."},
	{"a", "other", "Other", 0, FIELD_STRING, get_name, "Its name again."},
	{"b", "size", "Size", 5, FIELD_NUMBER, get_size, "Its size."},
};
static const struct field_group groups[] = {{"a", "First"}, {"b", "Second"}};
static const struct report_type type = {fields, 3, groups, 2, "the_name,size"};
static const struct thing things[] = {{"b", 9}, {"a", 10}, {"longer-name", -3}, {"c d", 9}};

/* What a report prints; NULL if it was refused. */
static char *printed(struct report_options options)
{
	struct report *r;
	char *text = NULL;
	size_t len;
	FILE *to;

	if (report_new(&type, &options, &r) != REPORT_OK)
		return NULL;
	for (unsigned i = 0; i < G_N_ELEMENTS(things); i++)
		report_add(r, &things[i]);
	to = open_memstream(&text, &len);
	report_print(r, to);
	fclose(to);
	report_free(r);
	return text;
}

static void expect(struct report_options options, const char *want)
{
	char *text = printed(options);

	assert_non_null(text);
	assert_string_equal(text, want);
	free(text);
}

static void columns_are_as_wide_as_their_widest_value(void **state)
{
	expect((struct report_options){0}, "Name        Size \n"
					   "b               9\n"
					   "a              10\n"
					   "longer-name    -3\n"
					   "c d             9\n");
}

static void separated_values_are_not_aligned(void **state)
{
	expect((struct report_options){.noheadings = true}, "b:9\na:10\nlonger-name:-3\nc d:9\n");
	expect((struct report_options){.separator = ", "}, "Name, Size\nb, 9\na, 10\nlonger-name, -3\nc d, 9\n");
	expect((struct report_options){.noheadings = true, .nameprefixes = true, .fields = "size,thename"},
	       "DM_SIZE='9':DM_THE_NAME='b'\nDM_SIZE='10':DM_THE_NAME='a'\n"
	       "DM_SIZE='-3':DM_THE_NAME='longer-name'\nDM_SIZE='9':DM_THE_NAME='c d'\n");
}

static void numbers_sort_as_numbers_and_equals_stay_in_order(void **state)
{
	expect((struct report_options){.noheadings = true, .sort = "size"}, "longer-name:-3\nb:9\nc d:9\na:10\n");
	expect((struct report_options){.noheadings = true, .sort = "-size"}, "a:10\nb:9\nc d:9\nlonger-name:-3\n");
	expect((struct report_options){.noheadings = true, .sort = "size,-the_name"},
	       "longer-name:-3\nc d:9\nb:9\na:10\n");
	/* also by what is not shown */
	expect((struct report_options){.noheadings = true, .sort = "-size", .fields = "other"},
	       "a\nb\nc d\nlonger-name\n");
}

static void fields_are_found_by_any_spelling_and_by_group(void **state)
{
	expect((struct report_options){.noheadings = true, .fields = "+SIZE", .select = "size=10"}, "a:10:10\n");
	expect((struct report_options){.noheadings = true, .fields = "a_all", .select = "size=10"}, "a:a\n");
	expect((struct report_options){.noheadings = true, .fields = "all", .select = "size=10"}, "a:a:10\n");
}

static int saved_stderr;

static int hide_stderr(void **state)
{
	saved_stderr = dup(2);
	return freopen("/dev/null", "w", stderr) ? 0 : -1;
}

static int show_stderr(void **state)
{
	fflush(stderr);
	dup2(saved_stderr, 2);
	close(saved_stderr);
	return 0;
}

static void unknown_fields_are_refused(void **state)
{
	static const char *const bad[] = {"nosuch", "the_name,nosuch", "the_name,", ",", "-size", "the_name size", "_al"};

	for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
		assert_null(printed((struct report_options){.fields = bad[i]}));
		assert_null(printed((struct report_options){.sort = i == 2 || i == 4 ? "nosuch" : bad[i]}));
	}
}

static unsigned selected(const char *text)
{
	bool helped;
	struct selection *s = selection_parse(&type, text, &helped);
	unsigned bits = 0;

	assert_false(helped);
	if (!s)
		return 1000;
	for (unsigned i = 0; i < G_N_ELEMENTS(things); i++)
		bits |= (unsigned)selection_matches(s, &things[i]) << i;
	selection_free(s);
	return bits;
}

static void selections(void **state)
{
	assert_int_equal(selected("size=9"), 9);
	assert_int_equal(selected("size != 9"), 6);
	assert_int_equal(selected("size>9"), 2);
	assert_int_equal(selected("size>=9"), 11);
	assert_int_equal(selected("size<9"), 4);
	assert_int_equal(selected("size<=9"), 13);
	assert_int_equal(selected("the_name=a"), 2);
	assert_int_equal(selected("the_name=\"c d\""), 8);
	assert_int_equal(selected("the_name='c d'"), 8);
	assert_int_equal(selected("the_name=~^[ab]$"), 3);
	assert_int_equal(selected("the_name!~n"), 11);
	assert_int_equal(selected("the_name=a||size=9"), 11);
	assert_int_equal(selected("the_name=b#the_name=a"), 3);
	assert_int_equal(selected("size=9,the_name=b"), 1);
	assert_int_equal(selected("size=9 && the_name=b || the_name=a"), 3);
	assert_int_equal(selected("size=9 && (the_name=b || the_name=a)"), 1);
	assert_int_equal(selected("!(size=9)"), 6);
	assert_int_equal(selected("!( !(size=9) )"), 9);
}

static void broken_selections_are_refused(void **state)
{
	static const char *const bad[] = {
		"size", "size=", "size=x", "size=9%", "size=9 the_name=b", "nosuch=1", "(size=9", "size=9)", "=9", "!size=9",
		"the_name>a", "the_name=\"a", "the_name=~(", "size=9&&", "||", "()", "!", "the_name", "size~9", "size=-3",
	};
	g_autofree char *deep = g_strnfill(100000, '(');

	for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++)
		assert_int_equal(selected(bad[i]), 1000);
	assert_int_equal(selected(deep), 1000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(columns_are_as_wide_as_their_widest_value),
		cmocka_unit_test(separated_values_are_not_aligned),
		cmocka_unit_test(numbers_sort_as_numbers_and_equals_stay_in_order),
		cmocka_unit_test(fields_are_found_by_any_spelling_and_by_group),
		cmocka_unit_test_setup_teardown(unknown_fields_are_refused, hide_stderr, show_stderr),
		cmocka_unit_test(selections),
		cmocka_unit_test_setup_teardown(broken_selections_are_refused, hide_stderr, show_stderr),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
