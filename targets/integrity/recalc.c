/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Recalculation (recalc.h): part after part is locked, read, hashed and its tags stored.  The position in the
 * superblock is moved on now and then, after the tags up to it have become durable.
 */
#include <inttypes.h>

#include <dmfs/rounding.h>

#include "bitmap.h"
#include "recalc.h"

#define PART_BYTES ((size_t)1 << 20)
#define PARTS_PER_SUPER 64u

struct integrity_recalc {
	struct integrity *ic;
	struct dm_wq *wq;
	struct dm_work work;
	atomic_bool stopped;
	unsigned parts; /* since the superblock was written */
	uint8_t *data, *tags;
};

/* --- a part ----------------------------------------------------------------------------------- */

static int recalculate(struct integrity_recalc *r, uint64_t block, unsigned blocks)
{
	struct integrity *ic = r->ic;
	struct iovec iov = {r->data, blocks * integrity_block_bytes(ic)};
	int error = dm_read_sync(ic->dev, integrity_data_sector(&ic->l, block << ic->l.log2_spb),
				 (uint64_t)blocks << ic->l.log2_spb, r->data, DM_BACKGROUND);

	for (unsigned i = 0; i < blocks && !error; i++)
		integrity_tag(ic, block + i, &iov, 1, i * integrity_block_bytes(ic),
			      r->tags + (size_t)i * ic->l.tag_size);
	return error ? error : integrity_tags_io_sync(ic->tags, block, blocks, true, r->tags);
}

static void move_to(struct integrity *ic, uint64_t block)
{
	pthread_mutex_lock(&ic->sb_lock);
	ic->sb.recalc = MIN(block << ic->l.log2_spb, ic->l.provided);
	integrity_publish_super(ic);
	pthread_mutex_unlock(&ic->sb_lock);
}

static int save(struct integrity_recalc *r)
{
	int error = integrity_tags_write_back(r->ic->tags);

	r->parts = 0;
	if (!error)
		error = dm_flush_sync(r->ic->meta);
	return error ? error : integrity_write_super(r->ic);
}

/* From a block on; *next: the first that is not done. */
static int one_part(struct integrity_recalc *r, uint64_t block, uint64_t end, uint64_t *next)
{
	struct integrity *ic = r->ic;
	uint64_t most = PART_BYTES / integrity_block_bytes(ic), blocks;
	struct dm_block_sync_claim c;
	int error;

	if (ic->bitmap)
		block = integrity_bitmap_next_unsure(ic, block, end);
	*next = block;
	if (block == end)
		return 0;
	blocks = MIN(MIN(end - block, most), integrity_run_left(&ic->l, block));
	integrity_lock_sync(ic, &c, block, block + blocks - 1);
	error = recalculate(r, block, (unsigned)blocks);
	if (!error) {
		*next = block + blocks;
		if (ic->bitmap)
			integrity_bitmap_recalculated(ic, block, *next);
		move_to(ic, *next);
	}
	integrity_unlock_sync(ic, &c);
	return error;
}

static void finished(struct integrity *ic)
{
	dm_log_info("integrity: all tags were recalculated");
	dm_target_uevent(ic->ti, "DM_INTEGRITY_RECALCULATED=1");
	if (ic->bitmap)
		integrity_bitmap_clear_now(ic);
}

static void go_on(struct dm_work *work)
{
	struct integrity_recalc *r = container_of(work, struct integrity_recalc, work);
	struct integrity *ic = r->ic;
	uint64_t block = integrity_block_of(ic, atomic_load(&ic->recalc)), end = ic->l.provided >> ic->l.log2_spb, next;
	int error;

	if (atomic_load(&r->stopped) || block >= end)
		return;
	error = one_part(r, block, end, &next);
	if (!error && next == end) {
		if (ic->bitmap)
			integrity_bitmap_recalculated(ic, 0, end);
		move_to(ic, end);
		error = save(r);
		if (!error)
			finished(ic);
	} else if (!error && ++r->parts >= PARTS_PER_SUPER) {
		error = save(r);
	}
	if (error)
		dm_log_err("integrity: recalculating stops at sector %" PRIu64 ": %s", atomic_load(&ic->recalc),
			   g_strerror(-error));
	else if (next < end)
		dm_wq_queue(r->wq, &r->work);
}

/* --- from outside ----------------------------------------------------------------------------- */

void integrity_recalc_start(struct integrity *ic)
{
	struct integrity_recalc *r = ic->recalculation;

	if (!r || !(atomic_load(&ic->flags) & SB_RECALCULATING) || atomic_load(&ic->recalc) >= ic->l.provided)
		return;
	if (!r->data) {
		r->data = g_malloc(PART_BYTES);
		r->tags = g_malloc(PART_BYTES / integrity_block_bytes(ic) * ic->l.tag_size);
	}
	atomic_store(&r->stopped, false);
	dm_wq_queue(r->wq, &r->work);
}

void integrity_recalc_stop(struct integrity *ic)
{
	if (ic->recalculation)
		atomic_store(&ic->recalculation->stopped, true);
}

void integrity_recalc_wait(struct integrity *ic)
{
	struct integrity_recalc *r = ic->recalculation;
	int error;

	if (!r)
		return;
	atomic_store(&r->stopped, true);
	dm_wq_flush(r->wq);
	error = r->parts ? save(r) : 0;
	if (error)
		dm_log_err("integrity: how far the recalculation has come cannot be written: %s", g_strerror(-error));
}

void integrity_recalc_new(struct integrity *ic)
{
	struct integrity_recalc *r = g_new0(struct integrity_recalc, 1);

	r->ic = ic;
	r->work.fn = go_on;
	atomic_init(&r->stopped, true);
	r->wq = dm_wq_new("integrity-recalc", 1);
	ic->recalculation = r;
}

void integrity_recalc_free(struct integrity *ic)
{
	struct integrity_recalc *r = ic->recalculation;

	if (!r)
		return;
	dm_wq_free(r->wq);
	g_free(r->data);
	g_free(r->tags);
	g_free(r);
}
