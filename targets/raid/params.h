/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * raid's table line (dm-raid.rst): its types, and reading and printing it.
 *
 *   <type> <#params> <chunk> [<param>]* <#devs> [<meta dev> <data dev>]+
 */
#ifndef DMFS_TARGETS_RAID_PARAMS_H
#define DMFS_TARGETS_RAID_PARAMS_H

#include <dmfs/target.h>

#include "layout.h"

struct raid_type {
	const char *name;
	unsigned level, layout; /* as superblocks have them; raid10: near, far or offset, by name alone */
	unsigned parity;	/* devices that may be lost */
	unsigned min_disks;
};

/* By the name of a line, in any case; NULL if there is none. */
const struct raid_type *raid_type_by_name(const char *name);
/* What status calls it; NULL for numbers that are no type's. */
const struct raid_type *raid_type_of(unsigned level, unsigned layout);

/* The parameters in the order they are printed. */
enum raid_param {
	RAID_SYNC,
	RAID_NOSYNC,
	RAID_REBUILD,
	RAID_DAEMON_SLEEP,
	RAID_MIN_RATE,
	RAID_MAX_RATE,
	RAID_MOSTLY,
	RAID_WRITE_BEHIND,
	RAID_STRIPE_CACHE,
	RAID_REGION_SIZE,
	RAID_COPIES,
	RAID_FORMAT,
	RAID_DELTA_DISKS,
	RAID_DATA_OFFSET,
	RAID_JOURNAL_DEV,
	RAID_JOURNAL_MODE,
	RAID_NEAR_SETS, /* raid10_use_near_sets */
	RAID_FAIL_STOP,
	RAID_NR_PARAMS,
};

/* A set of devices by number. */
struct raid_set {
	uint64_t bits[4];
};

static inline bool raid_set_has(const struct raid_set *s, unsigned i)
{
	return s->bits[i / 64] >> (i % 64) & 1;
}

static inline void raid_set_add(struct raid_set *s, unsigned i)
{
	s->bits[i / 64] |= 1ull << (i % 64);
}

static inline void raid_set_drop(struct raid_set *s, unsigned i)
{
	s->bits[i / 64] &= ~(1ull << (i % 64));
}

static inline unsigned raid_set_count(const struct raid_set *s)
{
	unsigned n = 0;

	for (unsigned i = 0; i < 4; i++)
		n += (unsigned)__builtin_popcountll(s->bits[i]);
	return n;
}

struct raid_params {
	const struct raid_type *type;
	unsigned given;			/* bit per enum raid_param */
	unsigned chunk;			/* sectors */
	unsigned layout;		/* raid10's from its parameters, else the type's */
	unsigned value[RAID_NR_PARAMS]; /* of those that have a number: milliseconds, KiB/s, sectors, … */
	int delta_disks;
	struct raid_set rebuild, write_mostly;
	unsigned copies, format; /* raid10; format: RAID_NEAR, … */
	bool write_back;	 /* journal_mode */
	uint64_t region_sectors; /* as given or chosen; raid0: 0 */
	struct dm_dev *journal;
	unsigned disks;
	struct raid_pair {
		struct dm_dev *meta, *data; /* NULL: "-" */
	} * pairs;
};

enum raid_format { RAID_NEAR, RAID_FAR, RAID_OFFSET };

static inline bool raid_given(const struct raid_params *p, enum raid_param which)
{
	return p->given >> which & 1;
}

/* Reads a line and gets its devices; raid_params_clear() in any case. */
int raid_params_read(struct raid_params *p, struct dm_target *ti, int argc, char **argv, GError **err);
void raid_params_clear(struct raid_params *p, struct dm_target *ti);
/* Prints it as a table line.  chunk, layout and stripe_cache: those in use. */
void raid_params_print(const struct raid_params *p, unsigned chunk, unsigned layout, unsigned stripe_cache,
		       GString *out);

/* raid10's layout number, and back. */
unsigned raid10_layout(enum raid_format format, unsigned copies, bool near_sets);
enum raid_format raid10_format_of(unsigned layout);
unsigned raid10_copies_of(unsigned layout);

#endif
