/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a journal holds when it is opened, and what is done with it (journal.h, section.h).
 *
 * The commit ids take turns, 0 1 2 3 0 …, one for each time around.  So the disk shows at most three of them: those of
 * the last time around (in the sections from the first on), of the time before (in the rest), and, amid an erasure, of
 * the one that an erasure writes, which is two before the last.  The one that is in none of the sectors tells which is
 * the last:
 *
 *      section   0    1    2    3    4
 *      id        2    2    1    1    1      3 is missing, so 2 is the last; section 2 is the oldest
 *
 * Sections are replayed from the oldest on as long as each sector has the id it should have.  A section that was cut
 * short by a crash is the last one written, so the oldest begins behind it and the replay ends at it.
 *
 * All that is to be replayed is verified before anything is written: MACs, sectors, and tags if there is a hash.
 *
 * The journal goes on where it ended if it was whole and the mode is J (or there was nothing in it); else it is erased:
 * first the oldest section, at the end the newest, so that a crash amid that is seen as such.
 */
#include <inttypes.h>

#include <dmfs/le.h>

#include "journal_internal.h"

struct found {
	bool empty;                     /* no entry is in use, or an erasure was cut short */
	unsigned last, want;            /* the last time around; the id that the oldest section has */
	uint32_t oldest, whole;         /* the sections to replay */
	unsigned next_id;               /* after them */
};

static unsigned before(unsigned id)
{
	return (id + COMMIT_IDS - 1) % COMMIT_IDS;
}

static unsigned after(unsigned id)
{
	return (id + 1) % COMMIT_IDS;
}

/* --- reading ------------------------------------------------------------------------------------------------------- */

static int read_journal(struct integrity *ic, GError **err)
{
	uint32_t most = (uint32_t)MAX(((size_t)1 << 20) / integrity_section_bytes(&ic->l), 1);
	int error = 0;

	for (uint32_t i = 0; i < ic->l.sections && !error; i += most) {
		uint32_t n = MIN(most, ic->l.sections - i);

		error = dm_read_sync(ic->meta, ic->l.start + SB_SECTORS + (uint64_t)i * ic->l.section_sectors,
				     (uint64_t)n * ic->l.section_sectors, section_mem(ic, i), DM_META);
		for (uint32_t k = 0; k < n && !error; k++)
			error = integrity_section_decrypt(ic, section_mem(ic, i + k), i + k);
	}
	return error ? dm_fail(err, -error, "integrity: the journal cannot be read: %s", g_strerror(-error)) : 0;
}

static bool section_empty(struct integrity *ic, uint32_t nr)
{
	for (unsigned e = 0; e < ic->l.section_entries; e++)
		if (get_le64(integrity_entry(&ic->l, section_mem(ic, nr), e)) >> 32 != UNUSED_SECTOR >> 32)
			return false;
	return true;
}

/* Which ids are there, and in which section each was seen last. */
static int see_ids(struct integrity *ic, struct found *f, bool seen[COMMIT_IDS], uint32_t at[COMMIT_IDS], GError **err)
{
	f->empty = true;
	for (uint32_t nr = 0; nr < ic->l.sections; nr++) {
		for (unsigned j = 0; j < ic->l.section_sectors; j++) {
			int id = integrity_section_id(ic, section_mem(ic, nr), nr, j);

			if (id < 0)
				return dm_fail(err, EIO,
					       "integrity: journal commit id: sector %u of section %u has none; it is not a journal of "
					       "this device, or journal_crypt is another", j, nr);
			seen[id] = true;
			at[id] = nr;
		}
		f->empty = f->empty && section_empty(ic, nr);
	}
	return 0;
}

/* The first of those that are missing, counted from the one after the last. */
static int missing_id(const bool seen[COMMIT_IDS], unsigned *missing, GError **err)
{
	unsigned id = COMMIT_IDS - 1;

	if (!seen[id]) {
		while (id && !seen[id - 1])
			id--;
	} else {
		for (id = 0; id < COMMIT_IDS && seen[id]; id++)
			;
		if (id == COMMIT_IDS)
			return dm_fail(err, EIO, "integrity: journal commit ids: all four are in use; the journal is broken");
	}
	*missing = id;
	return 0;
}

static bool section_has(struct integrity *ic, uint32_t nr, unsigned id)
{
	for (unsigned j = 0; j < ic->l.section_sectors; j++)
		if (integrity_section_id(ic, section_mem(ic, nr), nr, j) != (int)id)
			return false;
	return true;
}

static int look(struct integrity *ic, struct found *f, GError **err)
{
	bool seen[COMMIT_IDS] = {false};
	uint32_t at[COMMIT_IDS] = {0};
	unsigned missing = 0, id;
	uint32_t nr;
	int r = see_ids(ic, f, seen, at, err);

	if (!r)
		r = missing_id(seen, &missing, err);
	if (r)
		return r;
	f->last = before(missing);
	id = before(f->last);
	if (!seen[id] && seen[before(id)])
		f->empty = true;
	f->oldest = at[f->last] + 1;
	if (f->oldest >= ic->l.sections) {
		f->oldest = 0;
		id = after(id);
	}
	f->want = id;
	nr = f->oldest;
	for (f->whole = 0; f->whole < ic->l.sections && section_has(ic, nr, id); f->whole++)
		if (++nr == ic->l.sections) {
			nr = 0;
			id = after(id);
		}
	f->next_id = id;
	return 0;
}

/* --- what is replayed ------------------------------------------------------------------------------------------------ */

static int verify_entry(struct integrity *ic, uint32_t nr, unsigned slot, uint64_t sector, GError **err)
{
	uint8_t *section = section_mem(ic, nr), tag[MAX_TAG];
	g_autofree uint8_t *data = NULL;
	struct iovec iov;

	if (sector & ((1u << ic->l.log2_spb) - 1))
		return dm_fail(err, EIO, "integrity: invalid sector in journal: %" PRIu64 " is not the begin of a block", sector);
	if (!ic->internal_hash.hash)
		return 0;
	data = g_malloc(integrity_block_bytes(ic));
	iov = (struct iovec){data, integrity_block_bytes(ic)};
	integrity_entry_get(&ic->l, section, slot, &iov, 1, 0);
	integrity_tag(ic, sector >> ic->l.log2_spb, &iov, 1, 0, tag);
	if (integrity_tags_equal(tag, integrity_entry_tag(&ic->l, integrity_entry(&ic->l, section, slot)), ic->l.tag_size))
		return 0;
	return dm_fail(err, EILSEQ, "integrity: tag mismatch when replaying journal, at sector %" PRIu64, sector);
}

/* The entries of a section in use; those beyond the volume's end are left out. */
static int gather(struct integrity *ic, uint32_t nr, uint64_t first_entry, GArray *entries, GError **err)
{
	int r = 0;

	if (!integrity_section_mac_right(ic, section_mem(ic, nr), nr))
		return dm_fail(err, EILSEQ, "integrity: journal mac: that of section %u is wrong: another journal_mac key, or "
					    "somebody has changed the journal", nr);
	for (unsigned slot = 0; slot < ic->l.section_entries && !r; slot++) {
		uint64_t sector = get_le64(integrity_entry(&ic->l, section_mem(ic, nr), slot));

		if (sector >= ic->l.provided)
			continue;
		r = verify_entry(ic, nr, slot, sector, err);
		g_array_append_val(entries, ((struct homeward){sector >> ic->l.log2_spb, first_entry + slot}));
	}
	return r;
}

static int replay(struct integrity *ic, const struct found *f, GError **err)
{
	g_autoptr(GArray) entries = g_array_new(FALSE, FALSE, sizeof(struct homeward));
	uint64_t entry = (uint64_t)f->oldest * ic->l.section_entries;
	int r = 0;

	for (uint32_t i = 0; i < f->whole && !r; i++, entry += ic->l.section_entries)
		r = gather(ic, section_of(ic, entry), entry, entries, err);
	if (r)
		return r;
	if (entries->len && !ic->writes)
		return dm_fail(err, EROFS, "integrity: the journal has to be replayed, and the table is read-only; mode R reads "
					   "without it");
	if (entries->len)
		dm_log_info("integrity: %u blocks are replayed from the journal", entries->len);
	r = integrity_journal_homeward(ic, entries);
	return r ? dm_fail(err, -r, "integrity: copying from journal: %s", g_strerror(-r)) : 0;
}

static int erase(struct integrity *ic, const struct found *f, unsigned id)
{
	uint32_t n = ic->l.sections, newest = (f->oldest + n - 1) % n;
	int error = integrity_journal_write_empty(ic, f->oldest, 1, id);

	if (!error && n > 2)
		error = integrity_journal_write_empty(ic, (f->oldest + 1) % n, n - 2, id);
	if (!error && n > 1)
		error = integrity_journal_write_empty(ic, newest, 1, id);
	return error;
}

/* --- hooks --------------------------------------------------------------------------------------------------------------- */

static void go_on_from(struct integrity *ic, uint32_t section, unsigned id)
{
	struct integrity_journal *j = ic->journal;

	j->home = j->committed = j->next = (uint64_t)section * ic->l.section_entries;
	j->base = id;
	j->used = false;
	memset(j->copies, 0, ic->l.sections * sizeof *j->copies);
	g_hash_table_remove_all(j->newest);
	atomic_store(&j->live, 0);
}

static int start(struct integrity *ic, GError **err)
{
	struct found f;
	unsigned id;
	int r = read_journal(ic, err);

	if (!r)
		r = look(ic, &f, err);
	if (!r && !f.empty)
		r = replay(ic, &f, err);
	if (r)
		return r;
	if (!ic->writes || (f.whole == ic->l.sections && (ic->mode == 'J' || f.empty))) {
		go_on_from(ic, f.oldest, f.next_id);
		return 0;
	}
	id = before(before(f.last));
	r = erase(ic, &f, id);
	if (r)
		return dm_fail(err, -r, "integrity: the journal cannot be cleared: %s", g_strerror(-r));
	go_on_from(ic, 0, after(id));
	return 0;
}

int integrity_journal_start(struct integrity *ic, GError **err)
{
	int r = ic->journal ? 0 : integrity_journal_new(ic, err);

	if (!r)
		r = start(ic, err);
	if (ic->mode != 'J')
		integrity_journal_free(ic);
	return r;
}

int integrity_journal_stop(struct integrity *ic)
{
	struct integrity_journal *j = ic->journal;
	uint32_t first;
	int error;

	if (!ic->writes || !j->used)
		return 0;
	error = integrity_journal_commit(ic);
	if (!error)
		error = integrity_journal_write_home(ic);
	if (error)
		return error;
	first = section_of(ic, j->next);
	error = integrity_journal_write_empty(ic, first, ic->l.sections - first, commit_id_of(ic, j->next));
	if (!error)
		error = integrity_journal_write_empty(ic, 0, first, (commit_id_of(ic, j->next) + 1) % COMMIT_IDS);
	return error;
}
