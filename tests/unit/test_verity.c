/* SPDX-License-Identifier: GPL-2.0-or-later */
/* verity's parts: the layout, the bits of check_at_most_once, the cache of hash blocks, its limit. */
#include "unit.h"

#include <dmfs/io.h>
#include <dmfs/target.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../targets/verity/verity.h"
#include "memdev.h"

static struct verity_format make_format(unsigned version, unsigned data_block, unsigned hash_block, uint64_t blocks,
					uint64_t start, const char *hash)
{
	struct verity_format f = {.version = version, .data_block = data_block, .hash_block = hash_block,
				  .data_blocks = blocks, .hash_start = start};

	assert_int_equal(dm_hash_new(hash, &f.hash, NULL), 0);
	return f;
}

/* --- the layout --------------------------------------------------------------------------------------- */

static void test_layout(void **state)
{
	struct verity_format f = make_format(1, 4096, 4096, 262144, 1, "sha256");
	uint64_t block, index;
	unsigned level;
	size_t offset;

	assert_int_equal(verity_format_prepare(&f, NULL), 0);
	assert_int_equal(f.levels, 3); /* 262144 / 128 = 2048, 16, 1 */
	assert_int_equal(f.level_start[2], 1);
	assert_int_equal(f.level_start[1], 2);
	assert_int_equal(f.level_start[0], 18);
	assert_int_equal(f.hash_end, 18 + 2048);
	verity_digest_place(&f, 0, 129, &block, &offset);
	assert_int_equal(block, 19);
	assert_int_equal(offset, 32);
	verity_digest_place(&f, 2, 15, &block, &offset);
	assert_int_equal(block, 1);
	assert_int_equal(offset, 15 * 32);
	assert_true(verity_hash_block_level(&f, 20, &level, &index));
	assert_int_equal(level, 0);
	assert_int_equal(index, 2);
	assert_true(verity_hash_block_level(&f, 1, &level, &index));
	assert_int_equal(level, 2);
	assert_false(verity_hash_block_level(&f, 0, &level, &index));
	assert_false(verity_hash_block_level(&f, 2066, &level, &index));
	verity_format_clear(&f);
}

/* Version 0 packs digests of 20 bytes, but no more of them than version 1. */
static void test_steps(void **state)
{
	static const struct {
		unsigned version;
		const char *hash;
		unsigned bits, step;
	} steps[] = {{0, "sha1", 7, 20}, {1, "sha1", 7, 32}, {0, "sha384", 6, 48}, {1, "sha384", 6, 64},
		     {1, "crc32c", 10, 4}, {1, "sha512", 6, 64}};

	for (size_t i = 0; i < G_N_ELEMENTS(steps); i++) {
		struct verity_format f = make_format(steps[i].version, 4096, 4096, 10, 0, steps[i].hash);

		assert_int_equal(verity_format_prepare(&f, NULL), 0);
		assert_int_equal(f.per_block_bits, steps[i].bits);
		assert_int_equal(f.digest_step, steps[i].step);
		verity_format_clear(&f);
	}
}

static void test_the_largest_and_what_is_too_large(void **state)
{
	static const struct {
		unsigned data_block, hash_block;
		uint64_t blocks, start;
		const char *hash, *why; /* NULL: taken */
	} all[] = {
		{512, 512, 1ull << 50, 0, "sha512", NULL},
		{4096, 4096, (1ull << 51) - 1, 0, "sha256", NULL},
		{512, 512, (1ull << 54) - 1, 0, "sha512", NULL},
		{4096, 4096, 1ull << 51, 0, "sha256", "Invalid data blocks"},
		{4096, 4096, 0, 0, "sha256", "there are none"},
		{4096, 4096, 10, 1ull << 51, "sha256", "Invalid hash start"},
		{4096, 4096, 10, (1ull << 51) - 1, "sha256", "Hash device offset overflow"},
		{4096, 4096, (1ull << 51) - 1, 1ull << 50, "crc32c", NULL},
		{4096, 1u << 30, 10, UINT64_MAX, "sha256", "Invalid hash start"},
		{512, 512, UINT64_MAX, UINT64_MAX, "sha256", "Invalid data blocks"},
	};

	for (size_t i = 0; i < G_N_ELEMENTS(all); i++) {
		struct verity_format f =
			make_format(1, all[i].data_block, all[i].hash_block, all[i].blocks, all[i].start, all[i].hash);
		g_autoptr(GError) err = NULL;
		int r = verity_format_prepare(&f, &err);

		if (!all[i].why && r)
			fail_msg("%zu: %s", i, err->message);
		if (all[i].why && (!r || !strstr(err->message, all[i].why)))
			fail_msg("%zu: %s, not %s", i, err ? err->message : "taken", all[i].why);
		if (!r)
			assert_true(f.levels <= VERITY_MAX_LEVELS);
		verity_format_clear(&f);
	}
}

static void test_hex(void **state)
{
	uint8_t out[3];

	assert_int_equal(verity_parse_hex("0aFf10", out), 3);
	assert_memory_equal(out, "\x0a\xff\x10", 3);
	assert_int_equal(verity_parse_hex("", out), 0);
	assert_int_equal(verity_parse_hex("abc", out), -1);
	assert_int_equal(verity_parse_hex("0x", out), -1);
	assert_int_equal(verity_parse_hex("a ", out), -1);
}

/* --- check_at_most_once ----------------------------------------------------------------------------------- */

static void test_bits(void **state)
{
	struct verity_validated *b = verity_validated_new(100000);

	assert_false(verity_validated_test(b, 0, 1));
	verity_validated_set(b, 63);
	verity_validated_set(b, 64);
	verity_validated_set(b, 99999);
	assert_true(verity_validated_test(b, 63, 2));
	assert_false(verity_validated_test(b, 62, 2));
	assert_false(verity_validated_test(b, 63, 3));
	assert_true(verity_validated_test(b, 99999, 1));
	assert_false(verity_validated_test(b, 99998, 2));
	for (unsigned i = 0; i < 100000; i++)
		verity_validated_set(b, i);
	assert_true(verity_validated_test(b, 0, 100000));
	verity_validated_set(b, 5); /* once more where all are */
	assert_true(verity_validated_test(b, 0, 100000));
	verity_validated_free(b);
}

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
static const bool sanitized = true; /* shadows take room */
#else
static const bool sanitized = false;
#endif

static size_t resident(void)
{
	g_autofree char *text = NULL;

	assert_true(g_file_get_contents("/proc/self/statm", &text, NULL, NULL));
	return strtoul(strchr(text, ' '), NULL, 10) * (size_t)sysconf(_SC_PAGESIZE);
}

/*
 * Full groups take no memory, scattered bits little: of 1 TiB, 80 GiB from the beginning, and a block here and there.
 */
static void test_bits_take_little_memory(void **state)
{
	struct verity_validated *b = verity_validated_new(1 << 28);
	size_t before = resident();

	assert_non_null(b);
	for (uint64_t i = 0; i < 20000000; i++)
		verity_validated_set(b, i);
	assert_true(verity_validated_test(b, 0, 20000000));
	for (uint64_t i = 30000000; i < 1 << 28; i += 1 << 15) /* 7000 of them, each in a group of its own */
		verity_validated_set(b, i);
	if (!sanitized)
		assert_true(resident() < before + (4 << 20)); /* not 7000 pages of bits */
	verity_validated_free(b);
}

/* Groups that have become full are used again elsewhere: nothing of theirs is left. */
static void test_groups_are_used_again(void **state)
{
	struct verity_validated *b = verity_validated_new(1 << 20);

	for (uint64_t at = 0; at < 1 << 20; at += 4096) {
		for (uint64_t i = 0; i < 1024; i++)
			verity_validated_set(b, at + i);
		verity_validated_set(b, at + 2000);
		assert_true(verity_validated_test(b, at, 1024));
		for (uint64_t i = 1024; i < 4096; i++)
			assert_int_equal(verity_validated_test(b, at + i, 1), i == 2000);
	}
	verity_validated_free(b);
}

static void *set_some(void *data)
{
	struct verity_validated *b = data;

	for (uint64_t i = 0; i < 200000; i++)
		verity_validated_set(b, i);
	return NULL;
}

static void test_bits_from_many_threads(void **state)
{
	struct verity_validated *b = verity_validated_new(200000);
	pthread_t threads[4];

	for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, set_some, b), 0);
	for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
		pthread_join(threads[i], NULL);
	assert_true(verity_validated_test(b, 0, 200000));
	verity_validated_free(b);
}

/* --- the cache --------------------------------------------------------------------------------------------- */

/* A verity without a table: its tree on a device in memory. */
struct rig {
	struct verity v;
	struct memdev *hashes;
	uint8_t *digests; /* of the data blocks */
};

static struct rig *make_rig(unsigned hash_block, uint64_t blocks)
{
	struct rig *r = g_new0(struct rig, 1);
	struct verity_format *f = &r->v.f;
	const uint8_t *below;

	*f = make_format(1, 4096, hash_block, blocks, 0, "sha1");
	assert_int_equal(verity_format_prepare(f, NULL), 0);
	r->hashes = memdev_new(f->hash_end * (hash_block / 512));
	r->digests = g_malloc(blocks * f->digest_size);
	for (uint64_t i = 0; i < blocks * f->digest_size; i++)
		r->digests[i] = (uint8_t)(i * 7 + (i >> 8) * 13 + (i >> 16));
	below = r->digests;
	for (unsigned level = 0; level < f->levels; level++) {
		uint64_t n = level ? f->level_blocks[level - 1] : blocks;

		for (uint64_t i = 0; i < n; i++) {
			uint64_t block;
			size_t offset;
			uint8_t *to;

			verity_digest_place(f, level, i, &block, &offset);
			to = r->hashes->data + block * hash_block + offset;
			if (level)
				verity_hash_block(f, r->hashes->data + (f->level_start[level - 1] + i) * hash_block, hash_block, to);
			else
				memcpy(to, below + i * f->digest_size, f->digest_size);
		}
	}
	verity_hash_block(f, r->hashes->data, hash_block, f->root);
	r->v.hash_dev = r->v.data_dev = &r->hashes->dev;
	r->v.tree = verity_tree_new(&r->v);
	return r;
}

static void free_rig(struct rig *r)
{
	verity_tree_settle(r->v.tree);
	verity_tree_free(r->v.tree);
	verity_format_clear(&r->v.f);
	memdev_put(r->hashes);
	g_free(r->digests);
	g_free(r);
}

struct waiting {
	struct verity_wait wait; /* first */
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool ready;
};

static void is_ready(struct verity_wait *w)
{
	struct waiting *me = (struct waiting *)w;

	pthread_mutex_lock(&me->lock);
	me->ready = true;
	pthread_cond_signal(&me->cond);
	pthread_mutex_unlock(&me->lock);
}

static enum verity_answer ask(struct rig *r, uint64_t block, uint8_t *digest)
{
	struct waiting me = {.wait.ready = is_ready, .lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
	enum verity_answer answer;
	unsigned n = 1;

	while ((answer = verity_tree_digests(r->v.tree, block, &n, digest, &me.wait)) == VERITY_WAIT) {
		pthread_mutex_lock(&me.lock);
		while (!me.ready)
			pthread_cond_wait(&me.cond, &me.lock);
		me.ready = false;
		pthread_mutex_unlock(&me.lock);
	}
	return answer;
}

static void expect_digest(struct rig *r, uint64_t block)
{
	uint8_t digest[DM_HASH_MAX_SIZE];

	assert_int_equal(ask(r, block, digest), VERITY_DIGEST);
	assert_memory_equal(digest, r->digests + block * r->v.f.digest_size, r->v.f.digest_size);
}

static void test_every_digest(void **state)
{
	for (unsigned size = 512; size <= 8192; size *= 4) {
		struct rig *r = make_rig(size, 5000);

		for (uint64_t i = 0; i < 5000; i++)
			expect_digest(r, i * 7 % 5000);
		assert_true(r->hashes->reads < r->v.f.hash_end / 2 + 3); /* in clusters */
		free_rig(r);
	}
}

/* 64-KiB hash blocks: 71 of them are as much as is kept.  What is used often stays, what is not goes. */
static void test_the_limit(void **state)
{
	struct rig *r = make_rig(65536, 2048ull * 400);
	uint64_t reads;

	for (uint64_t leaf = 0; leaf < 400; leaf++) {
		expect_digest(r, leaf * 2048);
		expect_digest(r, 5); /* the first leaf, used all the time */
		assert_true(verity_tree_bytes(r->v.tree) <= VERITY_CACHE_BYTES);
	}
	assert_true(verity_tree_bytes(r->v.tree) > VERITY_CACHE_BYTES / 2);
	reads = r->hashes->reads;
	expect_digest(r, 5);
	expect_digest(r, 399 * 2048);
	expect_digest(r, 395 * 2048);
	assert_int_equal(r->hashes->reads, reads);
	expect_digest(r, 2048 * 2); /* long ago */
	assert_true(r->hashes->reads > reads);
	free_rig(r);
}

/* A hash block that is larger than all that is kept is possible all the same. */
static void test_huge_blocks(void **state)
{
	struct rig *r = make_rig(8 << 20, 300000);

	for (uint64_t i = 0; i < 300000; i += 9999)
		expect_digest(r, i);
	free_rig(r);
}

static void test_corrupted_and_unreadable(void **state)
{
	struct rig *r = make_rig(4096, 5000);
	struct waiting me = {.wait.ready = is_ready};
	uint8_t digest[DM_HASH_MAX_SIZE];
	unsigned n = 1;

	r->hashes->fail_at = 1;
	r->hashes->fail_error = -ENODATA;
	assert_int_equal(ask(r, 0, digest), VERITY_FAILED);
	r->hashes->fail_at = 0;
	expect_digest(r, 0); /* nothing of it was kept */
	assert_int_equal(verity_tree_digests(r->v.tree, 1, &n, digest, &me.wait), VERITY_DIGEST); /* at once */
	free_rig(r);
}

static void *ask_many(void *data)
{
	struct rig *r = data;
	uint8_t digest[DM_HASH_MAX_SIZE];

	for (uint64_t i = 0; i < 3000; i++) {
		uint64_t block = i * 2048 * 37 % (2048 * 400);

		if (ask(r, block, digest) != VERITY_DIGEST ||
		    memcmp(digest, r->digests + block * r->v.f.digest_size, r->v.f.digest_size))
			return r;
	}
	return NULL;
}

/* Several threads, and not enough room for all they want. */
static void test_many_threads(void **state)
{
	struct rig *r = make_rig(65536, 2048ull * 400);
	pthread_t threads[4];
	void *wrong;

	for (size_t i = 0; i < G_N_ELEMENTS(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, ask_many, r), 0);
	for (size_t i = 0; i < G_N_ELEMENTS(threads); i++) {
		pthread_join(threads[i], &wrong);
		assert_null(wrong);
	}
	free_rig(r);
}

/* As many as are wanted, but of one hash block. */
static void test_several_digests(void **state)
{
	struct rig *r = make_rig(4096, 1000);
	unsigned size = r->v.f.digest_size, in_block = 1u << r->v.f.per_block_bits;
	uint8_t digests[16 * DM_HASH_MAX_SIZE];

	for (unsigned block = 0; block < 1000; block++) {
		struct waiting me = {.wait.ready = is_ready};
		unsigned wanted = 1 + block % 16, n;

		wanted = n = MIN(wanted, 1000 - block);
		expect_digest(r, block);
		assert_int_equal(verity_tree_digests(r->v.tree, block, &n, digests, &me.wait), VERITY_DIGEST);
		assert_int_equal(n, MIN(wanted, in_block - block % in_block));
		assert_memory_equal(digests, r->digests + block * size, n * size);
	}
	free_rig(r);
}

/* --- reads ------------------------------------------------------------------------------------ */

static struct dm_bio *held[8];
static unsigned n_held;

static void hold(struct dm_dev *dev, struct dm_bio *bio)
{
	assert_true(n_held < G_N_ELEMENTS(held));
	held[n_held++] = bio;
}

struct reading {
	struct dm_bio bio; /* first */
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool over;
};

static void read_over(struct dm_bio *bio)
{
	struct reading *me = (struct reading *)bio;

	pthread_mutex_lock(&me->lock);
	me->over = true;
	pthread_cond_signal(&me->cond);
	pthread_mutex_unlock(&me->lock);
}

/* A reader waits for a digest while another finds the block good: what he held on to meanwhile is let go. */
static void test_validated_meanwhile(void **state)
{
	struct rig *r = make_rig(4096, 5000);
	struct dm_target ti = {.private = &r->v, .len = 40000};
	const struct dm_dev_ops *ops = r->hashes->dev.ops;
	struct dm_dev_ops holding = *ops;
	g_autofree void *check = g_malloc(verity_per_bio_size()), *data = g_malloc(4096);
	struct iovec iov = {data, 4096};
	struct reading me = {.bio = {.op = DM_READ, .sectors = 8, .iov = &iov, .iovcnt = 1, .private = check},
			     .lock = PTHREAD_MUTEX_INITIALIZER,
			     .cond = PTHREAD_COND_INITIALIZER};

	me.bio.end = read_over;
	holding.submit = hold;
	r->hashes->dev.ops = &holding;
	r->v.ti = &ti;
	r->v.wq = dm_wq_new("verity", 1);
	r->v.validated = verity_validated_new(5000);
	r->v.ignore_zero_blocks = true; /* all that is zero need not match */
	memcpy(r->v.zero_digest, r->digests, r->v.f.digest_size);
	n_held = 0;
	assert_int_equal(verity_map(&ti, &me.bio), DM_MAPIO_REMAPPED);
	assert_int_equal(verity_end_io(&ti, &me.bio), DM_ENDIO_INCOMPLETE);
	assert_true(n_held > 0);
	verity_validated_set(r->v.validated, 0);
	r->hashes->dev.ops = ops;
	for (unsigned i = 0; i < n_held; i++)
		ops->submit(&r->hashes->dev, held[i]);
	pthread_mutex_lock(&me.lock);
	while (!me.over)
		pthread_cond_wait(&me.cond, &me.lock);
	pthread_mutex_unlock(&me.lock);
	assert_int_equal(me.bio.error, 0);
	dm_wq_free(r->v.wq);
	verity_validated_free(r->v.validated);
	free_rig(r); /* which finds what is still held */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_layout),
		cmocka_unit_test(test_steps),
		cmocka_unit_test(test_the_largest_and_what_is_too_large),
		cmocka_unit_test(test_hex),
		cmocka_unit_test(test_bits),
		cmocka_unit_test(test_bits_take_little_memory),
		cmocka_unit_test(test_groups_are_used_again),
		cmocka_unit_test(test_bits_from_many_threads),
		cmocka_unit_test(test_every_digest),
		cmocka_unit_test(test_the_limit),
		cmocka_unit_test(test_huge_blocks),
		cmocka_unit_test(test_corrupted_and_unreadable),
		cmocka_unit_test(test_many_threads),
		cmocka_unit_test(test_several_digests),
		cmocka_unit_test(test_validated_meanwhile),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
