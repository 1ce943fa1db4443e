/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Shadowing and commits.  Whether a block is new in this transaction is asked of the metadata space map: it is what was
 * free at the last commit.
 */
#include "space_map_internal.h"

#include <errno.h>
#include <string.h>

struct dm_tm {
	struct dm_bm *bm;
	struct dm_sm *sm;
	GPtrArray *joined; /* struct dm_sm, disk space maps */
};

static struct dm_tm *tm_new(struct dm_bm *bm)
{
	struct dm_tm *tm = g_new0(struct dm_tm, 1);

	tm->bm = bm;
	tm->joined = g_ptr_array_new();
	return tm;
}

void dm_tm_adopt(struct dm_tm *tm, struct dm_sm *sm)
{
	tm->sm = sm;
}

int dm_tm_create(struct dm_bm *bm, dm_block_t superblock, dm_block_t nr_blocks, struct dm_tm **out)
{
	struct dm_tm *tm = tm_new(bm);
	int r;

	tm->sm = dm_sm_metadata_create(tm, superblock, nr_blocks, &r);
	if (r) {
		dm_tm_free(tm);
		return r;
	}
	*out = tm;
	return 0;
}

int dm_tm_open(struct dm_bm *bm, dm_block_t superblock, const void *root, size_t len, struct dm_tm **out)
{
	struct dm_tm *tm = tm_new(bm);
	int r;

	tm->sm = dm_sm_metadata_open(tm, superblock, root, len, &r);
	if (r) {
		dm_tm_free(tm);
		return r;
	}
	*out = tm;
	return 0;
}

void dm_tm_free(struct dm_tm *tm)
{
	if (!tm)
		return;
	dm_sm_free(tm->sm);
	g_ptr_array_free(tm->joined, TRUE);
	g_free(tm);
}

struct dm_bm *dm_tm_bm(struct dm_tm *tm)
{
	return tm->bm;
}

struct dm_sm *dm_tm_sm(struct dm_tm *tm)
{
	return tm->sm;
}

void dm_tm_join(struct dm_tm *tm, struct dm_sm *sm)
{
	g_ptr_array_add(tm->joined, sm);
}

void dm_tm_leave(struct dm_tm *tm, struct dm_sm *sm)
{
	g_ptr_array_remove(tm->joined, sm);
}

int dm_tm_pre_commit(struct dm_tm *tm)
{
	for (unsigned i = 0; i < tm->joined->len; i++) {
		struct dm_sm *sm = tm->joined->pdata[i];
		int r = sm->ops->write(sm);

		if (r)
			return r;
	}
	return tm->sm->ops->write(tm->sm);
}

static void committed(struct dm_sm *sm)
{
	sm->ops->committed(sm);
	sm->freed = false;
}

int dm_tm_commit(struct dm_tm *tm, struct dm_block *superblock)
{
	dm_block_t where = dm_block_location(superblock);
	int r = dm_bm_flush(tm->bm);

	dm_bm_unlock(superblock);
	if (!r)
		r = dm_bm_flush(tm->bm);
	if (r) {
		dm_bm_forget(tm->bm, where); /* it must not reach the disk later on its own */
		return r;
	}
	for (unsigned i = 0; i < tm->joined->len; i++)
		committed(tm->joined->pdata[i]);
	committed(tm->sm);
	return 0;
}

int dm_tm_new_block(struct dm_tm *tm, const struct dm_validator *v, struct dm_block **out)
{
	dm_block_t b;
	int r = dm_sm_new_block(tm->sm, &b);

	if (r)
		return r;
	r = dm_bm_write_lock_zero(tm->bm, b, v, out);
	if (r)
		dm_sm_dec(tm->sm, b, b + 1);
	return r;
}

/* Copies orig into a new block, moving one reference. */
static int copy_block(struct dm_tm *tm, dm_block_t orig, const struct dm_validator *v, struct dm_block **out)
{
	struct dm_block *from, *to;
	int r = dm_bm_read_lock(tm->bm, orig, v, &from);

	if (r)
		return r;
	r = dm_tm_new_block(tm, v, &to);
	if (!r)
		memcpy(dm_block_data(to), dm_block_data(from), dm_bm_block_size(tm->bm));
	dm_bm_unlock(from);
	if (r)
		return r;
	r = dm_sm_dec(tm->sm, orig, orig + 1);
	if (r) {
		dm_bm_unlock(to);
		return r;
	}
	*out = to;
	return 0;
}

int dm_tm_shadow_block(struct dm_tm *tm, dm_block_t orig, const struct dm_validator *v, struct dm_block **out,
		       bool *inc_children)
{
	uint32_t count;
	bool fresh;
	int r = dm_sm_count(tm->sm, orig, &count);

	if (r)
		return r;
	if (!count)
		return -EILSEQ;
	r = dm_sm_is_fresh(tm->sm, orig, &fresh);
	if (r)
		return r;
	*inc_children = count > 1;
	if (fresh && count == 1)
		r = dm_bm_write_lock(tm->bm, orig, v, out);
	else
		r = copy_block(tm, orig, v, out);
	return r == -EDEADLK ? -EILSEQ : r;
}

int dm_tm_read_lock(struct dm_tm *tm, dm_block_t b, const struct dm_validator *v, struct dm_block **out)
{
	int r = dm_bm_read_lock(tm->bm, b, v, out);

	return r == -EDEADLK ? -EILSEQ : r;
}

void dm_tm_unlock(struct dm_tm *tm, struct dm_block *block)
{
	dm_bm_unlock(block);
}

int dm_tm_inc(struct dm_tm *tm, dm_block_t b)
{
	return dm_sm_inc(tm->sm, b, b + 1);
}

int dm_tm_inc_many(struct dm_tm *tm, const uint64_t *le_blocks, unsigned n)
{
	return dm_sm_add_runs(tm->sm, le_blocks, n, 1);
}

int dm_tm_dec(struct dm_tm *tm, dm_block_t b)
{
	uint32_t count;
	int r = dm_sm_dec(tm->sm, b, b + 1);

	if (!r)
		r = dm_sm_count(tm->sm, b, &count);
	if (!r && !count) /* nobody will read it: the next commit need not write it */
		dm_bm_forget(tm->bm, b);
	return r;
}

int dm_tm_ref(struct dm_tm *tm, dm_block_t b, uint32_t *count)
{
	return dm_sm_count(tm->sm, b, count);
}
