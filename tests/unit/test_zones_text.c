/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Zones files: what is printed is read, whole batches count and no others, and nothing that was changed is taken for
 * good. */
#include "unit.h"

#include "io/zones_text.h"

#define ZONES 5u

static struct zones sample(void)
{
	struct zones z = {.model = DM_ZONES_HOST_MANAGED,
			  .max_open = 3,
			  .max_active = 4,
			  .logical_block = 4096,
			  .reads_fail = true,
			  .zone_sectors = 64,
			  .sectors = 64 * (ZONES - 1) + 16,
			  .n = ZONES};

	z.zone = g_new0(struct zones_zone, ZONES);
	z.zone[0] = (struct zones_zone){0, 64, DM_ZONE_CONVENTIONAL, DM_ZONE_NOT_WP};
	z.zone[1] = (struct zones_zone){0, 48, DM_ZONE_SEQUENTIAL, DM_ZONE_EMPTY};
	z.zone[2] = (struct zones_zone){7, 48, DM_ZONE_SEQUENTIAL, DM_ZONE_CLOSED};
	z.zone[3] = (struct zones_zone){64, 48, DM_ZONE_SEQUENTIAL, DM_ZONE_FULL};
	z.zone[4] = (struct zones_zone){16, 16, DM_ZONE_SEQUENTIAL, DM_ZONE_FULL};
	return z;
}

static GString *print(const struct zones *z)
{
	GString *text = g_string_new(NULL);

	zones_print_head(z, text);
	for (unsigned i = 0; i < z->n; i++)
		zones_print_zone(z, i, z->zone[i], text);
	return text;
}

static void add_batch(const struct zones *z, unsigned number, unsigned zone, uint32_t wp, GString *text)
{
	struct zones_zone changed = z->zone[zone];
	size_t from = text->len;

	changed.wp = wp;
	changed.condition = wp ? DM_ZONE_IMPLICITLY_OPEN : DM_ZONE_EMPTY;
	zones_print_zone(z, zone, changed, text);
	zones_print_commit(number, from, text);
}

static void assert_same(const struct zones *a, const struct zones *b)
{
	assert_int_equal(a->n, b->n);
	for (unsigned i = 0; i < a->n; i++) {
		assert_int_equal(a->zone[i].wp, b->zone[i].wp);
		assert_int_equal(a->zone[i].type, b->zone[i].type);
		assert_int_equal(a->zone[i].condition, b->zone[i].condition);
		assert_int_equal(a->zone[i].capacity, b->zone[i].capacity);
	}
}

static void test_what_is_printed_is_read(void **state)
{
	struct zones z = sample(), read;
	g_autoptr(GString) text = print(&z);

	assert_int_equal(zones_parse(text->str, text->len, "x", &read, NULL), 0);
	assert_same(&z, &read);
	assert_int_equal(read.model, DM_ZONES_HOST_MANAGED);
	assert_int_equal(read.max_open, 3);
	assert_int_equal(read.max_active, 4);
	assert_int_equal(read.logical_block, 4096);
	assert_true(read.reads_fail);
	assert_int_equal(read.sectors, z.sectors);
	assert_int_equal(read.bytes, text->len);
	zones_clear(&read);
	zones_clear(&z);
}

/* A power cycle closes what was open, whatever it says. */
static void test_open_zones_are_closed(void **state)
{
	struct zones z = sample(), read;
	g_autoptr(GString) text = NULL;

	z.zone[1].condition = DM_ZONE_EXPLICITLY_OPEN;
	z.zone[2].condition = DM_ZONE_IMPLICITLY_OPEN;
	text = print(&z);
	assert_int_equal(zones_parse(text->str, text->len, "x", &read, NULL), 0);
	assert_int_equal(read.zone[1].condition, DM_ZONE_EMPTY);
	assert_int_equal(read.zone[2].condition, DM_ZONE_CLOSED);
	zones_clear(&read);
	zones_clear(&z);
}

/* Cut at every byte: each batch counts once all of it is there. */
static void test_cut_anywhere(void **state)
{
	struct zones z = sample(), read;
	g_autoptr(GString) text = print(&z);
	size_t base = text->len, first, second;

	add_batch(&z, 1, 2, 20, text);
	first = text->len;
	add_batch(&z, 2, 2, 0, text);
	second = text->len;
	for (size_t len = 0; len <= second; len++) {
		g_autoptr(GError) err = NULL;
		int error = zones_parse(text->str, len, "x", &read, &err);

		if (len >= base) {
			assert_int_equal(error, 0);
			assert_int_equal(read.n, ZONES);
			assert_int_equal(read.zone[2].wp, len < first ? 7 : len < second ? 20 : 0);
			assert_int_equal(read.bytes, len < first ? base : len < second ? first : second);
		} else if (!error) {
			assert_true(read.n < ZONES); /* the file is longer then, and that is refused */
		} else {
			assert_non_null(err);
		}
		zones_clear(&read);
	}
	zones_clear(&z);
}

/* A bit of a batch changed: it does not count, nor what follows. */
static void test_changed_batches(void **state)
{
	struct zones z = sample(), read;
	g_autoptr(GString) text = print(&z);
	size_t base = text->len, end;

	add_batch(&z, 1, 2, 20, text);
	end = text->len;
	add_batch(&z, 2, 1, 8, text);
	for (size_t at = base; at < end; at++)
		for (unsigned bit = 0; bit < 8; bit += 3) {
			text->str[at] ^= (char)(1u << bit);
			if (!zones_parse(text->str, text->len, "x", &read, NULL)) {
				assert_int_equal(read.bytes <= base, 1);
				assert_true(read.n != ZONES || read.zone[2].wp == 7);
			}
			zones_clear(&read);
			text->str[at] ^= (char)(1u << bit);
		}
	zones_clear(&z);
}

/* The number tells batches apart that a crash could have left of an older text. */
static void test_batches_out_of_order(void **state)
{
	struct zones z = sample(), read;
	g_autoptr(GString) text = print(&z);

	add_batch(&z, 2, 2, 20, text);
	assert_int_equal(zones_parse(text->str, text->len, "x", &read, NULL), 0);
	assert_int_equal(read.zone[2].wp, 7);
	assert_int_equal(read.commits, 0);
	zones_clear(&read);
	zones_clear(&z);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_what_is_printed_is_read),
	    cmocka_unit_test(test_open_zones_are_closed),
	    cmocka_unit_test(test_cut_anywhere),
	    cmocka_unit_test(test_changed_batches),
	    cmocka_unit_test(test_batches_out_of_order),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
