/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the makers of a volume group's table lines share.
 *
 * A maker of segments adds what is behind "START LENGTH " to a line: lv is the volume, seg its segment.
 */
#ifndef DMFS_OPEN_LVM_TABLE_H
#define DMFS_OPEN_LVM_TABLE_H

#include "open.h"

struct lvm_ctx {
	struct vg *vg;
	const struct vg_maker *m;
	GHashTable *cow_of;	/* volume's name: segment "snapshot" whose cow_store it is */
	GHashTable *origin_of;	/* origin's name: the same, any */
	GHashTable *merge_into; /* origin's name: segment whose merging_store goes into it */
	GHashTable *reals;	/* origin's name: device */
	unsigned depth;
	GPtrArray *uses; /* devices of the table that is being made */
};

/* --- lvm_table.c --- */

uint64_t lvm_sectors(const struct lvm_ctx *c, const struct vg_lv *lv);
/* The device of a volume, made if it is not yet; NULL: err says why it cannot be. */
const char *lvm_device(struct lvm_ctx *c, const char *name, GError **err);
/* The device of the volume that a key of a segment names. */
const char *lvm_named_device(struct lvm_ctx *c, const struct lvm_item *seg, const char *key, const struct vg_lv **lv,
			     GError **err);
/* The same, with an overlay unless it may be written. */
const char *lvm_spare_device(struct lvm_ctx *c, const struct lvm_item *seg, const char *key, const struct vg_lv **lv,
			     GError **err);
/* A number of a segment that is 0 if it is not there; -EINVAL above max. */
int lvm_number_or_0(const struct lvm_item *seg, const char *key, uint64_t max, uint64_t *out, GError **err);
/* A device as a word of the table that is being made. */
void lvm_add_device(struct lvm_ctx *c, GString *line, const char *device);
/* Around a table that is made while another is; end takes what begin gave. */
GPtrArray *lvm_begin_uses(struct lvm_ctx *c);
void lvm_end_uses(struct lvm_ctx *c, GPtrArray *outer);
/* Makes a device of a volume whose table is one line of all its sectors. */
const char *lvm_make_line(struct lvm_ctx *c, const struct vg_lv *lv, const char *layer, const char *type,
			  const GString *rest, uint64_t sectors, bool writable, GError **err);

/* --- lvm_cache.c --- */

int lvm_seg_cache(struct lvm_ctx *c, struct vg_lv *lv, const struct lvm_item *seg, uint64_t extents, GString *line,
		  GError **err);
int lvm_seg_writecache(struct lvm_ctx *c, struct vg_lv *lv, const struct lvm_item *seg, uint64_t extents, GString *line,
		       GError **err);
int lvm_seg_integrity(struct lvm_ctx *c, struct vg_lv *lv, const struct lvm_item *seg, uint64_t extents, GString *line,
		      GError **err);

#endif
