/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A target's own rows; without a state file nothing is kept. */
#include <dmfs/rows.h>
#include <dmfs/target.h>

struct dm_rows {
	struct dm_target *ti;
	const char *name;
};

struct dm_rows *dm_rows_open(struct dm_target *ti, const char *name)
{
	struct dm_rows *rows = g_new0(struct dm_rows, 1);

	rows->ti = ti;
	rows->name = name;
	return rows;
}

void dm_rows_close(struct dm_rows *rows)
{
	g_free(rows);
}

int dm_rows_load(struct dm_rows *rows, int (*fn)(uint64_t key, const void *value, size_t len, void *data), void *data,
		 GError **err)
{
	return 0;
}

void dm_rows_put(struct dm_rows *rows, uint64_t key, const void *value, size_t len)
{
}

void dm_rows_delete(struct dm_rows *rows, uint64_t key)
{
}

void dm_rows_clear(struct dm_rows *rows)
{
}

int dm_rows_commit(struct dm_rows *rows, GError **err)
{
	return 0;
}

void dm_rows_rollback(struct dm_rows *rows)
{
}
