/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Inodes: which device and which file of it a number means, and the kernel's count of them.
 *
 * The kernel's lookup counts of all inodes of a device are one count for each connection; while one of these
 * is not 0 the device's md is kept.  Both connections know an image by the same number.
 */
#include "node.h"

static pthread_rwlock_t nodes_lock = PTHREAD_RWLOCK_INITIALIZER;
static GHashTable *devices; /* id -> struct dmfs_device */
static uint64_t next_id = 1;

/* --- devices as nodes ---------------------------------------------------------------- */

struct dmfs_device *dmfs_device_of(struct dm_mapped *md)
{
	struct dmfs_device *d;

	pthread_rwlock_wrlock(&nodes_lock);
	d = md->front;
	if (!d) {
		d = g_new0(struct dmfs_device, 1);
		d->md = md;
		d->id = next_id++;
		pthread_mutex_init(&d->lock, NULL);
		clock_gettime(CLOCK_REALTIME, &d->created);
		g_hash_table_insert(devices, &d->id, d);
		md->front = d;
	}
	pthread_rwlock_unlock(&nodes_lock);
	return d;
}

void dmfs_device_freed(struct dm_mapped *md)
{
	struct dmfs_device *d = md->front;

	if (!d)
		return;
	pthread_rwlock_wrlock(&nodes_lock);
	g_hash_table_remove(devices, &d->id);
	pthread_rwlock_unlock(&nodes_lock);
	dmfs_image_free(d);
	pthread_mutex_destroy(&d->lock);
	g_free(d);
}

void dmfs_device_put(struct dmfs_device *d)
{
	if (d)
		dm_mapped_unref(d->md);
}

fuse_ino_t dmfs_ino(struct dmfs_device *d, unsigned kind)
{
	return d->id * DMFS_INODES + kind;
}

/* The device an inode belongs to, with a reference to its md. */
static struct dmfs_device *device_by_ino(fuse_ino_t ino)
{
	uint64_t id = ino / DMFS_INODES;
	struct dmfs_device *d;

	pthread_rwlock_rdlock(&nodes_lock);
	d = g_hash_table_lookup(devices, &id);
	if (d) {
		int refs = atomic_load(&d->md->dev.refs);

		while (refs > 0 && !atomic_compare_exchange_weak(&d->md->dev.refs, &refs, refs + 1))
			;
		if (!refs) /* about to be freed */
			d = NULL;
	}
	pthread_rwlock_unlock(&nodes_lock);
	return d;
}

unsigned dmfs_count_files(const struct dmfs_file *const *files)
{
	unsigned n = 0;

	while (files[n])
		n++;
	return n;
}

unsigned dmfs_kind_of(const struct dmfs_file *const *files, const struct dmfs_file *file)
{
	unsigned n = 0;

	while (files[n] != file)
		n++;
	return n + 1;
}

bool dmfs_inode(fuse_ino_t ino, const struct dmfs_file **file, struct dmfs_device **device)
{
	unsigned kind = ino % DMFS_INODES;

	*file = NULL;
	*device = NULL;
	if (ino == FUSE_ROOT_ID)
		return true;
	if (ino < DMFS_INODES) {
		if (ino - 2 >= dmfs_count_files(dmfs_root_files))
			return false;
		*file = dmfs_root_files[ino - 2];
		return true;
	}
	if (kind > dmfs_count_files(dmfs_device_files))
		return false;
	*device = device_by_ino(ino);
	if (!*device)
		return false;
	*file = kind ? dmfs_device_files[kind - 1] : NULL;
	return true;
}

bool dmfs_is_image(fuse_ino_t ino)
{
	return ino >= DMFS_INODES && ino % DMFS_INODES == DMFS_IMAGE_KIND;
}

struct dm_mapped *dmfs_find_inode(ino_t ino)
{
	const struct dmfs_file *file;
	struct dmfs_device *d;

	if (!dmfs_inode(ino, &file, &d) || !d)
		return NULL;
	if (!file || file == &dmfs_image_file)
		return d->md;
	dmfs_device_put(d);
	return NULL;
}

static bool is_known(const struct dmfs_device *d)
{
	for (unsigned nr = 0; nr < DMFS_MOUNTS; nr++)
		if (d->nlookup[nr])
			return true;
	return false;
}

void dmfs_lookup_count(struct dmfs_device *d, unsigned mount, int64_t change)
{
	bool get, put;

	pthread_rwlock_wrlock(&nodes_lock);
	get = !is_known(d) && change > 0;
	d->nlookup[mount] += (uint64_t)change;
	put = !is_known(d) && change < 0;
	pthread_rwlock_unlock(&nodes_lock);
	if (get)
		dm_mapped_ref(d->md);
	if (put)
		dm_mapped_unref(d->md);
}

void dmfs_forget_all(unsigned mount)
{
	g_autoptr(GPtrArray) known = g_ptr_array_new();
	GHashTableIter iter;
	gpointer device;

	pthread_rwlock_wrlock(&nodes_lock);
	g_hash_table_iter_init(&iter, devices);
	while (g_hash_table_iter_next(&iter, NULL, &device)) {
		struct dmfs_device *d = device;
		bool was_known = is_known(d);

		d->nlookup[mount] = 0;
		if (was_known && !is_known(d))
			g_ptr_array_add(known, d->md);
	}
	pthread_rwlock_unlock(&nodes_lock);
	for (unsigned i = 0; i < known->len; i++)
		dm_mapped_unref(known->pdata[i]);
}

fuse_ino_t dmfs_known_image(struct dm_mapped *md, unsigned mount)
{
	struct dmfs_device *d;
	fuse_ino_t ino = 0;

	pthread_rwlock_rdlock(&nodes_lock);
	d = md->front;
	if (d && d->nlookup[mount])
		ino = dmfs_ino(d, DMFS_IMAGE_KIND);
	pthread_rwlock_unlock(&nodes_lock);
	return ino;
}

static void forget(unsigned mount, fuse_ino_t ino, uint64_t n)
{
	const struct dmfs_file *file;
	struct dmfs_device *d;

	if (ino >= DMFS_INODES && dmfs_inode(ino, &file, &d)) {
		dmfs_lookup_count(d, mount, -(int64_t)n);
		dmfs_device_put(d);
	}
}

void dmfs_op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
	forget(dmfs_mount_of(req), ino, nlookup);
	fuse_reply_none(req);
}

void dmfs_op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	for (size_t i = 0; i < count; i++)
		forget(dmfs_mount_of(req), forgets[i].ino, forgets[i].nlookup);
	fuse_reply_none(req);
}

void dmfs_inodes_init(void)
{
	devices = g_hash_table_new(g_int64_hash, g_int64_equal);
}
