/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A device's life: its tables, suspend, swap and resume.
 *
 * Suspend closes the gate, so that new bios are deferred, and waits until
 * those inside have left; then nobody reads the live table, and a swap is one
 * pointer.  Opening the gate lets the deferred bios go.
 */
#include <errno.h>
#include <string.h>

#include "devices.h"
#include "events.h"
#include "mapped.h"
#include "state.h"
#include "stats.h"

const struct dm_front_ops *dm_front;

struct dm_mapped *dm_mapped_new(const char *name, unsigned minor)
{
	struct dm_mapped *md = g_new0(struct dm_mapped, 1);

	md->dev.ops = &dm_mapped_ops;
	md->dev.mode = DM_MODE_RW;
	atomic_init(&md->dev.refs, 1);
	dm_gate_init(&md->gate);
	pthread_mutex_init(&md->control, NULL);
	pthread_mutex_init(&md->lock, NULL);
	pthread_mutex_init(&md->stats_lock, NULL);
	dm_bio_list_init(&md->deferred);
	md->name = g_strdup(name);
	md->uuid = g_strdup("");
	md->minor = minor;
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
	pthread_mutex_destroy(&md->control);
	pthread_mutex_destroy(&md->lock);
	g_hash_table_destroy(md->tables);
	g_hash_table_destroy(md->used_by);
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
	sectors = t ? t->sectors : 0;
	pthread_mutex_unlock(&md->lock);
	return sectors;
}

bool dm_target_suspending(struct dm_target *ti)
{
	return atomic_load(&ti->table->md->suspending) || atomic_load(&ti->table->md->suspended);
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

static atomic_bool no_resume; /* the daemon ends */

bool dm_mapped_defer(struct dm_mapped *md, struct dm_bio *bio)
{
	bool closed, fail;

	pthread_mutex_lock(&md->lock);
	/* In a noflush suspend bios come back before the gate is closed; it will be, and opening it runs them. */
	closed = atomic_load(&md->gate.closed) || (atomic_load(&md->suspending) && atomic_load(&md->noflush));
	fail = closed && atomic_load(&no_resume);
	if (closed && !fail)
		dm_bio_list_add(&md->deferred, bio);
	pthread_mutex_unlock(&md->lock);
	if (fail)
		dm_bio_end(bio, -EIO);
	return closed;
}

static void take_deferred(struct dm_mapped *md, struct dm_bio_list *list)
{
	dm_bio_list_init(list);
	pthread_mutex_lock(&md->lock);
	dm_bio_list_take(&md->deferred, list);
	pthread_mutex_unlock(&md->lock);
}

static void fail_deferred(struct dm_mapped *md)
{
	struct dm_bio_list list;
	struct dm_bio *bio;

	take_deferred(md, &list);
	while ((bio = dm_bio_list_pop(&list)))
		dm_bio_end(bio, -EIO);
}

void dm_mapped_no_resume(GPtrArray *devices)
{
	atomic_store(&no_resume, true);
	for (unsigned i = 0; i < devices->len; i++) {
		struct dm_table *t = dm_mapped_live(devices->pdata[i]);

		if (t)
			dm_table_end_waiting(t);
		dm_table_unref(t);
		fail_deferred(devices->pdata[i]);
	}
}

void dm_mapped_run_deferred(struct dm_mapped *md)
{
	struct dm_bio_list list;
	struct dm_bio *bio;

	take_deferred(md, &list);
	while ((bio = dm_bio_list_pop(&list)))
		dm_submit(bio);
}

static void open_gate(struct dm_mapped *md)
{
	if (dm_gate_open(&md->gate))
		dm_mapped_run_deferred(md);
}

void dm_mapped_quiesce(struct dm_mapped *md)
{
	dm_gate_close(&md->gate);
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

/* An immutable target stays what it is. */
static int check_immutable(struct dm_mapped *md, struct dm_table *t, GError **err)
{
	struct dm_table *live = atomic_load(&md->live);
	const struct dm_target_type *old = live ? dm_table_target(live, 0)->type : NULL;

	if (old && (old->features & DM_TARGET_IMMUTABLE) && dm_table_target(t, 0)->type != old)
		return dm_fail(err, EINVAL, "can't replace immutable target type %s", old->name);
	return 0;
}

static struct dm_table *set_inactive(struct dm_mapped *md, struct dm_table *t)
{
	struct dm_table *old;

	pthread_mutex_lock(&md->lock);
	old = md->inactive;
	md->inactive = t;
	pthread_mutex_unlock(&md->lock);
	return old;
}

int dm_mapped_load(struct dm_mapped *md, struct dm_table *t, GError **err)
{
	int error;

	dm_block_begin();
	pthread_mutex_lock(&md->control);
	error = check_removed(md, err);
	if (!error && t)
		error = check_immutable(md, t, err);
	if (!error) {
		t = set_inactive(md, t);
		dm_unloaded_drop(md, false, true);
		error = dm_state_save(md, err);
	}
	pthread_mutex_unlock(&md->control);
	dm_block_end();
	dm_table_unref(t); /* the old one, or the refused one */
	return error;
}

static int suspend_locked(struct dm_mapped *md, unsigned flags, bool (*interrupted)(void *), void *data, GError **err)
{
	struct dm_table *t = atomic_load(&md->live);

	if (atomic_load(&md->suspended))
		return dm_fail(err, EINVAL, "the device is suspended already");
	atomic_store(&md->noflush, flags & DM_SUSPEND_NOFLUSH);
	atomic_store(&md->suspending, true);
	if (t)
		dm_table_presuspend(t);
	dm_gate_close(&md->gate);
	if (!dm_gate_wait(&md->gate, interrupted, data)) {
		atomic_store(&md->suspending, false);
		open_gate(md);
		if (t)
			dm_table_presuspend_undo(t);
		return dm_fail(err, EINTR, "interrupted while waiting for I/O");
	}
	atomic_store(&md->suspended, true);
	atomic_store(&md->suspending, false);
	if (t)
		dm_table_postsuspend(t);
	return 0;
}

/* Runs whatever table is live; the device is suspended. */
static int resume_locked(struct dm_mapped *md, GError **err)
{
	struct dm_table *t = atomic_load(&md->live);
	int error = t ? dm_table_preresume(t, err) : 0;

	if (error)
		return error;
	if (t)
		dm_table_resume(t);
	atomic_store(&md->noflush, false);
	atomic_store(&md->suspended, false);
	open_gate(md);
	return 0;
}

static void set_live(struct dm_mapped *md, struct dm_table *t)
{
	pthread_mutex_lock(&md->lock);
	atomic_store_explicit(&md->live, t, memory_order_release);
	pthread_mutex_unlock(&md->lock);
}

/* Makes a table live on a suspended device and resumes; the old one goes on if the new will not. */
static int swap_locked(struct dm_mapped *md, struct dm_table *t, struct dm_table **dropped, GError **err)
{
	struct dm_table *old = atomic_load(&md->live);
	int error;

	set_live(md, t);
	error = resume_locked(md, err);
	if (error) {
		set_live(md, old);
		*dropped = t;
		return error;
	}
	*dropped = old;
	return 0;
}

/* A new table is live: stores that and tells everybody. */
static int finish_swap(struct dm_mapped *md, GError **err)
{
	int error = dm_state_save(md, err);

	if (dm_front && dm_front->swapped)
		dm_front->swapped(md);
	dm_event_resumed(md);
	return error;
}

int dm_mapped_suspend(struct dm_mapped *md, unsigned flags, bool (*interrupted)(void *), void *data, GError **err)
{
	int error;

	dm_block_begin();
	pthread_mutex_lock(&md->control);
	error = check_removed(md, err);
	if (!error && !atomic_load(&md->suspended)) /* again is no error, as with dmsetup */
		error = suspend_locked(md, flags, interrupted, data, err);
	pthread_mutex_unlock(&md->control);
	dm_block_end();
	return error;
}

int dm_mapped_resume(struct dm_mapped *md, unsigned flags, bool (*interrupted)(void *), void *data, GError **err)
{
	struct dm_table *t, *dropped = NULL;
	int error;

	dm_block_begin();
	pthread_mutex_lock(&md->control);
	error = check_removed(md, err);
	t = error ? NULL : set_inactive(md, NULL);
	if (t) {
		bool was_suspended = atomic_load(&md->suspended);

		error = was_suspended ? 0 : suspend_locked(md, flags, interrupted, data, err);
		if (error) {
			set_inactive(md, t);
		} else {
			error = swap_locked(md, t, &dropped, err);
			if (error && !was_suspended)
				resume_locked(md, NULL);
		}
	} else if (!error && atomic_load(&md->suspended)) {
		error = resume_locked(md, err);
	}
	if (!error && t) {
		dm_unloaded_drop(md, true, false);
		error = finish_swap(md, err);
	} else if (!error) {
		dm_event_resumed(md);
	}
	pthread_mutex_unlock(&md->control);
	dm_table_unref(dropped);
	dm_block_end();
	return error;
}

int dm_mapped_swap(struct dm_mapped *md, struct dm_table *t, bool (*interrupted)(void *), void *data, GError **err)
{
	struct dm_table *dropped = t, *unused = NULL;
	int error;

	dm_block_begin();
	pthread_mutex_lock(&md->control);
	error = check_removed(md, err);
	if (!error)
		error = check_immutable(md, t, err);
	if (!error) {
		bool was_suspended = atomic_load(&md->suspended);

		if (!was_suspended)
			error = suspend_locked(md, 0, interrupted, data, err);
		if (!error) {
			error = swap_locked(md, t, &dropped, err);
			if (error && !was_suspended)
				resume_locked(md, NULL);
		}
	}
	if (!error) {
		unused = set_inactive(md, NULL); /* the new table took its slot on the way */
		dm_unloaded_drop(md, true, true);
		error = finish_swap(md, err);
	}
	pthread_mutex_unlock(&md->control);
	dm_table_unref(unused);
	dm_table_unref(dropped);
	dm_block_end();
	return error;
}

int dm_mapped_set_readonly(struct dm_mapped *md, bool readonly, GError **err)
{
	bool before = atomic_exchange(&md->readonly, readonly);
	int error = dm_state_save(md, err);

	if (error)
		atomic_store(&md->readonly, before);
	return error;
}

void dm_mapped_shutdown(struct dm_mapped *md)
{
	struct dm_table *live, *inactive;

	pthread_mutex_lock(&md->control);
	live = atomic_load(&md->live);
	if (!atomic_load(&md->suspended)) {
		if (live)
			dm_table_presuspend(live);
		dm_gate_close(&md->gate);
		dm_gate_wait(&md->gate, NULL, NULL);
		if (live)
			dm_table_postsuspend(live);
	}
	set_live(md, NULL);
	inactive = set_inactive(md, NULL);
	pthread_mutex_unlock(&md->control);
	fail_deferred(md);
	dm_table_unref(live);
	dm_table_unref(inactive);
}
