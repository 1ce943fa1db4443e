/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dm-init's format (concise.h). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "concise.h"

#define FIELDS 5

struct entry {
	GString *field[FIELDS];
	unsigned n; /* how many have begun */
};

static bool incomplete(const char *what, const struct entry *e)
{
	const char *text[FIELDS];

	for (unsigned i = 0; i < FIELDS; i++)
		text[i] = i < e->n ? e->field[i]->str : "(null)";
	fprintf(stderr, "%s\nParsed %u fields: name: %s uuid: %s minor: %s flags: %s table: %s\n", what, e->n, text[0],
		text[1], text[2], text[3], text[4]);
	return false;
}

static bool take_minor(const char *text, int64_t *minor)
{
	*minor = -1;
	if (!*text)
		return true;
	if (strspn(text, "0123456789") == strlen(text) && strlen(text) <= 7)
		*minor = strtol(text, NULL, 10);
	if (*minor >= 0 && *minor < 1 << 20)
		return true;
	fprintf(stderr, "Invalid minor number '%s': it is 0 to 1048575.\n", text);
	return false;
}

static bool give(const struct entry *e, bool (*take)(const struct concise_device *, void *), void *data)
{
	struct concise_device d = {.table = e->field[4]->str};
	const char *flags;

	for (unsigned i = 0; i < 4; i++)
		g_strstrip(e->field[i]->str);
	d.name = e->field[0]->str;
	d.uuid = e->field[1]->str;
	flags = e->field[3]->str;
	if (*flags && strcmp(flags, "ro") && strcmp(flags, "rw")) {
		fprintf(stderr, "Invalid flags parameter '%s' must be 'ro' or 'rw' or empty.\n", flags);
		return false;
	}
	d.readonly = !strcmp(flags, "ro");
	return take_minor(e->field[2]->str, &d.minor) && take(&d, data);
}

static void clear_entry(struct entry *e)
{
	for (unsigned i = 0; i < FIELDS; i++)
		g_string_truncate(e->field[i], 0);
	e->n = 1;
}

static bool end_of_entry(struct entry *e, bool last, bool (*take)(const struct concise_device *, void *), void *data)
{
	bool complete = e->n == FIELDS && e->field[4]->len;

	if (!complete)
		return incomplete(last ? "Incomplete entry: five comma-separated fields are required for each device"
				     : "Five comma-separated fields are required for each device",
				e);
	if (!give(e, take, data))
		return false;
	clear_entry(e);
	return true;
}

static bool parse_entries(struct entry *e, const char *p, bool (*take)(const struct concise_device *, void *), void *data)
{
	for (; *p; p++) {
		if (*p == '\\') {
			if (!*++p)
				return incomplete(
					"Backslash must be followed by another character at end of string.", e);
			g_string_append_c(e->field[e->n - 1], *p);
		} else if (*p == ';') {
			if (!end_of_entry(e, false, take, data))
				return false;
		} else if (*p == ',' && e->n < FIELDS) {
			e->n++;
		} else {
			g_string_append_c(e->field[e->n - 1], *p == ',' ? '\n' : *p);
		}
	}
	/* What follows the last ';' may be nothing. */
	g_strstrip(e->field[0]->str);
	return (e->n == 1 && !*e->field[0]->str) || end_of_entry(e, true, take, data);
}

bool concise_parse(const char *text, bool (*take)(const struct concise_device *, void *), void *data)
{
	g_autofree char *trimmed = g_strchomp(g_strdup(text));
	struct entry e;
	bool ok;

	for (unsigned i = 0; i < FIELDS; i++)
		e.field[i] = g_string_new(NULL);
	clear_entry(&e);
	ok = parse_entries(&e, trimmed, take, data);
	for (unsigned i = 0; i < FIELDS; i++)
		g_string_free(e.field[i], TRUE);
	return ok;
}

void concise_append(GString *out, const char *field)
{
	for (const char *p = field; *p; p++) {
		if (strchr(",;\\", *p))
			g_string_append_c(out, '\\');
		g_string_append_c(out, *p);
	}
}
