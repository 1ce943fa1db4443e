/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What was found: a graph of nodes, each on others, and its device in the mount.
 *
 * The uuid of each device says who made it, in which run and as the how-manieth: OPEN-RUN-NUMBER-ID.  That is all that
 * --close needs to know.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "../common/client.h"
#include "../common/tree.h"
#include "open.h"

#define MAX_NAME 127u
#define MAX_UUID 128u

struct plan *plan_new(const struct options *o, char *mount)
{
	struct plan *p = g_new0(struct plan, 1);

	p->o = o;
	p->mount = mount;
	p->nodes = g_ptr_array_new();
	p->names = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	p->seen = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	g_snprintf(p->run, sizeof(p->run), "%08x", g_random_int());
	return p;
}

static void node_free(struct node *n)
{
	g_ptr_array_unref(n->parents);
	g_ptr_array_unref(n->children);
	g_ptr_array_unref(n->notes);
	if (n->md)
		md_clear(n->md);
	if (n->pv)
		lvm_pv_clear(n->pv);
	g_free(n->md);
	g_free(n->pv);
	g_free(n->verity);
	g_free(n->name);
	g_free(n->type);
	g_free(n->path);
	g_free(n->fstype);
	g_free(n->label);
	g_free(n->uuid);
	g_free(n->part_type);
	g_free(n->part_uuid);
	g_free(n->part_label);
	g_free(n->mounted);
	g_free(n->table);
	g_free(n->dm_uuid);
	g_free(n->command);
	g_free(n);
}

void plan_free(struct plan *p)
{
	for (unsigned i = 0; i < p->nodes->len; i++)
		node_free(p->nodes->pdata[i]);
	g_ptr_array_unref(p->nodes);
	g_hash_table_unref(p->names);
	g_hash_table_unref(p->seen);
	g_free(p->mount);
	g_free(p);
}

/* Without what a terminal, a shell or a path would take for something else; cut so that a number fits behind it. */
static char *clean_name(const char *wanted)
{
	g_autofree char *valid = g_utf8_make_valid(wanted, -1);
	g_autoptr(GString) name = g_string_new(NULL);

	for (const char *p = valid; *p && name->len < MAX_NAME - 24; p = g_utf8_next_char(p)) {
		gunichar c = g_utf8_get_char(p);

		if (c == '/' || !g_unichar_isprint(c) || g_unichar_isspace(c) || (!name->len && c == '.'))
			g_string_append_c(name, '_');
		else
			g_string_append_unichar(name, c);
	}
	return g_strdup(name->len ? name->str : "_");
}

/* A device's, or one of the root's own files. */
static bool is_taken(const struct plan *p, const char *name)
{
	g_autofree char *path = tree_path(p->mount, name, NULL);

	return g_hash_table_contains(p->names, name) || !access(path, F_OK);
}

char *plan_name(struct plan *p, const char *wanted)
{
	g_autofree char *clean = clean_name(wanted);
	char *name = g_strdup(clean);

	for (unsigned i = 2; is_taken(p, name); i++) {
		g_free(name);
		name = g_strdup_printf("%s_%u", clean, i);
	}
	g_hash_table_add(p->names, g_strdup(name));
	return name;
}

struct node *node_new(struct plan *p, enum node_kind kind, const char *type, const char *name)
{
	struct node *n = g_new0(struct node, 1);

	n->kind = kind;
	n->type = g_strdup(type);
	n->name = plan_name(p, name);
	n->parents = g_ptr_array_new();
	n->children = g_ptr_array_new();
	n->notes = g_ptr_array_new_with_free_func(g_free);
	n->seq = p->next_seq++;
	g_ptr_array_add(p->nodes, n);
	return n;
}

void node_stand_on(struct node *n, struct node *parent)
{
	if (n->parents->len && n->parents->pdata[n->parents->len - 1] == parent)
		return;
	if (g_ptr_array_find(n->parents, parent, NULL))
		return;
	n->depth = MAX(n->depth, parent->depth + 1);
	g_ptr_array_add(n->parents, parent);
	g_ptr_array_add(parent->children, n);
}

void node_note(struct plan *p, struct node *n, const char *fmt, ...)
{
	g_autofree char *text = NULL, *line = NULL;
	va_list ap;

	va_start(ap, fmt);
	text = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	line = g_strdup_printf("%s: %s", n->path ? n->path : n->name, text);
	say_error("dmfs-open", line);
	g_ptr_array_add(n->notes, g_steal_pointer(&text));
}

char *node_image(const struct plan *p, const struct node *n)
{
	return tree_path(p->mount, n->name, "image");
}

struct node *node_find(struct plan *p, const char *name)
{
	for (unsigned i = p->nodes->len; i-- > 0;) {
		struct node *n = p->nodes->pdata[i];

		if (!strcmp(n->name, name))
			return n;
	}
	return NULL;
}

bool node_on_readonly(const struct node *n)
{
	for (unsigned i = 0; i < n->parents->len; i++)
		if (((struct node *)n->parents->pdata[i])->readonly)
			return true;
	return false;
}

int node_try(struct plan *p, struct node *n, const char *id, bool readonly, GError **err)
{
	g_autofree char *uuid = g_strdup_printf("OPEN-%s-%u-%s", p->run, n->seq, id);
	int r;

	if (strlen(uuid) > MAX_UUID)
		uuid[MAX_UUID] = 0;
	readonly |= p->o->write && node_on_readonly(n);
	g_free(n->dm_uuid);
	n->readonly = readonly;
	n->dm_uuid = g_steal_pointer(&uuid);
	r = client_make(p->mount, n->name, n->dm_uuid, readonly, n->table, strlen(n->table), err);
	n->open = !r;
	return r;
}

int node_make(struct plan *p, struct node *n, const char *id, bool readonly)
{
	g_autoptr(GError) err = NULL;
	int r = node_try(p, n, id, readonly, &err);

	if (!r)
		return 0;
	node_note(p, n, "not opened: %s", err->message);
	p->failed = true;
	return r;
}
