/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What dmfs-open writes into md's superblocks: the state of an array, and nothing else; read back, it is what was
 * meant. */
#include <fcntl.h>
#include <unistd.h>

#include "unit.h"

#undef fail

#include "../../tools/common/fail.c"
#include "../../tools/dmfs-open/md.c"
#include "../../tools/dmfs-open/md_state.c"
#include "../../tools/dmfs-open/src.c"

#define SB_1_BYTES (256 + 2 * 8)

/* Three devices in use, 0 to 2, and a spare, 3. */
static void make_1(uint8_t *p, unsigned number)
{
	memset(p, 0x55, 4096);
	memset(p, 0, SB_1_BYTES);
	put_le32(p, MAGIC);
	put_le32(p + 4, 1);
	put_le32(p + 72, 5);
	put_le32(p + 76, 2);
	put_le64(p + 80, 128);
	put_le32(p + 88, 64);
	put_le32(p + 92, 3);
	put_le64(p + 128, 16);
	put_le64(p + 136, 128);
	put_le64(p + 144, 8);
	put_le32(p + 160, number);
	put_le64(p + 200, 40);
	put_le64(p + 208, UINT64_MAX);
	put_le32(p + 220, 8);
	for (unsigned i = 0; i < 8; i++)
		put_le16(p + 256 + 2 * (size_t)i, i < 3 ? (uint16_t)i : MD_ROLE_SPARE);
	put_le32(p + 216, md_sum_1(p, SB_1_BYTES));
}

static void make_090(uint8_t *p, unsigned number)
{
	memset(p, 0, SB_090_BYTES);
	put_le32(p, MAGIC);
	put_le32(word_at(p, 2), 90);
	put_le32(word_at(p, 7), 5);
	put_le32(word_at(p, 8), 32);
	put_le32(word_at(p, 9), 4);
	put_le32(word_at(p, 10), 3);
	put_le32(word_at(p, 33), 1);
	put_le32(word_at(p, 34), 3);
	put_le32(word_at(p, 35), 4);
	put_le32(word_at(p, 37), 1);
	put_le32(word_at(p, 39), 40);
	put_le32(word_at(p, 41), 40);
	put_le32(word_at(p, 43), UINT32_MAX);
	put_le32(word_at(p, 64), 2);
	put_le32(word_at(p, 65), 65536);
	for (unsigned i = 0; i < 4; i++) {
		put_le32(word_at(p, 128 + 32 * i), i);
		put_le32(word_at(p, 128 + 32 * i + 3), i);
		put_le32(word_at(p, 128 + 32 * i + 4), i < 3 ? DISK_ACTIVE | DISK_SYNC : 0);
	}
	memcpy(word_at(p, 992), word_at(p, 128 + 32 * number), 128);
	put_le32(word_at(p, 38), md_sum_090(p));
}

static void read_back(const uint8_t *disk, size_t size, struct md_super *sb)
{
	struct src s = {.fd = -1, .mem = disk, .size = size};
	g_autoptr(GPtrArray) notes = g_ptr_array_new_with_free_func(g_free);

	assert_int_equal(md_read(&s, sb, notes), 0);
}

#define DISK_BYTES (256u * 1024)
#define AT_090 (DISK_BYTES - 65536)

static void test_bytes(void **state)
{
	static const uint8_t all[] = {MD_USED, MD_USED, MD_USED, MD_SPARE}, without[] = {MD_USED, MD_USED, 0, MD_SPARE},
			     failed[] = {MD_USED, MD_FAILED, MD_USED, MD_SPARE};
	const struct {
		const uint8_t *as;
		bool clean, active[3];
	} cases[] = {
	    {all, false, {1, 1, 1}}, {all, true, {1, 1, 1}}, {without, false, {1, 1, 0}}, {failed, true, {1, 0, 1}}};

	for (unsigned k = 0; k < 2 * G_N_ELEMENTS(cases); k++) {
		g_autofree uint8_t *disk = g_malloc0(DISK_BYTES), *was = NULL;
		size_t at = k % 2 ? AT_090 : 4096, len = k % 2 ? SB_090_BYTES : SB_1_BYTES;
		struct md_super sb;

		(k % 2 ? make_090 : make_1)(disk + at, 0);
		was = g_memdup2(disk, DISK_BYTES);
		read_back(disk, DISK_BYTES, &sb);
		assert_int_equal(sb.at, at);
		assert_int_equal(sb.bytes, len);
		md_put_state(disk + at, &sb, (1ull << 32) + 7, cases[k / 2].clean, cases[k / 2].as, 4);
		md_clear(&sb);
		read_back(disk, DISK_BYTES, &sb); /* which compares the checksum */
		assert_true(sb.events == (1ull << 32) + 7);
		assert_int_equal(sb.resync == UINT64_MAX, cases[k / 2].clean);
		assert_memory_equal(sb.active, cases[k / 2].active, 3);
		assert_int_equal(sb.role, 0);
		md_clear(&sb);
		assert_memory_equal(disk, was, at);
		assert_memory_equal(disk + at + len, was + at + len, DISK_BYTES - at - len);
		assert_memory_equal(disk + at, was + at, k % 2 ? 36 : 128); /* what it is */
	}
}

/* --- whole arrays --------------------------------------------------------------------------------- */

static struct md_disk *disk_file(unsigned number, unsigned as, uint64_t events, bool with_bitmap)
{
	struct md_disk *d = g_new0(struct md_disk, 1);
	g_autofree uint8_t *bytes = g_malloc0(DISK_BYTES);
	int fd = g_file_open_tmp("dmfs-md-XXXXXX", &d->path, NULL);

	make_1(bytes + 4096, number);
	put_le64(bytes + 4096 + 200, events);
	if (with_bitmap) {
		put_le32(bytes + 4096 + 8, F_BITMAP);
		put_le32(bytes + 4096 + 96, 8);
		put_le32(bytes + 8192, BITMAP_MAGIC);
		put_le32(bytes + 8192 + 4, 4);
		put_le64(bytes + 8192 + 24, events);
		put_le64(bytes + 8192 + 32, 3);
	}
	put_le32(bytes + 4096 + 216, md_sum_1(bytes + 4096, SB_1_BYTES));
	assert_int_equal(write(fd, bytes, DISK_BYTES), DISK_BYTES);
	close(fd);
	d->as = as;
	assert_int_equal(md_disk_look(d, "00000000:00000000:00000000:00000000", NULL), 0);
	return d;
}

static void look_again(GPtrArray *disks)
{
	for (unsigned i = 0; i < disks->len; i++)
		assert_int_equal(md_disk_look(disks->pdata[i], "00000000:00000000:00000000:00000000", NULL), 0);
}

static struct md_super *super(GPtrArray *disks, unsigned i)
{
	return &((struct md_disk *)disks->pdata[i])->sb;
}

static uint64_t bitmap_events(GPtrArray *disks, unsigned i, unsigned at)
{
	uint8_t head[64];
	int fd = open(((struct md_disk *)disks->pdata[i])->path, O_RDONLY);

	assert_int_equal(pread(fd, head, sizeof(head), 8192), sizeof(head));
	close(fd);
	return get_le64(head + at);
}

static void remove_files(GPtrArray *disks)
{
	for (unsigned i = 0; i < disks->len; i++)
		unlink(((struct md_disk *)disks->pdata[i])->path);
	g_ptr_array_unref(disks);
}

static void test_begin_and_end(void **state)
{
	GPtrArray *disks = g_ptr_array_new_with_free_func(md_disk_free);

	for (unsigned i = 0; i < 4; i++) /* one is an event behind */
		g_ptr_array_add(disks, disk_file(i, i < 3 ? MD_USED : MD_SPARE, i == 1 ? 39 : 40, true));
	assert_int_equal(md_state_begin(disks, NULL), 0);
	look_again(disks);
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(super(disks, i)->events, 42);
		assert_int_equal(super(disks, i)->resync, 0);
	}
	assert_int_equal(bitmap_events(disks, 3, 24), 40);
	assert_int_equal(md_state_end(disks, MD_CLEAN, NULL), 0);
	look_again(disks);
	for (unsigned i = 0; i < 4; i++) {
		bool behind = super(disks, i)->number == 1, used = super(disks, i)->number < 3;

		assert_int_equal(super(disks, i)->events, 43);
		assert_true(super(disks, i)->resync == UINT64_MAX);
		assert_int_equal(bitmap_events(disks, i, 24), behind ? 39 : used ? 43 : 40);
		assert_int_equal(bitmap_events(disks, i, 32), used && !behind ? 43 : 3);
	}
	remove_files(disks);
}

static void test_one_fails(void **state)
{
	GPtrArray *disks = g_ptr_array_new_with_free_func(md_disk_free);

	for (unsigned i = 0; i < 3; i++)
		g_ptr_array_add(disks, disk_file(i, MD_USED, 40, false));
	assert_int_equal(md_state_begin(disks, NULL), 0);
	((struct md_disk *)disks->pdata[1])->as = MD_FAILED;
	look_again(disks);
	assert_int_equal(md_state_end(disks, MD_CLEAN, NULL), 0);
	look_again(disks);
	assert_int_equal(super(disks, 1)->events, 42);
	assert_int_equal(super(disks, 0)->events, 44); /* two more: it is out of date */
	assert_int_equal(super(disks, 0)->active[1], 0);
	remove_files(disks);
}

static void test_disagreement(void **state)
{
	GPtrArray *disks = g_ptr_array_new_with_free_func(md_disk_free);
	g_autoptr(GError) err = NULL;

	g_ptr_array_add(disks, disk_file(0, MD_USED, 40, false));
	g_ptr_array_add(disks, disk_file(0, MD_USED, 40, false)); /* twice the same */
	assert_true(md_state_begin(disks, &err) < 0);
	assert_non_null(strstr(err->message, "disagree"));
	look_again(disks);
	assert_int_equal(super(disks, 0)->events, 40);
	remove_files(disks);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_bytes),
	    cmocka_unit_test(test_begin_and_end),
	    cmocka_unit_test(test_one_fails),
	    cmocka_unit_test(test_disagreement),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
