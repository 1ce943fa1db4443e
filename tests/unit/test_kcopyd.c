/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The copier: data, ends, errors, order, memory, throttle, callbacks; over devices in memory that end bios now or
 * later.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <dmfs/kcopyd.h>
#include <dmfs/work.h>

struct memory {
	struct dm_dev dev; /* first */
	char *data;
	uint64_t sectors;
	struct dm_wq *later; /* bios end from here, if set */
	uint64_t bad_sector; /* bios that touch it fail; UINT64_MAX: none */
	atomic_size_t inside, most_inside; /* bytes of bios under way */
	pthread_mutex_t lock;
	uint64_t highest;
	bool out_of_order;
	unsigned writes;
};

struct late {
	struct dm_work work;
	struct dm_bio *bio;
};

static void do_bio(struct memory *m, struct dm_bio *bio)
{
	char *at = m->data + (bio->sector << DM_SECTOR_SHIFT);
	size_t bytes = bio->sectors << DM_SECTOR_SHIFT;
	int error = 0;

	assert_true(bio->sector + bio->sectors <= m->sectors);
	if (m->bad_sector >= bio->sector && m->bad_sector - bio->sector < bio->sectors)
		error = -EIO;
	else if (bio->op == DM_READ)
		dm_iov_write(bio->iov, bio->iovcnt, 0, at, bytes);
	else if (bio->op == DM_WRITE)
		dm_iov_read(bio->iov, bio->iovcnt, 0, at, bytes);
	else
		memset(at, 0, bytes);
	atomic_fetch_sub(&m->inside, bytes);
	dm_bio_end(bio, error);
}

static void do_late(struct dm_work *work)
{
	struct late *l = (struct late *)work;
	struct dm_bio *bio = l->bio;

	free(l);
	do_bio((struct memory *)bio->dev, bio);
}

static void memory_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	struct memory *m = (struct memory *)dev;
	size_t now = atomic_fetch_add(&m->inside, bio->sectors << DM_SECTOR_SHIFT) + (bio->sectors << DM_SECTOR_SHIFT);
	struct late *l;

	pthread_mutex_lock(&m->lock);
	m->most_inside = MAX(m->most_inside, now);
	if (bio->op != DM_READ) {
		m->writes++;
		m->out_of_order |= bio->sector < m->highest;
		m->highest = bio->sector + bio->sectors;
	}
	pthread_mutex_unlock(&m->lock);
	if (!m->later) {
		do_bio(m, bio);
		return;
	}
	l = calloc(1, sizeof *l);
	l->work.fn = do_late;
	l->bio = bio;
	dm_wq_queue(m->later, &l->work);
}

static const struct dm_dev_ops memory_ops = {.submit = memory_submit};

static void memory_init(struct memory *m, uint64_t sectors, struct dm_wq *later, unsigned seed)
{
	*m = (struct memory){.dev = {.ops = &memory_ops, .mode = DM_MODE_RW}, .sectors = sectors, .later = later,
			     .bad_sector = UINT64_MAX};
	pthread_mutex_init(&m->lock, NULL);
	m->data = malloc(sectors << DM_SECTOR_SHIFT);
	for (size_t i = 0; i < sectors << DM_SECTOR_SHIFT; i++)
		m->data[i] = (char)((i >> 9) * seed + i);
}

static void memory_clear(struct memory *m)
{
	free(m->data);
	pthread_mutex_destroy(&m->lock);
}

struct result {
	pthread_mutex_t lock;
	pthread_cond_t cond;
	unsigned done;
	int read_error;
	unsigned long write_errors;
	pthread_t thread;
};

static void result_init(struct result *r)
{
	*r = (struct result){0};
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->cond, NULL);
}

static void notify(int read_error, unsigned long write_errors, void *context)
{
	struct result *r = context;

	pthread_mutex_lock(&r->lock);
	r->done++;
	r->read_error = read_error;
	r->write_errors |= write_errors;
	r->thread = pthread_self();
	pthread_cond_signal(&r->cond);
	pthread_mutex_unlock(&r->lock);
}

static void wait_for(struct result *r, unsigned n)
{
	pthread_mutex_lock(&r->lock);
	while (r->done < n)
		pthread_cond_wait(&r->cond, &r->lock);
	pthread_mutex_unlock(&r->lock);
}

#define SECTORS 9001u

static void copy_to_several(struct dm_wq *later)
{
	struct dm_kcopyd_client *kc = dm_kcopyd_client_new(NULL, 0);
	struct memory from, to[3];
	struct dm_region src = {&from.dev, 1, SECTORS - 1}, dests[3];
	struct result r;

	memory_init(&from, SECTORS, later, 7);
	for (unsigned i = 0; i < 3; i++) {
		memory_init(&to[i], SECTORS + 8, later, 0);
		dests[i] = (struct dm_region){&to[i].dev, i, SECTORS - 1};
	}
	dests[2].sectors = 5000; /* shorter than the source */
	memset(to[2].data, 'x', (size_t)to[2].sectors << DM_SECTOR_SHIFT);
	result_init(&r);
	dm_kcopyd_copy(kc, &src, 3, dests, 0, notify, &r);
	wait_for(&r, 1);
	assert_int_equal(r.read_error, 0);
	assert_int_equal(r.write_errors, 0);
	assert_false(pthread_equal(r.thread, pthread_self()));
	for (unsigned i = 0; i < 3; i++)
		assert_memory_equal(to[i].data + i * 512, from.data + 512, dests[i].sectors << DM_SECTOR_SHIFT);
	for (size_t i = (5000 + 2) * 512; i < to[2].sectors << DM_SECTOR_SHIFT; i++)
		assert_int_equal(to[2].data[i], 'x');
	dm_kcopyd_client_free(kc);
	memory_clear(&from);
	for (unsigned i = 0; i < 3; i++)
		memory_clear(&to[i]);
}

static void copies_to_several_destinations(void **state)
{
	struct dm_wq *later = dm_wq_new("late", 4);

	copy_to_several(NULL);
	copy_to_several(later);
	dm_wq_free(later);
}

static void an_unreadable_source_is_a_read_error(void **state)
{
	struct dm_kcopyd_client *kc = dm_kcopyd_client_new(NULL, 0);
	struct memory from, to;
	struct result r;

	memory_init(&from, SECTORS, NULL, 1);
	memory_init(&to, SECTORS, NULL, 2);
	from.bad_sector = 4000;
	result_init(&r);
	dm_kcopyd_copy(kc, &(struct dm_region){&from.dev, 0, SECTORS}, 1, &(struct dm_region){&to.dev, 0, SECTORS}, 0,
		       notify, &r);
	wait_for(&r, 1);
	assert_int_equal(r.read_error, -EIO);
	assert_int_equal(r.write_errors, 0);
	dm_kcopyd_client_free(kc);
	assert_int_equal(r.done, 1);
	memory_clear(&from);
	memory_clear(&to);
}

static void a_bad_destination_has_its_bit_and_spares_the_others(void **state)
{
	struct dm_kcopyd_client *kc = dm_kcopyd_client_new(NULL, 0);
	struct memory from, to[2];
	struct dm_region dests[2];
	struct result r;

	memory_init(&from, SECTORS, NULL, 5);
	for (unsigned i = 0; i < 2; i++) {
		memory_init(&to[i], SECTORS, NULL, 0);
		dests[i] = (struct dm_region){&to[i].dev, 0, SECTORS};
	}
	to[1].bad_sector = 3;
	result_init(&r);
	dm_kcopyd_copy(kc, &(struct dm_region){&from.dev, 0, SECTORS}, 2, dests, DM_KCOPYD_IGNORE_ERROR, notify, &r);
	wait_for(&r, 1);
	assert_int_equal(r.read_error, 0);
	assert_int_equal(r.write_errors, 2);
	assert_memory_equal(to[0].data, from.data, (size_t)SECTORS << DM_SECTOR_SHIFT);

	/* Without the flag the job stops. */
	to[0].writes = 0;
	dm_kcopyd_copy(kc, &(struct dm_region){&from.dev, 0, SECTORS}, 2, dests, DM_KCOPYD_WRITE_SEQ, notify, &r);
	wait_for(&r, 2);
	assert_int_equal(r.write_errors, 2);
	assert_int_equal(to[0].writes, 1);
	dm_kcopyd_client_free(kc);
	memory_clear(&from);
	memory_clear(&to[0]);
	memory_clear(&to[1]);
}

static void write_seq_writes_in_order(void **state)
{
	struct dm_wq *later = dm_wq_new("late", 4);
	struct dm_kcopyd_client *kc = dm_kcopyd_client_new(NULL, 0);
	struct memory from, to;
	struct result r;

	memory_init(&from, SECTORS, later, 5);
	memory_init(&to, SECTORS, later, 0);
	result_init(&r);
	dm_kcopyd_copy(kc, &(struct dm_region){&from.dev, 0, SECTORS}, 1, &(struct dm_region){&to.dev, 0, SECTORS},
		       DM_KCOPYD_WRITE_SEQ, notify, &r);
	wait_for(&r, 1);
	assert_false(to.out_of_order);
	assert_true(to.writes > 1);
	assert_memory_equal(to.data, from.data, (size_t)SECTORS << DM_SECTOR_SHIFT);
	dm_kcopyd_client_free(kc);
	dm_wq_free(later);
	memory_clear(&from);
	memory_clear(&to);
}

static void memory_is_bounded(void **state)
{
	struct dm_wq *later = dm_wq_new("late", 4);
	size_t bound = 300 * 1024;
	struct dm_kcopyd_client *kc = dm_kcopyd_client_new(NULL, bound);
	struct memory from, to;
	struct result r;

	memory_init(&from, SECTORS, later, 5);
	memory_init(&to, SECTORS, later, 0);
	result_init(&r);
	for (unsigned i = 0; i < 9; i++)
		dm_kcopyd_copy(kc, &(struct dm_region){&from.dev, i * 1000, 1000}, 1,
			       &(struct dm_region){&to.dev, i * 1000, 1000}, 0, notify, &r);
	wait_for(&r, 9);
	assert_true(from.most_inside <= bound && to.most_inside <= bound);
	assert_memory_equal(to.data, from.data, (size_t)9000 << DM_SECTOR_SHIFT);
	dm_kcopyd_client_free(kc);

	/* A bound of less than a piece still gets there. */
	kc = dm_kcopyd_client_new(NULL, 1);
	memset(to.data, 0, (size_t)SECTORS << DM_SECTOR_SHIFT);
	to.most_inside = 0;
	dm_kcopyd_copy(kc, &(struct dm_region){&from.dev, 0, 100}, 1, &(struct dm_region){&to.dev, 0, 100}, 0, notify,
		       &r);
	wait_for(&r, 10);
	assert_int_equal(to.most_inside, 512);
	assert_memory_equal(to.data, from.data, 100 * 512);
	dm_kcopyd_client_free(kc);
	dm_wq_free(later);
	memory_clear(&from);
	memory_clear(&to);
}

static void zeroes(void **state)
{
	struct dm_kcopyd_client *kc = dm_kcopyd_client_new(NULL, 0);
	struct memory to[2];
	struct dm_region dests[2];
	struct result r;

	for (unsigned i = 0; i < 2; i++) {
		memory_init(&to[i], SECTORS, NULL, 3);
		dests[i] = (struct dm_region){&to[i].dev, 10, 100 + 100 * i};
	}
	result_init(&r);
	dm_kcopyd_zero(kc, 2, dests, 0, notify, &r);
	wait_for(&r, 1);
	for (unsigned i = 0; i < 2; i++)
		for (size_t b = 0; b < (110 + 100 * i) * 512; b++)
			assert_int_equal(to[i].data[b], b < 10 * 512 ? (char)((b >> 9) * 3 + b) : 0);
	dm_kcopyd_client_free(kc);
	memory_clear(&to[0]);
	memory_clear(&to[1]);
}

struct chain {
	struct dm_kcopyd_client *kc;
	struct result *r;
	unsigned left;
};

static void chained(int read_error, unsigned long write_errors, void *context)
{
	struct chain *c = context;

	assert_int_equal(read_error, -ENODATA);
	assert_int_equal(write_errors, 4);
	if (c->left--)
		dm_kcopyd_callback(c->kc, chained, c, -ENODATA, 4);
	else
		notify(read_error, write_errors, c->r);
}

static void callbacks_start_jobs_and_free_waits_for_them(void **state)
{
	struct dm_kcopyd_client *kc = dm_kcopyd_client_new(NULL, 0);
	struct result r;
	struct chain c = {kc, &r, 1000};

	result_init(&r);
	dm_kcopyd_callback(kc, chained, &c, -ENODATA, 4);
	dm_kcopyd_client_free(kc);
	assert_int_equal(r.done, 1);
	assert_int_equal(r.read_error, -ENODATA);
}

static void throttled_jobs_end(void **state)
{
	struct dm_kcopyd_throttle throttle = {.percent = 20};
	struct dm_kcopyd_client *a = dm_kcopyd_client_new(&throttle, 0), *b = dm_kcopyd_client_new(&throttle, 0);
	struct memory from, to;
	struct result r;

	memory_init(&from, SECTORS, NULL, 5);
	memory_init(&to, SECTORS, NULL, 0);
	result_init(&r);
	for (unsigned i = 0; i < 9; i++)
		dm_kcopyd_copy(i & 1 ? a : b, &(struct dm_region){&from.dev, i * 1000, 1000}, 1,
			       &(struct dm_region){&to.dev, i * 1000, 1000}, 0, notify, &r);
	atomic_store(&throttle.percent, 90);
	wait_for(&r, 9);
	dm_kcopyd_client_free(a);
	dm_kcopyd_client_free(b);
	assert_int_equal(throttle.running, 0);
	assert_true(throttle.pause_until_ns > 0);
	assert_memory_equal(to.data, from.data, (size_t)9000 << DM_SECTOR_SHIFT);
	memory_clear(&from);
	memory_clear(&to);
}

static void nothing_to_copy_ends_too(void **state)
{
	struct dm_kcopyd_client *kc = dm_kcopyd_client_new(NULL, 0);
	struct memory m;
	struct result r;

	memory_init(&m, 8, NULL, 5);
	result_init(&r);
	dm_kcopyd_copy(kc, &(struct dm_region){&m.dev, 0, 0}, 1, &(struct dm_region){&m.dev, 0, 0}, 0, notify, &r);
	wait_for(&r, 1);
	assert_int_equal(r.read_error, 0);
	dm_kcopyd_client_free(kc);
	memory_clear(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(copies_to_several_destinations),
		cmocka_unit_test(an_unreadable_source_is_a_read_error),
		cmocka_unit_test(a_bad_destination_has_its_bit_and_spares_the_others),
		cmocka_unit_test(write_seq_writes_in_order),
		cmocka_unit_test(memory_is_bounded),
		cmocka_unit_test(zeroes),
		cmocka_unit_test(callbacks_start_jobs_and_free_waits_for_them),
		cmocka_unit_test(throttled_jobs_end),
		cmocka_unit_test(nothing_to_copy_ends_too),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
