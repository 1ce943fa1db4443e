/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Arrays of md's that were written to, as they are taken down.
 *
 * An array is suspended, so that it does nothing more, and then asked which devices have failed; when it and its
 * members' parts are gone, and the members are there still, the superblocks say what became of it (md_state.c).  An
 * array of which that cannot be said stays marked as written to, and whoever assembles it synchronises it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../common/client.h"
#include "../common/tree.h"
#include "open.h"

struct md_part {
	struct dev *dev; /* of the data; NULL: the member is missing */
	char *member;	 /* the name of what it is on */
	bool failed;
};

struct md_array {
	struct dev *dev;
	GArray *parts; /* struct md_part, by role */
	enum md_end state;
	bool known, done;
};

struct md_closing {
	const char *mount;
	GPtrArray *devs;
	GPtrArray *arrays; /* struct md_array */
	GError **err;
};

static bool begins(const char *id, const char *with)
{
	return g_str_has_prefix(id, with) && id[strlen(with)] == '-';
}

bool md_close_is(const char *id)
{
	return begins(id, MD_ID_WRITE) || begins(id, MD_ID_SYNC);
}

static const char *array_id(const struct md_array *a)
{
	return strchr(close_id(a->dev->uuid), '-') + 1;
}

static void part_clear(gpointer p)
{
	g_free(((struct md_part *)p)->member);
}

static void array_free(gpointer p)
{
	struct md_array *a = p;

	g_array_unref(a->parts);
	g_free(a);
}

/* --- what stands on what -------------------------------------------------------------------------- */

/* The words of a table's first line. */
static char **first_words(const char *table)
{
	g_auto(GStrv) lines = table ? tree_lines(table) : NULL;

	return lines && *lines ? tree_words(*lines) : NULL;
}

static struct dev *part_named(const struct md_closing *c, const char *word)
{
	g_autofree char *name = tree_unquote(word);

	for (unsigned i = 0; i < c->devs->len; i++) {
		struct dev *d = c->devs->pdata[i];

		if (!strcmp(d->name, name) && close_is_ours(d->uuid, NULL) && !strcmp(close_id(d->uuid), "MDDEV"))
			return d;
	}
	return NULL;
}

static void add_part(const struct md_closing *c, struct md_array *a, const char *word)
{
	struct md_part part = {.dev = part_named(c, word)};
	g_auto(GStrv) words = part.dev ? first_words(part.dev->table) : NULL;

	if (words && g_strv_length(words) > 3)
		part.member = tree_unquote(words[3]);
	g_array_append_val(a->parts, part);
}

/* START LENGTH raid TYPE #PARAMS PARAM... #DEVS PAIR..., or START LENGTH linear DEVICE START. */
static void find_parts(const struct md_closing *c, struct md_array *a)
{
	g_auto(GStrv) words = first_words(a->dev->table);
	guint nr = words ? g_strv_length(words) : 0;
	guint64 params;

	if (nr > 3 && !strcmp(words[2], "linear"))
		add_part(c, a, words[3]);
	if (nr < 6 || strcmp(words[2], "raid"))
		return;
	params = g_ascii_strtoull(words[4], NULL, 10);
	if (params > nr)
		return;
	for (guint64 i = 5 + params + 2; i < nr; i += 2)
		add_part(c, a, words[i]);
}

struct md_closing *md_close_new(const char *mount, GPtrArray *devs, GError **err)
{
	struct md_closing *c = g_new0(struct md_closing, 1);

	c->mount = mount;
	c->devs = devs;
	c->err = err;
	c->arrays = g_ptr_array_new_with_free_func(array_free);
	for (unsigned i = 0; i < devs->len; i++) {
		struct dev *d = devs->pdata[i];
		struct md_array *a;

		if (!close_is_ours(d->uuid, NULL) || !md_close_is(close_id(d->uuid)))
			continue;
		a = g_new0(struct md_array, 1);
		a->dev = d;
		a->parts = g_array_new(FALSE, TRUE, sizeof(struct md_part));
		g_array_set_clear_func(a->parts, part_clear);
		find_parts(c, a);
		g_ptr_array_add(c->arrays, a);
	}
	return c;
}

void md_close_free(struct md_closing *c)
{
	g_ptr_array_unref(c->arrays);
	g_free(c);
}

/* --- its state --------------------------------------------------------------------------------------- */

/* START LENGTH raid TYPE DISKS HEALTH DONE/ALL ACTION ...; one device alone is linear, and has no state. */
static void read_status(const struct md_closing *c, struct md_array *a)
{
	g_autofree char *status = client_read(c->mount, a->dev->name, "status");
	g_auto(GStrv) words = first_words(status);
	guint nr = words ? g_strv_length(words) : 0;
	const char *slash = nr > 6 ? strchr(words[6], '/') : NULL;

	a->known = nr > 2 && !strcmp(words[2], "linear");
	a->state = begins(close_id(a->dev->uuid), MD_ID_WRITE) ? MD_CLEAN : MD_UNCLEAN;
	if (!slash || strcmp(words[2], "raid") || strlen(words[5]) != a->parts->len)
		return;
	a->known = true;
	if (a->state == MD_UNCLEAN && strspn(words[5], "A") == a->parts->len &&
	    !strncmp(words[6], slash + 1, (size_t)(slash - words[6])) &&
	    strlen(slash + 1) == (size_t)(slash - words[6]))
		a->state = MD_SYNCED;
	for (unsigned i = 0; i < a->parts->len; i++)
		g_array_index(a->parts, struct md_part, i).failed = words[5][i] == 'D';
}

static void suspend(const struct md_closing *c, const struct md_array *a, bool on)
{
	client_write(c->mount, a->dev->name, "suspend", on ? "1\n" : "0\n", 2, NULL);
}

struct md_array *md_close_before(struct md_closing *c, struct dev *d)
{
	for (unsigned i = 0; i < c->arrays->len; i++) {
		struct md_array *a = c->arrays->pdata[i];

		if (a->dev != d)
			continue;
		suspend(c, a, true);
		read_status(c, a);
		return a;
	}
	return NULL;
}

/* --- its superblocks ----------------------------------------------------------------------------------- */

static struct md_disk *new_disk(const struct md_closing *c, const char *name, unsigned as)
{
	struct md_disk *disk = g_new0(struct md_disk, 1);

	disk->path = tree_path(c->mount, name, "image");
	disk->as = as;
	return disk;
}

static bool is_member(const struct md_array *a, const char *name)
{
	for (unsigned i = 0; i < a->parts->len; i++) {
		const struct md_part *part = &g_array_index(a->parts, struct md_part, i);

		if (part->member && !strcmp(part->member, name))
			return true;
	}
	return false;
}

/* Spares that were there at the begin have counted along. */
static void add_spares(const struct md_closing *c, const struct md_array *a, GPtrArray *disks, uint64_t events)
{
	for (unsigned i = 0; i < c->devs->len; i++) {
		const struct dev *d = c->devs->pdata[i];
		struct md_disk *disk;

		if (d->gone || is_member(a, d->name))
			continue;
		disk = new_disk(c, d->name, MD_SPARE);
		if (md_disk_look(disk, array_id(a), NULL) || !disk->sb.spare || disk->sb.events != events)
			md_disk_free(disk);
		else
			g_ptr_array_add(disks, disk);
	}
}

static int finish(const struct md_closing *c, const struct md_array *a, GError **err)
{
	g_autoptr(GPtrArray) disks = g_ptr_array_new_with_free_func(md_disk_free);
	uint64_t events = 0;

	if (!a->known)
		return fail(err, EINVAL, "%s: its state is not known", a->dev->name);
	for (unsigned i = 0; i < a->parts->len; i++) {
		const struct md_part *part = &g_array_index(a->parts, struct md_part, i);
		struct md_disk *disk;
		int r;

		if (!part->member)
			continue;
		disk = new_disk(c, part->member, part->failed ? MD_FAILED : MD_USED);
		g_ptr_array_add(disks, disk);
		r = md_disk_look(disk, array_id(a), err);
		if (r)
			return r;
		events = MAX(events, disk->sb.events);
	}
	add_spares(c, a, disks, events);
	return md_state_end(disks, a->state, err);
}

static bool is_alone(const struct md_array *a)
{
	for (unsigned i = 0; i < a->parts->len; i++) {
		const struct md_part *part = &g_array_index(a->parts, struct md_part, i);

		if (part->dev && !part->dev->gone)
			return false;
	}
	return a->dev->gone;
}

/* At once, while the spares are there. */
static void remove_parts(const struct md_closing *c, const struct md_array *a)
{
	for (unsigned i = 0; i < a->parts->len; i++) {
		struct dev *d = g_array_index(a->parts, struct md_part, i).dev;

		if (d && !d->gone)
			d->gone = !client_remove(c->mount, d->name, NULL);
	}
}

void md_close_after(struct md_closing *c, struct md_array *array, bool gone)
{
	if (array && !gone)
		suspend(c, array, false);
	else if (array)
		remove_parts(c, array);
	for (unsigned i = 0; i < c->arrays->len && gone; i++) {
		struct md_array *a = c->arrays->pdata[i];
		g_autoptr(GError) err = NULL;

		if (a->done || !is_alone(a))
			continue;
		a->done = true;
		if (!finish(c, a, &err))
			continue;
		g_prefix_error(&err, "an array stays marked as written to, and will be synchronised: ");
		if (c->err && !*c->err)
			g_propagate_error(c->err, g_steal_pointer(&err));
	}
}
