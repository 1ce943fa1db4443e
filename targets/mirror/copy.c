/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Copying regions that are out of sync, by kcopyd, from a leg that has the data to all others. */
#include "mirror.h"

struct copy {
	struct mirror *ms;
	struct dm_region_run *run;
	unsigned source;
	unsigned next_leg; /* the next that is not copied to yet */
	unsigned group[DM_KCOPYD_MAX_REGIONS]; /* the legs being copied to */
	unsigned group_size;
};

static void copy_group(struct copy *c);

static void copied(struct copy *c, bool ok)
{
	dm_regions_copied(c->ms->regions, c->run, ok);
	g_free(c);
}

static void group_copied(int read_error, unsigned long write_errors, void *context)
{
	struct copy *c = context;
	struct mirror *ms = c->ms;

	if (read_error) {
		dm_log_err_limit("mirror: unable to read leg %u during recovery: %s", c->source,
				 g_strerror(-read_error));
		mirror_fail_leg(ms, c->source, LEG_SYNC_ERROR);
	}
	for (unsigned i = 0; i < c->group_size; i++) {
		if (!(write_errors >> i & 1))
			continue;
		dm_log_err_limit("mirror: write error on leg %u during recovery", c->group[i]);
		mirror_fail_leg(ms, c->group[i], LEG_SYNC_ERROR);
	}
	if (read_error || write_errors)
		copied(c, false);
	else
		copy_group(c);
}

static void copy_group(struct copy *c)
{
	struct mirror *ms = c->ms;
	const struct dm_region_run *run = c->run;
	struct leg *source = &ms->legs[c->source];
	struct dm_region from = {source->dev, source->offset + run->sector, run->sectors};
	struct dm_region dests[DM_KCOPYD_MAX_REGIONS];

	c->group_size = 0;
	for (; c->next_leg < ms->nr_legs && c->group_size < DM_KCOPYD_MAX_REGIONS; c->next_leg++) {
		struct leg *leg = &ms->legs[c->next_leg];

		if (leg == source)
			continue;
		dests[c->group_size] = (struct dm_region){leg->dev, leg->offset + run->sector, run->sectors};
		c->group[c->group_size++] = c->next_leg;
	}
	if (!c->group_size)
		copied(c, true);
	else
		dm_kcopyd_copy(ms->kcopyd, &from, c->group_size, dests, DM_KCOPYD_IGNORE_ERROR, group_copied, c);
}

void mirror_copy(void *context, struct dm_region_run *run)
{
	struct mirror *ms = context;
	int source = (int)atomic_load(&ms->primary);
	struct copy *c;

	if (leg_is_stale(&ms->legs[source]) && dm_regions_where(ms->regions, run->sector) == DM_REGION_SOUND)
		source = mirror_sound_leg(ms);
	if (source < 0) {
		dm_regions_copied(ms->regions, run, false);
		return;
	}
	c = g_new0(struct copy, 1);
	c->ms = ms;
	c->run = run;
	c->source = (unsigned)source;
	copy_group(c);
}
