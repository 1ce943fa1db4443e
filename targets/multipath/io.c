/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * multipath's I/O: the choice of a path, and what follows when it fails.
 *
 * A request that fails with an error of the path, not of the medium, marks the path failed and goes out again by
 * another one, from the very end call; with none left it is held, given back to the engine (noflush suspend) or fails.
 *
 * FLUSH: a FLUSH by one path need not cover what went by another (NBD promises that only to multi-conn servers).  So
 * where there are several paths the engine makes a FLUSH for each and one more: the first goes by the path that any
 * request would take, number i + 1 by path i if a write has ended there since its last FLUSH.
 */
#include <dmfs/container_of.h>

#include "multipath.h"

struct dm_wq *multipath_wq;

/* --- choosing ------------------------------------------------------------------------- */

static struct path *select_in(struct group *g, uint64_t bytes)
{
	return (struct path *)g->ps.type->select(&g->ps, bytes);
}

/* Tries the groups that are bypassed, or those that are not, in order. */
static struct path *select_any(struct multipath *m, bool bypassed, uint64_t bytes)
{
	for (unsigned i = 0; i < m->groups->len; i++) {
		struct group *g = m->groups->pdata[i];
		struct path *path = g->bypassed == bypassed ? select_in(g, bytes) : NULL;

		if (path)
			return path;
	}
	return NULL;
}

/* lock held; NULL: no path is left. */
static struct path *choose_locked(struct multipath *m, uint64_t bytes)
{
	struct group *current = atomic_load(&m->current), *next = m->next;
	struct path *path = NULL;

	atomic_store(&m->queue_io, false);
	m->next = NULL;
	if (next)
		path = select_in(next, bytes);
	if (!path && current)
		path = select_in(current, bytes);
	if (!path)
		path = select_any(m, false, bytes);
	if (!path)
		path = select_any(m, true, bytes);
	atomic_store(&m->current, path ? path->group : NULL);
	return path;
}

static struct path *choose(struct multipath *m, uint64_t bytes)
{
	struct group *g = atomic_load_explicit(&m->current, memory_order_acquire);
	struct path *path = g ? select_in(g, bytes) : NULL;

	if (path)
		return path;
	pthread_mutex_lock(&m->lock);
	path = choose_locked(m, bytes);
	pthread_mutex_unlock(&m->lock);
	return path;
}

static uint64_t bytes_of(const struct dm_bio *bio)
{
	return dm_op_has_data(bio->op) ? bio->sectors << DM_SECTOR_SHIFT : 0;
}

static void aim(struct dm_bio *bio, struct path *path)
{
	const struct dm_path_selector *ps = &path->group->ps;
	struct multipath_bio *mb = bio->private;

	mb->path = path;
	bio->dev = path->p.dev;
	bio->sector = mb->sector;
	bio->flags |= DM_FAILFAST;
	bio->error = 0;
	if (bio->op == DM_FLUSH)
		atomic_store(&path->unflushed, false);
	if (ps->type->start)
		ps->type->start(&path->group->ps, &path->p, bytes_of(bio));
	if (ps->type->timed)
		mb->start_ns = dm_now_ns();
}

/* --- without a path ---------------------------------------------------------------------- */

enum without { HELD, REQUEUE, FAIL, RETRY };

/*
 * What becomes of a bio that no path was found for.  HELD: it belongs to the hold now.  RETRY: there is one by now.
 * FAIL: with bio->error.
 */
static enum without without_path(struct multipath *m, struct dm_bio *bio)
{
	enum without what = FAIL;

	bio->error = -EIO;
	pthread_mutex_lock(&m->lock);
	if (atomic_load(&m->valid_paths)) {
		what = RETRY;
	} else if (dm_target_noflush(m->ti)) { /* before queueing: the suspension waits for what is held */
		what = REQUEUE;
	} else if (m->queue_if_no_path) {
		int error = dm_hold_add(&m->held, bio);

		if (error) /* who asked is dying, or the daemon ends */
			bio->error = error;
		else
			what = HELD;
	}
	pthread_mutex_unlock(&m->lock);
	return what;
}

/* Aims it, or says what becomes of it; RETRY: it is aimed. */
static enum without find_path(struct multipath *m, struct dm_bio *bio)
{
	enum without what;

	do {
		struct path *path = choose(m, bytes_of(bio));

		if (path) {
			aim(bio, path);
			return RETRY;
		}
		what = without_path(m, bio);
	} while (what == RETRY);
	return what;
}

void multipath_retry(struct multipath *m)
{
	dm_wq_queue(multipath_wq, &m->retry);
}

void multipath_retry_work(struct dm_work *work)
{
	struct multipath *m = container_of(work, struct multipath, retry);
	struct dm_bio_list list;
	struct dm_bio *bio;

	dm_bio_list_init(&list);
	dm_hold_take(&m->held, &list);
	while ((bio = dm_bio_list_pop(&list))) {
		switch (find_path(m, bio)) {
		case RETRY:
			dm_submit(bio);
			break;
		case HELD:
			break;
		case REQUEUE:
			dm_bio_requeue(bio);
			break;
		case FAIL:
			dm_bio_end(bio, bio->error);
			break;
		}
	}
}

/* --- paths that fail and come back ---------------------------------------------------------- */

static void path_event(struct multipath *m, struct path *path, const char *action, unsigned valid)
{
	g_autoptr(GString) name = g_string_new(NULL), words = g_string_new("DM_PATH=");

	dm_dev_print(path->p.dev, name);
	dm_event_value(words, name->str);
	g_string_append_printf(words, " DM_NR_VALID_PATHS=%u", valid);
	dm_target_event(m->ti, action, words->str);
}

void multipath_fail_path(struct multipath *m, struct path *path)
{
	g_autoptr(GString) name = g_string_new(NULL);
	unsigned valid;
	bool was;

	pthread_mutex_lock(&m->lock);
	was = atomic_exchange(&path->p.failed, true);
	if (!was) {
		path->fails++;
		atomic_fetch_sub(&m->valid_paths, 1);
	}
	valid = atomic_load(&m->valid_paths);
	pthread_mutex_unlock(&m->lock);
	if (was)
		return;
	dm_dev_print(path->p.dev, name);
	dm_log_warn("multipath: Failing path %s.", name->str);
	path_event(m, path, "PATH_FAILED", valid);
	multipath_check_start(m);
}

void multipath_reinstate_path(struct multipath *m, struct path *path)
{
	g_autoptr(GString) name = g_string_new(NULL);
	unsigned valid;
	bool was;

	pthread_mutex_lock(&m->lock);
	was = atomic_exchange(&path->p.failed, false);
	if (was && !atomic_fetch_add(&m->valid_paths, 1))
		atomic_store(&m->current, NULL);
	valid = atomic_load(&m->valid_paths);
	pthread_mutex_unlock(&m->lock);
	if (!was)
		return;
	dm_dev_print(path->p.dev, name);
	dm_log_warn("multipath: Reinstating path %s.", name->str);
	path_event(m, path, "PATH_REINSTATED", valid);
	if (valid == 1)
		multipath_retry(m);
}

/* --- bios --------------------------------------------------------------------------------------- */

/* FLUSH number nr of a device with several paths: for one of them. */
static enum dm_mapio flush_path(struct multipath *m, struct dm_bio *bio, unsigned nr)
{
	struct path *path = m->paths->pdata[nr];

	if (dm_path_usable(&path->p) && atomic_load(&path->unflushed)) {
		aim(bio, path);
		return DM_MAPIO_REMAPPED;
	}
	dm_bio_end(bio, 0);
	return DM_MAPIO_SUBMITTED;
}

enum dm_mapio multipath_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct multipath_bio *mb = bio->private;
	struct multipath *m = ti->private;

	*mb = (struct multipath_bio){.sector = dm_target_offset(ti, bio->sector)};
	if (bio->op == DM_FLUSH && bio->nr)
		return flush_path(m, bio, bio->nr - 1);
	switch (find_path(m, bio)) {
	case RETRY:
		return DM_MAPIO_REMAPPED;
	case HELD:
		return DM_MAPIO_SUBMITTED;
	case REQUEUE:
		return DM_MAPIO_REQUEUE;
	default:
		dm_bio_end(bio, bio->error);
		return DM_MAPIO_SUBMITTED;
	}
}

/* The path has failed under this bio, which goes on by another one. */
static enum dm_endio go_on(struct multipath *m, struct dm_bio *bio)
{
	/*
	 * A path's own FLUSH: the other one of the pair covers what the medium has; what this path kept is told when it
	 * is back.
	 */
	if (bio->op == DM_FLUSH && bio->nr) {
		bio->error = 0;
		return DM_ENDIO_DONE;
	}
	switch (find_path(m, bio)) {
	case RETRY:
		dm_submit(bio);
		return DM_ENDIO_INCOMPLETE;
	case HELD:
		return DM_ENDIO_INCOMPLETE;
	case REQUEUE:
		return DM_ENDIO_REQUEUE;
	default:
		return DM_ENDIO_DONE;
	}
}

enum dm_endio multipath_end_io(struct dm_target *ti, struct dm_bio *bio)
{
	struct multipath_bio *mb = bio->private;
	struct multipath *m = ti->private;
	struct path *path = mb->path;

	if (!path)
		return DM_ENDIO_DONE;
	mb->path = NULL;
	if (path->group->ps.type->end)
		path->group->ps.type->end(&path->group->ps, &path->p, bytes_of(bio), mb->start_ns);
	if (bio->op == DM_FLUSH ? bio->error != 0 : dm_op_is_write(bio->op) && !bio->error)
		if (!atomic_load_explicit(&path->unflushed, memory_order_relaxed))
			atomic_store(&path->unflushed, true);
	if (!bio->error || !dm_error_is_path(bio->error))
		return DM_ENDIO_DONE;
	multipath_fail_path(m, path);
	return go_on(m, bio);
}
