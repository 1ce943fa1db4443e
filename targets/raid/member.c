/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * An array's devices: which are out, why, and how they come back.
 *
 * A device that fails is out at once, in memory; its name goes into the other devices' superblocks, and no write that
 * it missed is reported done before that is durable.  From then on the bitmap's bits stay set, so when it comes back it
 * is brought up to date by them alone.  The last device that has some of the data is never out, and none is where all
 * fail alike (a full disk beneath them all).
 *
 * fail_stop: the array's state is kept by somebody else, who hears of the device too late.  So all that is written or
 * flushed from then on is reported failed: whatever was answered, each device that this state counts on has.
 */
#include <inttypes.h>

#include "raid.h"

/* --- who is left --------------------------------------------------------------------------------- */

struct without {
	const struct raid *r;
	unsigned i;
};

static bool lost(const struct raid *r, unsigned i)
{
	uint32_t flags = atomic_load(&r->members[i].flags);

	return flags & (RAID_FAULTY | RAID_MISSING) || !(flags & RAID_IN_SYNC);
}

static bool lost_without(const void *context, unsigned i)
{
	const struct without *w = context;

	return i == w->i || lost(w->r, i);
}

void raid_count_degraded(struct raid *r)
{
	unsigned n = 0;

	for (unsigned i = 0; i < r->geo.disks; i++)
		n += lost(r, i);
	atomic_store(&r->degraded, n);
}

/*
 * An array with parity that has lost as much as it bears cannot be resynchronised: what is left is what the data is
 * (the kernel asserts so too).  The superblocks say it together with the loss: an array that is both degraded and not
 * in sync would not be started again.
 */
static void give_up_resync(struct raid *r)
{
	if (r->geo.parity && atomic_load(&r->degraded) >= r->geo.parity)
		atomic_store(&r->resync_offset, RAID_NONE);
}

bool raid_member_fail(struct raid *r, unsigned i, const char *what, int error)
{
	struct raid_member *m = &r->members[i];
	struct without w = {r, i};
	g_autoptr(GString) name = NULL;
	bool out, first = false;

	pthread_mutex_lock(&r->lock);
	out = !raid_member_alive(m);
	if (!out) {
		out = first = lost(r, i) || raid_state_enough(&r->state, r->geo.disks, lost_without, &w);
		if (out) {
			if (r->writable && raid_given(&r->params, RAID_FAIL_STOP)) /* before a write goes by */
				atomic_store(&r->unsaved, true);
			atomic_fetch_or(&m->flags, RAID_FAULTY);
			r->failures++;
			if (r->state.persistent && r->writable)
				atomic_store(&r->unsaved, true);
			atomic_fetch_and(&m->flags, ~(uint32_t)(RAID_IN_SYNC | RAID_PARTIAL));
			raid_count_degraded(r);
			give_up_resync(r);
		}
	}
	pthread_mutex_unlock(&r->lock);
	if (!first) {
		if (!out)
			dm_log_err_limit("raid: failed to %s device #%u, the last with its data: %s", what, i,
					 g_strerror(-error));
		return out;
	}
	name = g_string_new(NULL);
	if (m->data)
		dm_dev_print(m->data, name);
	dm_log_err("raid: Disk failure on %s (#%u, %s: %s), disabling device", name->str, i, what, g_strerror(-error));
	raid_save(r, NULL);
	dm_target_event(r->ti, NULL, NULL);
	return true;
}

/* --- back again -------------------------------------------------------------------------------------- */

void raid_members_revive(struct raid *r)
{
	bool some = false;

	atomic_store(&r->broken, false);
	for (unsigned i = 0; i < r->disks; i++) {
		struct raid_member *m = &r->members[i];
		uint8_t block[RAID_SUPER_BYTES];

		if (!(atomic_load(&m->flags) & RAID_FAULTY) || !m->meta || !m->data || !r->geo.level)
			continue;
		if (dm_read_sync(m->meta, 0, 1, block, DM_META))
			continue;
		dm_log_info("raid: Faulty %s device #%u has readable super block.  Attempting to revive it.",
			    r->params.type->name, i);
		atomic_store(&m->recovered, 0);
		atomic_store(&m->checkpoint, 0);
		atomic_fetch_or(&m->flags, RAID_PARTIAL);
		atomic_fetch_and(&m->flags, ~(uint32_t)RAID_FAULTY);
		some = true;
	}
	if (some) {
		raid_count_degraded(r);
		raid_save_sync(r);
	}
}

/* --- FLUSH --------------------------------------------------------------------------------------------- */

/* errors: of all devices.  0 or the error of one that must stay; *dropped: some are out. */
static int drop_unflushed(struct raid *r, const int *errors, bool *dropped)
{
	bool some = false;
	int result = 0;

	for (unsigned i = 0; i < r->disks; i++)
		some |= !errors[i] && raid_member_alive(&r->members[i]);
	for (unsigned i = 0; i < r->disks; i++) {
		if (errors[i] && some && raid_member_fail(r, i, "flush", errors[i]))
			*dropped = true;
		else if (errors[i])
			result = errors[i];
	}
	return result;
}

int raid_members_flush(struct raid *r)
{
	g_autofree int *errors = g_new0(int, r->disks);
	bool dropped;

	for (unsigned i = 0; i < r->disks; i++)
		if (raid_member_alive(&r->members[i]))
			errors[i] = dm_flush_sync(r->members[i].data);
	return drop_unflushed(r, errors, &dropped);
}

struct flush {
	struct raid *r;
	struct dm_bio *whole;
	struct raid_wait wait;
	atomic_uint left;
	int error;
	int *errors; /* of each device */
	struct flush_part {
		struct dm_bio bio; /* first */
		struct flush *flush;
		unsigned disk;
	} parts[];
};

static void flush_answer(struct raid_wait *wait)
{
	struct flush *f = container_of(wait, struct flush, wait);
	struct dm_bio *whole = f->whole;
	int error = f->error ? f->error : wait->error;

	g_free(f->errors);
	g_free(f);
	dm_bio_end(whole, error);
}

static void flush_drop(struct flush *f)
{
	bool dropped = false;

	if (atomic_fetch_sub(&f->left, 1) > 1)
		return;
	f->error = drop_unflushed(f->r, f->errors, &dropped);
	if (dropped || atomic_load(&f->r->unsaved))
		raid_save(f->r, &f->wait);
	else
		flush_answer(&f->wait);
}

static void flush_part_end(struct dm_bio *bio)
{
	struct flush_part *part = (struct flush_part *)bio;
	struct flush *f = part->flush;

	f->errors[part->disk] = bio->error;
	flush_drop(f);
}

void raid_flush(struct raid *r, struct dm_bio *bio)
{
	struct flush *f = g_malloc(sizeof *f + r->disks * sizeof f->parts[0]);

	f->r = r;
	f->whole = bio;
	f->wait = (struct raid_wait){.fn = flush_answer};
	f->errors = g_new0(int, r->disks);
	atomic_init(&f->left, 1);
	for (unsigned i = 0; i < r->disks; i++) {
		struct flush_part *part = &f->parts[i];

		if (!raid_member_alive(&r->members[i]))
			continue;
		part->bio = (struct dm_bio){.op = DM_FLUSH, .dev = r->members[i].data, .end = flush_part_end};
		part->flush = f;
		part->disk = i;
		atomic_fetch_add(&f->left, 1);
		dm_submit(&part->bio);
	}
	flush_drop(f);
}
