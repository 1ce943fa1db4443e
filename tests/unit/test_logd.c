/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What dmfs-logd knows of a log: who may copy and write to what, by every order of events that a random walk finds. */
#include "unit.h"

#include "../../tools/dmfs-logd/state.c"

#define REGIONS 40u
#define CLIENTS 4u
#define STEPS 200000u

/* What each client does with a region, as its mirror would. */
enum use { IDLE, MARKED, DIRTY, NOSYNC, COPYING };

static enum use uses[CLIENTS][REGIONS];
static bool told_out_of_sync[CLIENTS][REGIONS]; /* its worker is about to ask whose the region is */
static bool clean_on_disk[REGIONS];

static void note_clean(void *context, uint64_t region, bool clean)
{
	clean_on_disk[region] = clean;
}

/* The promises: nobody else uses what is copied, or written to out of sync; and what is in use is not clean. */
static void check(const struct log_state *s)
{
	uint64_t in_sync = 0;

	for (uint64_t r = 0; r < REGIONS; r++) {
		unsigned used = 0, alone = 0;

		for (unsigned i = 0; i < CLIENTS; i++) {
			assert_true(!log_in_sync(s, r) || uses[i][r] != NOSYNC); /* it would write to one leg only */
			used += uses[i][r] > MARKED;
			alone += uses[i][r] == NOSYNC || uses[i][r] == COPYING;
		}
		assert_true(!alone || used == 1);
		assert_true(!used || !log_is_clean(s, r));
		assert_true(!clean_on_disk[r] || log_is_clean(s, r));
		in_sync += log_in_sync(s, r);
	}
	assert_int_equal(s->in_sync, in_sync);
}

static void ask_whose(struct log_client *c, unsigned i, uint64_t r)
{
	told_out_of_sync[i][r] = false;
	if (!log_is_remote(c, r)) {
		uses[i][r] = NOSYNC;
	} else if (uses[i][r] == MARKED) {
		log_clear(c, r);
		uses[i][r] = IDLE;
	}
}

/* A write as lib/regions_shared.c does it; anything may happen between its mark and any two of its questions. */
static void write_to(struct log_client *c, unsigned i, uint64_t r)
{
	if (uses[i][r] > MARKED)
		return;
	if (told_out_of_sync[i][r]) {
		ask_whose(c, i, r);
	} else if (!log_in_sync(c->state, r)) {
		told_out_of_sync[i][r] = true;
	} else if (uses[i][r] == MARKED) {
		uses[i][r] = DIRTY;
	} else {
		log_mark(c, r);
		uses[i][r] = MARKED;
	}
}

static void copy(struct log_client *c, unsigned i)
{
	uint64_t r;

	if (!log_work(c, &r))
		return;
	assert_false(log_in_sync(c->state, r));
	assert_true(uses[i][r] != COPYING);
	if (uses[i][r] == MARKED || told_out_of_sync[i][r]) { /* its worker does one thing after the other */
		assert_true(log_set_sync(c, r, false));
		return;
	}
	uses[i][r] = COPYING; /* its own writes wait for the copy */
}

static void copied(struct log_client *c, unsigned i, uint64_t r, bool ok)
{
	if (uses[i][r] != COPYING)
		return;
	assert_true(log_set_sync(c, r, ok));
	uses[i][r] = ok ? DIRTY : NOSYNC;
}

static void clear(struct log_client *c, unsigned i, uint64_t r)
{
	if (uses[i][r] != DIRTY)
		return;
	log_clear(c, r);
	uses[i][r] = IDLE;
}

static void lose(struct log_client *c, unsigned i, uint64_t r)
{
	bool others = false;

	for (unsigned k = 0; k < CLIENTS; k++)
		others |= k != i && uses[k][r] != IDLE;
	if (uses[i][r] != DIRTY || others)
		return;
	assert_true(log_set_sync(c, r, false));
	uses[i][r] = NOSYNC;
}

static void step(struct log_state *s, struct log_client **c, GRand *rand)
{
	unsigned i = (unsigned)g_rand_int_range(rand, 0, CLIENTS);
	uint64_t r = (uint64_t)g_rand_int_range(rand, 0, REGIONS);

	switch (g_rand_int_range(rand, 0, 60)) {
	case 0: /* dies */
		log_leave(c[i]);
		memset(uses[i], 0, sizeof uses[i]);
		memset(told_out_of_sync[i], 0, sizeof told_out_of_sync[i]);
		c[i] = log_join(s);
		assert_false(log_work(c[i], &r)); /* not before it has resumed */
		log_resume(c[i]);
		break;
	case 1:
		log_postsuspend(c[i]);
		memset(uses[i], 0, sizeof uses[i]);
		memset(told_out_of_sync[i], 0, sizeof told_out_of_sync[i]);
		log_resume(c[i]);
		break;
	case 2:
		lose(c[i], i, r);
		break;
	case 3 ... 20:
		write_to(c[i], i, r);
		break;
	case 21 ... 30:
		copy(c[i], i);
		break;
	case 31 ... 45:
		copied(c[i], i, r, g_rand_int_range(rand, 0, 10));
		break;
	default:
		clear(c[i], i, r);
		break;
	}
}

static void nobody_comes_in_between(void **state)
{
	for (unsigned seed = 0; seed < 4; seed++) {
		GRand *rand = g_rand_new_with_seed(seed);
		struct log_state *s = log_state_new(REGIONS, seed & 1);
		struct log_client *c[CLIENTS];

		memset(uses, 0, sizeof uses);
		memset(told_out_of_sync, 0, sizeof told_out_of_sync);
		memset(clean_on_disk, 0, sizeof clean_on_disk);
		s->changed = note_clean;
		for (unsigned i = 0; i < CLIENTS; i++)
			log_resume(c[i] = log_join(s));
		for (unsigned n = 0; n < STEPS / 4; n++) {
			step(s, c, rand);
			check(s);
		}
		for (unsigned i = 0; i < CLIENTS; i++)
			log_leave(c[i]);
		assert_int_equal(g_hash_table_size(s->holders), 0);
		log_state_free(s);
		g_rand_free(rand);
	}
}

/* All comes in sync if everybody does what he is there for. */
static void everything_is_copied_in_the_end(void **state)
{
	struct log_state *s = log_state_new(1000, false);
	struct log_client *c[3];
	uint64_t r, copied_by[3] = {0};

	for (unsigned i = 0; i < 3; i++)
		log_resume(c[i] = log_join(s));
	assert_false(log_is_remote(c[0], 500));
	assert_true(log_is_remote(c[1], 500)); /* so the first copies it first */
	assert_true(log_work(c[0], &r) && r == 500);
	assert_true(log_set_sync(c[0], 500, true));
	for (unsigned i = 0; s->in_sync < 1000; i = (i + 1) % 3) {
		assert_int_equal(log_hint(s) < 1000, true);
		if (!log_work(c[i], &r))
			continue;
		copied_by[i]++;
		assert_true(log_set_sync(c[i], r, true));
		log_clear(c[i], r);
	}
	for (unsigned i = 0; i < 3; i++)
		assert_true(copied_by[i] > 200);
	assert_int_equal(log_hint(s), 1000);
	assert_false(log_work(c[0], &r));
	for (unsigned i = 0; i < 3; i++)
		log_leave(c[i]);
	assert_int_equal(s->in_sync, 999); /* the first had 500 not cleared */
	log_state_free(s);
}

static void in_the_time_of_grace(void **state)
{
	struct log_state *s = log_state_new(10, false);
	struct log_client *a = log_join(s), *b = log_join(s);
	uint64_t r;

	s->grace = true;
	log_resume(a);
	log_resume(b);
	log_mark(a, 3);
	assert_false(log_work(a, &r));
	assert_false(log_is_remote(a, 3)); /* it was its before */
	assert_true(log_is_remote(b, 3));
	assert_true(log_is_remote(b, 4));
	assert_true(log_set_sync(a, 3, true)); /* a copy that has gone on meanwhile */
	assert_false(log_set_sync(b, 4, true));
	s->grace = false;
	assert_false(log_is_remote(b, 4));
	assert_true(log_work(a, &r) && r == 0);
	log_leave(a);
	log_leave(b);
	log_state_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(nobody_comes_in_between),
		cmocka_unit_test(everything_is_copied_in_the_end),
		cmocka_unit_test(in_the_time_of_grace),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
