/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An array of values of one size in persistent data: a btree of blocks that are full of values.  Roots and errors are
 * as in btree.h; the size is the caller's to remember.  -ENODATA: an index beyond the size.
 */
#ifndef DMFS_ARRAY_H
#define DMFS_ARRAY_H

#include <dmfs/btree.h>

struct dm_array_info {
	struct dm_tm *tm;
	struct dm_btree_value_type vt; /* of the values */
	struct dm_btree_info btree;
};

/* info must stay where it is. */
void dm_array_info_init(struct dm_array_info *info, struct dm_tm *tm, const struct dm_btree_value_type *vt);

int dm_array_empty(struct dm_array_info *info, dm_block_t *root);
/* An array of size values, each from fn (which takes the value's reference). */
int dm_array_new(struct dm_array_info *info, dm_block_t *root, uint32_t size,
		 int (*fn)(void *context, uint32_t index, void *value), void *context);
/* New values, if any, are copies of value, and each gets a reference. */
int dm_array_resize(struct dm_array_info *info, dm_block_t root, uint32_t old_size, uint32_t new_size,
		    const void *value, dm_block_t *new_root);
int dm_array_del(struct dm_array_info *info, dm_block_t root);
int dm_array_get(struct dm_array_info *info, dm_block_t root, uint32_t index, void *value);
int dm_array_set(struct dm_array_info *info, dm_block_t root, uint32_t index, const void *value,
		 dm_block_t *new_root);
/* The values of index to index + n - 1, which follow one another at values; after an error some of them may be set. */
int dm_array_set_run(struct dm_array_info *info, dm_block_t root, uint32_t index, uint32_t n, const void *values,
		     dm_block_t *new_root);
/* Calls fn for each value, in order, until it returns other than 0. */
int dm_array_walk(struct dm_array_info *info, dm_block_t root,
		  int (*fn)(void *context, uint32_t index, const void *value), void *context);

/*
 * Steps through an array, holding no locks; the array must not change meanwhile.  The blocks to come are read ahead,
 * so going through ten million values waits for few of them.
 */
struct dm_array_cursor {
	struct dm_array_info *info;
	dm_block_t root;
	uint32_t index, size;
	uint32_t at, n;          /* of the values here */
	bool begun;              /* blocks is in use */
	unsigned ahead;          /* of the entries in blocks: those before it have been asked for */
	struct dm_btree_cursor blocks;
	uint8_t values[DM_META_BLOCK_SIZE];
};
/* All -ENODATA: at the end.  -EILSEQ: the array is shorter than its size, or damaged. */
int dm_array_cursor_begin(struct dm_array_info *info, dm_block_t root, uint32_t size, struct dm_array_cursor *c);
int dm_array_cursor_next(struct dm_array_cursor *c);
/* As n times next. */
int dm_array_cursor_skip(struct dm_array_cursor *c, uint32_t n);
/* Its value; good until the cursor moves. */
static inline const void *dm_array_cursor_get(const struct dm_array_cursor *c)
{
	return c->values + (size_t)c->at * c->info->vt.size;
}

#endif
