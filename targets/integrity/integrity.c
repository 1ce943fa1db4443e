/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * integrity: a tag for each block, made here from its data and compared when it is read, or handed down with the bios
 * and kept (dm-integrity.rst).
 *
 *   <dev> <reserved sectors> <tag size>|- D|J|B|R <#args> [<arg>…]
 *
 * A device of zeroes is formatted when the table is loaded.  What a crash has left is brought in order at the resume; a
 * suspend leaves the disk as a clean end does.
 */
#include <inttypes.h>

#include "bitmap.h"
#include "journal.h"
#include "recalc.h"
#include "section.h"

#include <dmfs/claim.h>

/* --- failing ---------------------------------------------------------------------------------- */

void integrity_fail(struct integrity *ic, const char *what, int error)
{
	int none = 0;

	if (atomic_compare_exchange_strong(&ic->failed, &none, error))
		dm_log_err("integrity: Error on %s: %s; the device fails until its table is loaded anew", what,
			   g_strerror(-error));
}

void integrity_mismatch(struct integrity *ic, uint64_t block)
{
	uint64_t sector = block << ic->l.log2_spb;
	g_autofree char *words = NULL;
	g_autoptr(GString) name = NULL;

	atomic_fetch_add(&ic->mismatches, 1);
	if (!dm_log_allowed(&ic->told))
		return;
	name = g_string_new(NULL);
	dm_mapped_name(dm_target_mapped(ic->ti), name);
	dm_log_err("integrity: %s: Checksum failed at sector 0x%" PRIx64, name->str, sector);
	words = g_strdup_printf("DM_INTEGRITY_ERR_SECTOR=%" PRIu64, sector);
	dm_target_uevent(ic->ti, words);
}

/* --- flushes ---------------------------------------------------------------------------------- */

int integrity_make_durable(struct integrity *ic)
{
	int error = integrity_tags_write_back(ic->tags);

	if (!error && ic->meta_dev)
		error = dm_flush_sync(ic->dev);
	return error ? error : dm_flush_sync(ic->meta);
}

static int commit(void *context)
{
	struct integrity *ic = context;

	if (!ic->writes)
		return 0;
	return ic->journal ? integrity_journal_commit(ic) : integrity_make_durable(ic);
}

/* --- hooks ------------------------------------------------------------------------------------ */

static int integrity_preresume(struct dm_target *ti, GError **err)
{
	struct integrity *ic = ti->private;

	integrity_tags_forget(ic->tags);
	return integrity_start_volume(ic, err);
}

static void integrity_resume(struct dm_target *ti)
{
	struct integrity *ic = ti->private;

	if (ic->writes)
		integrity_recalc_start(ic);
}

static void integrity_presuspend(struct dm_target *ti)
{
	integrity_recalc_stop(ti->private);
}

static void integrity_postsuspend(struct dm_target *ti)
{
	struct integrity *ic = ti->private;
	int error = 0;

	integrity_recalc_wait(ic);
	dm_group_commit_settle(ic->flushes);
	if (!ic->writes)
		return;
	if (ic->journal)
		error = integrity_journal_stop(ic);
	else if (ic->bitmap)
		error = integrity_bitmap_stop(ic);
	if (!error)
		error = commit(ic);
	if (error)
		dm_log_err("integrity: not all could be written at the end: %s", g_strerror(-error));
}

/* --- status ----------------------------------------------------------------------------------- */

static void integrity_status(struct dm_target *ti, enum dm_status_type type, GString *out)
{
	struct integrity *ic = ti->private;

	if (type == DM_STATUS_TABLE) {
		integrity_print_line(ic, out);
		return;
	}
	g_string_append_printf(out, "%" PRIu64 " %" PRIu64 " ", atomic_load(&ic->mismatches), ic->l.provided);
	if (atomic_load(&ic->flags) & SB_RECALCULATING)
		g_string_append_printf(out, "%" PRIu64, atomic_load(&ic->recalc));
	else
		g_string_append_c(out, '-');
}

static int integrity_iterate_devices(struct dm_target *ti, dm_iterate_fn fn, void *data)
{
	struct integrity *ic = ti->private;
	uint64_t start = ic->meta_dev ? 0 : ic->l.start + ic->l.initial + ic->l.run;

	return fn(ti, ic->dev, start, ti->len, data);
}

static void integrity_io_hints(struct dm_target *ti, struct dm_limits *limits)
{
	struct integrity *ic = ti->private;
	unsigned block = (unsigned)integrity_block_bytes(ic);

	limits->logical_block_size = MAX(limits->logical_block_size, block);
	limits->physical_block_size = MAX(limits->physical_block_size, block);
	if (ic->l.log2_spb)
		limits->io_min = MAX(limits->io_min, block);
	if (!ic->internal_hash.hash) {
		limits->tag_bytes = ic->l.tag_size;
		limits->tag_block = block;
	}
}

/* --- making ----------------------------------------------------------------------------------- */

static void integrity_dtr(struct dm_target *ti)
{
	struct integrity *ic = ti->private;

	integrity_recalc_free(ic);
	if (ic->slow_wq)
		dm_wq_free(ic->slow_wq);
	integrity_journal_free(ic);
	integrity_bitmap_free(ic);
	if (ic->flushes)
		dm_group_commit_free(ic->flushes);
	if (ic->flush_wq)
		dm_wq_free(ic->flush_wq);
	if (ic->wq)
		dm_wq_free(ic->wq);
	integrity_tags_free(ic->tags);
	if (ic->locks)
		dm_block_lock_free(ic->locks);
	integrity_sections_free(ic->sections);
	pthread_mutex_destroy(&ic->sb_lock);
	integrity_free_options(ic);
	g_free(ic);
}

static int claim(struct integrity *ic, GError **err)
{
	enum dm_mode mode = ic->writes ? DM_MODE_RW : DM_MODE_READ;
	struct dm_dev *meta = ic->meta_dev ? ic->meta_dev : ic->dev;
	uint64_t sectors = dm_dev_sectors(meta);

	if (sectors < SB_SECTORS || ic->l.start > sectors - SB_SECTORS)
		return dm_fail(err, EINVAL,
			       "integrity: The device is too small: %" PRIu64 " sectors, the superblock is at %" PRIu64,
			       sectors, ic->l.start);
	if (ic->meta_dev && dm_dev_same(ic->meta_dev, ic->dev) && ic->ti->len > ic->l.start)
		return dm_fail(err, EINVAL,
			       "integrity: Invalid meta_device: it is the data device itself, where %" PRIu64
			       " sectors of data reach beyond its superblock at %" PRIu64,
			       ic->ti->len, ic->l.start);
	return dm_claim_range(ic->ti, meta, ic->l.start, sectors - ic->l.start, mode,
			      ic->meta_dev ? "metadata device" : "device", err);
}

/* Hashes a block of zeroes a few times. */
static void measure(struct integrity *ic)
{
	g_autofree uint8_t *zeroes = g_malloc0(integrity_block_bytes(ic));
	struct iovec iov = {zeroes, integrity_block_bytes(ic)};
	uint8_t tag[MAX_TAG];

	ic->ns_per_block = UINT64_MAX;
	for (int i = 0; i < 3; i++) {
		uint64_t begin = dm_now_ns();

		integrity_tag(ic, 0, &iov, 1, 0, tag);
		ic->ns_per_block = MIN(ic->ns_per_block, dm_now_ns() - begin);
	}
}

static int make_rooms(struct integrity *ic, GError **err)
{
	unsigned cpus = g_get_num_processors(), usual = 128 * 1024 / (unsigned)integrity_block_bytes(ic);

	ic->tags = integrity_tags_new(&ic->l, ic->meta);
	ic->locks = dm_block_lock_new((unsigned)__builtin_ctz(usual));
	ic->wq = dm_wq_new("integrity", cpus);
	ic->flush_wq = dm_wq_new("integrity-flush", 1);
	ic->slow_wq = dm_wq_new("integrity-slow", cpus);
	ic->flushes = dm_group_commit_new(ic->flush_wq, commit, ic);
	if (ic->internal_hash.hash) {
		measure(ic);
		integrity_recalc_new(ic);
	}
	if (ic->mode == 'B')
		integrity_bitmap_new(ic);
	return ic->mode == 'J' ? integrity_journal_new(ic, err) : 0;
}

static void set_target(struct integrity *ic)
{
	struct dm_target *ti = ic->ti;

	ti->per_bio_size = (uint32_t)integrity_per_bio_size(ic);
	if (!ic->meta_dev)
		ti->max_io_sectors = 1u << ic->l.log2_interleave;
	ti->split_discards = true;
	ti->num_discard_bios = ic->discards;
}

static int integrity_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct integrity *ic = g_new0(struct integrity, 1);
	int r;

	ic->ti = ti;
	ti->private = ic;
	pthread_mutex_init(&ic->sb_lock, NULL);
	r = integrity_read_line(ic, argc, argv, err);
	if (!r)
		r = claim(ic, err);
	if (!r)
		r = integrity_open_volume(ic, err);
	if (!r)
		r = make_rooms(ic, err);
	if (r) {
		integrity_dtr(ti);
		return r;
	}
	set_target(ic);
	return 0;
}

const struct dm_target_type integrity_target = {
    .name = "integrity",
    .version = {1, 10, 0},
    .features = DM_TARGET_SINGLETON | DM_TARGET_TAKES_KEYS | DM_TARGET_HANDS_OVER,
    .ctr = integrity_ctr,
    .dtr = integrity_dtr,
    .map = integrity_map,
    .end_io = integrity_end_io,
    .presuspend = integrity_presuspend,
    .presuspend_undo = integrity_resume,
    .postsuspend = integrity_postsuspend,
    .preresume = integrity_preresume,
    .resume = integrity_resume,
    .status = integrity_status,
    .iterate_devices = integrity_iterate_devices,
    .io_hints = integrity_io_hints,
};
