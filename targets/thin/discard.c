/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Discards.  Whole blocks inside the range are unmapped, a batch at a time so
 * that others get their turn.  Data blocks that nobody refers to any more are discarded on the
 * data device, if that is asked for, but only once the unmapping is
 * committed: after a crash they would still be somebody's.  Until then the
 * allocator leaves them alone.
 */
#include "pool.h"

#include <dmfs/container_of.h>

#define BATCH 1024

/* The blocks that lie wholly inside a bio. */
static void whole_blocks(struct thin *t, struct dm_bio *bio, uint64_t *begin, uint64_t *end)
{
	uint64_t sector = dm_target_offset(t->ti, bio->sector), offset;

	*begin = pool_block(t->pool, sector, &offset);
	*begin += offset > 0;
	*end = pool_block(t->pool, sector + bio->sectors, &offset);
}

static int unmap(struct thin *t, struct dm_bio *bio, struct dm_ranges *freed)
{
	struct thin_pool *pool = t->pool;
	uint64_t begin, end;
	bool more = true;
	int r = 0, stop = 0;

	whole_blocks(t, bio, &begin, &end);
	while (!r && more && begin < end) {
		stop = dm_bio_stop_long(bio);
		if (stop)
			break;
		r = thin_md_remove(t->td, begin, end, BATCH, freed, &more);
		thin_md_yield(pool->meta);
	}
	if (!r)
		pool_check_marks(pool);
	else if (pool_mode(pool) < PM_OUT_OF_METADATA_SPACE)
		pool_metadata_failed(pool, "remove range", r);
	return r ? -EIO : stop;
}

static void discard_data(struct thin_pool *pool, const struct dm_ranges *freed)
{
	for (unsigned i = 0; i < dm_ranges_n(freed); i++) {
		struct dm_range *r = dm_ranges_at(freed, i);
		struct dm_region where = {pool->data_dev, r->begin * pool->block_sectors,
					  (r->end - r->begin) * pool->block_sectors};
		int error = dm_io_sync(DM_DISCARD, 0, 1, &where, NULL, 0, NULL);

		if (error) /* the blocks are free all the same */
			dm_log_err_limit("thin: a discard of the data device failed: %s", g_strerror(-error));
	}
}

static void process(struct thin_pool *pool, struct dm_bio_list *list)
{
	bool passdown = atomic_load(&pool->passdown);
	struct dm_ranges freed = {0};
	struct dm_bio_list done;
	struct dm_bio *bio;
	int r = 0;

	dm_bio_list_init(&done);
	while ((bio = dm_bio_list_pop(list))) {
		enum pool_mode mode = pool_mode(pool);

		if (mode >= PM_OUT_OF_METADATA_SPACE) {
			dm_bio_end(bio, mode == PM_FAIL ? -EIO : 0);
			continue;
		}
		r = unmap(thin_io(bio)->thin, bio, passdown ? &freed : NULL);
		if (r)
			dm_bio_end(bio, r);
		else
			dm_bio_list_add(&done, bio);
	}
	if (dm_ranges_n(&freed)) {
		r = pool_commit(pool, NULL);
		if (!r)
			discard_data(pool, &freed);
		thin_md_discarded(pool->meta, &freed);
	}
	pool_check_data_space(pool);
	while ((bio = dm_bio_list_pop(&done)))
		dm_bio_end(bio, 0);
}

void pool_discard_work(struct dm_work *work)
{
	struct thin_pool *pool = container_of(work, struct thin_pool, discard_work);
	struct dm_bio_list list;

	if (!dm_gate_enter(&pool->changes)) /* the resume queues us again */
		return;
	dm_bio_list_init(&list);
	dm_hold_take(&pool->discards, &list);
	process(pool, &list);
	dm_gate_exit(&pool->changes);
}
