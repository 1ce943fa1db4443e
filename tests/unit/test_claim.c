/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Claims (dmfs/claim.h), by a target that does nothing else: "0 8 claim <dev> <r|w> [<sector> <sectors>]". */
#include "device.h"

#include <dmfs/claim.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <unistd.h>

#include "../../targets/list.h"

static struct dm_target *last; /* the one made last; for claim_with */

static int claim_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	enum dm_mode mode = argv[1][0] == 'w' ? DM_MODE_RW : DM_MODE_READ;
	struct dm_dev *dev;
	int error = dm_get_device(ti, argv[0], mode, &dev, err);

	ti->private = dev;
	if (!error && argv[1][1] == 'j')
		error = dm_claim_with(ti, dev, mode, "thing", last, err);
	else if (!error && argc == 2)
		error = dm_claim_device(ti, dev, mode, "thing", err);
	else if (!error)
		error = dm_claim_range(ti, dev, g_ascii_strtoull(argv[2], NULL, 10),
				       g_ascii_strtoull(argv[3], NULL, 10), mode, "thing", err);
	if (error && ti->private)
		dm_put_device(ti, ti->private);
	if (!error)
		last = ti;
	return error;
}

static void claim_dtr(struct dm_target *ti)
{
	dm_put_device(ti, ti->private);
}

static enum dm_mapio claim_map(struct dm_target *ti, struct dm_bio *bio)
{
	return DM_MAPIO_KILL;
}

static int claim_message(struct dm_target *ti, int argc, char **argv, GString *reply, GError **err)
{
	dm_unclaim_device(ti, ti->private);
	return 0;
}

static const struct dm_target_type claim_target = {
	.name = "claim",
	.ctr = claim_ctr,
	.dtr = claim_dtr,
	.map = claim_map,
	.message = claim_message,
};

/* The same, and a later one may take over from an earlier one. */
static const struct dm_target_type hands_target = {
	.name = "hands",
	.features = DM_TARGET_HANDS_OVER,
	.ctr = claim_ctr,
	.dtr = claim_dtr,
	.map = claim_map,
};

/* --- helpers -------------------------------------------------------------------------------------- */

static GPtrArray *made; /* devices, to be removed in reverse */

static struct dm_mapped *dev(const char *name, const char *table)
{
	struct dm_mapped *md = unit_device(name, "%s", table);

	g_ptr_array_add(made, md);
	return md;
}

static void remove_last(void)
{
	unit_remove(g_ptr_array_steal_index(made, made->len - 1));
}

static void remove_all(void)
{
	while (made->len)
		remove_last();
}

#define DEV(name, ...)                                                   \
	({                                                               \
		g_autofree char *table_ = g_strdup_printf(__VA_ARGS__);  \
		dev(name, table_);                                       \
	})

/* Whether a table loads into a device of its own (which goes again). */
static void try(bool ok, const char *match, const char *table)
{
	g_autoptr(GError) err = NULL;
	struct dm_mapped *md;
	int error;

	assert_int_equal(dm_create("try", -1, &md, NULL), 0);
	error = unit_load(md, table, &err);
	if (ok && error)
		fail_msg("%s: %s", table, err->message);
	if (!ok && !error)
		fail_msg("%s: was taken", table);
	if (!ok) {
		assert_int_equal(error, -EBUSY);
		if (!strstr(err->message, match))
			fail_msg("%s: says '%s', not '%s'", table, err->message, match);
	}
	unit_remove(md);
}

#define TRY(ok, match, ...)                                             \
	do {                                                            \
		g_autofree char *table_ = g_strdup_printf(__VA_ARGS__); \
		try(ok, match, table_);                                 \
	} while (0)

/* Who has a sector of a file locked, as another program sees it: F_UNLCK, F_RDLCK, F_WRLCK. */
static short locked(const char *path, uint64_t sector)
{
	struct flock fl = {.l_type = F_WRLCK, .l_start = (off_t)sector * 512, .l_len = 512};
	int fd = open(path, O_RDWR);

	assert_true(fd >= 0);
	assert_int_equal(fcntl(fd, F_OFD_GETLK, &fl), 0);
	close(fd);
	return fl.l_type;
}

/* --- tests ------------------------------------------------------------------------------------------ */

static void test_one_device(void **state)
{
	const char *file = unit_file(64);
	struct dm_mapped *a = DEV("a", "0 8 claim %s w", file);

	TRY(false, "claim: the thing /proc", "0 8 claim %s w", file);
	TRY(false, "is the thing of 'a' (claim)", "0 8 claim %s r", file);
	/* a reload is none, twice in one table is one */
	assert_int_equal(unit_load(a, "0 8 error", NULL), 0);
	TRY(false, "of 'try'", "0 8 claim %s w\n8 8 claim %s w", file, file);
	TRY(true, NULL, "0 8 claim %s w", file);
	remove_all();
	a = DEV("a", "0 8 claim %s w", file);
	for (unsigned i = 0; i < 3; i++) {
		g_autofree char *line = g_strdup_printf("0 8 claim %s w", file);

		assert_int_equal(unit_load(a, line, NULL), 0);
	}
	TRY(false, "", "0 8 claim %s w", file);
	assert_int_equal(unit_message(a, "let go", NULL), 0);
	TRY(true, NULL, "0 8 claim %s w", file);
	remove_all();
}

static void test_readers(void **state)
{
	const char *file = unit_file(64);
	struct dm_mapped *a;

	DEV("a", "0 8 claim %s r", file);
	DEV("b", "0 8 claim %s r", file);
	assert_int_equal(locked(file, 0), F_RDLCK);
	TRY(false, "", "0 8 claim %s w", file);
	remove_last();
	TRY(false, "", "0 8 claim %s w", file);
	remove_last();
	assert_int_equal(locked(file, 0), F_UNLCK);
	/* who reads first has the lock by a descriptor for reading; the writer elsewhere takes that over */
	DEV("a", "0 8 claim %s r 0 8", file);
	DEV("b", "0 8 claim %s w 8 8", file);
	assert_int_equal(locked(file, 7), F_RDLCK);
	assert_int_equal(locked(file, 8), F_WRLCK);
	assert_int_equal(locked(file, 16), F_UNLCK);
	remove_all();
	assert_int_equal(locked(file, 7), F_UNLCK);
	/* a reader becomes a writer, and a reader again */
	a = DEV("a", "0 8 claim %s r", file);
	for (unsigned i = 0; i < 4; i++) {
		g_autofree char *line = g_strdup_printf("0 8 claim %s %c", file, i % 2 ? 'r' : 'w');

		assert_int_equal(unit_load(a, line, NULL), 0);
		assert_int_equal(locked(file, 5), i % 2 ? F_RDLCK : F_WRLCK);
		if (!(i % 2)) { /* a reader that does not stay */
			g_autofree char *bad = g_strdup_printf("0 8 claim %s r\n8 8 nonsense", file);

			assert_int_equal(unit_load(a, bad, NULL), -EINVAL);
			assert_int_equal(locked(file, 5), F_WRLCK);
		}
	}
	TRY(true, NULL, "0 8 claim %s r", file);
	remove_all();
}

static void test_other_names(void **state)
{
	g_autofree char *dir = g_dir_make_tmp("dmfs-test-claim-XXXXXX", NULL);
	g_autofree char *file = g_build_filename(dir, "file", NULL), *hard = g_build_filename(dir, "hard", NULL);
	g_autofree char *soft = g_build_filename(dir, "soft", NULL), *text = g_strnfill(64 * 512, 'x');

	assert_true(g_file_set_contents(file, text, 64 * 512, NULL));
	assert_int_equal(link(file, hard), 0);
	assert_int_equal(symlink(file, soft), 0);
	DEV("a", "0 8 claim %s w", file);
	TRY(false, "", "0 8 claim %s w", hard);
	TRY(false, "", "0 8 claim %s w", soft);
	DEV("over", "0 32 linear %s 32", hard);
	TRY(false, "thing over is in use", "0 8 claim over w");
	remove_all();
	g_unlink(soft);
	g_unlink(hard);
	g_unlink(file);
	g_rmdir(dir);
}

static void test_stacks(void **state)
{
	const char *file = unit_file(1024), *other = unit_file(1024);

	DEV("low", "0 512 linear %s 100\n512 100 linear %s 0", file, other);
	DEV("mid", "0 8 zero\n8 200 linear low 400");
	DEV("a", "0 8 claim mid w"); /* 500 to 612 of file, 0 to 88 of other */
	TRY(true, NULL, "0 8 claim %s w 0 500", file);
	TRY(false, "", "0 8 claim %s w 0 501", file);
	TRY(false, "", "0 8 claim %s w 611 1", file);
	TRY(true, NULL, "0 8 claim %s w 612 412", file);
	TRY(false, "", "0 8 claim %s w 87 1", other);
	TRY(true, NULL, "0 8 claim %s w 88 1", other);
	TRY(true, NULL, "0 8 claim low w 0 400");
	TRY(false, "", "0 8 claim low w 400 1");
	TRY(false, "", "0 8 claim mid r 0 1");
	assert_int_equal(locked(file, 499), F_UNLCK);
	assert_int_equal(locked(file, 500), F_WRLCK);
	assert_int_equal(locked(file, 611), F_WRLCK);
	assert_int_equal(locked(file, 612), F_UNLCK);
	remove_all();
	assert_int_equal(locked(file, 500), F_UNLCK);
}

/* Where a part of a stripe lies is not known; that parts of one device are apart is. */
static void test_stripes(void **state)
{
	const char *f = unit_file(1024), *g = unit_file(1024);

	DEV("stripes", "0 2048 striped 2 16 %s 0 %s 0", f, g);
	DEV("low", "0 1024 linear stripes 0");
	DEV("high", "0 1024 linear stripes 1024");
	DEV("a", "0 8 claim low w");
	DEV("b", "0 8 claim high w");
	TRY(false, "'b'", "0 8 claim stripes w 2000 1");
	TRY(false, "", "0 8 claim %s w 0 1", f);
	remove_last();
	TRY(true, NULL, "0 8 claim stripes w 2000 1");
	TRY(false, "", "0 8 claim %s w 1023 1", g); /* it might */
	remove_last();
	DEV("a", "0 8 claim stripes w");
	TRY(false, "", "0 8 claim %s w 1023 1", g);
	remove_all();
}

/* Claims stop where sectors are given out: two volumes of one pool are two. */
static void test_volumes(void **state)
{
	struct dm_mapped *pool = DEV("pool", "0 8192 thin-pool %s %s 128 0", unit_file(8192), unit_file(8192));

	assert_int_equal(unit_message(pool, "create_thin 0", NULL), 0);
	assert_int_equal(unit_message(pool, "create_thin 1", NULL), 0);
	DEV("v0", "0 1024 thin pool 0");
	DEV("v1", "0 1024 thin pool 1");
	DEV("a", "0 8 claim v0 w");
	DEV("b", "0 8 claim v1 w");
	DEV("over", "0 10 linear v0 100");
	TRY(false, "of 'a'", "0 8 claim over w");
	remove_all();
}

static void test_together(void **state)
{
	const char *file = unit_file(64);

	DEV("a", "0 8 claim %s w", file);
	DEV("b", "0 8 claim %s wj", file);
	TRY(false, "", "0 8 claim %s w", file);
	TRY(true, NULL, "0 8 claim %s wj", file);
	g_ptr_array_add(made, g_ptr_array_steal_index(made, 0)); /* a goes before b */
	remove_last();
	assert_int_equal(locked(file, 0), F_WRLCK);
	TRY(false, "'b'", "0 8 claim %s w", file);
	remove_all();
	TRY(true, NULL, "0 8 claim %s w", file);
}

static void test_a_device_beneath_gets_another_table(void **state)
{
	const char *one = unit_file(64), *two = unit_file(64), *taken = unit_file(64);
	g_autofree char *to_two = g_strdup_printf("0 64 linear %s 0", two);
	g_autofree char *to_taken = g_strdup_printf("0 32 linear %s 0\n32 32 linear %s 0", one, taken);
	g_autofree char *turned = g_strdup_printf("0 32 linear %s 32\n32 32 linear %s 0", two, two);
	struct dm_mapped *low = DEV("low", "0 64 linear %s 0", one);
	g_autoptr(GError) err = NULL;

	DEV("c", "0 8 claim %s w", taken);
	DEV("a", "0 8 claim low w 0 32");
	DEV("b", "0 8 claim low w 32 32");
	assert_int_equal(unit_load(low, to_two, NULL), 0);
	TRY(true, NULL, "0 8 claim %s w", one);
	TRY(false, "", "0 8 claim %s w", two);
	assert_int_equal(locked(one, 0), F_UNLCK);
	assert_int_equal(locked(two, 0), F_WRLCK);
	/* the two change places */
	assert_int_equal(unit_load(low, turned, NULL), 0);
	TRY(false, "of 'a'", "0 8 claim %s w 32 1", two);
	TRY(false, "of 'b'", "0 8 claim %s w 31 1", two);
	/* to where somebody is: not a step of the way is made */
	assert_int_equal(unit_load(low, to_taken, &err), -EBUSY);
	assert_non_null(strstr(err->message, "claim: the thing low is in use already: it is the thing of 'c' (claim)"));
	TRY(true, NULL, "0 8 claim %s w", one);
	TRY(false, "of 'a'", "0 8 claim %s w 32 1", two);
	assert_int_equal(locked(one, 0), F_UNLCK);
	assert_int_equal(locked(two, 0), F_WRLCK);
	remove_all();
}

static void test_other_programs(void **state)
{
	const char *file = unit_file(64);
	struct flock fl = {.l_type = F_RDLCK, .l_start = 10 * 512, .l_len = 512};
	int fd = open(file, O_RDWR);

	assert_int_equal(fcntl(fd, F_OFD_SETLK, &fl), 0);
	TRY(false, "in use by another program", "0 8 claim %s w", file);
	TRY(true, NULL, "0 8 claim %s r", file);
	TRY(true, NULL, "0 8 claim %s w 0 10", file);
	TRY(false, "", "0 8 claim %s w 0 11", file);
	assert_int_equal(locked(file, 0), F_UNLCK);
	close(fd);
	TRY(true, NULL, "0 8 claim %s w", file);
}

/* A hostile table: claims and their ends take no time that grows with the square of its lines. */
static int resume(struct dm_mapped *md, GError **err)
{
	return dm_mapped_resume(md, 0, NULL, NULL, err);
}

static void test_handing_over(void **state)
{
	const char *file = unit_file(64);
	g_autofree char *line = g_strdup_printf("0 8 hands %s w", file);
	struct dm_mapped *a = dev("a", line), *b;
	g_autoptr(GError) err = NULL;

	TRY(false, "is in use already: it is the thing of 'a' (hands)", "0 8 hands %s w", file);
	TRY(false, "of 'a'", "0 8 claim %s w", file);
	assert_int_equal(dm_create("b", -1, &b, NULL), 0);
	g_ptr_array_add(made, b);
	assert_int_equal(unit_load_inactive(b, line, NULL), 0);
	assert_int_equal(resume(b, &err), -EBUSY);
	assert_non_null(strstr(err->message, "'a'"));
	assert_int_equal(dm_mapped_suspend(a, 0, NULL, NULL, NULL), 0);
	assert_int_equal(resume(b, NULL), 0);
	/* it is b's now */
	assert_int_equal(resume(a, NULL), -EBUSY);
	assert_int_equal(dm_mapped_suspend(b, 0, NULL, NULL, NULL), 0);
	assert_int_equal(resume(a, NULL), 0);
	assert_int_equal(resume(b, NULL), -EBUSY);
	g_ptr_array_add(made, g_ptr_array_steal_index(made, 0));
	remove_last();
	assert_int_equal(resume(b, NULL), 0);
	remove_all();
}

/* A layer goes: what was beneath a device becomes its own table while the layer is not suspended. */
static void test_handing_over_from_beneath(void **state)
{
	const char *file = unit_file(64);
	g_autofree char *line = g_strdup_printf("0 8 hands %s w", file);
	struct dm_mapped *low = dev("low", line), *top = dev("top", "0 8 linear low 0"), *other;

	assert_int_equal(unit_load_inactive(top, line, NULL), 0);
	/* somebody else is on it, too */
	other = dev("other", "0 8 linear low 0");
	assert_int_equal(resume(top, NULL), -EBUSY);
	assert_false(atomic_load(&top->suspended));
	assert_false(atomic_load(&low->suspended));
	assert_ptr_equal(other, made->pdata[made->len - 1]);
	remove_last();
	assert_int_equal(resume(top, NULL), 0);
	assert_true(atomic_load(&low->suspended) && !dm_mapped_suspended(low));
	assert_false(atomic_load(&top->suspended));
	assert_int_equal(resume(low, NULL), -EBUSY);
	remove_all();
}

static void test_many_pieces(void **state)
{
	const char *file = unit_file(1 << 20);
	g_autoptr(GString) table = g_string_new(NULL);
	gint64 start = g_get_monotonic_time();

	for (unsigned i = 0; i < 100000; i++)
		g_string_append_printf(table, "%u 1 linear %s %u\n", i, file, (i * 7919) % 100000 * 2);
	dev("pieces", table->str);
	DEV("a", "0 8 claim pieces w");
	TRY(false, "", "0 8 claim %s w 1000 1", file);
	TRY(true, NULL, "0 8 claim %s w 1001 1", file);
	remove_all();
	assert_true(g_get_monotonic_time() - start < 60 * G_USEC_PER_SEC);
}

static int setup(void **state)
{
	g_autoptr(GPtrArray) types = g_ptr_array_new();

	for (unsigned i = 0; dm_target_list[i]; i++)
		g_ptr_array_add(types, (gpointer)dm_target_list[i]);
	g_ptr_array_add(types, (gpointer)&claim_target);
	g_ptr_array_add(types, (gpointer)&hands_target);
	g_ptr_array_add(types, NULL);
	dm_register_targets((const struct dm_target_type *const *)g_ptr_array_steal(types, NULL));
	made = g_ptr_array_new();
	return 0;
}

static int teardown(void **state)
{
	unit_files_close();
	return 0;
}

#define TEST(name) cmocka_unit_test_teardown(name, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    TEST(test_one_device), TEST(test_readers),
	    TEST(test_other_names), TEST(test_stacks),
	    TEST(test_stripes), TEST(test_volumes),
	    TEST(test_together), TEST(test_a_device_beneath_gets_another_table),
	    TEST(test_other_programs), TEST(test_many_pieces),
	    TEST(test_handing_over), TEST(test_handing_over_from_beneath),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
