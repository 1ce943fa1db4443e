/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dm-init's format (concise.h). */
#include <errno.h>
#include <malloc.h>
#include <string.h>

#include "concise.h"
#include "devices.h"
#include "state.h"

#define PREFIX "dm-mod.create="

/* --- reading ---------------------------------------------------------------------------- */

/*
 * The text up to an unquoted separator, which *end is set to (or the end of the text).  Quoted separators lose their
 * backslash; other quoting stays, for the table's own words.
 */
static char *field(const char *p, const char *separators, const char **end)
{
	size_t len = 0;
	GString *out;

	while (p[len] && !strchr(separators, p[len]))
		len += p[len] == '\\' && p[len + 1] ? 2 : 1;
	out = g_string_sized_new(len + 1); /* at once: growing would leave copies of a key behind */
	for (; *p && !strchr(separators, *p); p++) {
		if (*p == '\\' && p[1]) {
			if (p[1] != ',' && p[1] != ';')
				g_string_append_c(out, '\\');
			p++;
		}
		g_string_append_c(out, *p);
	}
	*end = p;
	return g_string_free(out, FALSE);
}

/* What may hold a key, be it in the wrong field, does not stay in memory; words cut it into several strings. */
static void wipe(char **text)
{
	if (*text)
		explicit_bzero(*text, malloc_usable_size(*text));
	g_free(*text);
}

#define SECRET __attribute__((cleanup(wipe))) char *

static int hide(int error, GError **err)
{
	if (error && err && *err)
		dm_hide_keys((*err)->message);
	return error;
}

/* A field that is one word: no blanks around, backslashes gone. */
static char *word(const char **p, GError **err, const char *what)
{
	SECRET raw = field(*p, ",;", p);
	g_autoptr(GPtrArray) words = dm_split_words(raw);

	if (**p != ',') {
		dm_fail(err, EINVAL, "a device is NAME,UUID,MINOR,FLAGS,TABLE; the text ends at its %s", what);
		return NULL;
	}
	(*p)++;
	if (words->len > 2) {
		dm_fail(err, EINVAL, "the %s '%s %s...' has blanks in it", what, (char *)words->pdata[0],
			(char *)words->pdata[1]);
		return NULL;
	}
	return g_strdup(words->len == 2 ? words->pdata[0] : "");
}

static int read_tables(struct dm_mapped *md, bool readonly, const char **p, const struct dm_opener *who,
		       struct dm_table **out, GError **err)
{
	struct dm_table *t = dm_table_new(md, readonly ? DM_MODE_READ : DM_MODE_RW, who);
	int error = 0;

	for (;;) {
		SECRET line = field(*p, ",;", p);

		error = dm_table_add_line(t, line, err);
		if (error || **p != ',')
			break;
		(*p)++;
	}
	if (!error)
		error = dm_table_complete(t, err);
	if (error) {
		dm_table_unref(t);
		t = NULL;
	}
	*out = t;
	return error;
}

static int read_device(const char **p, const struct dm_opener *who, GPtrArray *created, GError **err)
{
	SECRET name = word(p, err, "name");
	SECRET uuid = name ? word(p, err, "uuid") : NULL;
	SECRET minor_text = uuid ? word(p, err, "minor") : NULL;
	SECRET flags = minor_text ? word(p, err, "flags") : NULL;
	unsigned minor_nr = 0;
	struct dm_table *t = NULL;
	struct dm_mapped *md;
	int error = 0;

	if (!flags)
		return -EINVAL;
	if (strcmp(flags, "rw") && strcmp(flags, "ro"))
		return dm_fail(err, EINVAL, "%s: flags '%s' are neither ro nor rw", name, flags);
	if (*minor_text)
		error = dm_read_uint(minor_text, 0, DM_MINOR_MAX, name, "minor", &minor_nr, err);
	if (!error)
		error = dm_create(name, *minor_text ? (int)minor_nr : -1, &md, err);
	if (error)
		return error;
	g_ptr_array_add(created, md);
	error = dm_mapped_set_readonly(md, !strcmp(flags, "ro"), err);
	if (!error)
		error = read_tables(md, !strcmp(flags, "ro"), p, who, &t, err);
	if (!error && *uuid)
		error = dm_set_uuid(md, uuid, err);
	if (!error)
		error = dm_mapped_swap(md, t, NULL, NULL, err);
	else
		dm_table_unref(t);
	if (hide(error, err)) /* before it is copied */
		g_prefix_error(err, "%s: ", name);
	return error;
}

int dm_concise_create(const char *text, const struct dm_opener *who, GError **err)
{
	g_autoptr(GPtrArray) created = g_ptr_array_new();
	const char *p = text;
	int error = 0;

	while (g_ascii_isspace(*p))
		p++;
	if (g_str_has_prefix(p, PREFIX))
		p += strlen(PREFIX);
	dm_state_hold();
	while (!error) {
		while (g_ascii_isspace(*p) || *p == ';')
			p++;
		if (!*p)
			break;
		error = read_device(&p, who, created, err);
		if (!error && *p && *p != ';')
			error = dm_fail(err, EINVAL, "'%.16s' where a ';' or the end should be", p);
		hide(error, err);
	}
	/* A crash leaves all of it in the state or nothing. */
	if (error)
		dm_state_save_held(NULL, NULL);
	else
		error = dm_state_save_held(created, err);
	for (unsigned i = created->len; i-- > 0;) { /* the last may stand on the first */
		if (error)
			dm_remove(created->pdata[i], NULL);
		dm_mapped_unref(created->pdata[i]);
	}
	return error;
}

/* --- printing --------------------------------------------------------------------------------- */

static void append_quoted(GString *out, const char *s, const char *special)
{
	for (; *s; s++) {
		if (strchr(special, *s))
			g_string_append_c(out, '\\');
		g_string_append_c(out, *s);
	}
}

static void print_device(struct dm_mapped *md, struct dm_table *t, GString *out)
{
	g_autofree char *name = dm_mapped_dup_name(md), *uuid = dm_mapped_dup_uuid(md);
	g_autoptr(GString) table = g_string_new(NULL);

	if (g_str_has_prefix(name, PREFIX)) /* or it would be taken for the parameter's name */
		g_string_append_c(out, '\\');
	append_quoted(out, name, ",;\\ \t\n\r\v\f");
	g_string_append_c(out, ',');
	append_quoted(out, uuid, ",;\\ \t\n\r\v\f");
	g_string_append_printf(out, ",%u,%s,", md->minor, t->mode & DM_MODE_WRITE ? "rw" : "ro");
	dm_table_print(t, DM_STATUS_TABLE, table);
	if (table->len)
		g_string_truncate(table, table->len - 1);
	for (const char *p = table->str; *p; p++) {
		bool quoted = p > table->str && p[-1] == '\\';

		if (*p == '\n' && !quoted)
			g_string_append_c(out, ',');
		else if (*p == ',' || *p == ';')
			g_string_append_printf(out, "\\%c", *p);
		else
			g_string_append_c(out, *p);
	}
	g_string_append_c(out, '\n');
}

/* Whoever stands on others comes after them, so that the text creates them again. */
static gint by_depth(gconstpointer a, gconstpointer b)
{
	const struct dm_mapped *x = *(struct dm_mapped *const *)a, *y = *(struct dm_mapped *const *)b;

	if (x->depth != y->depth)
		return x->depth > y->depth ? 1 : -1;
	return (x->minor > y->minor) - (x->minor < y->minor);
}

void dm_concise_print(GString *out)
{
	g_autoptr(GPtrArray) list = dm_list_devices();

	dm_topology_lock();
	g_ptr_array_sort(list, by_depth);
	dm_topology_unlock();
	for (unsigned i = 0; i < list->len; i++) {
		struct dm_table *t = dm_mapped_live(list->pdata[i]);

		if (!t)
			continue;
		print_device(list->pdata[i], t, out);
		dm_table_unref(t);
	}
}
