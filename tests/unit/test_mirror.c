/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The mirror's regions without a mount: what goes to which leg when, over
 * devices in memory that can hold their bios back, fail them, and tell the order they came in.
 */
#include "unit.h"

#include "core/devices.h"
#include "core/events.h"
#include "core/type.h"
#include "lib/regions.h"
#include "targets/list.h"
#include "targets/mirror/mirror.h"

#include <pthread.h>

#define DISKS 4u /* a, b, c and log */
#define SECTORS 8192u
#define BYTES (SECTORS * DM_SECTOR_SIZE)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

struct disk {
	char *data;
	bool closed;               /* bios are held back */
	struct dm_bio_list held;
	unsigned nr_held;
	int fail[DM_WRITE_ZEROES + 1]; /* errors of ops */
	unsigned count[DM_WRITE_ZEROES + 1]; /* but for copies: a resynchronisation comes when it likes */
};

static struct disk disks[DISKS];
static GString *order; /* of writes and flushes: "log:W log:F a:W …" */
static struct dm_mapped *mds[DISKS], *md;
static const char *const names[DISKS] = {"a", "b", "c", "log"};

/* --- devices in memory ------------------------------------------------------------- */

static int mem_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	ti->private = &disks[atoi(argv[0])];
	ti->num_discard_bios = ti->num_write_zeroes_bios = 1;
	ti->discards_supported = true;
	return 0;
}

static void carry_out(struct disk *d, struct dm_bio *bio)
{
	char *at = d->data + bio->sector * DM_SECTOR_SIZE;
	size_t len = bio->sectors * DM_SECTOR_SIZE;
	int error = d->fail[bio->op];

	if (!error && bio->op == DM_READ)
		dm_iov_write(bio->iov, bio->iovcnt, 0, at, len);
	else if (!error && bio->op == DM_WRITE)
		dm_iov_read(bio->iov, bio->iovcnt, 0, at, len);
	else if (!error && bio->op != DM_FLUSH)
		memset(at, 0, len);
	dm_bio_end(bio, error);
}

static enum dm_mapio mem_map(struct dm_target *ti, struct dm_bio *bio)
{
	struct disk *d = ti->private;
	bool held;

	pthread_mutex_lock(&lock);
	d->count[bio->op] += !(bio->flags & DM_BACKGROUND);
	if (bio->op == DM_WRITE || bio->op == DM_FLUSH)
		g_string_append_printf(order, "%s:%c ", names[d - disks], bio->op == DM_WRITE ? 'W' : 'F');
	held = d->closed;
	if (held) {
		dm_bio_list_add(&d->held, bio);
		d->nr_held++;
	}
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
	if (!held)
		carry_out(d, bio);
	return DM_MAPIO_SUBMITTED;
}

static const struct dm_target_type mem_target = {
	.name = "mem", .version = {1, 0, 0}, .ctr = mem_ctr, .map = mem_map};

static void hold_back(unsigned i)
{
	pthread_mutex_lock(&lock);
	disks[i].closed = true;
	pthread_mutex_unlock(&lock);
}

static void let_go(unsigned i)
{
	struct dm_bio *bio;

	pthread_mutex_lock(&lock);
	disks[i].closed = false;
	while ((bio = dm_bio_list_pop(&disks[i].held))) {
		disks[i].nr_held--;
		pthread_mutex_unlock(&lock);
		carry_out(&disks[i], bio);
		pthread_mutex_lock(&lock);
	}
	pthread_mutex_unlock(&lock);
}

/* Waits until at least so many bios are held back there. */
static void wait_held(unsigned i, unsigned n)
{
	pthread_mutex_lock(&lock);
	while (disks[i].nr_held < n)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
}

/* --- the mirror ---------------------------------------------------------------------- */

static int load(struct dm_mapped *which, const char *text)
{
	struct dm_opener self = dm_opener_self();
	struct dm_table *t = dm_table_new(which, DM_MODE_RW, &self);
	g_autofree char *line = g_strdup(text);
	g_autoptr(GError) err = NULL;

	if (dm_table_add_line(t, line, &err))
		fail_msg("%s: %s", text, err->message);
	assert_int_equal(dm_table_complete(t, NULL), 0);
	return dm_mapped_swap(which, t, NULL, NULL, NULL);
}

static int setup_group(void **state)
{
	static const struct dm_target_type *types[256];
	unsigned n = 0;

	for (; dm_target_list[n]; n++)
		types[n] = dm_target_list[n];
	types[n] = &mem_target;
	dm_register_targets(types);
	return 0;
}

static int setup(void **state)
{
	order = g_string_new(NULL);
	for (unsigned i = 0; i < DISKS; i++) {
		g_autofree char *line = g_strdup_printf("0 %u mem %u", SECTORS, i);

		disks[i] = (struct disk){.data = g_malloc0(BYTES)};
		dm_bio_list_init(&disks[i].held);
		assert_int_equal(dm_create(names[i], -1, &mds[i], NULL), 0);
		load(mds[i], line);
	}
	return dm_create("m", -1, &md, NULL);
}

static int teardown(void **state)
{
	for (unsigned i = 0; i < DISKS; i++)
		let_go(i);
	dm_remove_all();
	dm_mapped_unref(md);
	for (unsigned i = 0; i < DISKS; i++) {
		dm_mapped_unref(mds[i]);
		g_free(disks[i].data);
	}
	g_string_free(order, TRUE);
	return 0;
}

static char *status(void)
{
	struct dm_table *t = dm_mapped_live(md);
	GString *out = g_string_new(NULL);

	dm_table_print(t, DM_STATUS_INFO, out);
	dm_table_unref(t);
	return g_string_free(out, FALSE);
}

static bool status_has(const char *text)
{
	g_autofree char *s = status();

	return strstr(s, text);
}

static void assert_status(const char *text)
{
	g_autofree char *s = status();

	if (!strstr(s, text))
		fail_msg("'%s' has no '%s'", s, text);
}

static void wake(void *context)
{
	pthread_mutex_lock(&lock);
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

/* Events wake us to look again. */
static void wait_status(const char *text)
{
	struct dm_event_reader *r = dm_event_reader_new(md, wake, NULL);

	while (!status_has(text)) {
		dm_event_arm(r);
		pthread_mutex_lock(&lock);
		if (!dm_event_pending(r))
			pthread_cond_wait(&changed, &lock);
		pthread_mutex_unlock(&lock);
		dm_event_skip(r);
	}
	dm_event_reader_free(r);
}

/* --- requests ---------------------------------------------------------------------------- */

struct request {
	struct dm_bio bio; /* first */
	struct iovec iov;
	char *data;
	bool done;
};

static void request_end(struct dm_bio *bio)
{
	struct request *r = (struct request *)bio;

	pthread_mutex_lock(&lock);
	r->done = true;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

static struct request *start(enum dm_op op, uint64_t sector, uint64_t sectors, char fill)
{
	struct request *r = g_new0(struct request, 1);

	r->data = g_malloc(sectors * DM_SECTOR_SIZE + 1);
	memset(r->data, fill, sectors * DM_SECTOR_SIZE);
	r->iov = (struct iovec){r->data, sectors * DM_SECTOR_SIZE};
	r->bio = (struct dm_bio){.op = op, .dev = &md->dev, .sector = sector, .sectors = sectors, .end = request_end};
	if (dm_op_has_data(op)) {
		r->bio.iov = &r->iov;
		r->bio.iovcnt = 1;
	}
	dm_submit(&r->bio);
	return r;
}

static bool is_done(struct request *r)
{
	bool done;

	pthread_mutex_lock(&lock);
	done = r->done;
	pthread_mutex_unlock(&lock);
	return done;
}

static int finish(struct request *r)
{
	int error;

	pthread_mutex_lock(&lock);
	while (!r->done)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
	error = r->bio.error;
	g_free(r->data);
	g_free(r);
	return error;
}

static int do_write(uint64_t sector, uint64_t sectors, char fill)
{
	return finish(start(DM_WRITE, sector, sectors, fill));
}

static void assert_reads(uint64_t sector, char want)
{
	char data[DM_SECTOR_SIZE];

	assert_int_equal(dm_read_sync(&md->dev, sector, 1, data, 0), 0);
	assert_int_equal(data[0], want);
	assert_int_equal(data[DM_SECTOR_SIZE - 1], want);
}

static char at(unsigned i, uint64_t sector)
{
	return disks[i].data[sector * DM_SECTOR_SIZE];
}

static void suspend(unsigned flags)
{
	assert_int_equal(dm_mapped_suspend(md, flags, NULL, NULL, NULL), 0);
}

static void resume(void)
{
	assert_int_equal(dm_mapped_resume(md, 0, NULL, NULL, NULL), 0);
}

/*
 * A mirror whose worker has had its first turn: regions that are out of sync in that are copied at once, later ones
 * after the next resume.
 */
static void load_and_look(const char *line)
{
	struct dm_table *t;
	struct mirror *ms;

	load(md, line);
	t = dm_mapped_live(md);
	ms = dm_table_target(t, 0)->private;
	dm_wq_flush(ms->regions->wq);
	dm_table_unref(t);
}

/* --- tests ---------------------------------------------------------------------------------- */

#define LOG_IN_SYNC "0 8192 mirror disk 3 log 64 nosync 2 a 0 b 0"

static void the_log_knows_before_the_legs_are_written(void **state)
{
	load_and_look(LOG_IN_SYNC);
	g_string_truncate(order, 0);
	assert_int_equal(do_write(5, 3, 'x'), 0);
	assert_true(g_str_has_prefix(order->str, "log:W log:F a:W b:W "));
	g_string_truncate(order, 0);
	assert_int_equal(do_write(9, 3, 'y'), 0);
	assert_string_equal(order->str, "a:W b:W "); /* a dirty region costs the log nothing */
	assert_int_equal(at(0, 5), 'x');
	assert_int_equal(at(1, 11), 'y');
	assert_false(disks[3].data[1024] & 1);
	suspend(0); /* the legs are flushed before the log says clean */
	assert_string_equal(order->str + 8, "a:F b:F log:W ");
	assert_true(disks[3].data[1024] & 1);
	resume();
}

static void marks_that_come_together_share_a_flush(void **state)
{
	struct request *r[9];

	load_and_look(LOG_IN_SYNC);
	hold_back(3);
	disks[3].count[DM_FLUSH] = 0;
	r[0] = start(DM_WRITE, 0, 1, 'x');
	wait_held(3, 1);
	for (unsigned i = 1; i < 9; i++)
		r[i] = start(DM_WRITE, i * 64, 1, 'x');
	assert_int_equal(disks[0].count[DM_WRITE], 0);
	let_go(3);
	for (unsigned i = 0; i < 9; i++)
		assert_int_equal(finish(r[i]), 0);
	assert_int_equal(disks[3].count[DM_FLUSH], 2);
	assert_int_equal(disks[3].data[1024] & 0xff, 0);
}

static void overlapping_writes_take_turns(void **state)
{
	struct request *first, *second, *apart;

	load_and_look("0 8192 mirror core 2 64 nosync 2 a 0 b 0");
	hold_back(1);
	first = start(DM_WRITE, 8, 8, '1');
	wait_held(1, 1);
	second = start(DM_WRITE, 10, 2, '2');
	apart = start(DM_WRITE, 16, 2, '3');
	wait_held(1, 2); /* the one apart does not wait */
	assert_int_equal(disks[1].nr_held, 2);
	assert_int_equal(at(0, 10), '1');
	let_go(1);
	assert_int_equal(finish(first) | finish(second) | finish(apart), 0);
	assert_int_equal(at(0, 10), '2');
	assert_memory_equal(disks[0].data, disks[1].data, BYTES);
}

static void a_write_waits_for_the_copy_of_its_region(void **state)
{
	struct request *in, *out;

	memset(disks[0].data, 'o', BYTES);
	hold_back(1);
	load_and_look("0 8192 mirror core 1 4096 2 a 0 b 0");
	wait_held(1, 9); /* pieces of both regions: kcopyd has at most 8 of one under way */
	in = start(DM_WRITE, 7, 1, 'n');
	out = start(DM_READ, 7, 1, 0);
	pthread_mutex_lock(&lock);
	while (!out->done)
		pthread_cond_wait(&changed, &lock);
	assert_int_equal(out->data[0], 'o');
	pthread_mutex_unlock(&lock);
	assert_int_equal(finish(out), 0);
	assert_false(is_done(in));
	let_go(1);
	assert_int_equal(finish(in), 0);
	wait_status("2/2 1 AA");
	assert_reads(7, 'n');
	assert_reads(8, 'o');
	assert_memory_equal(disks[0].data, disks[1].data, BYTES);
}

static void a_region_never_in_sync_is_the_first_leg_s(void **state)
{
	disks[1].fail[DM_WRITE] = -EIO;
	load_and_look("0 8192 mirror core 1 8192 2 a 0 b 0 2 handle_errors keep_log");
	wait_status("0/1 1 AS");
	disks[1].fail[DM_WRITE] = 0;
	memset(disks[1].data, 'b', BYTES);
	disks[1].count[DM_WRITE] = 0;
	assert_int_equal(do_write(4000, 1, 'n'), 0);
	assert_int_equal(disks[1].count[DM_WRITE], 0);
	assert_reads(4000, 'n');
	assert_reads(4001, 0);
	disks[0].fail[DM_READ] = -EIO;
	assert_int_equal(finish(start(DM_READ, 9, 1, 0)), -EIO); /* never the other's rubbish */
	disks[0].fail[DM_READ] = 0;
	suspend(0); /* a resume tries again */
	resume();
	wait_status("1/1 1 AA");
	assert_memory_equal(disks[0].data, disks[1].data, BYTES);
}

static void reads_go_to_the_legs_in_turn(void **state)
{
	load_and_look("0 8192 mirror core 2 8192 nosync 2 a 0 b 0");
	for (unsigned i = 0; i < 2; i++)
		memset(disks[i].data, 'A' + i, BYTES);
	assert_reads(0, 'A');
	assert_reads(2047, 'A');
	assert_reads(2048, 'B');
	assert_reads(4096, 'A');
}

static void a_read_error_is_another_leg_s_turn(void **state)
{
	load_and_look("0 8192 mirror core 2 8192 nosync 3 a 0 b 0 c 0");
	memset(disks[2].data, 'c', BYTES);
	disks[0].fail[DM_READ] = disks[1].fail[DM_READ] = -EIO;
	assert_reads(0, 'c');
	assert_status("1/1 1 RRA");
	assert_reads(2048, 'c');
	disks[2].fail[DM_READ] = -EIO;
	disks[0].fail[DM_READ] = 0; /* its data is good, so it is tried once more */
	memset(disks[0].data, 'a', BYTES);
	assert_reads(0, 'a');
	disks[0].fail[DM_READ] = -EIO;
	assert_int_equal(finish(start(DM_READ, 0, 1, 0)), -EIO);
}

static void two_legs_of_three_go_on_together(void **state)
{
	load_and_look("0 8192 mirror core 2 64 nosync 3 a 0 b 0 c 0 2 handle_errors keep_log");
	disks[2].fail[DM_WRITE] = -EIO;
	assert_int_equal(do_write(3, 1, 'x'), 0);
	assert_status("127/128 1 AAD");
	disks[2].count[DM_WRITE] = 0;
	assert_int_equal(do_write(3, 1, 'y'), 0); /* a region it is known to lack is not tried again */
	assert_int_equal(disks[2].count[DM_WRITE], 0);
	disks[0].fail[DM_READ] = disks[0].fail[DM_WRITE] = -EIO;
	assert_reads(3, 'y');
	assert_status("127/128 1 RAD");
	assert_int_equal(do_write(100, 1, 'z'), 0);
	assert_status("126/128 1 DAD");
	assert_reads(100, 'z');
	assert_int_equal(do_write(3, 1, 'w'), 0);
	assert_reads(3, 'w');
	disks[1].fail[DM_WRITE] = -EIO;
	assert_int_equal(do_write(500, 1, '!'), -EIO);
	memset(disks[0].fail, 0, sizeof disks[0].fail);
	memset(disks[1].fail, 0, sizeof disks[1].fail);
	memset(disks[2].fail, 0, sizeof disks[2].fail);
}

static void what_a_leg_missed_is_copied_after_a_resume(void **state)
{
	load_and_look("0 8192 mirror disk 3 log 64 nosync 2 a 0 b 0");
	disks[0].fail[DM_WRITE] = -EIO;
	assert_int_equal(do_write(3, 1, 'x'), 0);
	assert_status("127/128 1 DA");
	assert_reads(3, 'x');
	disks[0].fail[DM_WRITE] = 0;
	assert_int_equal(at(0, 3), 0);
	suspend(0);
	assert_false(disks[3].data[1024] & 1); /* the log remembers */
	resume();
	wait_status("128/128 1 AA");
	assert_memory_equal(disks[0].data, disks[1].data, BYTES);
	assert_int_equal(at(0, 3), 'x');
}

static void handle_errors_holds_a_write_until_the_next_table(void **state)
{
	struct request *r;

	load_and_look("0 8192 mirror core 3 64 nosync block_on_error 2 a 0 b 0");
	disks[1].fail[DM_WRITE] = -EIO;
	r = start(DM_WRITE, 3, 1, 'x');
	wait_status("127/128 1 AD");
	assert_false(is_done(r));
	suspend(DM_SUSPEND_NOFLUSH);
	assert_false(is_done(r));
	load(md, "0 8192 linear c 0");
	assert_int_equal(finish(r), 0);
	assert_int_equal(at(2, 3), 'x');
}

static void a_held_write_fails_in_a_plain_suspend(void **state)
{
	struct request *r, *later;

	load_and_look("0 8192 mirror core 2 64 nosync 2 a 0 b 0 1 handle_errors");
	disks[1].fail[DM_WRITE] = -EIO;
	r = start(DM_WRITE, 3, 1, 'x');
	wait_status("127/128 1 AD");
	later = start(DM_WRITE, 4, 1, 'y'); /* to the region that is out of sync */
	suspend(0);
	assert_int_equal(finish(r), -EIO);
	assert_int_equal(finish(later), -EIO);
	disks[1].fail[DM_WRITE] = 0;
	resume();
	wait_status("128/128 1 AA");
	assert_memory_equal(disks[0].data, disks[1].data, BYTES);
}

static void a_log_that_fails_stops_writes_to_clean_regions(void **state)
{
	load_and_look("0 8192 mirror disk 3 log 64 nosync 2 a 0 b 0 2 handle_errors keep_log");
	assert_int_equal(do_write(3, 1, 'x'), 0);
	disks[3].fail[DM_FLUSH] = -EIO;
	disks[0].count[DM_WRITE] = 0;
	assert_int_equal(do_write(100, 1, 'y'), -EIO);
	assert_int_equal(disks[0].count[DM_WRITE], 0);
	assert_status(" 1 AA 3 disk log F");
	assert_int_equal(do_write(3, 1, 'z'), 0); /* that one is marked */
	disks[3].fail[DM_FLUSH] = 0;
}

static void a_flush_that_fails_is_a_leg_that_fails(void **state)
{
	load_and_look("0 8192 mirror core 2 64 nosync 2 a 0 b 0");
	assert_int_equal(do_write(3, 1, 'x'), 0);
	disks[1].fail[DM_FLUSH] = -EIO;
	assert_int_equal(finish(start(DM_FLUSH, 0, 0, 0)), 0); /* the other has it */
	assert_status("127/128 1 AD");
	disks[0].fail[DM_FLUSH] = -EIO;
	assert_int_equal(finish(start(DM_FLUSH, 0, 0, 0)), -EIO);
	disks[0].fail[DM_FLUSH] = disks[1].fail[DM_FLUSH] = 0;
}

static void a_discard_half_done_is_mended(void **state)
{
	load_and_look("0 8192 mirror core 2 64 nosync 2 a 0 b 0");
	assert_int_equal(do_write(0, 64, 'x'), 0);
	disks[1].fail[DM_DISCARD] = -EIO;
	assert_int_equal(finish(start(DM_DISCARD, 8, 8, 0)), -EIO);
	disks[1].fail[DM_DISCARD] = 0;
	wait_status("128/128 1 AA");
	assert_memory_equal(disks[0].data, disks[1].data, BYTES);
	assert_int_equal(finish(start(DM_DISCARD, 0, 4096, 0)), 0);
	assert_int_equal(at(1, 0), 0);
}

static void a_bad_sector_costs_one_region(void **state)
{
	/* the last 64 sectors of b are a device that fails */
	assert_int_equal(dm_mapped_suspend(mds[1], 0, NULL, NULL, NULL), 0);
	{
		struct dm_opener self = dm_opener_self();
		struct dm_table *t = dm_table_new(mds[1], DM_MODE_RW, &self);
		char good[] = "0 8128 mem 1", bad[] = "8128 64 error";

		assert_int_equal(dm_table_add_line(t, good, NULL), 0);
		assert_int_equal(dm_table_add_line(t, bad, NULL), 0);
		assert_int_equal(dm_table_complete(t, NULL), 0);
		assert_int_equal(dm_mapped_swap(mds[1], t, NULL, NULL, NULL), 0);
	}
	memset(disks[0].data, 'o', BYTES);
	load_and_look("0 8192 mirror core 1 64 2 a 0 b 0 2 handle_errors keep_log");
	/* The copy's error is an event, the regions after it are not: a suspend waits for them. */
	wait_status(" 1 AS");
	suspend(0);
	assert_status("127/128 1 AS");
	assert_memory_equal(disks[0].data, disks[1].data, 8128 * DM_SECTOR_SIZE);
	resume();
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(the_log_knows_before_the_legs_are_written),
		T(marks_that_come_together_share_a_flush),
		T(overlapping_writes_take_turns),
		T(a_write_waits_for_the_copy_of_its_region),
		T(a_region_never_in_sync_is_the_first_leg_s),
		T(reads_go_to_the_legs_in_turn),
		T(a_read_error_is_another_leg_s_turn),
		T(two_legs_of_three_go_on_together),
		T(what_a_leg_missed_is_copied_after_a_resume),
		T(handle_errors_holds_a_write_until_the_next_table),
		T(a_held_write_fails_in_a_plain_suspend),
		T(a_log_that_fails_stops_writes_to_clean_regions),
		T(a_flush_that_fails_is_a_leg_that_fails),
		T(a_discard_half_done_is_mended),
		T(a_bad_sector_costs_one_region),
	};

	return cmocka_run_group_tests(tests, setup_group, NULL);
}
