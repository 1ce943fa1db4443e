/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The tag area in memory: buffers of it, as many as fit into a budget, written back when somebody asks for it or when
 * room is needed.
 *
 * Who reads or writes the tags of some blocks has locked them (block_lock.h), so no two touch the same tags at once.
 */
#ifndef INTEGRITY_TAGS_H
#define INTEGRITY_TAGS_H

#include <dmfs/io.h>

#include "layout.h"

struct integrity_tags;

/* A transfer between memory and the tags of a row of blocks in one run.  In place until it is over. */
struct integrity_tag_io {
	/* The caller's: */
	uint64_t block;
	unsigned blocks;
	bool write;
	uint8_t *data; /* blocks × tag size bytes */
	/* From any thread, if integrity_tags_io() has said that it is not over: call it again. */
	void (*ready)(struct integrity_tag_io *io);
	/* The tags' own, zero at first: */
	uint64_t done; /* bytes */
	int error;
	struct integrity_tag_io *next;
};

/* dev: where the tags are.  May be NULL in the layout's absence; nothing is read yet. */
struct integrity_tags *integrity_tags_new(const struct integrity_layout *l, struct dm_dev *dev);
/* Nobody uses it any more.  What is dirty is lost. */
void integrity_tags_free(struct integrity_tags *t);

/*
 * 1: it is over; 0: it waits for a buffer, and ready() is called; else a negative errno.  Any thread, never waits.
 */
int integrity_tags_io(struct integrity_tags *t, struct integrity_tag_io *io);
/* The same, and waits; not in map() or an end(). */
int integrity_tags_io_sync(struct integrity_tags *t, uint64_t block, unsigned blocks, bool write, uint8_t *data);
/*
 * Writes all that was dirty when it was called, without a FLUSH; waits.  What could not be written stays dirty.
 * 0 or a negative errno.
 */
int integrity_tags_write_back(struct integrity_tags *t);
/* Forgets all buffers, so that what comes next is read from the disk.  No transfer is under way. */
void integrity_tags_forget(struct integrity_tags *t);

#endif
