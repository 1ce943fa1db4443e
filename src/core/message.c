/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Target messages (message.h). */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "devices.h"
#include "message.h"
#include "state.h"
#include "stats.h"
#include "zone_message.h"

static int send(struct dm_table *t, uint64_t sector, int argc, char **argv, const struct dm_opener *who, GString *reply,
		GError **err)
{
	struct dm_target *ti;
	int error;

	if (sector >= t->sectors)
		return dm_fail(err, EINVAL, "sector %" PRIu64 " is beyond the device's %" PRIu64, sector, t->sectors);
	ti = dm_table_find(t, sector);
	if (!ti->type->message)
		return dm_fail(err, EINVAL, "%s: the target takes no messages", ti->type->name);
	dm_table_devs_sender(who);
	/* who stores the table meanwhile may see what is printed of the new key, but not yet that it is one */
	if (ti->type->features & DM_TARGET_TAKES_KEYS)
		atomic_store(&t->secret, true);
	error = ti->type->message(ti, argc, argv, reply, err);
	if (ti->type->features & DM_TARGET_TAKES_KEYS)
		dm_table_count_secrets(t);
	dm_table_devs_sender(NULL);
	return error;
}

static void publish_nothing(struct dm_change *c)
{
	(void)c;
}

/* The state must not bring a key back that the device does not have any more, nor take zeroes for one. */
static int store_keys(struct dm_mapped *md, struct dm_table *t, uint64_t sector, GError **err)
{
	struct dm_change c = {.md = md, .what = DM_CHANGE_KEYS, .publish = publish_nothing};

	return dm_table_find(t, sector)->type->features & DM_TARGET_TAKES_KEYS ? dm_state_change(&c, err) : 0;
}

/* "@inactive status|deps": what the files of these names tell of the live table. */
static int tell_inactive(struct dm_mapped *md, int argc, char **argv, GString *reply, GError **err)
{
	bool deps = argc == 2 && !strcmp(argv[1], "deps");
	struct dm_table *t;

	if (!deps && (argc != 2 || strcmp(argv[1], "status")))
		return dm_fail(err, EINVAL, "@inactive takes status or deps");
	t = dm_mapped_inactive(md);
	if (t && deps)
		dm_table_print_deps(t, reply);
	else if (t)
		dm_table_print(t, DM_STATUS_INFO, reply);
	dm_table_unref(t);
	return 0;
}

/*
 * "@flush status": the live table's status after its targets have written their metadata, which `status` never waits
 * for.
 */
static int tell_flushed(struct dm_mapped *md, int argc, char **argv, GString *reply, GError **err)
{
	struct dm_table *t;

	if (argc != 2 || strcmp(argv[1], "status"))
		return dm_fail(err, EINVAL, "@flush takes status");
	dm_block_begin();
	dm_mapped_lock_hooks(md, NULL, NULL);
	t = dm_mapped_live(md);
	for (unsigned i = 0; t && i < t->n && !atomic_load(&md->suspended); i++) {
		struct dm_target *ti = dm_table_target(t, i);

		if (ti->type->commit)
			ti->type->commit(ti);
	}
	dm_mapped_unlock_hooks(md);
	dm_block_end();
	if (t)
		dm_table_print(t, DM_STATUS_INFO, reply);
	dm_table_unref(t);
	return 0;
}

/* All keys of a table; no message changes them meanwhile. */
static void tell_keys(struct dm_mapped *md, struct dm_table *t, GString *reply)
{
	dm_block_begin();
	dm_mapped_lock_hooks(md, NULL, NULL);
	dm_table_print(t, DM_STATUS_TABLE, reply); /* how long it is */
	g_string_set_size(reply, 2 * reply->len + 4096);
	g_string_truncate(reply, 0);
	dm_table_print_keys(t, reply);
	dm_mapped_unlock_hooks(md);
	dm_block_end();
}

static int tell_numbered(struct dm_mapped *md, bool inactive, const char *what, GString *reply, GError **err)
{
	static const char *const all[] = {"table", "keys", "status", "deps", NULL};
	struct dm_table *t;

	if (!what || !g_strv_contains(all, what))
		return dm_fail(err, EINVAL, "@numbers [inactive] takes table, keys, status, 'flush status' or deps");
	t = inactive ? dm_mapped_inactive(md) : dm_mapped_live(md);
	if (t && !strcmp(what, "deps"))
		dm_table_print_deps(t, reply);
	else if (t && !strcmp(what, "keys"))
		tell_keys(md, t, reply);
	else if (t)
		dm_table_print(t, *what == 't' ? DM_STATUS_TABLE : DM_STATUS_INFO, reply);
	dm_table_unref(t);
	return 0;
}

/*
 * "@numbers [inactive] table|keys|status|deps", "@numbers flush status": what other files and messages tell, but
 * devices of this mount are 0:MINOR, so that a word says of itself whether it is one; keys: the table with its keys.
 */
static int tell_numbers(struct dm_mapped *md, int argc, char **argv, GString *reply, GError **err)
{
	bool inactive = argc == 3 && !strcmp(argv[1], "inactive");
	bool flush = argc == 3 && !strcmp(argv[1], "flush");
	int error;

	dm_print_minors = true;
	if (flush)
		error = tell_flushed(md, argc - 1, argv + 1, reply, err);
	else
		error = tell_numbered(md, inactive, argc == 2 ? argv[1] : inactive ? argv[2] : NULL, reply, err);
	dm_print_minors = false;
	return error;
}

/* "@limits": what of its limits a program can ask a block device; bytes, but for what is named sectors. */
static int tell_limits(struct dm_mapped *md, int argc, GString *reply, GError **err)
{
	struct dm_limits l;

	if (argc > 1)
		return dm_fail(err, EINVAL, "@limits takes no arguments");
	dm_dev_limits(&md->dev, &l);
	g_string_append_printf(reply, "logical_block_size %u\nphysical_block_size %u\nio_min %u\nio_opt %u\n",
			       (unsigned)l.logical_block_size, (unsigned)l.physical_block_size, (unsigned)l.io_min,
			       (unsigned)l.io_opt);
	g_string_append_printf(reply, "discard_granularity %u\nmax_discard_sectors %" PRIu64 "\n",
			       (unsigned)l.discard_granularity, (uint64_t)l.max_discard_sectors);
	return 0;
}

/* Messages to the device itself. */
static int device_message(struct dm_mapped *md, int argc, char **argv, GString *reply, GError **err)
{
	if (!strcmp(argv[0], "@inactive"))
		return tell_inactive(md, argc, argv, reply, err);
	if (!strcmp(argv[0], "@flush"))
		return tell_flushed(md, argc, argv, reply, err);
	if (!strcmp(argv[0], "@zone"))
		return dm_zone_message(md, argc, argv, reply, err);
	if (!strcmp(argv[0], "@numbers"))
		return tell_numbers(md, argc, argv, reply, err);
	if (!strcmp(argv[0], "@limits"))
		return tell_limits(md, argc, reply, err);
	if (g_ascii_strcasecmp(argv[0], "@cancel_deferred_remove"))
		return dm_stats_message(md, argc, argv, reply, err);
	if (argc > 1)
		return dm_fail(err, EINVAL, "@cancel_deferred_remove takes no arguments");
	return dm_cancel_deferred_remove(md, err);
}

bool dm_message_asks(const char *text)
{
	text += strspn(text, "0123456789 \t");
	return g_str_has_prefix(text, "@inactive ") || g_str_has_prefix(text, "@flush ") ||
	       g_str_has_prefix(text, "@zone report") ||
	       g_str_has_prefix(text, "@numbers ") || g_str_has_prefix(text, "@limits");
}

/* One at a time, and none beside a hook: the table is live before it and after it. */
static int target_message(struct dm_mapped *md, uint64_t sector, int argc, char **argv, const struct dm_opener *who,
			  GString *reply, GError **err)
{
	struct dm_table *t;
	int error;

	dm_block_begin();
	dm_mapped_lock_hooks(md, NULL, NULL);
	t = dm_mapped_live(md);
	if (t)
		error = send(t, sector, argc, argv, who, reply, err);
	else
		error = dm_fail(err, ENXIO, "there is no table to send a message to");
	dm_mapped_unlock_hooks(md);
	dm_block_end();
	if (!error)
		error = store_keys(md, t, sector, err);
	dm_table_unref(t);
	if (error && err && !*err)
		dm_fail(err, -error, "message '%.64s': %s", argv[0], g_strerror(-error));
	return error;
}

int dm_mapped_message(struct dm_mapped *md, char *text, const struct dm_opener *who, GString *reply, GError **err)
{
	g_autoptr(GPtrArray) words = dm_split_words(text);
	char **w = (char **)words->pdata;
	int n = (int)words->len - 1;
	uint64_t sector = 0;

	if (n > 1 && dm_parse_u64(w[0], &sector)) {
		w++;
		n--;
	}
	if (!n)
		return dm_fail(err, EINVAL, "the message is empty");
	if (dm_mapped_removed(md))
		return dm_fail(err, ENXIO, "the device was removed");
	if (w[0][0] == '@')
		return device_message(md, n, w, reply, err);
	return target_message(md, sector, n, w, who, reply, err);
}
