/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * cache's metadata against a model: mappings, dirty bits, hints, discards, growth, crashes, and an error at every I/O.
 */
#include "unit.h"

#include <dmfs/le.h>

#include "memdev.h"

#include "targets/cache/metadata.h"

#define SECTORS 2048u
#define BLOCKS 700u
#define NONE UINT64_MAX

static const struct cache_meta_policy policy = {.name = "smq", .version = {2, 0, 0}, .hint_bytes = 4};

static unsigned rnd(unsigned n)
{
	static uint64_t seed = 88172645463325252;

	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (unsigned)(seed % n);
}

struct model {
	uint64_t oblock[BLOCKS];
	bool dirty[BLOCKS], discarded[300];
	uint32_t hint[BLOCKS];
	unsigned with_hint;
};

static struct cache_meta *open_meta(struct memdev *m, unsigned version)
{
	struct cache_meta *meta;

	assert_int_equal(cache_meta_open(&m->dev, 64, version, &meta, NULL), 0);
	return meta;
}

static struct cache_meta *start(struct memdev *m, unsigned version, struct model *model)
{
	struct cache_meta *meta = open_meta(m, version);

	memset(model, 0, sizeof *model);
	memset(model->oblock, 0xff, sizeof model->oblock);
	assert_int_equal(cache_meta_blocks(meta), 0);
	assert_true(cache_meta_clean(meta));
	assert_int_equal(cache_meta_resize(meta, BLOCKS), 0);
	assert_int_equal(cache_meta_commit(meta, false), 0);
	return meta;
}

static int load_one(void *context, uint32_t cblock, uint64_t oblock, bool dirty, const void *hint)
{
	struct model *got = context;

	assert_true(cblock < BLOCKS);
	got->oblock[cblock] = oblock;
	got->dirty[cblock] = dirty;
	got->hint[cblock] = hint ? get_le32(hint) : 0;
	got->with_hint += hint != NULL;
	return 0;
}

static void load_discard(void *context, uint64_t sector, uint64_t sectors)
{
	struct model *got = context;

	assert_int_equal(sectors, 128);
	got->discarded[sector / 128] = true;
}

static void load(struct cache_meta *meta, struct model *got)
{
	memset(got, 0, sizeof *got);
	memset(got->oblock, 0xff, sizeof got->oblock);
	assert_int_equal(cache_meta_load(meta, &policy, load_one, got), 0);
	assert_int_equal(cache_meta_load_discards(meta, load_discard, got), 0);
}

static bool is_dirty(void *context, uint32_t cblock)
{
	return ((struct model *)context)->dirty[cblock];
}

static bool is_discarded(void *context, uint32_t dblock)
{
	return ((struct model *)context)->discarded[dblock];
}

static void hint_of(void *context, uint32_t cblock, void *out)
{
	put_le32(out, ((struct model *)context)->hint[cblock]);
}

static int end_cleanly(struct cache_meta *meta, struct model *model)
{
	int r = cache_meta_write_dirty(meta, is_dirty, model);

	if (!r)
		r = cache_meta_write_discards(meta, 128, G_N_ELEMENTS(model->discarded), is_discarded, model);
	if (!r)
		r = cache_meta_write_hints(meta, &policy, hint_of, model);
	return r ? r : cache_meta_commit(meta, true);
}

static void change(struct cache_meta *meta, struct model *model)
{
	for (unsigned i = 0; i < 60; i++) {
		uint32_t c = rnd(BLOCKS);

		if (model->oblock[c] == NONE) {
			model->oblock[c] = (uint64_t)rnd(1 << 30) << 10 | c;
			model->hint[c] = rnd(64);
			assert_int_equal(cache_meta_insert(meta, c, model->oblock[c]), 0);
		} else {
			model->oblock[c] = NONE;
			model->hint[c] = 0;
			assert_int_equal(cache_meta_remove(meta, c), 0);
		}
		model->dirty[c] = model->oblock[c] != NONE && rnd(2);
		model->discarded[rnd(G_N_ELEMENTS(model->discarded))] = rnd(2);
	}
}

static void test_clean_ends_and_crashes(void **state)
{
	for (unsigned version = 1; version <= 2; version++) {
		struct memdev *m = memdev_new(SECTORS);
		struct model model, got, committed;
		struct cache_meta *meta = start(m, version, &model);

		for (unsigned round = 0; round < 30; round++) {
			bool clean = rnd(2);

			change(meta, &model);
			assert_true(cache_meta_changed(meta));
			assert_int_equal(clean ? end_cleanly(meta, &model) : cache_meta_commit(meta, false), 0);
			assert_false(cache_meta_changed(meta));
			committed = model;
			if (!clean)
				change(meta, &model); /* and this is lost */
			cache_meta_close(meta);
			meta = open_meta(m, 3 - version); /* an old one stays what it is */
			assert_int_equal(cache_meta_version(meta), version);
			assert_int_equal(cache_meta_blocks(meta), BLOCKS);
			assert_int_equal(cache_meta_clean(meta), clean);
			load(meta, &got);
			model = committed;
			assert_memory_equal(got.oblock, model.oblock, sizeof got.oblock);
			for (unsigned i = 0; i < BLOCKS; i++) {
				bool there = model.oblock[i] != NONE;

				assert_int_equal(got.dirty[i], there && (!clean || model.dirty[i]));
				assert_int_equal(got.hint[i], clean && there ? model.hint[i] : 0);
			}
			for (unsigned i = 0; i < G_N_ELEMENTS(model.discarded); i++)
				assert_int_equal(got.discarded[i], clean && model.discarded[i]);
			assert_int_equal(cache_meta_commit(meta, false), 0);
		}
		cache_meta_close(meta);
		memdev_put(m);
	}
}

static void test_hints_of_others_do_not_count(void **state)
{
	struct memdev *m = memdev_new(SECTORS);
	struct cache_meta_policy other = policy;
	struct model model, got;
	struct cache_meta *meta = start(m, 1, &model);

	change(meta, &model);
	assert_int_equal(end_cleanly(meta, &model), 0);
	cache_meta_close(meta);
	meta = open_meta(m, 1);
	load(meta, &got);
	assert_true(got.with_hint > 0);
	got.with_hint = 0;
	g_strlcpy(other.name, "cleaner", sizeof other.name);
	assert_int_equal(cache_meta_load(meta, &other, load_one, &got), 0);
	assert_int_equal(got.with_hint, 0);
	other = policy;
	other.version[0]++;
	assert_int_equal(cache_meta_load(meta, &other, load_one, &got), 0);
	assert_int_equal(got.with_hint, 0);
	cache_meta_close(meta);
	memdev_put(m);
}

static void test_counters_and_sizes(void **state)
{
	struct cache_meta_counters n = {1, 2, 3, UINT32_MAX}, back;
	struct memdev *m = memdev_new(SECTORS);
	struct model model, got;
	struct cache_meta *meta = start(m, 2, &model);
	g_autoptr(GError) err = NULL;

	cache_meta_set_counters(meta, &n);
	assert_int_equal(cache_meta_insert(meta, BLOCKS - 1, CACHE_MD_MAX_OBLOCK), 0);
	assert_int_equal(cache_meta_insert(meta, 3, 77), 0);
	assert_int_equal(end_cleanly(meta, &model), 0);
	cache_meta_close(meta);
	assert_int_equal(cache_meta_open(&m->dev, 128, 2, &meta, &err), -EINVAL);
	assert_non_null(strstr(err->message, "64"));
	meta = open_meta(m, 2);
	cache_meta_counters(meta, &back);
	assert_memory_equal(&n, &back, sizeof n);
	load(meta, &got);
	assert_true(got.oblock[BLOCKS - 1] == CACHE_MD_MAX_OBLOCK);
	assert_int_equal(cache_meta_resize(meta, 10), 0);
	assert_int_equal(cache_meta_resize(meta, BLOCKS), 0);
	assert_int_equal(cache_meta_commit(meta, false), 0);
	load(meta, &got);
	assert_true(got.oblock[BLOCKS - 1] == NONE);
	assert_true(got.oblock[3] == 77);
	cache_meta_close(meta);
	memdev_put(m);
}

/* What fails breaks it; what has been committed stays, and the flag gets to the disk if the disk is willing again. */
static void test_an_error_at_every_io(void **state)
{
	bool failed = true;

	for (uint64_t at = 1; failed; at++) {
		struct memdev *m = memdev_new(SECTORS);
		struct model model, got;
		struct cache_meta *meta = start(m, 1 + at % 2, &model);
		int r;

		change(meta, &model);
		assert_int_equal(cache_meta_commit(meta, false), 0);
		m->fail_at = at;
		m->fail_error = -EIO;
		r = cache_meta_insert(meta, 0, 1);
		if (!r)
			r = end_cleanly(meta, &model);
		failed = r != 0;
		m->fail_at = 0;
		if (failed) {
			assert_int_equal(cache_meta_broken(meta), true);
			assert_int_equal(cache_meta_commit(meta, false), -EIO);
			assert_int_equal(cache_meta_insert(meta, 1, 1), -EIO);
			assert_int_equal(cache_meta_abort(meta), 0);
			assert_true(cache_meta_needs_check(meta));
			cache_meta_close(meta);
			meta = open_meta(m, 1);
			assert_true(cache_meta_needs_check(meta));
			load(meta, &got);
			model.oblock[0] = got.oblock[0];
			assert_memory_equal(got.oblock, model.oblock, sizeof got.oblock);
		}
		cache_meta_close(meta);
		memdev_put(m);
	}
}

static void test_foreign_and_damaged(void **state)
{
	static const unsigned places[] = {0, 9, 32, 40, 192, 3000};
	struct memdev *m = memdev_new(SECTORS), *small = memdev_new(8);
	struct model model;
	struct cache_meta *meta = start(m, 1, &model);

	assert_int_equal(cache_meta_commit(meta, true), 0);
	cache_meta_close(meta);
	for (unsigned i = 0; i < G_N_ELEMENTS(places); i++) {
		m->data[places[i]] ^= 1;
		assert_true(cache_meta_open(&m->dev, 64, 1, &meta, NULL) < 0);
		m->data[places[i]] ^= 1;
	}
	cache_meta_close(open_meta(m, 1));
	assert_true(cache_meta_open(&small->dev, 64, 1, &meta, NULL) < 0);
	memdev_put(small);
	memdev_put(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_clean_ends_and_crashes),
		cmocka_unit_test(test_hints_of_others_do_not_count),
		cmocka_unit_test(test_counters_and_sizes),
		cmocka_unit_test(test_an_error_at_every_io),
		cmocka_unit_test(test_foreign_and_damaged),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
