/* SPDX-License-Identifier: GPL-2.0-or-later */
/* All dmfs devices (devices.h). */
#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "devices.h"
#include "events.h"
#include "state.h"

#include <dmfs/log.h>
#include <dmfs/work.h>

static pthread_mutex_t topology = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local bool topology_held;

/*
 * Held, before the topology, while a name, uuid or minor is taken or given up, until that is in the state too: what
 * one has given up is not stored for another before it is gone from the first one's row.
 */
static pthread_mutex_t naming = PTHREAD_MUTEX_INITIALIZER;

static GHashTable *by_name, *by_uuid, *by_minor;
static unsigned lowest_free; /* no minor below is free */
static const char *const *reserved;

void dm_topology_lock(void)
{
	pthread_mutex_lock(&topology);
	topology_held = true;
	if (!by_name) {
		by_name = g_hash_table_new(g_str_hash, g_str_equal);
		by_uuid = g_hash_table_new(g_str_hash, g_str_equal);
		by_minor = g_hash_table_new(NULL, NULL);
	}
}

void dm_topology_unlock(void)
{
	topology_held = false;
	pthread_mutex_unlock(&topology);
}

void dm_topology_assert(void)
{
	assert(topology_held);
}

void dm_reserve_names(const char *const *names)
{
	reserved = names;
}

/* --- names --------------------------------------------------------------------------- */

static int check_name(const char *name, GError **err)
{
	size_t len = strlen(name);

	if (len > DM_NAME_MAX)
		return dm_fail(err, ENAMETOOLONG, "name is %zu bytes long, the most is %d", len, DM_NAME_MAX);
	if (!len || name[0] == '.' || strchr(name, '/'))
		return dm_fail(err, EINVAL, "'%s' is no name for a device: 1 to %d bytes, no '/', no '.' first", name,
			       DM_NAME_MAX);
	for (unsigned i = 0; reserved && reserved[i]; i++)
		if (!strcmp(reserved[i], name))
			return dm_fail(err, EEXIST, "'%s' is a file of the control tree", name);
	return 0;
}

static int take_minor(int wanted, unsigned *out, GError **err)
{
	dm_topology_assert();
	if (wanted >= 0) {
		if (g_hash_table_contains(by_minor, GINT_TO_POINTER(wanted)))
			return dm_fail(err, EBUSY, "minor %d is taken", wanted);
		*out = (unsigned)wanted;
		return 0;
	}
	while (g_hash_table_contains(by_minor, GUINT_TO_POINTER(lowest_free)))
		lowest_free++;
	*out = lowest_free;
	return 0;
}

/* Under the naming lock, which waits for the state. */
static void naming_lock(void)
{
	dm_block_begin();
	pthread_mutex_lock(&naming);
}

static void naming_unlock(void)
{
	pthread_mutex_unlock(&naming);
	dm_block_end();
}

static void enter(struct dm_mapped *md)
{
	dm_topology_assert();
	g_hash_table_insert(by_name, md->name, md);
	g_hash_table_insert(by_minor, GUINT_TO_POINTER(md->minor), md);
	if (*md->uuid)
		g_hash_table_insert(by_uuid, md->uuid, md);
}

/* --- removing ---------------------------------------------------------------------------- */

enum when {
	NOW,
	LATER,	   /* when it is used no more, which may be now */
	IF_MARKED, /* the end of a LATER */
};

/* Devices that went out of use in a removal this thread is at, and are to go as well; NULL: it is at none. */
static _Thread_local GPtrArray *let_go;
/* Those that went out of use elsewhere, as by a close of their image, which does not wait for their removal. */
static struct dm_wq *removals; /* under the topology lock; from the first one on */

struct removal {
	struct dm_work work;
	struct dm_mapped *md;
};

static bool in_use(const struct dm_mapped *md)
{
	return md->opens || g_hash_table_size(md->used_by);
}

static int busy(const struct dm_mapped *md, GError **err)
{
	if (md->opens)
		return dm_fail(err, EBUSY, "the image of '%s' is open", md->name);
	return dm_fail(err, EBUSY, "a table uses '%s'", md->name);
}

/* Whether it is to go now, when it has no name and number any more; -EAGAIN: not now. */
static int take_out(struct dm_mapped *md, enum when when, GError **err)
{
	int error = 0;

	dm_topology_lock();
	if (md->removed) {
		error = when == IF_MARKED ? -EAGAIN : dm_fail(err, ENXIO, "the device was removed");
	} else if (in_use(md) && when == NOW) {
		error = busy(md, err);
	} else if (in_use(md)) {
		md->remove_unused |= when == LATER;
		error = -EAGAIN;
	} else if (when == IF_MARKED && !md->remove_unused) {
		error = -EAGAIN;
	} else {
		md->removed = true;
		g_hash_table_remove(by_name, md->name);
		g_hash_table_remove(by_minor, GUINT_TO_POINTER(md->minor));
		lowest_free = MIN(lowest_free, md->minor);
		if (*md->uuid)
			g_hash_table_remove(by_uuid, md->uuid);
	}
	dm_topology_unlock();
	return error;
}

/* Out of the tables and out of the state, or neither. */
static int forget(struct dm_mapped *md, enum when when, GError **err)
{
	int error = take_out(md, when, err);

	if (error)
		return error;
	error = dm_state_remove(md, err);
	if (error) {
		dm_topology_lock();
		md->removed = false;
		enter(md);
		dm_topology_unlock();
	}
	return error;
}

/* The end of a device that was taken out, and of the tables' reference: what it stands on may be among let_go then. */
static void shut_down(struct dm_mapped *md)
{
	dm_block_begin();
	dm_mapped_shutdown(md);
	dm_block_end();
	dm_event_removed(md);
	dm_mapped_unref(md);
}

/* Whether a name and a minor are free; under the naming lock they stay so. */
static int check_free(const char *name, int minor, unsigned *number, GError **err)
{
	int error = 0;

	dm_topology_lock();
	if (g_hash_table_contains(by_name, name))
		error = dm_fail(err, EEXIST, "there is a device '%s' already", name);
	else
		error = take_minor(minor, number, err);
	dm_topology_unlock();
	return error;
}

static void publish_device(struct dm_change *c)
{
	dm_topology_lock();
	enter(dm_mapped_ref(c->md));
	dm_topology_unlock();
}

int dm_create(const char *name, int minor, struct dm_mapped **out, GError **err)
{
	struct dm_change c = {.publish = publish_device};
	unsigned number = 0;
	int error = check_name(name, err);

	if (error)
		return error;
	naming_lock();
	error = check_free(name, minor, &number, err);
	if (!error) {
		c.md = dm_mapped_new(name, number);
		error = dm_state_change(&c, err);
	}
	naming_unlock();
	if (error) {
		dm_mapped_unref(c.md);
		return error;
	}
	dm_event_added(c.md);
	*out = c.md;
	return 0;
}

static int remove_one(struct dm_mapped *md, enum when when, GError **err)
{
	int error;

	naming_lock();
	error = forget(md, when, err);
	naming_unlock();
	if (!error)
		shut_down(md);
	return error;
}

static int remove_device(struct dm_mapped *md, enum when when, GError **err)
{
	g_autoptr(GPtrArray) freed = g_ptr_array_new_with_free_func((GDestroyNotify)dm_mapped_unref);
	GPtrArray *outer = let_go;
	int error;

	let_go = freed;
	error = remove_one(md, when, err);
	for (guint i = 0; i < freed->len; i++) { /* it grows on the way down the stack */
		g_autoptr(GError) late = NULL;

		if (remove_one(freed->pdata[i], IF_MARKED, &late) && late)
			dm_log_err("deferred remove: %s", late->message);
	}
	let_go = outer;
	return error;
}

int dm_remove(struct dm_mapped *md, GError **err)
{
	return remove_device(md, NOW, err);
}

int dm_remove_deferred(struct dm_mapped *md, GError **err)
{
	int error = remove_device(md, LATER, err);

	return error == -EAGAIN ? 0 : error;
}

int dm_cancel_deferred_remove(struct dm_mapped *md, GError **err)
{
	int error = 0;

	dm_topology_lock();
	if (md->removed)
		error = dm_fail(err, ENXIO, "the device was removed");
	else
		md->remove_unused = false;
	dm_topology_unlock();
	return error;
}

static void remove_late(struct dm_work *work)
{
	struct removal *r = (struct removal *)work;
	g_autoptr(GError) err = NULL;

	if (remove_device(r->md, IF_MARKED, &err) && err)
		dm_log_err("deferred remove: %s", err->message);
	dm_mapped_unref(r->md);
	g_free(r);
}

void dm_mapped_let_go(struct dm_mapped *md)
{
	struct removal *r;

	dm_topology_assert();
	if (!md->remove_unused || md->removed || in_use(md))
		return;
	if (let_go) {
		g_ptr_array_add(let_go, dm_mapped_ref(md));
		return;
	}
	if (!removals)
		removals = dm_wq_new("remove", 1);
	r = g_new0(struct removal, 1);
	r->work.fn = remove_late;
	r->md = dm_mapped_ref(md);
	dm_wq_queue(removals, &r->work);
}

void dm_end_removals(void)
{
	struct dm_wq *wq;

	dm_topology_lock();
	wq = removals;
	removals = NULL;
	dm_topology_unlock();
	if (wq)
		dm_wq_free(wq);
}

/* --- renaming --------------------------------------------------------------------------------- */

static int check_new_name(struct dm_mapped *md, const char *name, GError **err)
{
	int error = 0;

	dm_topology_lock();
	if (md->removed)
		error = dm_fail(err, ENXIO, "the device was removed");
	else if (g_hash_table_contains(by_name, name))
		error = dm_fail(err, EEXIST, "there is a device '%s' already", name);
	dm_topology_unlock();
	return error;
}

/* The old name is the caller's, in c->data. */
static void publish_name(struct dm_change *c)
{
	dm_topology_lock();
	c->data = c->md->name;
	g_hash_table_remove(by_name, c->md->name);
	c->md->name = g_strdup(c->name);
	g_hash_table_insert(by_name, c->md->name, c->md);
	dm_topology_unlock();
}

int dm_rename(struct dm_mapped *md, const char *name, GError **err)
{
	struct dm_change c = {.md = md, .what = DM_CHANGE_NAME, .name = name, .publish = publish_name};
	int error = check_name(name, err);

	if (error)
		return error;
	naming_lock();
	error = check_new_name(md, name, err);
	if (!error)
		error = dm_state_change(&c, err);
	naming_unlock();
	if (!error)
		dm_event_renamed(md, c.data);
	g_free(c.data);
	return error;
}

static int check_new_uuid(struct dm_mapped *md, const char *uuid, GError **err)
{
	int error = 0;

	dm_topology_lock();
	if (md->removed)
		error = dm_fail(err, ENXIO, "the device was removed");
	else if (*md->uuid)
		error = dm_fail(err, EINVAL, "the uuid is set already, to '%s'", md->uuid);
	else if (g_hash_table_contains(by_uuid, uuid))
		error = dm_fail(err, EBUSY, "another device has the uuid '%s'", uuid);
	dm_topology_unlock();
	return error;
}

static void publish_uuid(struct dm_change *c)
{
	dm_topology_lock();
	g_free(c->md->uuid);
	c->md->uuid = g_strdup(c->uuid);
	g_hash_table_insert(by_uuid, c->md->uuid, c->md);
	dm_topology_unlock();
}

int dm_set_uuid(struct dm_mapped *md, const char *uuid, GError **err)
{
	struct dm_change c = {.md = md, .what = DM_CHANGE_UUID, .uuid = uuid, .publish = publish_uuid};
	size_t len = strlen(uuid);
	int error;

	if (!len)
		return dm_fail(err, EINVAL, "the uuid is empty");
	if (len > DM_UUID_MAX)
		return dm_fail(err, ENAMETOOLONG, "uuid is %zu bytes long, the most is %d", len, DM_UUID_MAX);
	naming_lock();
	error = check_new_uuid(md, uuid, err);
	if (!error)
		error = dm_state_change(&c, err);
	naming_unlock();
	if (!error)
		dm_event_uuid_set(md);
	return error;
}

bool dm_mapped_removed(struct dm_mapped *md)
{
	bool removed;

	dm_topology_lock();
	removed = md->removed;
	dm_topology_unlock();
	return removed;
}

void dm_mapped_name(struct dm_mapped *md, GString *out)
{
	dm_topology_lock();
	g_string_append(out, md->name);
	dm_topology_unlock();
}

char *dm_mapped_dup_name(struct dm_mapped *md)
{
	char *name;

	dm_topology_lock();
	name = g_strdup(md->name);
	dm_topology_unlock();
	return name;
}

char *dm_mapped_dup_uuid(struct dm_mapped *md)
{
	char *uuid;

	dm_topology_lock();
	uuid = g_strdup(md->uuid);
	dm_topology_unlock();
	return uuid;
}

/* --- finding --------------------------------------------------------------------------- */

static struct dm_mapped *find(GHashTable *const *table, gconstpointer key)
{
	struct dm_mapped *md;

	dm_topology_lock();
	md = g_hash_table_lookup(*table, key);
	if (md)
		dm_mapped_ref(md);
	dm_topology_unlock();
	return md;
}

struct dm_mapped *dm_find_name(const char *name)
{
	return find(&by_name, name);
}

struct dm_mapped *dm_find_minor(unsigned minor)
{
	return find(&by_minor, GUINT_TO_POINTER(minor));
}

static gint by_minor_order(gconstpointer a, gconstpointer b)
{
	const struct dm_mapped *x = *(struct dm_mapped *const *)a, *y = *(struct dm_mapped *const *)b;

	return (x->minor > y->minor) - (x->minor < y->minor);
}

GPtrArray *dm_list_devices(void)
{
	GPtrArray *list = g_ptr_array_new_with_free_func((GDestroyNotify)dm_mapped_unref);
	GHashTableIter iter;
	gpointer md;

	dm_topology_lock();
	g_hash_table_iter_init(&iter, by_name);
	while (g_hash_table_iter_next(&iter, NULL, &md))
		g_ptr_array_add(list, dm_mapped_ref(md));
	dm_topology_unlock();
	g_ptr_array_sort(list, by_minor_order);
	return list;
}

int dm_mapped_open(struct dm_mapped *md)
{
	int error;

	dm_topology_lock();
	error = md->removed ? -ENXIO : 0;
	if (!error)
		md->opens++;
	dm_topology_unlock();
	return error;
}

void dm_mapped_close(struct dm_mapped *md)
{
	dm_topology_lock();
	md->opens--;
	dm_mapped_let_go(md);
	dm_topology_unlock();
}

void dm_end_waiting(void)
{
	g_autoptr(GPtrArray) list = dm_list_devices();

	dm_mapped_no_resume(list);
}

/*
 * Every round removes the devices nobody uses any more, which frees those they stand on for the next round.  Open
 * images do not hold anything up: there is no front end any more.
 */
void dm_remove_all(void)
{
	bool progress = true;

	while (progress) {
		g_autoptr(GPtrArray) list = dm_list_devices();

		progress = false;
		for (unsigned i = 0; i < list->len; i++) {
			struct dm_mapped *md = list->pdata[i];

			dm_topology_lock();
			md->opens = 0;
			dm_topology_unlock();
			progress |= !dm_remove(md, NULL);
		}
	}
	dm_end_removals();
}
