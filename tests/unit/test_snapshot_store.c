/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The exception store's format, chunk arithmetic, commits, merges and bad input. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "../../targets/snapshot/store.h"
#include "ramdev.h"

#define CHUNK 1u     /* sectors: 32 exceptions an area */
#define PER_AREA 32u
#define SECTORS 400u

struct seen {
	uint64_t pairs[2][1000];
	unsigned n;
};

static int add(void *context, uint64_t old_chunk, uint64_t new_chunk)
{
	struct seen *s = context;

	for (unsigned i = 0; i < s->n; i++)
		if (s->pairs[0][i] == old_chunk)
			return -EEXIST;
	assert_true(s->n < 1000);
	s->pairs[0][s->n] = old_chunk;
	s->pairs[1][s->n++] = new_chunk;
	return 0;
}

static struct snap_store *open_store(struct ramdev *m, unsigned chunk, struct seen *seen, int *r)
{
	struct snap_store *st = snap_store_new(SNAP_PERSISTENT, &m->dev);
	struct snap_reader rd = {.origin_sectors = 100000, .add = add, .context = seen};
	g_autoptr(GError) err = NULL;

	seen->n = 0;
	*r = snap_store_open(st, chunk, &rd, &err);
	assert_int_equal(*r < 0, err != NULL);
	return st;
}

struct one {
	struct snap_commit c; /* first */
	int ok;               /* -1: not yet */
};

static void done(struct snap_commit *c, bool ok)
{
	((struct one *)c)->ok = ok;
}

static bool alloc_one(struct snap_store *st, struct one *o, uint64_t old_chunk)
{
	*o = (struct one){.c = {.old_chunk = old_chunk, .done = done}, .ok = -1};
	return !snap_alloc(st, &o->c);
}

static uint32_t le32(const struct ramdev *m, size_t at)
{
	uint32_t v;

	memcpy(&v, m->data + at, 4);
	return GUINT32_FROM_LE(v);
}

static uint64_t le64(const struct ramdev *m, size_t at)
{
	uint64_t v;

	memcpy(&v, m->data + at, 8);
	return GUINT64_FROM_LE(v);
}

static void put64(struct ramdev *m, size_t at, uint64_t v)
{
	v = GUINT64_TO_LE(v);
	memcpy(m->data + at, &v, 8);
}

static void the_format(void **state)
{
	struct ramdev m;
	struct seen seen;
	struct snap_store *st;
	struct one o;
	uint64_t allocated, total, metadata;
	int r;

	ramdev_init(&m, SECTORS, NULL, 0);
	st = open_store(&m, CHUNK, &seen, &r);
	assert_int_equal(r, 0);
	assert_int_equal(le32(&m, 0), 0x70416e53);
	assert_int_equal(le32(&m, 4), 1);
	assert_int_equal(le32(&m, 8), 1);
	assert_int_equal(le32(&m, 12), CHUNK);
	/* Header, area, 32 data chunks, area, ... */
	for (unsigned i = 0; i < 100; i++) {
		assert_true(alloc_one(st, &o, 1000 + i));
		assert_int_equal(o.c.new_chunk, 2 + i + i / PER_AREA);
		snap_commit(st, &o.c);
		assert_int_equal(o.ok, 1);
		size_t at = (1 + i / PER_AREA * (PER_AREA + 1)) * 512 + i % PER_AREA * 16;
		assert_int_equal(le64(&m, at), 1000 + i);
		assert_int_equal(le64(&m, at + 8), o.c.new_chunk);
	}
	snap_usage(st, &allocated, &total, &metadata);
	assert_int_equal(allocated, 105);
	assert_int_equal(total, SECTORS);
	assert_int_equal(metadata, 5);
	snap_store_free(st);

	st = open_store(&m, 0, &seen, &r);
	assert_int_equal(r, 0);
	assert_int_equal(seen.n, 100);
	for (unsigned i = 0; i < 100; i++) {
		assert_int_equal(seen.pairs[0][i], 1000 + i);
		assert_int_equal(seen.pairs[1][i], 2 + i + i / PER_AREA);
	}
	assert_true(alloc_one(st, &o, 5));
	assert_int_equal(o.c.new_chunk, 105);
	snap_commit(st, &o.c);
	snap_store_free(st);
	ramdev_clear(&m);
}

static void commits_keep_the_order_of_chunks(void **state)
{
	struct ramdev m;
	struct seen seen;
	struct one o[6];
	int r;
	struct snap_store *st;

	ramdev_init(&m, SECTORS, NULL, 0);
	st = open_store(&m, CHUNK, &seen, &r);
	for (unsigned i = 0; i < 6; i++)
		assert_true(alloc_one(st, &o[i], i));
	for (unsigned i = 5; i > 0; i--)
		snap_commit(st, &o[i].c);
	assert_int_equal(o[5].ok, -1); /* waits for those before it */
	m.flushes = 0;
	snap_commit(st, &o[0].c);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(o[i].ok, 1);
	assert_int_equal(m.flushes, 1); /* shared by all */
	snap_store_free(st);
	ramdev_clear(&m);
}

static void an_aborted_exception_fails_the_others(void **state)
{
	struct ramdev m;
	struct seen seen;
	struct one o[3];
	int r;
	struct snap_store *st;

	ramdev_init(&m, SECTORS, NULL, 0);
	st = open_store(&m, CHUNK, &seen, &r);
	for (unsigned i = 0; i < 3; i++)
		assert_true(alloc_one(st, &o[i], i));
	snap_commit(st, &o[2].c);
	snap_abort(st, &o[0].c);
	assert_int_equal(o[2].ok, 0);
	snap_commit(st, &o[1].c);
	assert_int_equal(o[1].ok, 0);
	snap_store_free(st);
	ramdev_clear(&m);
}

static void a_write_error_fails_the_commit(void **state)
{
	struct ramdev m;
	struct seen seen;
	struct one o;
	int r;
	struct snap_store *st;

	ramdev_init(&m, SECTORS, NULL, 0);
	st = open_store(&m, CHUNK, &seen, &r);
	m.fail_writes_after = m.writes;
	assert_true(alloc_one(st, &o, 1));
	snap_commit(st, &o.c);
	assert_int_equal(o.ok, 0);
	snap_store_free(st);
	ramdev_clear(&m);
}

static void an_area_is_not_filled_without_room_for_the_next(void **state)
{
	struct ramdev m;
	struct seen seen;
	struct one o;
	unsigned n = 0;
	int r;
	struct snap_store *st;

	ramdev_init(&m, 2 + PER_AREA, NULL, 0);
	st = open_store(&m, CHUNK, &seen, &r);
	for (; alloc_one(st, &o, n); n++)
		snap_commit(st, &o.c);
	assert_int_equal(n, PER_AREA - 1);
	snap_store_free(st);
	st = open_store(&m, 0, &seen, &r);
	assert_int_equal(r, 0);
	assert_int_equal(seen.n, PER_AREA - 1);
	snap_store_free(st);
	ramdev_clear(&m);
}

static void merging_takes_from_the_end(void **state)
{
	struct ramdev m;
	struct seen seen;
	struct one o;
	struct snap_pair pairs[PER_AREA];
	uint64_t allocated, total, metadata;
	unsigned left = 70;
	struct snap_store *st;
	int r, n;

	ramdev_init(&m, SECTORS, NULL, 0);
	st = open_store(&m, CHUNK, &seen, &r);
	for (unsigned i = 0; i < left; i++) {
		alloc_one(st, &o, i);
		snap_commit(st, &o.c);
	}
	while ((n = snap_merge_last(st, pairs, 5)) > 0) {
		assert_true((unsigned)n <= left);
		for (int i = 0; i < n; i++)
			assert_int_equal(pairs[i].old_chunk, left - (unsigned)n + (unsigned)i);
		assert_int_equal(snap_merge_forget(st, (unsigned)n), 0);
		left -= (unsigned)n;
		/* What power loss would leave is a good store at any time. */
		int r2;
		struct seen other;
		struct snap_store *copy = open_store(&m, 0, &other, &r2);

		assert_int_equal(r2, 0);
		assert_int_equal(other.n, left);
		snap_store_free(copy);
	}
	assert_int_equal(n, 0);
	assert_int_equal(left, 0);
	snap_usage(st, &allocated, &total, &metadata);
	assert_int_equal(allocated, metadata);
	assert_int_equal(metadata, 2);
	snap_store_free(st);
	ramdev_clear(&m);
}

static void a_torn_area_ends_at_its_first_gap(void **state)
{
	struct ramdev m;
	struct seen seen;
	struct one o;
	struct snap_store *st;
	int r;

	/* Chunks of 2 sectors: an area can be torn. */
	ramdev_init(&m, SECTORS, NULL, 0);
	st = open_store(&m, 2, &seen, &r);
	for (unsigned i = 0; i < 40; i++) {
		alloc_one(st, &o, i);
		snap_commit(st, &o.c);
	}
	snap_store_free(st);
	memset(m.data + 2 * 512 + 20 * 16, 0, 12 * 16); /* the first sector as it was before */
	st = open_store(&m, 0, &seen, &r);
	assert_int_equal(r, 0);
	assert_int_equal(seen.n, 20);
	/* A new exception must not bring the remains back. */
	for (unsigned i = 0; i < 13; i++) {
		alloc_one(st, &o, 100 + i);
		snap_commit(st, &o.c);
	}
	snap_store_free(st);
	st = open_store(&m, 0, &seen, &r);
	assert_int_equal(seen.n, 33);
	assert_int_equal(seen.pairs[0][32], 112);
	snap_store_free(st);
	ramdev_clear(&m);
}

static int open_changed(const struct ramdev *good, size_t at, uint64_t value, unsigned bytes, uint64_t sectors)
{
	struct ramdev m;
	struct seen seen;
	struct snap_store *st;
	int r;

	ramdev_init(&m, sectors, good->data, good->sectors * 512);
	if (bytes == 8)
		put64(&m, at, value);
	else if (bytes)
		memcpy(m.data + at, &(uint32_t){GUINT32_TO_LE((uint32_t)value)}, 4);
	st = open_store(&m, 0, &seen, &r);
	snap_store_free(st);
	ramdev_clear(&m);
	return r;
}

static void bad_stores_are_refused(void **state)
{
	struct ramdev m;
	struct seen seen;
	struct one o;
	struct snap_store *st;
	int r;

	ramdev_init(&m, SECTORS, NULL, 0);
	st = open_store(&m, CHUNK, &seen, &r);
	for (unsigned i = 0; i < 40; i++) {
		alloc_one(st, &o, i);
		snap_commit(st, &o.c);
	}
	snap_store_free(st);
	assert_int_equal(open_changed(&m, 0, 0, 0, SECTORS), 0);
	assert_int_equal(open_changed(&m, 0, 0x12345678, 4, SECTORS), -ENXIO);      /* foreign magic */
	assert_int_equal(open_changed(&m, 4, 0, 4, SECTORS), 1);                    /* marked invalid */
	assert_int_equal(open_changed(&m, 8, 2, 4, SECTORS), -EINVAL);              /* version */
	assert_int_equal(open_changed(&m, 12, 0, 4, SECTORS), -EINVAL);             /* chunk sizes */
	assert_int_equal(open_changed(&m, 12, 3, 4, SECTORS), -EINVAL);
	assert_int_equal(open_changed(&m, 12, 1u << 31, 4, SECTORS), -EINVAL);
	assert_int_equal(open_changed(&m, 12, 256, 4, SECTORS), -EINVAL);           /* larger than the device */
	assert_int_equal(open_changed(&m, 512, 100000, 8, SECTORS), -EINVAL);       /* old chunk outside */
	assert_int_equal(open_changed(&m, 512, UINT64_MAX, 8, SECTORS), -EINVAL);
	assert_int_equal(open_changed(&m, 512, 7, 8, SECTORS), -EINVAL);            /* twice the same */
	assert_int_equal(open_changed(&m, 520, SECTORS, 8, SECTORS), -EINVAL);      /* new chunk outside */
	assert_int_equal(open_changed(&m, 520, UINT64_MAX, 8, SECTORS), -EINVAL);
	assert_int_equal(open_changed(&m, 520, 3, 8, SECTORS), -EINVAL);            /* of another exception */
	assert_int_equal(open_changed(&m, 520, 34, 8, SECTORS), -EINVAL);           /* metadata */
	assert_int_equal(open_changed(&m, 520, 1, 8, SECTORS), -EINVAL);
	assert_int_equal(open_changed(&m, 0, 0, 0, 34), -EINVAL);                   /* cut short */
	assert_int_equal(open_changed(&m, 0, 0, 0, 1), -EINVAL);
	assert_int_equal(open_changed(&m, 0, 0, 0, 0), -EINVAL);
	ramdev_clear(&m);
}

static struct ramdev marked_store;

static void a_marked_store_is_invalid(void **state)
{
	struct seen seen;
	struct one o;
	struct snap_store *st;
	int r;

	ramdev_init(&marked_store, SECTORS, NULL, 0);
	st = open_store(&marked_store, CHUNK, &seen, &r);
	alloc_one(st, &o, 1);
	snap_store_fail(st);
	assert_int_equal(snap_store_mark(st), 0);
	snap_commit(st, &o.c);
	assert_int_equal(o.ok, 0);
	snap_store_free(st);
	st = open_store(&marked_store, CHUNK, &seen, &r);
	assert_int_equal(r, 1);
	snap_store_free(st);
	ramdev_clear(&marked_store);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_format),
		cmocka_unit_test(commits_keep_the_order_of_chunks),
		cmocka_unit_test(an_aborted_exception_fails_the_others),
		cmocka_unit_test(a_write_error_fails_the_commit),
		cmocka_unit_test(an_area_is_not_filled_without_room_for_the_next),
		cmocka_unit_test(merging_takes_from_the_end),
		cmocka_unit_test(a_torn_area_ends_at_its_first_gap),
		cmocka_unit_test(bad_stores_are_refused),
		cmocka_unit_test(a_marked_store_is_invalid),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
