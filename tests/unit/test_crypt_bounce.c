/* SPDX-License-Identifier: GPL-2.0-or-later */
/* crypt's bounce buffers: the budget holds, and no bio is left behind. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "../../targets/crypt/bounce.h"

struct setup {
	struct bounce_pool *pool;
	atomic_uint started, ended;
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct bounce *under_way, **tail;
	bool hold;
	char *shallow, *deep; /* on the stack */
};

/* b->next is the pool's only while the pool has it. */
static void push(struct setup *s, struct bounce *b)
{
	pthread_mutex_lock(&s->lock);
	b->next = NULL;
	*s->tail = b;
	s->tail = &b->next;
	pthread_cond_signal(&s->more);
	pthread_mutex_unlock(&s->lock);
}

static struct bounce *pop(struct setup *s)
{
	struct bounce *b;

	pthread_mutex_lock(&s->lock);
	while (!s->under_way)
		pthread_cond_wait(&s->more, &s->lock);
	b = s->under_way;
	s->under_way = b->next;
	if (!b->next)
		s->tail = &s->under_way;
	pthread_mutex_unlock(&s->lock);
	return b;
}

static void start(void *context, struct bounce *b, struct dm_bio *orig)
{
	struct setup *s = context;

	b->orig = orig;
	memset(b->buf, 1, orig->sectors << DM_SECTOR_SHIFT); /* the buffer is that big */
	atomic_fetch_add(&s->started, 1);
	push(s, b);
}

static void end_one(struct setup *s)
{
	struct bounce *b = pop(s);

	bounce_put(b);
	atomic_fetch_add(&s->ended, 1);
}

static void setup_init(struct setup *s)
{
	memset(s, 0, sizeof(*s));
	s->tail = &s->under_way;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->more, NULL);
	s->pool = bounce_pool_new(start, s, 0, 512);
}

static void setup_clear(struct setup *s)
{
	bounce_pool_free(s->pool);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->more);
}

static void test_budget(void **state)
{
	struct dm_bio bios[100];
	struct setup s;

	setup_init(&s);
	for (unsigned i = 0; i < 100; i++) {
		bios[i] = (struct dm_bio){.op = DM_WRITE, .sectors = BOUNCE_MAX >> DM_SECTOR_SHIFT};
		bounce_submit(s.pool, &bios[i]);
		assert_true(bounce_pool_bytes(s.pool) <= BOUNCE_BUDGET);
	}
	assert_int_equal(s.started, BOUNCE_BUDGET / BOUNCE_MAX);
	for (unsigned i = 0; i < 100; i++)
		end_one(&s);
	assert_int_equal(s.started, 100);
	setup_clear(&s);
}

/* Free buffers of other sizes make room. */
static void test_sizes_change(void **state)
{
	static const size_t sectors[] = {8, 2048, 64, 1, 512};
	struct dm_bio bios[64];
	struct setup s;

	setup_init(&s);
	for (unsigned round = 0; round < 10; round++) {
		for (unsigned i = 0; i < 64; i++) {
			bios[i] = (struct dm_bio){.op = DM_WRITE, .sectors = sectors[round % G_N_ELEMENTS(sectors)]};
			bounce_submit(s.pool, &bios[i]);
		}
		for (unsigned i = 0; i < 64; i++)
			end_one(&s);
		assert_int_equal(s.started, s.ended);
		assert_true(bounce_pool_bytes(s.pool) <= BOUNCE_BUDGET);
	}
	setup_clear(&s);
}

/* One buffer under way, all the rest queued: they start in order as it comes back. */
static void test_order(void **state)
{
	struct dm_bio bios[80];
	struct setup s;

	setup_init(&s);
	for (unsigned i = 0; i < 80; i++) {
		bios[i] = (struct dm_bio){.op = DM_WRITE, .sectors = 2048};
		bounce_submit(s.pool, &bios[i]);
	}
	for (unsigned i = 0; i < 80; i++) {
		struct bounce *b = pop(&s);

		assert_ptr_equal(b->orig, &bios[i]);
		bounce_put(b);
	}
	setup_clear(&s);
}

/* Writes that end inside their start: a long queue must not become a deep stack. */
static void start_and_end(void *context, struct bounce *b, struct dm_bio *orig)
{
	struct setup *s = context;
	char *here = __builtin_frame_address(0);

	if (!atomic_fetch_add(&s->started, 1))
		s->shallow = s->deep = here;
	s->shallow = MAX(s->shallow, here);
	s->deep = MIN(s->deep, here);
	if (s->hold)
		push(s, b);
	else
		bounce_put(b);
}

static void test_no_recursion(void **state)
{
	g_autofree struct dm_bio *bios = g_new0(struct dm_bio, 100000);
	struct setup s;

	setup_init(&s);
	bounce_pool_free(s.pool);
	s.pool = bounce_pool_new(start_and_end, &s, 0, 512);
	s.hold = true;
	for (unsigned i = 0; i < 100000; i++) {
		bios[i] = (struct dm_bio){.op = DM_WRITE, .sectors = 2048};
		bounce_submit(s.pool, &bios[i]);
	}
	s.hold = false;
	while (s.under_way)
		end_one(&s);
	assert_int_equal(s.started, 100000);
	assert_true(s.shallow - s.deep < 4096);
	setup_clear(&s);
}

#define PER_THREAD 20000

static void *submitter(void *data)
{
	struct setup *s = data;
	struct dm_bio *bios = g_new0(struct dm_bio, PER_THREAD);
	unsigned seed = (unsigned)(uintptr_t)bios;

	for (unsigned i = 0; i < PER_THREAD; i++) {
		bios[i].op = DM_WRITE;
		bios[i].sectors = 1 + rand_r(&seed) % 64;
		bounce_submit(s->pool, &bios[i]);
	}
	return bios;
}

static void *ender(void *data)
{
	for (unsigned i = 0; i < PER_THREAD; i++)
		end_one(data);
	return NULL;
}

static void test_threads(void **state)
{
	pthread_t threads[6];
	struct setup s;
	void *bios;

	setup_init(&s);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, i < 3 ? submitter : ender, &s), 0);
	for (unsigned i = 0; i < 3; i++)
		pthread_join(threads[3 + i], NULL); /* hangs if a bio is left behind */
	for (unsigned i = 0; i < 3; i++) {
		pthread_join(threads[i], &bios);
		g_free(bios);
	}
	assert_int_equal(s.ended, 3 * PER_THREAD);
	setup_clear(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_budget),
		cmocka_unit_test(test_sizes_change),
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_no_recursion),
		cmocka_unit_test(test_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
