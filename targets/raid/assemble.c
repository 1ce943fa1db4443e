/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an array is, from its line and its superblocks (assemble.h).
 *
 * The superblock with the highest event count is right.  A device that it calls failed has come back: it is recovered
 * where the bitmap says so.  One that missed several events without being called failed, or was named with `rebuild`,
 * is recovered in full.
 */
#include "assemble.h"

#include <inttypes.h>

struct assembly {
	const struct raid_params *p;
	const struct raid_found *found;
	struct raid_state *s;
	uint64_t len;
	const struct raid_super *best; /* NULL: no superblock counts */
	unsigned best_index;
	bool unfinished; /* a crash came while it was made */
	uint64_t line_dev_sectors, line_array_sectors;
};

/* --- redundancy ------------------------------------------------------------------------------- */

unsigned raid_redundancy(unsigned level, unsigned layout, unsigned disks)
{
	switch (level) {
	case 1:
		return disks - 1;
	case 5:
		return 1;
	case 6:
		return 2;
	case 10: {
		unsigned copies = (layout & 0xff) * (layout >> 8 & 0xff);

		return disks - disks / MAX(copies, 1);
	}
	default:
		return 0;
	}
}

/* raid10: each chunk of a period of the layout must have a copy left. */
static bool enough_copies(unsigned layout, unsigned disks, bool (*lost)(const void *, unsigned), const void *context)
{
	struct raid_copy copies[RAID_MAX_DISKS];
	struct raid_geo g;

	if (!raid_geo_init(&g, 10, layout, disks, 8, 8ull * disks * RAID_MAX_DISKS))
		return false;
	for (uint64_t chunk = 0; chunk < disks; chunk++) {
		unsigned left = 0;

		raid_copies(&g, chunk * 8, copies);
		for (unsigned i = 0; i < g.copies; i++)
			left += !lost(context, copies[i].disk);
		if (!left)
			return false;
	}
	return true;
}

bool raid_enough(unsigned level, unsigned layout, unsigned disks, bool (*lost)(const void *, unsigned),
		 const void *context)
{
	unsigned n = 0;

	if (level == 10)
		return enough_copies(layout, disks, lost, context);
	for (unsigned i = 0; i < disks; i++)
		n += lost(context, i);
	return n <= raid_redundancy(level, layout, disks);
}

bool raid_state_enough(const struct raid_state *s, unsigned disks, bool (*lost)(const void *, unsigned),
		       const void *context)
{
	if (s->reshape_position == RAID_NONE || s->level != 10)
		return raid_enough(s->level, s->layout, disks, lost, context);
	return raid_enough(10, s->layout, s->disks - (unsigned)s->delta_disks, lost, context) &&
	       raid_enough(10, s->new_layout, s->disks, lost, context);
}

static bool state_lost(const void *context, unsigned i)
{
	const struct assembly *a = context;
	const struct raid_found *f = &a->found[i];

	if (i >= a->p->disks)
		return false;
	return !f->has_data || (a->s->persistent && !f->has_meta) || a->s->m[i].faulty || !a->s->m[i].in_sync;
}

static int check_redundancy(struct assembly *a, GError **err)
{
	unsigned level = a->s->level, lost = 0, disks = MIN(a->s->disks, a->p->disks);

	if (a->s->reshape_position != RAID_NONE) /* those that are removed count still */
		disks = a->p->disks;
	/* what a takeover adds to a raid0 it has not lost, wherever it stands */
	for (unsigned i = 0; i < a->p->disks; i++)
		lost += state_lost(a, i) && (level || !raid_set_has(&a->p->rebuild, i));
	if (level ? raid_state_enough(a->s, disks, state_lost, a) : !lost)
		return 0;
	if (!level)
		return dm_fail(err, EINVAL, "raid: too few disks: %u of %u cannot be used, raid0 needs all", lost,
			       a->p->disks);
	return dm_fail(err, EINVAL,
		       "raid: Insufficient redundancy to activate array: %u of %u devices are missing, "
		       "failed or to be rebuilt",
		       lost, a->s->disks);
}

/* --- sizes ---------------------------------------------------------------------------------------- */

static int line_sizes(struct assembly *a, GError **err)
{
	const struct raid_params *p = a->p;
	uint64_t n = p->disks - p->type->parity, sectors = a->len;

	if (p->disks < p->type->parity + 1)
		return dm_fail(err, EINVAL, "raid: Insufficient number of devices: %u for %s", p->disks, p->type->name);
	if (p->type->level == 1) {
		a->line_dev_sectors = a->line_array_sectors = sectors;
		return 0;
	}
	if (p->type->level == 10) {
		if (p->delta_disks < 0)
			return dm_fail(err, EINVAL,
				       "raid: Bogus raid10 data copies or delta disks: devices can only be "
				       "added");
		if (__builtin_mul_overflow(sectors, (uint64_t)p->copies, &sectors))
			return dm_fail(err, EINVAL, "raid: length %" PRIu64 " is too large", a->len);
	}
	if (sectors % n)
		return dm_fail(err, EINVAL,
			       "raid: Target length not divisible by number of data devices: %" PRIu64
			       " sectors by %" PRIu64,
			       sectors, n);
	a->line_dev_sectors = sectors / n;
	a->line_array_sectors = a->len;
	return 0;
}

static int check_device_sizes(struct assembly *a, uint64_t dev_sectors, GError **err)
{
	for (unsigned i = 0; i < a->p->disks; i++) {
		const struct raid_found *f = &a->found[i];

		if (f->has_data && f->data_sectors < dev_sectors)
			return dm_fail(err, EINVAL,
				       "raid: Component device(s) too small: device %u has %" PRIu64
				       " sectors, %" PRIu64 " are needed",
				       i, f->data_sectors, dev_sectors);
	}
	return 0;
}

static uint64_t whole_chunks(uint64_t sectors, unsigned chunk)
{
	return chunk ? sectors - sectors % chunk : sectors;
}

/* --- superblocks ------------------------------------------------------------------------------------ */

/* Whether a device begins anew, whatever is in its superblock. */
static bool is_new(const struct assembly *a, unsigned i)
{
	const struct raid_found *f = &a->found[i];

	return f->has_meta && f->has_data && f->readable &&
	       (!f->has_super || f->sb.index == RAID_SPARE || raid_set_has(&a->p->rebuild, i));
}

/*
 * A reshape begins with the count of events as it was (raid_meta_start()): of two that count alike, this is the later.
 */
static bool reshaping(const struct raid_super *sb)
{
	return sb->reshape_flags & RAID_RESHAPE_ACTIVE;
}

/*
 * An array that is being made has event count 1 until all its superblocks are written, and is not used before: one that
 * a crash left so is new, whatever it has.
 */
static void choose_best(struct assembly *a)
{
	for (unsigned i = 0; i < a->p->disks; i++) {
		const struct raid_found *f = &a->found[i];

		if (!f->has_meta || !f->has_data || !f->readable || is_new(a, i))
			continue;
		if (!a->best || f->sb.events > a->best->events ||
		    (f->sb.events == a->best->events && reshaping(&f->sb) && !reshaping(a->best))) {
			a->best = &f->sb;
			a->best_index = i;
		}
	}
	if (a->best && a->best->events <= 1) {
		a->best = NULL;
		a->unfinished = true;
	}
}

static bool reorders(const struct assembly *a)
{
	unsigned from = a->best->level, to = a->p->type->level;

	return from == 1 || to == 1 || (from == 10 && (a->best->layout & 0xff) > 1) || (from == 0 && to == 10);
}

static int check_one(const struct assembly *a, unsigned i, GError **err)
{
	const struct raid_super *sb = &a->found[i].sb, *best = a->best;

	if (sb->features & ~1u)
		return dm_fail(err, EINVAL,
			       "raid: Unable to assemble array: Unknown flag(s) in compatible feature flags "
			       "of device %u: 0x%x",
			       i, sb->features);
	if (sb->incompatible)
		return dm_fail(err, EINVAL,
			       "raid: Unable to assemble array: No incompatible feature flags supported "
			       "yet, device %u has 0x%x",
			       i, sb->incompatible);
	if (sb->index >= RAID_MAX_DISKS || (sb->index != i && !reorders(a)))
		return dm_fail(err, EINVAL, "raid: Cannot change device positions in raid set: device %u was number %u",
			       i, sb->index);
	if (raid_set_has(&best->failed, sb->index) || best->events != sb->events || reshaping(best) != reshaping(sb))
		return 0; /* of before: what the best says is so; if it is long before, it is recovered */
	if (sb->data_offset != best->data_offset || sb->new_data_offset != best->new_data_offset)
		return dm_fail(
		    err, EINVAL,
		    "raid: Unable to assemble array: Invalid superblocks: data offsets of device %u, %" PRIu64
		    " and %" PRIu64 ", are not those of device %u, %" PRIu64 " and %" PRIu64,
		    i, sb->data_offset, sb->new_data_offset, a->best_index, best->data_offset, best->new_data_offset);
	if (sb->level != best->level || sb->layout != best->layout || sb->chunk != best->chunk ||
	    sb->disks != best->disks)
		return dm_fail(err, EINVAL,
			       "raid: Unable to assemble array: Invalid superblocks: device %u is of an "
			       "array with level %u, layout 0x%x, chunks of %u and %u devices, device %u of "
			       "one with level %u, layout 0x%x, chunks of %u and %u devices",
			       i, sb->level, sb->layout, sb->chunk, sb->disks, a->best_index, best->level, best->layout,
			       best->chunk, best->disks);
	return 0;
}

static int check_best(const struct assembly *a, GError **err)
{
	const struct raid_super *sb = a->best;
	unsigned before = sb->disks;
	struct raid_geo g, new;

	if (sb->reshape_flags & RAID_RESHAPE_ACTIVE)
		before -= (unsigned)sb->delta_disks;
	if (sb->disks <= RAID_MAX_DISKS && raid_type_of(sb->level, sb->layout) &&
	    raid_geo_init(&g, sb->level, sb->layout, before, sb->chunk, a->line_dev_sectors) &&
	    (!(sb->reshape_flags & RAID_RESHAPE_ACTIVE) ||
	     (raid_type_of(sb->new_level, sb->new_layout) &&
	      raid_geo_init(&new, sb->new_level, sb->new_layout, sb->disks, sb->new_chunk, a->line_dev_sectors))))
		return 0;
	return dm_fail(err, EINVAL,
		       "raid: Unable to assemble array: Invalid superblocks: device %u says level %u, layout "
		       "0x%x, chunks of %u sectors, %u devices",
		       a->best_index, sb->level, sb->layout, sb->chunk, sb->disks);
}

/*
 * A device that a reshape adds and that has no superblock, as the power failed before it was written, has nothing yet.
 * The others' superblocks count it already, so it cannot be added again, and is no stranger either.
 */
static bool joins(const struct assembly *a, unsigned i)
{
	const struct raid_super *sb = a->best;

	return reshaping(sb) && sb->delta_disks > 0 && !sb->reshape_position &&
	       i >= sb->disks - (unsigned)sb->delta_disks;
}

static int check_new_devices(const struct assembly *a, GError **err)
{
	unsigned fresh = 0, rebuilds = raid_set_count(&a->p->rebuild);

	for (unsigned i = 0; i < a->p->disks; i++)
		fresh += is_new(a, i) && !joins(a, i);
	if (!rebuilds && fresh && (int)fresh != a->p->delta_disks)
		return dm_fail(err, EINVAL,
			       "raid: Unable to assemble array: Invalid superblocks: %u new device(s) injected "
			       "into existing raid set without 'delta_disks' or 'rebuild' parameter "
			       "specified",
			       fresh);
	if (rebuilds && fresh != rebuilds)
		return dm_fail(err, EINVAL,
			       "raid: Unable to assemble array: Invalid superblocks: %u 'rebuild' devices "
			       "cannot be injected into a raid set with %u other first-time devices",
			       rebuilds, fresh - rebuilds);
	if (rebuilds && a->best->reshape_flags & RAID_RESHAPE_ACTIVE)
		return dm_fail(err, EINVAL,
			       "raid: 'rebuild' specified while raid set is being reshaped "
			       "(reshape_position=%" PRIu64 ")",
			       a->best->reshape_position);
	return 0;
}

/* What each device is worth. */
static void judge(struct assembly *a, unsigned i)
{
	const struct raid_found *f = &a->found[i];
	struct raid_member_state *m = &a->s->m[i];

	*m = (struct raid_member_state){.in_sync = true,
					.recovered = RAID_NONE,
					.data_offset = a->best->data_offset,
					.new_data_offset = a->best->new_data_offset};
	if (!f->has_data || !f->has_meta)
		return;
	m->faulty = !f->readable;
	if (m->faulty)
		return;
	if (raid_set_has(&a->p->rebuild, i)) {
		m->in_sync = false;
		m->recovered = 0;
	}
	if (is_new(a, i))
		return;
	m->recovered = f->sb.recovery_offset;
	m->in_sync = m->recovered == RAID_NONE;
	if (!m->in_sync && a->best->reshape_flags & RAID_RESHAPE_ACTIVE)
		m->recovered = 0; /* it came back during a reshape, and is rebuilt after it */
	m->partial = raid_set_has(&a->best->failed, f->sb.index);
	if (m->partial || a->best->events - f->sb.events > 1) {
		m->in_sync = false;
		m->recovered = 0;
	}
}

static void take_super(struct assembly *a)
{
	const struct raid_super *sb = a->best;
	struct raid_state *s = a->s;

	s->events = sb->events ? sb->events : 1;
	s->level = sb->level;
	s->layout = sb->layout;
	s->chunk = sb->chunk;
	s->disks = sb->disks;
	s->resync_offset = raid_given(a->p, RAID_NOSYNC) ? RAID_NONE : sb->resync_offset;
	s->reshape_position = RAID_NONE;
	s->ours = sb->mark == RAID_MARK;
	s->dev_sectors = sb->features & 1 ? sb->dev_sectors : a->line_dev_sectors;
	s->array_sectors = sb->features & 1 ? sb->array_sectors : a->line_array_sectors;
	if (sb->reshape_flags & RAID_RESHAPE_ACTIVE) {
		s->new_level = sb->new_level;
		s->new_layout = sb->new_layout;
		s->new_chunk = sb->new_chunk;
		s->delta_disks = sb->delta_disks;
		s->reshape_position = sb->reshape_position;
		s->backwards = sb->delta_disks < 0 || (!sb->delta_disks && sb->reshape_flags & RAID_RESHAPE_BACKWARDS);
	}
}

/* --- sorts of arrays ---------------------------------------------------------------------------------- */

/* As the line says, and nothing known of what is on the devices. */
static void as_in_line(struct assembly *a)
{
	const struct raid_params *p = a->p;
	struct raid_state *s = a->s;

	s->level = p->type->level;
	s->layout = p->layout;
	s->chunk = p->chunk;
	s->disks = p->disks;
	s->reshape_position = RAID_NONE;
	s->dev_sectors = a->line_dev_sectors;
	s->array_sectors = a->line_array_sectors;
	s->events = 0;
	s->resync_offset = s->level == 0 || raid_given(p, RAID_NOSYNC) ? RAID_NONE : 0;
	s->new_bitmap = s->save = true;
	for (unsigned i = 0; i < p->disks; i++) {
		bool rebuild = raid_set_has(&p->rebuild, i);

		s->m[i] = (struct raid_member_state){.in_sync = !rebuild, .recovered = rebuild ? 0 : RAID_NONE};
		s->m[i].faulty = a->found[i].has_meta && !a->found[i].readable;
		if (!s->persistent && !a->found[i].has_data) /* what is left is what it is */
			s->resync_offset = RAID_NONE;
	}
}

static int new_array(struct assembly *a, GError **err)
{
	unsigned fresh = 0;

	for (unsigned i = 0; i < a->p->disks; i++)
		fresh += is_new(a, i);
	if (fresh != a->p->disks && !a->unfinished && !raid_given(a->p, RAID_SYNC) && a->s->persistent &&
	    a->p->type->level)
		return dm_fail(err, EINVAL,
			       "raid: Unable to assemble array: Invalid superblocks: New device injected into "
			       "existing raid set without 'delta_disks' or 'rebuild' parameter specified: "
			       "%u of %u have none",
			       fresh, a->p->disks);
	as_in_line(a);
	return check_redundancy(a, err);
}

/*
 * The kernel reshapes an array to more devices without making it larger: it becomes so when it is loaded again.  Of
 * raid10 the kernel has only moved what there was.
 */
static void grow_to_line(struct assembly *a)
{
	struct raid_state *s = a->s;
	uint64_t was = s->array_sectors, will;
	struct raid_geo g;

	if (s->level == 1 || !raid_geo_init(&g, s->level, s->layout, s->disks, s->chunk, s->dev_sectors))
		return;
	will = MIN(a->line_array_sectors, raid_geo_array_sectors(&g));
	if (will <= was)
		return;
	s->save = true;
	s->array_sectors = will;
	if (s->level == 10)
		s->resync_offset = MIN(s->resync_offset, was);
}

static int resize(struct assembly *a, GError **err)
{
	struct raid_state *s = a->s;
	uint64_t was = whole_chunks(s->dev_sectors, s->chunk);
	uint64_t will = whole_chunks(a->line_dev_sectors, s->chunk);

	if (was == will) {
		grow_to_line(a);
		return 0;
	}
	s->save = true;
	s->dev_sectors = a->line_dev_sectors;
	s->array_sectors = a->line_array_sectors;
	if (will > was && !raid_given(a->p, RAID_REBUILD))
		s->resync_offset = MIN(s->resync_offset, was);
	return 0;
}

static bool recovering(const struct raid_state *s)
{
	return s->resync_offset < s->dev_sectors;
}

/* Forwards a device's size includes the space before its data meanwhile. */
static int reshaping_size(struct assembly *a, GError **err)
{
	struct raid_state *s = a->s;
	uint64_t was = a->best->data_offset, will = a->best->new_data_offset,
		 gap = was > will ? was - will : will - was;

	if (a->line_dev_sectors != s->dev_sectors && a->line_dev_sectors + gap != s->dev_sectors)
		return dm_fail(err, EPERM,
			       "raid: Can't resize a reshaping raid set: it has %" PRIu64 " sectors of each device, "
			       "not %" PRIu64,
			       s->dev_sectors, a->line_dev_sectors);
	s->dev_sectors = a->line_dev_sectors;
	return 0;
}

/* data_offset 0 where nothing moves: who gives it has taken away the room that a reshape needed before the data. */
static void drop_offsets(struct assembly *a)
{
	struct raid_state *s = a->s;

	if (!raid_given(a->p, RAID_DATA_OFFSET) || a->p->value[RAID_DATA_OFFSET] ||
	    s->reshape_position != RAID_NONE || s->begin_reshape)
		return;
	for (unsigned i = 0; i < a->p->disks; i++) {
		s->save |= s->m[i].data_offset || s->m[i].new_data_offset;
		s->m[i].data_offset = s->m[i].new_data_offset = 0;
	}
}

static int become(struct assembly *a, GError **err)
{
	const struct raid_params *p = a->p;
	struct raid_state *s = a->s;

	if (raid_given(p, RAID_REBUILD))
		s->save = true;
	if (s->reshape_position != RAID_NONE) {
		unsigned all = s->disks - (unsigned)MIN(s->delta_disks, 0);

		if (raid_given(p, RAID_DELTA_DISKS))
			return dm_fail(err, EINVAL, "raid: Reshape requested but raid set is still reshaping");
		if (all != p->disks)
			return dm_fail(err, EPERM,
				       "raid: Can't resize a reshaping raid set: %u devices given, it has %u", p->disks,
				       all);
		if (p->journal)
			return dm_fail(err, EPERM, "raid: Can't reshape a journaled raid4/5/6 set");
		return reshaping_size(a, err);
	}
	if (recovering(s))
		return resize(a, err);
	if (s->level != p->type->level)
		return raid_takeover(p, a->found, s, err);
	if (s->level == 10 && p->delta_disks && raid10_format_of(p->layout) == RAID_FAR)
		return dm_fail(err, EINVAL, "raid: Reshape check failed: raid10_far cannot be reshaped");
	if (raid_wants_reshape(p, s))
		return raid_prepare_reshape(p, a->found, s, err);
	return resize(a, err);
}

static int existing(struct assembly *a, GError **err)
{
	int error = become(a, err);

	if (!error)
		drop_offsets(a);
	return error;
}

static int judge_all(struct assembly *a, GError **err)
{
	int error = check_best(a, err);

	if (!error)
		error = check_new_devices(a, err);
	for (unsigned i = 0; i < a->p->disks && !error; i++)
		if (a->found[i].has_meta && a->found[i].readable && !is_new(a, i))
			error = check_one(a, i, err);
	if (error)
		return error;
	take_super(a);
	for (unsigned i = 0; i < a->p->disks; i++)
		judge(a, i);
	return check_redundancy(a, err);
}

/* --- the end of it ---------------------------------------------------------------------------------- */

/* Whether a device of the array has no data: what is to be made anew of it needs all others, in sync or not. */
static bool only_parity(const struct raid_geo *g, unsigned disk)
{
	if (g->layout == RAID5_FIRST)
		return disk < g->parity;
	if (g->layout == RAID5_N)
		return disk >= g->disks - g->parity;
	return g->level == 6 && g->layout >= RAID6_LA_6 && g->layout <= RAID6_RS_6 && disk == g->disks - 1;
}

static int check_result(struct assembly *a, GError **err)
{
	struct raid_state *s = a->s;
	struct raid_geo g;
	unsigned lost = 0;

	if (s->reshape_position == RAID_NONE && !s->begin_reshape) {
		s->new_level = s->level;
		s->new_layout = s->layout;
		s->new_chunk = s->chunk;
		s->delta_disks = 0;
	}
	if (s->level == 6 && a->p->disks < 4)
		return dm_fail(err, EINVAL, "raid: not enough configured devices (%u, minimum 4)", a->p->disks);
	if (s->level == 5 && a->p->disks < 2)
		return dm_fail(err, EINVAL, "raid: Insufficient number of devices: %u, 2 are the least", a->p->disks);
	if (s->disks > a->p->disks)
		return dm_fail(err, EINVAL,
			       "raid: Unable to assemble array: Invalid superblocks: the array has %u devices, "
			       "%u are given",
			       s->disks, a->p->disks);
	if (!raid_geo_init(&g, s->level, s->layout, s->disks, s->chunk, s->dev_sectors) || !g.dev_sectors)
		return dm_fail(err, EINVAL, "raid: Invalid rdev size: %" PRIu64 " sectors a device in chunks of %u",
			       s->dev_sectors, s->chunk);
	s->dev_sectors = whole_chunks(s->dev_sectors, s->chunk);
	if (s->reshape_position == RAID_NONE && !s->begin_reshape && s->disks != a->p->disks)
		return dm_fail(err, EINVAL, "raid: Unable to assemble array: the array has %u devices, %u are given",
			       s->disks, a->p->disks);
	for (unsigned i = 0; i < a->p->disks; i++) {
		uint64_t offset = MAX(s->m[i].data_offset, s->m[i].new_data_offset), room = a->found[i].data_sectors;

		if (a->found[i].has_data && (offset > room || s->dev_sectors > room - offset))
			return dm_fail(err, EINVAL,
				       "raid: Component device(s) too small: device %u has %" PRIu64
				       " sectors, %" PRIu64 " from %" PRIu64 " on are needed",
				       i, room, s->dev_sectors, offset);
	}
	for (unsigned i = 0; i < a->p->disks; i++)
		lost += state_lost(a, i) && !(a->found[i].has_data && s->reshape_position == RAID_NONE &&
					      only_parity(&g, i));
	if (s->level >= 5 && s->level <= 6 && lost && s->resync_offset != RAID_NONE)
		return dm_fail(err, EIO,
			       "raid: cannot start dirty degraded array: it was not in sync and %u devices are "
			       "missing, failed or to be rebuilt",
			       lost);
	return 0;
}

/* The newest of the superblocks that are not to be made anew, or NULL. */
static const struct raid_super *newest(const struct raid_params *p, const struct raid_found *found)
{
	const struct raid_super *best = NULL;

	for (unsigned i = 0; i < p->disks; i++)
		if (found[i].has_super && found[i].sb.index != RAID_SPARE && !raid_set_has(&p->rebuild, i) &&
		    (!best || found[i].sb.events > best->events))
			best = &found[i].sb;
	return best;
}

unsigned raid_spares(const struct raid_params *p, const struct raid_found *found)
{
	const struct raid_super *sb = newest(p, found);

	if (!sb || sb->disks >= p->disks || sb->disks <= p->type->parity || sb->level != p->type->level)
		return 0;
	if (p->delta_disks || reshaping(sb) || raid_given(p, RAID_SYNC))
		return 0;
	if (sb->level != 5 && sb->level != 6 && !(sb->level == 10 && p->copies == (sb->layout & 0xff)))
		return 0;
	for (unsigned i = 0; i < p->disks; i++)
		if (raid_set_has(&p->rebuild, i) != (i >= sb->disks) || (i >= sb->disks && !found[i].has_data))
			return 0;
	return p->disks - sb->disks;
}

int raid_without_spares(struct raid_params *p, unsigned spares, uint64_t *len, GError **err)
{
	unsigned n = p->disks - p->type->parity;

	if (!spares)
		return 0;
	if (*len % n)
		return dm_fail(err, EINVAL,
			       "raid: Target length not divisible by number of data devices: %" PRIu64
			       " sectors by %u",
			       *len, n);
	*len = *len / n * (n - spares);
	p->disks -= spares;
	p->rebuild = (struct raid_set){0};
	p->given &= ~(1u << RAID_REBUILD);
	return 0;
}

int raid_assemble(const struct raid_params *p, uint64_t len, const struct raid_found *found, struct raid_state *s,
		  GError **err)
{
	struct assembly a = {.p = p, .found = found, .s = s, .len = len};
	int error;

	*s = (struct raid_state){.reshape_position = RAID_NONE, .m = g_new0(struct raid_member_state, p->disks)};
	for (unsigned i = 0; i < p->disks; i++)
		s->persistent |= found[i].has_meta && found[i].has_data;
	error = line_sizes(&a, err);
	if (!error)
		error = check_device_sizes(&a, a.line_dev_sectors, err);
	if (error)
		return error;
	if (raid_given(p, RAID_SYNC) || p->type->level == 0) {
		as_in_line(&a);
		error = check_redundancy(&a, err);
	} else {
		choose_best(&a);
		error = a.best ? judge_all(&a, err) : new_array(&a, err);
		if (!error && a.best)
			error = existing(&a, err);
		else if (!error && s->level == 6 && raid_given(p, RAID_NOSYNC) && !raid_given(p, RAID_FAIL_STOP))
			error = dm_fail(err, EINVAL, "raid: 'nosync' not allowed for new raid6 set");
	}
	if (!error)
		error = check_result(&a, err);
	return error;
}

void raid_state_clear(struct raid_state *s)
{
	g_clear_pointer(&s->m, g_free);
}
