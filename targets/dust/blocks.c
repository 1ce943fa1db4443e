/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A set of bad blocks (blocks.h): a hash table of groups of 64 blocks, a bit each.
 *
 * Open addressing; a slot is a group's number + 1 (0: empty) and its bits.  Four neighbouring groups have homes side by
 * side, in one cache line, so that a large I/O to small blocks looks at few lines.  At most half of the slots are
 * taken.
 *
 * Readers take no lock and write nothing.  While a table is in use a slot is only ever filled, and its bits change; a
 * group without bits stays, dead.  When a table is full what lives in it moves to another: a larger one, and the old
 * one is kept until bad_blocks_trim() (sizes double, so these add up to little), or the spare one of the same size,
 * which then changes places with it.  A reader may still be in that spare, from the last time; so the version rises
 * before it is filled, and a reader who sees another version at the end than at the begin looks again.  All of a slot's
 * words are stored with release and loaded with acquire: who has read one of the new words will see the new version.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "blocks.h"

#include <dmfs/rounding.h>

#define GROUP_SHIFT 6
#define MIN_SLOTS_SHIFT 3
#define HUGE_PAGE ((size_t)2 << 20)

struct slot {
	_Atomic uint64_t group1;
	_Atomic uint64_t bits;
};

struct bad_table {
	unsigned shift; /* log2 of the slots */
	uint64_t mask;
	uint64_t used;  /* slots, dead ones included; the writers' */
	struct slot slots[];
};

static uint64_t load(_Atomic uint64_t *word)
{
	return atomic_load_explicit(word, memory_order_acquire);
}

static void store(_Atomic uint64_t *word, uint64_t value)
{
	atomic_store_explicit(word, value, memory_order_release);
}

/* A large one is on huge pages, if there are: a lookup then misses the cache, but not the TLB. */
static struct bad_table *table_new(unsigned shift)
{
	uint64_t slots = (uint64_t)1 << shift;
	size_t bytes = sizeof(struct bad_table) + slots * sizeof(struct slot);
	struct bad_table *t;

	if (bytes > HUGE_PAGE) {
		bytes = dm_round_up(bytes, HUGE_PAGE);
		t = aligned_alloc(HUGE_PAGE, bytes);
		if (!t)
			g_error("no memory for %" G_GUINT64_FORMAT " groups of bad blocks", slots);
		madvise(t, bytes, MADV_HUGEPAGE);
		memset(t, 0, bytes);
	} else {
		t = g_malloc0(bytes);
	}
	t->shift = shift;
	t->mask = slots - 1;
	return t;
}

static struct bad_table *current(struct bad_blocks *b)
{
	return atomic_load_explicit(&b->table, memory_order_acquire);
}

static uint64_t home(const struct bad_table *t, uint64_t group)
{
	uint64_t hash = (group >> 2) * 0x9e3779b97f4a7c15u;

	return (hash >> (64 - t->shift) & ~(uint64_t)3) | (group & 3);
}

/* The group's slot, or NULL.  A reader may be in a table that is being filled anew: no more than a round. */
static struct slot *find(struct bad_table *t, uint64_t group)
{
	uint64_t at = home(t, group);

	for (uint64_t i = 0; i <= t->mask; i++, at = (at + 1) & t->mask) {
		uint64_t group1 = load(&t->slots[at].group1);

		if (group1 == group + 1)
			return &t->slots[at];
		if (!group1)
			break;
	}
	return NULL;
}

/* Bits of the blocks of a group from first to last, which may lie outside. */
static uint64_t range_bits(uint64_t group, uint64_t first, uint64_t last)
{
	uint64_t bits = UINT64_MAX;

	if (first >> GROUP_SHIFT == group)
		bits &= UINT64_MAX << (first & 63);
	if (last >> GROUP_SHIFT == group)
		bits &= UINT64_MAX >> (63 - (last & 63));
	return bits;
}

static bool any_in(struct bad_table *t, uint64_t first, uint64_t last)
{
	for (uint64_t group = first >> GROUP_SHIFT; group <= last >> GROUP_SHIFT; group++) {
		struct slot *s = find(t, group);

		if (s && (load(&s->bits) & range_bits(group, first, last)))
			return true;
	}
	return false;
}

bool bad_blocks_any(struct bad_blocks *b, uint64_t first, uint64_t last)
{
	uint64_t version;
	bool any;

	if (!bad_blocks_count(b))
		return false;
	do {
		version = load(&b->version);
		any = any_in(current(b), first, last);
	} while (load(&b->version) != version);
	return any;
}

/* --- writers --------------------------------------------------------------------------- */

void bad_blocks_init(struct bad_blocks *b)
{
	memset(b, 0, sizeof *b);
	atomic_init(&b->table, table_new(MIN_SLOTS_SHIFT));
	b->retired = g_ptr_array_new_with_free_func(free);
}

void bad_blocks_destroy(struct bad_blocks *b)
{
	free(current(b));
	free(b->spare);
	g_ptr_array_free(b->retired, TRUE);
	dm_index_clear(&b->fail_counts);
}

static void insert(struct bad_table *t, uint64_t group, uint64_t bits)
{
	uint64_t at = home(t, group);

	while (atomic_load_explicit(&t->slots[at].group1, memory_order_relaxed))
		at = (at + 1) & t->mask;
	store(&t->slots[at].bits, bits);
	store(&t->slots[at].group1, group + 1);
	t->used++;
}

static void empty(struct bad_table *t)
{
	for (uint64_t i = 0; i <= t->mask; i++) {
		store(&t->slots[i].group1, 0);
		store(&t->slots[i].bits, 0);
	}
	t->used = 0;
}

/* The least table for so many groups, with room for as many again before it is half full. */
static unsigned shift_for(uint64_t groups)
{
	unsigned shift = MIN_SLOTS_SHIFT;

	while ((uint64_t)1 << shift < groups * 4)
		shift++;
	return shift;
}

static void copy_live(struct bad_table *to, struct bad_table *from)
{
	for (uint64_t i = 0; i <= from->mask; i++) {
		uint64_t bits = load(&from->slots[i].bits);

		if (bits)
			insert(to, load(&from->slots[i].group1) - 1, bits);
	}
}

/* Moves what lives to another table, as large as it now has to be but no smaller than this one. */
static void rebuild(struct bad_blocks *b)
{
	struct bad_table *old = current(b), *new;
	unsigned shift = shift_for(old->used - b->dead);

	if (shift > old->shift) {
		new = table_new(shift);
		g_ptr_array_add(b->retired, old);
		if (b->spare)
			g_ptr_array_add(b->retired, b->spare);
		b->spare = NULL;
	} else {
		new = b->spare ? b->spare : table_new(old->shift);
		atomic_fetch_add(&b->version, 1);
		empty(new);
		b->spare = old;
	}
	copy_live(new, old);
	b->dead = 0;
	atomic_store_explicit(&b->table, new, memory_order_release);
}

static void set_fail_count(struct bad_blocks *b, uint64_t block, uint8_t fail_count)
{
	dm_index_remove(&b->fail_counts, block);
	if (fail_count)
		dm_index_add(&b->fail_counts, block, fail_count);
}

void bad_blocks_add(struct bad_blocks *b, uint64_t block, uint8_t fail_count)
{
	uint64_t group = block >> GROUP_SHIFT, bit = (uint64_t)1 << (block & 63), bits;
	struct slot *s = find(current(b), group);

	set_fail_count(b, block, fail_count);
	if (s) {
		bits = load(&s->bits);
		if (bits & bit)
			return;
		if (!bits)
			b->dead--;
		store(&s->bits, bits | bit);
	} else {
		if ((current(b)->used + 1) * 2 > current(b)->mask + 1)
			rebuild(b);
		insert(current(b), group, bit);
	}
	atomic_fetch_add(&b->count, 1);
}

void bad_blocks_remove(struct bad_blocks *b, uint64_t block)
{
	struct slot *s = find(current(b), block >> GROUP_SHIFT);
	uint64_t bit = (uint64_t)1 << (block & 63), bits = s ? load(&s->bits) : 0;

	if (!(bits & bit))
		return;
	set_fail_count(b, block, 0);
	store(&s->bits, bits & ~bit);
	if (!(bits & ~bit))
		b->dead++;
	atomic_fetch_sub(&b->count, 1);
}

void bad_blocks_clear(struct bad_blocks *b)
{
	struct bad_table *t = current(b);

	for (uint64_t i = 0; i <= t->mask; i++)
		store(&t->slots[i].bits, 0);
	b->dead = t->used;
	dm_index_clear(&b->fail_counts);
	atomic_store(&b->count, 0);
}

uint8_t bad_blocks_fail_count(struct bad_blocks *b, uint64_t block)
{
	const struct dm_index_entry *e = dm_index_find(&b->fail_counts, block);

	return e ? (uint8_t)e->value : 0;
}

static gint compare(gconstpointer a, gconstpointer b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

GArray *bad_blocks_list(struct bad_blocks *b)
{
	struct bad_table *t = current(b);
	GArray *list = g_array_new(FALSE, FALSE, sizeof(uint64_t));

	for (uint64_t i = 0; i <= t->mask; i++) {
		uint64_t bits = load(&t->slots[i].bits);

		for (; bits; bits &= bits - 1) {
			uint64_t group = load(&t->slots[i].group1) - 1;
			uint64_t block = group << GROUP_SHIFT | (uint64_t)__builtin_ctzll(bits);

			g_array_append_val(list, block);
		}
	}
	g_array_sort(list, compare);
	return list;
}

void bad_blocks_trim(struct bad_blocks *b)
{
	struct bad_table *old = current(b), *new;
	unsigned shift = shift_for(old->used - b->dead);

	g_ptr_array_set_size(b->retired, 0);
	free(b->spare);
	b->spare = NULL;
	if (shift >= old->shift)
		return;
	new = table_new(shift);
	copy_live(new, old);
	b->dead = 0;
	atomic_store_explicit(&b->table, new, memory_order_release);
	free(old);
}
