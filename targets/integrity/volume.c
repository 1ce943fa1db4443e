/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The volume's superblock in use: formatting and opening in ctr, and what a resume finds and brings in order.
 *
 * A resume in the other modes finds what the mode before has left: a journal is replayed in every mode but R; regions
 * marked dirty in a bitmap are recalculated, in mode B those alone, in the others all there is.  Each step leaves the
 * disk so that a crash after it is seen by the next resume as the crash before it.
 */
#include <inttypes.h>
#include <sys/random.h>

#include "bitmap.h"
#include "journal.h"
#include "section.h"

/* --- the superblock ---------------------------------------------------------------------------------------- */

void integrity_publish_super(struct integrity *ic)
{
	atomic_store(&ic->recalc, ic->sb.recalc);
	atomic_store(&ic->flags, ic->sb.flags);
}

int integrity_write_super(struct integrity *ic)
{
	g_autofree uint8_t *bytes = g_malloc(SB_BYTES);

	pthread_mutex_lock(&ic->sb_lock);
	integrity_super_print(&ic->sb, ic->journal_mac.hash, ic->mode == 'B', ic->meta_dev, bytes);
	integrity_publish_super(ic);
	pthread_mutex_unlock(&ic->sb_lock);
	return dm_write_sync(ic->meta, ic->l.start, SB_SECTORS, bytes, DM_FUA | DM_META);
}

static int read_super(struct integrity *ic, struct integrity_super *sb, enum integrity_found *found, GError **err)
{
	g_autofree uint8_t *bytes = g_malloc(SB_BYTES);
	uint64_t sectors = dm_dev_sectors(ic->meta);
	int error;

	if (sectors < SB_SECTORS || ic->l.start > sectors - SB_SECTORS)
		return dm_fail(err, EINVAL, "integrity: The device is too small: %" PRIu64 " sectors, the superblock is at %" PRIu64,
			       sectors, ic->l.start);
	error = dm_read_sync(ic->meta, ic->l.start, SB_SECTORS, bytes, DM_META);
	if (error)
		return dm_fail(err, -error, "integrity: Error reading superblock: %s", g_strerror(-error));
	*found = integrity_super_parse(bytes, sb);
	if (*found == SUPER_FOUND && ic->mode != 'R' && !integrity_super_mac_right(sb, ic->journal_mac.hash, bytes))
		return dm_fail(err, EILSEQ, "integrity: Error reading superblock: its MAC is wrong: another journal_mac key, or "
					    "somebody has changed it");
	return 0;
}

/* --- formatting ----------------------------------------------------------------------------------------------- */

static int fill_super(struct integrity *ic, GError **err)
{
	struct integrity_layout *l = &ic->l;
	struct integrity_super *sb = &ic->sb;

	*sb = (struct integrity_super){
		.log2_interleave = l->log2_interleave,
		.tag_size = l->tag_size,
		.log2_spb = l->log2_spb,
		.sections = l->sections,
		.provided = l->provided,
		.flags = l->journal_mac ? SB_JOURNAL_MAC : 0,
	};
	if (ic->fix_padding && !l->separate)
		sb->flags |= SB_FIXED_PADDING;
	if (ic->fix_hmac && (ic->internal_hash.name || ic->journal_mac.name)) {
		sb->flags |= SB_FIXED_HMAC;
		if (getrandom(sb->salt, SALT_BYTES, 0) != SALT_BYTES)
			return dm_fail(err, EIO, "integrity: no random numbers for a salt: %s", g_strerror(errno));
	}
	return 0;
}

static int write_format(struct integrity *ic, GError **err)
{
	int error;

	if (ic->mode == 'R')
		return 0;
	if (!ic->writes)
		return dm_fail(err, EROFS, "integrity: The device is not initialized, and a read-only table cannot format it");
	error = integrity_journal_erase(ic);
	if (!error)
		error = integrity_write_super(ic);
	if (error)
		return dm_fail(err, -error, "integrity: Error initializing journal or superblock: %s", g_strerror(-error));
	ic->formatted = true;
	return 0;
}

/* --- opening -------------------------------------------------------------------------------------------------- */

static int layout(struct integrity *ic, enum integrity_found found, GError **err)
{
	int r;

	ic->l.separate = ic->meta_dev;
	ic->l.data_sectors = dm_dev_sectors(ic->dev);
	ic->l.meta_sectors = dm_dev_sectors(ic->meta);
	if (found != SUPER_FOUND) {
		r = integrity_layout_format(&ic->l, ic->journal_sectors, ic->interleave, err);
		if (!r)
			r = fill_super(ic, err);
	} else {
		r = integrity_super_check(&ic->sb, &ic->l, err);
		if (r)
			return r;
		integrity_super_to_layout(&ic->sb, &ic->l);
		r = integrity_layout_open(&ic->l, err);
	}
	if (r)
		return r;
	integrity_layout_bitmap(&ic->l, ic->log2_bit);
	if (found != SUPER_FOUND)
		ic->sb.log2_blocks_per_bit = ic->l.log2_bit - ic->l.log2_spb;
	ic->salted = ic->sb.flags & SB_FIXED_HMAC;
	if (ic->ti->len > ic->l.provided)
		return dm_fail(err, EINVAL,
			       "integrity: Not enough provided sectors for requested mapping size: %" PRIu64 " are provided, %"
			       PRIu64 " wanted", ic->l.provided, ic->ti->len);
	return 0;
}

/* With a key somebody who can write the disk must not get tags made for what he has written. */
static bool recalculation_is_unsafe(const struct integrity *ic)
{
	if (ic->legacy_recalculate)
		return false;
	if (ic->sb.flags & SB_FIXED_HMAC)
		return ic->internal_hash.has_key && !ic->journal_mac.has_key;
	return ic->internal_hash.has_key || ic->journal_mac.has_key;
}

static int check_recalculation(struct integrity *ic, GError **err)
{
	if (ic->recalculate && !(ic->sb.flags & SB_RECALCULATING)) {
		ic->sb.flags |= SB_RECALCULATING;
		ic->sb.recalc = 0;
	}
	if (!(ic->sb.flags & SB_RECALCULATING))
		return 0;
	if (!ic->internal_hash.hash)
		return dm_fail(err, EINVAL, "integrity: Recalculate can only be specified with internal_hash");
	if (ic->sb.recalc < ic->l.provided && recalculation_is_unsafe(ic))
		return dm_fail(err, EOPNOTSUPP,
			       "integrity: Recalculating with HMAC is disabled for security reasons - if you really need it, "
			       "use the argument \"legacy_recalculate\"");
	return 0;
}

int integrity_open_volume(struct integrity *ic, GError **err)
{
	enum integrity_found found;
	int r;

	ic->meta = ic->meta_dev ? ic->meta_dev : ic->dev;
	r = read_super(ic, &ic->sb, &found, err);
	if (r)
		return r;
	if (found == SUPER_NONE && ic->mode != 'R')
		return dm_fail(err, EINVAL, "integrity: The device is not initialized: at sector %" PRIu64
			       " is neither a superblock nor 4096 bytes of zeroes", ic->l.start);
	r = layout(ic, found, err);
	if (!r)
		r = check_recalculation(ic, err);
	if (!r && ic->mode != 'R')
		r = integrity_sections_new(ic, &ic->sections, err);
	if (r)
		return r;
	integrity_publish_super(ic);
	return found == SUPER_FOUND ? 0 : write_format(ic, err);
}

/* --- resuming --------------------------------------------------------------------------------------------------- */

/* Another table may have written it since ctr; nobody else may. */
static int read_super_again(struct integrity *ic, uint64_t *old_provided, GError **err)
{
	bool recalculating = ic->sb.flags & SB_RECALCULATING;
	enum integrity_found found;
	struct integrity_super sb;
	int r = read_super(ic, &sb, &found, err);

	if (r)
		return r;
	if (found != SUPER_FOUND || sb.sections != ic->l.sections || sb.log2_interleave != ic->l.log2_interleave ||
	    sb.tag_size != ic->l.tag_size || sb.log2_spb != ic->l.log2_spb ||
	    (sb.flags ^ ic->sb.flags) & (SB_JOURNAL_MAC | SB_FIXED_PADDING | SB_FIXED_HMAC) ||
	    memcmp(sb.salt, ic->sb.salt, SALT_BYTES))
		return dm_fail(err, EINVAL, "integrity: the superblock is not the one that was there when the table was loaded");
	*old_provided = sb.provided;
	pthread_mutex_lock(&ic->sb_lock);
	ic->sb = sb;
	ic->sb.provided = ic->l.provided;
	if (recalculating && !(sb.flags & SB_RECALCULATING)) {
		ic->sb.flags |= SB_RECALCULATING;
		ic->sb.recalc = 0;
	}
	if (ic->reset_recalculate) {
		ic->sb.flags |= SB_RECALCULATING;
		ic->sb.recalc = 0;
	}
	ic->sb.recalc = MIN(ic->sb.recalc, ic->l.provided);
	pthread_mutex_unlock(&ic->sb_lock);
	return 0;
}

static int super_failed(int error, GError **err)
{
	return error ? dm_fail(err, -error, "integrity: the superblock cannot be written: %s", g_strerror(-error)) : 0;
}

/* A bitmap was left to a mode that has none. */
static int take_over_bitmap(struct integrity *ic, GError **err)
{
	bool any;
	int error = integrity_bitmap_any(ic, &any);

	if (error)
		return dm_fail(err, -error, "integrity: the bitmap cannot be read: %s", g_strerror(-error));
	if (any && !ic->internal_hash.hash)
		return dm_fail(err, EINVAL, "integrity: the bitmap has dirty regions, which only an internal_hash can recalculate");
	if (!ic->writes)
		return any ? dm_fail(err, EROFS, "integrity: the bitmap has dirty regions, and the table is read-only") : 0;
	if (any) {
		pthread_mutex_lock(&ic->sb_lock);
		ic->sb.flags |= SB_RECALCULATING;
		ic->sb.recalc = 0;
		pthread_mutex_unlock(&ic->sb_lock);
		error = integrity_write_super(ic);
	}
	if (!error)
		error = integrity_journal_erase(ic);
	if (error)
		return dm_fail(err, -error, "integrity: the bitmap cannot be made a journal: %s", g_strerror(-error));
	pthread_mutex_lock(&ic->sb_lock);
	ic->sb.flags &= ~(unsigned)SB_DIRTY_BITMAP;
	pthread_mutex_unlock(&ic->sb_lock);
	return super_failed(integrity_write_super(ic), err);
}

int integrity_start_volume(struct integrity *ic, GError **err)
{
	uint64_t old_provided = 0;
	bool dirty;
	int r;

	if (ic->mode == 'R')
		return 0;
	r = read_super_again(ic, &old_provided, err);
	if (r)
		return r;
	dirty = ic->sb.flags & SB_DIRTY_BITMAP;
	if (dirty && ic->mode != 'B')
		r = take_over_bitmap(ic, err);
	if (!r && (!dirty || (ic->mode != 'B' && ic->writes)))
		r = integrity_journal_start(ic, err);
	if (!r && ic->mode == 'B')
		r = integrity_bitmap_start(ic, dirty, old_provided, err);
	if (!r && ic->writes)
		r = super_failed(integrity_write_super(ic), err);
	if (!r && !ic->writes)
		integrity_publish_super(ic);
	return r;
}
