/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The loop: what is open is looked into, which opens more; when nothing new appears, the arrays and groups all of whose
 * members are there; then the first of those that lack some, and so on until there is nothing left.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../common/tree.h"
#include "open.h"

/* --- images ----------------------------------------------------------------------------------------- */

static int open_image(struct plan *p, const char *file, GError **err)
{
	char *resolved = realpath(file, NULL);
	g_autofree char *word = NULL, *base = NULL;
	struct node *n;
	struct src s;
	int r;

	if (!resolved)
		return fail(err, errno, "%s: %s", file, g_strerror(errno));
	for (unsigned i = 0; i < p->nodes->len; i++) {
		n = p->nodes->pdata[i];
		if (n->path && !strcmp(n->path, resolved)) {
			free(resolved);
			return 0; /* named twice */
		}
	}
	r = src_open(resolved, &s, err);
	if (r) {
		free(resolved);
		return r;
	}
	src_close(&s);
	base = g_path_get_basename(resolved);
	if (!strcmp(base, "image")) { /* of a dmfs */
		g_autofree char *dir = g_path_get_dirname(resolved);

		g_free(base);
		base = g_path_get_basename(dir);
	}
	n = node_new(p, NODE_IMAGE, "disk", base);
	n->path = g_strdup(resolved);
	free(resolved);
	n->sectors = s.size / 512;
	if (s.size % 512)
		node_note(p, n, "it has %" PRIu64 " bytes: what is behind the last whole sector is left out", s.size);
	if (!n->sectors)
		return fail(err, EINVAL, "%s is empty", file);
	word = tree_quote(n->path);
	n->table = g_strdup_printf("0 %" PRIu64 " linear %s 0\n", n->sectors, word);
	r = node_make(p, n, "IMAGE", !p->o->write);
	return r ? fail(err, -r, "%s cannot be opened", file) : 0;
}

/* --- LVM2's groups ---------------------------------------------------------------------------------------- */

struct group_maker {
	struct plan *p;
	GHashTable *by_name; /* of this group's devices: name to node */
};

static struct node *device_of(struct group_maker *g, const char *name)
{
	struct node *n = g_hash_table_lookup(g->by_name, name);

	return n ? n : node_find(g->p, name);
}

static const char *make_device(void *data, const char *name, const char *id, const char *type, const char *table,
			       uint64_t sectors, bool writable, const GPtrArray *uses, GError **err)
{
	struct group_maker *g = data;
	struct node *n = node_new(g->p, NODE_LVM, type, name);

	for (unsigned i = 0; i < uses->len; i++) {
		struct node *on = device_of(g, uses->pdata[i]);

		if (on)
			node_stand_on(n, on);
	}
	n->sectors = sectors;
	n->table = g_strdup(table);
	n->uuid = NULL;
	n->probed = true; /* look() says otherwise */
	if (node_make(g->p, n, id, !g->p->o->write && !writable)) {
		fail(err, EINVAL, "%s cannot be made", n->name);
		return NULL;
	}
	g_hash_table_insert(g->by_name, n->name, n);
	return n->name;
}

static const char *make_overlay(void *data, const char *device, uint64_t sectors, GError **err)
{
	struct group_maker *g = data;
	g_autofree char *name = g_strconcat(device, "-overlay", NULL), *word = tree_quote(device), *file = NULL, *path = NULL;
	const char *dir = run_dir(err);
	struct node *n, *on = device_of(g, device);
	int fd;

	if (!dir)
		return NULL;
	n = node_new(g->p, NODE_LVM, "overlay", name);
	file = g_strdup_printf("%u.overlay", n->seq);
	path = g_build_filename(dir, file, NULL);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)(sectors * 512))) {
		fail(err, errno, "%s: %s", path, g_strerror(errno));
		if (fd >= 0)
			close(fd);
		return NULL;
	}
	close(fd);
	if (on)
		node_stand_on(n, on);
	n->sectors = sectors;
	n->probed = true;
	g_free(file);
	file = tree_quote(path);
	n->table = g_strdup_printf("0 %" PRIu64 " snapshot %s %s N 8\n", sectors, word, file);
	if (node_make(g->p, n, "OVERLAY", false)) {
		fail(err, EINVAL, "%s cannot be made", n->name);
		return NULL;
	}
	g_hash_table_insert(g->by_name, n->name, n);
	return n->name;
}

static void note_device(void *data, const char *device, const char *text)
{
	struct group_maker *g = data;
	g_autofree char *line = g_strdup_printf("%s: %s", device, text);
	struct node *n = device_of(g, device);

	g->p->failed = true;
	if (n)
		node_note(g->p, n, "%s", text);
	else
		say_error("dmfs-open", line);
}

static void look_into(void *data, const char *device)
{
	struct node *n = device_of(data, device);

	if (n)
		n->probed = false;
}

/* The newest metadata of the group that a text is of, among all volumes that are not taken. */
static struct vg *newest(struct plan *p, struct node *first, GPtrArray *notes, GError **err)
{
	struct vg *best = vg_parse(first->pv->text, first->pv->len, notes, err);
	g_autoptr(GPtrArray) other = g_ptr_array_new_with_free_func(g_free);

	for (unsigned i = 0; best && i < p->nodes->len; i++) {
		struct node *n = p->nodes->pdata[i];
		struct vg *vg;

		if (!n->pv || n->taken || !n->pv->text || n == first ||
		    (n->pv->len == first->pv->len && !memcmp(n->pv->text, first->pv->text, n->pv->len)))
			continue;
		vg = vg_parse(n->pv->text, n->pv->len, other, NULL);
		if (vg && !strcmp(vg->id, best->id) && vg->seqno > best->seqno) {
			vg_free(best);
			best = vg;
		} else {
			vg_free(vg);
		}
	}
	return best;
}

static struct vg_pv *pv_with_id(const struct vg *vg, const char *id)
{
	for (unsigned i = 0; i < vg->pvs->len; i++) {
		struct vg_pv *pv = vg->pvs->pdata[i];

		if (!strcmp(pv->id, id))
			return pv;
	}
	return NULL;
}

/* Finds the devices of a group's physical volumes; how many are missing. */
static unsigned find_pvs(struct plan *p, struct vg *vg, bool take)
{
	unsigned missing = 0;

	for (unsigned i = 0; i < p->nodes->len; i++) {
		struct node *n = p->nodes->pdata[i];
		struct vg_pv *pv = n->pv && !n->taken ? pv_with_id(vg, n->pv->id) : NULL;

		if (!pv)
			continue;
		if (take)
			n->taken = true;
		if (pv->device && take && pv->node != n)
			node_note(p, n, "left out: %s has the same id", pv->device);
		if (pv->device)
			continue;
		pv->device = n->name;
		pv->have = n->sectors;
		pv->node = n;
	}
	for (unsigned i = 0; i < vg->pvs->len; i++)
		missing += !((struct vg_pv *)vg->pvs->pdata[i])->device;
	return missing;
}

static void open_group(struct plan *p, struct node *first, struct vg *vg, GPtrArray *notes, unsigned missing)
{
	struct group_maker g = {p, g_hash_table_new(g_str_hash, g_str_equal)};
	struct vg_maker m = {make_device, make_overlay, note_device, look_into, p->o->write, &g};

	for (unsigned i = 0; i < notes->len; i++)
		node_note(p, first, "%s", (char *)notes->pdata[i]);
	if (missing) {
		node_note(p, first, "LVM: %u of the %u physical volumes of %s are missing", missing, vg->pvs->len, vg->name);
		p->failed = true;
	}
	find_pvs(p, vg, true);
	first->taken = true; /* also where its own group does not know it */
	vg_make(vg, &m);
	g_hash_table_unref(g.by_name);
}

void plan_groups(struct plan *p, bool degraded, bool *progress)
{
	unsigned nr = p->nodes->len; /* what is made here are no physical volumes yet */

	for (unsigned i = 0; i < nr; i++) {
		struct node *n = p->nodes->pdata[i];
		g_autoptr(GPtrArray) notes = g_ptr_array_new_with_free_func(g_free);
		g_autoptr(GError) err = NULL;
		unsigned missing;
		struct vg *vg;

		if (!n->pv || n->taken || !n->pv->text)
			continue;
		vg = newest(p, n, notes, &err);
		if (!vg) {
			node_note(p, n, "LVM: %s", err ? err->message : "no metadata that can be read");
			n->taken = p->failed = true;
			continue;
		}
		missing = find_pvs(p, vg, false);
		if (!missing || degraded) {
			open_group(p, n, vg, notes, missing);
			*progress = true;
		}
		vg_free(vg);
		if (degraded && *progress)
			return;
	}
	for (unsigned i = 0; degraded && i < nr; i++) {
		struct node *n = p->nodes->pdata[i];

		if (n->pv && !n->taken) {
			node_note(p, n, "LVM: a physical volume of no group that is here");
			n->taken = true;
		}
	}
}

/* --- the loop -------------------------------------------------------------------------------------------------- */

static bool look(struct plan *p)
{
	bool looked = false;

	for (unsigned i = 0; i < p->nodes->len; i++) {
		struct node *n = p->nodes->pdata[i];

		if (!n->open || n->probed)
			continue;
		probe(p, n);
		looked = true;
	}
	return looked;
}

int plan_open(struct plan *p, char **images, GError **err)
{
	bool progress;

	for (; *images; images++) {
		int r = open_image(p, *images, err);

		if (r)
			return r;
	}
	do {
		progress = look(p);
		if (!progress)
			plan_arrays(p, false, &progress);
		if (!progress)
			plan_groups(p, false, &progress);
		if (!progress)
			plan_verity(p, &progress);
		if (!progress)
			plan_arrays(p, true, &progress);
		if (!progress)
			plan_groups(p, true, &progress);
	} while (progress);
	return 0;
}
