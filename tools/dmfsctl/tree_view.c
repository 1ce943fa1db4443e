/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * ls --tree: who stands on whom.
 *
 * A node is a device or, as a leaf, a block device or file that one uses.  In the normal view the
 * roots are devices that nobody uses; inverted, they are what uses nothing.
 */
#include <langinfo.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "dmfsctl.h"
#include "show.h"

/* What stands left of a name. */
struct symbols {
	const char *blank, *down, *child, *last;    /* one line a node */
	const char *single, *first, *more, *more_last; /* compact: the way on from a node to the right, and below that */
};

static const struct symbols ascii = {"   ", "|  ", "|-", "`-", "---", "-+-", "|-", "`-"};
static const struct symbols utf = {"   ", "│  ", "├─", "└─", "───", "─┬─", "├─", "└─"};
static const struct symbols vt100 = {"   ", "\033(0\017x\033(B  ", "\033(0\017tq\033(B", "\033(0\017mq\033(B", "\033(0\017qqq\033(B",
				     "\033(0\017qwq\033(B", "\033(0\017tq\033(B", "\033(0\017mq\033(B"};

static struct {
	const struct symbols *symbols;
	bool compact, inverted, notrunc, nodevice, blkdevname, active, open, rw, uuid;
} view;

struct node {
	struct device *device; /* NULL: a leaf */
	const struct dep *leaf;
	GPtrArray *down, *up; /* of struct node: what it uses, who uses it */
};

/* --- options ------------------------------------------------------------------------------ */

static bool take_option(const char *word)
{
	static const struct {
		const char *name;
		bool *flag;
	} flags[] = {
		{"compact", &view.compact},   {"inverted", &view.inverted},     {"notrunc", &view.notrunc},
		{"nodevice", &view.nodevice}, {"blkdevname", &view.blkdevname}, {"active", &view.active},
		{"open", &view.open},	      {"rw", &view.rw},			{"uuid", &view.uuid},
	};

	for (unsigned i = 0; i < G_N_ELEMENTS(flags); i++)
		if (!strcmp(flags[i].name, word)) {
			*flags[i].flag = true;
			return true;
		}
	if (!strcmp(word, "device"))
		view.nodevice = false;
	else if (!strcmp(word, "ascii"))
		view.symbols = &ascii;
	else if (!strcmp(word, "utf"))
		view.symbols = &utf;
	else if (!strcmp(word, "vt100"))
		view.symbols = &vt100;
	else
		return false;
	return true;
}

bool check_tree_options(void)
{
	g_auto(GStrv) words = g_strsplit(opt.options ? opt.options : "", ",", -1);

	view.symbols = strcmp(nl_langinfo(CODESET), "UTF-8") ? &ascii : &utf;
	for (unsigned i = 0; words[i]; i++)
		if (!take_option(words[i]) && opt.options) {
			g_autofree char *rest = g_strjoinv(",", words + i);

			return say("Tree options not recognised: %s.", rest);
		}
	/* What is shown beside a name leaves no room for another beside it. */
	if (view.blkdevname || view.active || view.open || view.rw || view.uuid)
		view.compact = false;
	return true;
}

/* --- the nodes ---------------------------------------------------------------------------------- */

struct graph {
	GPtrArray *devices; /* of struct device */
	GHashTable *by_name;
	GPtrArray *nodes; /* in the order in which a walk from the first device finds them */
	GHashTable *node_of; /* a device's name or a leaf's text -> struct node */
};

static void free_node(gpointer data)
{
	struct node *n = data;

	g_ptr_array_free(n->down, TRUE);
	g_ptr_array_free(n->up, TRUE);
	g_free(n);
}

static struct node *new_node(struct graph *g, const char *key)
{
	struct node *n = g_new0(struct node, 1);

	n->down = g_ptr_array_new();
	n->up = g_ptr_array_new();
	g_ptr_array_add(g->nodes, n);
	g_hash_table_insert(g->node_of, (gpointer)key, n);
	return n;
}

static void link_nodes(struct node *user, struct node *used)
{
	g_ptr_array_add(user->down, used);
	g_ptr_array_add(used->up, user);
}

/* Stacks are at most 256 deep. */
static struct node *add_device(struct graph *g, struct device *d)
{
	struct node *n = g_hash_table_lookup(g->node_of, d->name);
	GPtrArray *deps;

	if (n)
		return n;
	n = new_node(g, d->name);
	n->device = d;
	deps = device_deps(d);
	for (unsigned i = 0; i < deps->len; i++) {
		struct dep *dep = deps->pdata[i];
		struct device *used = dep->mapped ? g_hash_table_lookup(g->by_name, dep->text) : NULL;
		struct node *child = used ? add_device(g, used) : g_hash_table_lookup(g->node_of, dep->text);

		if (!child) {
			child = new_node(g, dep->text);
			child->leaf = dep;
		}
		link_nodes(n, child);
	}
	return n;
}

/* --- labels ---------------------------------------------------------------------------------------- */

static void add_attributes(const struct device *d, GString *out)
{
	g_autoptr(GString) list = g_string_new(NULL);

	if (!view.active && !view.open && !view.rw && !view.uuid)
		return;
	if (view.active)
		g_string_append_printf(list, ", %s", d->suspended ? "SUSPENDED" : "ACTIVE");
	if (view.rw)
		g_string_append_printf(list, ", %s", d->readonly ? "RO" : "RW");
	if (view.open)
		g_string_append_printf(list, ", %u", d->open);
	if (view.uuid)
		g_string_append_printf(list, ", %s", d->uuid);
	g_string_append_printf(out, " [%s]", list->str + 2);
}

static void leaf_label(const struct dep *leaf, GString *out)
{
	g_autofree char *name = block_name(leaf->major, leaf->minor);

	if (view.blkdevname)
		g_string_append_printf(out, " <%s>", name ? name : leaf->shown);
	if (view.nodevice)
		return;
	if (leaf->minor >= 0)
		g_string_append_printf(out, " (%d:%d)", leaf->major, leaf->minor);
	else if (!view.blkdevname)
		g_string_append_printf(out, " (%s)", leaf->shown);
}

/* Empty: the node is not shown. */
static char *label(const struct node *n)
{
	GString *out = g_string_new(NULL);

	if (n->leaf) {
		leaf_label(n->leaf, out);
		return g_string_free(out, FALSE);
	}
	g_string_append(out, n->device->shown);
	if (view.blkdevname)
		g_string_append_printf(out, " <%s>", n->device->shown);
	if (!view.nodevice)
		g_string_append_printf(out, " (0:%u)", n->device->minor);
	add_attributes(n->device, out);
	return g_string_free(out, FALSE);
}

/* --- printing ------------------------------------------------------------------------------------------ */

static unsigned terminal_width(void)
{
	struct winsize size;

	return isatty(STDOUT_FILENO) && !ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) && size.ws_col ? size.ws_col : 80;
}

/* How many columns a text takes: no escape sequences, no second and later bytes of UTF-8. */
static unsigned columns_of(const char *text)
{
	unsigned n = 0;

	for (; *text; text++)
		if (*text == '\033')
			text += 2;
		else
			n += ((unsigned char)*text & 0xc0) != 0x80 && *text != '\017';
	return n;
}

/* A line that does not leave the last column free is cut there, and "..." added: as dmsetup, so beyond the width. */
static void print_line(const char *line)
{
	unsigned width = terminal_width(), n = 0;

	if (view.notrunc || columns_of(line) < width) {
		puts(line);
		return;
	}
	for (; *line && n < width - 1; line++) {
		if (*line == '\033') {
			printf("%.3s", line);
			line += 2;
			continue;
		}
		putchar(*line);
		n += ((unsigned char)line[1] & 0xc0) != 0x80 && *line != '\017';
	}
	puts("...");
}

static GPtrArray *shown_children(const struct node *n)
{
	GPtrArray *all = view.inverted ? n->up : n->down, *shown = g_ptr_array_new();

	for (unsigned i = 0; i < all->len; i++) {
		g_autofree char *text = label(all->pdata[i]);

		if (*text)
			g_ptr_array_add(shown, all->pdata[i]);
	}
	return shown;
}

/* prefix: what stands left of this node's children. */
static void print_below(const struct node *n, GString *prefix)
{
	g_autoptr(GPtrArray) children = shown_children(n);
	gsize len = prefix->len;

	for (unsigned i = 0; i < children->len; i++) {
		bool last = i + 1 == children->len;
		g_autofree char *text = label(children->pdata[i]);
		g_autofree char *line =
			g_strconcat(prefix->str, last ? view.symbols->last : view.symbols->child, text, NULL);

		print_line(line);
		g_string_append(prefix, last ? view.symbols->blank : view.symbols->down);
		print_below(children->pdata[i], prefix);
		g_string_truncate(prefix, len);
	}
}

static void append_spaces(GString *s, unsigned n)
{
	g_string_append_printf(s, "%*s", (int)n, "");
}

/* line: what the line begins with, this node's label included; below: what stands left of the lines under it. */
static void print_compact(const struct node *n, GString *line, GString *below)
{
	g_autoptr(GPtrArray) children = shown_children(n);
	gsize len = below->len;
	unsigned pad = columns_of(line->str) - columns_of(below->str) + 1;

	if (!children->len)
		print_line(line->str);
	for (unsigned i = 0; i < children->len; i++) {
		bool last = i + 1 == children->len, single = children->len == 1;
		g_autofree char *text = label(children->pdata[i]);
		g_autoptr(GString) own = g_string_new(i ? below->str : line->str);

		if (!i)
			g_string_append(own, single ? view.symbols->single : view.symbols->first);
		else
			append_spaces(own, pad), g_string_append(own, last ? view.symbols->more_last : view.symbols->more);
		g_string_append(own, text);
		append_spaces(below, pad);
		g_string_append(below, last ? "  " : view.symbols->down);
		if (!last)
			g_string_truncate(below, below->len - 1);
		print_compact(children->pdata[i], own, below);
		g_string_truncate(below, len);
	}
}

static void print_root(const struct node *n)
{
	g_autofree char *text = label(n);
	g_autoptr(GString) prefix = g_string_new(NULL);

	if (view.compact) {
		g_autoptr(GString) line = g_string_new(text);

		print_compact(n, line, prefix);
		return;
	}
	if (*text)
		print_line(text);
	g_string_append_c(prefix, ' ');
	print_below(n, prefix);
}

bool cmd_tree(void)
{
	struct graph g = {0};

	if (!ctl_root())
		return false;
	g.devices = device_list(true);
	if (!g.devices)
		return false;
	if (!g.devices->len)
		puts("No devices found");
	g.by_name = g_hash_table_new(g_str_hash, g_str_equal);
	g.node_of = g_hash_table_new(g_str_hash, g_str_equal);
	g.nodes = g_ptr_array_new_with_free_func(free_node);
	for (unsigned i = 0; i < g.devices->len; i++)
		g_hash_table_insert(g.by_name, ((struct device *)g.devices->pdata[i])->name, g.devices->pdata[i]);
	for (unsigned i = 0; i < g.devices->len; i++)
		add_device(&g, g.devices->pdata[i]);
	for (unsigned i = 0; i < g.nodes->len; i++) {
		struct node *n = g.nodes->pdata[i];

		if (!(view.inverted ? n->down : n->up)->len)
			print_root(n);
	}
	g_ptr_array_free(g.nodes, TRUE);
	g_hash_table_destroy(g.node_of);
	g_hash_table_destroy(g.by_name);
	g_ptr_array_free(g.devices, TRUE);
	return true;
}
