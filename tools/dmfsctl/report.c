/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reports in columns (report.h). */
#include <ctype.h>
#include <string.h>

#include "report.h"

/* "selected" is no object's: whether the row is selected. */
static const struct field selected_field = {
	NULL, "selected", "Selected", 8, FIELD_NUMBER, NULL, "Set if item passes selection criteria.",
};

struct sort_key {
	unsigned column;
	bool descending;
};

struct row {
	struct value *values;
	unsigned order; /* of arrival: equal rows stay as they came */
};

struct report {
	const struct report_type *type;
	struct report_options options;
	GPtrArray *columns;  /* of const struct field: those shown, then those only sorted by */
	unsigned n_shown;
	GArray *sort_keys;
	struct selection *selection;
	bool shows_selected;
	GPtrArray *rows;
};

/* --- fields by name -------------------------------------------------------------------- */

/* '_' and case do not count. */
static bool same_name(const char *id, const char *name, size_t len)
{
	const char *end = name + len;

	for (;;) {
		while (*id == '_')
			id++;
		while (name < end && *name == '_')
			name++;
		if (!*id || name == end)
			return !*id && name == end;
		if (tolower((unsigned char)*id++) != tolower((unsigned char)*name++))
			return false;
	}
}

const struct field *report_field(const struct report_type *type, const char *name, size_t len)
{
	for (unsigned i = 0; i < type->n_fields; i++)
		if (same_name(type->fields[i].id, name, len))
			return &type->fields[i];
	return same_name("selected", name, len) ? &selected_field : NULL;
}

static bool is_help(const char *name, size_t len)
{
	return same_name("help", name, len) || (len == 1 && *name == '?');
}

/* --- help ----------------------------------------------------------------------------------- */

static void help_line(const char *id, const char *description, const char *kind, FILE *to)
{
	fprintf(to, "  %-21s - %s%s\n", id, description, kind);
}

static const char *kind_of(const struct field *f, bool types)
{
	if (!types)
		return "";
	return f->type == FIELD_NUMBER ? " [number]" : " [string]";
}

static void help_heading(const char *heading, FILE *to)
{
	fprintf(to, "%s Fields\n", heading);
	for (size_t i = 0; i < strlen(heading) + strlen(" Fields"); i++)
		fputc('-', to);
	fputc('\n', to);
}

void report_help(const struct report_type *type, bool groups, bool types, FILE *to)
{
	for (unsigned g = 0; g < type->n_groups; g++) {
		help_heading(type->groups[g].heading, to);
		if (groups) {
			g_autofree char *all = g_strdup_printf("%s_all", type->groups[g].id);

			help_line(all, "All fields in this section.", "", to);
		}
		for (unsigned i = 0; i < type->n_fields; i++)
			if (!strcmp(type->fields[i].group, type->groups[g].id))
				help_line(type->fields[i].id, type->fields[i].description,
					  kind_of(&type->fields[i], types), to);
		fputs(" \n", to);
	}
	help_heading("Special", to);
	help_line("selected", selected_field.description, kind_of(&selected_field, types), to);
	help_line("help", "Show help.", types ? " [unselectable number]" : "", to);
	help_line("?", "Show help.", types ? " [unselectable number]" : "", to);
	fputs(" \n", to);
}

/* --- which columns ---------------------------------------------------------------------------- */

static enum report_made unrecognised(struct report *r, const char *prefix, const char *name, size_t len)
{
	report_help(r->type, true, false, stderr);
	fprintf(stderr, "%sUnrecognised field: %.*s\n", prefix, (int)len, name);
	return REPORT_BAD;
}

/* "all" or "GROUP_all": adds their fields. */
static bool add_group(struct report *r, const char *name, size_t len)
{
	bool found = false;

	for (unsigned i = 0; i < r->type->n_fields; i++) {
		const struct field *f = &r->type->fields[i];
		g_autofree char *all = g_strdup_printf("%s_all", f->group);

		if (same_name("all", name, len) || same_name(all, name, len)) {
			g_ptr_array_add(r->columns, (gpointer)f);
			found = true;
		}
	}
	return found;
}

static enum report_made add_columns(struct report *r, const char *list)
{
	while (*list) {
		size_t len = strcspn(list, ",");
		const struct field *f = report_field(r->type, list, len);

		if (is_help(list, len)) {
			report_help(r->type, true, false, stderr);
			return REPORT_HELPED;
		}
		if (f)
			g_ptr_array_add(r->columns, (gpointer)f);
		else if (!add_group(r, list, len))
			return unrecognised(r, "", list, len);
		r->shows_selected |= f == &selected_field;
		list += len;
		if (*list == ',' && !*++list)
			return unrecognised(r, "", list, 0);
	}
	return REPORT_OK;
}

static enum report_made add_sort_keys(struct report *r, const char *list)
{
	while (list && *list) {
		size_t sign = *list == '-' || *list == '+', len = strcspn(list, ",") - sign;
		struct sort_key key = {0, *list == '-'};
		const struct field *f = report_field(r->type, list + sign, len);

		if (!f && is_help(list + sign, len)) {
			report_help(r->type, true, false, stderr);
			return REPORT_HELPED;
		}
		if (!f)
			return unrecognised(r, "dm_report: ", list + sign, len);
		if (!g_ptr_array_find(r->columns, f, &key.column)) {
			key.column = r->columns->len;
			g_ptr_array_add(r->columns, (gpointer)f);
		}
		g_array_append_val(r->sort_keys, key);
		list += sign + len;
		list += *list == ',';
	}
	return REPORT_OK;
}

static void free_row(gpointer data)
{
	struct row *row = data;

	for (struct value *v = row->values; v->text; v++)
		g_string_free(v->text, TRUE);
	g_free(row->values);
	g_free(row);
}

static enum report_made set_up(struct report *r)
{
	const char *fields = r->options.fields;
	enum report_made made = REPORT_OK;
	bool helped = false;

	if (!fields || *fields == '+')
		made = add_columns(r, r->type->defaults);
	if (made == REPORT_OK && fields)
		made = add_columns(r, fields + (*fields == '+'));
	r->n_shown = r->columns->len;
	if (made == REPORT_OK)
		made = add_sort_keys(r, r->options.sort);
	if (made == REPORT_OK && r->options.select && *r->options.select) {
		r->selection = selection_parse(r->type, r->options.select, &helped);
		if (!r->selection)
			made = helped ? REPORT_HELPED : REPORT_BAD;
	}
	return made;
}

enum report_made report_new(const struct report_type *type, const struct report_options *options, struct report **out)
{
	struct report *r = g_new0(struct report, 1);
	enum report_made made;

	r->type = type;
	r->options = *options;
	r->columns = g_ptr_array_new();
	r->sort_keys = g_array_new(FALSE, FALSE, sizeof(struct sort_key));
	r->rows = g_ptr_array_new_with_free_func(free_row);
	made = set_up(r);
	if (made != REPORT_OK) {
		report_free(r);
		r = NULL;
	}
	*out = r;
	return made;
}

void report_free(struct report *r)
{
	if (!r)
		return;
	g_ptr_array_free(r->columns, TRUE);
	g_array_free(r->sort_keys, TRUE);
	g_ptr_array_free(r->rows, TRUE);
	selection_free(r->selection);
	g_free(r);
}

/* --- rows ----------------------------------------------------------------------------------------- */

bool report_selects(struct report *r, const void *object)
{
	return !r->selection || selection_matches(r->selection, object);
}

static struct row *make_row(struct report *r, const void *object, bool selected)
{
	struct row *row = g_new0(struct row, 1);

	row->values = g_new0(struct value, r->columns->len + 1);
	for (unsigned i = 0; i < r->columns->len; i++) {
		const struct field *f = r->columns->pdata[i];
		struct value *v = &row->values[i];

		v->text = g_string_new(NULL);
		if (f == &selected_field) {
			v->number = selected;
			g_string_append(v->text, selected ? "1" : "0");
		} else {
			f->get(object, v);
		}
	}
	return row;
}

void report_add(struct report *r, const void *object)
{
	bool selected = report_selects(r, object);
	struct row *row;

	if (!selected && !r->shows_selected)
		return;
	row = make_row(r, object, selected);
	row->order = r->rows->len;
	g_ptr_array_add(r->rows, row);
}

static gint compare_rows(gconstpointer a, gconstpointer b, gpointer data)
{
	const struct row *x = *(struct row *const *)a, *y = *(struct row *const *)b;
	struct report *r = data;

	for (unsigned i = 0; i < r->sort_keys->len; i++) {
		const struct sort_key *key = &g_array_index(r->sort_keys, struct sort_key, i);
		const struct value *vx = &x->values[key->column], *vy = &y->values[key->column];
		const struct field *f = r->columns->pdata[key->column];
		int order = f->type == FIELD_NUMBER ? (vx->number > vy->number) - (vx->number < vy->number)
						    : strcmp(vx->text->str, vy->text->str);

		if (order)
			return key->descending ? -order : order;
	}
	return (x->order > y->order) - (x->order < y->order);
}

void report_sort_objects(struct report *r, GPtrArray *objects)
{
	g_autoptr(GPtrArray) rows = g_ptr_array_new_with_free_func(free_row);
	g_autofree gpointer *sorted = g_new(gpointer, objects->len + 1);

	for (unsigned i = 0; i < objects->len; i++) {
		struct row *row = make_row(r, objects->pdata[i], true);

		row->order = i;
		g_ptr_array_add(rows, row);
	}
	g_ptr_array_sort_with_data(rows, compare_rows, r);
	for (unsigned i = 0; i < rows->len; i++)
		sorted[i] = objects->pdata[((struct row *)rows->pdata[i])->order];
	for (unsigned i = 0; i < rows->len; i++)
		objects->pdata[i] = sorted[i];
}

/* --- printing ---------------------------------------------------------------------------------------- */

/* Columns are as wide as their widest value; only when the reader is a person, not a program. */
static bool aligned(struct report *r)
{
	return !r->options.noheadings && !r->options.nameprefixes && !r->options.separator;
}

static const char *separator(struct report *r)
{
	if (r->options.separator)
		return r->options.separator;
	return r->options.noheadings ? ":" : " ";
}

static size_t text_width(const char *text)
{
	glong n = g_utf8_validate(text, -1, NULL) ? g_utf8_strlen(text, -1) : (glong)strlen(text);

	return (size_t)n;
}

static void print_padded(const char *text, size_t width, bool right, FILE *to)
{
	size_t n = text_width(text), pad = width > n ? width - n : 0;

	if (right)
		fprintf(to, "%*s", (int)pad, "");
	fputs(text, to);
	if (!right)
		fprintf(to, "%*s", (int)pad, "");
}

static void print_name(const struct field *f, FILE *to)
{
	fputs("DM_", to);
	for (const char *p = f->id; *p; p++)
		fputc(toupper((unsigned char)*p), to);
}

static size_t *widths(struct report *r)
{
	size_t *width = g_new(size_t, r->n_shown + 1);

	for (unsigned i = 0; i < r->n_shown; i++) {
		const struct field *f = r->columns->pdata[i];

		width[i] = MAX(f->width, text_width(f->heading));
		for (unsigned j = 0; j < r->rows->len; j++) {
			struct row *row = r->rows->pdata[j];

			width[i] = MAX(width[i], text_width(row->values[i].text->str));
		}
	}
	return width;
}

static void print_headings(struct report *r, const size_t *width, FILE *to)
{
	for (unsigned i = 0; i < r->n_shown; i++) {
		const struct field *f = r->columns->pdata[i];

		if (i)
			fputs(separator(r), to);
		print_padded(f->heading, width ? width[i] : 0, false, to);
	}
	fputc('\n', to);
}

static void print_row(struct report *r, const struct row *row, const size_t *width, FILE *to)
{
	for (unsigned i = 0; i < r->n_shown; i++) {
		const struct field *f = r->columns->pdata[i];
		const char *text = row->values[i].text->str;

		if (i)
			fputs(separator(r), to);
		if (r->options.nameprefixes) {
			print_name(f, to);
			fprintf(to, "='%s'", text);
		} else {
			print_padded(text, width ? width[i] : 0, f->type == FIELD_NUMBER, to);
		}
	}
	fputc('\n', to);
}

void report_print(struct report *r, FILE *to)
{
	g_autofree size_t *width = aligned(r) ? widths(r) : NULL;

	if (r->sort_keys->len)
		g_ptr_array_sort_with_data(r->rows, compare_rows, r);
	if (r->rows->len && !r->options.noheadings)
		print_headings(r, width, to);
	for (unsigned i = 0; i < r->rows->len; i++)
		print_row(r, r->rows->pdata[i], width, to);
	g_ptr_array_set_size(r->rows, 0);
}
