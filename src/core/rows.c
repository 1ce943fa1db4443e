/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A target's own rows (rows.h), in the state database under the table's id; without a state file nothing is kept.
 */
#include "registry.h"
#include "table.h"

#include <dmfs/rows.h>

struct dm_rows {
	struct dm_target *ti;
	const char *name;
	bool clear;
	GArray *changes; /* of struct dm_registry_change */
};

static void drop_changes(struct dm_rows *rows)
{
	for (guint i = 0; i < rows->changes->len; i++)
		g_free((void *)g_array_index(rows->changes, struct dm_registry_change, i).value);
	g_array_set_size(rows->changes, 0);
	rows->clear = false;
}

struct dm_rows *dm_rows_open(struct dm_target *ti, const char *name)
{
	struct dm_rows *rows = g_new0(struct dm_rows, 1);

	rows->ti = ti;
	rows->name = name;
	rows->changes = g_array_new(FALSE, FALSE, sizeof(struct dm_registry_change));
	return rows;
}

void dm_rows_close(struct dm_rows *rows)
{
	if (!rows)
		return;
	drop_changes(rows);
	g_array_free(rows->changes, TRUE);
	g_free(rows);
}

int dm_rows_load(struct dm_rows *rows, int (*fn)(uint64_t key, const void *value, size_t len, void *data), void *data,
		 GError **err)
{
	if (!rows->ti->table->restoring)
		return 0;
	return dm_registry_rows_load(rows->ti->table->id, rows->ti->begin, rows->name, fn, data, err);
}

static void change(struct dm_rows *rows, uint64_t key, const void *value, size_t len)
{
	struct dm_registry_change c = {key, value, len};

	if (dm_registry_is_open())
		g_array_append_val(rows->changes, c);
	else
		g_free((void *)value);
}

void dm_rows_put(struct dm_rows *rows, uint64_t key, const void *value, size_t len)
{
	char *copy = g_malloc(len + 1);

	if (len)
		memcpy(copy, value, len);
	change(rows, key, copy, len);
}

void dm_rows_delete(struct dm_rows *rows, uint64_t key)
{
	change(rows, key, NULL, 0);
}

void dm_rows_clear(struct dm_rows *rows)
{
	drop_changes(rows);
	rows->clear = true;
}

int dm_rows_commit(struct dm_rows *rows, GError **err)
{
	int error = 0;

	if (dm_registry_is_open() && (rows->clear || rows->changes->len))
		error = dm_registry_rows_save(rows->ti->table->id, rows->ti->begin, rows->name, rows->clear,
					      (const struct dm_registry_change *)(void *)rows->changes->data,
					      rows->changes->len, err);
	drop_changes(rows);
	return error;
}

void dm_rows_rollback(struct dm_rows *rows)
{
	drop_changes(rows);
}
