/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A target's own rows in the state database: what the kernel keeps only in memory and dmfs brings back after a remount
 * (dust's bad blocks, switch's regions, that a snapshot is invalid whose store cannot be told).
 *
 * A set of rows belongs to one target of one device's table and has a name.  When a table comes back from the state,
 * its rows come with it; when a user loads a table, it begins with none.  Without a state file every call succeeds and
 * nothing is kept.  A row is a 64-bit key and a value of up to 64 KiB.
 */
#ifndef DMFS_ROWS_H
#define DMFS_ROWS_H

#include <glib.h>
#include <stdint.h>

struct dm_target;
struct dm_rows;

/* In ctr; never NULL.  name: a constant such as "bad-blocks".  Freed in dtr. */
struct dm_rows *dm_rows_open(struct dm_target *ti, const char *name);
void dm_rows_close(struct dm_rows *rows);

/*
 * In ctr, after dm_rows_open(): calls fn for every row that came back, by ascending key; a negative errno of fn's ends
 * it.
 */
int dm_rows_load(struct dm_rows *rows, int (*fn)(uint64_t key, const void *value, size_t len, void *data), void *data,
		 GError **err);

/*
 * Changes are collected and become durable together in dm_rows_commit(), or are dropped by dm_rows_rollback().  One
 * thread at a time per set.
 */
void dm_rows_put(struct dm_rows *rows, uint64_t key, const void *value, size_t len);
void dm_rows_delete(struct dm_rows *rows, uint64_t key);
void dm_rows_clear(struct dm_rows *rows);
int dm_rows_commit(struct dm_rows *rows, GError **err);
void dm_rows_rollback(struct dm_rows *rows);

#endif
