/* SPDX-License-Identifier: GPL-2.0-or-later */
/* cache's policies, driven without a cache: what they promise, and whether smq is good at what it is for. */
#include "unit.h"

#include <math.h>
#include <stdio.h>

#include <dmfs/cache_policy.h>

#include "targets/cache/levels.h"
#include "targets/cache/resident.h"

#define BLOCK 64u

static uint64_t rnd64(void)
{
	static uint64_t seed = 88172645463325252;

	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed;
}

static unsigned rnd(unsigned n)
{
	return (unsigned)(rnd64() % n);
}

/* A cache without data: does what the policy says at once, `migrations` for each access at most. */
struct sim {
	const struct cache_policy_type *type;
	void *policy;
	uint32_t cblocks;
	uint64_t oblocks;
	struct resident *resident;
	unsigned since_tick, per_tick, migrations, touched;
	uint64_t hits, accesses, promotions;
};

static void sim_init(struct sim *s, const char *policy, uint32_t cblocks, uint64_t oblocks)
{
	*s = (struct sim){.type = cache_policy_find(policy), .cblocks = cblocks, .oblocks = oblocks, .per_tick = 2000,
			  .migrations = 2};
	s->policy = s->type->create(cblocks, oblocks, BLOCK);
	s->resident = resident_new(cblocks);
	assert_non_null(s->policy);
	if (s->type->loaded)
		s->type->loaded(s->policy);
}

static void sim_free(struct sim *s)
{
	s->type->destroy(s->policy);
	resident_free(s->resident);
}

static bool sim_work(struct sim *s, enum cache_room room)
{
	struct cache_work w;
	bool ok = true;

	if (!s->type->work(s->policy, room, &w))
		return false;
	assert_true(w.cblock < s->cblocks);
	if (w.op == CACHE_PROMOTE) {
		assert_true(w.oblock < s->oblocks);
		assert_true(resident_oblock(s->resident, w.cblock) == RESIDENT_NONE);
		ok = resident_insert(s->resident, w.oblock, w.cblock);
		s->promotions += ok;
	} else if (w.op == CACHE_DEMOTE) {
		assert_true(resident_oblock(s->resident, w.cblock) != RESIDENT_NONE);
		resident_remove(s->resident, w.cblock);
	} else {
		assert_true(resident_set_dirty(s->resident, w.cblock, false));
		s->type->dirty(s->policy, w.cblock, false);
	}
	s->type->done(s->policy, &w, ok);
	return true;
}

static void sim_access(struct sim *s, uint64_t oblock, bool write)
{
	uint32_t cblock;

	s->accesses++;
	if (resident_find(s->resident, oblock, &cblock)) {
		s->hits++;
		if (resident_touch(s->resident, cblock)) {
			s->type->hit(s->policy, cblock, write);
			s->touched++;
		}
		if (s->touched > s->cblocks / 2) {
			s->touched = 0;
			resident_forget_touched(s->resident);
		}
		if (write && resident_set_dirty(s->resident, cblock, true))
			s->type->dirty(s->policy, cblock, true);
	} else {
		s->type->miss(s->policy, oblock, write);
	}
	for (unsigned i = 0; i < s->migrations && sim_work(s, CACHE_ROOM_BUSY); i++)
		;
	if (++s->since_tick >= s->per_tick) {
		s->since_tick = s->touched = 0;
		s->type->tick(s->policy);
		resident_forget_touched(s->resident);
	}
}

static double sim_ratio(struct sim *s)
{
	double r = s->accesses ? (double)s->hits / (double)s->accesses : 0;

	s->hits = s->accesses = 0;
	return r;
}

/* Ranks by Zipf's law, scattered over the origin. */
struct zipf {
	double *sums;
	uint64_t n;
};

static void zipf_init(struct zipf *z, uint64_t n, double s)
{
	z->n = n;
	z->sums = g_new(double, n);
	for (uint64_t i = 0; i < n; i++)
		z->sums[i] = (i ? z->sums[i - 1] : 0) + pow((double)i + 1, -s);
}

static uint64_t zipf_rank(struct zipf *z)
{
	double at = (double)(rnd64() >> 11) / 9007199254740992.0 * z->sums[z->n - 1];
	uint64_t low = 0, high = z->n - 1;

	while (low < high) {
		uint64_t mid = (low + high) / 2;

		if (z->sums[mid] < at)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static uint64_t zipf_next(struct zipf *z)
{
	return zipf_rank(z) * UINT64_C(2654435761) % z->n; /* n is prime or a power of two */
}

/* --- levels -------------------------------------------------------------------------------- */

static void test_levels(void **state)
{
	enum { N = 1000 };
	struct level_link links[N];
	uint8_t level[N] = {0};
	struct levels q;
	uint32_t sum = 0;

	levels_init(&q, links, level);
	assert_int_equal(levels_lowest(&q, LEVELS), LEVELS_NONE);
	for (uint32_t i = 0; i < N; i++) {
		level[i] = 0xc0;
		levels_add(&q, i, i % 3);
	}
	assert_int_equal(levels_lowest(&q, LEVELS), 0);
	levels_raise(&q, 0, 1); /* the oldest one of level 1 comes down for it */
	assert_int_equal(levels_of(&q, 0), 1);
	assert_int_equal(levels_of(&q, 1), 0);
	assert_int_equal(level[0], 0xc1); /* the owner's bits stay */
	levels_raise(&q, 5, 100);
	assert_int_equal(levels_of(&q, 5), LEVELS - 1);
	levels_balance(&q, UINT32_MAX);
	for (unsigned i = 0; i < LEVELS; i++) {
		assert_in_range(q.count[i], N / LEVELS, N / LEVELS + 1);
		sum += q.count[i];
	}
	assert_int_equal(sum, N);
	for (uint32_t i = 0; i < N; i++)
		levels_remove(&q, i);
	assert_int_equal(q.total, 0);
	assert_int_equal(levels_lowest(&q, LEVELS), LEVELS_NONE);
}

/* All in one level at first, whichever: a few steps at a time come to an end, and the order stays as it was. */
static void test_balance(void **state)
{
	enum { N = 5000, STEPS = 300 };
	static const unsigned begin[] = {0, LEVELS / 2, LEVELS - 1};

	for (unsigned round = 0; round < G_N_ELEMENTS(begin); round++) {
		g_autofree struct level_link *links = g_new(struct level_link, N);
		g_autofree uint8_t *level = g_new0(uint8_t, N);
		struct levels q;
		uint32_t next = 0;

		levels_init(&q, links, level);
		for (uint32_t i = 0; i < N; i++)
			levels_add(&q, i, begin[round]);
		for (unsigned done = 0; done < N; done += STEPS)
			levels_balance(&q, STEPS);
		for (unsigned i = 0; i < LEVELS; i++) {
			assert_in_range(q.count[i], N / LEVELS, N / LEVELS + 1);
			for (uint32_t e = q.oldest[i]; e != LEVELS_NONE; e = links[e].newer)
				assert_int_equal(e, next++);
		}
		assert_int_equal(next, N);
	}
}

/* --- resident blocks ------------------------------------------------------------------------- */

static void test_resident(void **state)
{
	enum { N = 500 };
	struct resident *r = resident_new(N);
	uint64_t model[N];
	uint32_t at;

	memset(model, 0xff, sizeof model);
	for (unsigned i = 0; i < 20000; i++) {
		uint32_t c = rnd(N);

		if (model[c] != RESIDENT_NONE) {
			assert_true(resident_find(r, model[c], &at));
			assert_int_equal(at, c);
			assert_true(resident_set_dirty(r, c, true));
			resident_remove(r, c);
			assert_false(resident_find(r, model[c], &at));
			model[c] = RESIDENT_NONE;
		} else {
			uint64_t o = rnd64() % 3000;
			bool there = resident_find(r, o, &at);

			assert_int_equal(resident_insert(r, o, c), !there);
			if (!there)
				model[c] = o;
		}
	}
	assert_int_equal(resident_nr_dirty(r), 0);
	assert_true(resident_touch(r, 3));
	assert_false(resident_touch(r, 3));
	resident_forget_touched(r);
	assert_true(resident_touch(r, 3));
	resident_free(r);
}

static void *move_about(void *data)
{
	struct resident *r = data;

	for (unsigned i = 0; i < 200000; i++) { /* blocks 0 to 9 stay, the others go from chain to chain */
		uint32_t c = 10 + i % 50;

		if (resident_oblock(r, c) != RESIDENT_NONE)
			resident_remove(r, c);
		resident_insert(r, 1000 + i, c);
	}
	return NULL;
}

static void test_lookups_beside_changes(void **state)
{
	struct resident *r = resident_new(64);
	pthread_t thread;
	uint32_t at;

	for (uint32_t i = 0; i < 10; i++)
		assert_true(resident_insert(r, i * 64, i));
	assert_int_equal(pthread_create(&thread, NULL, move_about, r), 0);
	for (unsigned i = 0; i < 300000; i++) {
		assert_true(resident_find(r, i % 10 * 64, &at));
		assert_int_equal(at, i % 10);
		assert_false(resident_find(r, 999, &at));
	}
	pthread_join(thread, NULL);
	resident_free(r);
}

/* --- all policies ------------------------------------------------------------------------------- */

static void test_names(void **state)
{
	assert_null(cache_policy_find("lru"));
	assert_null(cache_policy_find("SMQ"));
	assert_string_equal(cache_policy_find("default")->name, "smq");
	assert_int_equal(cache_policy_find("mq")->set(NULL, "sequential_threshold", "1024"), 0);
	assert_int_equal(cache_policy_find("mq")->set(NULL, "sequential_threshold", "-1"), -EINVAL);
	assert_int_equal(cache_policy_find("mq")->set(NULL, "nonsense", "1"), -EINVAL);
}

/* Accesses, failures and removals at random: no block is given twice, none is lost. */
static void test_bookkeeping(void **state)
{
	for (unsigned round = 0; round < 2; round++) {
		struct sim s;
		struct cache_work w;
		uint32_t cblock, taken = 0;

		sim_init(&s, round ? "cleaner" : "smq", 100, 1000);
		for (unsigned i = 0; i < 100000; i++) {
			uint32_t c = rnd(100);

			sim_access(&s, rnd(2) ? rnd(150) : rnd(1000), rnd(2));
			if (rnd(20) == 0 && s.type->work(s.policy, CACHE_ROOM_IDLE, &w))
				s.type->done(s.policy, &w, false);
			if (rnd(50) == 0 && resident_oblock(s.resident, c) != RESIDENT_NONE) {
				resident_remove(s.resident, c);
				s.type->removed(s.policy, c);
			}
		}
		while (s.type->take_free(s.policy, &cblock)) {
			assert_true(resident_oblock(s.resident, cblock) == RESIDENT_NONE);
			taken++;
		}
		if (!round)
			assert_int_equal(taken + resident_count(s.resident), 100);
		sim_free(&s);
	}
}

static void test_cleaner_cleans(void **state)
{
	const struct cache_policy_type *t = cache_policy_find("cleaner");
	void *p = t->create(50, 500, BLOCK);
	struct cache_work w;

	for (uint32_t i = 0; i < 50; i++)
		t->load(p, i, i % 2, NULL);
	for (uint32_t i = 0; i < 25; i++) {
		assert_true(t->work(p, CACHE_ROOM_NONE, &w));
		assert_int_equal(w.op, CACHE_WRITEBACK);
		assert_int_equal(w.cblock % 2, 1);
		if (w.cblock == 7) { /* fails; and comes again */
			t->done(p, &w, false);
			assert_true(t->work(p, CACHE_ROOM_NONE, &w));
		}
		t->dirty(p, w.cblock, false);
		t->done(p, &w, true);
	}
	while (t->work(p, CACHE_ROOM_NONE, &w)) {
		t->dirty(p, w.cblock, false);
		t->done(p, &w, true);
	}
	t->dirty(p, 4, true);
	assert_true(t->work(p, CACHE_ROOM_NONE, &w));
	assert_int_equal(w.cblock, 4);
	t->destroy(p);
}

static void test_hints_come_back(void **state)
{
	const struct cache_policy_type *t = cache_policy_find("smq");
	void *p = t->create(64, 640, BLOCK);
	uint8_t hint[4];

	for (uint32_t i = 0; i < 64; i++) {
		memcpy(hint, &(uint32_t){GUINT32_TO_LE(i)}, 4);
		t->load(p, i, false, hint);
	}
	t->loaded(p);
	for (uint32_t i = 0; i < 64; i++) {
		t->hint(p, i, hint);
		assert_int_equal(hint[0], i);
	}
	memcpy(hint, &(uint32_t){UINT32_MAX}, 4); /* nonsense is no level */
	t->destroy(p);
	p = t->create(64, 640, BLOCK);
	t->load(p, 0, true, hint);
	t->loaded(p);
	t->hint(p, 0, hint);
	assert_true(hint[0] < LEVELS);
	t->destroy(p);
}

/* --- what smq is for ------------------------------------------------------------------------------- */

#define CBLOCKS 1024u
#define OBLOCKS 16384u

/* What the best cache that never changes would hit: the hottest blocks. */
static double best(const struct zipf *z)
{
	return z->sums[CBLOCKS - 1] / z->sums[z->n - 1];
}

static void test_zipf(void **state)
{
	for (unsigned writes = 0; writes < 2; writes++) {
		struct zipf z;
		struct sim s;
		double ratio;

		zipf_init(&z, OBLOCKS, 1.1);
		sim_init(&s, "smq", CBLOCKS, OBLOCKS);
		for (unsigned i = 0; i < 400000; i++)
			sim_access(&s, zipf_next(&z), writes && rnd(2));
		sim_ratio(&s);
		s.promotions = 0;
		for (unsigned i = 0; i < 200000; i++)
			sim_access(&s, zipf_next(&z), writes && rnd(2));
		ratio = sim_ratio(&s);
		print_message("Zipf(1.1)%s: %.3f of the accesses are hits, the best that is possible is %.3f; %u promotions\n",
			      writes ? ", half of it writes" : "", ratio, best(&z), (unsigned)s.promotions);
		assert_true(ratio > 0.9 * best(&z));
		sim_free(&s);
		g_free(z.sums);
	}
}

/* A cache of many blocks, whose hottest ones are side by side: what got in first gives way to what is hotter. */
static void test_large_zipf(void **state)
{
	enum { MANY = 16384, ALL = 10 * MANY };
	struct zipf z;
	struct sim s;
	double most, ratio;

	zipf_init(&z, ALL, 1.1);
	most = z.sums[MANY - 1] / z.sums[ALL - 1];
	sim_init(&s, "smq", MANY, ALL);
	s.per_tick = 6000;
	for (unsigned i = 0; i < 1500000; i++) {
		if (i == 1000000)
			sim_ratio(&s);
		sim_access(&s, zipf_rank(&z), false);
	}
	ratio = sim_ratio(&s);
	print_message("Zipf(1.1), %u blocks: %.4f are hits, the best that is possible is %.4f\n", MANY, ratio, most);
	assert_true(1 - ratio < 1.18 * (1 - most));
	sim_free(&s);
	g_free(z.sums);
}

/*
 * Uniform use of a warm set that fits, then a scan of the whole origin, eight accesses a block, then the warm set
 * again.
 */
static void test_scan(void **state)
{
	struct sim s;
	double before, after;

	sim_init(&s, "smq", CBLOCKS, OBLOCKS);
	for (unsigned i = 0; i < 400000; i++)
		sim_access(&s, rnd(CBLOCKS * 9 / 10), false);
	sim_ratio(&s);
	for (unsigned i = 0; i < 50000; i++)
		sim_access(&s, rnd(CBLOCKS * 9 / 10), false);
	before = sim_ratio(&s);
	for (uint64_t o = 0; o < OBLOCKS; o++)
		for (unsigned i = 0; i < 8; i++)
			sim_access(&s, o, false);
	sim_ratio(&s);
	for (unsigned i = 0; i < 50000; i++)
		sim_access(&s, rnd(CBLOCKS * 9 / 10), false);
	after = sim_ratio(&s);
	print_message("a warm set: %.3f are hits, after a scan of the whole origin %.3f\n", before, after);
	assert_true(before > 0.95);
	assert_true(after > 0.9 * before);
	sim_free(&s);
}

/* What is hot changes: the new part gets in. */
static void test_zipf_moves(void **state)
{
	struct zipf z;
	struct sim s;
	double ratio;

	zipf_init(&z, OBLOCKS, 1.1);
	sim_init(&s, "smq", CBLOCKS, OBLOCKS);
	s.per_tick = 200;
	for (unsigned i = 0; i < 200000; i++)
		sim_access(&s, zipf_next(&z), false);
	for (unsigned i = 0; i < 30000; i++)
		sim_access(&s, (zipf_next(&z) + 5003) % OBLOCKS, false);
	sim_ratio(&s);
	for (unsigned i = 0; i < 10000; i++)
		sim_access(&s, (zipf_next(&z) + 5003) % OBLOCKS, false);
	ratio = sim_ratio(&s);
	print_message("Zipf(1.1) 30000 accesses after it has moved: %.3f are hits\n", ratio);
	assert_true(ratio > 0.7 * best(&z)); /* the last of the hottest have come twice since */
	sim_free(&s);
	g_free(z.sums);
}

/* Another part of the origin becomes hot: it gets in. */
static void test_change_of_mind(void **state)
{
	struct sim s;
	double after;

	sim_init(&s, "smq", CBLOCKS, OBLOCKS);
	for (unsigned i = 0; i < 300000; i++)
		sim_access(&s, rnd(CBLOCKS * 3 / 4), true);
	for (unsigned i = 0; i < 300000; i++)
		sim_access(&s, 8000 + rnd(CBLOCKS * 3 / 4), true);
	sim_ratio(&s);
	for (unsigned i = 0; i < 50000; i++)
		sim_access(&s, 8000 + rnd(CBLOCKS * 3 / 4), true);
	after = sim_ratio(&s);
	print_message("another warm set: %.3f are hits\n", after);
	assert_true(after > 0.9);
	sim_free(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_levels),
		cmocka_unit_test(test_balance),
		cmocka_unit_test(test_resident),
		cmocka_unit_test(test_lookups_beside_changes),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_bookkeeping),
		cmocka_unit_test(test_cleaner_cleans),
		cmocka_unit_test(test_hints_come_back),
		cmocka_unit_test(test_zipf),
		cmocka_unit_test(test_large_zipf),
		cmocka_unit_test(test_scan),
		cmocka_unit_test(test_change_of_mind),
		cmocka_unit_test(test_zipf_moves),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
