/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Holds: what is kept, how it leaves; and callers who die meanwhile. */
#include "device.h"

#include "targets/list.h"

#include <dmfs/container_of.h>
#include <dmfs/hold.h>
#include <pthread.h>

struct one {
	struct dm_bio bio;
	struct dm_origin origin;
	atomic_int ended; /* times */
};

static void ended(struct dm_bio *bio)
{
	atomic_fetch_add(&container_of(bio, struct one, bio)->ended, 1);
}

static void make(struct one *o)
{
	*o = (struct one){.bio = {.op = DM_WRITE, .end = ended, .origin = &o->origin, .error = 1}};
	dm_origin_init(&o->origin);
}

static void check_ended(struct one *o, int error)
{
	assert_int_equal(o->ended, 1);
	assert_int_equal(o->bio.error, error);
	dm_origin_destroy(&o->origin);
}

static void open_and_closed(void **state)
{
	struct dm_bio_list out;
	struct dm_hold h;
	struct one o[3];

	(void)state;
	dm_bio_list_init(&out);
	dm_hold_init(&h, NULL, 0);
	for (int i = 0; i < 3; i++)
		make(&o[i]);
	assert_int_equal(dm_hold_add(&h, &o[0].bio), -EAGAIN);
	dm_hold_close(&h);
	dm_hold_close(&h);
	dm_hold_set_limit(&h, 2);
	assert_int_equal(dm_hold_add(&h, &o[0].bio), 0);
	assert_int_equal(dm_hold_add(&h, &o[1].bio), 0);
	assert_int_equal(dm_hold_add(&h, &o[2].bio), -EBUSY);
	assert_int_equal(dm_hold_count(&h), 2);
	assert_false(dm_hold_open(&h, &out));
	assert_null(out.head);
	assert_true(dm_hold_open(&h, &out));
	assert_ptr_equal(dm_bio_list_pop(&out), &o[0].bio);
	assert_ptr_equal(dm_bio_list_pop(&out), &o[1].bio);
	assert_null(out.head);
	assert_int_equal(dm_hold_count(&h), 0);
	dm_hold_destroy(&h);
}

static bool is_this(struct dm_bio *bio, void *data)
{
	return bio == data;
}

static void some_are_taken_some_fail(void **state)
{
	struct dm_bio_list out;
	struct dm_hold h;
	struct one o[4];

	(void)state;
	dm_bio_list_init(&out);
	dm_hold_init(&h, NULL, 0);
	dm_hold_close(&h);
	for (int i = 0; i < 4; i++) {
		make(&o[i]);
		assert_int_equal(dm_hold_add(&h, &o[i].bio), 0);
	}
	dm_hold_take_if(&h, is_this, &o[2].bio, &out);
	assert_ptr_equal(dm_bio_list_pop(&out), &o[2].bio);
	assert_null(out.head);
	assert_ptr_equal(dm_hold_take_first(&h), &o[0].bio);
	assert_int_equal(dm_hold_add(&h, &o[0].bio), 0);
	dm_origin_cancel(&o[0].origin); /* the last, then the one before, then what is left */
	check_ended(&o[0], -EINTR);
	dm_origin_cancel(&o[3].origin);
	check_ended(&o[3], -EINTR);
	assert_int_equal(dm_hold_count(&h), 1);
	dm_hold_fail(&h, -EIO);
	check_ended(&o[1], -EIO);
	assert_int_equal(o[2].ended, 0);
	dm_hold_destroy(&h);
}

static int leaving_error;

static void leave(struct dm_hold *h, struct dm_bio *bio, int error)
{
	leaving_error = error;
	dm_bio_end(bio, error);
}

static void a_dead_caller_is_not_kept(void **state)
{
	struct dm_hold a, b;
	struct one o, part;

	(void)state;
	dm_hold_init(&a, leave, 0);
	dm_hold_init(&b, leave, 0);
	dm_hold_close(&a);
	dm_hold_close(&b);
	make(&o);
	make(&part);
	part.bio.origin = &o.origin; /* two parts of one request, in two places */
	assert_int_equal(dm_hold_add(&a, &o.bio), 0);
	assert_int_equal(dm_hold_add(&b, &part.bio), 0);
	assert_int_equal(dm_bio_stop(&o.bio), 0);
	dm_origin_cancel(&o.origin);
	assert_int_equal(leaving_error, -EINTR);
	assert_int_equal(dm_bio_stop(&part.bio), -EINTR);
	assert_int_equal(dm_hold_add(&b, &part.bio), -EINTR);
	dm_origin_cancel(&o.origin);
	check_ended(&part, -EINTR);
	check_ended(&o, -EINTR);
	dm_hold_destroy(&a);
	dm_hold_destroy(&b);
}

/* --- through a suspended device --- */

static void dying_while_suspended(void **state)
{
	struct dm_mapped *below = unit_device("below", "0 64 linear %s 0", unit_file(64));
	struct dm_mapped *md = unit_device("hold", "0 64 linear below 0");
	static char data[64 * 512];
	struct iovec iov = {data, sizeof data};
	struct one o[2];

	(void)state;
	assert_int_equal(dm_mapped_suspend(below, 0, NULL, NULL, NULL), 0);
	for (int i = 0; i < 2; i++) {
		make(&o[i]);
		o[i].bio.dev = &md->dev;
		o[i].bio.sectors = 64;
		o[i].bio.iov = &iov;
		o[i].bio.iovcnt = 1;
		dm_submit(&o[i].bio);
		assert_int_equal(o[i].ended, 0);
	}
	dm_origin_cancel(&o[0].origin); /* it waits two devices down */
	check_ended(&o[0], -EINTR);
	assert_int_equal(o[1].ended, 0);
	assert_int_equal(dm_mapped_resume(below, 0, NULL, NULL, NULL), 0);
	check_ended(&o[1], 0);
	unit_remove(md);
	unit_remove(below);
	unit_files_close();
}

/* --- races: bios are held and released in one thread, and cancelled in another --- */

#define RACES 20000

static void *cancel_all(void *data)
{
	struct one *o = data;

	for (unsigned i = 0; i < RACES; i++)
		dm_origin_cancel(&o[i].origin);
	return NULL;
}

static void release_against_cancel(void **state)
{
	struct one *o = g_new(struct one, RACES);
	struct dm_bio_list out;
	struct dm_hold h;
	struct dm_bio *bio;
	pthread_t thread;
	unsigned cancelled = 0;

	(void)state;
	dm_bio_list_init(&out);
	dm_hold_init(&h, NULL, 0);
	dm_hold_close(&h);
	for (unsigned i = 0; i < RACES; i++)
		make(&o[i]);
	assert_int_equal(pthread_create(&thread, NULL, cancel_all, o), 0);
	for (unsigned i = 0; i < RACES; i++) {
		int error = dm_hold_add(&h, &o[i].bio);

		if (error)
			dm_bio_end(&o[i].bio, error);
		if (i % 7 == 0)
			dm_hold_take(&h, &out);
		while ((bio = dm_bio_list_pop(&out)))
			dm_bio_end(bio, 0);
	}
	dm_hold_open(&h, &out);
	while ((bio = dm_bio_list_pop(&out)))
		dm_bio_end(bio, 0);
	pthread_join(thread, NULL);
	for (unsigned i = 0; i < RACES; i++) {
		cancelled += o[i].bio.error != 0;
		check_ended(&o[i], o[i].bio.error ? -EINTR : 0);
	}
	dm_hold_destroy(&h);
	g_free(o);
}

/* The last one: there is no way back. */
static void the_end(void **state)
{
	struct dm_bio_list out;
	struct dm_hold h;
	struct one o[3];

	(void)state;
	dm_bio_list_init(&out);
	dm_hold_init(&h, leave, -ENOSPC);
	dm_hold_close(&h);
	for (int i = 0; i < 3; i++)
		make(&o[i]);
	assert_int_equal(dm_hold_add(&h, &o[0].bio), 0);
	assert_int_equal(dm_hold_add(&h, &o[1].bio), 0);
	assert_int_equal(dm_bio_stop_long(&o[0].bio), 0);
	dm_end_all_holds();
	check_ended(&o[0], -ENOSPC);
	check_ended(&o[1], -ENOSPC);
	assert_int_equal(dm_hold_add(&h, &o[2].bio), -ENOSPC);
	assert_int_equal(dm_bio_stop_long(&o[2].bio), -EIO);
	assert_int_equal(dm_bio_stop(&o[2].bio), 0);
	dm_hold_open(&h, &out);
	assert_int_equal(dm_hold_add(&h, &o[2].bio), -EAGAIN);
	dm_hold_destroy(&h);
	dm_hold_init(&h, leave, DM_HOLD_GOES_ON);
	dm_hold_close(&h);
	assert_int_equal(dm_hold_add(&h, &o[2].bio), 0);
	dm_end_all_holds();
	assert_ptr_equal(dm_hold_take_first(&h), &o[2].bio);
	assert_null(dm_hold_take_first(&h));
	dm_hold_destroy(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(open_and_closed),
		cmocka_unit_test(some_are_taken_some_fail),
		cmocka_unit_test(a_dead_caller_is_not_kept),
		cmocka_unit_test(dying_while_suspended),
		cmocka_unit_test(release_against_cancel),
		cmocka_unit_test(the_end),
	};

	dm_register_targets(dm_target_list);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
