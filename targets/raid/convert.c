/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Takeover and the beginning of a reshape: an array becomes what its new line says it is (assemble.h).
 *
 * A takeover leaves every block of data where it is and takes effect at once; devices that are new in it are named with
 * `rebuild`.  What 6.1 allows:
 *
 *   from               to
 *   raid0, 1 device    raid1, raid5
 *   raid0              raid10; raid5_n, raid6_n_6
 *   raid1, 2 devices   raid4/5
 *   raid1              raid10
 *   raid10, 2 devices  raid4/5
 *   raid10, a copy on  raid1
 *     every device
 *   raid4/5, 2 devices raid1, raid10
 *   raid5_X            raid6_X_6, and back; n with n
 *
 * A line of raid0 is never compared with superblocks: what is given is what is striped.
 */
#include <inttypes.h>

#include "assemble.h"

/* --- takeover -------------------------------------------------------------------------------------- */

static bool same_but_q(unsigned five, unsigned six)
{
	return (five == RAID5_N && six == RAID5_N) || (five <= RAID5_RS && six == five + RAID6_LA_6);
}

static bool may_take_over(const struct raid_params *p, const struct raid_state *s)
{
	unsigned to = p->type->level;

	switch (s->level) {
	case 0:
		if (to == 10)
			return p->disks % s->disks == 0;
		if (s->disks == 1 && (to == 1 || to == 5))
			return true;
		return (to == 5 || to == 6) && p->layout == RAID5_N && s->disks > 1;
	case 1:
		return to == 10 || (to == 5 && s->disks == 2);
	case 10:
		if (raid10_format_of(s->layout) == RAID_OFFSET)
			return false;
		return (to == 1 && raid10_copies_of(s->layout) == s->disks) || (to == 5 && s->disks == 2);
	case 5:
		if (to == 6)
			return same_but_q(s->layout, p->layout);
		return (to == 1 || to == 10) && s->disks == 2;
	case 6:
		return to == 5 && same_but_q(p->layout, s->layout);
	default:
		return false;
	}
}

int raid_check_takeover(const struct raid_params *p, const struct raid_state *s, GError **err)
{
	const struct raid_type *from = raid_type_of(s->level, s->layout);

	for (unsigned i = 0; i < MIN(p->disks, s->disks); i++)
		if (!raid_set_has(&p->rebuild, i) && (s->m[i].faulty || !s->m[i].in_sync))
			return dm_fail(err, EPERM, "raid: Can't takeover degraded raid set: device %u", i);
	if (p->journal)
		return dm_fail(err, EPERM, "raid: Can't takeover a journaled raid4/5/6 set");
	if (!may_take_over(p, s))
		return dm_fail(err, EINVAL, "raid: takeover not possible: %s on %u devices cannot become %s on %u",
			       from ? from->name : "?", s->disks, p->type->name, p->disks);
	return 0;
}

/* How many devices the new level's share of redundancy adds. */
static int check_count(const struct raid_params *p, const struct raid_state *s, GError **err)
{
	unsigned rebuilds = raid_set_count(&p->rebuild), want = s->disks;

	if ((s->level == 0 && p->type->level != 10) || (s->level == 5 && p->type->level == 6))
		want += p->type->level == 6 && s->level == 0 ? 2 : 1;
	if (s->level == 6 && p->type->level == 5)
		want--;
	if (p->type->level == 10 || p->type->level == 1)
		want = s->disks + rebuilds;
	if (p->disks != want)
		return dm_fail(err, EINVAL, "raid: takeover not possible: %s would have %u devices, not %u",
			       p->type->name, want, p->disks);
	if (p->disks > s->disks && rebuilds < p->disks - s->disks)
		return dm_fail(err, EINVAL,
			       "raid: takeover not possible: the devices that are new are to be named with "
			       "'rebuild'");
	return 0;
}

/* Where a copy of the first chunk lies in the new layout there must be a device that has it. */
static int check_positions(const struct raid_params *p, const struct raid_found *found, const struct raid_state *s,
			   GError **err)
{
	if (s->level != 0 || p->type->level != 10)
		return 0;
	for (unsigned i = 0; i < p->disks; i++) {
		unsigned role = p->format == RAID_NEAR ? i / p->copies : i;

		if (!raid_set_has(&p->rebuild, i) && found[i].sb.index != role)
			return dm_fail(err, EINVAL,
				       "raid: takeover not possible: device %u was number %u of the raid0, "
				       "number %u belongs there",
				       i, found[i].sb.index, role);
	}
	return 0;
}

int raid_takeover(const struct raid_params *p, const struct raid_found *found, struct raid_state *s, GError **err)
{
	int error = raid_check_takeover(p, s, err);
	bool rebuild = raid_given(p, RAID_REBUILD);

	if (!error)
		error = check_count(p, s, err);
	if (!error)
		error = check_positions(p, found, s, err);
	if (error)
		return error;
	s->array_sectors = p->type->level == 1 ? s->dev_sectors : s->array_sectors;
	s->level = p->type->level;
	s->layout = p->layout;
	s->chunk = p->chunk;
	s->disks = p->disks;
	s->resync_offset = RAID_NONE;
	s->save = true;
	s->new_bitmap = true;
	for (unsigned i = 0; i < p->disks; i++) {
		s->m[i].partial = false;
		if (rebuild && raid_set_has(&p->rebuild, i)) {
			s->m[i].in_sync = false;
			s->m[i].recovered = 0;
		}
	}
	return 0;
}

/* --- reshape ----------------------------------------------------------------------------------------- */

bool raid_wants_reshape(const struct raid_params *p, const struct raid_state *s)
{
	bool change = p->delta_disks || p->layout != s->layout || p->chunk != s->chunk;

	if (s->level == 0)
		return false;
	if (s->level == 1)
		return p->delta_disks || p->disks != s->disks;
	if (s->level == 10)
		return change && raid10_format_of(p->layout) != RAID_FAR && p->delta_disks >= 0;
	return change;
}

/* raid1 and raid10 near: more or fewer copies is a matter of rebuilding. */
static int change_copies(const struct raid_params *p, struct raid_state *s, GError **err)
{
	if (s->level == 1 && p->delta_disks)
		return dm_fail(err, EPERM,
			       "raid: Can't reshape degraded raid set: a leg is added with 'rebuild' alone");
	if (s->level == 10) {
		if (p->disks % p->copies)
			return dm_fail(err, EINVAL,
				       "raid: Can't reshape raid10 mirror groups: %u devices in groups of %u", p->disks,
				       p->copies);
		s->layout = p->layout;
	}
	s->disks = p->disks;
	s->save = true;
	return 0;
}

static uint64_t free_sectors(const struct raid_params *p, const struct raid_found *found, uint64_t dev_sectors)
{
	uint64_t least = UINT64_MAX;

	for (unsigned i = 0; i < p->disks; i++)
		if (found[i].has_data)
			least = MIN(least, found[i].data_sectors - MIN(found[i].data_sectors, dev_sectors));
	return least;
}

static int set_offsets(const struct raid_params *p, const struct raid_found *found, struct raid_state *s, GError **err)
{
	uint64_t room = p->value[RAID_DATA_OFFSET], was = s->m[0].data_offset, from, to;

	if (s->delta_disks < 0) {
		from = 0;
		to = room;
	} else if (s->delta_disks > 0) {
		from = room;
		to = 0;
	} else {
		from = was;
		to = was ? 0 : room;
		room = MAX(from, to);
	}
	if (free_sectors(p, found, s->dev_sectors) < room)
		return dm_fail(err, ENOSPC,
			       "raid: No space for %s reshape: %" PRIu64 " sectors are wanted beside the %" PRIu64
			       " of data on each device",
			       from ? "forward" : "backward", room, s->dev_sectors);
	for (unsigned i = 0; i < p->disks; i++) {
		s->m[i].data_offset = from;
		s->m[i].new_data_offset = to;
	}
	s->backwards = s->delta_disks < 0 || (!s->delta_disks && !from);
	return 0;
}

/* Near and offset change into each other, with as many copies, and there is room for all that is there. */
static int check_raid10(const struct raid_params *p, const struct raid_state *s, GError **err)
{
	unsigned far = s->layout >> 8 & 0xff, copies = (s->layout & 0xff) * far;
	unsigned disks = s->disks + (unsigned)p->delta_disks, layout = p->delta_disks ? s->layout : p->layout;
	struct raid_geo g;

	if (far > 1 && !(s->layout & RAID10_OFFSET))
		return dm_fail(err, EINVAL, "raid: Reshape check failed: raid10_far cannot be reshaped");
	if (p->copies != copies)
		return dm_fail(err, EINVAL, "raid: Reshape check failed: it has %u copies, not %u", copies, p->copies);
	if (s->resync_offset != RAID_NONE)
		return dm_fail(err, EPERM,
			       "raid: Convert request on recovering raid set prohibited: it is in sync up to sector "
			       "%" PRIu64,
			       s->resync_offset);
	if (!raid_geo_init(&g, 10, layout, disks, p->chunk, s->dev_sectors) || s->array_sectors % p->chunk ||
	    raid_geo_array_sectors(&g) < s->array_sectors)
		return dm_fail(err, EINVAL,
			       "raid: Reshape check failed: %u devices of %" PRIu64 " sectors with layout 0x%x in "
			       "chunks of %u do not hold the %" PRIu64 " sectors of the array",
			       disks, s->dev_sectors, layout, p->chunk, s->array_sectors);
	return 0;
}

static int check_reshape(const struct raid_params *p, const struct raid_state *s, GError **err)
{
	unsigned least = s->level == 6 ? 4 : 2;
	int error = s->level == 10 ? check_raid10(p, s, err) : 0;

	if (error)
		return error;

	if (p->journal)
		return dm_fail(err, EPERM, "raid: Can't reshape a journaled raid4/5/6 set");
	for (unsigned i = 0; i < MIN(p->disks, s->disks); i++)
		if (s->m[i].faulty || !s->m[i].in_sync || raid_set_has(&p->rebuild, i))
			return dm_fail(err, EPERM, "raid: Can't reshape degraded raid set: device %u", i);
	if (p->delta_disks < 0 ? p->disks != s->disks : (int)p->disks - (int)s->disks != p->delta_disks)
		return dm_fail(err, EINVAL,
			       "raid: Reshape check failed: %u devices are given; the array has %u and "
			       "delta_disks is %d",
			       p->disks, s->disks, p->delta_disks);
	if ((int)s->disks + p->delta_disks < (int)least)
		return dm_fail(err, EINVAL, "raid: Reshape check failed: %u devices are the least", least);
	if (p->delta_disks && (p->layout != s->layout))
		dm_log_info("raid: Ignoring invalid layout change with delta_disks=%d", p->delta_disks);
	return 0;
}

int raid_prepare_reshape(const struct raid_params *p, const struct raid_found *found, struct raid_state *s,
			 GError **err)
{
	bool copies = s->level == 1 || (s->level == 10 && p->disks != s->disks && (s->layout & 0xff) > 1 &&
					p->copies != (s->layout & 0xff));
	int error;

	if (copies)
		return change_copies(p, s, err);
	if (!p->value[RAID_DATA_OFFSET] && !s->m[0].data_offset) {
		/* without room there is no reshape: it stays what it is */
		if (p->disks != s->disks)
			return dm_fail(err, EINVAL,
				       "raid: Reshape check failed: devices are added with data_offset alone");
		return 0;
	}
	error = check_reshape(p, s, err);
	if (error)
		return error;
	s->delta_disks = p->delta_disks;
	s->new_level = s->level;
	s->new_layout = p->delta_disks ? s->layout : p->layout;
	s->new_chunk = p->chunk;
	error = set_offsets(p, found, s, err);
	if (error)
		return error;
	s->begin_reshape = true;
	s->save = true;
	return 0;
}
