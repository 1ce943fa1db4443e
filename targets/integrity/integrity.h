/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What the rooms of the integrity target share.
 *
 *   options.c    the table line and back          section.c, journal.c, replay.c           mode J
 *   layout.c     the arithmetic                   bitmap.c                                mode B
 *   super.c      the superblock's bytes           recalc.c                                tags made anew
 *   volume.c     formatting, opening, resume      integrity.c                             the target
 *   tags.c       the tag area in memory           map.c, piece.c                          a bio's way
 *
 * Blocks are those of the volume.  Who reads a block and its tag holds its lock shared, who writes them exclusively
 * (map.c says when); so what a reader compares belongs together.
 */
#ifndef INTEGRITY_H
#define INTEGRITY_H

#include <pthread.h>
#include <stdatomic.h>

#include <dmfs/block_lock.h>
#include <dmfs/container_of.h>
#include <dmfs/group_commit.h>
#include <dmfs/hash.h>
#include <dmfs/keys.h>
#include <dmfs/target.h>
#include <dmfs/work.h>

#include "layout.h"
#include "super.h"
#include "tags.h"

#define DISCARD_FILLER 0xf6 /* tags of discarded blocks */
#define MS_NS 1000000ull

/* An algorithm, and its key if one was given. */
struct integrity_alg {
	char *name; /* NULL: not given */
	bool has_key;
	struct dm_key key;
	struct dm_hash *hash; /* journal_crypt has none */
};

struct integrity_journal;
struct integrity_sections;
struct integrity_bitmap;
struct integrity_recalc;

struct integrity {
	struct dm_target *ti;
	struct dm_dev *dev, *meta_dev; /* meta_dev: NULL without one of its own */
	struct dm_dev *meta;	       /* where superblock, journal and tags are: one of the two */
	struct integrity_layout l;
	char mode;   /* D, J, B or R */
	bool writes; /* anything at all: not in R, not of a read-only device */

	/* The table's: */
	unsigned journal_sectors, interleave, buffer_sectors, watermark, commit_ms, flush_ms;
	unsigned log2_bit;
	bool recalculate, reset_recalculate, discards, fix_padding, fix_hmac, legacy_recalculate;
	struct integrity_alg internal_hash, journal_mac, journal_crypt;
	struct integrity_sections *sections;

	bool salted;		   /* tags begin with the superblock's salt */
	struct integrity_super sb; /* sb_lock; changes in hooks, and by the recalculation; the salt never */
	pthread_mutex_t sb_lock;
	atomic_uint flags;	 /* sb's, for who must not wait */
	_Atomic uint64_t recalc; /* sectors: tags up to here are right */

	struct integrity_tags *tags;
	struct dm_block_lock *locks;
	struct dm_wq *wq, *flush_wq, *slow_wq;
	struct dm_group_commit *flushes;
	struct integrity_journal *journal;
	struct integrity_bitmap *bitmap;
	struct integrity_recalc *recalculation;
	uint64_t ns_per_block;
	_Atomic uint64_t mismatches;
	struct dm_log_limit told; /* of mismatches */
	atomic_int failed;	  /* for good: the error all I/O gets */
};

static inline uint64_t integrity_block_of(const struct integrity *ic, uint64_t sector)
{
	return sector >> ic->l.log2_spb;
}

static inline size_t integrity_block_bytes(const struct integrity *ic)
{
	return (size_t)DM_SECTOR_SIZE << ic->l.log2_spb;
}

/* integrity.c: something is wrong for good; the first of it is logged. */
void integrity_fail(struct integrity *ic, const char *what, int error);
/* A block's tag is not that of its data. */
void integrity_mismatch(struct integrity *ic, uint64_t block);

/* Writes the tags in memory back, and flushes the devices.  Waits. */
int integrity_make_durable(struct integrity *ic);

/* options.c */
int integrity_read_line(struct integrity *ic, int argc, char **argv, GError **err);
void integrity_print_line(struct integrity *ic, GString *out);
void integrity_free_options(struct integrity *ic);

/* volume.c */
/* In ctr: reads the superblock, or formats the device; the layout. */
int integrity_open_volume(struct integrity *ic, GError **err);
/* In preresume: what was left behind is brought in order, for the mode. */
int integrity_start_volume(struct integrity *ic, GError **err);
/* sb_lock is free; may wait. */
int integrity_write_super(struct integrity *ic);
/* Makes flags and position of the superblock known to who must not wait.  sb_lock held. */
void integrity_publish_super(struct integrity *ic);

/* piece.c: a row of blocks on its way between data device and tags. */
struct integrity_piece {
	struct integrity_tag_io tio;
	struct dm_work work;
	struct integrity *ic;
	struct dm_bio *bio; /* whose data it is */
	uint8_t *tags;	    /* of all of them: made here if there is a hash, else those from above */
	bool hashed;
	/* From any thread, if integrity_piece_run() has returned false. */
	void (*done)(struct integrity_piece *p, int error);
};

/* The tag of a block of data that lies at an offset of an iov: tag_size bytes. */
void integrity_tag(struct integrity *ic, uint64_t block, const struct iovec *iov, int iovcnt, size_t at, uint8_t *tag);
/* bytes is the row's data; they are in bio from its first byte on. */
void integrity_piece_init(struct integrity_piece *p, struct integrity *ic, struct dm_bio *bio, uint64_t block,
			  unsigned blocks, uint8_t *tags, void (*done)(struct integrity_piece *p, int error));
/* After the data were read or written: compares or stores the tags.  True: over, *error says how. */
bool integrity_piece_run(struct integrity_piece *p, int *error);
/* Whether two tags are equal, without telling by the time it takes where they differ. */
bool integrity_tags_equal(const uint8_t *a, const uint8_t *b, size_t n);

/* map.c */
size_t integrity_per_bio_size(const struct integrity *ic);
enum dm_mapio integrity_map(struct dm_target *ti, struct dm_bio *bio);
enum dm_endio integrity_end_io(struct dm_target *ti, struct dm_bio *bio);
/* Locks blocks exclusively, and waits for it.  Not in map() or an end(). */
void integrity_lock_sync(struct integrity *ic, struct dm_block_sync_claim *c, uint64_t first, uint64_t last);
void integrity_unlock_sync(struct integrity *ic, struct dm_block_sync_claim *c);

#endif
