/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * md's arrays, of the members that were found.
 *
 * With -w the superblocks say that an array is being written to before its device is there (md_state.c), and --close
 * says that it is done (close.c), for which the device's uuid tells an array that was clean from one that is
 * synchronised.
 */
#include <inttypes.h>
#include <string.h>

#include "../common/client.h"
#include "../common/tree.h"
#include "open.h"

static struct node *best_of(struct plan *p, const char *id)
{
	struct node *best = NULL;

	for (unsigned i = 0; i < p->nodes->len; i++) {
		struct node *n = p->nodes->pdata[i];

		if (n->md && !n->taken && !strcmp(n->md->id, id) && n->md->role >= 0 &&
		    (!best || n->md->events > best->md->events))
			best = n;
	}
	return best;
}

/* The members by role, which are taken if take is set; their number. */
static unsigned members_of(struct plan *p, const struct md_super *best, struct node **by_role, bool take)
{
	unsigned found = 0;

	for (unsigned i = 0; i < p->nodes->len; i++) {
		struct node *n = p->nodes->pdata[i];

		if (!n->md || n->taken || strcmp(n->md->id, best->id))
			continue;
		if (take)
			n->taken = true;
		if (!md_usable(best, n->md) || n->md->level != best->level) {
			if (take)
				node_note(p, n,
					  n->md->role < 0 ? "a spare of its array"
							  : "left out of its array: it is older, or was not rebuilt");
		} else if (by_role[n->md->role]) {
			if (take)
				node_note(p, n, "left out: %s says it is the same device of the array",
					  by_role[n->md->role]->name);
		} else {
			by_role[n->md->role] = n;
			found++;
		}
	}
	return found;
}

/* "host:0" is 0. */
static char *array_name(const struct md_super *sb)
{
	const char *colon = sb->name ? strrchr(sb->name, ':') : NULL, *name = colon ? colon + 1 : sb->name;

	return name && *name ? g_strconcat("md-", name, NULL) : g_strdup_printf("md-%.8s", sb->id);
}

/* --- whether it may be written to ------------------------------------------------------------------------ */

/* The device of the mount in which the array is written to already, which its superblocks do not tell from a crash. */
static char *writer_of(const struct plan *p, const char *id)
{
	int error = 0;
	g_autoptr(GPtrArray) names = tree_devices(p->mount, &error);

	for (unsigned i = 0; names && i < names->len; i++) {
		g_autofree char *uuid = client_read(p->mount, names->pdata[i], "uuid");

		if (uuid && close_is_ours(g_strchomp(uuid), NULL) && md_close_is(close_id(uuid)) &&
		    g_str_has_suffix(uuid, id))
			return g_strdup(names->pdata[i]);
	}
	return NULL;
}

/* Why an array that -w is for is opened for reading only; NULL: it is not, and *use says how. */
static char *why_not_written(const struct plan *p, const struct md_super *sb, struct node *const *by_role,
			     enum md_use *use)
{
	g_autofree char *writer = writer_of(p, sb->id);
	bool synced = sb->resync == UINT64_MAX;
	unsigned present = 0;

	if (p->o->dry_run)
		return g_strdup("a script does not say in md's superblocks that the array is written to");
	if (writer)
		return g_strdup_printf("it is written to as %s", writer);
	for (unsigned i = 0; i < sb->disks; i++) {
		const struct node *n = by_role[i];

		if (!n)
			continue;
		present++;
		if (n->md->only_md)
			return g_strdup_printf("%s: %s, which only md can do with", n->name, n->md->only_md);
		if (n->readonly)
			return g_strdup_printf("%s is", n->name);
	}
	if (!synced && present < sb->disks && !(sb->level == 1 && present == 1))
		return g_strdup("it is neither synchronised nor whole: some of what was being written is lost");
	*use = synced ? MD_WRITE : MD_SYNC;
	return NULL;
}

/* The devices of an array whose superblocks count events: its members and spares. */
static GPtrArray *counted(struct plan *p, const struct md_super *sb, struct node *const *by_role)
{
	GPtrArray *disks = g_ptr_array_new_with_free_func(md_disk_free);
	g_autoptr(GError) err = NULL;

	for (unsigned i = 0; i < p->nodes->len; i++) {
		struct node *n = p->nodes->pdata[i];
		bool used = n->md && n->md->role >= 0 && (unsigned)n->md->role < sb->disks && by_role[n->md->role] == n;
		struct md_disk *d;

		if (!used && (!n->md || strcmp(n->md->id, sb->id) || !n->md->spare || n->readonly ||
			      n->md->events + 1 < sb->events))
			continue;
		d = g_new0(struct md_disk, 1);
		d->path = node_image(p, n);
		d->as = used ? MD_USED : MD_SPARE;
		g_ptr_array_add(disks, d);
		if (md_disk_look(d, sb->id, &err))
			node_note(p, n, "%s", err->message);
		if (err) {
			g_ptr_array_unref(disks);
			return NULL;
		}
	}
	return disks;
}

/* Its superblocks say so from now on; or it is opened for reading. */
static GPtrArray *begin(struct plan *p, struct node *n, const struct md_super *sb, struct node *const *by_role,
			enum md_use *use)
{
	g_autofree char *why = why_not_written(p, sb, by_role, use);
	g_autoptr(GPtrArray) disks = why ? NULL : counted(p, sb, by_role);
	g_autoptr(GError) err = NULL;

	if (disks && !md_state_begin(disks, &err))
		return g_steal_pointer(&disks);
	node_note(p, n, "opened for reading only: %s",
		  why	? why
		  : err ? err->message
			: "its superblocks cannot be read");
	*use = MD_READ;
	return NULL;
}

static void take_back(struct plan *p, struct node *n, const struct md_super *sb, GPtrArray *disks, bool clean)
{
	g_autoptr(GError) err = NULL;

	for (unsigned i = 0; i < disks->len && !err; i++)
		md_disk_look(disks->pdata[i], sb->id, &err);
	if (!err && clean)
		md_state_end(disks, MD_CLEAN, &err);
	if (err)
		node_note(p, n, "it stays marked as written to: %s", err->message);
}

/* --- its devices --------------------------------------------------------------------------------------------- */

/* The data of a member as a device, zeroes behind it. */
static struct node *new_part(struct plan *p, struct node *member, const struct node *array,
			     const struct md_shape *shape)
{
	g_autofree char *name = g_strdup_printf("%s-dev%d", array->name, member->md->role),
			*word = tree_quote(member->name);
	struct node *n = node_new(p, NODE_MD, "md-dev", name);
	g_autoptr(GString) table = g_string_new(NULL);

	node_stand_on(n, member);
	n->sectors = shape->part + shape->zeroes;
	n->probed = true;
	g_string_append_printf(table, "0 %" PRIu64 " linear %s %" PRIu64 "\n", shape->part, word,
			       member->md->data_offset);
	if (shape->zeroes)
		g_string_append_printf(table, "%" PRIu64 " %" PRIu64 " zero\n", shape->part, shape->zeroes);
	n->table = g_strdup(table->str);
	return n;
}

/* The members as the table has them; false: one of them could not be made. */
static bool make_members(struct plan *p, struct node *array, const struct md_super *sb, struct node *const *by_role,
			 const struct md_shape *shape, bool readonly, struct md_member *members)
{
	bool good = true;

	for (unsigned i = 0; i < sb->disks; i++) {
		struct node *on = by_role[i];

		if (on && shape->part) {
			on = new_part(p, on, array, shape);
			if (node_make(p, on, "MDDEV", readonly)) {
				good = false;
				on = NULL;
			}
		}
		members[i] = (struct md_member){on ? by_role[i]->md : NULL, on ? on->name : NULL};
		if (on)
			node_stand_on(array, on);
	}
	return good;
}

/* The rows of the array, which end behind it: it is a part of them. */
static struct node *new_rows(struct plan *p, struct node *array, const char *table, uint64_t sectors)
{
	g_autofree char *name = g_strconcat(array->name, "-rows", NULL);
	struct node *n = node_new(p, NODE_MD, array->type, name);

	for (unsigned i = 0; i < array->parents->len; i++)
		node_stand_on(n, array->parents->pdata[i]);
	n->probed = true;
	n->sectors = sectors;
	n->table = g_strdup(table);
	return n;
}

/* Its members are there: the table, and the device. */
static int make_array(struct plan *p, struct node *n, const struct md_super *sb, const struct md_member *members,
		      const struct md_shape *shape, enum md_use use)
{
	static const char *const ids[] = {[MD_READ] = "MD", [MD_WRITE] = MD_ID_WRITE, [MD_SYNC] = MD_ID_SYNC};
	g_autofree char *id = g_strdup_printf("%s-%s", ids[use], sb->id), *word = NULL;
	g_autoptr(GPtrArray) notes = g_ptr_array_new_with_free_func(g_free);
	g_autoptr(GString) table = g_string_new(NULL);
	bool readonly = shape->part ? use == MD_READ : !p->o->write;
	g_autoptr(GError) err = NULL;
	struct node *rows;
	int r;

	r = md_table(sb, members, use, table, &n->sectors, notes, &err);
	for (unsigned i = 0; !r && i < notes->len; i++)
		node_note(p, n, "%s", (char *)notes->pdata[i]);
	if (r) {
		node_note(p, n, "not opened: %s", err->message);
		p->failed = true;
		return r;
	}
	if (!shape->sectors || shape->sectors >= n->sectors) {
		n->table = g_strdup(table->str);
		return node_make(p, n, id, readonly);
	}
	rows = new_rows(p, n, table->str, n->sectors);
	r = node_make(p, rows, id, readonly);
	if (r)
		return r;
	word = tree_quote(rows->name);
	node_stand_on(n, rows);
	n->sectors = shape->sectors;
	n->table = g_strdup_printf("0 %" PRIu64 " linear %s 0\n", n->sectors, word);
	return node_make(p, n, "MD", readonly);
}

/* What the table will have to say, before anything is done. */
static int check_array(struct plan *p, struct node *n, const struct md_super *sb, struct node *const *by_role)
{
	g_autofree struct md_member *members = g_new0(struct md_member, sb->disks);
	g_autoptr(GPtrArray) notes = g_ptr_array_new_with_free_func(g_free);
	g_autoptr(GString) table = g_string_new(NULL);
	g_autoptr(GError) err = NULL;
	int r;

	for (unsigned i = 0; i < sb->disks; i++)
		if (by_role[i])
			members[i] = (struct md_member){by_role[i]->md, by_role[i]->name};
	r = md_table(sb, members, MD_READ, table, &n->sectors, notes, &err);
	if (!r)
		return 0;
	node_note(p, n, "not opened: %s", err->message);
	p->failed = true;
	return r;
}

static void open_array(struct plan *p, struct node *best)
{
	const struct md_super *sb = best->md;
	g_autofree struct node **by_role = g_new0(struct node *, sb->disks);
	g_autofree struct md_member *members = g_new0(struct md_member, sb->disks);
	g_autofree char *wanted = array_name(sb);
	struct node *n = node_new(p, NODE_MD, md_level_name(sb->level), wanted);
	g_autoptr(GPtrArray) disks = NULL;
	enum md_use use = MD_READ;
	struct md_shape shape;

	members_of(p, sb, by_role, true);
	for (unsigned i = 0; i < sb->disks; i++)
		if (by_role[i] && sb->level <= 0)
			node_stand_on(n, by_role[i]);
	if (check_array(p, n, sb, by_role))
		return;
	md_shape(sb, &shape);
	if (shape.part && p->o->write)
		disks = begin(p, n, sb, by_role, &use);
	if ((!make_members(p, n, sb, by_role, &shape, use == MD_READ, members) && use != MD_READ) ||
	    make_array(p, n, sb, members, &shape, use)) {
		n->open = false;
		if (disks)
			take_back(p, n, sb, disks, use == MD_WRITE);
	}
}

void plan_arrays(struct plan *p, bool degraded, bool *progress)
{
	for (unsigned i = 0; i < p->nodes->len; i++) {
		struct node *n = p->nodes->pdata[i], *best;
		g_autofree struct node **by_role = NULL;
		unsigned wanted = 0;

		if (!n->md || n->taken)
			continue;
		best = best_of(p, n->md->id);
		if (!best) {
			if (degraded) {
				n->taken = true;
				node_note(p, n, "a spare of an array of which there is nothing else");
			}
			continue;
		}
		by_role = g_new0(struct node *, best->md->disks);
		for (unsigned k = 0; k < best->md->disks; k++)
			wanted += best->md->active[k];
		if (!degraded && members_of(p, best->md, by_role, false) < wanted)
			continue;
		open_array(p, best);
		*progress = true;
		if (degraded)
			return;
	}
}
