/* SPDX-License-Identifier: GPL-2.0-or-later */
/* graph: the stack of devices for Graphviz, users above what they use. */
#include <string.h>

#include "dmfsctl.h"

/* As a part of a string of the dot language. */
static char *escaped(const char *text)
{
	GString *out = g_string_new(NULL);

	for (const char *p = text; *p; p++) {
		if (*p == '"' || *p == '\\')
			g_string_append_c(out, '\\');
		g_string_append_c(out, *p);
	}
	return g_string_free(out, FALSE);
}

/* The types in the live table, each once, in order. */
static char *target_types(const struct device *d)
{
	g_autofree char *path = tree_path(ctl_root(), d->name, "table"), *text = NULL;
	g_auto(GStrv) lines = NULL;
	g_autoptr(GPtrArray) types = g_ptr_array_new_with_free_func(g_free);

	if (tree_read(path, &text))
		return g_strdup("");
	lines = tree_lines(text);
	for (unsigned i = 0; lines[i]; i++) {
		g_auto(GStrv) words = tree_words(lines[i]);

		if (g_strv_length(words) >= 3 && !g_ptr_array_find_with_equal_func(types, words[2], g_str_equal, NULL))
			g_ptr_array_add(types, g_strdup(words[2]));
	}
	g_ptr_array_add(types, NULL);
	return g_strjoinv(", ", (char **)types->pdata);
}

static void print_device(struct device *d, GHashTable *leaves)
{
	g_autofree char *name = escaped(d->shown), *types = target_types(d);
	GPtrArray *deps = device_deps(d);

	printf("\t\"%s\" [shape=box, label=\"%s\\n%s\"%s];\n", name, name, *types ? types : "no table",
	       d->suspended ? ", style=dashed" : d->readonly ? ", style=filled, fillcolor=lightgrey" : "");
	for (unsigned i = 0; i < deps->len; i++) {
		struct dep *dep = deps->pdata[i];
		g_autofree char *to = escaped(dep->shown);

		if (!dep->mapped && g_hash_table_add(leaves, g_strdup(dep->text)))
			printf("\t\"%s\" [shape=%s];\n", to, dep->minor >= 0 ? "cylinder" : "note");
		printf("\t\"%s\" -> \"%s\";\n", name, to);
	}
}

bool cmd_graph(int argc, char **argv)
{
	g_autoptr(GPtrArray) list = NULL;
	g_autoptr(GHashTable) leaves = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);

	(void)argc;
	(void)argv;
	if (!ctl_root())
		return false;
	list = device_list(true);
	if (!list)
		return false;
	puts("digraph dmfs {");
	for (unsigned i = 0; i < list->len; i++)
		print_device(list->pdata[i], leaves);
	puts("}");
	return true;
}
