/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dmfs-run: devices in the text of a table, both ways; the lines of .devices; commands' buffers that are not whole. */
#include "unit.h"

#include "../../tools/dmfs-run/preload/base.c"
#include "../../tools/dmfs-run/preload/control.c"
#include "../../tools/dmfs-run/preload/keys.c"
#include "../../tools/dmfs-run/preload/table.c"
#include "../../tools/dmfs-run/preload/tree.c"
#include "../../tools/dmfs-run/preload/words.c"

/* --- the rest of the library ----------------------------------------------------------------------- */

bool place_is_virtual(const char *path)
{
	return !strncmp(path, "/dev/", 5);
}

const char *place(const char *path, char out[PATH_MAX], enum place_for what)
{
	(void)what;
	if (strncmp(path, "/dev/mapper/", 12))
		return path; /* none of ours */
	return path_format(out, "/mnt/%s/image", path + 12) ? out : path;
}

int disk_add(const char *target, unsigned *minor_nr)
{
	*minor_nr = !strcmp(target, "/a file") ? 7 : 8;
	return 0;
}

bool disk_by_minor(unsigned minor_nr, struct disk *out)
{
	strcpy(out->target, "/a file");
	return minor_nr == 7;
}

void disks_load(void)
{
}

static int set_up(void **state)
{
	run.dm_major = 252;
	run.disk_major = 251;
	strcpy(run.shadow, "/shadow");
	run.shadow_len = strlen(run.shadow);
	strcpy(run.mount, "/nonexistent");
	return 0;
}

/* --- words ----------------------------------------------------------------------------------------- */

static void check(void (*fn)(struct text *, const char *), const char *in, const char *out)
{
	AUTO_TEXT t = {0};

	fn(&t, in);
	assert_string_equal(text_get(&t), out);
}

static void out_whole(struct text *t, const char *params)
{
	words_out(t, params, strlen(params));
}

static void test_words_in(void **state)
{
	check(words_in, "252:3 0", "0:3 0");
	check(words_in, "251:7 8 251:9", "/a\\ file 8 251:9"); /* there is no disk 9 */
	check(words_in, "/dev/mapper/a\\ b 0", "/mnt/a\\ b/image 0");
	check(words_in, "/dev/sda /tmp/x 8:0", "/dev/sda /tmp/x 8:0");
	check(words_in, "252:3x +252:3 252: :3 252:3:4", "252:3x +252:3 252: :3 252:3:4");
	check(words_in, "meta_device:252:1 block_size:512", "meta_device:0:1 block_size:512");
	check(words_in, "aes :32:logon:x 0", "aes :32:logon:x 0");
	/* a newline would begin another line; a quoted one is a character of a word */
	check(words_in, "252:3\n5 5 error", "0:3 5 5 error");
	check(words_in, "a\\\nb", "a\\\nb");
	check(words_in, "", "");
	check(words_in, "  252:0  ", "  0:0  ");
	check(words_in, "\\", "\\");
}

static void test_words_out(void **state)
{
	check(out_whole, "0:3 0", "252:3 0");
	check(out_whole, "/a\\ file 8", "251:7 8");
	check(out_whole, "nbd://host/x 0 meta_device:/a\\ file", "251:8 0 meta_device:251:7");
	check(out_whole, "1:3 16/8192 a:b 0:", "1:3 16/8192 a:b 0:");
	check(out_whole, "2 0:1 0:2 4/4 1 AA", "2 252:1 252:2 4/4 1 AA");
}

/* --- keys ------------------------------------------------------------------------------------------ */

static int keys_of(const char *type, const char *params, const char *out)
{
	AUTO_TEXT t = {0};
	int error = type ? keys_in(&t, type, params) : keys_in_message(&t, params);

	if (!error)
		assert_string_equal(text_get(&t), out);
	return error;
}

static void test_no_keys(void **state)
{
	static const char *const same[] = {
		"aes-xts-plain64 c0ffee 0 /x 0", "aes - 0 /x 0", "aes", "", "  ", "aes :", "aes :x:user:y 0", "aes :0:logon:a:b",
		"aes :32:encrypted:a", "aes :32:user:", "aes :32:user:dmfs-test-surely-not-there 0 /x 0",
		"aes c0ffee :32:logon:dmfs:not-here 0", " aes\\ \t - :32:logon:a:b", "aes \\",
	};
	static const char *const messages[] = {"key wipe", "key set c0ffee", "key set", "key", "", "x set :32:logon:a:b", " key  set  - x"};

	for (size_t i = 0; i < G_N_ELEMENTS(same); i++)
		assert_int_equal(keys_of("crypt", same[i], same[i]), 0);
	for (size_t i = 0; i < G_N_ELEMENTS(messages); i++)
		assert_int_equal(keys_of(NULL, messages[i], messages[i]), 0);
	assert_int_equal(keys_of("linear", "aes :32:logon:a:b 0", "aes :32:logon:a:b 0"), 0);
	assert_true(keys_of("crypt", "aes :32:logon:dmfs:surely-not-there 0", "") < 0);
	assert_true(keys_of("crypt", "aes :32:logon:no-prefix 0", "") < 0);
	assert_true(keys_of(NULL, "KEY set :32:logon:dmfs:surely-not-there", "") < 0);
}

static long call(long number, const char *type, const char *description, const char *data)
{
	return keys_call(number, (long[]){(long)type, (long)description, (long)data, data ? (long)strlen(data) : 0,
					  KEY_SPEC_PROCESS_KEYRING, 0});
}

static long control(long what, long id, char *buffer, size_t size)
{
	return keys_call(SYS_keyctl, (long[]){what, id, (long)buffer, (long)size, 0, 0});
}

static void test_keys(void **state)
{
	long id = call(SYS_add_key, "logon", "dmfs-unit:a b;c", "12345");
	char text[256] = "";

	if (id < 0)
		skip(); /* a container without keyrings */
	assert_int_equal(call(SYS_request_key, "logon", "dmfs-unit:a b;c", NULL), id);
	assert_int_equal(call(SYS_request_key, "user", "dmfs-unit:a b;c", NULL), -1);
	assert_int_equal(call(SYS_add_key, "logon", "none", "12345"), -1);
	assert_int_equal(errno, EINVAL);
	assert_int_equal(call(SYS_add_key, "logon", ":none", "12345"), -1);
	assert_int_equal(control(KEYCTL_READ, id, text, sizeof text), -1);
	assert_int_equal(errno, EOPNOTSUPP);
	assert_int_equal(control(KEYCTL_DESCRIBE, id, text, 3), control(KEYCTL_DESCRIBE, id, text, sizeof text));
	assert_true(g_str_has_prefix(text, "logon;") && g_str_has_suffix(text, ";dmfs-unit:a b;c"));
	assert_int_equal(keys_call(SYS_keyctl, (long[]){KEYCTL_SEARCH, KEY_SPEC_PROCESS_KEYRING, (long)"logon",
							(long)"dmfs-unit:a b;c", 0, 0}), id);
	assert_int_equal(keys_of("crypt", "aes :5:logon:dmfs-unit:a\\ b;c 0 /x", "aes 3132333435:logon:dmfs-unit:a\\ b;c 0 /x"), 0);
	assert_int_equal(keys_of("crypt", "aes :6:logon:dmfs-unit:a\\ b;c 0 /x", ""), -EINVAL);
	assert_int_equal(keys_of(NULL, "0 key set :5:logon:dmfs-unit:x", "0 key set :5:logon:dmfs-unit:x"), 0);
	assert_int_equal(keys_of(NULL, "Key SET :5:logon:dmfs-unit:a\\ b;c", "Key SET 3132333435:logon:dmfs-unit:a\\ b;c"), 0);
	keys_call(SYS_keyctl, (long[]){KEYCTL_REVOKE, id, 0, 0, 0, 0});
	assert_true(keys_of("crypt", "aes :5:logon:dmfs-unit:a\\ b;c 0 /x", "") < 0);

	id = call(SYS_add_key, "user", "dmfs-unit-signature", "12");
	assert_true(id >= 0);
	assert_int_equal(keys_of("crypt", "aes :2:user:dmfs-unit-signature", "aes 3132:user:dmfs-unit-signature"), 0);
	assert_int_equal(keys_of("verity", "1 2 3 4 5 6 7 8 9 - 2 ROOT_hash_sig_key_desc dmfs-unit-signature",
				 "1 2 3 4 5 6 7 8 9 - 2 ROOT_hash_sig_key_desc 3132:user:dmfs-unit-signature"), 0);
	assert_int_equal(keys_of("verity", "1 2 3 4 5 6 7 8 9 - 2 root_hash_sig_key_desc /f", "1 2 3 4 5 6 7 8 9 - 2 root_hash_sig_key_desc /f"), 0);
	keys_call(SYS_keyctl, (long[]){KEYCTL_REVOKE, id, 0, 0, 0, 0});
}

static void test_lines_of_devices(void **state)
{
	struct listed d;
	const char *rest;

	rest = take_line("0:5 12 a\\ name U\\ 1\nrest", &d);
	assert_string_equal(rest, "rest");
	assert_int_equal(d.minor, 5);
	assert_int_equal(d.events, 12);
	assert_string_equal(d.name, "a name");
	assert_string_equal(d.uuid, "U 1");
	assert_non_null(take_line("0:5 12 name\n", &d));
	assert_string_equal(d.uuid, "");
	assert_null(take_line("5 12 name\n", &d));
	assert_null(take_line("0:5 name\n", &d));
	assert_null(take_line("0:5 12 name", &d));
	assert_null(take_line("0:5 12 a b c\n", &d));
	{
		char *long_name = g_strnfill(128, 'n'), *line = g_strdup_printf("0:5 1 %s\n", long_name);

		assert_null(take_line(line, &d));
		g_free(line);
		g_free(long_name);
	}
}

/* --- buffers --------------------------------------------------------------------------------------- */

static int command(unsigned nr, const struct dm_ioctl *head, const void *data, size_t len)
{
	struct dm_ioctl *io = g_malloc0(sizeof *io + len);
	int error;

	*io = *head;
	memcpy(io + 1, data, len);
	error = control_command(nr, io, sizeof *io + len);
	g_free(io);
	return error;
}

static void test_buffers_that_are_not_whole(void **state)
{
	struct dm_ioctl io = {.data_start = sizeof io};
	struct dm_ioctl no_start = {.data_start = UINT32_MAX};

	strcpy(io.name, "a");
	strcpy(no_start.name, "a");
	assert_int_equal(command(99, &io, "", 0), -ENOTTY);
	assert_int_equal(control_command(DM_TABLE_LOAD_CMD, &io, 40), -EINVAL);
	assert_int_equal(command(DM_DEV_RENAME_CMD, &io, "new", 3), -EINVAL); /* it does not end */
	assert_int_equal(command(DM_DEV_RENAME_CMD, &io, "", 1), -EINVAL);
	assert_int_equal(command(DM_DEV_RENAME_CMD, &io, "a/b", 4), -EINVAL);
	assert_int_equal(command(DM_DEV_RENAME_CMD, &no_start, "new", 4), -EINVAL);
	assert_int_equal(command(DM_TABLE_LOAD_CMD, &io, "", 1), -ENXIO); /* there is no such device */
	strcpy(io.uuid, "u");
	assert_int_equal(command(DM_DEV_STATUS_CMD, &io, "", 1), -EINVAL); /* name and uuid */
	memset(io.name, 'x', sizeof io.name);
	io.uuid[0] = '\0';
	assert_int_equal(command(DM_DEV_STATUS_CMD, &io, "", 1), -ENXIO);
}

static int specs(unsigned count, uint32_t next, const char *type, size_t size)
{
	char *buffer = g_malloc0(sizeof(struct dm_ioctl) + size);
	struct dm_ioctl *io = (struct dm_ioctl *)buffer;
	struct dm_target_spec spec = {.length = 8, .next = next};
	AUTO_TEXT table = {0};
	int error;

	io->data_start = sizeof *io;
	io->target_count = count;
	memcpy(spec.target_type, type, MIN(strlen(type) + 1, sizeof spec.target_type));
	memcpy(io + 1, &spec, MIN(size, sizeof spec));
	error = read_specs(io, sizeof *io + size, &table);
	if (!error && count == 1)
		assert_string_equal(table.s, "0 8 zero \n");
	g_free(buffer);
	return error;
}

static void test_specs(void **state)
{
	assert_int_equal(specs(1, 0, "zero", sizeof(struct dm_target_spec) + 1), 0);
	assert_int_equal(specs(1, UINT32_MAX, "zero", sizeof(struct dm_target_spec) + 1), 0); /* nobody goes there */
	assert_int_equal(specs(0, 0, "zero", 100), -EINVAL);
	assert_int_equal(specs(1, 0, "zero", sizeof(struct dm_target_spec)), -EINVAL); /* no room for the string */
	assert_int_equal(specs(1, 0, "zero", 10), -EINVAL);
	assert_int_equal(specs(2, 0, "zero", 200), -EINVAL); /* the next would be this one */
	assert_int_equal(specs(2, UINT32_MAX, "zero", 200), -EINVAL);
	assert_int_equal(specs(UINT32_MAX, 48, "zero", 96), -EINVAL);
	assert_int_equal(specs(1, 0, "", 100), -EINVAL);
	assert_int_equal(specs(1, 0, "zero\n5", 100), -EINVAL);
	assert_int_equal(specs(1, 0, "a type that is too long", 100), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_words_in),
	    cmocka_unit_test(test_words_out),
	    cmocka_unit_test(test_no_keys),
	    cmocka_unit_test(test_keys),
	    cmocka_unit_test(test_lines_of_devices),
	    cmocka_unit_test(test_buffers_that_are_not_whole),
	    cmocka_unit_test(test_specs),
	};

	return cmocka_run_group_tests(tests, set_up, NULL);
}
