/* SPDX-License-Identifier: GPL-2.0-or-later */
/* In which order bios that a thread submits go out, through three devices that write down what reaches them. */
#include "unit.h"

#include <dmfs/io.h>

static GString *seen;
static bool push; /* the one in the middle sends each part out before the next */

static void note(char what, const struct dm_bio *bio)
{
	g_string_append_printf(seen, "%c%d ", what, (int)bio->sector);
}

static void lower_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	note('L', bio);
	dm_bio_end(bio, 0);
}

static const struct dm_dev_ops lower_ops = {.submit = lower_submit};
static struct dm_dev lower = {.ops = &lower_ops, .refs = 1};

struct parent {
	struct dm_parts counted; /* first */
	struct dm_bio parts[2];
};

static void part_end(struct dm_bio *part)
{
	dm_parts_end(part->private, part->error);
}

/* Splits a bio in two. */
static void split(struct dm_bio *bio, struct dm_dev *to, bool now)
{
	struct parent *p = g_new0(struct parent, 1);

	dm_parts_init(&p->counted, bio, 2);
	for (int i = 0; i < 2; i++) {
		p->parts[i] = (struct dm_bio){.op = DM_WRITE, .dev = to, .sector = bio->sector * 10 + i, .sectors = 1,
					      .end = part_end, .private = p};
		if (now)
			dm_submit_now(&p->parts[i]);
		else
			dm_submit(&p->parts[i]);
	}
}

static void middle_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	note('M', bio);
	split(bio, &lower, push);
	g_string_append(seen, "m ");
}

static const struct dm_dev_ops middle_ops = {.submit = middle_submit};
static struct dm_dev middle = {.ops = &middle_ops, .refs = 1};

static void upper_submit(struct dm_dev *dev, struct dm_bio *bio)
{
	note('U', bio);
	split(bio, &middle, false);
}

static const struct dm_dev_ops upper_ops = {.submit = upper_submit};
static struct dm_dev upper = {.ops = &upper_ops, .refs = 1};

static void check(const char *want)
{
	struct dm_region where = {&upper, 1, 1};
	char data[512] = "";
	struct iovec iov = {data, sizeof data};

	seen = g_string_new(NULL);
	assert_int_equal(dm_io_sync(DM_WRITE, 0, 1, &where, &iov, 1, NULL), 0);
	assert_string_equal(seen->str, want);
	g_string_free(seen, TRUE);
}

static void what_is_mapped_goes_down_before_the_next_is(void **state)
{
	push = false;
	check("U1 M10 m L100 L101 M11 m L110 L111 ");
}

static void what_is_sent_now_is_gone_at_return(void **state)
{
	push = true;
	check("U1 M10 L100 L101 m M11 L110 L111 m ");
}

static int ended, error_seen;

static void whole_end(struct dm_bio *bio)
{
	ended++;
	error_seen = bio->error;
}

/* Ends a bio of four parts with these results, the last of them added late. */
static void end_parts(const int results[4], int want)
{
	struct dm_parts *p = g_new(struct dm_parts, 1);
	struct dm_bio whole = {.end = whole_end};

	ended = 0;
	dm_parts_init(p, &whole, 3);
	dm_parts_end(p, results[0]);
	dm_parts_end(p, results[1]);
	dm_parts_add(p);
	dm_parts_end(p, results[2]);
	assert_int_equal(ended, 0);
	dm_parts_end(p, results[3]);
	assert_int_equal(ended, 1);
	assert_int_equal(error_seen, want);
}

static void a_whole_ends_with_its_last_part_and_an_error_of_one(void **state)
{
	end_parts((const int[]){0, 0, 0, 0}, 0);
	for (unsigned failing = 0; failing < 4; failing++) {
		int results[4] = {0};

		results[failing] = -ENOSPC;
		end_parts(results, -ENOSPC);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(what_is_mapped_goes_down_before_the_next_is),
		cmocka_unit_test(what_is_sent_now_is_gone_at_return),
		cmocka_unit_test(a_whole_ends_with_its_last_part_and_an_error_of_one),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
