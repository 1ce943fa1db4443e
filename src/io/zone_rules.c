/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a zoned disk lets happen to its zones (zoned.h), by ZBC as Linux understands it: conditions, write pointers, and
 * bounds of how many zones are open, or active (open or closed).  A zone that is to be opened while as many are open as
 * may be has one closed that was opened by a write alone.
 */
#include <errno.h>

#include "zoned.h"

void zone_rules_init(struct zone_rules *r)
{
	r->implicit = r->explicit_ = r->closed = 0;
	r->implicits = g_array_new(FALSE, FALSE, sizeof(unsigned));
	for (unsigned i = 0; i < r->z.n; i++)
		r->closed += r->z.zone[i].condition == DM_ZONE_CLOSED;
}

void zone_rules_clear(struct zone_rules *r)
{
	g_array_free(r->implicits, TRUE);
	zones_clear(&r->z);
}

static unsigned *counter(struct zone_rules *r, unsigned condition)
{
	return condition == DM_ZONE_IMPLICITLY_OPEN   ? &r->implicit
	       : condition == DM_ZONE_EXPLICITLY_OPEN ? &r->explicit_
	       : condition == DM_ZONE_CLOSED	      ? &r->closed
						      : NULL;
}

static void forget_implicit(struct zone_rules *r, unsigned i)
{
	for (guint k = 0; k < r->implicits->len; k++)
		if (g_array_index(r->implicits, unsigned, k) == i) {
			g_array_remove_index(r->implicits, k);
			return;
		}
}

static void set_condition(struct zone_rules *r, unsigned i, enum dm_zone_condition condition)
{
	struct zones_zone *zone = &r->z.zone[i];
	unsigned *before = counter(r, zone->condition), *after = counter(r, condition);

	if (zone->condition == condition)
		return;
	if (zone->condition == DM_ZONE_IMPLICITLY_OPEN && r->z.max_open)
		forget_implicit(r, i);
	if (condition == DM_ZONE_IMPLICITLY_OPEN && r->z.max_open)
		g_array_append_val(r->implicits, i);
	if (before)
		--*before;
	if (after)
		++*after;
	zone->condition = (uint8_t)condition;
}

static void set_wp(struct zones_zone *zone, uint32_t wp)
{
	__atomic_store_n(&zone->wp, wp, __ATOMIC_RELEASE);
}

static void fill_up(struct zone_rules *r, unsigned i)
{
	set_condition(r, i, DM_ZONE_FULL);
	set_wp(&r->z.zone[i], zones_length(&r->z, i));
}

/* Whether a zone that is not open may be. */
static int make_room(struct zone_rules *r, unsigned i)
{
	const struct zones *z = &r->z;

	if (z->zone[i].condition == DM_ZONE_EMPTY && z->max_active &&
	    r->implicit + r->explicit_ + r->closed >= z->max_active)
		return -EOVERFLOW;
	if (!z->max_open || r->implicit + r->explicit_ < z->max_open)
		return 0;
	if (!r->implicit)
		return -ETOOMANYREFS;
	set_condition(r, g_array_index(r->implicits, unsigned, 0), DM_ZONE_CLOSED);
	return 0;
}

static int be_open(struct zone_rules *r, unsigned i, enum dm_zone_condition how)
{
	struct zones_zone *zone = &r->z.zone[i];
	int error = 0;

	switch (zone->condition) {
	case DM_ZONE_EXPLICITLY_OPEN:
		return 0;
	case DM_ZONE_IMPLICITLY_OPEN:
		break;
	case DM_ZONE_EMPTY:
	case DM_ZONE_CLOSED:
		error = make_room(r, i);
		break;
	default: /* there is nothing to be opened in it */
		error = -EIO;
	}
	if (!error)
		set_condition(r, i, how);
	return error;
}

int zone_rules_write(struct zone_rules *r, unsigned i, uint32_t offset, uint32_t sectors)
{
	struct zones_zone *zone = &r->z.zone[i];
	bool aware = zone->type == DM_ZONE_SEQUENTIAL_PREFERRED;
	uint32_t end;
	int error;

	if (zone->condition == DM_ZONE_READONLY || zone->condition == DM_ZONE_OFFLINE ||
	    __builtin_add_overflow(offset, sectors, &end) || end > zone->capacity)
		return -EIO;
	if (aware && zone->condition == DM_ZONE_FULL)
		return 0;
	if (!aware && (zone->condition == DM_ZONE_FULL || offset != zone->wp))
		return -EIO;
	error = be_open(r, i, DM_ZONE_IMPLICITLY_OPEN);
	if (error)
		return error;
	set_wp(zone, MAX(zone->wp, end));
	if (zone->wp == zone->capacity)
		fill_up(r, i);
	return 0;
}

void zone_rules_take_back(struct zone_rules *r, unsigned i, uint32_t offset)
{
	struct zones_zone *zone = &r->z.zone[i];

	set_wp(zone, offset);
	if (!offset)
		set_condition(r, i, DM_ZONE_EMPTY);
	else if (zone->condition == DM_ZONE_FULL)
		set_condition(r, i, DM_ZONE_CLOSED);
}

int zone_rules_open(struct zone_rules *r, unsigned i)
{
	return r->z.zone[i].type == DM_ZONE_CONVENTIONAL ? -EIO : be_open(r, i, DM_ZONE_EXPLICITLY_OPEN);
}

int zone_rules_close(struct zone_rules *r, unsigned i)
{
	struct zones_zone *zone = &r->z.zone[i];

	if (zone->type == DM_ZONE_CONVENTIONAL)
		return -EIO;
	switch (zone->condition) {
	case DM_ZONE_EMPTY:
	case DM_ZONE_CLOSED:
		return 0;
	case DM_ZONE_IMPLICITLY_OPEN:
	case DM_ZONE_EXPLICITLY_OPEN:
		set_condition(r, i, zone->wp ? DM_ZONE_CLOSED : DM_ZONE_EMPTY);
		return 0;
	default:
		return -EIO;
	}
}

int zone_rules_finish(struct zone_rules *r, unsigned i)
{
	struct zones_zone *zone = &r->z.zone[i];
	int error = 0;

	if (zone->type == DM_ZONE_CONVENTIONAL || zone->condition == DM_ZONE_READONLY ||
	    zone->condition == DM_ZONE_OFFLINE)
		return -EIO;
	if (zone->condition == DM_ZONE_EMPTY || zone->condition == DM_ZONE_CLOSED)
		error = make_room(r, i);
	if (!error)
		fill_up(r, i);
	return error;
}

int zone_rules_may_reset(const struct zone_rules *r, unsigned i)
{
	const struct zones_zone *zone = &r->z.zone[i];

	return zone->type == DM_ZONE_CONVENTIONAL || zone->condition == DM_ZONE_READONLY ||
		       zone->condition == DM_ZONE_OFFLINE
		   ? -EIO
		   : 0;
}

void zone_rules_reset(struct zone_rules *r, unsigned i)
{
	set_condition(r, i, DM_ZONE_EMPTY);
	set_wp(&r->z.zone[i], 0);
}
