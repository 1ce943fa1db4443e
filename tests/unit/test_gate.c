/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A gate alone: who is inside, closing and opening, the last one to leave, and counters that wrap. */
#include "unit.h"

#include <dmfs/gate.h>

static void enter(struct dm_gate *g, unsigned n)
{
	while (n--)
		assert_true(dm_gate_enter(g));
}

static void leave(struct dm_gate *g, unsigned n)
{
	while (n--)
		dm_gate_exit(g);
}

static void a_closed_gate_lets_nobody_in(void **state)
{
	struct dm_gate g;

	dm_gate_init(&g);
	enter(&g, 3);
	dm_gate_close(&g);
	assert_false(dm_gate_enter(&g));
	assert_int_equal(dm_gate_inside(&g), 3);
	leave(&g, 3);
	assert_int_equal(dm_gate_inside(&g), 0);
	assert_true(dm_gate_wait(&g, NULL, NULL));
	assert_true(dm_gate_open(&g));
	enter(&g, 1);
	leave(&g, 1);
	dm_gate_destroy(&g);
}

static void closes_nest(void **state)
{
	struct dm_gate g;

	dm_gate_init(&g);
	dm_gate_close(&g);
	dm_gate_close(&g);
	assert_false(dm_gate_open(&g));
	assert_false(dm_gate_enter(&g));
	assert_true(dm_gate_open(&g));
	enter(&g, 1);
	leave(&g, 1);
	dm_gate_destroy(&g);
}

static bool no_more(void *asked)
{
	return ++*(unsigned *)asked > 1;
}

static void a_wait_can_be_interrupted(void **state)
{
	struct dm_gate g;
	unsigned asked = 0;

	dm_gate_init(&g);
	enter(&g, 1);
	dm_gate_close(&g);
	assert_false(dm_gate_wait(&g, no_more, &asked));
	assert_int_equal(asked, 2);
	leave(&g, 1);
	assert_true(dm_gate_wait(&g, no_more, &asked));
	dm_gate_open(&g);
	dm_gate_destroy(&g);
}

/* On 32 bits the counter of those who left, which has a bit less than the other, wraps first. */
static void counters_may_wrap(void **state)
{
	static const unsigned long starts[] = {ULONG_MAX / 2 - 3, ULONG_MAX / 2 + 1, ULONG_MAX - 3};

	for (unsigned i = 0; i < G_N_ELEMENTS(starts); i++) {
		struct dm_gate g;

		dm_gate_init(&g);
		atomic_store(&g.slots[0].in, starts[i]); /* one slot alone: what several have lost could add up to nothing */
		atomic_store(&g.slots[0].out, 2 * starts[i]);
		assert_int_equal(dm_gate_inside(&g), 0);
		for (unsigned round = 0; round < 8; round++) {
			enter(&g, 5);
			assert_int_equal(dm_gate_inside(&g), 5);
			leave(&g, 2);
			dm_gate_close(&g);
			assert_int_equal(dm_gate_inside(&g), 3);
			leave(&g, 3);
			assert_int_equal(dm_gate_inside(&g), 0);
			assert_true(dm_gate_open(&g));
		}
		dm_gate_destroy(&g);
	}
}

static atomic_uint drains;

static void drained(struct dm_gate *g)
{
	atomic_fetch_add(&drains, 1);
}

static void the_last_one_tells(void **state)
{
	struct dm_gate g;

	dm_gate_init(&g);
	g.drained = drained;
	atomic_store(&drains, 0);
	enter(&g, 2);
	leave(&g, 1);
	dm_gate_close(&g);
	assert_int_equal(atomic_load(&drains), 0);
	leave(&g, 1);
	assert_int_equal(atomic_load(&drains), 1);
	dm_gate_open(&g);
	dm_gate_destroy(&g);
}

/* --- many at once ---------------------------------------------------------------------------- */

#define THREADS 4

struct crowd {
	struct dm_gate gate;
	atomic_bool over;
	atomic_uint inside;
	atomic_ulong entered;
};

static void *come_and_go(void *data)
{
	struct crowd *c = data;

	while (!atomic_load(&c->over)) {
		if (!dm_gate_enter(&c->gate)) {
			g_thread_yield();
			continue;
		}
		atomic_fetch_add(&c->inside, 1);
		atomic_fetch_add(&c->entered, 1);
		atomic_fetch_sub(&c->inside, 1);
		dm_gate_exit(&c->gate);
	}
	return NULL;
}

static void nobody_is_inside_when_the_wait_is_over(void **state)
{
	struct crowd c = {.over = false};
	GThread *threads[THREADS];

	dm_gate_init(&c.gate);
	for (unsigned i = 0; i < THREADS; i++)
		threads[i] = g_thread_new("crowd", come_and_go, &c);
	for (unsigned round = 0; round < 2000; round++) {
		unsigned long before;

		dm_gate_close(&c.gate);
		assert_true(dm_gate_wait(&c.gate, NULL, NULL));
		before = atomic_load(&c.entered);
		assert_int_equal(atomic_load(&c.inside), 0);
		if (round % 64 == 0)
			g_thread_yield();
		assert_int_equal(atomic_load(&c.inside), 0);
		assert_int_equal(atomic_load(&c.entered), before);
		dm_gate_open(&c.gate);
		while (round % 16 == 0 && atomic_load(&c.entered) == before)
			g_thread_yield();
	}
	atomic_store(&c.over, true);
	for (unsigned i = 0; i < THREADS; i++)
		g_thread_join(threads[i]);
	dm_gate_destroy(&c.gate);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_closed_gate_lets_nobody_in),
		cmocka_unit_test(closes_nest),
		cmocka_unit_test(a_wait_can_be_interrupted),
		cmocka_unit_test(counters_may_wrap),
		cmocka_unit_test(the_last_one_tells),
		cmocka_unit_test(nobody_is_inside_when_the_wait_is_over),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
