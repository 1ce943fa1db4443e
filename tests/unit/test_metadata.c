/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Metadata devices alone: what a superblock's head must be, formatting only what is blank, commits and what is lost
 * without, metadata snapshots.  The format here has one tree, of numbers.
 */
#include <string.h>

#include "unit.h"

#include <dmfs/container_of.h>
#include <dmfs/le.h>
#include <dmfs/metadata.h>

#include "memdev.h"

#define SECTORS 1024u
#define SEED 4711u
#define ROOT_AT 200
#define SIZE_AT 208
#define SECRET_AT 216

struct numbers {
	struct dm_md md;
	struct dm_btree_info info;
	dm_block_t root;
	uint32_t size; /* that is wanted */
	unsigned prepared;
};

static int read_sb(struct dm_md *md, const uint8_t *sb, GError **err)
{
	struct numbers *n = container_of(md, struct numbers, md);

	n->root = get_le64(sb + ROOT_AT);
	if (get_le32(sb + SIZE_AT) == n->size)
		return 0;
	return dm_fail(err, EINVAL, "numbers: size %u, wanted %u", get_le32(sb + SIZE_AT), n->size);
}

static int begin(struct dm_md *md, const uint8_t *sb)
{
	struct numbers *n = container_of(md, struct numbers, md);

	n->info = (struct dm_btree_info){.tm = md->tm, .levels = 1, .vt = {.size = 8}};
	return sb ? 0 : dm_btree_empty(&n->info, &n->root);
}

static int prepare(struct dm_md *md)
{
	container_of(md, struct numbers, md)->prepared++;
	return 0;
}

static void fill(struct dm_md *md, uint8_t *sb)
{
	struct numbers *n = container_of(md, struct numbers, md);

	put_le64(sb + ROOT_AT, n->root);
	put_le32(sb + SIZE_AT, n->size);
	put_le64(sb + SECRET_AT, 42);
}

static const struct dm_md_format format = {
	.name = "numbers",
	.magic = 0x123456789abcdef,
	.seed = SEED,
	.min_version = 2,
	.max_version = 3,
	.sm_root = 64,
	.cache_bytes = 1u << 20,
	.read = read_sb,
	.begin = begin,
	.prepare = prepare,
	.fill = fill,
};

static int open_numbers(struct numbers *n, struct memdev *m, bool may_format, bool *fresh, GError **err)
{
	*n = (struct numbers){.size = 7};
	dm_md_init(&n->md, &format, &m->dev, 3);
	return dm_md_open(&n->md, may_format, fresh, err);
}

static void insert(struct numbers *n, uint64_t key, uint64_t value)
{
	assert_int_equal(dm_btree_insert(&n->info, n->root, &key, &value, &n->root, NULL), 0);
}

static bool has(struct numbers *n, dm_block_t root, uint64_t key)
{
	uint64_t value;
	int r = dm_btree_lookup(&n->info, root, &key, &value);

	assert_true(!r || r == -ENODATA);
	return !r;
}

/* --- tests ----------------------------------------------------------------------------------- */

static void only_what_is_blank_is_formatted(void **state)
{
	struct memdev *m = memdev_new(SECTORS);
	struct numbers n;
	bool fresh;

	assert_int_equal(open_numbers(&n, m, false, &fresh, NULL), -EPERM);
	assert_true(fresh);
	dm_md_close(&n.md);
	assert_int_equal(m->writes, 0);
	assert_int_equal(open_numbers(&n, m, true, &fresh, NULL), 0);
	assert_true(fresh);
	assert_int_equal(n.prepared, 1);
	dm_md_close(&n.md);
	assert_int_equal(get_le64(m->data + 8), 0);
	assert_int_equal(get_le64(m->data + 32), format.magic);
	assert_int_equal(get_le32(m->data + 40), 3);
	assert_int_equal(open_numbers(&n, m, false, &fresh, NULL), 0);
	assert_false(fresh);
	dm_md_close(&n.md);
	m->data[4095] = 1;
	memset(m->data, 0, 4095);
	assert_int_equal(open_numbers(&n, m, true, &fresh, NULL), -EILSEQ);
	assert_false(fresh);
	dm_md_close(&n.md);
	dm_md_close(&n.md); /* again does nothing */
	memdev_put(m);
}

/* Changes four bytes of the superblock, behind a good checksum or not, and opens it. */
static int open_damaged(size_t at, uint32_t value, bool sum)
{
	struct memdev *m = memdev_new(SECTORS);
	struct numbers n;
	bool fresh;
	int r;

	assert_int_equal(open_numbers(&n, m, true, &fresh, NULL), 0);
	dm_md_close(&n.md);
	put_le32(m->data + at, value);
	if (sum)
		put_le32(m->data, dm_bm_checksum(m->data + 4, 4092, SEED));
	r = open_numbers(&n, m, true, &fresh, NULL);
	assert_false(fresh);
	dm_md_close(&n.md);
	memdev_put(m);
	return r;
}

static void a_head_is_looked_at(void **state)
{
	assert_int_equal(open_damaged(16, 99, true), 0); /* the uuid */
	assert_int_equal(open_damaged(16, 99, false), -EILSEQ);
	assert_int_equal(open_damaged(8, 1, true), -ENOTBLK);
	assert_int_equal(open_damaged(32, 1, true), -EILSEQ);
	assert_int_equal(open_damaged(40, 1, true), -EINVAL);
	assert_int_equal(open_damaged(40, 2, true), 0);
	assert_int_equal(open_damaged(40, 4, true), -EINVAL);
	assert_int_equal(open_damaged(SIZE_AT, 8, true), -EINVAL);
	assert_true(open_damaged(64, UINT32_MAX, true) < 0); /* the space map's root */
}

static void what_is_not_wanted_says_why(void **state)
{
	struct memdev *m = memdev_new(SECTORS);
	g_autoptr(GError) err = NULL;
	struct numbers n;
	bool fresh;

	assert_int_equal(open_numbers(&n, m, true, &fresh, NULL), 0);
	n.size = 8;
	assert_int_equal(dm_md_commit(&n.md), 0);
	dm_md_close(&n.md);
	assert_int_equal(open_numbers(&n, m, true, &fresh, &err), -EINVAL);
	assert_string_equal(err->message, "numbers: size 8, wanted 7");
	dm_md_close(&n.md);
	memdev_put(m);
}

static void a_commit_keeps_and_the_rest_is_lost(void **state)
{
	struct memdev *m = memdev_new(SECTORS);
	uint64_t used, total, before;
	struct numbers n;
	bool fresh;

	assert_int_equal(open_numbers(&n, m, true, &fresh, NULL), 0);
	dm_md_usage(&n.md, &before, &total);
	assert_int_equal(total, SECTORS / 8);
	for (uint64_t i = 0; i < 1000; i++)
		insert(&n, i, i);
	dm_md_usage(&n.md, &used, &total);
	assert_int_equal(used, before);
	n.md.flags = 5;
	assert_int_equal(dm_md_commit(&n.md), 0);
	assert_int_equal(n.prepared, 2);
	dm_md_usage(&n.md, &used, &total);
	assert_true(used > before);
	insert(&n, 1000, 1);
	dm_md_close(&n.md);
	assert_int_equal(open_numbers(&n, m, true, &fresh, NULL), 0);
	assert_int_equal(n.md.flags, 5);
	assert_int_equal(n.md.version, 3);
	dm_md_usage(&n.md, &before, &total);
	assert_int_equal(used, before);
	assert_true(has(&n, n.root, 999));
	assert_false(has(&n, n.root, 1000));
	dm_md_close(&n.md);
	memdev_put(m);
}

static void edit(uint8_t *sb)
{
	put_le64(sb + SECRET_AT, 0);
}

static void a_snapshot_stays_as_it_was(void **state)
{
	struct memdev *m = memdev_new(SECTORS);
	struct numbers n;
	const struct dm_md_root roots[] = {{ROOT_AT, &n.info}};
	dm_block_t held = 0, where;
	uint64_t before, used, total;
	uint8_t *copy;
	bool fresh;

	assert_int_equal(open_numbers(&n, m, true, &fresh, NULL), 0);
	insert(&n, 1, 1);
	assert_int_equal(dm_md_commit(&n.md), 0);
	dm_md_usage(&n.md, &before, &total);
	assert_int_equal(dm_md_hold(&n.md, roots, 1, edit, &held), 0);
	insert(&n, 2, 2);
	assert_int_equal(dm_md_commit(&n.md), 0);
	where = held;
	copy = m->data + where * DM_META_BLOCK_SIZE;
	assert_int_equal(get_le64(copy + 8), where);
	assert_int_equal(get_le64(copy + SECRET_AT), 0);
	assert_int_equal(get_le64(m->data + SECRET_AT), 42);
	assert_true(has(&n, get_le64(copy + ROOT_AT), 1));
	assert_false(has(&n, get_le64(copy + ROOT_AT), 2));
	assert_int_equal(dm_md_release(&n.md, roots, 1, &held), 0);
	assert_int_equal(held, 0);
	assert_int_equal(dm_md_commit(&n.md), 0);
	dm_md_usage(&n.md, &used, &total);
	assert_int_equal(used, before);
	assert_true(has(&n, n.root, 2));
	held = 99; /* which is none */
	assert_true(dm_md_release(&n.md, roots, 1, &held) < 0);
	assert_int_equal(held, 99);
	dm_md_close(&n.md);
	memdev_put(m);
}

/* Of any I/O of a commit: it is told, and what the last one wrote can be read. */
static void errors_leave_the_last_commit(void **state)
{
	for (uint64_t at = 1;; at++) {
		struct memdev *m = memdev_new(SECTORS);
		struct numbers n;
		bool fresh;
		int r;

		assert_int_equal(open_numbers(&n, m, true, &fresh, NULL), 0);
		insert(&n, 1, 1);
		assert_int_equal(dm_md_commit(&n.md), 0);
		insert(&n, 2, 2);
		m->fail_at = at;
		m->fail_error = -EIO;
		r = dm_md_commit(&n.md);
		m->fail_at = 0;
		dm_md_close(&n.md);
		assert_int_equal(open_numbers(&n, m, true, &fresh, NULL), 0);
		assert_true(has(&n, n.root, 1));
		if (!r)
			assert_true(has(&n, n.root, 2));
		dm_md_close(&n.md);
		memdev_put(m);
		if (!r)
			break;
		assert_int_equal(r, -EIO);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_what_is_blank_is_formatted),
		cmocka_unit_test(a_head_is_looked_at),
		cmocka_unit_test(what_is_not_wanted_says_why),
		cmocka_unit_test(a_commit_keeps_and_the_rest_is_lost),
		cmocka_unit_test(a_snapshot_stays_as_it_was),
		cmocka_unit_test(errors_leave_the_last_commit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
