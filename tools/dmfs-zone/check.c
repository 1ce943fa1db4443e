/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dmfs-zone dm-check, dm-repair: whether the metadata of the target zoned say what can be (targets/zoned/check.c). */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

#include "../common/fail.h"
#include "dm.h"

static void print_error(const char *text, void *repair)
{
	printf("%s%s\n", text, *(bool *)repair ? ": repaired" : "");
}

int dm_check(char **names, unsigned n, bool repair, GError **err)
{
	struct zoned_super sb;
	struct zoned_geometry g;
	struct zoned_meta *meta;
	unsigned found = 0;
	int r = devices_open(names, n, repair, &g, err);

	if (!r)
		r = zoned_meta_open(&g, repair, &meta, err);
	if (!r) {
		zoned_meta_super(meta, &sb);
		printf("%" PRIu32 " zones of %u sectors, %" PRIu32 " chunks, metadata version %" PRIu32
		       ", generation %" PRIu64 "\n",
		       g.zones, g.zone_sectors, sb.chunks, sb.version, sb.generation);
		r = zoned_meta_check(meta, repair, print_error, &repair, &found, err);
		zoned_meta_close(meta);
	}
	devices_close(&g);
	if (!r && found && !repair)
		r = fail(err, EUCLEAN, "%u errors; dm-repair mends them", found);
	return r;
}
