/* SPDX-License-Identifier: GPL-2.0-or-later */
/* dmfs-luks: where TrueCrypt's data is, what a table uses, names of hashes, LUKS2's metadata. */
#include "unit.h"

#include <stdio.h>

#undef fail /* cmocka's, for the tool's own */

#include "../../tools/common/tree.c"
#include "../../tools/dmfs-luks/around.c"
#include "../../tools/dmfs-luks/hash.c"
#include "../../tools/dmfs-luks/json.c"
#include "../../tools/dmfs-luks/storage.c"
#include "../../tools/dmfs-luks/tcrange.c"

static char said[512];

int fail(GError **err, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(said, sizeof(said), fmt, ap);
	va_end(ap);
	return -code;
}

/* --- where TrueCrypt's data is ------------------------------------------------------------------ */

/* Of a system partition at sector 2048, 1000 sectors long. */
static struct tc_header system_header(void)
{
	return (struct tc_header){.mode = "xts-plain64",
				  .version = 5,
				  .sector_size = 512,
				  .flags = TC_IS_SYSTEM,
				  .volume_bytes = 1000 * 512,
				  .data_at = 2048 * 512,
				  .data_bytes = 1000 * 512};
}

static void assert_range(const struct tc_header *h, struct tc_where w, uint64_t start, uint64_t sectors, uint64_t iv)
{
	struct tc_range r;

	if (!w.header_sectors)
		w.header_sectors = w.sectors;
	assert_int_equal(tc_data_range(h, &w, &r, NULL), 0);
	assert_int_equal(r.start, start);
	assert_int_equal(r.sectors, sectors);
	assert_int_equal(r.iv, iv);
}

static void assert_refused(const struct tc_header *h, struct tc_where w, int code, const char *why)
{
	struct tc_range r;

	if (!w.header_sectors)
		w.header_sectors = w.sectors;
	assert_int_equal(tc_data_range(h, &w, &r, NULL), -code);
	if (!strstr(said, why))
		print_error("%s\n", said);
	assert_non_null(strstr(said, why));
}

static void a_system_ends_where_its_header_says(void **state)
{
	struct tc_header h = system_header();

	/* of the disk, where other partitions and a backup of the table follow */
	assert_range(&h, (struct tc_where){.sectors = 100000, .system = true}, 2048, 1000, 2048);
	assert_range(&h, (struct tc_where){.sectors = 3048, .system = true}, 2048, 1000, 2048);
	assert_refused(&h, (struct tc_where){.sectors = 3047, .system = true}, EINVAL, "cut short");
	/* an image of the partition, which may be longer */
	assert_range(&h, (struct tc_where){.sectors = 1000, .system = true, .partition = true}, 0, 1000, 2048);
	assert_range(&h, (struct tc_where){.sectors = 5000, .system = true, .partition = true}, 0, 1000, 2048);
	assert_refused(&h, (struct tc_where){.sectors = 999, .system = true, .partition = true}, EINVAL, "cut short");
	h.volume_bytes = 0;
	assert_refused(&h, (struct tc_where){.sectors = 100000, .system = true}, EINVAL, "0 bytes of data");
	h.volume_bytes = UINT64_MAX;
	h.data_at = UINT64_MAX - 511;
	assert_refused(&h, (struct tc_where){.sectors = UINT64_MAX, .system = true}, EINVAL, "bytes of data at byte");
}

static void a_partition_of_an_encrypted_disk_has_ivs_of_the_disk(void **state)
{
	struct tc_header h = system_header();
	struct tc_where w = {.sectors = 400, .system = true, .partition = true, .start_known = true};

	w.partition_start = 2048;
	assert_range(&h, w, 0, 400, 2048);
	w.partition_start = 2448;
	assert_range(&h, w, 0, 400, 2448);
	w.partition_start = 2948; /* which goes on behind it */
	assert_range(&h, w, 0, 100, 2948);
	w.partition_start = 3048;
	assert_refused(&h, w, EINVAL,
		       "the partition starts at sector 3048 of its disk, but what is encrypted are sectors 2048 to "
		       "3047");
	w.partition_start = 2047;
	assert_refused(&h, w, EINVAL, "the partition starts at sector 2047");
}

static void what_is_encrypted_in_part_is_only_read(void **state)
{
	struct tc_header h = system_header();

	h.data_bytes -= 512;
	assert_refused(&h, (struct tc_where){.sectors = 5000, .system = true}, EOPNOTSUPP,
		       "only 511488 of its 512000 bytes are encrypted");
	assert_range(&h, (struct tc_where){.sectors = 5000, .system = true, .unfinished = true}, 2048, 1000, 2048);
	h.flags = TC_IS_IN_PLACE;
	assert_refused(&h, (struct tc_where){.sectors = 5000}, EOPNOTSUPP, "only 511488");
	h.flags = 0;
	assert_range(&h, (struct tc_where){.sectors = 5000}, 2048, 1000, 2048);
}

static void usual_and_hidden_volumes(void **state)
{
	struct tc_header h = system_header();

	h.flags = 0;
	h.hidden_bytes = 0;
	assert_refused(&h, (struct tc_where){.sectors = 5000, .hidden = true}, EINVAL, "no hidden volume");
	h.hidden_bytes = 100 * 512;
	assert_range(&h, (struct tc_where){.sectors = 5000, .hidden = true}, 2048, 100, 2048);
	h.version = 3; /* it ends where its header begins */
	assert_range(&h, (struct tc_where){.sectors = 5000, .hidden = true}, 4897, 100, 4897);
	assert_range(&h, (struct tc_where){.sectors = 5000, .header_sectors = 4000, .hidden = true}, 3897, 100, 3897);
	h.mode = "cbc-tcw";
	assert_range(&h, (struct tc_where){.sectors = 5000, .hidden = true}, 4897, 100, 2048);
	h.data_at = 0;
	h.volume_bytes = 0; /* to the end */
	assert_range(&h, (struct tc_where){.sectors = 5000}, 1, 4999, 1);
	assert_refused(&h, (struct tc_where){.sectors = 1}, EINVAL, "cut short");
	h.sector_size = 1000;
	assert_refused(&h, (struct tc_where){.sectors = 5000}, EOPNOTSUPP, "sectors of 1000 bytes");
	h.sector_size = 512;
	h.data_at = 513;
	assert_refused(&h, (struct tc_where){.sectors = 5000}, EOPNOTSUPP, "data at byte 513");
}

/* Whatever the header says: nothing beyond the file. */
static void no_header_leads_out_of_the_file(void **state)
{
	static const uint64_t numbers[] = {
	    0, 1, 512, 1024, 1 << 20, INT64_MAX, INT64_MAX - 511, UINT64_MAX - 511, UINT64_MAX};
	static const char *const modes[] = {"xts-plain64", "cbc-tcw"};
	unsigned n = G_N_ELEMENTS(numbers), taken = 0;

	for (unsigned i = 0; i < n * n * n * n; i++)
		for (unsigned kind = 0; kind < 64; kind++) {
			struct tc_header h = {.mode = modes[kind & 1],
					      .version = kind & 2 ? 5 : 2,
					      .sector_size = 512,
					      .volume_bytes = numbers[i % n],
					      .hidden_bytes = numbers[i / n % n],
					      .data_at = numbers[i / n / n % n],
					      .data_bytes = UINT64_MAX};
			struct tc_where w = {.sectors = numbers[i / n / n / n] / 512,
					     .hidden = kind & 4,
					     .system = kind & 8,
					     .partition = kind & 16,
					     .start_known = kind & 32,
					     .partition_start = 2};
			struct tc_range r;

			w.header_sectors = w.sectors;
			if (tc_data_range(&h, &w, &r, NULL))
				continue;
			taken++;
			assert_true(r.sectors && r.start <= w.sectors && r.sectors <= w.sectors - r.start);
		}
	assert_true(taken > 1000);
}

/* --- what a table uses -------------------------------------------------------------------------- */

static void assert_uses(const char *table, const char *deps, uint64_t from, uint64_t to, const char *expected)
{
	g_autoptr(GPtrArray) uses = storage_uses(table, deps, from, to);
	g_autoptr(GString) text = g_string_new(NULL);

	for (unsigned i = 0; i < uses->len; i++) {
		const struct use *u = uses->pdata[i];

		g_string_append_printf(text, "%s%s %" PRIu64 "-", i ? ", " : "", u->word, u->from);
		if (u->to == UINT64_MAX)
			g_string_append(text, "end");
		else
			g_string_append_printf(text, "%" PRIu64, u->to);
	}
	assert_string_equal(text->str, expected);
}

static void what_a_table_uses(void **state)
{
	static const char two[] = "0 10 linear /a 4\n10 10 linear b\\ c 100\n";

	assert_uses(two, "/a\nb\\ c\n", 0, UINT64_MAX, "/a 2048-7168, b c 51200-56320");
	assert_uses(two, "", 5 * 512, 11 * 512, "/a 4608-7168, b c 51200-51712");
	assert_uses(two, "", 20 * 512, UINT64_MAX, "");
	assert_uses("0 8 crypt aes-xts-plain64 00 0 /f 32768 1 sector_size:4096\n", "", 0, UINT64_MAX,
		    "/f 16777216-16781312");
	assert_uses("8 8 snapshot-origin org\n", "", 0, UINT64_MAX, "org 4096-8192");
	assert_uses("0 8 striped 2 8 /a 0 /b 0\n", "/a\n/b\n", 0, UINT64_MAX, "/a 0-end, /b 0-end");
	assert_uses("0 8 delay /a 0 5 /b 0 5\n", "/a\n/b\n", 0, UINT64_MAX, "/a 0-end, /b 0-end");
	assert_uses("0 8 delay /a 1 5\n", "/a\n", 0, UINT64_MAX, "/a 512-4608");
	/* others use these beside it, by design */
	assert_uses("0 8 thin pool 1\n", "pool\n", 0, UINT64_MAX, "");
	assert_uses("0 8 snapshot org cow P 16\n", "org\ncow\n", 0, UINT64_MAX, "cow 0-end");
	assert_uses("0 8 clone /m /d /s 8\n", "/m\n/d\n/s\n", 0, UINT64_MAX, "/m 0-end, /d 0-end");
	assert_uses("0 8 zero\n8 8 error\n\n", "", 0, UINT64_MAX, "");
	/* what no table has */
	assert_uses("0 8 linear\n0\nx y z w\n0 99999999999999999999 linear /a 99999999999999999999\n", "", 0,
		    UINT64_MAX, "/a 18446744073709551104-end");
}

/* --- names of hashes ----------------------------------------------------------------------------- */

static void hashes_as_people_spell_them(void **state)
{
	assert_string_equal(hash_luks("SHA-512"), "sha512");
	assert_string_equal(hash_luks("sha512"), "sha512");
	assert_string_equal(hash_luks("SHA3_256"), "sha3-256");
	assert_string_equal(hash_luks("Streebog"), "stribog512");
	assert_string_equal(hash_luks("RIPEMD-160"), "ripemd160");
	assert_string_equal(hash_luks("blake2b512"), "blake2b-512");
	assert_null(hash_luks("sha"));
	assert_null(hash_luks(""));
	assert_null(hash_luks("sha512,"));
}

/* --- LUKS2's metadata ---------------------------------------------------------------------------- */

static void a_values_text(void **state)
{
	static const char json[] = "{\"a\" : {\"b\":\"x\\\"y\", \"c\":[\"d\", {\"e\":1}] , \"f\":12}, \"g\":\"";
	g_autofree char *b = json_text(json_find(json, (const char *const[]){"a", "b", NULL}));
	g_autofree char *c = json_text(json_find(json, (const char *const[]){"a", "c", NULL}));
	g_autofree char *f = json_text(json_find(json, (const char *const[]){"a", "f", NULL}));

	assert_string_equal(b, "\"x\\\"y\"");
	assert_string_equal(c, "[\"d\", {\"e\":1}]");
	assert_string_equal(f, "12");
	assert_null(json_text(json_find(json, (const char *const[]){"g", NULL})));
	assert_null(json_text(NULL));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_system_ends_where_its_header_says),
	    cmocka_unit_test(a_partition_of_an_encrypted_disk_has_ivs_of_the_disk),
	    cmocka_unit_test(what_is_encrypted_in_part_is_only_read),
	    cmocka_unit_test(usual_and_hidden_volumes),
	    cmocka_unit_test(no_header_leads_out_of_the_file),
	    cmocka_unit_test(what_a_table_uses),
	    cmocka_unit_test(hashes_as_people_spell_them),
	    cmocka_unit_test(a_values_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
