/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Target messages (message.h). */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "message.h"
#include "stats.h"

static int send(struct dm_table *t, uint64_t sector, int argc, char **argv, GString *reply, GError **err)
{
	struct dm_target *ti;

	if (sector >= t->sectors)
		return dm_fail(err, EINVAL, "sector %" PRIu64 " is beyond the device's %" PRIu64, sector, t->sectors);
	ti = dm_table_find(t, sector);
	if (!ti->type->message)
		return dm_fail(err, EINVAL, "%s: the target takes no messages", ti->type->name);
	return ti->type->message(ti, argc, argv, reply, err);
}

int dm_mapped_message(struct dm_mapped *md, char *text, const struct dm_opener *who, GString *reply, GError **err)
{
	g_autoptr(GPtrArray) words = dm_split_words(text);
	char **w = (char **)words->pdata;
	int n = (int)words->len - 1, error;
	uint64_t sector = 0;
	struct dm_table *t;

	if (n > 1 && dm_parse_u64(w[0], &sector)) {
		w++;
		n--;
	}
	if (!n)
		return dm_fail(err, EINVAL, "the message is empty");
	if (w[0][0] == '@')
		return dm_stats_message(md, n, w, reply, err);
	t = dm_mapped_live(md);
	if (!t)
		return dm_fail(err, ENXIO, "there is no table to send a message to");
	error = send(t, sector, n, w, reply, err);
	if (error && err && !*err)
		dm_fail(err, -error, "message '%.64s': %s", w[0], g_strerror(-error));
	dm_table_unref(t);
	return error;
}
