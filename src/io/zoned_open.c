/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which files are zoned disks: those with a zones file beside them when they are opened, and by whatever other name
 * they are opened while they are.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <dmfs/error.h>

#include "zoned_disk.h"

static GPtrArray *disks; /* zoned_disks_lock */

/* zoned_disks_lock is held. */
static struct zoned_disk *find_disk(const uint64_t id[3])
{
	for (guint i = 0; disks && i < disks->len; i++) {
		struct zoned_disk *d = disks->pdata[i];

		if (!memcmp(d->id, id, sizeof d->id))
			return d;
	}
	return NULL;
}

static void forget_disk(struct zoned_disk *d)
{
	g_ptr_array_remove_fast(disks, d);
}

/* Beside the name, or else beside what a link of that name leads to. */
static int open_zones(const struct dm_opener *who, const struct dm_store_path *p, bool write, struct zones *z,
		      struct zones_keeper **keeper, GError **err)
{
	g_autofree char *beside = g_strconcat(p->path, ZONES_SUFFIX, NULL), *real_beside = NULL;
	g_autofree char *self = g_strdup_printf("/proc/self/fd/%d", p->fd), *real = g_file_read_link(self, NULL);
	int error = zones_file_open(who, beside, write, z, keeper, err);

	if (error != -ENOENT || !real || !strcmp(real, p->path))
		return error;
	real_beside = g_strconcat(real, ZONES_SUFFIX, NULL);
	return zones_file_open(who, real_beside, write, z, keeper, err);
}

static bool same_zones(const struct zones *a, const struct zones *b)
{
	for (unsigned i = 0; i < a->n && a->n == b->n; i++)
		if (a->zone[i].wp != b->zone[i].wp || a->zone[i].type != b->zone[i].type ||
		    a->zone[i].condition != b->zone[i].condition || a->zone[i].capacity != b->zone[i].capacity)
			return false;
	return a->n == b->n && a->zone_sectors == b->zone_sectors;
}

/* A disk that was only read is to be written: its zones are what they were, for nobody else could write either. */
static int upgrade(struct zoned_disk *d, const struct dm_opener *who, const struct dm_store_path *p, GError **err)
{
	struct zones z;
	int error = open_zones(who, p, true, &z, &d->keeper, err);

	if (error == -ENOENT)
		return dm_fail(err, ENOENT, "%s" ZONES_SUFFIX " has gone while the disk was in use", p->path);
	if (error)
		return error;
	if (!same_zones(&z, &d->r.z)) {
		d->keeper->close(d->keeper);
		d->keeper = NULL;
		error = dm_fail(err, EBUSY, "%s" ZONES_SUFFIX " was changed while the disk was in use for reading",
				p->path);
	} else {
		d->base = z.base_bytes;
		d->batches = z.bytes - z.base_bytes;
		d->commits = z.commits;
	}
	zones_clear(&z);
	return error;
}

/* Of a file that is no disk yet; *out stays NULL if it has no zones. */
static int open_disk(const struct dm_opener *who, const struct dm_store_path *p, bool write, struct dm_dev *inner,
		     struct zoned_disk **out, GError **err)
{
	struct zones_keeper *keeper;
	struct zones z;
	int error = open_zones(who, p, write, &z, &keeper, err);

	if (error)
		return error == -ENOENT ? 0 : error;
	if (dm_dev_sectors(inner) != z.sectors) {
		error = dm_fail(err, EINVAL, "%s has %" PRIu64 " sectors, the zones of %s" ZONES_SUFFIX " %" PRIu64,
				p->path, dm_dev_sectors(inner), p->path, z.sectors);
		if (keeper)
			keeper->close(keeper);
		zones_clear(&z);
		return error;
	}
	*out = zoned_disk_new(&z, keeper);
	inner->ops->identity(inner, (*out)->id);
	(*out)->gone = forget_disk;
	if (!disks)
		disks = g_ptr_array_new();
	g_ptr_array_add(disks, *out);
	return 0;
}

int dm_zoned_file_wrap(const struct dm_opener *who, const struct dm_store_path *p, enum dm_mode mode,
		       struct dm_dev **dev, GError **err)
{
	bool write = mode & DM_MODE_WRITE;
	struct zoned_disk *d;
	uint64_t id[3];
	int error = 0;

	(*dev)->ops->identity(*dev, id);
	dm_block_begin();
	pthread_mutex_lock(&zoned_disks_lock);
	d = find_disk(id);
	if (d) {
		error = write && !d->keeper ? upgrade(d, who, p, err) : 0;
		d->refs += !error;
	} else {
		error = open_disk(who, p, write, *dev, &d, err);
	}
	if (d && !error)
		*dev = zoned_dev_new(*dev, d);
	pthread_mutex_unlock(&zoned_disks_lock);
	dm_block_end();
	if (error)
		dm_dev_put(*dev);
	return error;
}
