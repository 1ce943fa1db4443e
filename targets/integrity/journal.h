/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Mode J: data and tags go into the journal, are durable there with a commit, and go home when it fills.
 *
 * Entries have sequence numbers, which only grow; an entry's place is its number modulo the number of entries.  The
 * journal is in memory as it is on the disk.
 */
#ifndef INTEGRITY_JOURNAL_H
#define INTEGRITY_JOURNAL_H

#include "integrity.h"

#define NOT_IN_JOURNAL UINT64_MAX

/* A write on its way into the journal, embedded in its bio's room. */
struct integrity_journal_write {
	struct dm_bio *bio;
	const uint8_t *tags; /* without a hash; NULL: zeroes */
	uint64_t block;
	unsigned blocks;
	void (*done)(struct integrity_journal_write *w, int error); /* any thread */
	unsigned entered; /* the journal's own */
	struct integrity_journal_write *next;
};

/* -ENOMEM: it does not fit into memory. */
int integrity_journal_new(struct integrity *ic, GError **err);
void integrity_journal_free(struct integrity *ic);

/* Never waits; done() is called when all blocks are in the journal, perhaps before this returns. */
void integrity_journal_write(struct integrity *ic, struct integrity_journal_write *w);
/*
 * Which of some blocks are in the journal, and as which entry: entries[i], or NOT_IN_JOURNAL.  True if any is.  The
 * caller holds their locks, and what is said is right as long as he does.
 */
bool integrity_journal_find(struct integrity *ic, uint64_t block, unsigned blocks, uint64_t *entries);
/* Copies an entry that was found so: a block at an offset of an iov, and its tag if wanted. */
void integrity_journal_read(struct integrity *ic, uint64_t entry, const struct iovec *iov, int iovcnt, size_t at,
			    uint8_t *tag);

/* These wait.  Commit: what has been done() is durable.  Home: all that is committed is where it belongs, and durable. */
int integrity_journal_commit(struct integrity *ic);
int integrity_journal_write_home(struct integrity *ic);

/* Hooks.  Start: replays what is there, or clears it; the mode may be any but R.  Nothing is written if it fails. */
int integrity_journal_start(struct integrity *ic, GError **err);
/* At a suspend of mode J: everything goes home, and the journal on the disk is made empty. */
int integrity_journal_stop(struct integrity *ic);
/* Writes an empty journal whose sections all have the first commit id.  Also without integrity_journal_start(). */
int integrity_journal_erase(struct integrity *ic);

#endif
