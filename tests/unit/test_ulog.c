/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The messages of userspace dirty logs: their bytes, and what is none. */
#include "unit.h"

#include "lib/ulog.h"
#include "lib/userspace_args.h"

static const uint8_t data[4] = {1, 2, 3, 4};

static size_t make(uint8_t out[ULOG_MAX])
{
	struct ulog m = {.luid = 0x1122334455667788, .uuid = "uuid", .error = -5, .seq = 9, .type = DM_ULOG_FLUSH,
			 .data = data, .size = sizeof data};

	return ulog_pack(&m, out);
}

static void the_layout_is_the_kernel_s(void **state)
{
	uint8_t m[ULOG_MAX];
	struct dm_ulog_request r;
	struct ulog got;
	uint64_t luid = 0x1122334455667788;

	assert_int_equal(make(m), 164);
	assert_memory_equal(m, &luid, 8);
	assert_string_equal((char *)m + 8, "uuid");
	memcpy(&r, m, sizeof r);
	assert_int_equal(r.version, 3);
	assert_int_equal(r.error, -5);
	assert_int_equal(r.seq, 9);
	assert_int_equal(r.request_type, 9);
	assert_int_equal(r.data_size, 4);
	assert_memory_equal(m + 160, data, 4);
	assert_null(ulog_parse(m, 164, &got));
	assert_int_equal(got.luid, luid);
	assert_string_equal(got.uuid, "uuid");
	assert_int_equal(got.error, -5);
	assert_int_equal(got.seq, 9);
	assert_int_equal(got.type, DM_ULOG_FLUSH);
	assert_true(got.size == 4 && got.data == m + 160);
	assert_string_equal(ulog_name(got.type), "FLUSH");
	assert_string_equal(ulog_name(DM_ULOG_IS_REMOTE_RECOVERING), "IS_REMOTE_RECOVERING");
	assert_string_equal(ulog_name(99), "?");
}

static void put32(uint8_t *m, size_t at, uint32_t value)
{
	memcpy(m + at, &value, sizeof value);
}

static void what_is_no_message(void **state)
{
	static const struct {
		size_t at;
		uint32_t value;
		bool good;
	} changes[] = {
		{140, 0, false}, {140, 1, true}, {140, 4, false},	   {144, 1, false},	 {144, 0, true},
		{144, (uint32_t)-4095, true},	 {144, (uint32_t)-4096, false}, {144, 0x80000000, false},
		{152, 0, false}, {152, 17, true}, {152, 18, false},	   {152, 0x100, false}, {152, 0x101, true},
		{156, 3, false}, {156, 5, false}, {156, UINT32_MAX, false},
	};
	uint8_t m[ULOG_MAX + 1] = {0};
	size_t len = make(m);
	struct ulog got;

	for (size_t n = 0; n < len; n++)
		assert_non_null(ulog_parse(m, n, &got));
	assert_non_null(ulog_parse(m, ULOG_MAX + 1, &got));
	for (unsigned i = 0; i < G_N_ELEMENTS(changes); i++) {
		make(m);
		put32(m, changes[i].at, changes[i].value);
		if (!ulog_parse(m, len, &got) != changes[i].good)
			fail_msg("%u at byte %zu", changes[i].value, changes[i].at);
	}
	make(m);
	memset(m + 8, 'u', DM_UUID_LEN);
	assert_non_null(ulog_parse(m, len, &got));
}

static void numbers(void **state)
{
	uint64_t want = 77, got = 0;
	struct ulog m = {.data = (const uint8_t *)&want, .size = sizeof want};

	assert_true(ulog_u64(&m, &got) && got == 77);
	m.size = 7;
	assert_false(ulog_u64(&m, &got));
}

static void counts_of_parameters(void **state)
{
	static const struct {
		const char *words[4];
		int left;
	} cases[] = {
		{{"64"}, 1}, {{"1", "64"}, 1}, {{"64", "nosync"}, 2}, {{"2", "64", "sync"}, 2}, {{"1", "sync"}, 2},
		{{"2", "nosync"}, 2}, {{"/dev", "64", "sync"}, 3}, {{"2", "/dev", "64"}, 2}, {{"3", "/dev", "64", "sync"}, 3},
		{{"9", "64"}, 2}, {{NULL}, 0},
	};

	for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
		char *words[5] = {0}, **argv = words;
		int argc = 0;

		for (; argc < 4 && cases[i].words[argc]; argc++)
			words[argc] = (char *)cases[i].words[argc];
		dm_userspace_skip_count(&argc, &argv);
		if (argc != cases[i].left)
			fail_msg("case %u: %d", i, argc);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_layout_is_the_kernel_s),
		cmocka_unit_test(what_is_no_message),
		cmocka_unit_test(numbers),
		cmocka_unit_test(counts_of_parameters),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
