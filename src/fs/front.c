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
	unsigned under_way;
	bool ending;
} invalidations = {.lock = PTHREAD_MUTEX_INITIALIZER, .none = PTHREAD_COND_INITIALIZER};

void dmfs_invalidate(fuse_ino_t ino, off_t offset, off_t bytes)
{
	bool ending;

	pthread_mutex_lock(&invalidations.lock);
	ending = invalidations.ending;
	invalidations.under_way += !ending;
	pthread_mutex_unlock(&invalidations.lock);
	if (ending)
		return;
	dm_block_begin();
	fuse_lowlevel_notify_inval_inode(dmfs_mounts[DMFS_TREE].session, ino, offset, bytes);
	dm_block_end();
	pthread_mutex_lock(&invalidations.lock);
	if (!--invalidations.under_way)
		pthread_cond_broadcast(&invalidations.none);
	pthread_mutex_unlock(&invalidations.lock);
}

void dmfs_end_invalidations(void)
{
	pthread_mutex_lock(&invalidations.lock);
	invalidations.ending = true;
	while (invalidations.under_way)
		pthread_cond_wait(&invalidations.none, &invalidations.lock);
	pthread_mutex_unlock(&invalidations.lock);
}

static void forget_cached(struct dm_mapped *md)
{
	fuse_ino_t ino = dmfs_known_image(md);

	if (ino && dmfs_mounts[DMFS_TREE].session)
		dmfs_invalidate(ino, 0, 0);
}

static void swapped(struct dm_mapped *md)
{
	dmfs_image_swapped(md);
	forget_cached(md);
}

/* Asked for the attributes, the kernel drops the pages beyond the end by itself. */
static void resized(struct dm_mapped *md)
{
	fuse_ino_t ino = dmfs_known_image(md);

	dmfs_image_swapped(md);
	if (ino && dmfs_mounts[DMFS_TREE].session)
		dmfs_invalidate(ino, -1, 0);
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
