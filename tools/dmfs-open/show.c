/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What was found: a tree as lsblk -f prints it, JSON, and the script of --dry-run. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "../common/tree.h"
#include "open.h"

/* --- the tree ----------------------------------------------------------------------------------------- */

enum { NAME, TYPE, SIZE, FSTYPE, LABEL, UUID, IMAGE, NR_COLUMNS };

static const char *const titles[NR_COLUMNS] = {"NAME", "TYPE", "SIZE", "FSTYPE", "LABEL", "UUID", "IMAGE"};

struct row {
	char *cells[NR_COLUMNS];
};

/* 1.5G, as lsblk has it. */
static char *size_text(uint64_t sectors)
{
	double v = (double)sectors * 512;
	unsigned unit = 0;

	for (; v >= 1024 && unit < 6; unit++)
		v /= 1024;
	if (v < 10 && v != (double)(uint64_t)v)
		return g_strdup_printf("%.1f%c", v, "BKMGTPE"[unit]);
	return g_strdup_printf("%.0f%c", v, "BKMGTPE"[unit]);
}

/* What disks have in their labels must not steer a terminal. */
static char *cell(const char *text)
{
	g_autofree char *valid = g_utf8_make_valid(text ? text : "", -1);
	g_autoptr(GString) out = g_string_new(NULL);

	for (const char *p = valid; *p; p = g_utf8_next_char(p)) {
		gunichar c = g_utf8_get_char(p);

		if (g_unichar_isprint(c))
			g_string_append_unichar(out, c);
		else
			g_string_append_printf(out, "\\x%02x", c);
	}
	return g_strdup(out->str);
}

static const char *shown_label(const struct node *n)
{
	return n->label ? n->label : n->part_label;
}

static char *image_cell(const struct plan *p, const struct node *n)
{
	g_autofree char *path = NULL;

	if (!n->open)
		return g_strdup(n->kind == NODE_CRYPT ? "(locked)" : "(not opened)");
	path = node_image(p, n);
	return n->mounted ? g_strdup_printf("%s, mounted on %s", path, n->mounted) : g_steal_pointer(&path);
}

static void add_row(struct plan *p, struct node *n, const char *indent, GArray *rows)
{
	g_autofree char *image = image_cell(p, n), *name = g_strconcat(indent, n->name, NULL);
	struct row row = {0};

	row.cells[NAME] = cell(name);
	row.cells[TYPE] = cell(n->type);
	row.cells[SIZE] = size_text(n->sectors);
	row.cells[FSTYPE] = cell(n->fstype);
	row.cells[LABEL] = cell(shown_label(n));
	row.cells[UUID] = cell(n->uuid);
	row.cells[IMAGE] = cell(image);
	g_array_append_val(rows, row);
}

/* What stands on a node that was shown is not shown again, but for its own line. */
static void add_tree(struct plan *p, struct node *n, const char *indent, const char *below, GArray *rows)
{
	bool first = !n->shown;

	add_row(p, n, indent, rows);
	n->shown = true;
	for (unsigned i = 0; first && i < n->children->len; i++) {
		bool last = i + 1 == n->children->len;
		g_autofree char *mine = g_strconcat(below, last ? "└─" : "├─", NULL);
		g_autofree char *next = g_strconcat(below, last ? "  " : "│ ", NULL);

		add_tree(p, n->children->pdata[i], mine, next, rows);
	}
}

static void print_rows(GArray *rows)
{
	long widths[NR_COLUMNS];

	for (unsigned c = 0; c < NR_COLUMNS; c++) {
		widths[c] = (long)strlen(titles[c]);
		for (unsigned i = 0; i < rows->len; i++)
			widths[c] = MAX(widths[c], g_utf8_strlen(g_array_index(rows, struct row, i).cells[c], -1));
	}
	for (int i = -1; i < (int)rows->len; i++) {
		for (unsigned c = 0; c < NR_COLUMNS; c++) {
			const char *text = i < 0 ? titles[c] : g_array_index(rows, struct row, i).cells[c];

			if (c == NR_COLUMNS - 1)
				printf("%s\n", text);
			else
				printf("%s%*s ", text, (int)(widths[c] - g_utf8_strlen(text, -1)), "");
		}
	}
}

void show_tree(struct plan *p)
{
	g_autoptr(GArray) rows = g_array_new(FALSE, TRUE, sizeof(struct row));

	for (unsigned i = 0; i < p->nodes->len; i++) {
		struct node *n = p->nodes->pdata[i];

		if (!n->parents->len)
			add_tree(p, n, "", "", rows);
	}
	print_rows(rows);
	for (unsigned i = 0; i < rows->len; i++)
		for (unsigned c = 0; c < NR_COLUMNS; c++)
			g_free(g_array_index(rows, struct row, i).cells[c]);
}

/* --- JSON ------------------------------------------------------------------------------------------------ */

static void json_string(GString *out, const char *s)
{
	g_autofree char *valid = s ? g_utf8_make_valid(s, -1) : NULL;

	if (!s) {
		g_string_append(out, "null");
		return;
	}
	g_string_append_c(out, '"');
	for (const char *p = valid; *p; p++) {
		if (*p == '"' || *p == '\\')
			g_string_append_c(out, '\\');
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			g_string_append_printf(out, "\\u%04x", *p);
		else
			g_string_append_c(out, *p);
	}
	g_string_append_c(out, '"');
}

static void json_member(GString *out, const char *key, const char *value)
{
	g_string_append_printf(out, ",\"%s\":", key);
	json_string(out, value);
}

static void json_names(GString *out, const char *key, const GPtrArray *nodes)
{
	g_string_append_printf(out, ",\"%s\":[", key);
	for (unsigned i = 0; i < nodes->len; i++) {
		if (i)
			g_string_append_c(out, ',');
		json_string(out, ((struct node *)nodes->pdata[i])->name);
	}
	g_string_append_c(out, ']');
}

static void json_node(struct plan *p, struct node *n, GString *out)
{
	g_autofree char *image = n->open && !p->o->dry_run ? node_image(p, n) : NULL;

	g_string_append(out, "{\"name\":");
	json_string(out, n->name);
	json_member(out, "type", n->type);
	g_string_append_printf(out, ",\"size\":%" PRIu64 ",\"open\":%s,\"ro\":%s", n->sectors * 512, n->open ? "true" : "false",
			       n->readonly ? "true" : "false");
	json_member(out, "fstype", n->fstype);
	json_member(out, "label", n->label);
	json_member(out, "uuid", n->uuid);
	json_member(out, "parttype", n->part_type);
	json_member(out, "partuuid", n->part_uuid);
	json_member(out, "partlabel", n->part_label);
	json_member(out, "file", n->path);
	json_member(out, "image", image);
	json_member(out, "mountpoint", n->mounted);
	json_names(out, "parents", n->parents);
	json_names(out, "children", n->children);
	g_string_append(out, ",\"notes\":[");
	for (unsigned i = 0; i < n->notes->len; i++) {
		if (i)
			g_string_append_c(out, ',');
		json_string(out, n->notes->pdata[i]);
	}
	g_string_append(out, "]}");
}

void show_json(struct plan *p)
{
	g_autoptr(GString) out = g_string_new("{\"devices\":[\n");

	for (unsigned i = 0; i < p->nodes->len; i++) {
		json_node(p, p->nodes->pdata[i], out);
		g_string_append(out, i + 1 < p->nodes->len ? ",\n" : "\n");
	}
	g_string_append(out, "]}\n");
	fputs(out->str, stdout);
}

/* --- the script of --dry-run ------------------------------------------------------------------------------- */

static void script_node(const struct node *n)
{
	const char *create[] = {"dmfsctl", "create", n->name, "-u", n->dm_uuid, n->readonly ? "-r" : NULL, NULL};
	g_autofree char *words = NULL;

	if (n->command) {
		printf("%s\n", n->command);
		return;
	}
	if (!n->open)
		return;
	words = run_shell_text((char *const *)create);
	printf("%s <<'END'\n%sEND\n", words, n->table);
}

void show_script(struct plan *p)
{
	printf("#!/bin/sh\n# what dmfs-open would make, in the dmfs that $DMFS_MOUNT names\nset -e\n");
	for (unsigned i = 0; i < p->nodes->len; i++)
		script_node(p->nodes->pdata[i]);
}
