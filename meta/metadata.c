/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Metadata devices that begin with a superblock (dmfs/metadata.h). */
#include <inttypes.h>
#include <string.h>

#include <dmfs/le.h>
#include <dmfs/log.h>
#include <dmfs/metadata.h>

enum sb {
	SB_BLOCKNR = 8,
	SB_MAGIC = 32,
	SB_VERSION = 40,
};

/* --- the validator ------------------------------------------------------------------------------- */

static uint32_t checksum(const struct dm_md *md, const uint8_t *sb, size_t size)
{
	return dm_bm_checksum(sb + 4, size - 4, md->format->seed);
}

static void prepare(void *context, dm_block_t where, void *data, size_t size)
{
	put_le64((uint8_t *)data + SB_BLOCKNR, where);
	put_le32(data, checksum(context, data, size));
}

static int check(void *context, dm_block_t where, const void *data, size_t size)
{
	const struct dm_md *md = context;
	const struct dm_md_format *f = md->format;
	const uint8_t *sb = data;
	uint32_t version = get_le32(sb + SB_VERSION);

	if (get_le64(sb + SB_BLOCKNR) != where) {
		dm_log_err("%s: superblock says it is block %" PRIu64 ", wanted %" PRIu64, f->name,
			   get_le64(sb + SB_BLOCKNR), where);
		return -ENOTBLK;
	}
	if (get_le64(sb + SB_MAGIC) != f->magic) {
		dm_log_err("%s: superblock has magic %" PRIu64 ", wanted %" PRIu64, f->name, get_le64(sb + SB_MAGIC),
			   f->magic);
		return -EILSEQ;
	}
	if (get_le32(sb) != checksum(md, sb, size)) {
		dm_log_err("%s: superblock has checksum %" PRIu32 ", its content %" PRIu32, f->name, get_le32(sb),
			   checksum(md, sb, size));
		return -EILSEQ;
	}
	if (f->max_version && (version < f->min_version || version > f->max_version)) {
		g_autofree char *known = f->min_version == f->max_version ?
						 g_strdup_printf("only %u is", f->min_version) :
						 g_strdup_printf("%u to %u are", f->min_version, f->max_version);

		dm_log_err("%s: version %u, %s known", f->name, version, known);
		return -EINVAL;
	}
	return 0;
}

/* --- opening and committing ------------------------------------------------------------------------ */

void dm_md_init(struct dm_md *md, const struct dm_md_format *format, struct dm_dev *dev, uint32_t version)
{
	md->format = format;
	md->validator = (struct dm_validator){format->name, prepare, check, md};
	md->dev = dev;
	md->bm = dm_bm_new(dev, DM_META_BLOCK_SIZE, format->cache_bytes);
	md->flags = 0;
	md->version = version;
}

uint64_t dm_md_dev_blocks(struct dm_dev *dev)
{
	return MIN(dm_dev_sectors(dev) / DM_META_BLOCK_SECTORS, DM_SM_METADATA_MAX_BLOCKS);
}

static void update_usage(struct dm_md *md)
{
	struct dm_sm *sm = dm_tm_sm(md->tm);

	atomic_store(&md->total, dm_sm_nr_blocks(sm));
	atomic_store(&md->used, dm_sm_nr_blocks(sm) - dm_sm_nr_free(sm));
}

void dm_md_usage(struct dm_md *md, uint64_t *used, uint64_t *total)
{
	*used = atomic_load(&md->used);
	*total = atomic_load(&md->total);
}

static int commit(struct dm_md *md, bool fresh)
{
	const struct dm_md_format *f = md->format;
	struct dm_block *block;
	uint8_t *sb;
	int r = f->prepare ? f->prepare(md) : 0;

	if (!r)
		r = dm_tm_pre_commit(md->tm);
	if (!r)
		r = fresh ? dm_bm_write_lock_zero(md->bm, DM_MD_SUPERBLOCK, &md->validator, &block) :
			    dm_bm_write_lock(md->bm, DM_MD_SUPERBLOCK, &md->validator, &block);
	if (r)
		return r;
	sb = dm_block_data(block);
	put_le32(sb + DM_MD_FLAGS, md->flags);
	put_le64(sb + SB_MAGIC, f->magic);
	put_le32(sb + SB_VERSION, md->version);
	dm_sm_copy_root(dm_tm_sm(md->tm), sb + f->sm_root);
	f->fill(md, sb);
	r = dm_tm_commit(md->tm, block);
	if (!r)
		update_usage(md);
	return r;
}

int dm_md_commit(struct dm_md *md)
{
	return commit(md, false);
}

static int format(struct dm_md *md)
{
	int r = dm_tm_create(md->bm, DM_MD_SUPERBLOCK, dm_md_dev_blocks(md->dev), &md->tm);

	if (!r)
		r = md->format->begin(md, NULL);
	return r ? r : commit(md, true);
}

int dm_md_load(struct dm_md *md, GError **err)
{
	const struct dm_md_format *f = md->format;
	struct dm_block *block;
	const uint8_t *sb;
	int r = dm_bm_read_lock(md->bm, DM_MD_SUPERBLOCK, &md->validator, &block);

	if (r)
		return r;
	sb = dm_block_data(block);
	md->flags = get_le32(sb + DM_MD_FLAGS);
	md->version = get_le32(sb + SB_VERSION);
	r = f->read(md, sb, err);
	if (!r)
		r = dm_tm_open(md->bm, DM_MD_SUPERBLOCK, sb + f->sm_root, DM_SM_ROOT_SIZE, &md->tm);
	if (!r)
		r = f->begin(md, sb);
	dm_bm_unlock(block);
	if (!r)
		update_usage(md);
	return r;
}

static int is_all_zeroes(struct dm_bm *bm, bool *zeroes)
{
	struct dm_block *block;
	const uint8_t *p;
	int r = dm_bm_read_lock(bm, DM_MD_SUPERBLOCK, NULL, &block);

	if (r)
		return r;
	p = dm_block_data(block);
	*zeroes = !p[0] && !memcmp(p, p + 1, DM_META_BLOCK_SIZE - 1);
	dm_bm_unlock(block);
	dm_bm_forget(bm, DM_MD_SUPERBLOCK); /* it has been cached without a validator */
	return 0;
}

int dm_md_open(struct dm_md *md, bool may_format, bool *fresh, GError **err)
{
	int r;

	*fresh = false;
	r = is_all_zeroes(md->bm, fresh);
	if (r || !*fresh)
		return r ? r : dm_md_load(md, err);
	return may_format ? format(md) : -EPERM;
}

void dm_md_close(struct dm_md *md)
{
	dm_tm_free(md->tm);
	dm_bm_free(md->bm);
	md->tm = NULL;
	md->bm = NULL;
}

/* --- metadata snapshots ------------------------------------------------------------------------------ */

int dm_md_hold(struct dm_md *md, const struct dm_md_root *roots, unsigned n, void (*edit)(uint8_t *sb),
	       dm_block_t *held)
{
	struct dm_block *block, *copy;
	const uint8_t *sb;
	int r = dm_bm_read_lock(md->bm, DM_MD_SUPERBLOCK, &md->validator, &block);

	if (r)
		return r;
	sb = dm_block_data(block);
	r = dm_tm_new_block(md->tm, &md->validator, &copy);
	if (!r) {
		memcpy(dm_block_data(copy), sb, DM_META_BLOCK_SIZE);
		edit(dm_block_data(copy));
		*held = dm_block_location(copy);
		dm_tm_unlock(md->tm, copy);
	}
	for (unsigned i = 0; i < n && !r; i++)
		r = dm_tm_inc(md->tm, get_le64(sb + roots[i].at));
	dm_bm_unlock(block);
	return r;
}

int dm_md_release(struct dm_md *md, const struct dm_md_root *roots, unsigned n, dm_block_t *held)
{
	g_autofree dm_block_t *trees = g_new(dm_block_t, n);
	dm_block_t where = *held;
	struct dm_block *copy;
	int r = dm_tm_read_lock(md->tm, where, &md->validator, &copy);

	if (r)
		return r;
	for (unsigned i = 0; i < n; i++)
		trees[i] = get_le64((uint8_t *)dm_block_data(copy) + roots[i].at);
	dm_tm_unlock(md->tm, copy);
	*held = 0;
	for (unsigned i = 0; i < n && !r; i++)
		r = dm_btree_del(roots[i].info, trees[i]);
	return r ? r : dm_tm_dec(md->tm, where);
}
