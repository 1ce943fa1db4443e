/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dmfs-zone report, capacity, reset, open, close, finish: blkzone's commands, on a file with zones, which nobody else
 * may have in use for writing, or on an image of a mounted dmfs, by the device message @zone.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../common/client.h"
#include "../common/fail.h"
#include "../common/tree.h"
#include "io/zoned.h"
#include "zone.h"

struct range {
	uint64_t offset, length; /* sectors; length 0: to the end */
	uint64_t count;		 /* zones at most; 0: any number */
};

static int parse_range(const struct options *o, struct range *out, GError **err)
{
	int r = 0;

	*out = (struct range){.count = (uint64_t)MAX(o->count, 0)};
	if (o->offset)
		r = parse_size(o->offset, "--offset", &out->offset, err);
	if (!r && o->length)
		r = parse_size(o->length, "--length", &out->length, err);
	if (!r && o->length && !out->length)
		r = fail(err, EINVAL, "--length=%s: more than none", o->length);
	if (!r && o->length && o->count)
		r = fail(err, EINVAL, "--length, --count: one of them");
	return r;
}

static const struct {
	const char *name;
	enum dm_op op;
} operations[] = {
    {"reset", DM_ZONE_RESET}, {"open", DM_ZONE_OPEN}, {"close", DM_ZONE_CLOSE}, {"finish", DM_ZONE_FINISH}};

/* --- a file ------------------------------------------------------------------------------ */

struct report {
	GString *text;
	uint64_t end, capacity;
};

static int print_zone(const struct dm_zone *zone, void *data)
{
	struct report *r = data;

	if (zone->start >= r->end)
		return 0;
	r->capacity += zone->capacity;
	zones_print_line(zone, r->text);
	return 0;
}

static int report_file(struct dm_dev *dev, const char *command, const struct range *range, uint64_t end, GError **err)
{
	g_autoptr(GString) text = g_string_new(NULL);
	struct report report = {.text = text, .end = end};
	uint64_t max = range->count ? range->count : UINT64_MAX;
	int r = dm_dev_report_zones(dev, range->offset, max, print_zone, &report);

	if (r)
		return fail(err, -r, "the zones cannot be told: %s", g_strerror(-r));
	if (!strcmp(command, "capacity"))
		printf("0x%09" PRIx64 "\n", report.capacity);
	else
		fputs(text->str, stdout);
	return 0;
}

static int manage_file(struct dm_dev *dev, enum dm_op op, const struct range *range, uint64_t end, unsigned zone,
		       GError **err)
{
	uint64_t all = dm_dev_sectors(dev);
	struct dm_region where = {dev, range->offset, end - range->offset};
	int r = 0;

	if (range->offset % zone || (end % zone && end != all))
		return fail(err, EINVAL, "sectors %" PRIu64 " to %" PRIu64 " are not whole zones of %u sectors",
			    range->offset, end, zone);
	if (op == DM_ZONE_RESET && where.sectors == all)
		r = dm_io_sync(DM_ZONE_RESET_ALL, 0, 1, &where, NULL, 0, NULL);
	for (; where.sector < end && !r && !(op == DM_ZONE_RESET && range->offset == 0 && end == all);
	     where.sector += zone) {
		where.sectors = MIN(zone, end - where.sector);
		r = dm_io_sync(op, 0, 1, &where, NULL, 0, NULL);
		if (r)
			fail(err, -r, "the zone at sector %" PRIu64 ": %s", where.sector, g_strerror(-r));
	}
	if (!r)
		r = dm_flush_sync(dev);
	return r && err && !*err ? fail(err, -r, "%s", g_strerror(-r)) : r;
}

static int file_command(const char *command, const char *file, const struct range *range, GError **err)
{
	bool reads = !strcmp(command, "report") || !strcmp(command, "capacity");
	struct dm_opener self = dm_opener_self();
	g_autofree char *path = dm_opener_absolute(&self, file, err);
	struct dm_store_path found;
	struct dm_limits limits;
	struct dm_dev *dev;
	uint64_t end;
	int r = path ? dm_store_find(&self, path, &found, err) : -ENOENT;

	if (r)
		return r;
	r = dm_store_open(&self, &found, reads ? DM_MODE_READ : DM_MODE_RW, &dev, err);
	dm_store_path_clear(&found);
	if (r)
		return r;
	dm_dev_limits(dev, &limits);
	end = range->length	       ? range->offset + range->length
	      : range->count && !reads ? range->offset + range->count * limits.zone_sectors
				       : dm_dev_sectors(dev);
	if (!limits.zone_model)
		r = fail(err, EINVAL, "%s has no zones: there is no %s" ZONES_SUFFIX, file, file);
	else if (range->offset >= dm_dev_sectors(dev) || end < range->offset || end > dm_dev_sectors(dev))
		r = fail(err, EINVAL, "%s: the range is not within its %" PRIu64 " sectors", file, dm_dev_sectors(dev));
	else if (reads)
		r = report_file(dev, command, range, end, err);
	else
		for (unsigned i = 0; i < G_N_ELEMENTS(operations); i++)
			if (!strcmp(command, operations[i].name))
				r = manage_file(dev, operations[i].op, range, end, limits.zone_sectors, err);
	dm_dev_put(dev);
	return r;
}

/* --- an image ------------------------------------------------------------------------------ */

static uint64_t line_number(const char *line, const char *key)
{
	const char *p = strstr(line, key);

	return p ? g_ascii_strtoull(p + strlen(key), NULL, 16) : 0;
}

/* What a report of the image says of its first zone, to count zones. */
static int image_message(const char *root, const char *name, const char *text, char **reply, GError **err)
{
	g_autofree char *path = tree_path(root, name, "error"), *why = NULL;
	int r = tree_message(root, name, text, reply);

	if (!r)
		return 0;
	if (!tree_read(path, &why) && *why)
		return fail(err, -r, "%s: %s", name, g_strchomp(why));
	return fail(err, -r, "%s: %s", name, g_strerror(-r));
}

static int image_command(const char *command, const char *root, const char *name, const struct range *range,
			 GError **err)
{
	bool reads = !strcmp(command, "report") || !strcmp(command, "capacity");
	g_autofree char *reply = NULL, *text = NULL;
	uint64_t length = range->length, capacity = 0;
	g_auto(GStrv) lines = NULL;
	int r;

	if (range->count && !reads) {
		r = image_message(root, name, "@zone report 0 1", &reply, err);
		if (r)
			return r;
		length = range->count * line_number(reply, "len 0x");
		g_clear_pointer(&reply, g_free);
	}
	text = length
		   ? g_strdup_printf("@zone %s %" PRIu64 " %" PRIu64, reads ? "report" : command, range->offset, length)
		   : g_strdup_printf("@zone %s %" PRIu64, reads ? "report" : command, range->offset);
	r = image_message(root, name, text, &reply, err);
	if (r || !reads)
		return r;
	lines = g_strsplit(reply, "\n", -1);
	for (unsigned i = 0; lines[i] && *lines[i] && (!range->count || i < range->count); i++) {
		capacity += line_number(lines[i], "cap 0x");
		if (!strcmp(command, "report"))
			puts(lines[i]);
	}
	if (!strcmp(command, "capacity"))
		printf("0x%09" PRIx64 "\n", capacity);
	return 0;
}

/* The directory of a device in a mounted dmfs that a path means, or NULL. */
static char *device_directory(const char *path)
{
	g_autofree char *absolute = g_canonicalize_filename(path, NULL), *base = g_path_get_basename(absolute);
	g_autofree char *dir = !strcmp(base, "image") ? g_path_get_dirname(absolute) : g_strdup(absolute);
	g_autofree char *message = g_build_filename(dir, "message", NULL),
			*table = g_build_filename(dir, "table", NULL);

	return !access(message, F_OK) && !access(table, F_OK) ? g_steal_pointer(&dir) : NULL;
}

int zone_command(const char *command, const char *target, const struct options *o, GError **err)
{
	g_autofree char *dir = device_directory(target), *root = NULL, *name = NULL;
	struct range range;
	int r = parse_range(o, &range, err);

	if (r)
		return r;
	if (dir) {
		root = g_path_get_dirname(dir);
		name = g_path_get_basename(dir);
		return image_command(command, root, name, &range, err);
	}
	if (strchr(target, '/') || !access(target, F_OK))
		return file_command(command, target, &range, err);
	root = client_mount(o->mount, err);
	r = root ? client_check_name(target, err) : -ENODEV;
	return r ? r : image_command(command, root, target, &range, err);
}
