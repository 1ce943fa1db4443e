/* SPDX-License-Identifier: GPL-2.0-or-later */
/* crypt's large runs: spread over cores they give the same, and each is done once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <dmfs/target.h>

#include "../../targets/crypt/spread.h"

#define BYTES (256u << 10)
#define THREADS 4
#define RUNS 25

static struct crypt_engine *make_engine(const char *text)
{
	static uint8_t key_data[64] = {1, 2, 3};
	struct crypt_key key = {.size = 64, .data = key_data};
	struct crypt_engine *e = NULL;
	struct crypt_spec spec;

	assert_int_equal(crypt_spec_parse(text, &spec, NULL), 0);
	assert_int_equal(crypt_engine_new(&spec, 64, 512, false, &e, NULL), 0);
	assert_int_equal(crypt_engine_set_key(e, &key, NULL), 0);
	return e;
}

struct waiter {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned done;
	int error;
};

static void done(void *context, int error)
{
	struct waiter *w = context;

	pthread_mutex_lock(&w->lock);
	w->done++;
	w->error = error;
	pthread_cond_signal(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

static void run_and_wait(struct spreader *s, struct spread_run run)
{
	struct waiter w = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0};

	run.done = done;
	run.context = &w;
	spread_start(s, &run);
	pthread_mutex_lock(&w.lock);
	while (!w.done)
		pthread_cond_wait(&w.cond, &w.lock);
	pthread_mutex_unlock(&w.lock);
	if (w.done != 1 || w.error)
		abort();
}

struct thread {
	struct spreader *s;
	struct crypt_engine *e;
	const uint8_t *plain, *whole;
};

static void *both_ways(void *data)
{
	struct thread *t = data;
	uint8_t *out = g_malloc(BYTES + 1);

	for (unsigned i = 0; i < RUNS; i++) {
		/* not a whole number of pieces, and an iov whose entries end inside sectors */
		size_t len = BYTES - 512 * i;
		struct iovec iov[2] = {{(void *)t->plain, 1000}, {(void *)(t->plain + 1000), len - 1000}};
		struct iovec back[2] = {{out, 70001}, {out + 70001, len - 70001}};

		run_and_wait(t->s, (struct spread_run){t->e, true, 5, iov, 2, out, len, NULL, NULL});
		if (memcmp(out, t->whole, len))
			abort();
		run_and_wait(t->s, (struct spread_run){t->e, false, 5, back, 2, NULL, len, NULL, NULL});
		if (memcmp(out, t->plain, len))
			abort();
	}
	g_free(out);
	return NULL;
}

static void test_many_runs(void **state)
{
	struct crypt_engine *e = make_engine("serpent-xts-plain64");
	uint8_t *plain = g_malloc(BYTES), *whole = g_malloc(BYTES);
	struct iovec iov = {plain, BYTES};
	struct spreader *s = spreader_new();
	struct thread t = {s, e, plain, whole};
	pthread_t threads[THREADS];

	for (unsigned i = 0; i < BYTES; i++)
		plain[i] = (uint8_t)(i * 5 + (i >> 9));
	assert_int_equal(crypt_engine_encrypt(e, 5, &iov, 1, 0, whole, BYTES), 0);
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, both_ways, &t), 0);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	spreader_free(s);
	crypt_engine_free(e);
	g_free(plain);
	g_free(whole);
	assert_int_equal(dm_secmem_used(), 0);
}

static void test_errors_arrive(void **state)
{
	struct crypt_engine *e = make_engine("serpent-xts-plain64");
	uint8_t *buf = g_malloc0(BYTES);
	struct iovec iov = {buf, BYTES};
	struct spreader *s = spreader_new();
	struct waiter w = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0};

	crypt_engine_wipe_key(e);
	spread_start(s, &(struct spread_run){e, false, 0, &iov, 1, NULL, BYTES, done, &w});
	pthread_mutex_lock(&w.lock);
	while (!w.done)
		pthread_cond_wait(&w.cond, &w.lock);
	pthread_mutex_unlock(&w.lock);
	assert_int_equal(w.error, -ENOMEM);
	spreader_free(s);
	assert_int_equal(w.done, 1);
	crypt_engine_free(e);
	g_free(buf);
}

/* Small runs are not worth it; large ones are, if there is more than one CPU. */
static void test_what_pays(void **state)
{
	struct crypt_engine *e = make_engine("aes-xts-plain64");
	struct spreader *s = spreader_new();

	assert_false(spread_pays(s, e, 4096));
	e->ns_per_kib = 1000000;
	assert_false(spread_pays(s, e, 512));
	assert_int_equal(spread_pays(s, e, 1 << 20), g_get_num_processors() > 1);
	spreader_free(s);
	crypt_engine_free(e);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_many_runs),
		cmocka_unit_test(test_errors_arrive),
		cmocka_unit_test(test_what_pays),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
