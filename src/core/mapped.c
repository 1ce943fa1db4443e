/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A device's life: its tables, suspend, swap and resume.
 *
 * Suspend closes the gate, so that new bios are deferred, and waits until those inside have left; then nobody reads the
 * live table, and a swap is one pointer.  Opening the gate lets the deferred bios go.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "claim.h"
#include "devices.h"
#include "events.h"
#include "mapped.h"
#include "state.h"
#include "stats.h"

const struct dm_front_ops *dm_front;

/* A pause does not wait for one status after the other. */
static void init_shown(pthread_rwlock_t *shown)
{
	pthread_rwlockattr_t attr;

	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(shown, &attr);
	pthread_rwlockattr_destroy(&attr);
}

struct dm_mapped *dm_mapped_new(const char *name, unsigned minor)
{
	struct dm_mapped *md = g_new0(struct dm_mapped, 1);

	md->dev.ops = &dm_mapped_ops;
	md->dev.mode = DM_MODE_RW;
	atomic_init(&md->dev.refs, 1);
	dm_gate_init(&md->gate);
	pthread_mutex_init(&md->control, NULL);
	pthread_mutex_init(&md->hooks, NULL);
	init_shown(&md->shown);
	pthread_mutex_init(&md->lock, NULL);
	pthread_mutex_init(&md->stats_lock, NULL);
	dm_hold_init(&md->deferred, NULL, 0);
	md->name = g_strdup(name);
	md->uuid = g_strdup("");
	md->minor = minor;
	md->image = (struct dm_owner){0600, getuid(), getgid()};
	md->resized.fn = dm_event_run_resized;
	md->tables = g_hash_table_new(NULL, NULL);
	md->used_by = g_hash_table_new(NULL, NULL);
	return md;
}

struct dm_mapped *dm_mapped_ref(struct dm_mapped *md)
{
	dm_dev_get(&md->dev);
	return md;
}

void dm_mapped_unref(struct dm_mapped *md)
{
	if (md)
		dm_dev_put(&md->dev);
}

void dm_mapped_free(struct dm_mapped *md)
{
	if (dm_front && dm_front->freed)
		dm_front->freed(md);
	dm_stats_free(atomic_load(&md->stats));
	pthread_mutex_destroy(&md->stats_lock);
	dm_events_free(md);
	dm_unloaded_free(md->unloaded);
	dm_gate_destroy(&md->gate);
	dm_hold_destroy(&md->deferred);
	pthread_mutex_destroy(&md->control);
	pthread_mutex_destroy(&md->hooks);
	pthread_rwlock_destroy(&md->shown);
	pthread_mutex_destroy(&md->lock);
	g_hash_table_destroy(md->tables);
	g_hash_table_destroy(md->used_by);
	explicit_bzero(md->name, strlen(md->name)); /* somebody may have written a key in the wrong place */
	explicit_bzero(md->uuid, strlen(md->uuid));
	g_free(md->name);
	g_free(md->uuid);
	if (md->error)
		g_string_free(md->error, TRUE);
	if (md->reply)
		g_string_free(md->reply, TRUE);
	g_free(md);
}

/* --- what it has ----------------------------------------------------------------------- */

struct dm_table *dm_mapped_live(struct dm_mapped *md)
{
	struct dm_table *t;

	pthread_mutex_lock(&md->lock);
	t = atomic_load(&md->live);
	if (t)
		dm_table_ref(t);
	pthread_mutex_unlock(&md->lock);
	return t;
}

struct dm_table *dm_mapped_inactive(struct dm_mapped *md)
{
	struct dm_table *t;

	pthread_mutex_lock(&md->lock);
	t = md->inactive ? dm_table_ref(md->inactive) : NULL;
	pthread_mutex_unlock(&md->lock);
	return t;
}

uint64_t dm_mapped_sectors(struct dm_mapped *md)
{
	struct dm_table *t;
	uint64_t sectors;

	pthread_mutex_lock(&md->lock);
	t = atomic_load(&md->live);
	sectors = t ? atomic_load(&t->capacity) : 0;
	pthread_mutex_unlock(&md->lock);
	return sectors;
}

void dm_target_set_capacity(struct dm_target *ti, uint64_t sectors)
{
	struct dm_mapped *md = ti->table->md;
	uint64_t old;

	assert(ti->type->features & DM_TARGET_SINGLETON);
	sectors = MIN(sectors, ti->len);
	old = atomic_exchange(&ti->table->capacity, sectors);
	if (sectors != old && atomic_load(&md->live) == ti->table)
		dm_event_resized(md);
}

bool dm_mapped_suspending(struct dm_mapped *md)
{
	return atomic_load(&md->suspending) || atomic_load(&md->suspended);
}

bool dm_target_suspending(struct dm_target *ti)
{
	return dm_mapped_suspending(ti->table->md);
}

bool dm_target_noflush(struct dm_target *ti)
{
	return dm_target_suspending(ti) && atomic_load(&ti->table->md->noflush);
}

void dm_mapped_set_error(struct dm_mapped *md, const char *text)
{
	pthread_mutex_lock(&md->lock);
	if (md->error)
		g_string_free(md->error, TRUE);
	md->error = text && *text ? g_string_new(text) : NULL;
	pthread_mutex_unlock(&md->lock);
}

void dm_mapped_get_error(struct dm_mapped *md, GString *out)
{
	pthread_mutex_lock(&md->lock);
	if (md->error)
		g_string_append(out, md->error->str);
	pthread_mutex_unlock(&md->lock);
}

/* --- deferred bios ------------------------------------------------------------------------ */

/* The hold is closed first and opened last: who finds the gate closed need not wait for it. */
static void close_gate(struct dm_mapped *md)
{
	dm_hold_close(&md->deferred);
	dm_gate_close(&md->gate);
}

static void open_hold(struct dm_mapped *md)
{
	struct dm_bio_list list;
	struct dm_bio *bio;

	dm_bio_list_init(&list);
	dm_hold_open(&md->deferred, &list);
	while ((bio = dm_bio_list_pop(&list)))
		dm_submit(bio);
}

static void open_gate(struct dm_mapped *md)
{
	dm_gate_open(&md->gate);
	open_hold(md);
}

bool dm_mapped_defer(struct dm_mapped *md, struct dm_bio *bio)
{
	int error = dm_hold_add(&md->deferred, bio);

	if (error == -EAGAIN)
		return false;
	if (error)
		dm_bio_end(bio, error);
	return true;
}

void dm_mapped_no_resume(GPtrArray *devices)
{
	dm_end_all_holds();
	for (unsigned i = 0; i < devices->len; i++) {
		struct dm_table *t = dm_mapped_live(devices->pdata[i]);

		if (t)
			dm_table_end_waiting(t);
		dm_table_unref(t);
	}
}

void dm_mapped_quiesce(struct dm_mapped *md)
{
	close_gate(md);
	dm_gate_wait(&md->gate, NULL, NULL);
}

void dm_mapped_unquiesce(struct dm_mapped *md)
{
	open_gate(md);
}

/* --- tables ---------------------------------------------------------------------------------- */

static int check_removed(struct dm_mapped *md, GError **err)
{
	return dm_mapped_removed(md) ? dm_fail(err, ENXIO, "the device was removed") : 0;
}

static bool has_wildcard(struct dm_table *t)
{
	for (unsigned i = 0; i < t->n; i++)
		if (dm_table_target(t, i)->type->features & DM_TARGET_WILDCARD)
			return true;
	return false;
}

/* An immutable target stays what it is, or ends: errors may take its place, and anything theirs. */
static int check_immutable(struct dm_mapped *md, struct dm_table *t, GError **err)
{
	struct dm_table *live = atomic_load(&md->live);
	const struct dm_target_type *old = live ? dm_table_target(live, 0)->type : NULL;

	if (old && (old->features & DM_TARGET_IMMUTABLE) && dm_table_target(t, 0)->type != old && !has_wildcard(t))
		return dm_fail(err, EINVAL, "can't replace immutable target type %s", old->name);
	return 0;
}

/*
 * The tables of a change: the old ones come back in c, for their references to be dropped when no lock is held.  A
 * live one is published only while the device is suspended.
 */
static void publish_tables(struct dm_change *c)
{
	struct dm_mapped *md = c->md;
	struct dm_table *live = c->live, *inactive = c->inactive;

	if (c->what & DM_CHANGE_LIVE)
		dm_gate_assert_closed(&md->gate);
	pthread_mutex_lock(&md->lock);
	if (c->what & DM_CHANGE_LIVE) {
		c->live = atomic_load(&md->live);
		atomic_store_explicit(&md->live, live, memory_order_release);
	}
	if (c->what & DM_CHANGE_INACTIVE) {
		c->inactive = md->inactive;
		md->inactive = inactive;
	}
	pthread_mutex_unlock(&md->lock);
}

int dm_mapped_load(struct dm_mapped *md, struct dm_table *t, GError **err)
{
	struct dm_change c = {.md = md, .what = DM_CHANGE_INACTIVE, .inactive = t, .publish = publish_tables};
	int error;

	dm_block_begin();
	pthread_mutex_lock(&md->control);
	error = check_removed(md, err);
	if (!error && t)
		error = check_immutable(md, t, err);
	if (!error)
		error = dm_state_change(&c, err);
	if (!error)
		dm_devices_touch();
	pthread_mutex_unlock(&md->control);
	dm_block_end();
	dm_table_drop(c.inactive); /* the old one, or the refused one */
	return error;
}

/* --- hooks and status ------------------------------------------------------------------------- */

#define INTERRUPT_POLL_MS 50

/* When to look again for an interrupt. */
static struct timespec next_poll(void)
{
	struct timespec until;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_nsec += INTERRUPT_POLL_MS * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	return until;
}

static bool lock_interruptibly(pthread_mutex_t *lock, bool (*interrupted)(void *), void *data)
{
	struct timespec until;

	do {
		if (interrupted(data))
			return false;
		until = next_poll();
	} while (pthread_mutex_timedlock(lock, &until));
	return true;
}

bool dm_mapped_lock_hooks(struct dm_mapped *md, bool (*interrupted)(void *), void *data)
{
	if (pthread_mutex_trylock(&md->hooks)) {
		if (!interrupted)
			pthread_mutex_lock(&md->hooks);
		else if (!lock_interruptibly(&md->hooks, interrupted, data))
			return false;
	}
	atomic_store(&md->hooking, pthread_self());
	return true;
}

void dm_mapped_unlock_hooks(struct dm_mapped *md)
{
	assert(dm_mapped_hooks_locked(md));
	atomic_store(&md->hooking, 0);
	pthread_mutex_unlock(&md->hooks);
}

bool dm_mapped_hooks_locked(struct dm_mapped *md)
{
	return atomic_load(&md->hooking) == pthread_self();
}

/* The devices of two targets in the order of their locks; the second is NULL if they are one. */
static void in_order(struct dm_target *a, struct dm_target *b, struct dm_mapped *md[2])
{
	md[0] = a->table->md;
	md[1] = b ? b->table->md : NULL;
	if (md[1] == md[0])
		md[1] = NULL;
	if (md[1] && md[1] < md[0]) {
		md[1] = a->table->md;
		md[0] = b->table->md;
	}
}

void dm_status_pause(struct dm_target *a, struct dm_target *b)
{
	struct dm_mapped *md[2];

	in_order(a, b, md);
	pthread_rwlock_wrlock(&md[0]->shown);
	if (md[1])
		pthread_rwlock_wrlock(&md[1]->shown);
	dm_wait_forbid();
}

void dm_status_go_on(struct dm_target *a, struct dm_target *b)
{
	struct dm_mapped *md[2];

	dm_wait_allow();
	in_order(a, b, md);
	if (md[1])
		pthread_rwlock_unlock(&md[1]->shown);
	pthread_rwlock_unlock(&md[0]->shown);
}

/* --- devices that another one keeps as they are ------------------------------------------------------- */

static struct {
	pthread_mutex_t lock;
	pthread_cond_t thawed;
} freezing = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER};

void dm_mapped_freeze(struct dm_mapped *md)
{
	pthread_mutex_lock(&freezing.lock);
	md->frozen++;
	pthread_mutex_unlock(&freezing.lock);
}

void dm_mapped_thaw(struct dm_mapped *md)
{
	pthread_mutex_lock(&freezing.lock);
	md->frozen--;
	pthread_cond_broadcast(&freezing.thawed);
	pthread_mutex_unlock(&freezing.lock);
}

static bool is_frozen(struct dm_mapped *md)
{
	bool frozen;

	pthread_mutex_lock(&freezing.lock);
	frozen = md->frozen && !dm_ending();
	pthread_mutex_unlock(&freezing.lock);
	return frozen;
}

/* --- suspending, resuming, swapping ------------------------------------------------------------ */

static int suspend_locked(struct dm_mapped *md, unsigned flags, bool (*interrupted)(void *), void *data, GError **err)
{
	struct dm_table *t = atomic_load(&md->live);

	dm_assert_locked(&md->control);
	if (atomic_load(&md->suspended))
		return dm_fail(err, EINVAL, "the device is suspended already");
	if (!dm_mapped_lock_hooks(md, interrupted, data))
		return dm_fail(err, EINTR, "interrupted while waiting for a message");
	dm_hold_close(&md->deferred); /* in a noflush suspend bios come back before the gate is closed */
	atomic_store(&md->noflush, flags & DM_SUSPEND_NOFLUSH);
	atomic_store(&md->suspending, true);
	if (t)
		dm_table_presuspend(t);
	dm_mapped_unlock_hooks(md); /* a message may be what the I/O waits for */
	dm_gate_close(&md->gate);
	if (!dm_gate_wait(&md->gate, interrupted, data)) {
		atomic_store(&md->suspending, false);
		dm_gate_open(&md->gate);
		dm_mapped_lock_hooks(md, NULL, NULL);
		if (t)
			dm_table_presuspend_undo(t);
		dm_mapped_unlock_hooks(md);
		open_hold(md); /* last: targets give bios back until they know that it is off */
		return dm_fail(err, EINTR, "interrupted while waiting for I/O");
	}
	dm_mapped_lock_hooks(md, NULL, NULL);
	atomic_store(&md->suspended, true);
	atomic_store(&md->suspending, false);
	dm_gate_assert_closed(&md->gate);
	if (t) {
		dm_table_postsuspend(t);
		dm_claims_rest(t);
	}
	dm_mapped_unlock_hooks(md);
	return 0;
}

/* Whether nobody else uses it. */
static bool is_only_beneath(struct dm_mapped *below, struct dm_mapped *md)
{
	GHashTableIter iter;
	gpointer t;
	bool only;

	dm_topology_lock();
	only = !below->opens && !below->removed && g_hash_table_size(below->used_by);
	g_hash_table_iter_init(&iter, below->used_by);
	while (only && g_hash_table_iter_next(&iter, &t, NULL))
		only = ((struct dm_table *)t)->md == md;
	dm_topology_unlock();
	return only;
}

/*
 * Suspends a device that only the table which md is about to lose stands on: md is suspended, so nothing comes to it any
 * more, but it may have work of its own.  So LVM takes a layer out that it had put in, without suspending it; as it
 * counts what is suspended, this one does not show it.
 */
static bool rest_beneath(struct dm_mapped *below, struct dm_mapped *md)
{
	bool done;

	if (!is_only_beneath(below, md))
		return false;
	pthread_mutex_lock(&below->control);
	done = !is_frozen(below) && !dm_mapped_removed(below);
	if (done && !atomic_load(&below->suspended)) {
		done = !suspend_locked(below, 0, NULL, NULL, NULL);
		atomic_store(&below->rested, done);
	}
	pthread_mutex_unlock(&below->control);
	return done;
}

static int claim_table(struct dm_mapped *md, struct dm_table *t, GError **err)
{
	for (struct dm_mapped *last = NULL, *who;; last = who) {
		g_autoptr(GError) why = NULL;
		int error = dm_claims_activate(t, &who, &why);
		bool rested = error && who != last && who != md && rest_beneath(who, md);

		if (who)
			dm_mapped_unref(who);
		if (!error)
			return 0;
		if (!rested) {
			g_propagate_error(err, g_steal_pointer(&why));
			return error;
		}
	}
}

/*
 * Resumes a suspended device, with the tables of a change or (NULL) the live one it has.  The change is made when the
 * new table has said that it can run, and before it does: from there on nothing fails.
 */
static int resume_locked(struct dm_mapped *md, struct dm_change *c, GError **err)
{
	struct dm_table *t = c ? c->live : atomic_load(&md->live);
	int error;

	dm_assert_locked(&md->control);
	dm_gate_assert_closed(&md->gate);
	error = t ? claim_table(md, t, err) : 0;
	if (error)
		return error;
	dm_mapped_lock_hooks(md, NULL, NULL);
	error = t ? dm_table_preresume(t, err) : 0;
	if (!error && c) {
		error = dm_claims_follow(md, t, err);
		if (!error) {
			error = dm_state_change(c, err);
			dm_claims_settle(md, !error);
		}
	}
	if (error && t)
		dm_claims_rest(t);
	if (!error && t)
		dm_table_resume(t);
	if (!error) {
		atomic_store(&md->noflush, false);
		atomic_store(&md->suspended, false);
		atomic_store(&md->rested, false);
	}
	dm_mapped_unlock_hooks(md);
	if (!error)
		open_gate(md);
	return error;
}

/* Suspends if need be, and resumes with other tables; on an error the old one goes on, or stays suspended if it was. */
static int swap_locked(struct dm_mapped *md, struct dm_change *c, unsigned flags, bool (*interrupted)(void *), void *data,
		       GError **err)
{
	bool was_suspended = atomic_load(&md->suspended);
	int error = was_suspended ? 0 : suspend_locked(md, flags, interrupted, data, err);

	if (error)
		return error;
	error = resume_locked(md, c, err);
	if (error && !was_suspended)
		resume_locked(md, NULL, NULL);
	if (!error && dm_front && dm_front->swapped)
		dm_front->swapped(md);
	return error;
}

static bool wait_thawed(struct dm_mapped *md, bool (*interrupted)(void *), void *data)
{
	bool go_on = true;

	pthread_mutex_lock(&freezing.lock);
	while (md->frozen && !dm_ending() && (go_on = !interrupted || !interrupted(data))) {
		struct timespec until = next_poll();

		pthread_cond_timedwait(&freezing.thawed, &freezing.lock, &until);
	}
	pthread_mutex_unlock(&freezing.lock);
	return go_on;
}

/* Takes md->control, to do something for which the device must not be frozen. */
static int lock_control(struct dm_mapped *md, bool (*must_wait)(struct dm_mapped *), bool (*interrupted)(void *),
			void *data, GError **err)
{
	for (;;) {
		pthread_mutex_lock(&md->control);
		if (!is_frozen(md) || (must_wait && !must_wait(md)))
			return 0;
		pthread_mutex_unlock(&md->control);
		if (!wait_thawed(md, interrupted, data))
			return dm_fail(err, EINTR, "interrupted while waiting for the device that it stands on to be resumed");
	}
}

static bool is_live(struct dm_mapped *md)
{
	return !atomic_load(&md->suspended) && !dm_mapped_removed(md);
}

static bool has_to_resume(struct dm_mapped *md)
{
	return (atomic_load(&md->suspended) || md->inactive) && !dm_mapped_removed(md);
}

/* --- suspend, resume, swap ---------------------------------------------------------------------------- */

bool dm_mapped_suspended(struct dm_mapped *md)
{
	return atomic_load(&md->suspended) && !atomic_load(&md->rested);
}

int dm_mapped_suspend(struct dm_mapped *md, unsigned flags, bool (*interrupted)(void *), void *data, GError **err)
{
	int error;

	dm_block_begin();
	error = lock_control(md, is_live, interrupted, data, err);
	if (error) {
		dm_block_end();
		return error;
	}
	error = check_removed(md, err);
	if (!error)
		atomic_store(&md->rested, false);
	if (!error && !atomic_load(&md->suspended)) /* again is no error, as with dmsetup */
		error = suspend_locked(md, flags, interrupted, data, err);
	dm_devices_touch();
	pthread_mutex_unlock(&md->control);
	dm_block_end();
	return error;
}

int dm_mapped_resume(struct dm_mapped *md, unsigned flags, bool (*interrupted)(void *), void *data, GError **err)
{
	struct dm_change c = {.md = md, .what = DM_CHANGE_LIVE | DM_CHANGE_INACTIVE, .publish = publish_tables};
	int error;

	dm_block_begin();
	error = lock_control(md, has_to_resume, interrupted, data, err);
	if (error) {
		dm_block_end();
		return error;
	}
	error = check_removed(md, err);
	c.live = error ? NULL : md->inactive; /* the slot's reference goes with it */
	if (!error && c.live)
		error = swap_locked(md, &c, flags, interrupted, data, err);
	else if (!error && atomic_load(&md->suspended))
		error = resume_locked(md, NULL, err);
	if (error)
		c.live = NULL;
	else
		dm_event_resumed(md);
	pthread_mutex_unlock(&md->control);
	dm_table_drop(c.live);
	dm_table_unref(c.stand_in);
	dm_block_end();
	return error;
}

int dm_mapped_swap(struct dm_mapped *md, struct dm_table *t, bool (*interrupted)(void *), void *data, GError **err)
{
	/* The new table takes the inactive slot on its way. */
	struct dm_change c = {
		.md = md, .what = DM_CHANGE_LIVE | DM_CHANGE_INACTIVE, .live = t, .publish = publish_tables};
	int error;

	dm_block_begin();
	error = lock_control(md, NULL, interrupted, data, err);
	if (error) {
		dm_table_drop(t);
		dm_block_end();
		return error;
	}
	error = check_removed(md, err);
	if (!error)
		error = check_immutable(md, t, err);
	if (!error)
		error = swap_locked(md, &c, 0, interrupted, data, err);
	if (!error)
		dm_event_resumed(md);
	pthread_mutex_unlock(&md->control);
	dm_table_drop(c.inactive);
	dm_table_drop(c.live);
	dm_table_unref(c.stand_in);
	dm_block_end();
	return error;
}

/* --- attributes -------------------------------------------------------------------------------------- */

static void publish_readonly(struct dm_change *c)
{
	atomic_store(&c->md->readonly, c->readonly);
}

int dm_mapped_set_readonly(struct dm_mapped *md, bool readonly, GError **err)
{
	struct dm_change c = {
		.md = md, .what = DM_CHANGE_READONLY, .readonly = readonly, .publish = publish_readonly};

	return dm_state_change(&c, err);
}

void dm_mapped_owner(struct dm_mapped *md, struct dm_owner *out)
{
	pthread_mutex_lock(&md->lock);
	*out = md->image;
	pthread_mutex_unlock(&md->lock);
}

static void publish_owner(struct dm_change *c)
{
	struct dm_owner *image = &c->md->image;

	pthread_mutex_lock(&c->md->lock);
	if (c->what & DM_CHANGE_MODE)
		image->mode = c->image.mode;
	if (c->what & DM_CHANGE_UID)
		image->uid = c->image.uid;
	if (c->what & DM_CHANGE_GID)
		image->gid = c->image.gid;
	pthread_mutex_unlock(&c->md->lock);
}

int dm_mapped_set_owner(struct dm_mapped *md, unsigned what, const struct dm_owner *to, GError **err)
{
	struct dm_change c = {.md = md, .what = what, .image = *to, .publish = publish_owner};

	return dm_state_change(&c, err);
}

/* --- the end ----------------------------------------------------------------------------------------- */

void dm_mapped_shutdown(struct dm_mapped *md)
{
	struct dm_change none = {.md = md, .what = DM_CHANGE_LIVE | DM_CHANGE_INACTIVE};
	struct dm_table *live;

	pthread_mutex_lock(&md->control);
	live = atomic_load(&md->live);
	if (!atomic_load(&md->suspended)) {
		dm_mapped_lock_hooks(md, NULL, NULL);
		if (live)
			dm_table_presuspend(live);
		dm_mapped_unlock_hooks(md);
		close_gate(md);
		dm_gate_wait(&md->gate, NULL, NULL);
		dm_mapped_lock_hooks(md, NULL, NULL);
		if (live)
			dm_table_postsuspend(live);
		dm_mapped_unlock_hooks(md);
	}
	publish_tables(&none);
	pthread_mutex_unlock(&md->control);
	dm_state_forget(md);
	dm_hold_fail(&md->deferred, -EIO);
	dm_table_drop(none.live);
	dm_table_drop(none.inactive);
}
