/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reports in columns, as `dmsetup info -c` prints them: fields to choose and to sort by, a selection, aligned columns
 * or separated values.
 *
 * The objects are the caller's; a field's get() tells an object's value as a text and, for numbers, as a number to sort
 * and select by.
 */
#ifndef DMFSCTL_REPORT_H
#define DMFSCTL_REPORT_H

#include <glib.h>
#include <stdbool.h>
#include <stdio.h>

enum field_type { FIELD_STRING, FIELD_NUMBER };

struct value {
	GString *text;
	double number;
};

struct field {
	const char *group, *id, *heading; /* group: prefix of "GROUP_all" */
	unsigned width;
	enum field_type type; /* numbers are aligned to the right */
	void (*get)(const void *object, struct value *);
	const char *description;
};

struct field_group {
	const char *id, *heading;
};

struct report_type {
	const struct field *fields;
	unsigned n_fields;
	const struct field_group *groups;
	unsigned n_groups;
	const char *defaults; /* fields, comma-separated */
};

struct report_options {
	const char *fields; /* as -o takes them; NULL: the defaults */
	const char *sort, *select, *separator; /* NULL: none */
	bool noheadings, nameprefixes;
};

enum report_made { REPORT_OK, REPORT_HELPED /* help was asked for and printed */, REPORT_BAD /* it has been said why */ };

struct report;

enum report_made report_new(const struct report_type *type, const struct report_options *options, struct report **out);
void report_free(struct report *r);
/* Takes the object's values; one that is not selected is left out (but for the field "selected"). */
void report_add(struct report *r, const void *object);
/* Whether the selection takes it. */
bool report_selects(struct report *r, const void *object);
/* Prints all rows, sorted, and forgets them. */
void report_print(struct report *r, FILE *to);
/* The list of all fields, with their types if asked for. */
void report_help(const struct report_type *type, bool groups, bool types, FILE *to);
/* The field of that name ('_' and case do not count), or NULL. */
const struct field *report_field(const struct report_type *type, const char *name, size_t len);
/* Sorts an array of pointers to objects as --sort says. */
void report_sort_objects(struct report *r, GPtrArray *objects);

/* --- selections (select.c) ---------------------------------------------------- */

struct selection;

/* NULL: it is printed what is wrong; *helped: help was asked for and printed. */
struct selection *selection_parse(const struct report_type *type, const char *text, bool *helped);
bool selection_matches(const struct selection *s, const void *object);
void selection_free(struct selection *s);

#endif
