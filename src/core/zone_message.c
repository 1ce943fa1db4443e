/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The device message @zone: what `blkzone` does with a block device, for an image.
 *
 *	@zone report|reset|open|close|finish [<offset> [<length>]]
 *
 * Both in sectors; without them it is all from there on.  A report has a line a zone, as `blkzone report` prints it. To
 * reset all there is leaves conventional zones alone; everything else stops at the first zone that it cannot be done
 * with.
 */
#include <inttypes.h>
#include <string.h>

#include "io/zones_text.h"
#include "zone_message.h"

struct range {
	uint64_t sector, end;
	bool all;
};

static int parse_range(struct dm_mapped *md, const struct dm_limits *limits, int argc, char **argv, struct range *out,
		       GError **err)
{
	uint64_t sectors = dm_dev_sectors(&md->dev), offset = 0, length;
	int error = argc > 0 ? dm_read_u64(argv[0], 0, sectors - 1, "@zone", "offset", &offset, err) : 0;

	length = sectors - offset;
	if (!error && argc > 1)
		error = dm_read_u64(argv[1], 1, sectors - offset, "@zone", "length", &length, err);
	if (error)
		return error;
	*out = (struct range){offset, offset + length, length == sectors};
	return 0;
}

static int print_zone(const struct dm_zone *zone, void *data)
{
	zones_print_line(zone, data);
	return 0;
}

static int report(struct dm_mapped *md, const struct range *r, unsigned zone_sectors, GString *reply)
{
	uint64_t zones = (r->end - 1) / zone_sectors - r->sector / zone_sectors + 1;

	return dm_dev_report_zones(&md->dev, r->sector, zones, print_zone, reply);
}

static int check_aligned(const struct range *r, uint64_t sectors, unsigned zone_sectors, GError **err)
{
	if (r->sector % zone_sectors)
		return dm_fail(err, EINVAL, "@zone: offset %" PRIu64 " is not aligned to zones of %u sectors",
			       r->sector, zone_sectors);
	if (r->end % zone_sectors && r->end != sectors)
		return dm_fail(err, EINVAL, "@zone: length %" PRIu64 " is not aligned to zones of %u sectors",
			       r->end - r->sector, zone_sectors);
	return 0;
}

static int manage(struct dm_mapped *md, enum dm_op op, const struct range *r, unsigned zone_sectors, GError **err)
{
	struct dm_region where = {&md->dev, r->sector, r->end - r->sector};
	int error;

	if (op == DM_ZONE_RESET && r->all)
		return dm_io_sync(DM_ZONE_RESET_ALL, 0, 1, &where, NULL, 0, NULL);
	for (; where.sector < r->end; where.sector += zone_sectors) {
		where.sectors = MIN(zone_sectors, r->end - where.sector);
		error = dm_io_sync(op, 0, 1, &where, NULL, 0, NULL);
		if (error)
			return dm_fail(err, -error, "@zone: the zone at sector %" PRIu64 ": %s", where.sector,
				       g_strerror(-error));
	}
	return 0;
}

int dm_zone_message(struct dm_mapped *md, int argc, char **argv, GString *reply, GError **err)
{
	static const struct {
		const char *name;
		enum dm_op op;
	} commands[] = {{"report", DM_READ},
			{"reset", DM_ZONE_RESET},
			{"open", DM_ZONE_OPEN},
			{"close", DM_ZONE_CLOSE},
			{"finish", DM_ZONE_FINISH}};
	struct dm_limits limits;
	unsigned i = 0;
	struct range r;
	int error;

	while (argc > 1 && i < G_N_ELEMENTS(commands) && strcmp(argv[1], commands[i].name))
		i++;
	if (argc < 2 || argc > 4 || i == G_N_ELEMENTS(commands))
		return dm_fail(err, EINVAL,
			       "@zone takes report, reset, open, close or finish, and offset and length in sectors");
	dm_dev_limits(&md->dev, &limits);
	if (!limits.zone_model)
		return dm_fail(err, EOPNOTSUPP, "@zone: the device has no zones");
	if (atomic_load(&md->suspended))
		return dm_fail(err, EAGAIN, "@zone: the device is suspended");
	error = parse_range(md, &limits, argc - 2, argv + 2, &r, err);
	if (error)
		return error;
	dm_block_begin();
	if (commands[i].op == DM_READ)
		error = report(md, &r, limits.zone_sectors, reply);
	else if (!(error = check_aligned(&r, dm_dev_sectors(&md->dev), limits.zone_sectors, err)))
		error = manage(md, commands[i].op, &r, limits.zone_sectors, err);
	dm_block_end();
	if (error && err && !*err)
		dm_fail(err, -error, "@zone %s: %s", argv[1], g_strerror(-error));
	return error;
}
