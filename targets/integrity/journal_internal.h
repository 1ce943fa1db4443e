/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What journal.c and replay.c share. */
#ifndef INTEGRITY_JOURNAL_INTERNAL_H
#define INTEGRITY_JOURNAL_INTERNAL_H

#include "journal.h"
#include "section.h"

struct integrity_journal {
	struct integrity *ic;
	uint8_t *mem; /* the sections */
	size_t bytes;
	uint64_t threshold; /* free entries at which the journal is brought home */

	pthread_mutex_t lock;  /* for what follows; short */
	pthread_cond_t copied; /* a section has no copies under way any more */
	/* Entries: home ≤ committed ≤ next ≤ home + entries.  The first two, and next after a commit, begin a section. */
	uint64_t home, committed, next;
	unsigned base; /* the commit id of the first time around */
	unsigned *copies; /* of each section: writes that are copying into it */
	GHashTable *newest; /* block to its newest entry */
	_Atomic uint64_t live; /* how many blocks that are */
	struct integrity_journal_write *waiting, **waiting_tail; /* for free entries */

	pthread_mutex_t commit_lock, home_lock; /* one at a time; held across I/O; home before commit */
	struct dm_wq *wq;
	struct dm_work bring_home;
	bool used; /* written to since it was started */
};

static inline uint8_t *section_mem(const struct integrity *ic, uint64_t nr)
{
	return ic->journal->mem + nr * integrity_section_bytes(&ic->l);
}

/* Of the entry with this sequence number. */
static inline uint32_t section_of(const struct integrity *ic, uint64_t entry)
{
	return (uint32_t)(entry % ic->l.entries / ic->l.section_entries);
}

static inline unsigned slot_of(const struct integrity *ic, uint64_t entry)
{
	return (unsigned)(entry % ic->l.section_entries);
}

static inline unsigned commit_id_of(const struct integrity *ic, uint64_t entry)
{
	return (unsigned)((ic->journal->base + entry / ic->l.entries) % COMMIT_IDS);
}

/* An entry that goes home. */
struct homeward {
	uint64_t block, entry;
};

/*
 * Sorts entries, of which the last of each block counts, writes data and tags where they belong, and makes them
 * durable.  Takes the blocks' locks.  0 or a negative errno.
 */
int integrity_journal_homeward(struct integrity *ic, GArray *entries);
/* Writes sealed sections, encrypted if need be, from first on; they do not wrap around. */
int integrity_journal_write_sections(struct integrity *ic, uint8_t *mem, uint32_t first, uint32_t n);
/* Writes empty sections with a commit id; wraps around. */
int integrity_journal_write_empty(struct integrity *ic, uint32_t first, uint32_t n, unsigned id);

#endif
