/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Legs that fail, and the writes they missed. */
#include "mirror.h"

/*
 * The primary is the source of regions that were never in sync.  While there are such regions no other leg can take its
 * place.
 */
static void replace_primary(struct mirror *ms, unsigned leg)
{
	if (atomic_load(&ms->primary) != leg)
		return;
	if (ms->shared) {
		dm_log_err_limit("mirror: the first leg failed: with a shared log no other can take its place");
		return;
	}
	if (!dm_regions_all_in_sync(ms->regions)) {
		dm_log_err_limit("mirror: primary leg %u failed while out-of-sync: reads may fail", leg);
		return;
	}
	for (unsigned i = 0; i < ms->nr_legs; i++) {
		if (!atomic_load(&ms->legs[i].errors)) {
			atomic_store(&ms->primary, i);
			return;
		}
	}
	dm_log_warn("mirror: all legs have failed");
}

void mirror_fail_leg(struct mirror *ms, unsigned leg, enum leg_error kind)
{
	static const char *const did[] = {"flush", "write to", "synchronise", "read from"};
	g_autoptr(GString) name = NULL;
	unsigned old;

	atomic_store(&ms->leg_failure, true);
	old = atomic_fetch_or(&ms->legs[leg].errors, 1u << kind);
	if (old & 1u << kind)
		return;
	name = g_string_new(NULL);
	dm_dev_print(ms->legs[leg].dev, name);
	dm_log_err_limit("mirror: failed to %s leg %u (%s)", did[kind], leg, name->str);
	replace_primary(ms, leg);
	if (ms->handle_errors)
		dm_regions_event(ms->regions);
}

int mirror_flush(void *context)
{
	struct mirror *ms = context;
	g_autofree struct dm_region *where = g_new0(struct dm_region, ms->nr_legs);
	g_autofree int *errors = g_new(int, ms->nr_legs);
	int error;

	for (unsigned i = 0; i < ms->nr_legs; i++)
		where[i].dev = ms->legs[i].dev;
	error = dm_io_sync(DM_FLUSH, 0, ms->nr_legs, where, NULL, 0, errors);
	for (unsigned i = 0; i < ms->nr_legs; i++)
		if (errors[i])
			atomic_store(&ms->legs[i].flush_failed, true);
	return error;
}

void mirror_flush_failed(void *context)
{
	struct mirror *ms = context;

	for (unsigned i = 0; i < ms->nr_legs; i++)
		if (atomic_exchange(&ms->legs[i].flush_failed, false))
			mirror_fail_leg(ms, i, LEG_FLUSH_ERROR);
}

void mirror_all_in_sync(void *context)
{
	struct mirror *ms = context;

	for (unsigned i = 0; i < ms->nr_legs; i++)
		atomic_store(&ms->legs[i].errors, 0);
	atomic_store(&ms->leg_failure, false);
}

/* --- writes that failed --------------------------------------------------------------- */

void mirror_not_sent(struct mirror_bio *b)
{
	b->unsent = true;
	dm_regions_failed(b->ms->regions, &b->io);
}

void mirror_log_failed(struct dm_region_io *io)
{
	struct mirror_bio *b = (struct mirror_bio *)io;

	b->log_failed = true;
	mirror_not_sent(b);
}

void mirror_leave(struct dm_region_io *io, int error)
{
	struct mirror_bio *b = (struct mirror_bio *)io;

	b->requeue = error != -EINTR && dm_target_noflush(b->ms->ti);
	b->unsent = true;
	mirror_write_end(b, error);
}

static void hold(struct mirror_bio *b)
{
	int error = dm_hold_add(&b->ms->holds, b->io.bio);

	if (error)
		mirror_leave(&b->io, error == -EAGAIN ? -EIO : error);
}

/* Whether some leg that missed nothing has what the bio wrote; with a shared log, whether the first leg has. */
static bool some_leg_has_it(struct mirror_bio *b)
{
	struct mirror *ms = b->ms;

	for (unsigned i = 0; i < b->nr; i++) {
		unsigned leg = b->legs[i].leg;

		if (!b->legs[i].bio.error &&
		    (ms->shared ? leg == atomic_load(&ms->primary) : !leg_is_stale(&ms->legs[leg])))
			return true;
	}
	return false;
}

/*
 * A discard is a wish: a leg that does not fulfil it has not failed.  But some have dropped the sectors and
 * some have not: that is mended at once.
 */
static void mend_discard(struct mirror_bio *b)
{
	int error = 0;

	for (unsigned i = 0; i < b->nr && !error; i++)
		error = b->legs[i].bio.error;
	dm_regions_mend(b->ms->regions, &b->io);
	mirror_write_end(b, error);
}

void mirror_failed(struct dm_region_io *io)
{
	struct mirror_bio *b = (struct mirror_bio *)io;
	struct mirror *ms = b->ms;
	bool lost;

	if (b->unsent) {
		lost = mirror_sound_leg(ms) < 0 || (b->log_failed && (ms->keep_log || !ms->handle_errors));
	} else if (b->io.bio->op == DM_DISCARD) {
		mend_discard(b);
		return;
	} else {
		for (unsigned i = 0; i < b->nr; i++)
			if (b->legs[i].bio.error)
				mirror_fail_leg(ms, b->legs[i].leg, LEG_WRITE_ERROR);
		dm_regions_missed(ms->regions, &b->io);
		lost = !some_leg_has_it(b);
	}
	if (lost)
		mirror_write_end(b, -EIO);
	else if (ms->handle_errors && !ms->keep_log)
		hold(b);
	else
		mirror_write_end(b, 0);
}
