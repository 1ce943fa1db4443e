/* SPDX-License-Identifier: GPL-2.0-or-later */
/* iov arithmetic against a flat copy, for every offset and length of oddly cut vectors. */
#include "unit.h"

#include <dmfs/bio.h>

#define BYTES 40

static const size_t cuts[][8] = {
	{BYTES}, {1, 39}, {39, 1}, {0, 40}, {40, 0}, {8, 8, 8, 8, 8}, {1, 0, 2, 0, 3, 4, 30}, {20, 0, 0, 20},
};

static int make(const size_t *lengths, char *data, struct iovec *iov)
{
	int n = 0;
	size_t at = 0;

	/* Entries of no bytes at the end belong to it too: {40, 0}. */
	for (int i = 0; i < 8; i++) {
		iov[n].iov_base = data + at;
		iov[n++].iov_len = lengths[i];
		at += lengths[i];
	}
	return n;
}

static void every_range(void **state)
{
	for (size_t c = 0; c < G_N_ELEMENTS(cuts); c++) {
		for (size_t offset = 0; offset <= BYTES; offset++) {
			for (size_t len = 0; offset + len <= BYTES; len++) {
				char data[BYTES], want[BYTES], buf[BYTES], fresh[BYTES];
				struct iovec iov[8], part[8];
				struct dm_part_data data_of;
				struct dm_bio bio;
				int n = make(cuts[c], data, iov), parts;

				for (int i = 0; i < BYTES; i++) {
					data[i] = want[i] = (char)(i + 1);
					fresh[i] = (char)(100 + i);
				}
				assert_int_equal(dm_iov_bytes(iov, n), BYTES);
				dm_iov_read(iov, n, offset, buf, len);
				assert_memory_equal(buf, want + offset, len);

				parts = dm_iov_slice(iov, n, offset, len, part);
				assert_in_range(parts, 0, n);
				assert_int_equal(dm_iov_bytes(part, parts), len);
				dm_iov_read(part, parts, 0, buf, len);
				assert_memory_equal(buf, want + offset, len);

				dm_part_data_init(&data_of, &bio, &(struct dm_bio){.iov = iov, .iovcnt = n}, offset, len);
				assert_int_equal(dm_iov_bytes(bio.iov, bio.iovcnt), len);
				dm_iov_read(bio.iov, bio.iovcnt, 0, buf, len);
				assert_memory_equal(buf, want + offset, len);
				dm_part_data_clear(&data_of);

				dm_iov_write(iov, n, offset, fresh, len);
				memcpy(want + offset, fresh, len);
				assert_memory_equal(data, want, BYTES);
				dm_iov_zero(iov, n, offset, len);
				memset(want + offset, 0, len);
				assert_memory_equal(data, want, BYTES);
			}
		}
	}
}

static void a_list_keeps_its_order(void **state)
{
	struct dm_bio bios[3];
	struct dm_bio_list list;

	dm_bio_list_init(&list);
	assert_null(dm_bio_list_pop(&list));
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < 3; i++)
			dm_bio_list_add(&list, &bios[i]);
		for (int i = 0; i < 3; i++)
			assert_ptr_equal(dm_bio_list_pop(&list), &bios[i]);
		assert_true(dm_bio_list_empty(&list));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_range),
		cmocka_unit_test(a_list_keeps_its_order),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
