/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The devices a table holds.
 *
 * A device that many lines name is opened once, and the table counts how often it is named.
 *
 * A table that uses a dmfs device is a user of that device, which so cannot be removed.  It is also an edge in the
 * search for loops.  Drafts count as well, so two half-written tables cannot close a loop between them.
 *
 * Locks: the table's devs_lock guards counts and names, for messages may take devices, too, and several come at once.
 * The topology lock, inside it, guards which devices there are.
 */
#include <errno.h>
#include <string.h>

#include "devices.h"
#include "mapped.h"
#include "table.h"

#define MAX_DEPTH 256 /* of devices on devices: some questions go down by recursion */

/* Who sends the message that this thread carries out. */
static _Thread_local const struct dm_opener *sender;

struct dm_table_dev {
	struct dm_dev *dev;
	unsigned count;
	unsigned order; /* of its first mention */
};

static bool same_name(struct dm_dev *a, struct dm_dev *b)
{
	g_autoptr(GString) x = g_string_new(NULL), y = g_string_new(NULL);

	dm_dev_print(a, x);
	dm_dev_print(b, y);
	return g_string_equal(x, y);
}

static guint hash_dev(gconstpointer dev)
{
	return dm_dev_hash((struct dm_dev *)dev);
}

/* Opened twice, it is one to the table; not by another path, as each is printed as it was named. */
static gboolean equal_devs(gconstpointer a, gconstpointer b)
{
	struct dm_dev *x = (struct dm_dev *)a, *y = (struct dm_dev *)b;

	return x == y || (x->mode == y->mode && dm_dev_same(x, y) && same_name(x, y));
}

void dm_table_devs_init(struct dm_table *t)
{
	pthread_mutex_init(&t->devs_lock, NULL);
	t->devs = g_hash_table_new(hash_dev, equal_devs);
	t->devs_names = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
	dm_topology_lock();
	g_hash_table_add(t->md->tables, t);
	dm_topology_unlock();
}

/* No more lines will come: the names are not needed for lookups. */
void dm_table_devs_seal(struct dm_table *t)
{
	pthread_mutex_lock(&t->devs_lock);
	g_hash_table_remove_all(t->devs_names);
	pthread_mutex_unlock(&t->devs_lock);
}

void dm_table_each_mapped(struct dm_table *t, void (*fn)(struct dm_mapped *, void *), void *data)
{
	GHashTableIter iter;
	gpointer key;

	dm_topology_assert();
	g_hash_table_iter_init(&iter, t->devs);
	while (g_hash_table_iter_next(&iter, &key, NULL))
		if (dm_dev_mapped(key))
			fn(dm_dev_mapped(key), data);
}

/* --- loops and depth ---------------------------------------------------------------- */

struct search {
	GQueue todo;
	unsigned round;
};

static void visit(struct dm_mapped *md, void *data)
{
	struct search *s = data;

	if (md->visited != s->round) {
		md->visited = s->round;
		g_queue_push_tail(&s->todo, md);
	}
}

/* Whether `from` is, or stands on, `goal`. */
static bool stands_on(struct dm_mapped *from, struct dm_mapped *goal)
{
	static unsigned round;
	struct search s = {G_QUEUE_INIT, ++round};
	struct dm_mapped *md;
	bool found = false;

	visit(from, &s);
	while (!found && (md = g_queue_pop_head(&s.todo))) {
		GHashTableIter iter;
		gpointer table;

		found = md == goal;
		g_hash_table_iter_init(&iter, md->tables);
		while (g_hash_table_iter_next(&iter, &table, NULL))
			dm_table_each_mapped(table, visit, &s);
	}
	g_queue_clear(&s.todo);
	return found;
}

/*
 * Raises md's depth, and that of all that stands on it; nothing is changed if one would become too deep.
 */
static int raise_depth(struct dm_mapped *md, unsigned depth)
{
	g_autoptr(GHashTable) depths = g_hash_table_new(NULL, NULL);
	GQueue todo = G_QUEUE_INIT;
	GHashTableIter iter;
	gpointer key, value;

	g_hash_table_insert(depths, md, GUINT_TO_POINTER(depth));
	g_queue_push_tail(&todo, md);
	while ((md = g_queue_pop_head(&todo))) {
		depth = GPOINTER_TO_UINT(g_hash_table_lookup(depths, md));
		if (depth > MAX_DEPTH) {
			g_queue_clear(&todo);
			return -ELOOP;
		}
		if (md->depth >= depth)
			continue;
		g_hash_table_iter_init(&iter, md->used_by);
		while (g_hash_table_iter_next(&iter, &key, NULL)) {
			struct dm_mapped *above = ((struct dm_table *)key)->md;

			if (GPOINTER_TO_UINT(g_hash_table_lookup(depths, above)) > depth)
				continue;
			g_hash_table_insert(depths, above, GUINT_TO_POINTER(depth + 1));
			g_queue_push_tail(&todo, above);
		}
	}
	g_hash_table_iter_init(&iter, depths);
	while (g_hash_table_iter_next(&iter, &key, &value)) {
		md = key;
		md->depth = MAX(md->depth, GPOINTER_TO_UINT(value));
	}
	return 0;
}

static void raise_to(struct dm_mapped *below, void *depth)
{
	*(unsigned *)depth = MAX(*(unsigned *)depth, below->depth + 1);
}

/* After md has lost an edge; those above keep theirs, which may then be more than need be. */
static void lower_depth(struct dm_mapped *md)
{
	GHashTableIter iter;
	gpointer table;

	md->depth = 0;
	g_hash_table_iter_init(&iter, md->tables);
	while (g_hash_table_iter_next(&iter, &table, NULL))
		dm_table_each_mapped(table, raise_to, &md->depth);
}

/* Makes the table a user of the device. */
static int use(struct dm_table *t, struct dm_table_dev *d, GError **err)
{
	struct dm_mapped *md = dm_dev_mapped(d->dev);
	int error = 0;

	dm_topology_lock();
	if (md && md->removed)
		error = -ENODEV;
	else if (md)
		error = stands_on(md, t->md) ? -ELOOP : raise_depth(t->md, md->depth + 1);
	if (!error) {
		if (md)
			g_hash_table_add(md->used_by, t);
		g_hash_table_insert(t->devs, d->dev, d);
	}
	dm_topology_unlock();
	if (error == -ELOOP)
		return dm_fail(err, ELOOP, "it is or stands on this very device, or the stack would be more than %d deep",
			       MAX_DEPTH);
	if (error)
		return dm_fail(err, -error, "the device was removed");
	return 0;
}

/* It is the table's no more; the caller frees it with drop(), without locks. */
static void unuse(struct dm_table *t, struct dm_table_dev *d)
{
	struct dm_mapped *md = dm_dev_mapped(d->dev);

	dm_topology_lock();
	g_hash_table_remove(t->devs, d->dev);
	if (md) {
		g_hash_table_remove(md->used_by, t);
		dm_mapped_let_go(md);
		lower_depth(t->md);
	}
	dm_topology_unlock();
}

static void drop(struct dm_table_dev *d)
{
	dm_dev_put(d->dev);
	g_free(d);
}

/* --- get and put --------------------------------------------------------------------- */

static gboolean names_dev(gpointer key, gpointer value, gpointer dev)
{
	return value == dev;
}

/* Counts a device that was opened as the table's, or the one that the table has already instead; the lock is held. */
static int take(struct dm_table *t, struct dm_dev *found, struct dm_table_dev **out, GError **err)
{
	struct dm_table_dev *d;
	int error;

	dm_assert_locked(&t->devs_lock);
	d = g_hash_table_lookup(t->devs, found);
	if (!d) {
		d = g_new0(struct dm_table_dev, 1);
		d->dev = dm_dev_get(found);
		d->order = t->devs_used++;
		error = use(t, d, err);
		if (error) {
			drop(d);
			return error;
		}
	}
	d->count++;
	*out = d;
	return 0;
}

static struct dm_table_dev *take_by_name(struct dm_table *t, const char *key)
{
	struct dm_table_dev *d;

	pthread_mutex_lock(&t->devs_lock);
	d = g_hash_table_lookup(t->devs_names, key);
	if (d)
		d->count++;
	pthread_mutex_unlock(&t->devs_lock);
	return d;
}

int dm_get_device(struct dm_target *ti, const char *name, enum dm_mode mode, struct dm_dev **dev, GError **err)
{
	struct dm_table *t = ti->table;
	g_autofree char *key = g_strconcat(mode & DM_MODE_WRITE ? "w " : "r ", name, NULL);
	struct dm_table_dev *d = sender ? NULL : take_by_name(t, key); /* a name is only for who wrote the table */
	struct dm_dev *found;
	int error;

	if (!d) {
		error = dm_resolve(sender ? sender : &t->opener, t->md, name, mode, &found, err);
		if (error) {
			g_prefix_error(err, "%s: ", ti->type->name);
			return error;
		}
		pthread_mutex_lock(&t->devs_lock);
		error = take(t, found, &d, err);
		if (!error && !sender)
			g_hash_table_replace(t->devs_names, g_steal_pointer(&key), d);
		pthread_mutex_unlock(&t->devs_lock);
		dm_dev_put(found);
		if (error) {
			g_prefix_error(err, "%s: %s: ", ti->type->name, name);
			return error;
		}
	}
	*dev = d->dev;
	return 0;
}

void dm_put_device(struct dm_target *ti, struct dm_dev *dev)
{
	struct dm_table *t = ti->table;
	struct dm_table_dev *d;

	if (!dev)
		return;
	pthread_mutex_lock(&t->devs_lock);
	d = g_hash_table_lookup(t->devs, dev);
	if (d && !--d->count) {
		g_hash_table_foreach_remove(t->devs_names, names_dev, d);
		unuse(t, d);
	} else {
		d = NULL;
	}
	pthread_mutex_unlock(&t->devs_lock);
	if (d)
		drop(d);
}

/* --- find ------------------------------------------------------------------------------ */

void dm_table_devs_sender(const struct dm_opener *who)
{
	sender = who;
}

static bool is_called(struct dm_dev *dev, const void *quoted)
{
	g_autoptr(GString) name = g_string_new(NULL);

	dm_dev_print(dev, name);
	return !strcmp(name->str, quoted);
}

static bool is_same(struct dm_dev *dev, const void *other)
{
	return dm_dev_same(dev, (struct dm_dev *)other);
}

/* The first of those that fit, as the lines name them. */
static struct dm_dev *find_dev(struct dm_table *t, bool (*fits)(struct dm_dev *, const void *), const void *data)
{
	struct dm_table_dev *first = NULL;
	GHashTableIter iter;
	gpointer value;

	pthread_mutex_lock(&t->devs_lock);
	g_hash_table_iter_init(&iter, t->devs);
	while (g_hash_table_iter_next(&iter, NULL, &value)) {
		struct dm_table_dev *d = value;

		if ((!first || d->order < first->order) && fits(d->dev, data))
			first = d;
	}
	pthread_mutex_unlock(&t->devs_lock);
	return first ? first->dev : NULL;
}

int dm_find_device(struct dm_target *ti, const char *name, struct dm_dev **dev, GError **err)
{
	struct dm_table *t = ti->table;
	g_autoptr(GString) quoted = g_string_new(NULL);
	struct dm_dev *found;
	int error;

	/* as the table shows it: that needs no access to a device that may have gone */
	dm_quote_word(name, quoted);
	*dev = find_dev(t, is_called, quoted->str);
	if (*dev)
		return 0;
	error = dm_resolve(sender ? sender : &t->opener, t->md, name, DM_MODE_READ, &found, err);
	if (error) {
		g_prefix_error(err, "%s: ", ti->type->name);
		return error;
	}
	*dev = find_dev(t, is_same, found);
	dm_dev_put(found);
	return *dev ? 0 : dm_fail(err, EINVAL, "%s: %s is none of the table's devices", ti->type->name, name);
}

/* --- all of them ----------------------------------------------------------------------- */

void dm_table_devs_free(struct dm_table *t)
{
	GHashTableIter iter;
	gpointer d;

	for (;;) { /* what targets have not put themselves */
		g_hash_table_iter_init(&iter, t->devs);
		if (!g_hash_table_iter_next(&iter, NULL, &d))
			break;
		unuse(t, d);
		drop(d);
	}
	dm_topology_lock();
	g_hash_table_remove(t->md->tables, t);
	dm_topology_unlock();
	g_hash_table_destroy(t->devs_names);
	g_hash_table_destroy(t->devs);
	pthread_mutex_destroy(&t->devs_lock);
}

static gint by_last_mention(gconstpointer a, gconstpointer b)
{
	const struct dm_table_dev *x = *(struct dm_table_dev *const *)a, *y = *(struct dm_table_dev *const *)b;

	return (x->order < y->order) - (x->order > y->order);
}

/* In the kernel's order: the device that was named first comes last. */
void dm_table_print_deps(struct dm_table *t, GString *out)
{
	g_autoptr(GPtrArray) devs = g_ptr_array_new();
	GHashTableIter iter;
	gpointer d;

	dm_topology_lock();
	g_hash_table_iter_init(&iter, t->devs);
	while (g_hash_table_iter_next(&iter, NULL, &d))
		g_ptr_array_add(devs, d);
	g_ptr_array_sort(devs, by_last_mention);
	for (unsigned i = 0; i < devs->len; i++)
		devs->pdata[i] = dm_dev_get(((struct dm_table_dev *)devs->pdata[i])->dev);
	dm_topology_unlock();
	for (unsigned i = 0; i < devs->len; i++) {
		dm_dev_print(devs->pdata[i], out);
		g_string_append_c(out, '\n');
		dm_dev_put(devs->pdata[i]);
	}
}
