/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A mirror whose log other hosts share (dirty_log.h): what the log's server is asked before a bio goes on.
 *
 * Reads ask each time: another host may have lost a leg meanwhile.  A region out of sync is read from the first leg.
 *
 * A write asks unless its region is in the hash, where DIRTY means that we have it marked, and NOSYNC that the server
 * has given it to us: nobody else writes to it or copies it until we have copied it or suspend.  The order is
 *
 *   in sync?  mark, flush.  Still in sync?  Then to all legs.  Else: does another host copy it, or write to it, or has
 *   it copied it since we asked?  Then wait, and ask again; if not it is ours, and goes to the first leg.
 *
 * The second question, after the mark, makes it safe: nobody copies a region that somebody else has marked.
 *
 * What is out of sync is on the first leg: that much all hosts know of each other.  So a write that the first leg
 * missed has failed, and no other leg ever takes its place.
 *
 * What is marked counts only as long as we are in touch with the server.  If not, writes ask again, and no copy begins;
 * and when it turns out that it had forgotten us, every region in the hash is asked about: what another has got is
 * LOST.
 *
 * The bios wait in holds, so those who wait for them can go; the worker asks, and takes those it has an answer for.
 */
#include "mirror.h"

#include <dmfs/container_of.h>
#include <dmfs/later.h>

#define IDLE_ASK_MS 500u /* how often the server is asked what became of the whole; that keeps us in touch */
#define MS 1000000u

/* --- bios come --------------------------------------------------------------------- */

static void leave(struct dm_hold *h, struct dm_bio *bio, int error)
{
	struct mirror_bio *b = bio->private;

	b->requeue = error != -EINTR && dm_target_noflush(b->ms->ti);
	b->unsent = true;
	if (bio->op == DM_READ)
		dm_bio_end(bio, error);
	else
		mirror_write_end(b, error);
}

static void turn_away(struct mirror *ms)
{
	dm_hold_fail(&ms->reads.bios, -EIO);
	dm_hold_fail(&ms->writes.bios, -EIO);
}

void shared_ask(struct mirror_bio *b)
{
	struct mirror *ms = b->ms;
	struct asking *a = b->bio->op == DM_READ ? &ms->reads : &ms->writes;
	uint64_t nr = mirror_region(ms, b->offset);
	int error;

	b->turn = atomic_load(&ms->turn);
	error = dm_hold_add(&a->bios, b->bio);
	if (error) {
		leave(&a->bios, b->bio, error);
		return;
	}
	pthread_mutex_lock(&ms->lock);
	g_array_append_val(a->regions, nr);
	pthread_mutex_unlock(&ms->lock);
	mirror_wake(ms);
}

/* --- the worker: bios go ------------------------------------------------------------- */

static gint compare_regions(gconstpointer a, gconstpointer b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* The regions that are asked about, each once, in order. */
static GArray *take_regions(struct mirror *ms, struct asking *a, GArray *more)
{
	GArray *all;
	unsigned n = 0;

	pthread_mutex_lock(&ms->lock);
	all = a->regions;
	a->regions = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	pthread_mutex_unlock(&ms->lock);
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
	GHashTable *in_sync; /* region to whether it is */
};

static bool has_answer(struct dm_bio *bio, void *data)
{
	struct mirror_bio *b = bio->private;
	struct answered *a = data;

	return b->turn < a->turn && g_hash_table_contains(a->in_sync, GSIZE_TO_POINTER(mirror_region(b->ms, b->offset)));
}

/* An answer counts for those that were there when it was asked for. */
static void answer_reads(struct mirror *ms, const GArray *regions, uint64_t turn)
{
	struct answered a = {turn, g_hash_table_new(NULL, NULL)};
	struct dm_bio_list found, go;
	struct dm_bio *bio;

	for (unsigned i = 0; i < regions->len; i++) {
		uint64_t nr = g_array_index(regions, uint64_t, i);
		bool in_sync = ms->log->type->in_sync(ms->log, nr, true) == 1;

		g_hash_table_insert(a.in_sync, GSIZE_TO_POINTER(nr), GINT_TO_POINTER(in_sync));
	}
	dm_bio_list_init(&found);
	dm_bio_list_init(&go);
	dm_hold_take_if(&ms->reads.bios, has_answer, &a, &found);
	while ((bio = dm_bio_list_pop(&found))) {
		struct mirror_bio *b = bio->private;

		b->in_sync = g_hash_table_lookup(a.in_sync, GSIZE_TO_POINTER(mirror_region(ms, b->offset)));
		if (mirror_point_at_leg(b)) {
			dm_bio_list_add(&go, bio);
		} else {
			b->unsent = true;
			dm_bio_end(bio, -EIO);
		}
	}
	dm_submit_async(&go);
	g_hash_table_destroy(a.in_sync);
}

static bool is_of_region(struct dm_bio *bio, void *data)
{
	struct mirror_bio *b = bio->private;

	return mirror_region(b->ms, b->offset) == *(uint64_t *)data;
}

static void take_writes(struct mirror *ms, uint64_t nr, struct dm_bio_list *out)
{
	dm_bio_list_init(out);
	dm_hold_take_if(&ms->writes.bios, is_of_region, &nr, out);
}

static void let_write(struct mirror *ms, uint64_t nr, enum region_state state)
{
	struct shard *shard = mirror_shard(ms, nr);
	struct dm_bio_list list;
	struct region *reg;

	pthread_mutex_lock(&shard->lock);
	reg = region_get(ms, nr, false);
	if (!reg)
		reg = region_make(ms, nr, state);
	if (reg->state == REGION_LOST)
		reg->state = state;
	reg->touched = true;
	pthread_mutex_unlock(&shard->lock);
	if (state == REGION_DIRTY)
		mirror_arm_cleaner(ms);
	take_writes(ms, nr, &list);
	mirror_redispatch(&list);
}

static void fail_writes(struct mirror *ms, uint64_t nr)
{
	struct dm_bio_list list;
	struct dm_bio *bio;

	if (atomic_load(&ms->turning_away)) { /* that is why there was no answer */
		turn_away(ms);
		return;
	}
	take_writes(ms, nr, &list);
	while ((bio = dm_bio_list_pop(&list))) {
		struct mirror_bio *b = bio->private;

		b->log_failed = true;
		mirror_failed(b);
	}
}

static bool is_known(struct mirror *ms, uint64_t nr)
{
	struct shard *shard = mirror_shard(ms, nr);
	struct region *reg;
	bool known;

	pthread_mutex_lock(&shard->lock);
	reg = region_get(ms, nr, false);
	known = reg && reg->state != REGION_LOST;
	pthread_mutex_unlock(&shard->lock);
	return known;
}

/* False: another host has it. */
static bool write_out_of_sync(struct mirror *ms, uint64_t nr)
{
	if (dm_dirty_log_is_remote_recovering(ms->log, nr)) {
		g_array_append_val(ms->denied, nr);
		return false;
	}
	let_write(ms, nr, REGION_NOSYNC);
	return true;
}

/* Marks regions, asks again, and lets them be written to. */
static void mark(struct mirror *ms, const GArray *regions)
{
	bool ok, withdrawn = false;

	for (unsigned i = 0; i < regions->len; i++)
		ms->log->type->mark_region(ms->log, g_array_index(regions, uint64_t, i));
	ok = !ms->log->type->flush(ms->log);
	if (!ok && !atomic_load(&ms->turning_away))
		atomic_store(&ms->log_failure, true);
	for (unsigned i = 0; i < regions->len; i++) {
		uint64_t nr = g_array_index(regions, uint64_t, i);
		int in_sync = ok ? ms->log->type->in_sync(ms->log, nr, true) : -EIO;

		if (in_sync == 1) {
			let_write(ms, nr, REGION_DIRTY);
		} else if (in_sync < 0) {
			ms->log->type->clear_region(ms->log, nr);
			fail_writes(ms, nr);
		} else if (!write_out_of_sync(ms, nr)) {
			ms->log->type->clear_region(ms->log, nr);
			withdrawn = true;
		}
	}
	if (withdrawn)
		ms->log->type->flush(ms->log);
}

static void answer_writes(struct mirror *ms, const GArray *regions)
{
	GArray *to_mark = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	bool failed = ms->handle_errors && atomic_load(&ms->log_failure);

	for (unsigned i = 0; i < regions->len; i++) {
		uint64_t nr = g_array_index(regions, uint64_t, i);
		int in_sync;

		if (is_known(ms, nr)) {
			let_write(ms, nr, REGION_NOSYNC); /* whatever it is */
			continue;
		}
		in_sync = failed ? -EIO : ms->log->type->in_sync(ms->log, nr, true);
		if (in_sync < 0)
			fail_writes(ms, nr);
		else if (in_sync)
			g_array_append_val(to_mark, nr);
		else
			write_out_of_sync(ms, nr);
	}
	if (to_mark->len)
		mark(ms, to_mark);
	g_array_free(to_mark, TRUE);
}

/* --- the worker: a server that has forgotten us ------------------------------------------- */

static bool list_region(struct mirror *ms, struct region *reg, void *data)
{
	g_array_append_val((GArray *)data, reg->nr);
	return false;
}

static void lose(struct mirror *ms, uint64_t nr)
{
	struct shard *shard = mirror_shard(ms, nr);
	struct region *reg;

	pthread_mutex_lock(&shard->lock);
	reg = region_get(ms, nr, false);
	if (reg && !reg->pending && reg->state != REGION_RECOVERING)
		region_drop(ms, reg);
	else if (reg)
		reg->state = REGION_LOST;
	pthread_mutex_unlock(&shard->lock);
	ms->log->type->clear_region(ms->log, nr);
}

/* False: there is no server, and nobody waits for it. */
static bool ask_about_all(struct mirror *ms)
{
	GArray *all = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	bool lost = false;
	int in_sync = 0;

	regions_each(ms, list_region, all);
	for (unsigned i = 0; i < all->len && in_sync >= 0; i++) {
		uint64_t nr = g_array_index(all, uint64_t, i);

		in_sync = ms->log->type->in_sync(ms->log, nr, true);
		if (in_sync || !dm_dirty_log_is_remote_recovering(ms->log, nr))
			continue;
		lose(ms, nr);
		lost = true;
	}
	g_array_free(all, TRUE);
	if (lost)
		ms->log->type->flush(ms->log);
	return in_sync >= 0;
}

bool shared_in_touch(struct mirror *ms)
{
	return ms->log->type->in_touch(ms->log) && atomic_load(&ms->settled) == ms->log->type->introductions(ms->log);
}

/* nr: a region to ask about, if there is nothing else. */
static void get_in_touch(struct mirror *ms, uint64_t nr)
{
	uint64_t n;

	if (!ms->log->type->in_touch(ms->log))
		ms->log->type->in_sync(ms->log, nr, true);
	while ((n = ms->log->type->introductions(ms->log)) != atomic_load(&ms->settled)) {
		if (!ask_about_all(ms))
			break;
		if (n == ms->log->type->introductions(ms->log))
			atomic_store(&ms->settled, n);
	}
}

static void look_at_all(struct mirror *ms)
{
	ms->log->type->refresh(ms->log);
	if (ms->log->type->sync_count(ms->log) < ms->log->regions)
		atomic_store(&ms->in_sync, false);
}

void shared_work(struct mirror *ms)
{
	bool due = atomic_exchange(&ms->ask_due, false);
	uint64_t turn = atomic_fetch_add(&ms->turn, 1) + 1;
	GArray *reads = take_regions(ms, &ms->reads, NULL);
	GArray *writes = take_regions(ms, &ms->writes, due ? ms->denied : NULL);

	if (atomic_load(&ms->turning_away))
		turn_away(ms);
	if (due && !atomic_load(&ms->stopped))
		look_at_all(ms);
	answer_reads(ms, reads, turn);
	if (writes->len || ms->log->type->introductions(ms->log) != atomic_load(&ms->settled))
		get_in_touch(ms, writes->len ? g_array_index(writes, uint64_t, 0) : 0);
	answer_writes(ms, writes);
	g_array_free(reads, TRUE);
	g_array_free(writes, TRUE);
}

/* --- time ------------------------------------------------------------------------------ */

static void ask_timer(struct dm_timer *t)
{
	struct mirror *ms = container_of(t, struct mirror, ask_timer);

	atomic_store(&ms->ask_at_ns, UINT64_MAX);
	atomic_store(&ms->ask_due, true);
	mirror_wake(ms);
}

void shared_arm(struct mirror *ms)
{
	bool soon = ms->denied->len || !atomic_load(&ms->in_sync);
	uint64_t due = dm_now_ns() + (soon ? DM_LOG_ASK_AGAIN_MS : IDLE_ASK_MS) * (uint64_t)MS;

	if (atomic_load(&ms->stopped) || atomic_load(&ms->ask_at_ns) <= due)
		return;
	atomic_store(&ms->ask_at_ns, due);
	dm_timer_arm(&ms->ask_timer, due);
}

/* --- life ------------------------------------------------------------------------------ */

void shared_suspending(struct mirror *ms)
{
	if (!dm_target_noflush(ms->ti))
		return;
	atomic_store(&ms->turning_away, true);
	dm_dirty_log_end_waiting(ms->log);
	turn_away(ms);
}

void shared_resuming(struct mirror *ms)
{
	atomic_store(&ms->turning_away, false);
	atomic_store(&ms->log_failure, false); /* the server is asked anew */
	atomic_store(&ms->ask_at_ns, UINT64_MAX);
	dm_dirty_log_go_on_waiting(ms->log);
}

static void asking_init(struct asking *a)
{
	dm_hold_init(&a->bios, leave, 0);
	dm_hold_close(&a->bios);
	a->regions = g_array_new(FALSE, FALSE, sizeof(uint64_t));
}

void shared_init(struct mirror *ms)
{
	asking_init(&ms->reads);
	asking_init(&ms->writes);
	ms->denied = g_array_new(FALSE, FALSE, sizeof(uint64_t));
	ms->ask_timer.fn = ask_timer;
	atomic_init(&ms->ask_at_ns, UINT64_MAX);
}

static void asking_destroy(struct asking *a)
{
	dm_hold_destroy(&a->bios);
	g_array_free(a->regions, TRUE);
}

void shared_destroy(struct mirror *ms)
{
	asking_destroy(&ms->reads);
	asking_destroy(&ms->writes);
	g_array_free(ms->denied, TRUE);
}
