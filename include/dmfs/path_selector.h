/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Path selectors: which of the paths of a priority group a request goes by (dm-queue-length.rst,
 * dm-service-time.rst).
 *
 * A selector is a table of functions in a static list.  Each priority group has an instance of one; the instance
 * sees its paths, what is sent and what has ended, and never I/O.
 *
 * Threads: select, start and end come from any number of threads at once and must not wait; they may take a short
 * lock of the path's own.  All else comes from one thread at a time.  Paths are added before the first I/O and stay.
 * Which of them have failed is the target's: select skips those with `failed` set, which may happen at any time.
 */
#ifndef DMFS_PATH_SELECTOR_H
#define DMFS_PATH_SELECTOR_H

#include <dmfs/target.h>

struct dm_path {
	struct dm_dev *dev;
	atomic_bool failed;
	void *context; /* the selector's */
};

struct dm_path_selector_type;

struct dm_path_selector {
	const struct dm_path_selector_type *type;
	GPtrArray *paths;       /* struct dm_path *, in the order of the table */
	_Atomic unsigned start; /* index of the path to look at first, so that equal ones take turns */
	void *context;
};

struct dm_path_selector_type {
	const char *name;
	unsigned table_args, info_args; /* words that status() prints of a path */
	bool timed;                     /* end() wants to know when the request was sent */

	/* The group's own arguments.  May be absent: they are swallowed then, as the kernel does. */
	int (*create)(struct dm_path_selector *, int argc, char **argv, GError **);
	void (*destroy)(struct dm_path_selector *);
	/* Sets path->context from a path's arguments, which belongs to the path and is freed with g_free(). */
	int (*add_path)(struct dm_path_selector *, struct dm_path *, int argc, char **argv, GError **);
	/* The path for a request of so many bytes, or NULL: all have failed. */
	struct dm_path *(*select)(struct dm_path_selector *, uint64_t bytes);
	/*
	 * A request was sent by a path, or has ended there: if timed, after it was sent at start_ns (dm_now_ns()).  May
	 * be absent.
	 */
	void (*start)(struct dm_path_selector *, struct dm_path *, uint64_t bytes);
	void (*end)(struct dm_path_selector *, struct dm_path *, uint64_t bytes, uint64_t start_ns);
	/*
	 * path NULL: the group's own words, "0" when absent; else exactly table_args or info_args, each with a blank
	 * before it.
	 */
	void (*status)(struct dm_path_selector *, struct dm_path *, enum dm_status_type, GString *);
};

/* NULL: there is none of that name. */
const struct dm_path_selector_type *dm_path_selector_find(const char *name);

/*
 * The repeat count, the first argument of a path in most selectors.  As in the kernel, more than 1 counts as 1, with a
 * line in the log.  Without arguments it is 1.
 */
int dm_path_read_repeat_count(const char *selector, int argc, char **argv, int max, unsigned *count, GError **err);

/* The path after the i-th of those to look at, the first being where the last choice left off. */
static inline struct dm_path *dm_path_nth(struct dm_path_selector *ps, unsigned first, unsigned i)
{
	return ps->paths->pdata[(first + i) % ps->paths->len];
}

static inline unsigned dm_path_first(struct dm_path_selector *ps)
{
	return atomic_load_explicit(&ps->start, memory_order_relaxed);
}

/* The i-th was chosen: the one behind it is looked at first next time. */
static inline void dm_path_chosen(struct dm_path_selector *ps, unsigned first, unsigned i)
{
	if (ps->paths->len > 1)
		atomic_store_explicit(&ps->start, (first + i + 1) % ps->paths->len, memory_order_relaxed);
}

static inline bool dm_path_usable(struct dm_path *path)
{
	return !atomic_load_explicit(&path->failed, memory_order_relaxed);
}

/* Whether there is nothing to choose: then *path is the only one, or NULL if it has failed. */
static inline bool dm_path_only(struct dm_path_selector *ps, struct dm_path **path)
{
	if (ps->paths->len != 1)
		return false;
	*path = ps->paths->pdata[0];
	if (!dm_path_usable(*path))
		*path = NULL;
	return true;
}

#endif
