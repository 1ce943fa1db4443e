/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What both space maps share: the format's readers, writers and checks, and the calls through their ops. */
#include "space_map_internal.h"
#include <dmfs/le.h>

#include <dmfs/log.h>

#include <errno.h>
#include <string.h>

#define BITMAP_SEED 240779
#define INDEX_SEED 160478

/* Both kinds of block begin with a checksum of what follows it, a word of zeroes and their own number. */
static void prepare(dm_block_t where, void *data, size_t size, uint32_t seed)
{
	put_le32(data + 4, 0);
	put_le64(data + 8, where);
	put_le32(data, dm_bm_checksum(data + 4, size - 4, seed));
}

static int check(const char *what, dm_block_t where, const void *data, size_t size, uint32_t seed)
{
	uint32_t sum;

	if (get_le64(data + 8) != where) {
		dm_log_err_limit("space map: %s block %" G_GUINT64_FORMAT " says it is block %" G_GUINT64_FORMAT, what, where,
				 get_le64(data + 8));
		return -ENOTBLK;
	}
	sum = dm_bm_checksum(data + 4, size - 4, seed);
	if (sum != get_le32(data)) {
		dm_log_err_limit("space map: %s block %" G_GUINT64_FORMAT " has checksum %u, its content %u", what, where,
				 get_le32(data), sum);
		return -EILSEQ;
	}
	return 0;
}

static void bitmap_prepare(void *context, dm_block_t where, void *data, size_t size)
{
	prepare(where, data, size, BITMAP_SEED);
}

static int bitmap_check(void *context, dm_block_t where, const void *data, size_t size)
{
	return check("bitmap", where, data, size, BITMAP_SEED);
}

static void index_prepare(void *context, dm_block_t where, void *data, size_t size)
{
	prepare(where, data, size, INDEX_SEED);
}

static int index_check(void *context, dm_block_t where, const void *data, size_t size)
{
	return check("index", where, data, size, INDEX_SEED);
}

const struct dm_validator sm_bitmap_validator = {"space map bitmap", bitmap_prepare, bitmap_check, NULL};
const struct dm_validator sm_index_validator = {"space map index", index_prepare, index_check, NULL};

int sm_root_read(const void *root, size_t len, struct sm_root *out)
{
	if (len < DM_SM_ROOT_SIZE)
		return -EILSEQ;
	out->nr_blocks = get_le64(root);
	out->nr_allocated = get_le64(root + 8);
	out->bitmap_root = get_le64(root + 16);
	out->ref_count_root = get_le64(root + 24);
	/* More would overflow a sector number whatever the block size. */
	if (out->nr_allocated > out->nr_blocks || out->nr_blocks >> 55) {
		dm_log_err("space map: %" G_GUINT64_FORMAT " of %" G_GUINT64_FORMAT " blocks allocated cannot be",
			   out->nr_allocated, out->nr_blocks);
		return -EILSEQ;
	}
	return 0;
}

void sm_root_write(const struct sm_root *in, void *root)
{
	put_le64(root, in->nr_blocks);
	put_le64(root + 8, in->nr_allocated);
	put_le64(root + 16, in->bitmap_root);
	put_le64(root + 24, in->ref_count_root);
}

void index_entry_read(const void *le, struct index_entry *out)
{
	out->blocknr = get_le64(le);
	out->nr_free = MIN(get_le32(le + 8), BITMAP_ENTRIES);
	out->none_free_before = MIN(get_le32(le + 12), BITMAP_ENTRIES);
}

void index_entry_write(const struct index_entry *in, void *le)
{
	put_le64(le, in->blocknr);
	put_le32(le + 8, in->nr_free);
	put_le32(le + 12, in->none_free_before);
}

uint32_t bitmap_find_free(const uint8_t *bits, const uint8_t *old, uint32_t begin, uint32_t end)
{
	for (uint32_t i = begin; i < end;) {
		uint64_t word;

		if (i % 32 == 0 && end - i >= 32) { /* none of 32 is free: every pair has a bit in one of the two */
			memcpy(&word, bits + i / 4, 8);
			if (old) {
				uint64_t more;

				memcpy(&more, old + i / 4, 8);
				word |= more;
			}
			word |= word >> 1;
			if ((word & 0x5555555555555555ull) == 0x5555555555555555ull) {
				i += 32;
				continue;
			}
		}
		if (!bitmap_get(bits, i) && (!old || !bitmap_get(old, i)))
			return i;
		i++;
	}
	return end;
}

int dm_sm_add_runs(struct dm_sm *sm, const uint64_t *le_blocks, unsigned n, int delta)
{
	for (unsigned i = 0, run; i < n; i += run) {
		dm_block_t b = get_le64(le_blocks + i);
		int r;

		for (run = 1; i + run < n && get_le64(le_blocks + i + run) == b + run;)
			run++;
		if (b + run < b)
			return -EILSEQ;
		r = sm->ops->add(sm, b, b + run, delta);
		if (r)
			return r;
	}
	return 0;
}

void dm_sm_free(struct dm_sm *sm)
{
	if (sm)
		sm->ops->free(sm);
}

dm_block_t dm_sm_nr_blocks(struct dm_sm *sm)
{
	return sm->ops->nr_blocks(sm);
}

dm_block_t dm_sm_nr_free(struct dm_sm *sm)
{
	return sm->ops->nr_free(sm);
}

int dm_sm_extend(struct dm_sm *sm, dm_block_t extra)
{
	return sm->ops->extend(sm, extra);
}

int dm_sm_count(struct dm_sm *sm, dm_block_t b, uint32_t *count)
{
	return sm->ops->count(sm, b, count);
}

int dm_sm_inc(struct dm_sm *sm, dm_block_t b, dm_block_t e)
{
	return sm->ops->add(sm, b, e, 1);
}

int dm_sm_dec(struct dm_sm *sm, dm_block_t b, dm_block_t e)
{
	return sm->ops->add(sm, b, e, -1);
}

int dm_sm_new_block(struct dm_sm *sm, dm_block_t *b)
{
	return sm->ops->new_block(sm, b);
}

int dm_sm_is_fresh(struct dm_sm *sm, dm_block_t b, bool *fresh)
{
	return sm->ops->is_fresh(sm, b, fresh);
}

bool dm_sm_has_freed(struct dm_sm *sm)
{
	return sm->freed;
}

void dm_sm_copy_root(struct dm_sm *sm, void *root)
{
	sm->ops->copy_root(sm, root);
}
