/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Cache policies: which blocks of the origin should be in the cache, and when dirty ones are written back
 * (cache-policies.rst).
 *
 * A policy is a table of functions in a static list.  It sees hits, misses and ticks, keeps a hint for each cache block
 * over a clean end, and says what should be done; the cache does it.  It never sees I/O, metadata or data.  Origin
 * blocks and cache blocks are numbers; which origin block a cache block holds is the cache's to know.
 *
 * Each cache block is free, resident (clean or dirty), or promised: to a promotion that work() or take_free() has
 * given and done() has not ended yet.  The policy owns the free ones.
 *
 * All calls for one policy come one at a time.  None waits or takes long: hit(), miss(), take_free() and dirty() come
 * from map().  A cache tells it about a block's hits once between two ticks, or a few times if half of all blocks are
 * hit, some at a time, when the block may be another's already or nobody's; it may leave hits and misses out.
 */
#ifndef DMFS_CACHE_POLICY_H
#define DMFS_CACHE_POLICY_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

enum cache_work_op {
	CACHE_PROMOTE,	 /* copy oblock to cblock */
	CACHE_DEMOTE,	 /* cblock becomes free; it may be dirty */
	CACHE_WRITEBACK, /* cblock becomes clean */
};

struct cache_work {
	enum cache_work_op op;
	uint32_t cblock;
	uint64_t oblock; /* of a promotion */
};

/* What there is room for. */
enum cache_room {
	CACHE_ROOM_NONE, /* migrations that cannot wait */
	CACHE_ROOM_BUSY, /* some more, beside other I/O */
	CACHE_ROOM_IDLE, /* nobody else uses the devices */
};

struct cache_policy_type {
	const char *name;
	unsigned version[3]; /* hints of another first number do not count */
	unsigned hint_bytes; /* a multiple of 4, at most 128; 0: it has none */

	/* All blocks are free at first.  NULL: no memory. */
	void *(*create)(uint32_t cblocks, uint64_t oblocks, uint32_t block_sectors);
	void (*destroy)(void *policy);
	/* A tunable: 0 or -EINVAL.  Absent: there are none. */
	int (*set)(void *policy, const char *key, const char *value);
	/* "<#args> <arg>*", as status shows them. */
	void (*print)(void *policy, GString *out);

	/* A block that is resident already; hint is NULL or what hint() has given.  Before all that follows loaded().
	 */
	void (*load)(void *policy, uint32_t cblock, bool dirty, const void *hint);
	void (*loaded)(void *policy); /* that was all; also when there was none.  May be absent. */
	void (*hit)(void *policy, uint32_t cblock, bool write);
	/*
	 * hit() may come for this block in a moment: memory that it will look at can be fetched.  From any thread at any
	 * time while there are I/Os, also beside other calls.  May be absent.
	 */
	void (*ahead)(void *policy, uint32_t cblock);
	/* True: work() may have something new. */
	bool (*miss)(void *policy, uint64_t oblock, bool write);
	/* For a write that needs no copy: a free block for a promotion, to be ended by done().  False: none. */
	bool (*take_free)(void *policy, uint32_t *cblock);
	/* A resident block became dirty or clean. */
	void (*dirty)(void *policy, uint32_t cblock, bool dirty);
	/*
	 * Something to do now.  The same again only after done(), which says whether it was done.  A demotion that was
	 * is of a free block then, a promotion of a resident clean one.
	 */
	bool (*work)(void *policy, enum cache_room room, struct cache_work *out);
	void (*done)(void *policy, const struct cache_work *work, bool success);
	/* A resident block has been made free without having been asked for. */
	void (*removed)(void *policy, uint32_t cblock);
	void (*hint)(void *policy, uint32_t cblock, void *out);
	/* Some ten times a second while there is I/O. */
	void (*tick)(void *policy);
};

/* By name; NULL: unknown. */
const struct cache_policy_type *cache_policy_find(const char *name);

#endif
