/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Absent snapshots: the state database has them, but they could not be loaded, as when the COW device is missing.
 *
 * What is written to their origin meanwhile they miss, and would read as if it had been there.  So in the stead of such
 * a line stands one of this type, which has no store: it keeps the first write to the origin until the state says,
 * durably, that the snapshot is invalid (invalid.c's row, under the id of the table that is absent).  When that fails,
 * so does the write.  Until then nothing is lost: a start with the COW device again finds the snapshot valid.
 *
 * With -o missing-snapshots=wait the origin's tables are not loaded at such a start: their types' misses() asks
 * absent_names().
 */
#include "snapshot.h"

#include <dmfs/container_of.h>

/* In origin->absents; what changes is under origin->absent_lock. */
struct absent {
	struct dm_target *ti;
	struct origin *origin;
	struct dm_dev *dev;
	struct dm_rows *rows;
	struct dm_work work;
	bool marking, marked;
	struct dm_bio_list waiting; /* writes to the origin */
};

/* The next one that has not been marked. */
static struct absent *next_unmarked(struct origin *o)
{
	for (guint i = 0; i < o->absents->len; i++) {
		struct absent *a = o->absents->pdata[i];

		if (!a->marked)
			return a;
	}
	return NULL;
}

bool absent_guard(struct origin *o, struct dm_bio *bio)
{
	struct absent *a;

	pthread_mutex_lock(&o->absent_lock);
	a = next_unmarked(o);
	if (a) {
		dm_bio_list_add(&a->waiting, bio);
		if (!a->marking)
			dm_wq_queue(snap_invalid_wq(), &a->work);
		a->marking = true;
	}
	pthread_mutex_unlock(&o->absent_lock);
	return !a;
}

static void tell_state(struct dm_work *work)
{
	struct absent *a = container_of(work, struct absent, work);
	g_autoptr(GString) name = g_string_new(NULL);
	struct origin *o = a->origin;
	struct dm_bio_list bios;
	bool ok = snap_rows_mark(a->rows);

	if (ok) {
		dm_mapped_name(dm_target_mapped(a->ti), name);
		dm_log_err("snapshot: '%s' is missing and its origin is written to: it is invalid.", name->str);
	}
	dm_bio_list_init(&bios);
	pthread_mutex_lock(&o->absent_lock);
	a->marked = ok;
	a->marking = false;
	dm_bio_list_take(&a->waiting, &bios);
	if (ok)
		atomic_fetch_sub(&o->unmarked, 1);
	pthread_mutex_unlock(&o->absent_lock);
	if (ok)
		run_parked(&bios);
	else
		dm_bio_list_end(&bios, -EIO);
}

bool absent_missed(struct origin *o, struct dm_mapped *md)
{
	bool missed = false;

	pthread_mutex_lock(&o->absent_lock);
	for (guint i = 0; i < o->absents->len; i++) {
		struct absent *a = o->absents->pdata[i];

		missed |= a->marked && dm_target_mapped(a->ti) == md;
	}
	pthread_mutex_unlock(&o->absent_lock);
	return missed;
}

bool absent_names(struct origin *o, GString *out)
{
	bool any = false;

	pthread_mutex_lock(&o->absent_lock);
	for (guint i = 0; i < o->absents->len; i++) {
		struct absent *a = o->absents->pdata[i];

		if (a->marked)
			continue;
		g_string_append(out, any ? "', '" : "");
		dm_mapped_name(dm_target_mapped(a->ti), out);
		any = true;
	}
	pthread_mutex_unlock(&o->absent_lock);
	return any;
}

/* --- the type ---------------------------------------------------------------------------------------- */

static int absent_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	struct absent *a;
	struct dm_dev *dev;
	bool invalid;
	int error;

	if (argc < 4 || g_ascii_toupper(argv[2][0]) != 'P')
		return dm_fail(err, EINVAL, "snapshot: it keeps nothing");
	error = dm_get_device(ti, argv[0], DM_MODE_READ, &dev, err);
	if (error)
		return error;
	a = g_new0(struct absent, 1);
	a->ti = ti;
	a->dev = dev;
	a->origin = origin_get(dev);
	a->rows = dm_rows_open(ti, "invalid");
	a->work.fn = tell_state;
	dm_bio_list_init(&a->waiting);
	ti->private = a;
	/* What the state knew already is for the start that finds the snapshot. */
	a->marked = !snap_rows_load(a->rows, &invalid, NULL) && invalid;
	pthread_mutex_lock(&a->origin->absent_lock);
	g_ptr_array_add(a->origin->absents, a);
	if (!a->marked)
		atomic_fetch_add(&a->origin->unmarked, 1);
	pthread_mutex_unlock(&a->origin->absent_lock);
	return 0;
}

static void absent_dtr(struct dm_target *ti)
{
	struct absent *a = ti->private;
	struct origin *o = a->origin;

	pthread_mutex_lock(&o->absent_lock);
	g_ptr_array_remove(o->absents, a);
	pthread_mutex_unlock(&o->absent_lock);
	dm_wq_flush_work(snap_invalid_wq(), &a->work);
	if (!a->marked)
		atomic_fetch_sub(&o->unmarked, 1);
	dm_rows_close(a->rows);
	origin_put(o);
	dm_put_device(ti, a->dev);
	g_free(a);
}

const struct dm_target_type snapshot_absent = {
	.name = "snapshot",
	.ctr = absent_ctr,
	.dtr = absent_dtr,
};
