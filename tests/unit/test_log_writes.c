/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The order of log-writes' log when bios overlap, which only a device that
 * answers when it is told to can show: `hold` keeps its bios, release() ends one.
 */
#include "unit.h"

#include <endian.h>

#include "core/devices.h"
#include "core/message.h"
#include "core/type.h"

#include "targets/log_writes_format.h"

#define SECTORS 1024u
#define BIOS 16

static struct held {
	struct dm_bio *bio;
} held[BIOS];
static unsigned n_held;
static uint8_t log_data[SECTORS * 512];

/* --- devices --------------------------------------------------------------------------- */

static int any_ctr(struct dm_target *ti, int argc, char **argv, GError **err)
{
	ti->num_discard_bios = 1;
	ti->discards_supported = true;
	return 0;
}

static enum dm_mapio hold_map(struct dm_target *ti, struct dm_bio *bio)
{
	assert_true(n_held < BIOS);
	held[n_held++].bio = bio;
	return DM_MAPIO_SUBMITTED;
}

/* The log device: memory that answers at once. */
static enum dm_mapio memory_map(struct dm_target *ti, struct dm_bio *bio)
{
	if (bio->op == DM_WRITE)
		dm_iov_read(bio->iov, bio->iovcnt, 0, log_data + bio->sector * 512, bio->sectors * 512);
	dm_bio_end(bio, 0);
	return DM_MAPIO_SUBMITTED;
}

static const struct dm_target_type hold_target = {.name = "hold", .ctr = any_ctr, .map = hold_map};
static const struct dm_target_type memory_target = {.name = "memory", .ctr = any_ctr, .map = memory_map};
extern const struct dm_target_type log_writes_target;
static const struct dm_target_type *const types[] = {&hold_target, &memory_target, &log_writes_target, NULL};

static struct dm_mapped *hold_md, *log_md, *vol;

static struct dm_mapped *make(const char *name, const char *text)
{
	struct dm_opener self = dm_opener_self();
	g_autofree char *line = g_strdup(text);
	struct dm_mapped *md;
	struct dm_table *t;

	assert_int_equal(dm_create(name, -1, &md, NULL), 0);
	t = dm_table_new(md, DM_MODE_RW, &self);
	assert_int_equal(dm_table_add_line(t, line, NULL), 0);
	assert_int_equal(dm_table_complete(t, NULL), 0);
	assert_int_equal(dm_mapped_swap(md, t, NULL, NULL, NULL), 0);
	return md;
}

static void drop(struct dm_mapped *md)
{
	assert_int_equal(dm_remove(md, NULL), 0);
	dm_mapped_unref(md);
}

static int setup(void **state)
{
	memset(log_data, 0, sizeof log_data);
	n_held = 0;
	hold_md = make("hold", "0 1024 hold");
	log_md = make("log", "0 1024 memory");
	vol = make("vol", "0 1024 log-writes hold log");
	return 0;
}

/* --- bios: named by a letter ------------------------------------------------------------ */

static struct request {
	struct dm_bio bio;
	struct iovec iov;
	uint8_t data[512];
	bool ended;
} requests[26];

static void request_end(struct dm_bio *bio)
{
	((struct request *)bio->private)->ended = true;
}

/* A write of one sector that holds its letter, or a discard or flush. */
static void send(char letter, enum dm_op op, unsigned flags)
{
	struct request *r = &requests[letter - 'a'];

	memset(r->data, letter, sizeof r->data);
	r->ended = false;
	r->iov = (struct iovec){r->data, sizeof r->data};
	r->bio = (struct dm_bio){
		.op = op,
		.flags = flags,
		.dev = &vol->dev,
		.sector = op == DM_FLUSH ? 0 : (uint64_t)letter,
		.sectors = op == DM_FLUSH ? 0 : 1,
		.iov = op == DM_WRITE ? &r->iov : NULL,
		.iovcnt = op == DM_WRITE,
		.end = request_end,
		.private = r,
	};
	dm_submit(&r->bio);
}

/* The device answers the bio that was the nth held (0 the first since the last call that emptied it). */
static void answer(unsigned nth)
{
	struct dm_bio *bio = held[nth].bio;

	assert_non_null(bio);
	held[nth].bio = NULL;
	dm_bio_end(bio, 0);
}

static void mark(const char *text)
{
	struct dm_opener self = dm_opener_self();
	g_autofree char *message = g_strdup_printf("mark %s", text);
	g_autoptr(GString) reply = g_string_new(NULL);

	assert_int_equal(dm_mapped_message(vol, message, &self, reply, NULL), 0);
}

/* The log as a word: a write's letter, F a flush, a capital letter (FUA), -x a discard, [mark]. */
static char *read_log(void)
{
	GString *out = g_string_new(NULL);
	struct log_writes_super super;
	size_t at = 512;

	memcpy(&super, log_data, sizeof super);
	assert_int_equal(le64toh(super.magic), LOG_WRITES_MAGIC);
	for (uint64_t i = 0; i < le64toh(super.entries); i++) {
		struct log_writes_entry e;
		uint64_t flags;

		memcpy(&e, log_data + at, sizeof e);
		flags = le64toh(e.flags);
		if (flags & LOG_WRITES_MARK)
			g_string_append_printf(out, "[%.*s]", (int)le64toh(e.data_len), log_data + at + sizeof e);
		else if (flags & LOG_WRITES_FLUSH)
			g_string_append_c(out, 'F');
		else if (flags & LOG_WRITES_DISCARD)
			g_string_append_printf(out, "-%c", (char)le64toh(e.sector));
		else
			g_string_append_c(out, flags & LOG_WRITES_FUA ? g_ascii_toupper((char)log_data[at + 512]) :
								       (char)log_data[at + 512]);
		at += 512 + (flags & LOG_WRITES_DISCARD ? 0 : le64toh(e.sectors) * 512);
	}
	return g_string_free(out, FALSE);
}

/* Closes the stack and compares the log. */
static void expect_log(const char *expected)
{
	g_autofree char *whole = g_strconcat(expected, "[dm-log-writes-end]", NULL), *seen = NULL;

	drop(vol);
	drop(log_md);
	drop(hold_md);
	seen = read_log();
	assert_string_equal(seen, whole);
}

/* --- tests -------------------------------------------------------------------------------- */

/* log-writes.rst: W1,W2,W3,C3,C2,Wflush,C1,Cflush is logged as W3,W2,flush,W1 */
static void test_the_documents_order(void **state)
{
	send('a', DM_WRITE, 0);
	send('b', DM_WRITE, 0);
	send('c', DM_WRITE, 0);
	answer(2);
	answer(1);
	send('f', DM_FLUSH, 0);
	answer(0);
	answer(3);
	expect_log("cbFa");
}

/* Wa,Wb,Wc,Cc,Ca,FLUSH,FUAd,Cb,CFLUSH,CFUAd: c,a,flush,fuad,b */
static void test_fua_goes_by(void **state)
{
	send('a', DM_WRITE, 0);
	send('b', DM_WRITE, 0);
	send('c', DM_WRITE, 0);
	answer(2);
	answer(0);
	send('f', DM_FLUSH, 0);
	send('d', DM_WRITE, DM_FUA);
	answer(1);
	answer(3);
	answer(4);
	expect_log("caFDb");
}

static void test_fua_before_the_flush_is_over(void **state)
{
	send('a', DM_WRITE, 0);
	answer(0);
	send('f', DM_FLUSH, 0);
	send('d', DM_WRITE, DM_FUA);
	answer(2);
	answer(1);
	expect_log("DaF");
}

/* What was answered while a flush was under way waits for the next. */
static void test_late_writes_wait(void **state)
{
	send('f', DM_FLUSH, 0);
	send('a', DM_WRITE, 0);
	answer(1);
	answer(0);
	send('b', DM_WRITE, 0);
	answer(2);
	send('g', DM_FLUSH, 0);
	answer(3);
	expect_log("FabF");
}

/* Flushes answered in another order: the later one covers what the earlier one does. */
static void test_overlapping_flushes(void **state)
{
	send('a', DM_WRITE, 0);
	answer(0);
	send('f', DM_FLUSH, 0);
	send('b', DM_WRITE, 0);
	answer(2);
	send('g', DM_FLUSH, 0);
	answer(3);
	answer(1);
	expect_log("abFF");
}

static void test_discards_are_as_writes(void **state)
{
	send('a', DM_WRITE, 0);
	send('d', DM_DISCARD, 0);
	send('b', DM_WRITE, 0);
	answer(0);
	answer(1);
	answer(2);
	send('f', DM_FLUSH, 0);
	answer(3);
	expect_log("a-dbF");
}

static void test_marks_are_logged_at_once(void **state)
{
	send('a', DM_WRITE, 0);
	answer(0);
	mark("x");
	send('f', DM_FLUSH, 0);
	mark("y");
	answer(1);
	mark("z");
	expect_log("[x][y]aF[z]");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_the_documents_order, setup),
		cmocka_unit_test_setup(test_fua_goes_by, setup),
		cmocka_unit_test_setup(test_fua_before_the_flush_is_over, setup),
		cmocka_unit_test_setup(test_late_writes_wait, setup),
		cmocka_unit_test_setup(test_overlapping_flushes, setup),
		cmocka_unit_test_setup(test_discards_are_as_writes, setup),
		cmocka_unit_test_setup(test_marks_are_logged_at_once, setup),
	};

	dm_register_targets(types);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
