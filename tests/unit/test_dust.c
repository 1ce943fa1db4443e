/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dust: the set of bad blocks against a model and under readers, and the target under load. */
#include "device.h"

#include "targets/dust/blocks.h"
#include "targets/list.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static int setup(void **state)
{
	dm_register_targets(dm_target_list);
	return 0;
}

static int teardown(void **state)
{
	dm_remove_all();
	unit_files_close();
	return 0;
}

static uint64_t rnd(uint64_t *seed)
{
	uint64_t x = *seed += 0x9e3779b97f4a7c15u;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

/* --- the set -------------------------------------------------------------------------- */

static void check_all(struct bad_blocks *b, const uint8_t *model, unsigned n, uint64_t base)
{
	g_autoptr(GArray) list = bad_blocks_list(b);
	unsigned at = 0;

	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(bad_blocks_any(b, base + i, base + i), model[i] != 0);
		assert_int_equal(bad_blocks_fail_count(b, base + i), model[i] ? model[i] - 1 : 0);
		if (model[i])
			assert_true(at < list->len && g_array_index(list, uint64_t, at++) == base + i);
	}
	assert_int_equal(at, list->len);
	assert_int_equal(bad_blocks_count(b), list->len);
}

static void against_model(uint64_t base)
{
	enum { N = 3000 };
	g_autofree uint8_t *model = g_new0(uint8_t, N); /* 0: good; else fail count + 1 */
	struct bad_blocks b;
	uint64_t seed = base;

	bad_blocks_init(&b);
	for (unsigned step = 0; step < 60000; step++) {
		uint64_t r = rnd(&seed);
		unsigned i = (unsigned)(r % N), what = r >> 32 & 15;

		if (what < 5 + (step / 10000 % 2) * 6) {
			unsigned count = r >> 40 & 3;

			bad_blocks_add(&b, base + i, (uint8_t)count);
			model[i] = (uint8_t)(count + 1);
		} else if (what < 15) {
			bad_blocks_remove(&b, base + i);
			model[i] = 0;
		} else {
			unsigned last = i + (r >> 50) % (N - i);
			bool any = false;

			for (unsigned k = i; k <= last && !any; k++)
				any = model[k];
			assert_int_equal(bad_blocks_any(&b, base + i, base + last), any);
		}
		if (step % 20000 == 19999) {
			check_all(&b, model, N, base);
			bad_blocks_trim(&b);
			check_all(&b, model, N, base);
		}
	}
	bad_blocks_clear(&b);
	memset(model, 0, N);
	check_all(&b, model, N, base);
	bad_blocks_trim(&b);
	check_all(&b, model, N, base);
	bad_blocks_destroy(&b);
}

static void test_set_is_what_a_model_is(void **state)
{
	against_model(0);
	against_model(1000003);
	against_model(((uint64_t)1 << 54) - 1500); /* about the largest block there can be */
}

static void test_a_million_apart(void **state)
{
	struct bad_blocks b;
	uint64_t seed = 1;

	bad_blocks_init(&b);
	for (unsigned i = 0; i < 1000000; i++)
		bad_blocks_add(&b, (uint64_t)i * 20011 + 5, 0);
	assert_int_equal(bad_blocks_count(&b), 1000000);
	for (unsigned i = 0; i < 1000000; i++) {
		uint64_t block = (uint64_t)(rnd(&seed) % 999999) * 20011;

		assert_true(bad_blocks_any(&b, block + 5, block + 5));
		assert_false(bad_blocks_any(&b, block + 6, block + 2000));
		assert_true(bad_blocks_any(&b, block + 6, block + 20016));
	}
	for (unsigned i = 0; i < 1000000; i++)
		bad_blocks_remove(&b, (uint64_t)i * 20011 + 5);
	assert_int_equal(bad_blocks_count(&b), 0);
	bad_blocks_destroy(&b);
}

/* --- readers meet writers --------------------------------------------------------------- */

#define FIXED 37u /* every FIXED-th block stays bad, the one behind it stays good, others come and go */

static struct bad_blocks shared;
static atomic_bool over;

static void *read_set(void *data)
{
	uint64_t seed = (uintptr_t)data, looked = 0;

	while (!atomic_load(&over)) {
		uint64_t block = rnd(&seed) % 2000 * FIXED;

		assert_true(bad_blocks_any(&shared, block, block));
		assert_false(bad_blocks_any(&shared, block + 1, block + 1));
		looked++;
	}
	return (void *)(uintptr_t)looked;
}

static void test_readers_meet_writers(void **state)
{
	pthread_t readers[3];
	uint64_t seed = 7;

	bad_blocks_init(&shared);
	atomic_store(&over, false);
	for (unsigned i = 0; i < 2000; i++)
		bad_blocks_add(&shared, i * FIXED, 0);
	for (uintptr_t i = 0; i < 3; i++)
		pthread_create(&readers[i], NULL, read_set, (void *)(i + 1));
	/* groups that come and go: the table is rebuilt in place, again and again */
	for (unsigned round = 0; round < 300; round++) {
		uint64_t from = 100000 + rnd(&seed) % 1000000000;

		for (unsigned i = 0; i < 1000; i++)
			bad_blocks_add(&shared, from + i * 64, 0);
		for (unsigned i = 0; i < 1000; i++)
			bad_blocks_remove(&shared, from + i * 64);
		bad_blocks_add(&shared, rnd(&seed) % 2000 * FIXED + 2, 0);
	}
	atomic_store(&over, true);
	for (unsigned i = 0; i < 3; i++)
		pthread_join(readers[i], NULL);
	bad_blocks_destroy(&shared);
}

/* --- the target -------------------------------------------------------------------------- */

static void *write_blocks(void *data)
{
	struct dm_mapped *md = data;
	char buf[8 * 512];

	memset(buf, 7, sizeof buf);
	for (unsigned i = 0; i < 4000; i++)
		assert_int_equal(dm_write_sync(&md->dev, i * 13 % 1000, 8, buf, 0), 0);
	return NULL;
}

/* Every write succeeds and makes good what a message makes bad; at the end what is listed is bad, and nothing else. */
static void test_messages_under_load(void **state)
{
	struct dm_mapped *md = unit_device("d", "0 1024 dust %s 0 512", unit_file(1024));
	g_autofree char *list = NULL;
	g_auto(GStrv) listed = NULL;
	bool bad[1024] = {false};
	pthread_t writers[3];
	char buf[512], text[64];
	unsigned n = 0;

	assert_int_equal(unit_message(md, "quiet", NULL), 0);
	assert_int_equal(unit_message(md, "enable", NULL), 0);
	for (unsigned i = 0; i < 3; i++)
		pthread_create(&writers[i], NULL, write_blocks, md);
	for (unsigned i = 0; i < 6000; i++) {
		snprintf(text, sizeof text, i % 5 == 4 ? "removebadblock %u" : "addbadblock %u", i * 7 % 1020);
		unit_message(md, text, NULL); /* it may be there, or not, already */
	}
	for (unsigned i = 0; i < 3; i++)
		pthread_join(writers[i], NULL);
	for (unsigned i = 0; i < 20; i++) {
		snprintf(text, sizeof text, "addbadblock %u", 1000 + i);
		unit_message(md, text, NULL);
	}
	assert_int_equal(unit_message(md, "listbadblocks", &list), 0);
	listed = g_strsplit(list, "\n", -1);
	for (unsigned i = 0; listed[i] && *listed[i]; i++, n++)
		bad[atoi(listed[i])] = true;
	assert_true(n >= 20);
	for (unsigned i = 0; i < 1024; i++)
		assert_int_equal(dm_read_sync(&md->dev, i, 1, buf, 0), bad[i] ? -EIO : 0);
	unit_remove(md);
}

static void test_a_hole_with_bad_blocks_is_none(void **state)
{
	struct dm_mapped *md = unit_device("d", "0 1024 dust %s 0 512", unit_file(1024));
	struct dm_extent extent;

	assert_int_equal(dm_dev_extent(&md->dev, 0, 1024, &extent), 0);
	assert_false(extent.data);
	assert_int_equal(unit_message(md, "addbadblock 5", NULL), 0);
	assert_int_equal(unit_message(md, "enable", NULL), 0);
	assert_int_equal(dm_dev_extent(&md->dev, 0, 1024, &extent), 0);
	assert_true(extent.data);
	unit_remove(md);
}

/* The whole of a write of many pieces, with bad ones at its begin, middle and end, and pieces of several iovecs. */
static void test_good_pieces_are_written(void **state)
{
	const char *file = unit_file(64);
	struct dm_mapped *md = unit_device("d", "0 64 dust %s 0 512", file), *under;
	char data[16 * 512], seen[16 * 512];
	struct iovec iov[3] = {{data, 700}, {data + 700, 5000}, {data + 5700, sizeof data - 5700}};
	struct dm_region where = {&md->dev, 8, 16};

	for (unsigned i = 0; i < 16; i++)
		memset(data + i * 512, 'a' + (int)i, 512);
	assert_int_equal(unit_message(md, "addbadblock 8 1", NULL), 0);
	assert_int_equal(unit_message(md, "addbadblock 15 2", NULL), 0);
	assert_int_equal(unit_message(md, "addbadblock 16 1", NULL), 0);
	assert_int_equal(unit_message(md, "addbadblock 23 1", NULL), 0);
	assert_int_equal(unit_message(md, "addbadblock 20", NULL), 0);
	assert_int_equal(unit_message(md, "enable", NULL), 0);
	assert_int_equal(dm_io_sync(DM_WRITE, 0, 1, &where, iov, 3, NULL), -EIO);
	under = unit_device("under", "0 64 linear %s 0", file);
	assert_int_equal(dm_read_sync(&under->dev, 8, 16, seen, 0), 0);
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(seen[i * 512 + 511], i == 0 || i == 7 || i == 8 || i == 15 ? 0 : 'a' + (int)i);
	assert_int_equal(dm_io_sync(DM_WRITE, 0, 1, &where, iov, 3, NULL), -EIO); /* block 15 once more */
	assert_int_equal(dm_io_sync(DM_WRITE, 0, 1, &where, iov, 3, NULL), 0);
	assert_int_equal(dm_read_sync(&under->dev, 8, 16, seen, 0), 0);
	assert_memory_equal(seen, data, sizeof data);
	unit_remove(under);
	unit_remove(md);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_set_is_what_a_model_is),
		cmocka_unit_test(test_a_million_apart),
		cmocka_unit_test(test_readers_meet_writers),
		cmocka_unit_test(test_messages_under_load),
		cmocka_unit_test(test_a_hole_with_bad_blocks_is_none),
		cmocka_unit_test(test_good_pieces_are_written),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
