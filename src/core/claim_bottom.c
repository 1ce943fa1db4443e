/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The bottoms of claims, and locks on files (claim_bottom.h). */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "claim_bottom.h"

static GHashTable *bottoms; /* struct bottom, by device */

static guint hash_bottom(gconstpointer p)
{
	return dm_dev_hash(((const struct bottom *)p)->dev);
}

static gboolean same_bottom(gconstpointer a, gconstpointer b)
{
	return dm_dev_same(((const struct bottom *)a)->dev, ((const struct bottom *)b)->dev);
}

struct bottom *dm_bottom_get(struct dm_dev *dev)
{
	struct bottom key = {.dev = dev}, *b;

	if (!bottoms)
		bottoms = g_hash_table_new(hash_bottom, same_bottom);
	b = g_hash_table_lookup(bottoms, &key);
	if (!b) {
		b = g_new0(struct bottom, 1);
		b->dev = dm_dev_get(dev);
		b->extents = g_ptr_array_new();
		b->reach = g_array_new(FALSE, FALSE, sizeof(uint64_t));
		b->fd = -1;
		g_hash_table_add(bottoms, b);
	}
	return b;
}

void dm_bottom_drop(struct bottom *b, GPtrArray *put)
{
	g_hash_table_remove(bottoms, b);
	if (b->fd >= 0)
		close(b->fd);
	g_ptr_array_free(b->extents, TRUE);
	g_array_free(b->reach, TRUE);
	g_ptr_array_add(put, b->dev);
	g_free(b);
}

/* --- what lies on a bottom --------------------------------------------------------------------- */

static gint by_start(gconstpointer a, gconstpointer b)
{
	const struct extent *x = *(struct extent *const *)a, *y = *(struct extent *const *)b;

	return (x->start > y->start) - (x->start < y->start);
}

/* The first extent that starts at a sector or after it. */
static guint first_from(struct bottom *b, uint64_t start)
{
	guint low = 0, high = b->extents->len;

	while (low < high) {
		guint middle = low + (high - low) / 2;

		if (((struct extent *)b->extents->pdata[middle])->start < start)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void fill_reach(struct bottom *b, guint from)
{
	uint64_t reach = from ? g_array_index(b->reach, uint64_t, from - 1) : 0;

	g_array_set_size(b->reach, b->extents->len);
	for (guint i = from; i < b->extents->len; i++) {
		reach = MAX(reach, ((struct extent *)b->extents->pdata[i])->end);
		g_array_index(b->reach, uint64_t, i) = reach;
	}
}

void dm_bottom_order(struct bottom *b)
{
	guint n = 0;

	if (!b->unsorted)
		return;
	for (guint i = 0; i < b->extents->len; i++)
		if (!((struct extent *)b->extents->pdata[i])->gone)
			b->extents->pdata[n++] = b->extents->pdata[i];
	g_ptr_array_set_size(b->extents, (gint)n);
	g_ptr_array_sort(b->extents, by_start);
	fill_reach(b, 0);
	b->unsorted = false;
}

void dm_bottom_place(struct extent *e, bool few)
{
	struct bottom *b = e->bottom;
	guint at;

	if (!few || b->unsorted) {
		g_ptr_array_add(b->extents, e);
		b->unsorted = true;
		return;
	}
	at = first_from(b, e->start);
	g_ptr_array_insert(b->extents, (gint)at, e);
	fill_reach(b, at);
}

struct extent *dm_bottom_common(struct extent *e, bool (*fn)(struct extent *, struct extent *, void *), void *data)
{
	struct bottom *b = e->bottom;

	dm_bottom_order(b);
	for (guint i = first_from(b, e->end); i-- > 0 && g_array_index(b->reach, uint64_t, i) > e->start;) {
		struct extent *other = b->extents->pdata[i];

		if (other != e && other->end > e->start && fn(e, other, data))
			return other;
	}
	return NULL;
}

/* --- locks on files ---------------------------------------------------------------------------- */

static int set_lock(struct bottom *b, short type, uint64_t start, uint64_t end)
{
	uint64_t most = (uint64_t)INT64_MAX >> DM_SECTOR_SHIFT;
	struct flock fl = {.l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)(MIN(start, most) << DM_SECTOR_SHIFT)};

	if (start >= most)
		return 0;
	if (end < most) /* else to wherever the end will be */
		fl.l_len = (off_t)((end - start) << DM_SECTOR_SHIFT);
	if (type == F_WRLCK && !b->fd_writes)
		fl.l_type = F_RDLCK;
	return fcntl(b->fd, F_OFD_SETLK, &fl) ? -errno : 0;
}

static bool writes(const struct extent *e)
{
	return e->claim->mode & DM_MODE_WRITE;
}

static bool is_locked_writer(struct extent *e, struct extent *other, void *unused)
{
	return other->locked && writes(other);
}

/* A reader leaves a writer's lock what it is: both are tables of one device, and either may be the one that stays. */
static int lock_sectors(struct extent *e)
{
	bool write = writes(e) || dm_bottom_common(e, is_locked_writer, NULL);

	return set_lock(e->bottom, write ? F_WRLCK : F_RDLCK, e->start, e->end);
}

/* Who can only read holds locks as far as that goes; the first who can write takes them over. */
static int take_file(struct bottom *b, struct dm_dev *dev)
{
	int fd = dev->ops->file ? dev->ops->file(dev) : -1, error = 0;
	bool writes = dev->mode & DM_MODE_WRITE;

	if (fd < 0 || (b->fd >= 0 && (b->fd_writes || !writes)))
		return 0;
	if (b->fd >= 0) {
		set_lock(b, F_UNLCK, 0, UINT64_MAX); /* the store has the same description open */
		close(b->fd);
	}
	b->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	b->fd_writes = writes;
	if (b->fd < 0)
		return -errno;
	for (guint i = 0; i < b->extents->len && !error; i++) {
		struct extent *e = b->extents->pdata[i];

		if (e->locked)
			error = lock_sectors(e);
	}
	return error;
}

int dm_extent_lock(struct extent *e, GError **err)
{
	struct bottom *b = e->bottom;
	g_autoptr(GString) name = NULL;
	int error = 0;

	if (e->covered)
		return 0;
	if (!b->unlockable)
		error = take_file(b, e->dev);
	if (!error && b->fd >= 0 && !b->unlockable)
		error = lock_sectors(e);
	e->locked = !error;
	if (!error)
		return 0;
	name = g_string_new(NULL);
	dm_dev_print(e->dev, name);
	if (error == -EAGAIN || error == -EACCES)
		return dm_fail(err, EBUSY, "%s: the %s is in use by another program: %s is locked",
			       e->claim->ti->type->name, e->claim->what, name->str);
	dm_log_warn("%s: %s cannot be locked (%s): other daemons are not kept from it", e->claim->ti->type->name,
		    name->str, g_strerror(-error));
	b->unlockable = true;
	return 0;
}

static bool collect_locked(struct extent *e, struct extent *other, void *list)
{
	if (other->locked)
		g_ptr_array_add(list, other);
	return false;
}

void dm_extent_unlock(struct extent *e)
{
	struct bottom *b = e->bottom;
	g_autoptr(GPtrArray) others = g_ptr_array_new();
	uint64_t at = e->start;

	if (b->fd < 0 || !e->locked)
		return;
	dm_bottom_common(e, collect_locked, others);
	g_ptr_array_sort(others, by_start);
	for (guint i = 0; i < others->len; i++) {
		struct extent *o = others->pdata[i];

		if (o->start > at)
			set_lock(b, F_UNLCK, at, o->start);
		at = MAX(at, o->end);
	}
	if (at < e->end)
		set_lock(b, F_UNLCK, at, e->end);
	for (guint i = 0; i < others->len && writes(e); i++) {
		struct extent *o = others->pdata[i];

		if (!writes(o) && !dm_bottom_common(o, is_locked_writer, NULL))
			set_lock(b, F_RDLCK, MAX(o->start, e->start), MIN(o->end, e->end));
	}
}

