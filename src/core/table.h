/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A table: contiguous targets from sector 0 on.
 *
 * It is built by one thread (a draft), completed, and from then on never changes; who uses it outside a bio holds a
 * reference.  Dropping the last one runs the targets' dtr.
 */
#ifndef DMFS_CORE_TABLE_H
#define DMFS_CORE_TABLE_H

#include "io/store.h"

#include <dmfs/target.h>

#define DM_TABLE_BLOCK 256 /* targets are allocated in blocks of this many and never move */

struct dm_table_dev;

struct dm_table {
	atomic_int refs;
	struct dm_mapped *md; /* it was loaded for; a reference */
	enum dm_mode mode;
	struct dm_opener opener;
	bool restoring; /* is being built from the state database */
	bool standing_in; /* its lines are of types that stand in for absent ones */
	atomic_bool secret; /* holds a key */
	uint64_t id;    /* never used again; rows in the state database belong to it */
	uint64_t sectors;
	_Atomic uint64_t capacity; /* of these, what bios may reach */
	unsigned n;
	GPtrArray *blocks;
	GPtrArray *memory; /* they are in */
	/* The btree: level 0 is the root, the last level's keys are the targets' last sectors. */
	unsigned depth;
	unsigned *level_nodes;
	uint64_t **levels;
	/*
	 * Most targets are as long as this, one after the other: sector / stride, shifted, is a guess.  0: they are
	 * not.
	 */
	uint64_t stride;
	int64_t stride_shift; /* sectors */
	pthread_mutex_t devs_lock; /* for the next four; devs is changed with the topology lock as well */
	GHashTable *devs;       /* struct dm_dev * -> struct dm_table_dev * */
	unsigned devs_used;     /* how many there have been */
	GHashTable *devs_names; /* "MODE NAME" -> struct dm_table_dev *, for lines that name the same */
	struct dm_dev **flush_devs; /* whom a FLUSH goes to for targets with DM_TARGET_FLUSH_DEVICES */
	unsigned n_flush_devs;
	bool own_flush; /* some target takes FLUSH by map() */
	bool has_flush; /* and some target but those of DM_TARGET_FLUSH_LAST has use for one */
	struct dm_limits limits;
};

struct dm_table *dm_table_new(struct dm_mapped *md, enum dm_mode mode, const struct dm_opener *opener);
/* Tables made from now on have ids from this one on. */
void dm_table_ids_from(uint64_t id);
/* Whether it holds a key, after a message may have given it one or taken it. */
void dm_table_count_secrets(struct dm_table *t);
struct dm_table *dm_table_ref(struct dm_table *t);
void dm_table_unref(struct dm_table *t);
/*
 * The same for a table that was a device's live or inactive one until now: returns when the others who just look at it
 * have done so, and its targets are destroyed.  Not with a lock of the device, or a reference more of one's own.
 */
void dm_table_drop(struct dm_table *t);
/* The lines that follow are another's: what was resolved for the first opener is not for him to use by name. */
void dm_table_set_opener(struct dm_table *t, const struct dm_opener *opener);

/*
 * Adds a target: "START LENGTH TYPE ARGS".  The line is changed (split into words).  On an error the table is as it
 * was.
 */
int dm_table_add_line(struct dm_table *t, char *line, GError **err);
/* Adds a target from its parts. */
int dm_table_add(struct dm_table *t, uint64_t start, uint64_t len, const char *type, int argc, char **argv,
		 GError **err);
/* No more lines: builds the index.  An empty table is an error. */
int dm_table_complete(struct dm_table *t, GError **err);

static inline struct dm_target *dm_table_target(const struct dm_table *t, unsigned i)
{
	return (struct dm_target *)t->blocks->pdata[i / DM_TABLE_BLOCK] + i % DM_TABLE_BLOCK;
}

/* The target a sector below t->sectors belongs to. */
struct dm_target *dm_table_find(const struct dm_table *t, uint64_t sector);

/* "START LENGTH TYPE STATUS" lines. */
/* The table with its keys.  out has room for all of it already, so that no copy of a key stays behind. */
void dm_table_print_keys(struct dm_table *t, GString *out);
void dm_table_print(struct dm_table *t, enum dm_status_type type, GString *out);
/* Names of the devices it uses, one a line. */
void dm_table_print_deps(struct dm_table *t, GString *out);
/* Calls fn for every dmfs device it uses; topology lock held. */
void dm_table_each_mapped(struct dm_table *t, void (*fn)(struct dm_mapped *, void *), void *data);

void dm_table_presuspend(struct dm_table *t);
void dm_table_presuspend_undo(struct dm_table *t);
void dm_table_postsuspend(struct dm_table *t);
/* On an error those that had it are left as they are. */
int dm_table_preresume(struct dm_table *t, GError **err);
void dm_table_resume(struct dm_table *t);
void dm_table_end_waiting(struct dm_table *t);
/* Data or hole at a sector below t->sectors. */
int dm_table_extent(struct dm_table *t, uint64_t sector, uint64_t sectors, struct dm_extent *out);
/* As dm_dev_provisioned(), of a range below t->sectors. */
uint64_t dm_table_provisioned(struct dm_table *t, uint64_t sector, uint64_t sectors);

/* Tells of zones from a sector on (dm_dev_report_zones()). */
int dm_table_report_zones(struct dm_table *t, uint64_t sector, uint64_t max, dm_zone_fn fn, void *data);

/* limits.c: fills in t->limits, when all targets are there. */
int dm_table_limits(struct dm_table *t, GError **err);

/*
 * A key in the wrong place is still a key.  Whatever could be one, 16 or more hexadecimal digits that are not just a
 * decimal number, 32 or more in any case, becomes asterisks.
 */
void dm_hide_keys(char *text);
/* Splits a line into words, in place; a backslash quotes the next character. The vector ends with NULL. */
GPtrArray *dm_split_words(char *line);

#endif
