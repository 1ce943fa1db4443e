/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What all devices share: reference counts, and defaults for what a kind of device leaves out. */
#include <assert.h>
#include <errno.h>
#include <string.h>

#include "store.h"

struct dm_dev *dm_dev_get(struct dm_dev *dev)
{
	atomic_fetch_add_explicit(&dev->refs, 1, memory_order_relaxed);
	return dev;
}

void dm_dev_put(struct dm_dev *dev)
{
	if (dev && atomic_fetch_sub_explicit(&dev->refs, 1, memory_order_acq_rel) == 1)
		dev->ops->free(dev);
}

uint64_t dm_dev_sectors(struct dm_dev *dev)
{
	return dev->ops->sectors(dev);
}

int dm_dev_extent(struct dm_dev *dev, uint64_t sector, uint64_t sectors, struct dm_extent *out)
{
	if (dev->ops->extent)
		return dev->ops->extent(dev, sector, sectors, out);
	out->data = true;
	out->sectors = sectors;
	return 0;
}

#define MAX_STEPS 65536u

static _Thread_local unsigned provisioned_steps, provisioned_depth;

bool dm_provisioned_step(void)
{
	return provisioned_steps++ < MAX_STEPS;
}

uint64_t dm_dev_provisioned(struct dm_dev *dev, uint64_t sector, uint64_t sectors)
{
	uint64_t n;

	if (!provisioned_depth)
		provisioned_steps = 0;
	if (!dev->ops->provisioned || !dm_provisioned_step())
		return sectors;
	provisioned_depth++;
	n = dev->ops->provisioned(dev, sector, sectors);
	provisioned_depth--;
	return MIN(n, sectors);
}

void dm_dev_limits(struct dm_dev *dev, struct dm_limits *out)
{
	*out = (struct dm_limits){.logical_block_size = DM_SECTOR_SIZE, .physical_block_size = DM_SECTOR_SIZE};
	if (dev->ops->limits)
		dev->ops->limits(dev, out);
}

int dm_dev_report_zones(struct dm_dev *dev, uint64_t sector, uint64_t max, dm_zone_fn fn, void *data)
{
	assert(!dm_in_end());
	return dev->ops->report_zones ? dev->ops->report_zones(dev, sector, max, fn, data) : -EOPNOTSUPP;
}

void dm_dev_print(struct dm_dev *dev, GString *out)
{
	dev->ops->print(dev, out);
}

bool dm_dev_same(struct dm_dev *a, struct dm_dev *b)
{
	uint64_t ia[3], ib[3];

	if (a == b)
		return true;
	if (a->ops != b->ops)
		return false;
	a->ops->identity(a, ia);
	b->ops->identity(b, ib);
	return !memcmp(ia, ib, sizeof ia);
}

guint dm_dev_hash(struct dm_dev *dev)
{
	uint64_t id[3], h;

	dev->ops->identity(dev, id);
	h = (id[0] * 31 + id[1]) * 31 + id[2];
	return (guint)(h ^ h >> 32);
}
