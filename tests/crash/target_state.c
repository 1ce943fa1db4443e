/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The state database: each change is durable when its call returns, and is
 * there as a whole or not at all.
 *
 * No target: the registry is opened on files that lie on slices (vfs.c).
 * After a power loss the database must be what it was after the last change
 * that was answered, or after the one under way.
 */
#include <glib/gstdio.h>

#include "../../src/core/registry.h"
#include "lab.h"
#include "vfs.h"

#define MINORS 6u
#define KEYS 12u
#define CHANGES 40u

struct kept {
	char *dir, *path;
	char *devices[MINORS]; /* as printed; NULL: there is none */
	char *rows[MINORS][KEYS];
	GPtrArray *states;   /* after each change; the first is the empty one */
	GPtrArray *expected; /* what each change should have made */
};

static void forget_kept(void *p)
{
	struct kept *k = p;
	g_autofree char *journal = g_strconcat(k->path ? k->path : "", "-journal", NULL);

	if (k->path) {
		g_unlink(journal);
		g_unlink(k->path);
		g_rmdir(k->dir);
		g_ptr_array_free(k->states, TRUE);
		g_ptr_array_free(k->expected, TRUE);
	}
	g_free(k->dir);
	g_free(k->path);
	for (unsigned m = 0; m < MINORS; m++) {
		g_free(k->devices[m]);
		for (unsigned i = 0; i < KEYS; i++)
			g_free(k->rows[m][i]);
	}
}

static struct kept *kept(struct lab *lab)
{
	struct kept *k = lab_private_full(lab, sizeof *k, forget_kept);

	if (!k->dir) {
		k->dir = g_dir_make_tmp("dmfs-crash-XXXXXX", NULL);
		if (!k->dir)
			g_error("no temporary directory");
		k->path = g_build_filename(k->dir, "state", NULL);
		k->states = g_ptr_array_new_with_free_func(g_free);
		k->expected = g_ptr_array_new_with_free_func(g_free);
		g_ptr_array_add(k->states, g_strdup(""));
		g_ptr_array_add(k->expected, NULL);
	}
	return k;
}

/* --- what is in it, as text ----------------------------------------------------------- */

static char *print_device(const struct dm_registry_device *d)
{
	return g_strdup_printf("%u %s %s %d live %s %" PRIu64 " %d %d inactive %s %" PRIu64 " image %o %u %u\n",
			       d->minor, d->name, d->uuid, d->readonly, d->live.text ? d->live.text : "-", d->live.id,
			       d->live.readonly, d->live.secret, d->inactive.text ? d->inactive.text : "-",
			       d->inactive.id, d->image_mode, d->image_uid, d->image_gid);
}

static int add_device_text(struct dm_registry_device *d, void *data)
{
	g_autofree char *text = print_device(d);

	g_string_append(data, text);
	dm_registry_device_clear(d);
	return 0;
}

static char *print_row(uint64_t key, const void *value, size_t len)
{
	g_autofree char *sum = g_compute_checksum_for_data(G_CHECKSUM_SHA1, value, len);

	return g_strdup_printf("row %" PRIu64 " %zu %s\n", key, len, sum);
}

static int add_row_text(uint64_t key, const void *value, size_t len, void *data)
{
	g_autofree char *text = print_row(key, value, len);

	g_string_append(data, text);
	return 0;
}

static char *print_database(GError **err)
{
	GString *out = g_string_new(NULL);
	int error = dm_registry_each(add_device_text, out, err);

	for (unsigned m = 0; m < MINORS && !error; m++)
		error = dm_registry_rows_load(m + 1, 0, "r", add_row_text, out, err);
	return g_string_free(out, error);
}

static char *print_model(const struct kept *k)
{
	GString *out = g_string_new(NULL);

	for (unsigned m = 0; m < MINORS; m++)
		g_string_append(out, k->devices[m] ? k->devices[m] : "");
	for (unsigned m = 0; m < MINORS; m++)
		for (unsigned i = 0; i < KEYS; i++)
			g_string_append(out, k->rows[m][i] ? k->rows[m][i] : "");
	return g_string_free(out, FALSE);
}

/* --- changes: made in the model, then in the database ----------------------------------- */

static void set(char **at, char *text)
{
	g_free(*at);
	*at = text;
}

/* One device, or two at once. */
static int save(struct lab *lab, struct kept *k, unsigned minor, unsigned number, GError **err)
{
	g_autofree char *table = g_strnfill(lab_random(lab, 4) ? 10 + lab_random(lab, 300) : 9000, 'a' + number % 26);
	struct dm_registry_device d[2];
	unsigned n = 1 + lab_random(lab, 2);
	const uint64_t none[2][2] = {{0}};
	char *names[2];
	int error;

	for (unsigned i = 0; i < n; i++) {
		unsigned m = (minor + i) % MINORS;

		names[i] = g_strdup_printf("device%u-%u", m, number);
		d[i] = (struct dm_registry_device){
		    .minor = m,
		    .name = names[i],
		    .uuid = number % 3 ? (char *)"" : names[i],
		    .readonly = number % 2,
		    .live = {.text = table, .id = m + 1, .readonly = number % 5 == 0},
		    .inactive = {.text = number % 4 ? NULL : table, .id = number % 4 ? 0 : 100 + number},
		    .image_mode = 0600,
		};
		set(&k->devices[m], print_device(&d[i]));
	}
	error = dm_registry_save(d, none, n, err);
	for (unsigned i = 0; i < n; i++)
		g_free(names[i]);
	return error;
}

static int drop(struct kept *k, unsigned minor, GError **err)
{
	set(&k->devices[minor], NULL);
	for (unsigned i = 0; i < KEYS; i++)
		set(&k->rows[minor][i], NULL);
	return dm_registry_remove(minor, (uint64_t[2]){minor + 1, 0}, err);
}

static int save_rows(struct lab *lab, struct kept *k, unsigned minor, unsigned number, GError **err)
{
	struct dm_registry_change changes[KEYS];
	bool clear = lab_random(lab, 5) == 0;
	g_autofree char *value = g_strnfill(4000, (char)('A' + number % 26));
	size_t n = 0;

	for (unsigned i = 0; i < KEYS; i++) {
		if (clear)
			set(&k->rows[minor][i], NULL);
		if (lab_random(lab, 2))
			continue;
		changes[n] =
		    (struct dm_registry_change){i, lab_random(lab, 3) ? value : NULL, 1 + lab_random(lab, 4000)};
		set(&k->rows[minor][i], changes[n].value ? print_row(i, value, changes[n].len) : NULL);
		n++;
	}
	return dm_registry_rows_save(minor + 1, 0, "r", clear, changes, n, err);
}

static int change(struct lab *lab, struct kept *k, unsigned number, GError **err)
{
	unsigned minor = lab_random(lab, MINORS), kind = lab_random(lab, 10);

	if (!k->devices[minor] || kind < 3)
		return save(lab, k, minor, number, err);
	return kind < 4 ? drop(k, minor, err) : save_rows(lab, k, minor, number, err);
}

/* --- the customer ------------------------------------------------------------------------- */

static int open_state(struct lab *lab, GError **err)
{
	struct kept *k = kept(lab);
	g_autofree char *journal = g_strconcat(k->path, "-journal", NULL);
	int error;

	/* It looks at the file itself before SQLite does. */
	g_unlink(k->path);
	g_unlink(journal);
	error = vfs_copy("db", k->path, err);
	if (!error)
		error = vfs_copy("journal", journal, err);
	vfs_use(k->path, lab_is(lab, "state:no-sync"));
	return error ? error : dm_registry_open(k->path, err);
}

static void close_state(struct lab *lab)
{
	if (dm_registry_is_open())
		dm_registry_close();
}

static void use(struct lab *lab, unsigned changes)
{
	struct kept *k = kept(lab);

	for (unsigned i = 1; i <= changes; i++) {
		g_autoptr(GError) err = NULL;
		g_autofree char *seen = NULL;
		int error;

		lab_step(lab, "begin %u", i);
		error = change(lab, k, i, &err);
		g_ptr_array_add(k->expected, print_model(k));
		if (!lab_ok(lab, error, &err))
			return; /* one answer or the other: the check will see */
		seen = print_database(&err);
		if (!seen && lab_faulty(lab))
			return;
		if (g_strcmp0(seen, k->expected->pdata[i]))
			lab_fail(lab, "after change %u the database is\n%snot\n%s", i, seen,
				 (char *)k->expected->pdata[i]);
		g_ptr_array_add(k->states, g_strdup(k->expected->pdata[i]));
		lab_step(lab, "done %u", i);
	}
}

static void use_state(struct lab *lab)
{
	use(lab, CHANGES);
}

static void use_shortly(struct lab *lab)
{
	use(lab, 8);
}

static int check_state(struct lab *lab, GError **err)
{
	struct kept *k = kept(lab);
	g_autofree char *seen = print_database(err);
	unsigned done = 0;

	if (!seen)
		return -EIO;
	while (lab_reached(lab, "done %u", done + 1))
		done++;
	if (!strcmp(seen, k->states->pdata[done]))
		return 0;
	if (lab_reached(lab, "begin %u", done + 1) && !strcmp(seen, k->expected->pdata[done + 1]))
		return 0;
	return dm_fail(err, EIO, "after change %u the database is\n%snot\n%s", done, seen,
		       (char *)k->states->pdata[done]);
}

LAB_CUSTOMER(state) = {
    .slices = {{"db", 2048}, {"journal", 1024}},
    .open = open_state,
    .close = close_state,
    .workload = use_state,
    .fault_workload = use_shortly,
    .check = check_state,
};

/* The laboratory's own test: SQLite is told that all is synced, which is not so. */
static void __attribute__((constructor)) register_no_sync(void)
{
	static struct lab_customer no_sync;

	no_sync = lab_customer_state;
	no_sync.name = "state:no-sync";
	no_sync.hidden = true;
	lab_register(&no_sync);
}
