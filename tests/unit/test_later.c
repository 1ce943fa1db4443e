/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Bios submitted later: in order of their times, at once when they must, or not at all when the caller is dead. */
#include "unit.h"

#include <dmfs/container_of.h>
#include <dmfs/hold.h>
#include <dmfs/io.h>
#include <dmfs/later.h>
#include <dmfs/work.h>
#include <pthread.h>
#include <stdlib.h>

#define HOUR_NS UINT64_C(3600000000000)

/* --- a device that notes what it gets, and may keep who submits waiting --- */

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned submitted, ended, cancelled;
	struct dm_bio *stuck; /* this one's submission waits until it is NULL again */
} seen = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

struct one {
	struct dm_bio bio;
	struct dm_origin origin;
	unsigned place; /* in the order of submission, from 1 */
	unsigned ended;
};

static void submit(struct dm_dev *dev, struct dm_bio *bio)
{
	struct one *o = container_of(bio, struct one, bio);

	pthread_mutex_lock(&seen.lock);
	o->place = ++seen.submitted;
	pthread_cond_broadcast(&seen.changed);
	if (seen.stuck == bio) {
		pthread_mutex_unlock(&seen.lock);
		dm_block_begin();
		pthread_mutex_lock(&seen.lock);
		while (seen.stuck == bio)
			pthread_cond_wait(&seen.changed, &seen.lock);
		pthread_mutex_unlock(&seen.lock);
		dm_block_end();
		pthread_mutex_lock(&seen.lock);
	}
	pthread_mutex_unlock(&seen.lock);
	dm_bio_end(bio, 0);
}

static const struct dm_dev_ops ops = {.submit = submit};
static struct dm_dev dev = {.ops = &ops};

static void ended(struct dm_bio *bio)
{
	pthread_mutex_lock(&seen.lock);
	container_of(bio, struct one, bio)->ended++;
	seen.ended++;
	seen.cancelled += bio->error == -EINTR;
	pthread_cond_broadcast(&seen.changed);
	pthread_mutex_unlock(&seen.lock);
}

static struct one *make(unsigned n)
{
	struct one *o = g_new0(struct one, n);

	for (unsigned i = 0; i < n; i++) {
		o[i].bio = (struct dm_bio){.op = DM_FLUSH, .dev = &dev, .end = ended, .origin = &o[i].origin};
		dm_origin_init(&o[i].origin);
	}
	seen.submitted = seen.ended = seen.cancelled = 0;
	return o;
}

static void wait_until(unsigned *what, unsigned n)
{
	pthread_mutex_lock(&seen.lock);
	while (*what < n)
		pthread_cond_wait(&seen.changed, &seen.lock);
	pthread_mutex_unlock(&seen.lock);
}

/* --- */

static void in_the_order_of_their_times(void **state)
{
	struct dm_later *a = dm_later_new(), *b = dm_later_new();
	uint64_t now = dm_now_ns();
	struct one *o = make(100);

	(void)state;
	for (unsigned i = 0; i < 100; i++) /* the last one first, and from two keepers */
		assert_int_equal(dm_later_submit(i % 2 ? a : b, &o[i].bio, now + (100 - i) * 50000 + 150000000), 0);
	wait_until(&seen.ended, 100);
	for (unsigned i = 0; i < 100; i++)
		assert_int_equal(o[i].place, 100 - i);
	assert_true(dm_now_ns() >= now + 155000000);
	dm_later_free(a);
	dm_later_free(b);
	g_free(o);
}

static void all_at_once_and_not_any_more(void **state)
{
	struct dm_later *l = dm_later_new();
	struct one *o = make(3);

	(void)state;
	assert_int_equal(dm_later_submit(l, &o[0].bio, dm_now_ns() + HOUR_NS), 0);
	assert_int_equal(dm_later_submit(l, &o[1].bio, dm_now_ns() + HOUR_NS / 2), 0);
	assert_int_equal(dm_later_count(l), 2);
	dm_later_go(l);
	wait_until(&seen.ended, 2);
	assert_int_equal(o[0].place, 1);
	assert_int_equal(dm_later_count(l), 0);
	assert_int_equal(dm_later_submit(l, &o[2].bio, dm_now_ns()), -EAGAIN);
	dm_later_keep(l);
	assert_int_equal(dm_later_submit(l, &o[2].bio, dm_now_ns() + HOUR_NS), 0);
	dm_origin_cancel(&o[2].origin);
	assert_int_equal(o[2].bio.error, -EINTR);
	assert_int_equal(o[2].place, 0);
	assert_int_equal(dm_later_submit(l, &o[2].bio, dm_now_ns() + HOUR_NS), -EINTR);
	dm_later_free(l);
	g_free(o);
}

static void a_slow_submission_holds_up_nobody(void **state)
{
	struct one *o = make(10);
	struct dm_bio_list list;

	(void)state;
	dm_bio_list_init(&list);
	for (unsigned i = 0; i < 10; i++)
		dm_bio_list_add(&list, &o[i].bio);
	seen.stuck = &o[3].bio;
	dm_submit_async(&list);
	assert_true(dm_bio_list_empty(&list));
	wait_until(&seen.ended, 9);
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(o[i].place, i + 1);
	pthread_mutex_lock(&seen.lock);
	seen.stuck = NULL;
	pthread_cond_broadcast(&seen.changed);
	pthread_mutex_unlock(&seen.lock);
	wait_until(&seen.ended, 10);
	g_free(o);
}

#define RACES 5000

static void *cancel_all(void *data)
{
	struct one *o = data;

	for (unsigned i = 0; i < RACES; i++)
		dm_origin_cancel(&o[i].origin);
	return NULL;
}

static void due_against_cancel_and_go(void **state)
{
	struct dm_later *l = dm_later_new();
	struct one *o = make(RACES);
	pthread_t thread;

	(void)state;
	assert_int_equal(pthread_create(&thread, NULL, cancel_all, o), 0);
	for (unsigned i = 0; i < RACES; i++) {
		int error = dm_later_submit(l, &o[i].bio, dm_now_ns() + (i % 5) * 20000);

		if (error)
			dm_bio_end(&o[i].bio, error);
		if (i % 1000 == 500) {
			dm_later_go(l);
			dm_later_keep(l);
		}
	}
	pthread_join(thread, NULL);
	wait_until(&seen.ended, RACES);
	for (unsigned i = 0; i < RACES; i++)
		assert_int_equal(o[i].ended, 1);
	assert_int_equal(seen.submitted + seen.cancelled, RACES);
	dm_later_free(l);
	g_free(o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(in_the_order_of_their_times),
		cmocka_unit_test(all_at_once_and_not_any_more),
		cmocka_unit_test(a_slow_submission_holds_up_nobody),
		cmocka_unit_test(due_against_cancel_and_go),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
