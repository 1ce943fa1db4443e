/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * writecache: its layout's arithmetic, the index against a model, and, over an origin that holds its writes back, the
 * order in which versions of a block reach the disks.
 */
#include "unit.h"

#include <pthread.h>

#include <dmfs/le.h>

#include "device.h"
#include "memdev.h"

#include "targets/list.h"
#include "targets/writecache/format.h"
#include "targets/writecache/index.h"

/* --- the layout ----------------------------------------------------------------------------- */

static void test_room(void **state)
{
	static const unsigned sizes[] = {512, 1024, 2048, 4096};
	uint64_t n;

	assert_int_equal(wc_blocks_in(3000 << 10, 4096, &n), 0);
	assert_int_equal(n, 747);
	assert_int_equal(wc_blocks_in((2222 << 10) - 24 * 512, 512, &n), 0);
	assert_int_equal(n, 4285);
	assert_int_equal(wc_blocks_in(4096, 4096, &n), -ENOSPC);
	assert_int_equal(wc_blocks_in(0, 512, &n), -ENOSPC);
	assert_int_equal(wc_blocks_in(UINT64_MAX, 512, &n), -EFBIG);
	for (unsigned i = 0; i < G_N_ELEMENTS(sizes); i++)
		for (uint64_t bytes = 8192; bytes < 300000; bytes += 512) {
			assert_int_equal(wc_blocks_in(bytes, sizes[i], &n), 0);
			assert_true(wc_meta_bytes(n, sizes[i]) + n * sizes[i] <= bytes);
			assert_true(wc_meta_bytes(n + 1, sizes[i]) + (n + 1) * sizes[i] > bytes);
		}
}

static void test_superblock(void **state)
{
	static const uint8_t expected[32] = {0x21, 0x93, 0x48, 0x23, 1, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0,
					     0xeb, 2, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0};
	struct wc_super super = {4096, 747, 7}, back;
	uint8_t buf[64 + 16] = {0};

	assert_int_equal(wc_super_read(buf, 3000 << 10, 4096, &back, NULL), 1);
	wc_super_write(buf, &super);
	assert_memory_equal(buf, expected, sizeof expected);
	assert_int_equal(wc_super_read(buf, 3000 << 10, 4096, &back, NULL), 0);
	assert_int_equal(back.blocks, 747);
	assert_int_equal(back.seq, 7);
	assert_int_equal(wc_super_read(buf, 2999 << 10, 4096, &back, NULL), -EINVAL);
	assert_int_equal(wc_super_read(buf, 3000 << 10, 512, &back, NULL), -EINVAL);
	put_le64(buf + 16, UINT64_MAX);
	assert_int_equal(wc_super_read(buf, UINT64_MAX, 4096, &back, NULL), -EINVAL);
	put_le32(buf, 0);
	assert_int_equal(wc_super_read(buf, 3000 << 10, 4096, &back, NULL), -EINVAL);
}

/* --- the index ---------------------------------------------------------------------------------- */

#define N 1000u

static unsigned rnd(unsigned n)
{
	static uint64_t seed = 88172645463325252;

	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (unsigned)(seed % n);
}

static void test_index_against_a_model(void **state)
{
	struct wc_index *ix = wc_index_new(N);
	GQueue versions[64] = {0}; /* of each block, the newest first */

	for (uint32_t e = 0; e < N; e++)
		wc_put_free(ix, e);
	for (unsigned i = 0; i < 200000; i++) {
		uint64_t block = rnd(64) * UINT64_C(0x100000001);
		struct wc_shard *s = wc_shard_of(ix, block);
		GQueue *q = &versions[block & 63];
		uint32_t e = wc_find(ix, s, block);

		assert_int_equal(e, g_queue_is_empty(q) ? WC_NONE : GPOINTER_TO_UINT(g_queue_peek_head(q)) - 1);
		for (guint k = 1; k < g_queue_get_length(q); k++) {
			e = wc_older(ix, e);
			assert_int_equal(e, GPOINTER_TO_UINT(g_queue_peek_nth(q, k)) - 1);
		}
		if (e != WC_NONE)
			assert_int_equal(wc_older(ix, e), WC_NONE);
		if (rnd(2) && g_queue_get_length(q) < 10) {
			e = wc_take_free(ix);
			assert_int_not_equal(e, WC_NONE);
			wc_insert(ix, s, e, block, WC_NEW, 0);
			g_queue_push_head(q, GUINT_TO_POINTER(e + 1));
		} else if (!g_queue_is_empty(q)) {
			e = GPOINTER_TO_UINT(g_queue_pop_nth(q, rnd(g_queue_get_length(q)))) - 1;
			wc_unqueue(ix, s, e);
			if (rnd(2)) {
				wc_requeue(ix, s, e);
				wc_unqueue(ix, s, e);
			}
			wc_remove(ix, s, e);
			wc_put_free(ix, e);
		}
	}
	for (unsigned i = 0; i < 64; i++)
		g_queue_clear(&versions[i]);
	wc_index_free(ix);
}

static void test_free_blocks_in_a_row(void **state)
{
	struct wc_index *ix = wc_index_new(N);

	for (uint32_t e = 0; e < N; e++)
		wc_put_free(ix, e);
	for (uint32_t e = 0; e < N; e++) {
		assert_int_equal(wc_n_free(ix), N - e);
		if (e % 3)
			assert_true(wc_take_free_at(ix, e));
		else
			assert_int_equal(wc_take_free(ix), e);
	}
	assert_int_equal(wc_take_free(ix), WC_NONE);
	assert_false(wc_take_free_at(ix, 5));
	assert_false(wc_take_free_at(ix, N));
	wc_put_free(ix, 5);
	wc_put_free(ix, 999);
	assert_int_equal(wc_take_free(ix), 5);
	assert_int_equal(wc_take_free(ix), 999);
	assert_int_equal(wc_n_free(ix), 0);
	wc_index_free(ix);
}

static struct wc_index *shared;
static atomic_uchar taken[N];

/* No block is ever given to two, and none is lost. */
static void *take_and_put(void *unused)
{
	for (unsigned i = 0; i < 100000; i++) {
		uint32_t e[8];
		unsigned n = 0;

		while (n < 8 && (e[n] = wc_take_free(shared)) != WC_NONE)
			if (atomic_fetch_add(&taken[e[n++]], 1))
				return "twice";
		while (n) {
			atomic_fetch_sub(&taken[e[--n]], 1);
			wc_put_free(shared, e[n]);
		}
	}
	return NULL;
}

static void test_free_blocks_of_several_threads(void **state)
{
	pthread_t threads[3];
	void *wrong;

	shared = wc_index_new(20);
	for (uint32_t e = 0; e < 20; e++)
		wc_put_free(shared, e);
	for (unsigned i = 0; i < 3; i++)
		pthread_create(&threads[i], NULL, take_and_put, NULL);
	for (unsigned i = 0; i < 3; i++) {
		pthread_join(threads[i], &wrong);
		assert_null(wrong);
	}
	assert_int_equal(wc_n_free(shared), 20);
	for (unsigned i = 0; i < 20; i++)
		assert_int_not_equal(wc_take_free(shared), WC_NONE);
	wc_index_free(shared);
}

/* --- devices that hold back writes or FLUSHes ----------------------------------------------------------- */

#define SECTORS 2048u

struct gate {
	struct dm_dev dev;
	struct memdev *m;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	enum dm_op op; /* what it holds back while it is closed */
	bool closed;
	struct dm_bio_list held;
	unsigned seen[SECTORS / 8], flushes; /* writes of each block; FLUSHes */
};

static void gate_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	struct gate *g = (struct gate *)dev;
	bool held;

	pthread_mutex_lock(&g->lock);
	held = g->closed && bio->op == g->op;
	if (bio->op == DM_WRITE)
		for (uint64_t s = bio->sector; s < bio->sector + bio->sectors; s += 8)
			g->seen[s / 8]++;
	g->flushes += bio->op == DM_FLUSH;
	if (held)
		dm_bio_list_add(&g->held, bio);
	pthread_cond_broadcast(&g->changed);
	pthread_mutex_unlock(&g->lock);
	if (!held)
		g->m->dev.ops->submit(&g->m->dev, bio);
}

static uint64_t gate_sectors(struct dm_dev *dev)
{
	return SECTORS;
}

static void gate_limits(struct dm_dev *dev, struct dm_limits *l)
{
	struct memdev *m = ((struct gate *)dev)->m;

	m->dev.ops->limits(&m->dev, l);
}

static void gate_print(struct dm_dev *dev, GString *out)
{
	g_string_append(out, ((struct gate *)dev)->op == DM_WRITE ? "unit:origin" : "unit:fast");
}

static void gate_identity(struct dm_dev *dev, uint64_t id[3])
{
	id[0] = id[1] = 0;
	id[2] = (uintptr_t)dev;
}

static void gate_free(struct dm_dev *dev)
{
}

static const struct dm_dev_ops gate_ops = {.submit = gate_submit, .sectors = gate_sectors, .limits = gate_limits,
					   .print = gate_print, .identity = gate_identity, .free = gate_free};

static void gate_init(struct gate *g, struct memdev *m, enum dm_op op)
{
	g->dev.ops = &gate_ops;
	g->dev.mode = DM_MODE_RW;
	atomic_init(&g->dev.refs, 100);
	g->m = m;
	g->op = op;
	pthread_mutex_init(&g->lock, NULL);
	pthread_cond_init(&g->changed, NULL);
	dm_bio_list_init(&g->held);
}

static void gate_open(struct gate *g)
{
	struct dm_bio_list bios;
	struct dm_bio *bio;

	dm_bio_list_init(&bios);
	pthread_mutex_lock(&g->lock);
	g->closed = false;
	dm_bio_list_take(&g->held, &bios);
	pthread_mutex_unlock(&g->lock);
	while ((bio = dm_bio_list_pop(&bios)))
		g->m->dev.ops->submit(&g->m->dev, bio);
}

static void wait_write(struct gate *g, unsigned block)
{
	pthread_mutex_lock(&g->lock);
	while (!g->seen[block])
		pthread_cond_wait(&g->changed, &g->lock);
	pthread_mutex_unlock(&g->lock);
}

struct stack {
	struct gate gate, fast; /* the origin, before the cache */
	struct memdev *cache;
	struct dm_mapped *md;
};

static void stack_open(struct stack *s, const char *options)
{
	memset(s, 0, sizeof *s);
	s->cache = memdev_new(SECTORS);
	gate_init(&s->gate, memdev_new(SECTORS), DM_WRITE);
	gate_init(&s->fast, s->cache, DM_FLUSH);
	unit_store("origin", &s->gate.dev);
	unit_store("fast", &s->fast.dev);
	s->md = unit_device("vol", "0 %u writecache s unit:origin unit:fast 4096 %s", SECTORS, options);
}

static void stack_close(struct stack *s)
{
	unit_remove(s->md);
	unit_stores_forget();
	memdev_put(s->gate.m);
	memdev_put(s->cache);
}

static void put(struct stack *s, unsigned block, uint8_t value)
{
	uint8_t data[4096];

	memset(data, value, sizeof data);
	assert_int_equal(dm_write_sync(&s->md->dev, block * 8, 8, data, 0), 0);
}

static uint8_t get(struct stack *s, unsigned block)
{
	uint8_t data[4096];

	assert_int_equal(dm_read_sync(&s->md->dev, block * 8, 8, data, 0), 0);
	assert_int_equal(data[0], data[4095]);
	return data[0];
}

static void flush(struct stack *s)
{
	assert_int_equal(dm_flush_sync(&s->md->dev), 0);
}

/* A newer version, committed, waits until the older one is on the origin and freed. */
static void test_writeback_never_overtakes(void **state)
{
	struct stack s;

	stack_open(&s, "6 high_watermark 0 low_watermark 0 pause_writeback 0");
	s.gate.closed = true;
	put(&s, 10, 1);
	flush(&s);
	wait_write(&s.gate, 10);
	put(&s, 10, 2);
	flush(&s);
	for (unsigned block = 40; block < 60; block += 2) { /* which came later, and go */
		put(&s, block, 3);
		flush(&s);
		wait_write(&s.gate, block);
	}
	assert_int_equal(s.gate.seen[10], 1);
	assert_int_equal(get(&s, 10), 2);
	gate_open(&s.gate);
	assert_int_equal(unit_message(s.md, "flush", NULL), 0);
	assert_int_equal(s.gate.m->data[10 * 4096], 2);
	assert_int_equal(s.gate.seen[10], 2);
	stack_close(&s);
}

/* However many could go together. */
static void test_writeback_jobs(void **state)
{
	unsigned seen = 0;
	struct stack s;

	stack_open(&s, "8 high_watermark 0 low_watermark 0 pause_writeback 0 writeback_jobs 3");
	s.gate.closed = true;
	for (unsigned block = 40; block < 60; block++)
		put(&s, block, 3);
	flush(&s);
	wait_write(&s.gate, 40);
	pthread_mutex_lock(&s.gate.lock);
	for (unsigned block = 0; block < SECTORS / 8; block++)
		seen += s.gate.seen[block];
	pthread_mutex_unlock(&s.gate.lock);
	assert_in_range(seen, 1, 3);
	gate_open(&s.gate);
	assert_int_equal(unit_message(s.md, "flush", NULL), 0);
	for (unsigned block = 40; block < 60; block++)
		assert_int_equal(s.gate.m->data[block * 4096], 3);
	stack_close(&s);
}

/* What is on its way to the origin is not overwritten, nor gone around, though the cache is full. */
static void *write_block_0(void *stack)
{
	put(stack, 0, 9);
	return NULL;
}

static void test_a_write_waits_for_room(void **state)
{
	unsigned blocks = SECTORS / 8 - 2;
	char *status;
	struct stack s;
	pthread_t t;

	stack_open(&s, "8 high_watermark 100 low_watermark 100 pause_writeback 0 autocommit_time 3600000");
	s.gate.closed = true;
	for (unsigned block = 0; block < blocks; block++)
		put(&s, block, 1);
	flush(&s);
	wait_write(&s.gate, 0); /* the oldest, as none is free */
	pthread_create(&t, NULL, write_block_0, &s);
	do { /* until it is counted among those that wait */
		pthread_mutex_lock(&s.gate.lock);
		assert_int_equal(s.gate.seen[0], 1);
		pthread_mutex_unlock(&s.gate.lock);
		status = unit_status(s.md, DM_STATUS_INFO);
		sched_yield();
	} while (strstr(status, " 0 1 0\n") && (g_free(status), true));
	g_free(status);
	assert_int_equal(get(&s, 0), 1);
	gate_open(&s.gate);
	pthread_join(t, NULL);
	assert_int_equal(get(&s, 0), 9);
	assert_int_equal(s.gate.m->data[0], 1);
	assert_int_equal(unit_message(s.md, "flush", NULL), 0);
	assert_int_equal(s.gate.m->data[0], 9);
	stack_close(&s);
}

struct flush {
	struct dm_bio bio;
	atomic_bool ended;
};

static void flush_ended(struct dm_bio *bio)
{
	struct flush *f = (struct flush *)bio;

	atomic_store(&f->ended, true);
}

static void flush_begin(struct stack *s, struct flush *f)
{
	*f = (struct flush){.bio = {.op = DM_FLUSH, .dev = &s->md->dev, .end = flush_ended}};
	dm_submit(&f->bio);
}

static void flush_wait(struct flush *f, int error)
{
	while (!atomic_load(&f->ended))
		sched_yield();
	assert_int_equal(f->bio.error, error);
}

/*
 * A FLUSH after a write in place goes to the cache device by itself; but one that meets a commit under way, which has
 * what was written before, ends after that.
 */
static void test_flushes_beside_a_commit(void **state)
{
	struct flush f[3];
	struct dm_bio *bio;
	struct stack s;
	char *status;

	stack_open(&s, "2 autocommit_time 3600000");
	put(&s, 10, 1);
	s.fast.flushes = 0;
	s.fast.closed = true;
	flush_begin(&s, &f[0]);
	pthread_mutex_lock(&s.fast.lock);
	while (!s.fast.flushes)
		pthread_cond_wait(&s.fast.changed, &s.fast.lock);
	pthread_mutex_unlock(&s.fast.lock);
	flush_begin(&s, &f[1]);
	assert_int_equal(s.fast.flushes, 1);
	assert_false(atomic_load(&f[0].ended) || atomic_load(&f[1].ended));
	gate_open(&s.fast);
	flush_wait(&f[0], 0);
	flush_wait(&f[1], 0);
	put(&s, 10, 2);
	s.fast.flushes = 0;
	s.fast.closed = true;
	flush_begin(&s, &f[2]);
	assert_int_equal(s.fast.flushes, 1);
	assert_false(atomic_load(&f[2].ended));
	gate_open(&s.fast);
	flush_wait(&f[2], 0);
	s.fast.closed = true;
	flush_begin(&s, &f[2]);
	bio = dm_bio_list_pop(&s.fast.held);
	gate_open(&s.fast);
	dm_bio_end(bio, -EIO); /* what was written may be lost: nothing more is */
	flush_wait(&f[2], -EIO);
	status = unit_status(s.md, DM_STATUS_INFO);
	assert_non_null(strstr(status, " writecache -5 "));
	g_free(status);
	stack_close(&s);
}

/*
 * After any write to the cache device, and with what it may have lost of those since its last flush: what had been
 * flushed is read back, or what came later.
 */
static void test_every_crash_of_the_cache(void **state)
{
	g_autofree uint8_t *image = NULL;
	struct stack s;
	size_t flushed_at[3];

	stack_open(&s, "2 autocommit_time 3600000");
	image = g_memdup2(s.cache->data, SECTORS * 512);
	memdev_record(s.cache, true);
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned block = 0; block < 6; block++)
			put(&s, block, (uint8_t)(round + 1));
		flush(&s);
		flushed_at[round] = s.cache->log->len;
	}
	for (size_t n = 0; n <= s.cache->log->len; n++)
		for (unsigned lost = 0; lost < 8; lost++) {
			uint64_t mask = lost * UINT64_C(0x2492492492492493);
			struct memdev *crashed = memdev_replay(s.cache, image, n, mask);
			struct stack again = s;
			unsigned least = 0;

			/* The superblock, a FUA write, which a memdev takes for any other, came last. */
			for (unsigned round = 0; round < 3; round++)
				if (n >= flushed_at[round] && !(mask >> (flushed_at[round] - 1) % 64 & 1))
					least = round + 1;
			unit_store("crashed", &crashed->dev);
			again.md = unit_device("again", "0 %u writecache s unit:origin unit:crashed 4096 0", SECTORS);
			for (unsigned block = 0; block < 6; block++)
				assert_in_range(get(&again, block), least, 3);
			unit_remove(again.md);
			memdev_put(crashed);
		}
	stack_close(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_room),
		cmocka_unit_test(test_superblock),
		cmocka_unit_test(test_index_against_a_model),
		cmocka_unit_test(test_free_blocks_in_a_row),
		cmocka_unit_test(test_free_blocks_of_several_threads),
		cmocka_unit_test(test_writeback_never_overtakes),
		cmocka_unit_test(test_writeback_jobs),
		cmocka_unit_test(test_a_write_waits_for_room),
		cmocka_unit_test(test_flushes_beside_a_commit),
		cmocka_unit_test(test_every_crash_of_the_cache),
	};

	dm_register_targets(dm_target_list);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
