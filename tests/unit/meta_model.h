/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Persistent data against a model.  A small client keeps, in its superblock, a
 * two-level btree, an array, a bitset and a disk space map whose blocks are the btree's values; the model is
 * plain hash tables.
 *
 * Functions assert; those that return an int return what the library said, and the model follows only successes.
 */
#ifndef DMFS_TESTS_META_MODEL_H
#define DMFS_TESTS_META_MODEL_H

#include <dmfs/bitset.h>
#include <dmfs/le.h>

#include "memdev.h"

#define DATA_BLOCKS 40000u
#define META_BLOCKS 3000u
#define IDS 6u
#define KEYS 3000u

/* A number below n; the same in every run. */
uint64_t rnd(uint64_t n);

struct client {
	struct memdev *m;
	struct dm_bm *bm;
	struct dm_tm *tm;
	struct dm_sm *data;
	struct dm_btree_info info, top;
	struct dm_array_info array;
	struct dm_bitset_info bits;
	dm_block_t root, array_root, bits_root;
	uint64_t transaction;
	uint32_t array_size, bits_size;
};

/* On an empty device of META_BLOCKS, with so many bytes of cache. */
struct client *client_new(struct memdev *m, size_t cache);
/* *out is to be closed after an error, too. */
int client_open(struct memdev *m, size_t cache, struct client **out);
int client_commit(struct client *c);
void client_close(struct client *c);
/* Counts every reference there is, and asserts that the space maps have counted the same. */
void client_audit(struct client *c);

struct model {
	GHashTable *trees; /* id -> (key -> block) */
	GArray *array, *bits;
};

struct model *model_new(void);
struct model *model_copy(struct model *m);
void model_free(struct model *m);
/* Asserts that the client holds what the model does. */
void model_compare(struct client *c, struct model *m);
/* So many random operations on both, until one fails. */
int model_operate(struct client *c, struct model *m, unsigned n);

#endif
