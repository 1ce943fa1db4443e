/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Backing stores that have zones: a file with a zones file beside it (zoned_file.c), a zoned block device
 * (zoned_block.c). */
#ifndef DMFS_IO_ZONED_H
#define DMFS_IO_ZONED_H

#include "store.h"
#include "zones_text.h"

#define ZONES_SUFFIX ".zones"

/*
 * If there is a zones file beside what was found, *dev, its plain store, becomes the zoned disk that the two are.  0,
 * and *dev may be as it was; or a negative errno, and *dev has been put: -EINVAL they do not fit, -EBUSY another
 * program has it, -EACCES, -EROFS, …
 */
int dm_zoned_file_wrap(const struct dm_opener *who, const struct dm_store_path *p, enum dm_mode mode,
		       struct dm_dev **dev, GError **err);

/*
 * If *dev, the plain store of a block device, has zones it becomes a device with zones.  0, and *dev may be as it was;
 * or a negative errno, and *dev has been put.
 */
int dm_zoned_block_wrap(struct dm_dev **dev, GError **err);
/* ioctl(2), for tests. */
extern int (*zoned_block_ioctl)(int fd, unsigned long request, void *arg);

/*
 * Where the text of the zones is kept, so that it outlives us.  What both calls wrote is durable when they return 0.
 * They come one at a time and may wait.
 */
struct zones_keeper {
	/* Adds a batch: lines of zones, with what ends a batch. */
	int (*append)(struct zones_keeper *k, const GString *batch);
	/* Puts a text in the place of all there is; after a crash there is the one or the other. */
	int (*rewrite)(struct zones_keeper *k, const GString *text);
	void (*close)(struct zones_keeper *k);
};

/*
 * A zoned disk: data on a plain device, which is at least as long as the zones say, its zones, and who keeps them
 * (NULL: nothing can be written).  All three are taken over, whatever comes of it.
 */
struct dm_dev *dm_zoned_new(struct dm_dev *inner, struct zones *z, struct zones_keeper *keeper);

/*
 * A zones file, opened as its opener and locked against other programs if it is to be written.  0; -ENOENT: there is
 * none, and no error is set; -EINVAL, -EBUSY, -EACCES, -EROFS, -EFBIG.
 */
int zones_file_open(const struct dm_opener *who, const char *path, bool write, struct zones *z,
		    struct zones_keeper **keeper, GError **err);

/*
 * Zones in memory and what may be done with them: the rules of a disk, without any I/O.  The lock is the caller's; only
 * the write pointer of a zone may be read without, atomically.
 */
struct zone_rules {
	struct zones z;
	unsigned implicit, explicit_, closed; /* how many zones are open, and closed */
	GArray *implicits; /* unsigned: the zones that are open implicitly, the oldest first; if max_open */
};

void zone_rules_init(struct zone_rules *r);
void zone_rules_clear(struct zone_rules *r);
/*
 * A write of so many sectors that begins at a zone's offset, which moves the write pointer.  0; -EIO; as the kernel has
 * it -EOVERFLOW too many zones are active, -ETOOMANYREFS too many are open.
 */
int zone_rules_write(struct zone_rules *r, unsigned i, uint32_t offset, uint32_t sectors);
/* The last write to a zone failed: it is as if it had not been, but for what is open. */
void zone_rules_take_back(struct zone_rules *r, unsigned i, uint32_t offset);
int zone_rules_open(struct zone_rules *r, unsigned i);
int zone_rules_close(struct zone_rules *r, unsigned i);
int zone_rules_finish(struct zone_rules *r, unsigned i);
/* Whether it may be; and that it has been. */
int zone_rules_may_reset(const struct zone_rules *r, unsigned i);
void zone_rules_reset(struct zone_rules *r, unsigned i);

#endif
