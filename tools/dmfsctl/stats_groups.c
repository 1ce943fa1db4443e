/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Groups of statistics regions, kept as dmstats keeps them: in the aux text of the group's first region, whose
 * number is the group's (regions.h).
 */
#include <inttypes.h>
#include <string.h>

#include "dmfsctl.h"
#include "stats.h"

static bool set_aux(const char *device, const struct region *r, const char *members, const char *alias)
{
	g_autofree char *aux = aux_print(members, alias, r->aux), *quoted = tree_quote(aux), *reply = NULL;
	int error = stats_message(device, &reply, "@stats_set_aux %u %s", r->id, quoted);

	return !error || stats_message_failed(device, error);
}

/* It is a part of a word of @stats_list, which ends at a '#'. */
bool stats_alias_good(const char *alias)
{
	return !alias || !strpbrk(alias, " \t\n#") || say("Invalid alias '%s': it has a blank or a '#' in it.", alias);
}

/* --- group -------------------------------------------------------------------------------- */

static bool same_bounds(const GArray *a, const GArray *b, bool precise_a, bool precise_b)
{
	return a->len == b->len && precise_a == precise_b && !memcmp(a->data, b->data, a->len * sizeof(guint64));
}

/* Regions with a histogram must all have the same one. */
static bool check_bounds(GPtrArray *members)
{
	const struct region *with = NULL;

	for (unsigned i = 0; i < members->len; i++) {
		const struct region *r = members->pdata[i];

		if (with && r->bounds->len && !same_bounds(with->bounds, r->bounds, with->precise, r->precise))
			return say("All region histogram bounds must match exactly");
		if (r->bounds->len)
			with = r;
	}
	return true;
}

static void warn_of_overlaps(GPtrArray *members)
{
	for (unsigned i = 0; i < members->len; i++)
		for (unsigned j = i + 1; j < members->len; j++) {
			const struct region *a = members->pdata[i], *b = members->pdata[j];

			if (a->start < b->start + b->length && b->start < a->start + a->length)
				say("WARNING: region IDs %u and %u overlap. Some events will be counted twice.", a->id,
				    b->id);
		}
}

static gint64 group_members(const char *device, GPtrArray *members, const GArray *ids, const char *alias)
{
	g_autofree char *text = id_list_print(ids);
	const struct region *first = members->pdata[0];

	for (unsigned i = 0; i < members->len; i++) {
		const struct region *r = members->pdata[i];

		if (r->group >= 0) {
			say("Region ID %u already a member of group ID %" PRId64, r->id, r->group);
			return -1;
		}
	}
	if (!check_bounds(members) || !set_aux(device, first, text, alias))
		return -1;
	warn_of_overlaps(members);
	return first->id;
}

gint64 stats_group_regions(const char *device, const char *list, const char *alias, const char *program)
{
	int error;
	g_autoptr(GPtrArray) regions = stats_regions(device, program, &error), members = NULL;
	g_autoptr(GArray) ids = NULL;

	if (!regions)
		return stats_message_failed(device, error), -1;
	if (!regions->len)
		return say("Could not create group: no regions found."), -1;
	ids = id_list_parse(list, regions_most(regions));
	if (!ids)
		return say("Could not parse list: '%s'", list), -1;
	members = g_ptr_array_new();
	for (guint i = 0; i < ids->len; i++) {
		struct region *r = regions_find(regions, g_array_index(ids, guint64, i));

		if (!r)
			return say("Invalid region ID: %" PRIu64, g_array_index(ids, guint64, i)), -1;
		g_ptr_array_add(members, r);
	}
	return group_members(device, members, ids, alias);
}

static bool group_device(const char *device)
{
	gint64 id = stats_group_regions(device, opt.regions, opt.alias, stats_program());

	if (id < 0)
		return say("Could not create group on %s: %s", device, opt.regions);
	printf("Grouped regions %s as group ID %" PRId64 " on %s\n", opt.regions, id, device);
	return true;
}

bool stats_group(int argc, char **argv)
{
	(void)argc;
	if (!opt.regions)
		return say("Group requires --regions.");
	return stats_alias_good(opt.alias) && stats_each_device(argv, false, "message", group_device);
}

/* --- ungroup ---------------------------------------------------------------------------------- */

/* The first region of --groupid, or NULL, having said why. */
static struct region *find_group(GPtrArray *regions)
{
	struct region *first = regions_find(regions, (guint64)opt.groupid);

	if (first && first->members)
		return first;
	say(first ? "Group ID %" PRId64 " does not exist" : "Invalid group ID: %" PRId64, opt.groupid);
	return NULL;
}

static bool ungroup_device(const char *device)
{
	int error;
	g_autoptr(GPtrArray) regions = stats_regions(device, stats_program(), &error);
	struct region *first;

	if (!regions)
		return stats_message_failed(device, error);
	first = find_group(regions);
	if (!first || !set_aux(device, first, NULL, NULL))
		return say("Could not delete group %" PRId64 " on %s.", opt.groupid, device);
	printf("Removed group ID %" PRId64 " on %s\n", opt.groupid, device);
	return true;
}

bool stats_ungroup(int argc, char **argv)
{
	(void)argc;
	if (opt.groupid < 0)
		return say("Please specify group id.");
	return stats_each_device(argv, false, "message", ungroup_device);
}

/* --- delete ------------------------------------------------------------------------------------ */

bool stats_leave_group(const char *device, const struct region *r)
{
	int error;
	g_autoptr(GPtrArray) regions = stats_regions(device, NULL, &error);
	struct region *first = regions ? regions_find(regions, (guint64)r->group) : NULL;
	g_autoptr(GArray) ids = first && first->members ? id_list_parse(first->members, regions_most(regions)) : NULL;
	g_autofree char *members = NULL;

	if (!regions)
		return stats_message_failed(device, error);
	if (!ids) /* the group went meanwhile */
		return true;
	for (guint i = 0; i < ids->len; i++)
		if (g_array_index(ids, guint64, i) == r->id)
			g_array_remove_index(ids, i--);
	members = id_list_print(ids);
	return set_aux(device, first, members, first->alias);
}

static bool delete_region(const char *device, const struct region *r)
{
	g_autofree char *reply = NULL;
	int error = stats_message(device, &reply, "@stats_delete %u", r->id);

	return !error || stats_message_failed(device, error);
}

/* The first one last, as it says what else is to be deleted. */
bool stats_delete_group(const char *device)
{
	int error;
	g_autoptr(GPtrArray) regions = stats_regions(device, stats_program(), &error);
	struct region *first;

	if (!regions)
		return stats_message_failed(device, error);
	first = find_group(regions);
	if (!first)
		return say("Could not delete statistics group.");
	for (guint i = 0; i < regions->len; i++) {
		const struct region *r = regions->pdata[i];

		if (r->group == first->id && r != first && !delete_region(device, r))
			return false;
	}
	if (!delete_region(device, first))
		return false;
	printf("Deleted statistics group %" PRId64 ".\n", opt.groupid);
	return true;
}
