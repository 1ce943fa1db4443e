/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Regions of work whose log other hosts share (dirty_log.h): what the log's server is asked before a bio goes on.
 *
 * Reads ask each time: another host may have lost a copy meanwhile.  A region out of sync is read from the first copy.
 *
 * A write asks unless its region is in the hash, where DIRTY means that we have it marked, and NOSYNC that the server
 * has given it to us: nobody else writes to it or copies it until we have copied it or suspend.  The order is
 *
 *   in sync?  mark, flush.  Still in sync?  Then to all copies.  Else: does another host copy it, or write to it, or has
 *   it copied it since we asked?  Then wait, and ask again; if not it is ours, and goes to the first copy.
 *
 * The second question, after the mark, makes it safe: nobody copies a region that somebody else has marked.
 *
 * What is out of sync is on the first copy: that much all hosts know of each other.  So a write that the first one
 * missed has failed, and no other ever takes its place.
 *
 * What is marked counts only as long as we are in touch with the server.  If not, writes ask again, and no copy begins;
 * and when it turns out that it had forgotten us, every region in the hash is asked about: what another has got is
 * LOST.
 *
 * The bios wait in holds, so those who wait for them can go; the worker asks, and takes those it has an answer for.
 */
#include "regions.h"

#include <dmfs/container_of.h>
#include <dmfs/index.h>
#include <dmfs/later.h>

#define IDLE_ASK_MS 500u /* how often the server is asked what became of the whole; that keeps us in touch */
#define MS 1000000u

/* --- bios come --------------------------------------------------------------------- */

static void leave(struct dm_hold *h, struct dm_bio *bio, int error)
{
	struct dm_region_io *io = bio->private;

	io->rs->ops->leave(io, error);
}

static void turn_away(struct dm_regions *rs)
{
	dm_hold_fail(&rs->reads.bios, -EIO);
	dm_hold_fail(&rs->writes.bios, -EIO);
}

void shared_ask(struct dm_region_io *io)
{
	struct dm_regions *rs = io->rs;
	struct asking *a = io->bio->op == DM_READ ? &rs->reads : &rs->writes;
	uint64_t nr = regions_nr(io);
	int error;

	io->turn = atomic_load(&rs->turn);
	error = dm_hold_add(&a->bios, io->bio);
	if (error) {
		rs->ops->leave(io, error);
		return;
	}
	pthread_mutex_lock(&rs->lock);
	g_array_append_val(a->regions, nr);
	pthread_mutex_unlock(&rs->lock);
	regions_wake(rs);
}

/* --- the worker: bios go ------------------------------------------------------------- */

static gint compare_regions(gconstpointer a, gconstpointer b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* The regions that are asked about, each once, in order. */
static GArray *take_regions(struct dm_regions *rs, struct asking *a, GArray *more)
{
	GArray *all;
	unsigned n = 0;

	pthread_mutex_lock(&rs->lock);
	all = a->regions;
	a->regions = regions_list();
	pthread_mutex_unlock(&rs->lock);
	if (more) {
		g_array_append_vals(all, more->data, more->len);
		g_array_set_size(more, 0);
	}
	g_array_sort(all, compare_regions);
	for (unsigned i = 0; i < all->len; i++)
		if (!n || g_array_index(all, uint64_t, i) != g_array_index(all, uint64_t, n - 1))
			g_array_index(all, uint64_t, n++) = g_array_index(all, uint64_t, i);
	g_array_set_size(all, n);
	return all;
}

struct answered {
	uint64_t turn;
	struct dm_index in_sync; /* region to whether it is */
};

static bool has_answer(struct dm_bio *bio, void *data)
{
	struct dm_region_io *io = bio->private;
	struct answered *a = data;

	return io->turn < a->turn && dm_index_find(&a->in_sync, regions_nr(io));
}

/* An answer counts for those that were there when it was asked for. */
static void answer_reads(struct dm_regions *rs, const GArray *regions, uint64_t turn)
{
	struct answered a = {.turn = turn};
	struct dm_bio_list found, go;
	struct dm_bio *bio;

	for (unsigned i = 0; i < regions->len; i++) {
		uint64_t nr = g_array_index(regions, uint64_t, i);

		dm_index_add(&a.in_sync, nr, rs->log->type->in_sync(rs->log, nr, true) == 1);
	}
	dm_bio_list_init(&found);
	dm_bio_list_init(&go);
	dm_hold_take_if(&rs->reads.bios, has_answer, &a, &found);
	while ((bio = dm_bio_list_pop(&found))) {
		struct dm_region_io *io = bio->private;

		io->in_sync = dm_index_find(&a.in_sync, regions_nr(io))->value;
		if (rs->ops->read(io))
			dm_bio_list_add(&go, bio);
	}
	dm_submit_async(&go);
	dm_index_clear(&a.in_sync);
}

static bool is_of_region(struct dm_bio *bio, void *data)
{
	struct dm_region_io *io = bio->private;

	return regions_nr(io) == *(uint64_t *)data;
}

static void take_writes(struct dm_regions *rs, uint64_t nr, struct dm_bio_list *out)
{
	dm_bio_list_init(out);
	dm_hold_take_if(&rs->writes.bios, is_of_region, &nr, out);
}

static void let_write(struct dm_regions *rs, uint64_t nr, enum region_state state)
{
	struct dm_region_work *reg = regions_lock(rs, nr);
	struct dm_bio_list list;

	if (!reg)
		reg = regions_make_as(rs, nr, state);
	if (reg->state == REGION_LOST)
		reg->state = state;
	reg->touched = true;
	regions_unlock(rs, nr);
	if (state == REGION_DIRTY)
		regions_arm_cleaner(rs);
	take_writes(rs, nr, &list);
	regions_go_on(&list);
}

static void fail_writes(struct dm_regions *rs, uint64_t nr)
{
	struct dm_bio_list list;
	struct dm_bio *bio;

	if (atomic_load(&rs->turning_away)) { /* that is why there was no answer */
		turn_away(rs);
		return;
	}
	take_writes(rs, nr, &list);
	while ((bio = dm_bio_list_pop(&list)))
		rs->ops->log_failed(bio->private);
}

static bool is_known(struct dm_regions *rs, uint64_t nr)
{
	struct dm_region_work *reg = regions_lock(rs, nr);
	bool known = reg && reg->state != REGION_LOST;

	regions_unlock(rs, nr);
	return known;
}

/* False: another host has it. */
static bool write_out_of_sync(struct dm_regions *rs, uint64_t nr)
{
	if (dm_dirty_log_is_remote_recovering(rs->log, nr)) {
		g_array_append_val(rs->denied, nr);
		return false;
	}
	let_write(rs, nr, REGION_NOSYNC);
	return true;
}

/* Marks regions, asks again, and lets them be written to. */
static void mark(struct dm_regions *rs, const GArray *regions)
{
	bool ok, withdrawn = false;

	for (unsigned i = 0; i < regions->len; i++)
		rs->log->type->mark_region(rs->log, g_array_index(regions, uint64_t, i));
	ok = !rs->log->type->flush(rs->log);
	if (!ok && !atomic_load(&rs->turning_away))
		atomic_store(&rs->log_failure, true);
	for (unsigned i = 0; i < regions->len; i++) {
		uint64_t nr = g_array_index(regions, uint64_t, i);
		int in_sync = ok ? rs->log->type->in_sync(rs->log, nr, true) : -EIO;

		if (in_sync == 1) {
			let_write(rs, nr, REGION_DIRTY);
		} else if (in_sync < 0) {
			rs->log->type->clear_region(rs->log, nr);
			fail_writes(rs, nr);
		} else if (!write_out_of_sync(rs, nr)) {
			rs->log->type->clear_region(rs->log, nr);
			withdrawn = true;
		}
	}
	if (withdrawn)
		rs->log->type->flush(rs->log);
}

static void answer_writes(struct dm_regions *rs, const GArray *regions)
{
	GArray *to_mark = regions_list();
	bool failed = rs->strict && atomic_load(&rs->log_failure);

	for (unsigned i = 0; i < regions->len; i++) {
		uint64_t nr = g_array_index(regions, uint64_t, i);
		int in_sync;

		if (is_known(rs, nr)) {
			let_write(rs, nr, REGION_NOSYNC); /* whatever it is */
			continue;
		}
		in_sync = failed ? -EIO : rs->log->type->in_sync(rs->log, nr, true);
		if (in_sync < 0)
			fail_writes(rs, nr);
		else if (in_sync)
			g_array_append_val(to_mark, nr);
		else
			write_out_of_sync(rs, nr);
	}
	if (to_mark->len)
		mark(rs, to_mark);
	g_array_free(to_mark, TRUE);
}

/* --- the worker: a server that has forgotten us ------------------------------------------- */

static bool list_region(struct dm_regions *rs, struct dm_region_work *reg, void *data)
{
	g_array_append_val((GArray *)data, reg->nr);
	return false;
}

static void lose(struct dm_regions *rs, uint64_t nr)
{
	struct dm_region_work *reg = regions_lock(rs, nr);

	if (reg && !reg->pending && reg->state != REGION_RECOVERING)
		regions_drop(rs, reg);
	else if (reg)
		reg->state = REGION_LOST;
	regions_unlock(rs, nr);
	rs->log->type->clear_region(rs->log, nr);
}

/* False: there is no server, and nobody waits for it. */
static bool ask_about_all(struct dm_regions *rs)
{
	GArray *all = regions_list();
	bool lost = false;
	int in_sync = 0;

	regions_each(rs, list_region, all);
	for (unsigned i = 0; i < all->len && in_sync >= 0; i++) {
		uint64_t nr = g_array_index(all, uint64_t, i);

		in_sync = rs->log->type->in_sync(rs->log, nr, true);
		if (in_sync || !dm_dirty_log_is_remote_recovering(rs->log, nr))
			continue;
		lose(rs, nr);
		lost = true;
	}
	g_array_free(all, TRUE);
	if (lost)
		rs->log->type->flush(rs->log);
	return in_sync >= 0;
}

bool shared_in_touch(struct dm_regions *rs)
{
	return rs->log->type->in_touch(rs->log) && atomic_load(&rs->settled) == rs->log->type->introductions(rs->log);
}

/* nr: a region to ask about, if there is nothing else. */
static void get_in_touch(struct dm_regions *rs, uint64_t nr)
{
	uint64_t n;

	if (!rs->log->type->in_touch(rs->log))
		rs->log->type->in_sync(rs->log, nr, true);
	while ((n = rs->log->type->introductions(rs->log)) != atomic_load(&rs->settled)) {
		if (!ask_about_all(rs))
			break;
		if (n == rs->log->type->introductions(rs->log))
			atomic_store(&rs->settled, n);
	}
}

static void look_at_all(struct dm_regions *rs)
{
	rs->log->type->refresh(rs->log);
	if (rs->log->type->sync_count(rs->log) < rs->log->regions)
		atomic_store(&rs->in_sync, false);
}

void shared_work(struct dm_regions *rs)
{
	bool due = atomic_exchange(&rs->ask_due, false);
	uint64_t turn = atomic_fetch_add(&rs->turn, 1) + 1;
	GArray *reads = take_regions(rs, &rs->reads, NULL);
	GArray *writes = take_regions(rs, &rs->writes, due ? rs->denied : NULL);

	if (atomic_load(&rs->turning_away))
		turn_away(rs);
	if (due && !atomic_load(&rs->stopped))
		look_at_all(rs);
	answer_reads(rs, reads, turn);
	if (writes->len || rs->log->type->introductions(rs->log) != atomic_load(&rs->settled))
		get_in_touch(rs, writes->len ? g_array_index(writes, uint64_t, 0) : 0);
	answer_writes(rs, writes);
	g_array_free(reads, TRUE);
	g_array_free(writes, TRUE);
}

/* --- time ------------------------------------------------------------------------------ */

static void ask_timer(struct dm_timer *t)
{
	struct dm_regions *rs = container_of(t, struct dm_regions, ask_timer);

	atomic_store(&rs->ask_at_ns, UINT64_MAX);
	atomic_store(&rs->ask_due, true);
	regions_wake(rs);
}

void shared_arm(struct dm_regions *rs)
{
	bool soon = rs->denied->len || !atomic_load(&rs->in_sync);
	uint64_t due = dm_now_ns() + (soon ? DM_LOG_ASK_AGAIN_MS : IDLE_ASK_MS) * (uint64_t)MS;

	if (atomic_load(&rs->stopped) || atomic_load(&rs->ask_at_ns) <= due)
		return;
	atomic_store(&rs->ask_at_ns, due);
	dm_timer_arm(&rs->ask_timer, due);
}

/* --- life ------------------------------------------------------------------------------ */

void shared_suspending(struct dm_regions *rs)
{
	if (!dm_target_noflush(rs->ti))
		return;
	atomic_store(&rs->turning_away, true);
	dm_dirty_log_end_waiting(rs->log);
	turn_away(rs);
}

void shared_resuming(struct dm_regions *rs)
{
	atomic_store(&rs->turning_away, false);
	atomic_store(&rs->log_failure, false); /* the server is asked anew */
	atomic_store(&rs->ask_at_ns, UINT64_MAX);
	dm_dirty_log_go_on_waiting(rs->log);
}

static void asking_init(struct asking *a)
{
	dm_hold_init(&a->bios, leave, 0);
	dm_hold_close(&a->bios);
	a->regions = regions_list();
}

void shared_init(struct dm_regions *rs)
{
	asking_init(&rs->reads);
	asking_init(&rs->writes);
	rs->denied = regions_list();
	rs->ask_timer.fn = ask_timer;
	atomic_init(&rs->ask_at_ns, UINT64_MAX);
}

static void asking_destroy(struct asking *a)
{
	dm_hold_destroy(&a->bios);
	g_array_free(a->regions, TRUE);
}

void shared_destroy(struct dm_regions *rs)
{
	asking_destroy(&rs->reads);
	asking_destroy(&rs->writes);
	g_array_free(rs->denied, TRUE);
}
