/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The devices of a new volume, made here, in this process, without a dmfs: for the superblock of the one with the
 * tags, which is made when it is loaded, and for zeroes all over the other, so that each sector has a tag.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include <dmfs/target.h>

#include "core/devices.h"
#include "core/mapped.h"
#include "core/type.h"
#include "targets/list.h"

#include "../common/bar.h"
#include "luks.h"

#define FILL_SECTORS 8192u /* at a time */

/* --- devices --------------------------------------------------------------------------------------- */

static int load(struct dm_mapped *md, const struct stage *s, GError **err)
{
	struct dm_opener self = dm_opener_self();
	struct dm_table *t = dm_table_new(md, DM_MODE_RW, &self);
	size_t len = s->table.len - (s->table.len && s->table.data[s->table.len - 1] == '\n');
	char *line = crypt_safe_alloc(len + 1); /* a key in it is overwritten there */
	int r = line ? 0 : fail(err, ENOMEM, "no memory for a key");

	if (!r) {
		memcpy(line, s->table.data, len);
		line[len] = '\0';
		r = dm_table_add_line(t, line, err);
	}
	if (!r)
		r = dm_table_complete(t, err);
	if (r)
		dm_table_unref(t);
	else
		r = dm_mapped_swap(md, t, NULL, NULL, err);
	if (line)
		crypt_safe_free(line);
	return r;
}

static void remove_all(GPtrArray *devices)
{
	while (devices->len) { /* from the top */
		struct dm_mapped *md = g_ptr_array_steal_index(devices, devices->len - 1);

		dm_remove(md, NULL);
		dm_mapped_unref(md);
	}
}

static int make_all(const struct volume *v, const char *name, GPtrArray *devices, GError **err)
{
	int r = 0;

	for (unsigned i = 0; !r && i < v->stages->len; i++) {
		const struct stage *s = v->stages->pdata[i];
		g_autofree char *dev = g_strconcat(name, s->suffix, NULL);
		struct dm_mapped *md;

		r = dm_create(dev, -1, &md, err);
		if (r)
			break;
		g_ptr_array_add(devices, md);
		r = load(md, s, err);
	}
	if (r)
		remove_all(devices);
	return r;
}

/* --- filling --------------------------------------------------------------------------------------- */

static int fill(struct dm_mapped *md, uint64_t *done, GError **err)
{
	uint64_t all = dm_mapped_sectors(md), at;
	g_autofree uint8_t *zeroes = g_malloc0(FILL_SECTORS * 512);
	int r = 0;

	for (at = 0; at < all && !r && !bar_interrupted(); at += MIN(FILL_SECTORS, all - at)) {
		bar_show(at, all);
		r = dm_write_sync(&md->dev, at, MIN(FILL_SECTORS, all - at), zeroes, 0);
	}
	if (!r)
		r = dm_flush_sync(&md->dev);
	if (r)
		return fail(err, -r, "filling it with zeroes: %s", g_strerror(-r));
	*done = at;
	bar_show(at, all);
	if (at < all)
		return fail(err, EINTR,
			    "interrupted after %" PRIu64 " of %" PRIu64 " MiB: the volume opens, but what was not "
			    "filled cannot be read before it is written",
			    at / 2048, all / 2048);
	return 0;
}

int fill_volume(const struct volume *v, const char *name, uint64_t *done, GError **err)
{
	g_autoptr(GPtrArray) devices = g_ptr_array_new();
	static bool registered;
	int r;

	if (!registered)
		dm_register_targets(dm_target_list);
	registered = true;
	r = make_all(v, name, devices, err);
	if (r || !done) {
		remove_all(devices);
		return r;
	}
	bar_begin("wiping");
	r = fill(devices->pdata[devices->len - 1], done, err);
	remove_all(devices);
	bar_end();
	return r;
}
