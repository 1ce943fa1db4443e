/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the engine tells its front end: a table was swapped, a device is gone, pages and attributes that the kernel has
 * cached are stale.
 */
#include "mount.h"
#include "node.h"

static struct {
	pthread_mutex_t lock;
	pthread_cond_t none;
	unsigned under_way[DMFS_MOUNTS];
	bool serves[DMFS_MOUNTS];
} invalidations = {.lock = PTHREAD_MUTEX_INITIALIZER, .none = PTHREAD_COND_INITIALIZER};

void dmfs_invalidate(unsigned mount, fuse_ino_t ino, off_t offset, off_t bytes)
{
	bool serves;

	pthread_mutex_lock(&invalidations.lock);
	serves = invalidations.serves[mount];
	invalidations.under_way[mount] += serves;
	pthread_mutex_unlock(&invalidations.lock);
	if (!serves)
		return;
	dm_block_begin();
	fuse_lowlevel_notify_inval_inode(dmfs_mounts[mount].session, ino, offset, bytes);
	dm_block_end();
	pthread_mutex_lock(&invalidations.lock);
	if (!--invalidations.under_way[mount])
		pthread_cond_broadcast(&invalidations.none);
	pthread_mutex_unlock(&invalidations.lock);
}

void dmfs_begin_invalidations(unsigned mount)
{
	pthread_mutex_lock(&invalidations.lock);
	invalidations.serves[mount] = true;
	pthread_mutex_unlock(&invalidations.lock);
}

void dmfs_end_invalidations(unsigned mount)
{
	pthread_mutex_lock(&invalidations.lock);
	invalidations.serves[mount] = false;
	while (invalidations.under_way[mount])
		pthread_cond_wait(&invalidations.none, &invalidations.lock);
	pthread_mutex_unlock(&invalidations.lock);
}

/* Of a device's image, with each connection that knows it; offset -1: the attributes alone. */
static void forget_cached(struct dm_mapped *md, off_t offset)
{
	for (unsigned mount = 0; mount < DMFS_MOUNTS; mount++) {
		fuse_ino_t ino = dmfs_known_image(md, mount);

		if (ino)
			dmfs_invalidate(mount, ino, offset, 0);
	}
}

static void swapped(struct dm_mapped *md)
{
	dmfs_image_swapped(md);
	forget_cached(md, 0);
}

/* Asked for the attributes, the kernel drops the pages beyond the end by itself. */
static void resized(struct dm_mapped *md)
{
	dmfs_image_swapped(md);
	forget_cached(md, -1);
}

static const struct dm_front_ops front_ops = {
	.swapped = swapped,
	.resized = resized,
	.freed = dmfs_device_freed,
};

void dmfs_nodes_init(void)
{
	static const char *names[DMFS_INODES];

	dmfs_opened_init();
	dmfs_inodes_init();
	dmfs_attr_init();
	for (unsigned i = 0; dmfs_root_files[i]; i++)
		names[i] = dmfs_root_files[i]->name;
	dm_reserve_names(names);
	dm_front = &front_ops;
}
