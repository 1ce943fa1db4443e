/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Invalid snapshots: that they are is kept.
 *
 * A snapshot that has missed a write to its origin reads the origin's new data.  Its store says so in its header; where
 * that cannot be written, as when the COW device is what failed, the state database does (dmfs/rows.h), and the header
 * is tried again every few seconds, at a suspend and at the end.  Writes to the origin wait until one of the two is
 * durable, or neither can be.
 */
#include "snapshot.h"

#include <dmfs/container_of.h>

#define RETRY_NS UINT64_C(5000000000)

static struct dm_wq *works;

static void make_works(void)
{
	works = dm_wq_new("snapshot-invalid", 64);
}

struct dm_wq *snap_invalid_wq(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, make_works);
	return works;
}

/* --- the state ------------------------------------------------------------------------------------ */

static int is_row(uint64_t key, const void *value, size_t len, void *there)
{
	*(bool *)there = true;
	return 0;
}

int snap_rows_load(struct dm_rows *rows, bool *invalid, GError **err)
{
	*invalid = false;
	return dm_rows_load(rows, is_row, invalid, err);
}

bool snap_rows_mark(struct dm_rows *rows)
{
	g_autoptr(GError) err = NULL;

	dm_rows_put(rows, 0, "", 0);
	if (!dm_rows_commit(rows, &err))
		return true;
	dm_log_err("snapshot: the state cannot be told that the snapshot is invalid: %s", err->message);
	return false;
}

/* --- the store -------------------------------------------------------------------------------------- */

static void mark_store(struct snapshot *s)
{
	int error = snap_store_mark(s->cow->store);

	if (error)
		dm_log_err_limit("snapshot: cannot mark the exception store invalid: %s", g_strerror(-error));
	atomic_store(&s->cow->unmarked, error);
}

static void arm(struct snapshot *s)
{
	dm_timer_arm(&s->mark_timer, dm_now_ns() + RETRY_NS);
}

void snap_invalid_begin(struct snapshot *s)
{
	if (!s->cow || snap_state(s) != SNAP_INVALID || !atomic_load(&s->cow->unmarked))
		return;
	snap_rows_mark(s->rows); /* a handover may have brought it here */
	arm(s);
}

void snap_invalid_end(struct snapshot *s)
{
	dm_timer_cancel_sync(&s->mark_timer);
	dm_wq_flush_work(snap_invalid_wq(), &s->mark_work);
	dm_timer_cancel_sync(&s->mark_timer); /* the work may have armed it */
	if (s->cow && snap_state(s) == SNAP_INVALID && atomic_load(&s->cow->unmarked))
		mark_store(s);
}

/* --- becoming invalid ------------------------------------------------------------------------------- */

static void all_may_write(struct snapshot *s)
{
	struct dm_bio_list bios;

	dm_bio_list_init(&bios);
	pthread_mutex_lock(&s->lock);
	atomic_store(&s->state, SNAP_INVALID);
	dm_bio_list_take(&s->wait_invalid, &bios);
	pthread_mutex_unlock(&s->lock);
	dm_target_event(s->ti, NULL, NULL);
	dm_under_way_end(&s->users);
	run_parked(&bios);
}

/* At first, and when it is tried again. */
static void mark(struct dm_work *work)
{
	struct snapshot *s = container_of(work, struct snapshot, mark_work);
	bool first = snap_state(s) == SNAP_INVALIDATING;

	if (first)
		snap_store_fail(s->cow->store);
	mark_store(s);
	if (atomic_load(&s->cow->unmarked)) {
		if (first)
			snap_rows_mark(s->rows);
		arm(s);
	}
	if (first)
		all_may_write(s);
}

static void mark_again(struct dm_timer *timer)
{
	dm_wq_queue(snap_invalid_wq(), &container_of(timer, struct snapshot, mark_timer)->mark_work);
}

void snap_invalidate(struct snapshot *s, const char *why)
{
	enum snap_state valid = SNAP_VALID;

	if (!atomic_compare_exchange_strong(&s->state, &valid, SNAP_INVALIDATING))
		return;
	dm_log_err("snapshot: Invalidating snapshot: %s.", why);
	dm_under_way_add(&s->users, 1);
	dm_wq_queue(snap_invalid_wq(), &s->mark_work);
}

void snap_invalid_init(struct snapshot *s)
{
	s->rows = dm_rows_open(s->ti, "invalid");
	s->mark_work.fn = mark;
	s->mark_timer.fn = mark_again;
}

int snap_invalid_known(struct snapshot *s, bool missed, GError **err)
{
	bool invalid;
	int error = snap_rows_load(s->rows, &invalid, err);

	if (error || snap_state(s) == SNAP_INVALID || !(invalid || missed))
		return error;
	dm_log_err("snapshot: it has missed writes to its origin: it is invalid.");
	atomic_store(&s->state, SNAP_INVALID);
	atomic_store(&s->cow->unmarked, s->kind == SNAP_PERSISTENT);
	return 0;
}
