/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A pool's metadata against a model: random devices, snapshots, mappings,
 * removals and commits; crashes after each write of the metadata device, reopened, compared, and given to
 * thin_check; an I/O error at every I/O.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <dmfs/target.h>

#include "../../targets/thin/metadata.h"
#include "memdev.h"

#define META_SECTORS 8192u
#define DATA_BLOCKS 30000u
#define IDS 6u
#define BLOCKS 2500u

static uint64_t seed = 2463534242;

static uint64_t rnd(uint64_t n)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % n;
}

static int flush_data(void *pool)
{
	return 0;
}

static void nothing(void *pool)
{
}

static const struct thin_md_ops meta_ops = {flush_data, nothing, nothing};

static int open_meta(struct memdev *m, struct thin_md **meta)
{
	g_autoptr(GError) err = NULL;

	return thin_md_open(&m->dev, 128, true, &meta_ops, NULL, meta, &err);
}

/* --- the model: device -> (block -> data block) --- */

struct model {
	GHashTable *devices[IDS];
	uint64_t transaction;
};

static GHashTable *copy_table(GHashTable *t)
{
	GHashTable *copy = g_hash_table_new(NULL, NULL);
	GHashTableIter it;
	gpointer k, v;

	g_hash_table_iter_init(&it, t);
	while (g_hash_table_iter_next(&it, &k, &v))
		g_hash_table_insert(copy, k, v);
	return copy;
}

static void model_clear(struct model *m)
{
	for (unsigned i = 0; i < IDS; i++)
		if (m->devices[i])
			g_hash_table_unref(m->devices[i]);
	*m = (struct model){0};
}

static void model_copy(struct model *to, const struct model *from)
{
	model_clear(to);
	to->transaction = from->transaction;
	for (unsigned i = 0; i < IDS; i++)
		to->devices[i] = from->devices[i] ? copy_table(from->devices[i]) : NULL;
}

static bool with_holds = true; /* taking a metadata snapshot commits */

static int operate(struct thin_md *meta, struct model *m)
{
	unsigned id = rnd(IDS), other = rnd(IDS);
	uint64_t begin = rnd(BLOCKS), end = begin + 1 + rnd(300);
	struct thin_dev *td;
	bool done, more;
	int r;

	switch (rnd(12)) {
	case 0:
		r = thin_md_create(meta, id);
		if (m->devices[id])
			assert_true(r == -EEXIST || r == -EIO);
		else if (!r)
			m->devices[id] = g_hash_table_new(NULL, NULL);
		return r == -EEXIST ? 0 : r;
	case 1:
		r = thin_md_snap(meta, id, other);
		if (!r) {
			assert_true(m->devices[other] && !m->devices[id]);
			m->devices[id] = copy_table(m->devices[other]);
		}
		return r == -EEXIST || r == -ENODATA ? 0 : r;
	case 2:
		if (rnd(3))
			return 0;
		do {
			r = thin_md_delete(meta, id, 400, &done);
		} while (!r && !done);
		if (!r)
			assert_non_null(m->devices[id]);
		if (!r)
			g_hash_table_unref(g_steal_pointer(&m->devices[id]));
		return r == -ENODATA ? 0 : r;
	case 3:
		r = thin_md_set_transaction(meta, m->transaction, m->transaction + 7);
		if (!r)
			m->transaction += 7;
		return r;
	case 4:
		if (!with_holds)
			return 0;
		r = rnd(2) ? thin_md_hold(meta) : thin_md_release(meta);
		return r == -EBUSY || r == -EINVAL ? 0 : r;
	}
	r = thin_md_open_device(meta, id, &td);
	if (r)
		return r == -ENODATA ? 0 : r;
	assert_non_null(m->devices[id]);
	switch (rnd(4)) {
	case 0:
		r = thin_md_remove(td, begin, end, UINT64_MAX, NULL, &more);
		for (uint64_t b = begin; b < end && !r; b++)
			g_hash_table_remove(m->devices[id], GSIZE_TO_POINTER(b));
		break;
	case 1:
		for (uint64_t b = begin; b < begin + 20 && !r; b++) {
			r = thin_md_provision(td, b);
			if (r == -EAGAIN) {
				assert_true(g_hash_table_contains(m->devices[id], GSIZE_TO_POINTER(b)));
				r = 0;
			} else if (!r) {
				struct thin_mapping now;

				r = thin_md_find(td, b, &now);
				if (!r)
					assert_true(g_hash_table_insert(m->devices[id], GSIZE_TO_POINTER(b),
									GSIZE_TO_POINTER(now.block)));
			}
		}
		break;
	default:
		for (uint64_t b = begin; b < begin + 20 && !r; b++) {
			struct thin_mapping old = {.block = THIN_NO_BLOCK}, now;
			uint64_t data_block;
			gpointer want;

			r = thin_md_find(td, b, &old);
			if (!r) {
				assert_true(g_hash_table_lookup_extended(m->devices[id], GSIZE_TO_POINTER(b), NULL, &want));
				assert_int_equal(old.block, GPOINTER_TO_SIZE(want));
			} else if (r == -ENODATA) {
				assert_false(g_hash_table_contains(m->devices[id], GSIZE_TO_POINTER(b)));
				r = 0;
			}
			if (!r)
				r = thin_md_reserve(td, b, &data_block);
			if (r)
				break;
			assert_int_equal(thin_md_insert(td, b, old.block + 1, data_block) == 0, false);
			r = thin_md_insert(td, b, old.block, data_block);
			if (r) {
				thin_md_unreserve(meta, data_block);
				break;
			}
			assert_int_equal(thin_md_find(td, b, &now), 0);
			assert_int_equal(now.block, data_block);
			assert_false(now.shared);
			g_hash_table_insert(m->devices[id], GSIZE_TO_POINTER(b), GSIZE_TO_POINTER(data_block));
		}
	}
	thin_md_close_device(td);
	return r;
}

static void compare(struct thin_md *meta, const struct model *m)
{
	struct thin_md_stats st;

	thin_md_get_stats(meta, &st);
	assert_int_equal(st.transaction, m->transaction);
	for (unsigned id = 0; id < IDS; id++) {
		struct thin_dev *td;
		uint64_t first, run, n = 0, highest;
		int r = thin_md_open_device(meta, id, &td);

		assert_int_equal(r, m->devices[id] ? 0 : -ENODATA);
		if (r)
			continue;
		for (uint64_t b = 0; !(r = thin_md_find_run(td, b, &first, &run)); b = first + run)
			for (uint64_t i = first; i < first + run; i++, n++) {
				struct thin_mapping now;
				gpointer want;

				assert_true(g_hash_table_lookup_extended(m->devices[id], GSIZE_TO_POINTER(i), NULL, &want));
				assert_int_equal(thin_md_find(td, i, &now), 0);
				assert_int_equal(now.block, GPOINTER_TO_SIZE(want));
				highest = i;
			}
		assert_int_equal(r, -ENODATA);
		assert_int_equal(n, g_hash_table_size(m->devices[id]));
		assert_int_equal(n, td->mapped);
		if (n) {
			assert_int_equal(thin_md_highest(td, &first), 0);
			assert_int_equal(first, highest);
		}
		thin_md_close_device(td);
	}
}

/* thin_check's verdict, if it is installed. */
static void check(struct memdev *m)
{
	char path[] = "/tmp/test-thin-metadata-XXXXXX";
	int fd = mkstemp(path), status;
	pid_t pid;

	assert_true(fd >= 0);
	assert_int_equal(write(fd, m->data, m->sectors * 512), m->sectors * 512);
	close(fd);
	pid = fork();
	if (!pid) {
		int null = open("/dev/null", O_WRONLY);

		dup2(null, 1);
		dup2(null, 2);
		setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
		execlp("thin_check", "thin_check", path, NULL);
		_exit(127);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WEXITSTATUS(status) == 127)
		print_message("no thin_check here (package thin-provisioning-tools)\n");
	else if (status)
		fail_msg("thin_check says %d", WEXITSTATUS(status));
	unlink(path);
}

/* --- tests --- */

static struct thin_md *fresh(struct memdev *m)
{
	struct thin_md *meta;

	assert_int_equal(open_meta(m, &meta), 0);
	assert_int_equal(thin_md_resize_data(meta, DATA_BLOCKS), 0);
	assert_int_equal(thin_md_commit(meta, NULL), 0);
	return meta;
}

static void random_operations(void **state)
{
	struct memdev *m = memdev_new(META_SECTORS);
	struct thin_md *meta = fresh(m);
	struct model model = {0};

	for (int round = 0; round < 40; round++) {
		for (int i = 0; i < 60; i++)
			assert_int_equal(operate(meta, &model), 0);
		compare(meta, &model);
		assert_int_equal(thin_md_commit(meta, NULL), 0);
		check(m);
		if (round % 3)
			continue;
		thin_md_close(meta);
		assert_int_equal(open_meta(m, &meta), 0);
		compare(meta, &model);
	}
	thin_md_close(meta);
	model_clear(&model);
	memdev_put(m);
}

static void abort_goes_back(void **state)
{
	struct memdev *m = memdev_new(META_SECTORS);
	struct thin_md *meta = fresh(m);
	struct model model = {0}, committed = {0};

	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < 40; i++)
			assert_int_equal(operate(meta, &model), 0);
		if (rnd(2)) {
			assert_int_equal(thin_md_commit(meta, NULL), 0);
			model_copy(&committed, &model);
		} else {
			assert_int_equal(thin_md_commit(meta, NULL), 0);
			model_copy(&committed, &model);
			assert_int_equal(thin_md_set_transaction(meta, model.transaction, 99), 0);
			thin_md_create(meta, rnd(IDS));
			assert_int_equal(thin_md_abort(meta), 0);
		}
		model_copy(&model, &committed);
		compare(meta, &model);
	}
	thin_md_close(meta);
	model_clear(&model);
	model_clear(&committed);
	memdev_put(m);
}

#define CRASH_COMMITS 12

static void crash_at_every_write(void **state)
{
	struct memdev *m = memdev_new(META_SECTORS);
	struct thin_md *meta = fresh(m);
	struct model model = {0}, states[CRASH_COMMITS + 1] = {0};
	g_autofree uint8_t *image = NULL;
	uint64_t at = 0;

	for (int i = 0; i < 100; i++)
		assert_int_equal(operate(meta, &model), 0);
	assert_int_equal(thin_md_set_transaction(meta, model.transaction, 1000), 0);
	model.transaction = 1000;
	assert_int_equal(thin_md_commit(meta, NULL), 0);
	model_copy(&states[0], &model);
	image = g_memdup2(m->data, m->sectors * 512);
	with_holds = false;
	memdev_record(m, true);
	for (unsigned i = 1; i <= CRASH_COMMITS; i++) {
		for (int n = 0; n < 15; n++) {
			uint64_t before = model.transaction;

			assert_int_equal(operate(meta, &model), 0);
			if (model.transaction != before) { /* it tells the commits apart */
				assert_int_equal(thin_md_set_transaction(meta, model.transaction, before), 0);
				model.transaction = before;
			}
		}
		assert_int_equal(thin_md_set_transaction(meta, model.transaction, 1000 + i), 0);
		model.transaction = 1000 + i;
		assert_int_equal(thin_md_commit(meta, NULL), 0);
		model_copy(&states[i], &model);
	}
	thin_md_close(meta);
	for (unsigned n = 0; n <= m->log->len; n++) {
		struct memdev *crashed = memdev_replay(m, image, n, n % 2 ? rnd(UINT64_MAX) : 0);
		struct thin_md_stats st;

		assert_int_equal(open_meta(crashed, &meta), 0);
		thin_md_get_stats(meta, &st);
		assert_in_range(st.transaction, at < 1000 ? 1000 : at, 1000 + CRASH_COMMITS);
		if (!(n % 2))
			at = st.transaction;
		compare(meta, &states[st.transaction - 1000]);
		thin_md_close(meta);
		if (n % 16 == 0 || n == m->log->len)
			check(crashed);
		memdev_put(crashed);
	}
	with_holds = true;
	assert_int_equal(at, 1000 + CRASH_COMMITS);
	for (unsigned i = 0; i <= CRASH_COMMITS; i++)
		model_clear(&states[i]);
	model_clear(&model);
	memdev_put(m);
}

static void error_at_every_io(void **state)
{
	for (unsigned at = 1; at < 150; at += 1 + at / 16) {
		struct memdev *m = memdev_new(META_SECTORS);
		struct thin_md *meta = fresh(m);
		struct model model = {0}, lost = {0};
		int r = 0;

		for (int i = 0; i < 60; i++)
			assert_int_equal(operate(meta, &model), 0);
		assert_int_equal(thin_md_commit(meta, NULL), 0);
		thin_md_close(meta); /* with a cold cache there are reads to fail */
		assert_int_equal(open_meta(m, &meta), 0);
		model_copy(&lost, &model);
		m->fail_at = at;
		for (int i = 0; i < 30 && !r; i++)
			r = operate(meta, &lost);
		if (!r)
			r = thin_md_commit(meta, NULL);
		m->fail_at = 0;
		if (r) {
			assert_int_equal(r, -EIO);
			assert_int_equal(thin_md_abort(meta), 0);
			assert_int_equal(thin_md_set_needs_check(meta), 0);
		}
		thin_md_close(meta);
		check(m);
		assert_int_equal(open_meta(m, &meta), 0);
		thin_md_close(meta);
		model_clear(&model);
		model_clear(&lost);
		memdev_put(m);
	}
}

static void refuses_what_is_not_metadata(void **state)
{
	struct memdev *m = memdev_new(META_SECTORS);
	struct thin_md *meta;

	for (unsigned i = 0; i < 4096; i++)
		m->data[i] = rnd(256);
	assert_int_equal(open_meta(m, &meta), -ENOTBLK);
	memset(m->data, 0, 4096);
	m->sectors = 8;
	assert_int_equal(open_meta(m, &meta), -ENOSPC);
	m->sectors = 4;
	assert_int_equal(open_meta(m, &meta), -EIO);
	m->sectors = META_SECTORS;
	assert_int_equal(thin_md_open(&m->dev, 128, false, &meta_ops, NULL, &meta, NULL), -EPERM);
	meta = fresh(m);
	thin_md_close(meta);
	assert_int_equal(thin_md_open(&m->dev, 256, true, &meta_ops, NULL, &meta, NULL), -EINVAL);
	m->data[100] ^= 1;
	assert_int_equal(open_meta(m, &meta), -EILSEQ);
	memdev_put(m);
}

static uint64_t place_of(struct thin_dev *td, uint64_t block)
{
	struct thin_mapping m;

	assert_int_equal(thin_md_provision(td, block), 0);
	assert_int_equal(thin_md_find(td, block, &m), 0);
	return m.block;
}

/* Two volumes written in order, in parallel and a bit out of order: what is passed over is there for who is late. */
static void late_blocks_find_their_place(void **state)
{
	static const uint64_t order[] = {2, 0, 1, 6, 7, 5, 3, 4, 8};
	struct memdev *m = memdev_new(META_SECTORS);
	struct thin_md *meta = fresh(m);
	struct thin_dev *a, *b;
	uint64_t far, taken = 0;

	assert_int_equal(thin_md_create(meta, 0), 0);
	assert_int_equal(thin_md_create(meta, 1), 0);
	assert_int_equal(thin_md_open_device(meta, 0, &a), 0);
	assert_int_equal(thin_md_open_device(meta, 1, &b), 0);
	assert_int_equal(place_of(a, 1000), 0); /* nothing lies before it: those before it in the volume come after it */
	far = place_of(a, 50000);
	assert_int_equal(far, 1);
	for (unsigned i = 0; i < G_N_ELEMENTS(order); i++)
		assert_int_equal(place_of(a, 50001 + order[i]), far + 1 + order[i]);
	far = place_of(b, 7);
	for (unsigned i = 0; i < G_N_ELEMENTS(order); i++)
		assert_int_equal(place_of(b, 8 + order[i]), far + 1 + order[i]);
	place_of(b, 200); /* passes over many */
	while (!thin_md_provision(b, 1000000 + taken * 100000))
		taken++;
	assert_int_equal(thin_md_free_data(meta), 0); /* which are taken in the end */
	thin_md_close_device(a);
	thin_md_close_device(b);
	assert_int_equal(thin_md_commit(meta, NULL), 0);
	check(m);
	thin_md_close(meta);
	memdev_put(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_operations),
		cmocka_unit_test(late_blocks_find_their_place),
		cmocka_unit_test(abort_goes_back),
		cmocka_unit_test(crash_at_every_write),
		cmocka_unit_test(error_at_every_io),
		cmocka_unit_test(refuses_what_is_not_metadata),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
