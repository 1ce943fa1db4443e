/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The crypt target on the engine: bios, tables, suspending, messages. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/devices.h"
#include "core/mapped.h"
#include "core/type.h"

#include "../../targets/list.h"

#define KEY "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
#define ZEROS "0000000000000000000000000000000000000000000000000000000000000000"
#define SECTORS 8192

static char *file; /* of SECTORS sectors, the device beneath */
static struct dm_mapped *md;

static struct dm_table *load(GError **err, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/* A complete table of one line, or NULL; the key is gone from the line. */
static struct dm_table *load(GError **err, const char *fmt, ...)
{
	struct dm_opener self = dm_opener_self();
	struct dm_table *t = dm_table_new(md, DM_MODE_RW, &self);
	g_autofree char *line = NULL;
	size_t len;
	va_list ap;

	va_start(ap, fmt);
	line = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	len = strlen(line);
	if (dm_table_add_line(t, line, err) || dm_table_complete(t, err)) {
		dm_table_unref(t);
		t = NULL;
	}
	assert_null(memmem(line, len, "0b0c0d", 6));
	return t;
}

static void activate(const char *fmt, const char *cipher, const char *key, const char *options)
{
	GError *err = NULL;
	struct dm_table *t = load(&err, fmt, cipher, key, file, options);

	if (!t || dm_mapped_swap(md, t, NULL, NULL, &err))
		fail_msg("%s", err->message);
}

static void expect_table(const char *fmt, ...)
{
	struct dm_table *t = dm_mapped_live(md);
	g_autoptr(GString) text = g_string_new(NULL);
	g_autofree char *expected = NULL;
	va_list ap;

	va_start(ap, fmt);
	expected = g_strdup_vprintf(fmt, ap);
	va_end(ap);
	dm_table_print(t, DM_STATUS_TABLE, text);
	assert_string_equal(text->str, expected);
	g_string_truncate(text, 0);
	dm_table_print(t, DM_STATUS_INFO, text);
	assert_true(g_str_has_suffix(text->str, " crypt\n"));
	dm_table_unref(t);
}

static int message(GError **err, const char *text)
{
	struct dm_table *t = dm_mapped_live(md);
	struct dm_target *ti = dm_table_target(t, 0);
	g_autofree char *line = g_strdup(text);
	g_autoptr(GPtrArray) words = dm_split_words(line);
	g_autoptr(GString) reply = g_string_new(NULL);
	int r = ti->type->message(ti, (int)words->len - 1, (char **)words->pdata, reply, err);

	for (unsigned i = 1; i + 1 < words->len; i++)
		assert_true(strspn(words->pdata[i], "0") == strlen(words->pdata[i]));
	dm_table_unref(t);
	return r;
}

static void fill(uint8_t *buf, size_t len, unsigned seed)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = (uint8_t)rand_r(&seed);
}

static int setup(void **state)
{
	int fd;

	file = g_strdup("/tmp/dmfs-test-crypt-XXXXXX");
	fd = mkstemp(file);
	if (fd < 0 || ftruncate(fd, SECTORS * 512))
		return -1;
	close(fd);
	return dm_create("vol", -1, &md, NULL);
}

static int teardown(void **state)
{
	int r = dm_remove(md, NULL);

	dm_mapped_unref(md);
	g_unlink(file);
	g_free(file);
	return r;
}

/* A cipher so slow that even small requests are spread over the cores; and the options that forbid it. */
static void test_spread(void **state)
{
	static const char *const options[] = {"", "1 same_cpu_crypt", "1 no_read_workqueue", "1 no_write_workqueue"};
	static uint8_t data[2000 * 512], back[2000 * 512];

	fill(data, sizeof(data), 4);
	for (unsigned i = 0; i < G_N_ELEMENTS(options); i++) {
		activate("0 8000 crypt %s %s 3 %s 100 %s", "serpent-cbc-essiv:sha256", KEY, options[i]);
		for (uint64_t at = 0; at < 2000; at += 500)
			assert_int_equal(dm_write_sync(&md->dev, 7 + at, 500, data + at * 512, 0), 0);
		assert_int_equal(dm_read_sync(&md->dev, 7, 2000, back, 0), 0);
		assert_memory_equal(data, back, sizeof(data));
		fill(data, sizeof(data), 5 + i);
	}
}

/* Sizes from a sector to several times the biggest bounce buffer: what is beneath is not what was written, and is where
 * it belongs; reading gives it back; the writer's memory is as it was. */
static void test_write_and_read(void **state)
{
	static const unsigned lens[] = {1, 7, 64, 513, 2047, 2048, 5000};
	static uint8_t data[5000 * 512], copy[5000 * 512], back[5000 * 512], below[5000 * 512];
	int fd = open(file, O_RDWR);

	activate("0 8000 crypt %s %s 3 %s 100 %s", "aes-xts-plain64", KEY, "");
	for (unsigned i = 0; i < G_N_ELEMENTS(lens); i++) {
		size_t bytes = lens[i] * 512;
		uint64_t sector = 2048 - 3 * i;

		fill(data, bytes, i);
		memcpy(copy, data, bytes);
		assert_int_equal(dm_write_sync(&md->dev, sector, lens[i], data, 0), 0);
		assert_memory_equal(data, copy, bytes);
		assert_int_equal(dm_read_sync(&md->dev, sector, lens[i], back, 0), 0);
		assert_memory_equal(back, data, bytes);
		assert_int_equal(pread(fd, below, bytes, (sector + 100) * 512), bytes);
		for (size_t k = 0; k < bytes; k += 512)
			assert_memory_not_equal(below + k, data + k, 512);
	}
	assert_int_equal(dm_flush_sync(&md->dev), 0);
	/* the same data shifted by one sector in the file, with an iv_offset of one less, reads the same */
	activate("0 7999 crypt %s %s 4 %s 101 %s", "aes-xts-plain64", KEY, "");
	assert_int_equal(dm_read_sync(&md->dev, 2047 - 3 * 6, 5000, back, 0), 0);
	assert_memory_equal(back, data, sizeof(data));
	close(fd);
}

struct waiting {
	struct dm_bio bio;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool done;
};

static void wake(struct dm_bio *bio)
{
	struct waiting *w = bio->private;

	pthread_mutex_lock(&w->lock);
	w->done = true;
	pthread_cond_signal(&w->cond);
	pthread_mutex_unlock(&w->lock);
}

static int submit_and_wait(enum dm_op op, unsigned flags, uint64_t sector, struct iovec *iov, int iovcnt)
{
	struct waiting w = {.lock = PTHREAD_MUTEX_INITIALIZER, .cond = PTHREAD_COND_INITIALIZER};

	w.bio = (struct dm_bio){.op = op, .flags = flags, .dev = &md->dev, .sector = sector, .iov = iov,
				.iovcnt = iovcnt, .sectors = dm_iov_bytes(iov, iovcnt) / 512, .end = wake, .private = &w};
	dm_submit(&w.bio);
	pthread_mutex_lock(&w.lock);
	while (!w.done)
		pthread_cond_wait(&w.cond, &w.lock);
	pthread_mutex_unlock(&w.lock);
	return w.bio.error;
}

/* A large bio whose data lies in many places, cut where its pieces are not; with FUA it goes as one. */
static void test_large_of_many_parts(void **state)
{
	static uint8_t data[2048 * 512], back[2048 * 512];
	struct iovec iov[3] = {{data, 1000}, {data + 1000, 300 * 512 + 24}, {data + 300 * 512 + 1024, 1747 * 512 - 1024}};
	struct iovec in[2] = {{back, 131073}, {back + 131073, 2047 * 512 - 131073}};

	activate("0 8000 crypt %s %s 3 %s 100 %s", "aes-xts-plain64", KEY, "");
	for (unsigned i = 0; i < 2; i++) {
		fill(data, sizeof(data), 20 + i);
		assert_int_equal(submit_and_wait(DM_WRITE, i ? DM_FUA : 0, 11, iov, 3), 0);
		assert_int_equal(submit_and_wait(DM_READ, 0, 11, in, 2), 0);
		assert_memory_equal(data, back, 2047 * 512);
	}
}

/* One piece of a large bio fails: so does the bio, once. */
static void test_large_with_an_error(void **state)
{
	static uint8_t data[2048 * 512];
	struct iovec iov = {data, sizeof(data)};
	struct dm_opener self = dm_opener_self();
	g_autofree char *line = g_strdup_printf("0 1500 linear %s 0", file);
	char error[] = "1500 6500 error";
	GError *err = NULL;
	struct dm_mapped *bad;
	struct dm_table *t;

	assert_int_equal(dm_create("bad", -1, &bad, NULL), 0);
	t = dm_table_new(bad, DM_MODE_RW, &self);
	assert_int_equal(dm_table_add_line(t, line, &err), 0);
	assert_int_equal(dm_table_add_line(t, error, &err), 0);
	assert_int_equal(dm_table_complete(t, &err), 0);
	assert_int_equal(dm_mapped_swap(bad, t, NULL, NULL, &err), 0);
	t = load(&err, "0 8000 crypt aes-xts-plain64 %s 0 bad 0", KEY);
	assert_int_equal(dm_mapped_swap(md, t, NULL, NULL, &err), 0);
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(submit_and_wait(DM_WRITE, 0, 0, &iov, 1), -EIO);
		assert_int_equal(submit_and_wait(DM_READ, 0, 0, &iov, 1), -EIO);
		iov.iov_len = 1500 * 512;
		assert_int_equal(submit_and_wait(DM_WRITE, 0, 0, &iov, 1), 0);
		assert_int_equal(submit_and_wait(DM_READ, 0, 0, &iov, 1), 0);
		iov.iov_len = sizeof(data);
	}
	activate("0 8000 crypt %s %s 0 %s 0 %s", "aes-xts-plain64", KEY, "");
	assert_int_equal(dm_remove(bad, NULL), 0);
	dm_mapped_unref(bad);
}

static void test_errors_of_the_device(void **state)
{
	uint8_t data[512] = {1};
	GError *err = NULL;
	struct dm_mapped *bad;
	struct dm_opener self = dm_opener_self();
	struct dm_table *t;
	char line[] = "0 100 error";

	assert_int_equal(dm_create("bad", -1, &bad, NULL), 0);
	t = dm_table_new(bad, DM_MODE_RW, &self);
	assert_int_equal(dm_table_add_line(t, line, &err), 0);
	assert_int_equal(dm_table_complete(t, &err), 0);
	assert_int_equal(dm_mapped_swap(bad, t, NULL, NULL, &err), 0);
	t = load(&err, "0 100 crypt aes-xts-plain64 %s 0 bad 0", KEY);
	assert_int_equal(dm_mapped_swap(md, t, NULL, NULL, &err), 0);
	assert_int_equal(dm_write_sync(&md->dev, 5, 1, data, 0), -EIO);
	assert_int_equal(dm_read_sync(&md->dev, 5, 1, data, 0), -EIO);
	activate("0 8000 crypt %s %s 0 %s 0 %s", "aes-xts-plain64", KEY, "");
	assert_int_equal(dm_remove(bad, NULL), 0);
	dm_mapped_unref(bad);
}

static void test_sector_size(void **state)
{
	uint8_t data[4096], back[4096];
	struct dm_limits limits;

	activate("0 8000 crypt %s %s 8 %s 0 %s", "aes-xts-plain64", KEY, "2 iv_large_sectors sector_size:4096");
	expect_table("0 8000 crypt aes-xts-plain64 %s 8 %s 0 2 sector_size:4096 iv_large_sectors\n", ZEROS, file);
	dm_dev_limits(&md->dev, &limits);
	assert_int_equal(limits.logical_block_size, 4096);
	assert_int_equal(limits.physical_block_size, 4096);
	fill(data, sizeof(data), 1);
	assert_int_equal(dm_write_sync(&md->dev, 16, 8, data, 0), 0);
	assert_int_equal(dm_read_sync(&md->dev, 16, 8, back, 0), 0);
	assert_memory_equal(data, back, sizeof(data));
	assert_int_equal(dm_write_sync(&md->dev, 17, 1, data, 0), -EIO);
	assert_int_equal(dm_read_sync(&md->dev, 16, 1, data, 0), -EIO);
}

static int discard(struct dm_dev *dev, uint64_t sector, uint64_t sectors)
{
	struct dm_region where = {dev, sector, sectors};

	return dm_io_sync(DM_DISCARD, 0, 1, &where, NULL, 0, NULL);
}

static void test_discard(void **state)
{
	uint8_t data[4096], zero[4096] = {0};
	int fd = open(file, O_RDONLY);

	fill(data, sizeof(data), 1);
	activate("0 8000 crypt %s %s 0 %s 0 %s", "aes-xts-plain64", KEY, "");
	assert_int_equal(dm_write_sync(&md->dev, 80, 8, data, 0), 0);
	assert_int_equal(discard(&md->dev, 80, 8), -EOPNOTSUPP);
	activate("0 8000 crypt %s %s 0 %s 0 %s", "aes-xts-plain64", KEY, "1 allow_discards");
	expect_table("0 8000 crypt aes-xts-plain64 %s 0 %s 0 1 allow_discards\n", ZEROS, file);
	assert_int_equal(discard(&md->dev, 80, 8), 0);
	assert_int_equal(pread(fd, data, sizeof(data), 80 * 512), sizeof(data));
	assert_memory_equal(data, zero, sizeof(data));
	close(fd);
}

static void test_options_are_printed(void **state)
{
	activate("0 8000 crypt %s %s 0 %s 0 %s", "aes:2-cbc-essiv:sha256", KEY,
		 "6 NO_WRITE_WORKQUEUE same_cpu_crypt no_read_workqueue allow_discards submit_from_crypt_cpus sector_size:512");
	expect_table("0 8000 crypt aes:2-cbc-essiv:sha256 %s 0 %s 0 5 allow_discards same_cpu_crypt "
		     "submit_from_crypt_cpus no_read_workqueue no_write_workqueue\n", ZEROS, file);
	activate("0 8000 crypt %s %s 0 %s 0 %s", "cipher_null-ecb", "-", "0");
	expect_table("0 8000 crypt cipher_null-ecb - 0 %s 0\n", file);
}

static void expect_refused(const char *cipher, const char *key, const char *iv_offset, const char *start,
			   const char *options, const char *why)
{
	GError *err = NULL;
	struct dm_table *t = load(&err, "0 8000 crypt %s %s %s %s %s %s", cipher, key, iv_offset, file, start, options);

	if (t)
		fail_msg("taken: %s %s %s", cipher, start, options);
	if (!strstr(err->message, why))
		fail_msg("says '%s', not '%s'", err->message, why);
	assert_true(g_str_has_prefix(err->message, "crypt: "));
	assert_null(strstr(err->message, "0b0c"));
	g_error_free(err);
}

static void test_refused(void **state)
{
	const char *x = "aes-xts-plain64";
	GError *err = NULL;

	expect_refused("rot13-cbc-plain", KEY, "0", "0", "", "cipher 'rot13'");
	expect_refused(x, KEY "0b0c", "0", "0", "", "half of the xts key has 17 bytes");
	expect_refused(x, KEY "0", "0", "0", "", "65 hexadecimal digits");
	expect_refused(x, "xx" KEY, "0", "0", "", "not hexadecimal at digit 1");
	expect_refused(x, "-", "0", "0", "", "has 0 bytes");
	expect_refused(x, KEY, "-1", "0", "", "iv_offset");
	expect_refused(x, KEY, "1", "0", "1 sector_size:1024", "iv_offset 1 is not a multiple of sector_size 1024");
	expect_refused(x, KEY, "0", "0x10", "", "device sector");
	expect_refused(x, KEY, "0", "193", "", "too small for target");
	expect_refused(x, KEY, "0", "18446744073709551615", "", "too small for target");
	expect_refused(x, KEY, "0", "0", "1", "optional parameters");
	expect_refused(x, KEY, "0", "0", "9 a b c d e f g h i", "optional parameters");
	expect_refused(x, KEY, "0", "0", "0 allow_discards", "'allow_discards' and what follows");
	expect_refused(x, KEY, "0", "0", "1 allow_discord", "option 'allow_discord' is not one of");
	expect_refused(x, KEY, "0", "0", "1 sector_size:100", "sector_size '100' is not a power of two");
	expect_refused(x, KEY, "0", "0", "1 sector_size:8192", "sector_size '8192'");
	expect_refused(x, KEY, "0", "0", "1 sector_size:", "sector_size ''");
	expect_refused(x, KEY, "0", "0", "2 sector_size:512 sector_size:1024", "given as 512 and as 1024");
	expect_refused(x, KEY, "0", "0", "1 integrity:28:aead", "'aes-xts-plain64' is not an authenticated mode");
	expect_refused("capi:gcm(aes)-random", KEY, "0", "0", "", "authenticated mode");
	expect_refused("aes-cbc-lmk", KEY, "0", "0", "1 sector_size:4096", "lmk takes sectors of 512");
	expect_refused("aes-cbc-plain", ":32:logon:dmfs:key", "0", "0", "", "type logon");
	assert_null(load(&err, "0 8001 crypt %s %s 0 %s 0 1 sector_size:1024", x, KEY, file));
	assert_non_null(strstr(err->message, "length 8001 is not a multiple of sector_size 1024"));
	g_clear_error(&err);
	assert_null(load(&err, "0 8000 crypt %s %s", x, KEY));
	assert_non_null(strstr(err->message, "2 arguments, <cipher> <key>"));
	g_clear_error(&err);
	assert_null(load(&err, "0 8000 crypt %s %s 0 /nowhere/at/all 0", x, KEY));
	g_clear_error(&err);
}

static void test_key_messages(void **state)
{
	uint8_t data[512], back[512];
	GError *err = NULL;

	activate("0 8000 crypt %s %s 0 %s 0 %s", "aes-xts-plain64", KEY, "");
	fill(data, sizeof(data), 9);
	assert_int_equal(dm_write_sync(&md->dev, 5, 1, data, 0), 0);
	assert_int_equal(message(&err, "key wipe"), -EINVAL);
	assert_string_equal(err->message, "crypt: not suspended during key manipulation.");
	g_clear_error(&err);
	assert_int_equal(message(NULL, "key set " KEY), -EINVAL);
	assert_int_equal(message(NULL, "hello world"), -EINVAL);
	assert_int_equal(message(NULL, "key"), -EINVAL);

	assert_int_equal(dm_mapped_suspend(md, 0, NULL, NULL, NULL), 0);
	assert_int_equal(message(NULL, "key wash"), -EINVAL);
	assert_int_equal(message(NULL, "KEY WIPE"), 0);
	expect_table("0 8000 crypt aes-xts-plain64 %s 0 %s 0\n", ZEROS, file);
	assert_int_equal(dm_mapped_resume(md, 0, NULL, NULL, &err), -EAGAIN);
	assert_string_equal(err->message, "crypt: aborting resume - crypt key is not set.");
	g_clear_error(&err);
	assert_int_equal(message(&err, "key set 000102"), -EINVAL);
	assert_string_equal(err->message, "crypt: the key has 3 bytes, it must have 32");
	g_clear_error(&err);
	assert_int_equal(message(NULL, "key set xx" KEY), -EINVAL);
	assert_int_equal(message(NULL, "key set " KEY), 0);
	assert_int_equal(dm_mapped_resume(md, 0, NULL, NULL, NULL), 0);
	assert_int_equal(dm_read_sync(&md->dev, 5, 1, back, 0), 0);
	assert_memory_equal(data, back, sizeof(data));

	assert_int_equal(dm_mapped_suspend(md, 0, NULL, NULL, NULL), 0);
	assert_int_equal(message(NULL, "key set " ZEROS), 0);
	assert_int_equal(dm_mapped_resume(md, 0, NULL, NULL, NULL), 0);
	assert_int_equal(dm_read_sync(&md->dev, 5, 1, back, 0), 0);
	assert_memory_not_equal(data, back, sizeof(data));
	assert_int_equal(message(NULL, "key wipe"), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_write_and_read),
		cmocka_unit_test(test_spread),
		cmocka_unit_test(test_large_of_many_parts),
		cmocka_unit_test(test_large_with_an_error),
		cmocka_unit_test(test_errors_of_the_device),
		cmocka_unit_test(test_sector_size),
		cmocka_unit_test(test_discard),
		cmocka_unit_test(test_options_are_printed),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_key_messages),
	};

	dm_register_targets(dm_target_list);
	return cmocka_run_group_tests(tests, setup, teardown);
}
