/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Block locks: who gets which blocks when, against a simple model, and from many threads at once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <stdlib.h>

#include <dmfs/block_lock.h>
#include <dmfs/container_of.h>
#include <dmfs/hold.h>

struct one {
	struct dm_block_claim claim;
	bool held;
	unsigned granted; /* calls */
};

static void granted(struct dm_block_claim *claim)
{
	struct one *o = container_of(claim, struct one, claim);

	o->granted++;
	o->held = true;
}

static void ask(struct dm_block_lock *l, struct one *o, uint64_t first, uint64_t last, enum dm_block_mode mode)
{
	*o = (struct one){0};
	if (dm_block_lock(l, &o->claim, first, last, mode, granted))
		o->held = true;
}

static void give_up(struct dm_block_lock *l, struct one *o)
{
	assert_true(o->held);
	o->held = false;
	dm_block_unlock(l, &o->claim, NULL);
}

static void one_block_in_turn(void **state)
{
	struct dm_block_lock *l = dm_block_lock_new(0);
	struct one o[4], other;

	(void)state;
	for (int i = 0; i < 4; i++)
		ask(l, &o[i], 7, 7, DM_BLOCK_EXCLUSIVE);
	ask(l, &other, 8, 8, DM_BLOCK_EXCLUSIVE);
	assert_true(other.held);
	for (int i = 0; i < 4; i++) {
		for (int j = i; j < 4; j++)
			assert_true(o[j].held == (j == i));
		assert_int_equal(o[i].granted, i > 0);
		give_up(l, &o[i]);
	}
	give_up(l, &other);
	dm_block_lock_free(l);
}

static void shared_ones_together(void **state)
{
	struct dm_block_lock *l = dm_block_lock_new(0);
	struct one a, b, w, c, d;

	(void)state;
	ask(l, &a, 1, 1, DM_BLOCK_SHARED);
	ask(l, &b, 1, 1, DM_BLOCK_SHARED);
	ask(l, &w, 1, 1, DM_BLOCK_EXCLUSIVE);
	ask(l, &c, 1, 1, DM_BLOCK_SHARED); /* not before w: nobody starves */
	ask(l, &d, 0, 3, DM_BLOCK_SHARED);
	assert_true(a.held && b.held && !w.held && !c.held && !d.held);
	give_up(l, &b);
	assert_false(w.held);
	give_up(l, &a);
	assert_true(w.held && !c.held && !d.held);
	give_up(l, &w);
	assert_true(c.held && d.held);
	give_up(l, &c);
	give_up(l, &d);
	dm_block_lock_free(l);
}

static void ranges_and_the_last_block_there_is(void **state)
{
	struct dm_block_lock *l = dm_block_lock_new(3);
	struct one all, end, low;

	(void)state;
	ask(l, &end, UINT64_MAX - 2, UINT64_MAX, DM_BLOCK_EXCLUSIVE);
	ask(l, &low, 0, 9, DM_BLOCK_EXCLUSIVE);
	ask(l, &all, 0, UINT64_MAX, DM_BLOCK_EXCLUSIVE);
	assert_true(end.held && low.held && !all.held);
	give_up(l, &end);
	assert_false(all.held);
	give_up(l, &low);
	assert_true(all.held);
	assert_int_equal(all.granted, 1);
	give_up(l, &all);
	dm_block_lock_free(l);
}

static void who_gives_up_lets_others_by(void **state)
{
	struct dm_block_lock *l = dm_block_lock_new(0);
	struct dm_block_claim try;
	struct one a, w, s;

	(void)state;
	ask(l, &a, 0, 200, DM_BLOCK_SHARED);
	ask(l, &w, 100, 300, DM_BLOCK_EXCLUSIVE);
	ask(l, &s, 150, 150, DM_BLOCK_SHARED);
	assert_true(!w.held && !s.held);
	assert_false(dm_block_trylock(l, &try, 150, 150, DM_BLOCK_SHARED, NULL));
	assert_true(dm_block_cancel(l, &w.claim, NULL));
	assert_true(s.held && !w.granted);
	assert_false(dm_block_cancel(l, &s.claim, NULL));
	assert_true(dm_block_trylock(l, &try, 150, 400, DM_BLOCK_SHARED, NULL));
	dm_block_unlock(l, &try, NULL);
	give_up(l, &a);
	give_up(l, &s);
	dm_block_lock_free(l);
}

/* --- granted() calls --- */

#define LONG_QUEUE 200000

static struct {
	struct dm_block_lock *l;
	unsigned depth, deepest, count;
} chain;

static void granted_and_done(struct dm_block_claim *claim)
{
	chain.depth++;
	chain.deepest = MAX(chain.deepest, chain.depth);
	chain.count++;
	dm_block_unlock(chain.l, claim, NULL);
	chain.depth--;
}

/* Each gives the block up inside its granted(): neither the stack nor the time grows with the queue's square. */
static void long_queue(void **state)
{
	struct dm_block_claim *claims = g_new(struct dm_block_claim, LONG_QUEUE);

	(void)state;
	chain.l = dm_block_lock_new(0);
	assert_true(dm_block_lock(chain.l, &claims[0], 5, 5, DM_BLOCK_EXCLUSIVE, granted_and_done));
	for (unsigned i = 1; i < LONG_QUEUE; i++)
		assert_false(dm_block_lock(chain.l, &claims[i], 5, 5, DM_BLOCK_EXCLUSIVE, granted_and_done));
	dm_block_unlock(chain.l, &claims[0], NULL);
	assert_int_equal(chain.count, LONG_QUEUE - 1);
	assert_int_equal(chain.deepest, 1);
	dm_block_lock_free(chain.l);
	g_free(claims);
}

static void parked_bios_come_back(void **state)
{
	struct dm_block_lock *l = dm_block_lock_new(0);
	struct dm_block_claim holder, second, range;
	struct dm_bio bios[3] = {{.op = DM_WRITE}};
	struct dm_bio_list out;

	(void)state;
	dm_bio_list_init(&out);
	assert_int_equal(dm_block_lock_or_park(l, &holder, 9, &bios[0]), 0);
	assert_int_equal(dm_block_lock_or_park(l, &second, 9, &bios[1]), 1);
	assert_int_equal(dm_block_lock_or_park(l, &second, 9, &bios[2]), 1);
	dm_block_unlock(l, &holder, &out);
	assert_ptr_equal(dm_bio_list_pop(&out), &bios[1]);
	assert_ptr_equal(dm_bio_list_pop(&out), &bios[2]);
	assert_null(dm_bio_list_pop(&out));
	/* with a range over several shards */
	assert_true(dm_block_lock(l, &range, 0, 1000, DM_BLOCK_SHARED, granted));
	assert_int_equal(dm_block_lock_or_park(l, &second, 500, &bios[0]), 1);
	assert_int_equal(dm_block_lock_or_park(l, &second, 501, &bios[1]), 1);
	dm_block_unlock(l, &range, &out);
	assert_non_null(dm_bio_list_pop(&out));
	assert_non_null(dm_bio_list_pop(&out));
	assert_null(dm_bio_list_pop(&out));
	dm_block_lock_free(l);
}

static unsigned interrupted;

static void parked_end(struct dm_bio *bio)
{
	assert_int_equal(bio->error, -EINTR);
	interrupted++;
}

static void the_dead_do_not_stay_parked(void **state)
{
	struct dm_block_lock *l = dm_block_lock_new(0);
	struct dm_block_claim holder, other;
	struct dm_origin origin[3];
	struct dm_bio bios[3];
	struct dm_bio_list out;

	(void)state;
	dm_bio_list_init(&out);
	assert_int_equal(dm_block_lock_or_park(l, &holder, 1, NULL), 0);
	for (int i = 0; i < 3; i++) {
		dm_origin_init(&origin[i]);
		bios[i] = (struct dm_bio){.op = DM_WRITE, .end = parked_end, .origin = &origin[i]};
		assert_int_equal(dm_block_lock_or_park(l, &other, 1, &bios[i]), 1);
	}
	dm_origin_cancel(&origin[2]); /* the last one, then the first */
	dm_origin_cancel(&origin[0]);
	assert_int_equal(interrupted, 2);
	assert_int_equal(dm_block_lock_or_park(l, &other, 1, &bios[0]), -EINTR); /* and not again */
	assert_int_equal(dm_block_lock_or_park(l, &other, 1, NULL), 1);
	dm_block_unlock(l, &holder, &out);
	assert_ptr_equal(dm_bio_list_pop(&out), &bios[1]);
	assert_null(out.head);
	for (int i = 0; i < 3; i++)
		dm_origin_destroy(&origin[i]);
	dm_block_lock_free(l);
}

/* --- against a model --- */

#define CLAIMS 300

/* Whether it is b's turn: no earlier claim that is still there is in its way. */
static bool model_held(GPtrArray *order, struct one *o)
{
	for (unsigned i = 0; order->pdata[i] != o; i++) {
		struct one *earlier = order->pdata[i];

		if (earlier->claim.first <= o->claim.last && o->claim.first <= earlier->claim.last &&
		    (earlier->claim.mode == DM_BLOCK_EXCLUSIVE || o->claim.mode == DM_BLOCK_EXCLUSIVE))
			return false;
	}
	return true;
}

static void random_claims(unsigned seed, unsigned shift, unsigned blocks, unsigned longest)
{
	struct dm_block_lock *l = dm_block_lock_new(shift);
	GPtrArray *order = g_ptr_array_new();
	GRand *rand = g_rand_new_with_seed(seed);

	for (unsigned step = 0; step < 4000 || order->len; step++) {
		if (step < 4000 && order->len < CLAIMS && g_rand_int_range(rand, 0, 5) < 3) {
			struct one *o = g_new0(struct one, 1);
			uint64_t first = (uint64_t)g_rand_int_range(rand, 0, (gint32)blocks);
			uint64_t len = g_rand_int_range(rand, 0, 3) ? 0 : (uint64_t)g_rand_int_range(rand, 0, (gint32)longest);

			g_ptr_array_add(order, o);
			ask(l, o, first, first + len, g_rand_boolean(rand) ? DM_BLOCK_SHARED : DM_BLOCK_EXCLUSIVE);
		} else if (order->len) {
			unsigned i = (unsigned)g_rand_int_range(rand, 0, (gint32)order->len);
			struct one *o = order->pdata[i];

			g_ptr_array_remove_index(order, i);
			if (o->held)
				give_up(l, o);
			else
				assert_true(dm_block_cancel(l, &o->claim, NULL));
			g_free(o);
		}
		for (unsigned i = 0; i < order->len; i++) {
			struct one *o = order->pdata[i];

			assert_true(o->held == model_held(order, o));
			assert_true(o->granted <= 1);
		}
	}
	g_rand_free(rand);
	g_ptr_array_free(order, TRUE);
	dm_block_lock_free(l);
}

static void as_the_model_says(void **state)
{
	(void)state;
	random_claims(1, 0, 20, 10);
	random_claims(2, 0, 1000, 300);
	random_claims(3, 4, 1000, 100);
	random_claims(4, 6, 4000, 4000);
}

/* --- many threads --- */

#define THREADS 8
#define BLOCKS 150
#define ROUNDS 4000

static struct {
	struct dm_block_lock *l;
	atomic_int users[BLOCKS]; /* -1: exclusively */
	atomic_uint left;
} busy;

struct mine {
	struct dm_block_claim claim;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool turn;
};

static void use_blocks(struct dm_block_claim *claim, bool begin)
{
	for (uint64_t b = claim->first; b <= claim->last; b++) {
		if (claim->mode == DM_BLOCK_EXCLUSIVE) {
			int was = begin ? 0 : -1;

			if (!atomic_compare_exchange_strong(&busy.users[b], &was, begin ? -1 : 0))
				abort();
		} else if (atomic_fetch_add(&busy.users[b], begin ? 1 : -1) < (begin ? 0 : 1)) {
			abort();
		}
	}
}

static void my_turn(struct dm_block_claim *claim)
{
	struct mine *m = container_of(claim, struct mine, claim);

	pthread_mutex_lock(&m->lock);
	m->turn = true;
	pthread_cond_signal(&m->cond);
	pthread_mutex_unlock(&m->lock);
}

static void *compete(void *data)
{
	struct mine m = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};
	GRand *rand = g_rand_new_with_seed((guint32)GPOINTER_TO_UINT(data));

	for (unsigned i = 0; i < ROUNDS; i++) {
		uint64_t first = (uint64_t)g_rand_int_range(rand, 0, BLOCKS), last = first;
		enum dm_block_mode mode = g_rand_boolean(rand) ? DM_BLOCK_SHARED : DM_BLOCK_EXCLUSIVE;
		unsigned how = (unsigned)g_rand_int_range(rand, 0, 10);

		if (how < 4)
			last = first + (uint64_t)g_rand_int_range(rand, 0, how ? 4 : BLOCKS);
		last = MIN(last, BLOCKS - 1);
		m.turn = false;
		if (how == 5) {
			if (!dm_block_trylock(busy.l, &m.claim, first, last, mode, NULL))
				continue;
		} else if (!dm_block_lock(busy.l, &m.claim, first, last, mode, my_turn)) {
			if (how == 6 && dm_block_cancel(busy.l, &m.claim, NULL))
				continue;
			pthread_mutex_lock(&m.lock);
			while (!m.turn)
				pthread_cond_wait(&m.cond, &m.lock);
			pthread_mutex_unlock(&m.lock);
		}
		use_blocks(&m.claim, true);
		use_blocks(&m.claim, false);
		dm_block_unlock(busy.l, &m.claim, NULL);
	}
	g_rand_free(rand);
	return NULL;
}

static void many_threads(void **state)
{
	pthread_t threads[THREADS];

	(void)state;
	busy.l = dm_block_lock_new(0);
	for (uintptr_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, compete, GUINT_TO_POINTER((unsigned)i + 1)), 0);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	dm_block_lock_free(busy.l);
}

/* --- the same from callbacks: each asks for the next blocks in its turn --- */

#define WALKERS 64
#define STEPS 500

struct walker {
	struct dm_block_claim claim;
	unsigned step;
	uint64_t at;
};

static void walk(struct walker *w);

static void walker_turn(struct dm_block_claim *claim)
{
	struct walker *w = container_of(claim, struct walker, claim);

	use_blocks(claim, true);
	use_blocks(claim, false);
	dm_block_unlock(busy.l, claim, NULL);
	walk(w);
}

static void walk(struct walker *w)
{
	while (w->step++ < STEPS) {
		w->at = (w->at * 5 + 3) % (BLOCKS - 8);
		if (!dm_block_lock(busy.l, &w->claim, w->at, w->at + w->step % 8,
				   w->step % 3 ? DM_BLOCK_EXCLUSIVE : DM_BLOCK_SHARED, walker_turn))
			return;
		use_blocks(&w->claim, true);
		use_blocks(&w->claim, false);
		dm_block_unlock(busy.l, &w->claim, NULL);
	}
	atomic_fetch_sub(&busy.left, 1);
}

static void *start_walkers(void *data)
{
	for (struct walker *w = data, *end = w + WALKERS / 4; w < end; w++)
		walk(w);
	return NULL;
}

static void callbacks_from_many_threads(void **state)
{
	struct walker *walkers = g_new0(struct walker, WALKERS);
	pthread_t threads[4];

	(void)state;
	busy.l = dm_block_lock_new(2);
	atomic_store(&busy.left, WALKERS);
	for (unsigned i = 0; i < WALKERS; i++)
		walkers[i].at = i;
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, start_walkers, walkers + i * (WALKERS / 4)), 0);
	for (unsigned i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	/* A claim is held by a thread that is in walk(): with the last of them all are through. */
	assert_int_equal(atomic_load(&busy.left), 0);
	dm_block_lock_free(busy.l);
	g_free(walkers);
}

/* --- who waits himself ---------------------------------------------------------------------------- */

struct sleeper {
	struct dm_block_lock *l;
	atomic_bool asked;
	uint64_t *count; /* of the lock */
};

static void *count_with_lock(void *arg)
{
	struct sleeper *s = arg;

	for (int i = 0; i < 1000; i++) {
		struct dm_block_sync_claim c;

		atomic_store(&s->asked, true);
		dm_block_lock_sync(s->l, &c, 5, 7, DM_BLOCK_EXCLUSIVE);
		++*s->count;
		dm_block_unlock(s->l, &c.claim, NULL);
	}
	return NULL;
}

static void works_that_wait(void **state)
{
	struct dm_block_lock *l = dm_block_lock_new(0);
	uint64_t count = 0;
	struct sleeper s[3];
	struct dm_block_sync_claim own;
	pthread_t threads[3];

	dm_block_lock_sync(l, &own, 6, 6, DM_BLOCK_EXCLUSIVE); /* there is nobody: at once */
	for (int i = 0; i < 3; i++) {
		s[i].l = l;
		s[i].count = &count;
		atomic_init(&s[i].asked, false);
		assert_int_equal(pthread_create(&threads[i], NULL, count_with_lock, &s[i]), 0);
		while (!atomic_load(&s[i].asked))
			sched_yield();
	}
	assert_int_equal(count, 0); /* it is ours */
	dm_block_unlock(l, &own.claim, NULL);
	for (int i = 0; i < 3; i++)
		pthread_join(threads[i], NULL);
	assert_int_equal(count, 3000);
	dm_block_lock_free(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_block_in_turn),
		cmocka_unit_test(shared_ones_together),
		cmocka_unit_test(ranges_and_the_last_block_there_is),
		cmocka_unit_test(who_gives_up_lets_others_by),
		cmocka_unit_test(long_queue),
		cmocka_unit_test(parked_bios_come_back),
		cmocka_unit_test(the_dead_do_not_stay_parked),
		cmocka_unit_test(as_the_model_says),
		cmocka_unit_test(many_threads),
		cmocka_unit_test(callbacks_from_many_threads),
		cmocka_unit_test(works_that_wait),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
